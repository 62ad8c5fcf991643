"""Where what is plugged in comes from: file and line, the versions of its libraries, the git revision.

Nothing here trusts what it looks at, and nothing raises: what cannot be found out is left out.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlparse

from csa_spec.plug.candidate import Candidate
from csa_spec.plug.plain import plain_line

GIT_SECONDS = 5.0
_INSTALLED = {"site-packages", "dist-packages"}
_KNOWN = {*sys.stdlib_module_names, "torch", "csa_spec"}
"""What a module may import without a word in the report, or what is always there"""
_MOST = 8
"""Libraries of a candidate that are named"""


class Location(NamedTuple):
    """A place in a file."""

    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Source:
    """The folder that a library under development is imported from."""

    path: str
    revision: str
    """The commit; empty where git does not know"""
    dirty: bool
    """Whether files differ from that commit"""

    def __str__(self) -> str:
        """Return e.g. ``at 1a2b3c4+dirty in ./src``."""
        at = f"at {self.revision[:7]}{'+dirty' * self.dirty} " if self.revision else ""
        return f"{at}in {beside(self.path)}"


@dataclass(frozen=True, slots=True)
class Library:
    """What a candidate is made of, or imports."""

    name: str
    version: str
    source: Source | None


def beside(path: str) -> str:
    """Return a path as it is written from the working folder, where it is below that."""
    with suppress(OSError, ValueError, RuntimeError):
        inside = Path(path).resolve().relative_to(Path.cwd().resolve())
        path = f"./{inside.as_posix()}" if inside.parts else "."
    return plain_line(path)


def locations(candidate: Candidate) -> dict[str, Location]:
    """Return by stage where its function is written, where that is known."""
    found = {stage: _location(code) for stage, code in _codes(candidate).items()}
    return {stage: location for stage, location in found.items() if location is not None}


def libraries(candidate: Candidate) -> list[Library]:
    """Return the library that a candidate is, and those that its modules import."""
    own = {_module(code) for code in _codes(candidate).values()} - {"", "__main__"}
    imported = () if candidate.implementation is not None else map(_imported, sorted(own))
    tops = [*sorted(name.split(".")[0] for name in own), *(top for some in imported for top in some)]
    found = {library.name: library for top in dict.fromkeys(tops) if (library := _library(top))}
    return list(found.values())[:_MOST]


def _codes(candidate: Candidate) -> dict[str, Any]:
    """Return by stage the function or class where it is written."""
    given = candidate.implementation
    return {
        stage: _code(candidate.functions(stage).get("") if given is None else given)
        for stage in candidate.offers
    }


def _code(thing: Any) -> Any:
    """Return the function, without what wraps it, or the class that a callable object is of."""
    with suppress(Exception):
        for _ in range(20):
            inner = thing.func if isinstance(thing, functools.partial) else inspect.unwrap(thing)
            inner = getattr(inner, "__func__", inner)  # of a bound method
            if inner is thing:
                break
            thing = inner
        return thing if inspect.isfunction(thing) or inspect.isclass(thing) else type(thing)
    return None


def _module(code: Any) -> str:
    name = getattr(code, "__module__", "")
    return name if isinstance(name, str) else ""


def _location(code: Any) -> Location | None:
    with suppress(Exception):
        file = inspect.getsourcefile(code)
        line = code.__code__.co_firstlineno if inspect.isfunction(code) else inspect.getsourcelines(code)[1]
        return None if file is None else Location(str(Path(file).absolute()), line)
    return None


def _imported(module: str) -> Iterator[str]:
    """Yield the packages that a module imports anywhere, also inside of functions."""
    with suppress(Exception):
        for node in ast.walk(ast.parse(inspect.getsource(sys.modules[module]))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            yield from (top for name in names if (top := name.split(".")[0]) not in _KNOWN)


@functools.cache
def _library(top: str) -> Library | None:
    """Return the library of a package that can be imported; None where nothing is to be said of it."""
    with suppress(Exception):
        spec = importlib.util.find_spec(top)
        places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
        file = next((Path(place).resolve() for place in places if place and os.path.exists(place)), None)
        if file is None:
            return None
        root = (
            file.parents[1] if spec and spec.submodule_search_locations and file.is_file() else file.parent
        )
        known = next((known for known in _distributions(top) if _holds(known, root)), None)
        version = getattr(sys.modules.get(top), "__version__", None) or (known.version if known else "")
        source = _source(root, file, known is not None and _project(known) is not None)
        if version or source:
            name = known.metadata["Name"] if known else top
            return Library(plain_line(name, 80), plain_line(version, 80), source)
    return None


@functools.cache
def _by_package() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def _distributions(top: str) -> Iterator[Distribution]:
    """Yield what is installed under the name of a package, or does not say which packages it has."""
    with suppress(importlib.metadata.PackageNotFoundError):
        yield importlib.metadata.distribution(top)
    for name in _by_package().get(top, ()):
        yield importlib.metadata.distribution(name)
    telling = {name for names in _by_package().values() for name in names}
    for known in importlib.metadata.distributions():
        if known.metadata["Name"] not in telling and _project(known):  # editable, by hatchling or flit, say
            yield known


def _holds(known: Distribution, root: Path) -> bool:
    """Whether a distribution has its packages in a folder."""
    project = _project(known)
    if project is not None:
        return root.is_relative_to(project)
    return root == Path(str(known.locate_file(""))).resolve()


def _project(known: Distribution) -> Path | None:
    """Return the folder of a project that is installed as editable (PEP 610)."""
    data = json.loads(known.read_text("direct_url.json") or "{}")
    if not data.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlparse(data["url"]).path)).resolve()


def _source(root: Path, file: Path, editable: bool) -> Source | None:
    if _INSTALLED & set(root.parts):
        return None
    revision, dirty = _revision(root, file)
    return Source(str(root), revision, dirty) if revision or editable else None


def _revision(root: Path, file: Path) -> tuple[str, bool]:
    """Return the commit of the checkout that a file is part of, and whether something was changed since."""
    with suppress(OSError, subprocess.SubprocessError):
        git = functools.partial(_git, root)
        if git("check-ignore", "-q", str(file)).returncode == 0:  # it only lies there
            return "", False
        lines = git("status", "--porcelain=v2", "--branch", "--untracked-files=no").stdout.splitlines()
        commits = [line.split()[-1] for line in lines if line.startswith("# branch.oid ")]
        if commits and commits[0].isalnum():  # "(initial)" is none
            changed = any(not line.startswith("#") for line in lines)
            return commits[0], changed or git("ls-files", "--error-unmatch", str(file)).returncode != 0
    return "", False


def _git(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Ask git about the checkout around a folder, whoever owns it and whatever a hook has set."""
    # In a container the checkout often belongs to another user, and git refuses to read it.
    options = (
        "-c",
        "safe.directory=*",
        "-c",
        "core.fsmonitor=false",
        "--no-optional-locks",
        "-C",
        str(root),
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(
        ["git", *options, *words],
        env=environment, capture_output=True, text=True, errors="replace", timeout=GIT_SECONDS, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
