"""What the README says works as it stands there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import csa_spec
from csa_spec.cli import _parser
from csa_spec.resolving import resolve_candidate, resolve_profile
from csa_spec.spec import LayerKind
from csa_spec.stages.layer.stage import LAYER
from csa_spec.target import Target

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the fenced code blocks of one language."""
    return [part.split("```")[0] for part in README.split(f"```{language}\n")[1:]]


def test_its_python_plugs_a_layer_in_and_declares_what_it_lacks() -> None:
    """The blocks run one after the other, and what they make is a candidate with those capabilities."""
    names: dict[str, Any] = {"__name__": "my_layer"}
    for block in blocks("python"):
        exec(block, names)
    candidate = resolve_candidate(names["layer"])
    assert candidate.name == "my_layer:layer"
    assert candidate.capabilities.compress_ratios == {4}
    with pytest.raises(csa_spec.UsageError, match="does not support float16"):
        Target(candidate, LAYER, LayerKind.CSA, "float16", "cpu", resolve_profile("smoke"), 0)


def test_its_options_are_those_of_the_command() -> None:
    """Every option in the table is one that the parser knows."""
    arguments = (
        "check transformers --layer csa --profile smoke --dtype float32 --device cpu --seed 1 --json FILE"
    )
    for option in arguments.split()[2::2]:
        assert f"`{option}" in README
    assert _parser().parse_args(arguments.split()).seed == 1


def test_its_links_lead_somewhere() -> None:
    """Files that it links to exist."""
    root = Path(__file__).parents[1]
    targets = [part.split(")")[0] for part in README.split("](")[1:]]
    local = [target for target in targets if not target.startswith("http")]
    assert len(local) >= 6
    assert [target for target in local if not (root / target).exists()] == []
