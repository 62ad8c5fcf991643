"""Only its own room names a stage: the rest of the house asks the stage, whichever it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import csa_spec
import csa_spec.strategies
from csa_spec.stages import STAGES

PACKAGE = Path(csa_spec.__file__).parent
STRATEGIES = Path(csa_spec.strategies.__file__).parent

MAY_NAME = ("strategies/", "bugs/", "candidates/", "stages/__init__.py")
"""Where stages may be named beside their own rooms; the last is the list that registers them."""
BUILDS_ON = {"cache": {"layer"}}
"""Room of a stage: those of other stages that it is made of. A stream of calls is a layer."""
EXPORTS = {
    "__init__.py": "exports what users write: Feature, LayerCase, Row, LayerOutput, LayerStage",
}
"""Modules that may import from the rooms of stages all the same, and why; they may not branch on a stage"""
BRANCHES: dict[str, str] = {}
"""``module: class``, and why it must know the class of a trial or case; at most ``MOST``."""
MOST = 4

NAMES = frozenset(STAGES)
ROOMS = frozenset(path.name for path in (PACKAGE / "stages").iterdir() if (path / "__init__.py").is_file())


@cache
def modules() -> dict[str, ast.Module]:
    """Return every module of the package, by its path inside."""
    return {
        prefix + path.relative_to(folder).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for folder, prefix in ((PACKAGE, ""), (STRATEGIES, "strategies/"))
        for path in sorted(folder.rglob("*.py"))
    }


def checked(allowed: dict[str, str] | None = None) -> Iterator[tuple[str, str, ast.Module]]:
    """Yield the modules that must not name stages: path, the room of a stage that it is in, and syntax tree."""
    free = (*MAY_NAME, *(allowed or {}))
    for path, tree in modules().items():
        if not path.startswith(free):
            parts = path.split("/")
            yield path, parts[1] if parts[0] == "stages" and len(parts) > 2 else "", tree


def imported_rooms(tree: ast.Module) -> Iterator[str]:
    """Yield the rooms of stages that a module imports from, wherever and in whatever form it does so."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            names = [node.value]  # of import_module
        for name in names:
            parts = name.split(".")
            if parts[:2] == ["csa_spec", "stages"] and len(parts) > 2 and parts[2] in ROOMS:
                yield parts[2]


def decides_by_name(tree: ast.Module) -> Iterator[str]:
    """Yield names of stages that something is decided by: compared with, looked up, or a key of a table."""
    for node in ast.walk(tree):
        constants: list[ast.expr | None] = []
        if isinstance(node, ast.Compare):
            constants = [node.left, *node.comparators]
            for one in node.comparators:
                constants += getattr(one, "elts", [])
        elif isinstance(node, ast.Dict):
            constants = list(node.keys)
        elif isinstance(node, ast.Subscript):
            constants = [node.slice]
        elif isinstance(node, ast.MatchValue):
            constants = [node.value]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            constants = list(node.args[:1])
        for constant in constants:
            if isinstance(constant, ast.Constant) and constant.value in NAMES:
                yield str(constant.value)


def branches(tree: ast.Module) -> Iterator[str]:
    """Yield the classes of trials and cases that a module asks for with ``isinstance``, or matches."""
    for node in ast.walk(tree):
        asked: list[ast.expr] = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 2:
            if node.func.id in ("isinstance", "issubclass"):
                asked = [*getattr(node.args[1], "elts", [node.args[1]])]
        elif isinstance(node, ast.MatchClass):
            asked = [node.cls]
        for one in asked:
            name = (
                one.id if isinstance(one, ast.Name) else one.attr if isinstance(one, ast.Attribute) else ""
            )
            if name.endswith(("Trial", "Case")):
                yield name


def test_only_its_own_room_imports_a_stage() -> None:
    """Others go through ``csa_spec.stages``."""
    found = [
        f"{path} imports {room}"
        for path, own, tree in checked(EXPORTS)
        for room in imported_rooms(tree)
        if room != own and room not in BUILDS_ON.get(own, set())
    ]
    assert sorted(set(found)) == []


def test_nothing_is_decided_by_the_name_of_a_stage() -> None:
    """What differs by stage is a field of the stage, or a method of its case or trial."""
    found = [
        f"{path} decides by {name!r}"
        for path, own, tree in checked()
        for name in decides_by_name(tree)
        if name != own
    ]
    assert sorted(set(found)) == []


def test_few_places_ask_of_what_class_a_trial_or_case_is() -> None:
    """Each says why."""
    found = {
        f"{path}: {name}"
        for path, _, tree in checked()
        if not path.startswith("stages/")
        for name in branches(tree)
    }
    assert found == set(BRANCHES)
    assert len(BRANCHES) <= MOST
    assert all(BRANCHES.values())


def test_what_is_allowed_is_still_there() -> None:
    """No allowance outlives what it is for."""
    for allowed in (*MAY_NAME, *EXPORTS, *(entry.partition(":")[0] for entry in BRANCHES)):
        assert any(path.startswith(allowed) for path in modules()), allowed
    assert set(STAGES) <= ROOMS


def test_what_is_forbidden_is_seen() -> None:
    """In each of the ways to write it."""
    text = (
        "from csa_spec.stages.attend.case import AttendCase\nimport csa_spec.stages.layer\n"
        "from csa_spec.stages import select\nimport_module('csa_spec.stages.cache.case')\n"
        "if stage == 'layer' or stage in ('cache', 'other'): pass\n"
        "table = {'attend': 1}\ntable['select']\ntable.get('compressor')\n"
        "isinstance(trial, (AttendTrial, int)) or isinstance(case, cases.LayerCase)\n"
    )
    tree = ast.parse(text)
    assert set(imported_rooms(tree)) == {"attend", "layer", "select", "cache"}
    assert set(decides_by_name(tree)) == {"layer", "cache", "attend", "select", "compressor"}
    assert set(branches(tree)) == {"AttendTrial", "LayerCase"}
