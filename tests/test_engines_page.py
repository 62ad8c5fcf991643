"""The page about code that no registry has: its blocks compile, and use stages, names and arguments that there are."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

import csa_spec
from csa_spec import LayerKind
from csa_spec.plug.candidate import CandidateError
from csa_spec.resolving import resolve_candidate
from csa_spec.stages import STAGES

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "engines.md").read_text(encoding="utf-8")
HEAD = "import torch\nfrom csa_spec import Capabilities\n"
"""What the page says that every block begins with"""
OURS = {"torch", "types", "csa_spec"}
"""The modules that blocks really import here; others are mocked, as no registry has them"""


def namespace(block: str) -> dict[str, Any]:
    """Run a block with its other modules mocked, and return its names."""
    tree = ast.parse(HEAD + block)
    names: dict[str, Any] = {"__name__": "block"}
    kept: list[ast.stmt] = []
    for statement in tree.body:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            module = getattr(statement, "module", None) or statement.names[0].name
            if module.partition(".")[0] not in OURS:
                names |= {
                    alias.asname or alias.name.partition(".")[0]: MagicMock() for alias in statement.names
                }
                continue
        kept.append(statement)
    tree.body = kept
    exec(compile(tree, "engines.md", "exec"), names)
    return names


def commands(block: str) -> dict[str, str]:
    """Return the stage of each function that the comments at the head of a block name."""
    head = block.partition("\n\n")[0]
    found = dict(re.findall(r"\w+:(\w+) --stage (\w+)", head))
    for others in re.findall(r"\(or (.+)\)", head):
        found |= dict.fromkeys(others.split(", "), list(found.values())[-1])
    return found


def undeclarable(stage: str, capabilities: csa_spec.Capabilities) -> Iterator[str]:
    """Say which sizes and names of a declaration the stage does not have."""
    case = STAGES[stage].case
    for field, sizes in capabilities.sizes.items():
        for key in sizes:
            kind, letter = ("sliding", key) if isinstance(key, str) else key
            if letter not in case.letters() or kind not in set(LayerKind):
                yield f"{field} of {stage}: {key}"
    for place, name in capabilities.lacks:
        if name not in case.may_lack().get(place, []):
            yield f"lacks of {stage}: {place}, {name}"


def wrong(function: Callable[..., Any], stage: str) -> Iterator[str]:
    """Say what a function has that a candidate of the stage does not."""
    try:
        capabilities = resolve_candidate(function, stage).capabilities_of(stage)
    except (CandidateError, csa_spec.UsageError) as error:
        yield str(error)
        return
    given = inspect.signature(function).parameters.values()
    by_name = {one.name for one in given if one.kind is one.KEYWORD_ONLY}
    if len(given) - len(by_name) != len(STAGES[stage].arguments):
        yield f"{function.__name__} takes {len(given) - len(by_name)} arguments"
    if by_name != set(STAGES[stage].trial.extra(capabilities)):
        yield f"{function.__name__} takes {sorted(by_name)} by name"
    yield from undeclarable(stage, capabilities)


def problems(page: str) -> Iterator[str]:
    """Say everything that is wrong with a page, in no case twice."""
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```$", page)
    for block in blocks:
        file, stages = block.partition(".py: ")[0].removeprefix("# "), commands(block)
        try:
            names = namespace(block)
        except Exception as error:  # of a block that does not compile, or uses a name that is none
            yield f"{file}: {error}"
            continue
        functions = {
            name
            for name, value in names.items()
            if inspect.isfunction(value) and value.__module__ == "block" and name[0] != "_"
        }
        if {*stages} != functions or f"check {file}:" not in block:
            yield f"{file}: its command names {sorted(stages)}, and its functions are {sorted(functions)}"
        for name in sorted({*stages} & functions):
            yield from wrong(names[name], stages[name])
    for row in re.findall(r"(?m)^\| .*`.*$", page):
        told = set(re.findall("`(.*?)`", row.split(" | ")[2]))
        if told - set(STAGES):
            yield f"no stage: {sorted(told - set(STAGES))}"
    for target in re.findall(r"\]\(([^)\s]+)\)", page):
        if not target.startswith("https:") and not (DOCS / target.partition("#")[0]).exists():
            yield f"no file: {target}"
    if len(blocks) < 7 or len(page.splitlines()) > 200:
        yield "too short or too long"


def test_what_it_uses_exists() -> None:
    """Functions, arguments, capabilities, sizes, stages and files."""
    assert list(problems(PAGE)) == []


@pytest.mark.parametrize(
    ("right", "damaged"),
    [
        ("lengths=True", "length=True"),
        ("lengths=True", "lengths=False"),
        ("paged=(64,)", "paged=()"),
        ('limits={"step": 1}', 'limits={"steps": 1}'),
        ('("csa", "m"): {4}', '("cas", "m"): {4}'),
        ('("compressor", "yarn")', '("compressor", "Yarn")'),
        ("--stage cache", "--stage caches"),
        ("gpu_attend:flash_mla --stage attend", "gpu_attend:flash_mla --stage select"),
        ("import AllBut, LayerKind", "import AllBut, LayerKinds"),
        ('{"dtypes": {"bfloat16"}', '{"dtypes": {"bf16"}'),
        ("(or tensorrt_llm, ", "(or tensorrt, "),
        ("head_weights, *, block_table", "*, block_table"),
        ("    out = csa.", "   out = csa."),
        ("<br>`index_scores` |", "<br>`scores` |"),
        ("official_sparse_attn.py)", "official.py)"),
    ],
)
def test_a_damaged_page_is_found(right: str, damaged: str) -> None:
    """One slip each, as a rename would leave behind."""
    assert right in PAGE
    assert list(problems(PAGE.replace(right, damaged, 1)))


def test_the_page_about_adapters_leads_to_it() -> None:
    """So that a reader finds it."""
    assert "](engines.md)" in (DOCS / "adapters.md").read_text(encoding="utf-8")
