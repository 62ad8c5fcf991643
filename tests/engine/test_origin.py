"""What was really tested: versions of libraries, folder and revision of what is under development, file and line."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy
import pytest

import csa_spec
from csa_spec.engine.known_issues import with_known_issues
from csa_spec.plug import origin
from csa_spec.plug.origin import Library, Location, Source, beside, libraries, locations
from csa_spec.report.content import environment
from csa_spec.report.html import to_html
from csa_spec.report.json import to_json
from csa_spec.report.junit import to_junit
from csa_spec.report.markdown import to_markdown
from csa_spec.report.text import conclude
from csa_spec.resolving import resolve_candidate

KERNEL = '''"""A kernel."""


def attend(q, kv, indices, sinks, scale):
    """Answer nothing."""
    import numpy
    from . import nothing
    from json import dumps
'''


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Let each test import its own ``kernels_here``, and look for it anew."""
    origin._library.cache_clear()
    origin._by_package.cache_clear()
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "kernels_here"]:
        del sys.modules[name]
    origin._library.cache_clear()
    origin._by_package.cache_clear()


def git(folder: Path, *words: str) -> str:
    """Run git as a user who has set nothing."""
    options = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false", "-C", str(folder))
    return subprocess.run(
        ["git", *options, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a checkout whose folder ``src`` has a package; it is the working folder."""
    package = tmp_path / "src" / "kernels_here"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "1.5"\n')
    (package / "attention.py").write_text(KERNEL)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "begin")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "src")
    return tmp_path


def found(name: str = "kernels_here.attention:attend") -> dict[str, Library]:
    """Return the libraries of a candidate by name."""
    return {library.name: library for library in libraries(resolve_candidate(name))}


def install(folder: Path, name: str, project: Path | None = None, packages: str = "") -> None:
    """Install a distribution into a folder: as editable, where there is a project."""
    info = folder / f"{name.replace('-', '_')}-2.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.0\n")
    (info / "top_level.txt").write_text(packages)
    if project is not None:
        direct = {"url": project.as_uri(), "dir_info": {"editable": True}}
        (info / "direct_url.json").write_text(json.dumps(direct))


def test_a_module_from_a_checkout_is_named_with_its_revision(checkout: Path) -> None:
    """And with the libraries that its functions import; the standard library is none."""
    used = found()
    head = git(checkout, "rev-parse", "HEAD")
    assert used == {
        "kernels_here": Library("kernels_here", "1.5", Source(str(checkout / "src"), head, False)),
        "numpy": Library("numpy", numpy.__version__, None),
    }
    assert str(used["kernels_here"].source) == f"at {head[:7]} in ./src"


@pytest.mark.parametrize("change", ["edited", "staged", "not added"])
def test_changes_since_the_commit_are_dirty(checkout: Path, change: str) -> None:
    """Those of any file that git knows, and a module that it does not know."""
    name = "kernels_here.attention:attend"
    if change == "not added":
        (checkout / "src" / "kernels_new.py").write_text(KERNEL)
        name = "kernels_new:attend"
    else:
        (checkout / "src" / "kernels_here" / "__init__.py").write_text("")
    if change == "staged":
        git(checkout, "add", ".")
    [source] = [library.source for library in found(name).values() if library.source]
    assert source.dirty
    assert str(source).endswith("+dirty in ./src")


def test_files_beside_the_code_do_not_make_it_dirty(checkout: Path) -> None:
    """Such as the report of an earlier run."""
    (checkout / "report.json").write_text("{}")
    assert not found()["kernels_here"].source.dirty  # type: ignore[union-attr]


def test_what_only_lies_in_a_checkout_is_not_of_it(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What git ignores, and what is installed in a virtual environment there."""
    (checkout / ".gitignore").write_text("build\n")
    for folder in ("build", "venv/site-packages"):
        place = checkout / folder
        place.mkdir(parents=True)
        (place / "kernels_there.py").write_text(KERNEL)
        monkeypatch.syspath_prepend(place)
        assert [library.name for library in libraries(resolve_candidate("kernels_there:attend"))] == [
            "numpy"
        ]
        del sys.modules["kernels_there"]


@pytest.mark.parametrize("packages", ["kernels_here", ""])
def test_an_editable_install_is_named_by_its_project(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, packages: str
) -> None:
    """Also where its build backend does not say which packages it has, and the name is another."""
    place = checkout / "venv" / "site-packages"
    install(place, "our-kernels", checkout, packages)
    monkeypatch.syspath_prepend(place)
    library = found()["our-kernels"]
    assert library.version == "1.5"  # what was imported knows better than its metadata of long ago
    assert str(library.source).endswith(" in ./src")


def test_an_editable_install_without_git_has_a_folder(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where git is not installed, too."""
    install(checkout / "site-packages", "our-kernels", checkout, "kernels_here")
    monkeypatch.syspath_prepend(checkout / "site-packages")
    monkeypatch.setenv("PATH", str(checkout))
    assert str(found()["our-kernels"].source) == "in ./src"


def test_an_installed_version_that_is_shadowed_is_not_named(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module comes from the checkout, whatever is installed under its name."""
    (checkout / "src" / "kernels_here" / "__init__.py").write_text("")
    install(checkout / "site-packages", "kernels-here", packages="kernels_here")
    monkeypatch.syspath_prepend(checkout / "site-packages")
    monkeypatch.syspath_prepend(checkout / "src")
    assert found()["kernels_here"].version == ""


def test_git_is_asked_about_that_checkout_whatever_a_hook_has_set(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``GIT_DIR`` is set in hooks."""
    monkeypatch.setenv("GIT_DIR", str(checkout / "elsewhere"))
    assert found()["kernels_here"].source.revision  # type: ignore[union-attr]


def test_git_that_hangs_is_left_alone(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After some seconds."""
    (checkout / "git").write_text("#!/bin/sh\nexec sleep 60\n")
    (checkout / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{checkout}:/usr/bin:/bin")
    monkeypatch.setattr(origin, "GIT_SECONDS", 0.2)
    assert found()["kernels_here"].source is None


def test_the_line_of_a_function_is_known_through_what_wraps_it(checkout: Path) -> None:
    """Partial functions, methods, decorated ones, objects that are called; none of what is built in."""
    module = resolve_candidate("kernels_here.attention:attend").functions("attend")[""]

    def decorated(*arguments: Any) -> None:
        """Pass on."""

    functools.update_wrapper(decorated, module)
    place = Location(str(checkout / "src" / "kernels_here" / "attention.py"), 4)
    for function in (module, functools.partial(module), decorated):
        assert locations(resolve_candidate(SimpleNamespace(attend=function))) == {"attend": place}
    of_class = locations(resolve_candidate(SimpleNamespace(attend=Called())))["attend"]
    assert of_class.file == __file__
    assert locations(resolve_candidate(SimpleNamespace(attend=print))) == {}


class Called:
    """An object that is called."""

    def __call__(self, q: Any, kv: Any, indices: Any, sinks: Any, scale: float) -> None:
        """Answer nothing."""


class Hidden(Called):
    """An object that does not let itself be looked at."""

    @property
    def __wrapped__(self) -> object:
        """Raise whatever asks."""
        raise RuntimeError("do not look")


def test_an_adapter_names_what_it_adapts() -> None:
    """The model of transformers, not the module here that calls it."""
    pytest.importorskip("transformers")
    candidate = resolve_candidate("transformers")
    assert [library.name for library in libraries(candidate)] == ["transformers"]
    for location in locations(candidate).values():
        assert location.file.endswith("modeling_deepseek_v4.py")
        line = Path(location.file).read_text(encoding="utf-8").splitlines()[location.line - 1]
        assert "class DeepseekV4Attention" in line


def test_every_report_says_what_was_tested(checkout: Path) -> None:
    """The revision has a key of its own: ``versions`` of known issues are compared with versions alone."""
    (checkout / "src" / "kernels_here" / "attention.py").write_text(KERNEL + "    return q * 0\n")
    report = csa_spec.check("kernels_here.attention:attend", profile="smoke", fail_fast=True)
    head = git(checkout, "rev-parse", "HEAD")
    named = f"kernels_here 1.5 at {head[:7]}+dirty in ./src"
    assert named in environment(report)
    for write in (conclude, to_html):
        assert named in write(report)
    assert named.replace("_", "\\_") in to_markdown(report)
    assert f'name="kernels_here" value="{named.removeprefix("kernels_here ")}"' in to_junit(report)
    data = to_json(report)
    assert data["environment"]["kernels_here"] == "1.5"
    assert data["sources"] == {
        "kernels_here": {"path": str(checkout / "src"), "revision": head, "dirty": True}
    }
    assert data["functions"]["attend"]["line"] == 4


def test_versions_of_known_issues_are_compared_as_before(checkout: Path) -> None:
    """With what the candidate says itself."""
    file = checkout / "known.toml"
    file.write_text(
        '[[known_issue]]\ncandidate = "mine"\nstage = "attend"\nname = "empty"\nreason = "why"\nversions = ">=2"\n'
    )
    for version, lacks in (("1.0", 0), ("2.1", 1)):
        candidate = csa_spec.Candidate(
            "mine", {"attend": Called()}, environment={"mine": version}, implementation=Called
        )
        assert len(with_known_issues(candidate, file).capabilities.lacks) == lacks


def test_nothing_that_is_looked_at_can_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module without a place, one that is no module, a version that has no text, a folder with an odd name."""
    odd = ModuleType("kernels_here")
    odd.__version__ = SimpleNamespace()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kernels_here", odd)

    def attend(q: Any, kv: Any, indices: Any, sinks: Any, scale: float) -> None:
        """Answer nothing."""

    assert locations(csa_spec.Candidate("hidden", {"attend": Hidden()})) == {}
    for module in ("kernels_here", "kernels_here.more", "", None, 3, "__main__"):
        attend.__module__ = module  # type: ignore[assignment]
        assert libraries(csa_spec.Candidate("odd", {"attend": attend})) == []
    assert beside("/no/\n\x1b[31msuch\0") == "/no/ such"
