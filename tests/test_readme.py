"""What the README and its page of commands say works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import csa_spec
from csa_spec import plugin
from csa_spec.cli import main
from csa_spec.resolving import choices, resolve_candidate, resolve_profile
from csa_spec.spec import LayerKind
from csa_spec.stages.layer.stage import LAYER
from csa_spec.target import Target

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")


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


def rows() -> dict[str, str]:
    """Return the rows of the table of commands, by the command."""
    lines = [line for line in COMMANDS.splitlines() if line.startswith(("| `csa-spec ", "| `pytest "))]
    return {line.split("`")[1].split()[1]: line for line in lines}


def options(text: str) -> set[str]:
    """Return the long options that a text names, without ``--help`` and pytest's own."""
    return set(re.findall(r"--[a-z][a-z-]*", text)) - {"--help", "--pyargs"}


def test_its_options_are_those_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The table names every option that a subcommand has, and no other."""
    for command in ("check", "case", "replay", "compare", "selftest", "vectors", "judge"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert options(rows()[command]) == options(capsys.readouterr().out), command


def test_its_options_are_those_of_the_pytest_plugin() -> None:
    """Likewise; ``--csa-candidate`` is in the command."""
    added = {f"--csa-{option.name}" for option in plugin.OPTIONS}
    assert options(rows()["--pyargs"]) == added
    assert len(added) == 10


def test_what_its_options_can_be_is_what_there_is() -> None:
    """Stages, layer kinds, profiles and devices, each list in full."""
    lists = choices()
    for option, what, last in (
        ("stage", "stages", ["all"]),
        ("layer", "layers", ["all"]),
        ("profile", "profiles", []),
        ("device", "devices", []),
    ):
        names = "\\|".join([*lists[what].split(", "), *last])
        assert f"`--{option} {names}`" in rows()["check"]


def test_the_first_command_is_on_the_first_screen() -> None:
    """Of 30 lines, and the README names every command of the page."""
    assert README.splitlines().index("```sh") < 30
    for command in rows():
        assert command == "--pyargs" or f"`{command}`" in README or f"`csa-spec {command}" in README, command


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    """Files of the repository, and headings of pages."""
    prose = re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        name, _, heading = target.partition("#")
        if name.startswith(("http:", "https:")) or not name:
            continue
        file = page.parent / name
        assert file.exists(), target
        assert not heading or heading in headings(file), target


def headings(page: Path) -> set[str]:
    """Return the headings of a page as addresses name them."""
    titles = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
