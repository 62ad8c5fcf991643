"""What somebody sees who has just installed it: names, version, help, tab completion."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import csa_spec
from csa_spec.cli import main


def python(code: str) -> str:
    """Return what a program prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def test_names_and_version_are_told_without_an_import_of_torch() -> None:
    """They are listed before they are used."""
    names, version, heavy = python(
        "import sys, csa_spec; from csa_spec.cli import main; print(*dir(csa_spec)); print(csa_spec.__version__)\n"
        "print([name for name in ('torch', 'hypothesis', 'shtab') if name in sys.modules])"
    ).splitlines()
    assert {*csa_spec.__all__, "__version__"} <= set(names.split())
    assert [name for name in names.split() if not name.startswith("__")] == sorted(csa_spec.__all__)
    assert version == importlib.metadata.version("csa-spec")
    assert heavy == "[]"


def test_every_public_name_is_there_and_documented() -> None:
    """``help(csa_spec)`` begins with what they are for."""
    assert csa_spec.__doc__ is not None
    for name in csa_spec.__all__:
        assert getattr(csa_spec, name).__doc__
        assert f"``{name}``" in csa_spec.__doc__
    shown = python("import csa_spec; help(csa_spec)")
    assert "check(candidate" in shown
    assert "parametrize(candidate" in shown


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    """As of any module."""
    with pytest.raises(AttributeError, match="module 'csa_spec' has no attribute 'nothing'"):
        _ = csa_spec.nothing  # type: ignore[attr-defined]


def test_the_command_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing else."""
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"csa-spec {csa_spec.__version__}\n"


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("csa-spec sel", {"selftest"}),
        ("csa-spec check ga", {"gather"}),
        ("csa-spec check gather --stage at", {"attend"}),
        ("csa-spec check gather --layer a", {"all"}),
        ("csa-spec check gather --prof", {"--profile"}),
        ("csa-spec case gather csa --check fut", {"future"}),
        ("csa-spec check gather --known kn", {"known.toml"}),
    ],
)
def test_tab_completes_names_options_and_files(completion: Path, line: str, offered: set[str]) -> None:
    """In bash, with the script that shtab makes."""
    words = line.split()
    program = f"""source {completion}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}
    _shtab_csa_spec; echo "${{COMPREPLY[@]}}" """
    done = subprocess.run(
        ["bash", "-c", program],
        cwd=completion.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert set(done.stdout.split()) == offered, done.stderr


@pytest.fixture(scope="module")
def completion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the script as the documentation says, beside a file to complete."""
    pytest.importorskip("shtab")
    script = tmp_path_factory.mktemp("completion") / "csa-spec"
    (script.parent / "known.toml").touch()
    command = [sys.executable, "-m", "shtab", "--shell=bash", "csa_spec.completion.parser"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    script.write_text(done.stdout)
    return script
