"""Who may import whom: spec <- plug <- engine <- stages <- (candidates, strategies, report) <- target <- cli."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import csa_spec
import csa_spec.strategies

PACKAGE = Path(csa_spec.__file__).parent
STRATEGIES = Path(csa_spec.strategies.__file__).parent

ALLOWED = {
    "spec": {"spec"},
    "plug": {"spec", "plug"},
    "engine": {"spec", "plug", "engine"},
    "drawing": {"spec", "plug", "engine", "drawing"},
    "stages": {"spec", "plug", "engine", "drawing", "scripting", "stages"},
    "candidates": {"spec", "plug", "engine", "scripting", "stages", "candidates"},
    "strategies": {"spec", "engine", "stages", "strategies"},
    "bugs": {"spec", "plug", "engine", "stages", "candidates", "bugs"},
    "diagnosis": {"spec", "plug", "engine", "stages", "bugs", "diagnosis"},
    "report": {"spec", "plug", "engine", "drawing", "stages", "report"},
    "bundle": {"spec", "plug", "engine", "scripting", "stages", "candidates", "report", "bundle"},
    "vectors": {
        "spec",
        "plug",
        "engine",
        "stages",
        "diagnosis",
        "report",
        "resolving",
        "target",
        "answers",
        "vectors",
    },
    "answers": {"plug", "engine", "stages", "diagnosis", "report", "target"},
    "profiles": set(),
    "resolving": {"spec", "plug", "engine", "stages", "candidates", "profiles"},
    "target": {"spec", "plug", "engine", "stages", "candidates", "diagnosis", "profiles", "resolving"},
}
"""Room (or top-level module): rooms that it may import. What is not listed may import everything."""

OUTSIDE = {
    "spec": {"torch"},
    "plug": {"torch"},
    "engine": {"torch", "hypothesis", "packaging"},
    "drawing": {"torch"},
    "stages": {"torch"},
}
"""Third-party packages that a room may import at all."""


def modules() -> list[tuple[str, str, Path]]:
    """Return room, name and path of every module of the package."""
    found = [("strategies", path) for path in STRATEGIES.glob("*.py")]
    for path in PACKAGE.rglob("*.py"):
        inside = path.relative_to(PACKAGE)
        found.append((inside.parts[0] if len(inside.parts) > 1 else inside.stem, path))
    return [(room, f"{room}/{path.name}", path) for room, path in sorted(found)]


def imports(path: Path) -> set[str]:
    """Return the dotted names that a module imports, wherever it does so."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            assert node.module is not None
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize(
    ("room", "name", "path"), modules(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_rooms_import_only_what_lies_below_them(room: str, name: str, path: Path) -> None:
    """Data flows one way; the specification knows nothing but torch."""
    for imported in imports(path):
        package, _, rest = imported.partition(".")
        if package == "csa_spec" and room in ALLOWED:
            target = rest.partition(".")[0]
            assert target in ALLOWED[room], f"{name} imports {imported}"
        elif room in OUTSIDE and package not in ("csa_spec", "__future__"):
            standard = package in sys.stdlib_module_names
            assert standard or package in OUTSIDE[room], f"{name} imports {imported}"


def test_every_room_is_there() -> None:
    """The rules above are about rooms that exist."""
    rooms = {room for room, _, _ in modules()}
    assert set(ALLOWED) <= rooms
    assert len(modules()) > 35


def test_modules_of_the_specification_are_short() -> None:
    """A stranger reads each of them in one sitting."""
    for room, name, path in modules():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert room != "spec" or lines <= 150, f"{name} has {lines} lines"
