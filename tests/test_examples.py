"""The examples, and the page that shows them, are right as they stand: here and with an installed wheel."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from distribution import REPOSITORY, pip

import csa_spec
from csa_spec.cli import main
from csa_spec.stages import STAGES

EXAMPLES = REPOSITORY / "examples"
PAGE = (REPOSITORY / "docs" / "stages.md").read_text(encoding="utf-8")
LONGEST_ADAPTER = 10
DTYPES = {
    "numpy_attend.py": "float32,float64",
    # Every shape is compiled anew, so one dtype each has to do.
    "jax_attend.py": "bfloat16",
    "jax_select.py": "float32",
}
SINGLE_FILES = sorted(path.name for path in EXAMPLES.glob("*.py"))
ALL_FILES = sorted(str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.py"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Copy the examples to a folder of their own, and go there."""
    copy = tmp_path / "examples"
    shutil.copytree(EXAMPLES, copy, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
    monkeypatch.chdir(copy)
    monkeypatch.setattr(sys, "path", [str(copy), *sys.path])
    before = set(sys.modules)
    yield copy
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(copy)):
            del sys.modules[name]


def command(name: str) -> list[str]:
    """Return the arguments of ``csa-spec`` in the first command that an example's docstring gives."""
    lines = (EXAMPLES / name).read_text(encoding="utf-8").split('"""')[1].splitlines()
    (line, *_) = (line.strip() for line in lines if line.strip().startswith("csa-spec "))
    return shlex.split(line)[1:]


def adapter(name: str) -> str:
    """Return the part of an example that a user writes."""
    kernel, mark, own = (EXAMPLES / name).read_text(encoding="utf-8").partition("# Adapter")
    assert mark, f"{name} has no adapter"
    assert "\n# Kernel under test: put " in kernel or name in (
        "several_stages.py",
        "in_your_conftest/conftest.py",
    )
    return own.partition("\n")[2].strip()


@pytest.mark.parametrize("name", SINGLE_FILES)
def test_the_command_of_an_example_finds_it_conformant(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As its docstring gives it, but with few cases and in two dtypes."""
    if name.startswith("jax"):
        jax = pytest.importorskip("jax")
        jax.config.update("jax_disable_most_optimizations", True)  # they cost more than they save here
    arguments = [*command(name), "--profile", "smoke", "--dtype", DTYPES.get(name, "float32,bfloat16")]
    code = main(arguments)
    printed = capsys.readouterr()
    assert code == 0, printed
    candidate = arguments[1]
    assert f"{candidate}: CONFORMANT for " in printed.out


def test_there_is_an_example_of_every_stage() -> None:
    """Those of the commands, and the layer, which needs no ``--stage``."""
    named = {arguments[-1] for arguments in map(command, SINGLE_FILES) if "--stage" in arguments[-2:]}
    named |= {arguments[3] for arguments in map(command, SINGLE_FILES) if arguments[2:3] == ["--stage"]}
    assert named | {"layer"} == set(STAGES)
    assert command("layer.py") == ["check", "layer:layer"]


@pytest.mark.parametrize("name", ALL_FILES)
def test_an_adapter_has_at_most_ten_lines(name: str) -> None:
    """Blank lines do not count, docstrings and capabilities do."""
    lines = [line for line in adapter(name).splitlines() if line.strip()]
    assert 1 <= len(lines) <= LONGEST_ADAPTER


def blocks(language: str) -> list[str]:
    """Return the fenced code blocks of one language on the page."""
    return [part.split("\n```")[0] for part in PAGE.split(f"```{language}\n")[1:]]


def test_the_page_shows_the_adapters_of_the_examples() -> None:
    """Word for word; the first line of a block names the file. Every stage is among them."""
    shown = {}
    for block in blocks("python"):
        first, _, text = block.partition("\n")
        shown[first.removeprefix("# examples/")] = text
    assert len(shown) == len(blocks("python"))
    assert {name: adapter(name) for name in shown} == shown
    for stage in STAGES:
        assert any(f"def {stage}(" in text for text in shown.values())


def test_the_page_names_every_stage_and_every_capability() -> None:
    """Each has a row of its own."""
    for name in (*STAGES, *(field.name for field in fields(csa_spec.Capabilities))):
        assert PAGE.count(f"\n| `{name}` |") == 1, name


def test_the_links_of_the_page_lead_somewhere() -> None:
    """Files of the repository; and every example is linked or shown."""
    targets = [part.split(")")[0] for part in PAGE.split("](")[1:]]
    files = [target.partition("#")[0] for target in targets]
    assert [file for file in files if not (REPOSITORY / "docs" / file).exists()] == []
    for name in (*SINGLE_FILES, "entry_point/pyproject.toml", "in_your_conftest/conftest.py"):
        assert f"examples/{name}" in PAGE


def test_the_failure_on_the_page_is_a_real_one(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of those of the change that the page names."""
    monkeypatch.setattr(
        "csa_spec.engine.running.AT_ONCE", math.inf
    )  # on a busy machine it is told in two parts
    right = (folder / "official_sparse_attn.py").read_text(encoding="utf-8")
    assert right.count("indices.int()") == 1
    assert "`indices.clamp(min=0).int()`" in PAGE
    (folder / "clamped.py").write_text(
        right.replace("indices.int()", "indices.clamp(min=0).int()"), encoding="utf-8"
    )
    assert main(["check", "clamped:attend", "--stage", "attend", "--profile", "smoke"]) == 1
    (shown,) = blocks("text")
    assert f"{shown}\n" in capsys.readouterr().out


# With an installed wheel, outside of the repository.


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel, and the package of the example of an entry point."""
    target, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source") / "entry_point"
    shutil.copytree(EXAMPLES / "entry_point", source, ignore=shutil.ignore_patterns("__pycache__"))
    packages = (str(request.getfixturevalue("wheel")), str(source))
    pip("install", "--no-deps", "--no-build-isolation", "--target", str(target), *packages)
    return target


def python(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder with what is installed in ``site``."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip


def test_an_example_runs_with_an_installed_wheel(site: Path, folder: Path) -> None:
    """The package is the installed one, the example lies in the folder of the command."""
    where = python(site, folder, "-c", "import csa_spec; print(csa_spec.__file__)").stdout.strip()
    assert where == str(site / "csa_spec" / "__init__.py")
    done = python(site, folder, "-m", "csa_spec", *command("official_sparse_attn.py"), "--profile", "smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("official_sparse_attn:attend: CONFORMANT for attend\n")


def test_an_installed_package_is_found_by_the_name_of_its_entry_point(site: Path, tmp_path: Path) -> None:
    """From an empty folder."""
    arguments = command("entry_point/my_kernels.py")
    assert f"csa-spec {shlex.join(arguments)}" in (EXAMPLES / "entry_point" / "pyproject.toml").read_text(
        "utf-8"
    )
    done = python(site, tmp_path, "-m", "csa_spec", *arguments, "--profile", "smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("my-kernels: CONFORMANT for index_scores\n")


def test_a_name_of_the_conftest_is_a_candidate(site: Path, folder: Path) -> None:
    """The command of its docstring, in its folder."""
    inside = folder / "in_your_conftest"
    line = "pytest --pyargs csa_spec.conformance --csa-candidate mine"
    assert line in (inside / "conftest.py").read_text(encoding="utf-8")
    done = python(site, inside, "-m", *line.split(), "--csa-profile", "smoke", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout + done.stderr
    covered = done.stdout.partition("csa-spec: what was covered")[2]
    assert "\nmine select float32: every selection is valid" in covered
    assert "failed" not in covered
