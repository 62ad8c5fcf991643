"""What ``docs/pytest.md`` shows is run as it stands there, with an installed wheel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from test_parametrize import CHECKS, UNDECLARED

from csa_spec import plugin

pytest_plugins = ["pytester"]

PAGE = (Path(__file__).parents[1] / "docs" / "pytest.md").read_text(encoding="utf-8")
OPTIONS = ("-p", "no:cacheprovider", "-p", "no:randomly")
RUN = len(CHECKS) - len(UNDECLARED)


def blocks(language: str) -> list[str]:
    """Return the fenced code blocks of one language."""
    return [part.split("\n```")[0] for part in PAGE.split(f"```{language}\n")[1:]]


@pytest.fixture
def folder(pytester: pytest.Pytester) -> Path:
    """Write the files of the page whose first line names them; the settings name ``my_select``."""
    for block in (*blocks("python"), *blocks("toml")):
        first, _, text = block.partition("\n")
        (pytester.path / first.removeprefix("# ")).write_text(text + "\n")
    pytester.makepyfile(my_select=blocks("python")[0].partition("@csa_spec")[0])
    return pytester.path


@pytest.fixture
def run(pytester: pytest.Pytester, installed: str) -> Callable[..., pytest.RunResult]:
    """Return a function that runs pytest where the wheel is installed."""
    return lambda *arguments: pytester.run(installed, "-m", "pytest", *OPTIONS, *arguments)


def test_its_test_files_do_what_it_says(folder: Path, run: Callable[..., pytest.RunResult]) -> None:
    """All pass, or fail as expected; the ids are those of the page."""
    (folder / "pyproject.toml").unlink()
    result = run("-v", "test_select.py", "test_lowest.py", "-k", "test_select or specification")
    result.assert_outcomes(passed=RUN, skipped=len(UNDECLARED), xfailed=1, deselected=len(CHECKS) - 1)
    result.stdout.fnmatch_lines(["*::test_select[[]select-specification] PASSED*"])
    assert "test_select[select-rows]" in PAGE


@pytest.mark.parametrize("form", ["pyproject.toml", "pytest.ini"])
def test_its_settings_choose_what_is_checked(
    folder: Path, run: Callable[..., pytest.RunResult], form: str
) -> None:
    """In both forms; known issues end as the page shows."""
    if form == "pytest.ini":
        (folder / "pyproject.toml").unlink()
        (folder / form).write_text(blocks("ini")[0] + "\n")
    result = run("--pyargs", "csa_spec.conformance")
    result.assert_outcomes(passed=RUN, skipped=len(UNDECLARED))
    seed = 1 if form == "pyproject.toml" else 0
    result.stdout.fnmatch_lines(
        [
            "csa-spec: candidates my_select:select; stage select, layer all, profile smoke, dtype float32, "
            f"device cpu, seed {seed}",
        ]
    )
    assert blocks("text")[-1] in result.outlines


def test_it_shows_every_setting() -> None:
    """One of each option."""
    settings = blocks("toml")[0]
    assert [option.key for option in plugin.OPTIONS if f"\n{option.key} = " not in settings] == []


def test_its_links_lead_somewhere() -> None:
    """Files of the repository."""
    targets = [part.split(")")[0] for part in PAGE.split("](")[1:]]
    assert targets
    assert [target for target in targets if not (Path(__file__).parents[1] / "docs" / target).exists()] == []
