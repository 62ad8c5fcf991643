"""The examples, and the page that shows them, are right as they stand: here and with an installed wheel."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from distribution import REPOSITORY, pip, run_alone

import csa_spec
from csa_spec.cli import main
from csa_spec.stages import STAGES

EXAMPLES = REPOSITORY / "examples"
PAGE = (REPOSITORY / "docs" / "stages.md").read_text(encoding="utf-8")
LONGEST_ADAPTER = 10
NO_JAX = importlib.util.find_spec("jax") is None
BOTH = "float32,bfloat16"
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


def test_the_failure_on_the_page_is_a_real_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of those of the change that the page names."""
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

MY_LAYER = """
from csa_spec import Capabilities
from csa_spec.candidates import find_candidate
gather = find_candidate("gather").functions("layer")[""]
def layer(*arguments):
    return gather(*arguments)
layer.capabilities = Capabilities(batch_invariant=False)
"""
STANDS_FOR = {
    "mine": "from official_sparse_attn import attend",
    "my_kernels": "from official_sparse_attn import attend as sparse_attn",
    "my_layer": MY_LAYER,
}
"""Modules that readers of the pages write, by the name that commands there give them"""


def shown_commands() -> list[str]:
    """Return the commands that check or try something in the README and on the page, as they stand there."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?ms)^```(?:text|sh)\n(.*?)^```$", readme + PAGE)
    lines = "".join(blocks).splitlines()
    lines += re.findall(r"`(csa-spec case [a-z]+ \".*?\")`", PAGE)
    return [line for line in lines if re.match("csa-spec (check|case) [a-z]", line)]


COMMANDS = {f"csa-spec {shlex.join(command(name))}": DTYPES.get(name, BOTH) for name in SINGLE_FILES}
COMMANDS |= dict.fromkeys(shown_commands(), "")
"""Every command, and the dtypes that it is tried in, where it does not say so itself"""


def quick(line: str) -> str:
    """Return a command with few cases."""
    dtype = f" --dtype {COMMANDS[line]}" if COMMANDS[line] else ""
    return line if " case " in line else f"{line} --profile smoke{dtype}"


def vectors_lines() -> list[str]:
    """Return the commands of the page about vectors, and the same with the program that makes two mistakes."""
    page = (REPOSITORY / "docs" / "vectors.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    lines = block.splitlines()
    assert [line.split()[0] for line in lines] == ["csa-spec", "g++", "mkdir", *["./answer"] * 2, "csa-spec"]
    _, build, _, *rest = lines
    return [*lines, build.replace("-O2", "-O2 -DWRONG"), *(f"{line} " for line in rest)]


def answers_script() -> str:
    """Return the code of the page about answers, with calls of its tests."""
    page = (REPOSITORY / "docs" / "answers.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    tests = re.findall(r"(?m)^def (test_\w+)\(case\)", code)
    assert tests == ["test_select", "test_layer"]
    return "\n".join([code, *(f"{test}()" for test in tests)]) + "\n"


ANSWERS = "python answers_page.py"
VECTORS = vectors_lines() if shutil.which("g++") else []


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the examples to a folder, with the modules that readers write."""
    copy = tmp_path_factory.mktemp("outside") / "examples"
    shutil.copytree(EXAMPLES, copy, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
    for name, text in STANDS_FOR.items():
        (copy / f"{name}.py").write_text(text, encoding="utf-8")
    (copy / "answers_page.py").write_text(answers_script(), encoding="utf-8")
    (copy / "examples").symlink_to(copy)  # as the page about vectors names it
    return copy


@pytest.fixture(scope="module")
def results(installed: str, outside: Path) -> dict[str, tuple[int, str]]:
    """Run every command with the installed wheel."""
    lines = [line for line in COMMANDS if not (NO_JAX and " jax_" in line)]
    return run_alone(installed, outside, [*(quick(line) for line in lines), ANSWERS, *VECTORS])


def test_the_installed_package_is_what_is_run(installed: str, results: dict[str, tuple[int, str]]) -> None:
    """Not that of the repository; and there are commands of each page."""
    assert Path(results[""][1]).is_relative_to(Path(installed).parents[1])
    assert len(shown_commands()) >= 4
    assert "csa-spec check mine:attend --stage attend --dtype float32,bfloat16" in COMMANDS
    assert "csa-spec check my_layer:layer --layer csa --profile smoke" in COMMANDS


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_finds_its_candidate_conformant(line: str, results: dict[str, tuple[int, str]]) -> None:
    """As an example's docstring or a page gives it, but with few cases; in two dtypes where it names none."""
    if NO_JAX and " jax_" in line:
        pytest.skip("needs jax")
    code, printed = results[quick(line)]
    assert code == 0, printed
    if " check " in line:
        assert f"{line.split()[2]}: CONFORMANT for " in printed


def test_the_code_of_the_page_about_answers_runs(results: dict[str, tuple[int, str]]) -> None:
    """Its tests too; it prints what its comments say."""
    code, printed = results[ANSWERS]
    assert code == 0
    page = (REPOSITORY / "docs" / "answers.md").read_text(encoding="utf-8")
    said = re.findall(r"(?m)^print\(.*\)  # (.*)$", page)
    assert len(said) == 2
    assert printed.splitlines()[:2] == said


@pytest.mark.skipif(not VECTORS, reason="no C++ compiler")
def test_the_page_about_vectors_judges_a_program_in_another_language(
    results: dict[str, tuple[int, str]],
) -> None:
    """Word for word; the program built with -DWRONG is found, and both of its mistakes are named."""
    *others, last = VECTORS
    judge = last.strip()
    assert [line for line in others if line != judge and results[line][0]] == []
    code, told = results[judge]
    assert code == 0, told
    assert "my-kernels: CONFORMANT for select, attend" in told
    code, told = results[last]
    assert code == 1, told
    assert "behaves like: drops the sink" in told
    assert "behaves like: sees the unfinished block" in told


def run_python(python: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an environment's Python in a folder."""
    return subprocess.run(
        [python, *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def test_an_installed_package_is_found_by_the_name_of_its_entry_point(
    installed: str, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an empty folder."""
    arguments = command("entry_point/my_kernels.py")
    package = outside / "entry_point"
    assert f"csa-spec {shlex.join(arguments)}" in (package / "pyproject.toml").read_text("utf-8")
    site = tmp_path / "site"  # other tests find no such package
    pip(
        "install", "--no-deps", "--no-build-isolation", "--target", str(site), str(package), python=installed
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(site))
    done = run_python(installed, empty, "-m", "csa_spec", *arguments, "--profile", "smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("my-kernels: CONFORMANT for index_scores\n")


def test_a_name_of_the_conftest_is_a_candidate(installed: str, outside: Path) -> None:
    """The command of its docstring, in its folder."""
    inside = outside / "in_your_conftest"
    line = "pytest --pyargs csa_spec.conformance --csa-candidate mine"
    assert line in (inside / "conftest.py").read_text(encoding="utf-8")
    options = ("--csa-profile", "smoke", "-p", "no:cacheprovider")
    done = run_python(installed, inside, "-m", *line.split(), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    covered = done.stdout.partition("csa-spec: what was covered")[2]
    assert "\nmine select float32: every selection is valid" in covered
    assert "failed" not in covered
