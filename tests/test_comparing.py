"""Two reports held against each other."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_inputs import FINISHED
from test_cli import TINY_PROFILE, refusal, run

from csa_spec.comparing import CHANGED, FIXED, NEW, SLOW, UNJUDGED, as_markdown, as_text, compare
from csa_spec.profiles import PROFILES


def result(check: str, *kinds: str, subject: str = "attend", state: str = "", **more: Any) -> dict[str, Any]:
    """Return what a report says about a check that fails in these ways."""
    failures = [
        {"kind": kind, "title": f"it is {kind}", "case_line": f"attend {kind.lower()}=1"} for kind in kinds
    ]
    data = {
        "check": check, "subject": subject, "stage": "attend", "layer_kind": None, "dtype": "float32",
        "cases": 9, "seconds": 1.0, "failures": failures,
        "state": state or (f"{len(kinds)} FAILED" if kinds else "9 ok"),
    }  # fmt: skip
    return data | more


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a report with these results and other fields."""

    def written(name: str, *results: dict[str, Any], **fields: Any) -> Path:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(copy.deepcopy(FINISHED) | {"results": results} | fields))
        return path

    return written


def found(base: Path, head: Path) -> tuple[dict[str, list[str]], int]:
    """Return the sections that are not empty, and the exit code."""
    comparison = compare(base, head)
    text, markdown = as_text(comparison), as_markdown(comparison)
    for name, lines in comparison.sections.items():
        assert (f"{name.upper()} ({len(lines)})" in text) == bool(lines)
        assert (f"{name.capitalize()}:" in markdown) == bool(lines)
        assert all(line.text in text and line.case in text and line.case in markdown for line in lines)
    sections = {name: [line.text for line in lines] for name, lines in comparison.sections.items() if lines}
    return sections, comparison.exit_code


def test_equal_reports_differ_in_nothing(write: Write) -> None:
    """Failures that were there before are no news."""
    base = write("base", result("specification", "A"), result("rows"))
    assert found(base, base) == ({}, 0)


@pytest.mark.parametrize(
    ("before", "after", "section", "text", "code"),
    [
        (result("rows"), result("rows", "A"), NEW, "it is A", 1),
        (result("rows", state="not judged"), result("rows", "A"), NEW, "it is A", 1),
        (result("rows", "A"), result("rows", "A", "B"), NEW, "it is B", 1),
        (result("rows", "A"), result("rows", "B"), CHANGED, "it is B, was: it is A", 1),
        (result("rows", "A"), result("rows"), FIXED, "it is A", 0),
        (result("rows", "A", "B"), result("rows", "B"), FIXED, "it is A", 0),
        (result("rows", "A"), result("rows", state="not judged"), UNJUDGED, "it is A", 0),
        (result("rows"), result("rows", state="no case"), UNJUDGED, "no case, was 9 ok", 0),
        (result("rows"), result("rows", seconds=9.0), SLOW, "", 0),
    ],
)
def test_each_difference_has_its_section(
    write: Write, before: dict[str, Any], after: dict[str, Any], section: str, text: str, code: int
) -> None:
    """And only new and changed failures make the exit code 1."""
    sections, said = found(write("base", before), write("head", after))
    expected = f"attend, float32, rows: {text}" if text else sections[section][0]
    assert (sections, said) == ({section: [expected]}, code)


def test_a_check_that_one_report_lacks_is_named(write: Write) -> None:
    """If it fails where it is new, that is a new failure all the same."""
    base = write("base", result("rows"), result("order"))
    head = write("head", result("rows"), result("specification", "A", subject="select"))
    assert found(base, head) == (
        {
            NEW: ["select, float32, specification: it is A"],
            "only in the base": ["attend, float32, order: 9 ok"],
            "only in the head": ["select, float32, specification: 1 FAILED"],
        },
        1,
    )


@pytest.mark.parametrize(
    ("base", "head"),
    [(1.0, 2.9), (30.0, 50.0), (9.0, 1.0)],
)
def test_what_is_hardly_slower_is_no_news(write: Write, base: float, head: float) -> None:
    """Machines differ; it takes twice the time and two seconds."""
    assert found(
        write("base", result("rows", seconds=base)), write("head", result("rows", seconds=head))
    ) == ({}, 0)


def test_checks_that_fail_are_not_timed(write: Write) -> None:
    """Making a failure small takes as long as it takes."""
    base, head = write("base", result("rows", "A")), write("head", result("rows", "A", seconds=99.0))
    assert found(base, head) == ({}, 0)


def test_reports_of_different_runs_say_so(write: Write) -> None:
    """They are compared all the same."""
    other = {"candidate": "other", "profile": "thorough", "seed": 3, "dtypes": ["float32", "bfloat16"]}
    text = as_text(compare(write("base"), write("head", **other)))
    assert "different runs: candidate gather in the base, other in the head" in text
    assert "seed 0 in the base, 3 in the head" in text
    assert "dtypes float32 in the base, float32, bfloat16 in the head" in text
    assert "different runs" not in as_text(compare(write("base"), write("base")))


def test_what_was_tested_is_named(write: Write) -> None:
    """With the revision of both."""
    sources = {"kernels": {"path": "/x", "revision": "1a2b3c4d5e", "dirty": True}}
    text = as_text(compare(write("base"), write("head", environment={"kernels": "1.5"}, sources=sources)))
    assert "(kernels 1.5 at 1a2b3c4+dirty)" in text


def test_a_comment_escapes_and_stays_short(write: Write) -> None:
    """Whatever reports hold."""
    hostile = result("<b>@me", *(f"K{number}" for number in range(300)), subject="a|`b`\n::error::x")
    text = as_markdown(compare(write("base"), write("head", hostile)))
    assert "<b>" not in text
    assert "@me" not in text
    assert "\n::" not in text
    assert "* 250 more" in text
    assert len(text) < 65_536


def test_reports_of_real_runs_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A right kernel and a wrong one: exit 1 this way, 0 the other way, and Markdown where it is wanted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PROFILES, "tiny", TINY_PROFILE)
    for name, candidate in (("right", "gather"), ("wrong", "csa_spec.bugs:returns_zeros")):
        run("check", candidate, "--stage", "attend", "--profile", "tiny", "--report", f"{name}.json")
    broken = run("compare", "right.json", "wrong.json", "--markdown", "comment.md")
    assert broken.code == 1
    assert "NEW FAILURES (1)\n  attend, float32, specification: output is zero everywhere\n" in broken.out
    assert (
        (tmp_path / "comment.md").read_text().startswith("**csa-spec: 1 new failure, 0 changed, 0 fixed**")
    )
    mended = run("compare", "wrong.json", "right.json")
    assert (mended.code, "FIXED (1)" in mended.out) == (0, True)
    assert run("compare", "right.json", "right.json").code == 0
    assert "not a file" in refusal("compare", "right.json", "right.json", "--markdown", ".")


@pytest.mark.parametrize("place", ["results", "failures", "environment", "sources"])
@pytest.mark.parametrize("odd", [None, 5, "text", [1], [None], {"a": 1}, [{}], {"a": None}])
def test_a_damaged_report_is_one_sentence_or_of_no_account(write: Write, place: str, odd: Any) -> None:
    """Whatever lies where something else should."""
    results = [result("rows") | {place: odd}] if place == "failures" else []
    fields = {} if results else {place: odd}
    outcome = run("compare", write("base"), write("head", *results, **fields))
    assert outcome.code in (0, 2)
    assert "Traceback" not in outcome.err
    assert "internal error" not in outcome.err
