"""What users download: a source distribution of this repository, and the wheel that is built from it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
NOT_SOURCE = (
    ".git",
    ".gitignore",
    ".venv",
    ".hypothesis",
    ".*_cache",
    "__pycache__",
    "*.egg-info",
    "build",
    "dist",
)
"""Of a checkout, what git ignores and git itself."""
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"


def pip(*arguments: str, python: str = sys.executable) -> None:
    """Run pip for an environment, without asking any registry."""
    quiet = ("--disable-pip-version-check", "-q")
    run("-m", "pip", "--python", python, *quiet, arguments[0], "--no-index", *arguments[1:])


def run(*arguments: str, folder: Path | None = None, python: str = sys.executable) -> str:
    """Run Python, which must succeed; return what it printed."""
    done = subprocess.run(
        [python, *arguments],
        cwd=folder, env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def build(what: str, source: Path, out: Path) -> tuple[Path, str]:
    """Build ``what``, ``sdist`` or ``wheel``, from a folder; return the file and what setuptools printed."""
    setuptools = importlib.metadata.version("setuptools")
    if int(setuptools.partition(".")[0]) < 77:
        pytest.skip(f"building needs setuptools 77 or newer in the environment, not {setuptools}")
    printed = run("-c", BUILD, f"build_{what}", str(out), folder=source)
    (built,) = (path for path in out.iterdir() if path.suffix in (".gz", ".whl"))
    return built, printed


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Build from a copy of the tree, so that no build/ appears in the repository; return what it printed, too."""
    copy = tmp_path_factory.mktemp("copy") / "tree"
    shutil.copytree(REPOSITORY, copy, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    return build("sdist", copy, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def unpacked(sdist: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the source distribution."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist[0]) as archive:
        archive.extractall(folder, filter="data")
    (inside,) = folder.iterdir()
    return inside


@pytest.fixture(scope="session")
def built_wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Build a wheel from what was unpacked, as pip does; return what it printed, too."""
    copy = tmp_path_factory.mktemp("wheel_source") / "tree"
    shutil.copytree(unpacked, copy)
    return build("wheel", copy, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def wheel(built_wheel: tuple[Path, str]) -> Path:
    """Return the wheel alone."""
    return built_wheel[0]


def environment(folder: Path) -> str:
    """Make a virtual environment that has the packages of this one; return its Python.

    What is installed in it comes first, csa-spec too, though this environment has it.
    """
    run("-m", "venv", "--without-pip", str(folder))
    (site,) = folder.glob("lib/*/site-packages")
    (site / "packages.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    return str(folder / "bin" / "python")


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Install the wheel in an environment of its own; return its Python."""
    python = environment(tmp_path_factory.mktemp("installed"))
    pip("install", "--no-deps", str(wheel), python=python)
    return python


ALONE = """
import contextlib, io, json, runpy, shlex, subprocess, sys
sys.path.insert(0, "")
import torch
torch.set_num_threads(1)
with contextlib.suppress(ImportError):
    import jax
    jax.config.update("jax_disable_most_optimizations", True)  # they cost more than they save here
from csa_spec.cli import main
results = {"": [0, __import__("csa_spec").__file__]}
for command in json.load(sys.stdin):
    program, *arguments = shlex.split(command)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        if program == "csa-spec":
            code = main(arguments)
        elif program == "python":
            code = 0 if runpy.run_path(*arguments, run_name="__main__") else 1
        else:
            done = subprocess.run([program, *arguments], capture_output=True, text=True)
            code = print(done.stdout, done.stderr) or done.returncode
    results[command] = [code, out.getvalue()]
json.dump(results, sys.__stdout__)
"""


def run_alone(python: str, folder: Path, commands: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Run commands in a folder, with what is installed; return exit codes and what was printed.

    Those of csa-spec, and files that ``python`` is to run, run in one process, which imports torch once. A file
    that raises an error ends it. Under ``""`` stands where csa-spec was imported from.
    """
    done = subprocess.run(
        [python, "-c", ALONE],
        cwd=folder, input=json.dumps(commands), capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {command: tuple(result) for command, result in json.loads(done.stdout).items()}
