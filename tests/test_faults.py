"""The suite against candidates with one known fault each: it names the fault, and lives to tell.

``python tests/test_faults.py --write`` writes ``docs/faults.md``.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import faults
import pytest
from faults import FAULTS

import csa_spec
from csa_spec import Report, Verdict
from csa_spec.engine import failures
from csa_spec.engine.failures import Failure
from csa_spec.report.text import summarise
from csa_spec.stages.attend.case import AttendCase
from csa_spec.stages.attend.stage import ATTEND

DOCUMENT = Path(__file__).parents[1] / "docs" / "faults.md"
SENTENCES = {check.name: check.sentence for check in ATTEND.checks}


@cache
def run(name: str, isolate: bool) -> Report:
    """Hold one of the candidates against the suite, as a user would."""
    return csa_spec.check(f"faults:{name}", stage="attend", profile="smoke", isolate=isolate, time_limit=0.5)


def found(report: Report) -> dict[tuple[str, str], Failure]:
    """Return the failures by check and kind."""
    return {
        (result.check, failure.kind): failure for result in report.results for failure in result.failures
    }


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_by_the_check_that_names_it(name: str) -> None:
    """And the run ends with a report."""
    fault = FAULTS[name]
    report = run(name, fault.isolate)
    assert (fault.check, fault.kind) in found(report)
    assert report.verdict is Verdict.NOT_CONFORMANT
    assert f"faults:{name}: NOT CONFORMANT for attend" in summarise(report)
    assert {result.check for result in report.results} >= {
        "specification",
        "repeat",
        "inputs",
        "state",
        "memory",
    }


def test_the_only_fault_is_the_one_that_is_named() -> None:
    """What breaks manners alone fails no other check: the answers are right."""
    for name, fault in FAULTS.items():
        if fault.check in ("inputs", "state"):
            assert [*found(run(name, False))] == [(fault.check, fault.kind)], name


@pytest.mark.parametrize(
    ("name", "smallest"),
    [
        ("segfaults", AttendCase(keys=5)),
        ("breaks_device", AttendCase(keys=40)),
        ("hangs", AttendCase(picks=65)),
        ("killed", AttendCase(picks=65)),
    ],
)
def test_the_smallest_case_of_a_crash_is_true(name: str, smallest: AttendCase) -> None:
    """It dies on that case in a new process, and on none that is smaller."""
    fault = FAULTS[name]
    case = found(run(name, True))[fault.check, fault.kind].case
    assert case == smallest


def test_the_place_of_a_crash_is_named() -> None:
    """The signal and the line; where it hangs, too."""
    died = found(run("segfaults", True))["specification", "CandidateDied"]
    assert "ended by SIGSEGV, in string_at" in died.detail
    assert "segfaults (faults.py:" in died.detail
    hung = found(run("hangs", True))["specification", "CandidateHung"]
    assert "no answer within 0.5 s, in hangs (faults.py:" in hung.detail


def test_what_was_found_before_a_crash_is_reported() -> None:
    """A candidate with two faults, of which one kills."""
    report = run("zeros_then_killed", True)
    assert {kind for check, kind in found(report) if check == "specification"} == {
        "ReturnsZeros",
        "CandidateDied",
    }


@pytest.mark.parametrize("name", ["right", "noisy"])
def test_isolation_changes_nothing_for_a_right_candidate(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same cases, the same largest error; and what it does to the standard streams is not seen."""
    alone, here = run(name, True), run("right", False)
    assert alone.verdict is here.verdict is Verdict.CONFORMANT
    assert [(r.check, r.cases, r.tally, r.reached) for r in alone.results] == [
        (r.check, r.cases, r.tally, r.reached) for r in here.results
    ]
    assert capfd.readouterr() == ("", "")


def document() -> str:
    """Return ``docs/faults.md``."""
    lines = [
        "# Faults that the suite finds",
        "",
        "Each of these candidates for `attend` (`tests/faults.py`) is right but for one fault. "
        "`tests/test_faults.py` holds them",
        "against the suite and asserts what it says; `python tests/test_faults.py --write` writes this page.",
        "",
        "| fault | candidate | what the suite says | the check that says it | needs `--isolate` |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, fault in FAULTS.items():
        kind, _, what = fault.kind.rstrip("]").partition("[")
        title = getattr(failures, kind).title + (f": {what}" if what else "")
        sentence = (fault.attend.__doc__ or "").removesuffix(".")
        isolate = "yes" if fault.isolate else ""
        lines.append(
            f"| {sentence} | `{name}` | {title} | {fault.check}: {SENTENCES[fault.check]} | {isolate} |"
        )
    return "\n".join(lines) + "\n"


def test_the_page_about_faults_is_what_the_command_writes() -> None:
    """``python tests/test_faults.py --write``."""
    assert DOCUMENT.read_text(encoding="utf-8") == document()


def test_there_are_at_least_twenty_five_faults() -> None:
    """Each a function of its own, which a command line can name."""
    assert len(FAULTS) >= 25
    assert all(getattr(faults, name) is fault.attend for name, fault in FAULTS.items())


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_faults.py --write")
    DOCUMENT.write_text(document(), encoding="utf-8")
