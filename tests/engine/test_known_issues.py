"""Known issues are tried: what fails is shown with its case, what passes is said to pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stages.right import attend_loops
from torch import Tensor

import csa_spec
from csa_spec import Candidate, CandidateError, Capabilities
from csa_spec.bugs.bug import following
from csa_spec.engine.failures import Failure
from csa_spec.engine.known_issues import KnownIssue, probe, with_known_issues
from csa_spec.plug.call import NotOffered
from csa_spec.profiles import PROFILES
from csa_spec.report.json import to_json
from csa_spec.report.text import summarise
from csa_spec.spec import SPEC, LayerKind
from csa_spec.stages import parse_case, stage_of


def nan_where_empty(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Divide 0 by 0 where a list names no key; right where there are no lists or keys at all."""
    out = attend_loops(q, kv, indices, sinks, scale)
    nothing = ~((indices >= 0) & (indices < kv.shape[1])).any(-1)
    if kv.shape[1] == 0 or indices.shape[2] == 0:
        return out
    return out.masked_fill(nothing[..., None, None], torch.nan)


def raises_where_empty(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Refuse a query without keys."""
    if not ((indices >= 0) & (indices < kv.shape[1])).any(-1).all():
        raise ValueError("a query has no key")
    return attend_loops(q, kv, indices, sinks, scale)


def candidate(function: Any, **lacks: str) -> Candidate:
    """Return a candidate for attend that declares what it lacks, sizes of 0 and holes among them."""
    never = {("attend", name): "leaves a query without keys" for name in ("empty", "holes", "outside")}
    declared = {("attend", name): reason for name, reason in lacks.items()}
    capabilities = Capabilities(lacks=never | declared, least={"n": 1, "N": 1})
    return Candidate("mine", {"attend": function}, capabilities, {"mine": "1.4"})


def states(report: csa_spec.Report) -> dict[str, str]:
    """Return what trying each known issue showed."""
    return {one.name: one.state for one in report.known_issues}


@pytest.mark.parametrize(
    ("function", "state"),
    [(nan_where_empty, "wrong"), (raises_where_empty, "raises an exception"), (attend_loops, "passes now")],
)
def test_what_is_declared_away_is_tried_and_does_not_count_against_the_candidate(
    function: Any, state: str
) -> None:
    """The verdict stays conformant, and says how many known issues there are."""
    report = csa_spec.check(candidate(function), profile="smoke")
    assert str(report.verdict) == "conformant"
    assert states(report)["empty"] == state
    text = summarise(report)
    outcome = f"{state} on 20 of 20 cases tried" if state == "passes now" else state
    assert f"known issue of attend: empty: {outcome} (leaves a query without keys)" in text
    assert text.endswith("mine: CONFORMANT for attend, except 3 known issues")
    shown = {one["name"]: one for one in to_json(report)["known_issues"]}["empty"]
    assert (shown["state"], shown["failure"] is None) == (state, state == "passes now")


def right_by_chance(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Divide 0 by 0 where a list names no key, but not in half of the cases."""
    return (attend_loops if q.flatten()[0] > 0 else nan_where_empty)(q, kv, indices, sinks, scale)


def refused_at_times(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Refuse, by chance, half of what is declared unsupported."""
    if float(q.flatten()[0]) > 0:
        raise NotOffered("empty lists")
    return attend_loops(q, kv, indices, sinks, scale)


def tried(function: Any, line: str) -> KnownIssue:
    """Try one known issue on a single case."""
    case = parse_case(line)
    return probe(candidate(function), stage_of(case), "attend", ("attend", "empty"), [case])


def test_what_passes_by_chance_does_not_pass_now() -> None:
    """A single case is tried with many seeds: it passes with the first, but not with others."""
    case = parse_case("attend N=2 n=2 indices=empty values=gaussian seed=1")
    csa_spec.check_case(candidate(right_by_chance), case)
    assert tried(right_by_chance, str(case)).state == "wrong"
    assert tried(attend_loops, str(case)).outcome == "passes now on 20 of 20 cases tried"


def test_what_is_refused_at_times_says_how_often() -> None:
    """It neither passes nor is it refused."""
    issue = tried(refused_at_times, "attend N=2 n=2 indices=empty values=gaussian")
    assert issue.state == "refused at times"
    assert issue.outcome == f"refused on {issue.refused} and right on {20 - issue.refused} of 20 cases tried"
    assert 0 < issue.refused < 20


def test_the_case_that_is_shown_is_small_and_has_only_that_known_issue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In all profiles but smoke."""
    assert [name for name, profile in PROFILES.items() if not profile.shrinks] == ["smoke"]
    monkeypatch.setitem(PROFILES, "shrinking", replace(PROFILES["smoke"], shrinks=True))
    report = csa_spec.check(candidate(nan_where_empty), profile="shrinking")
    (empty,) = (one for one in report.known_issues if one.name == "empty")
    assert empty.failure is not None
    case = empty.failure.case
    assert str(case).startswith("attend N=1 n=1 indices=empty")
    assert case.sizes == {"B": 1, "S": 1, "H": 1, "D": 1, "N": 1, "n": 1}
    with pytest.raises(type(empty.failure)):
        csa_spec.check_case(candidate(nan_where_empty), case)


TABLE = """
[[known_issue]]
candidate = "mine"
versions = "{versions}"
stage = "attend"
name = "shuffled"
reason = "sorted lists only"
url = "https://example.com/7"

[[limitation]]
candidate = "another"
stage = "nothing"
name = "of ours"
reason = "not looked at"
"""


@pytest.mark.parametrize(("versions", "applies"), [(">=1.0,<2", True), ("", True), (">=2", False)])
def test_a_file_adds_known_issues_of_a_candidate_and_its_versions(
    versions: str, applies: bool, tmp_path: Path
) -> None:
    """Those of other candidates are left alone."""
    path = tmp_path / "known.toml"
    path.write_text(TABLE.format(versions=versions), encoding="utf-8")
    before = candidate(attend_loops)
    added = {**with_known_issues(before, path).capabilities.lacks}
    for key in before.capabilities.lacks:
        assert added.pop(key)
    assert added == ({("attend", "shuffled"): "sorted lists only: https://example.com/7"} if applies else {})
    report = csa_spec.check(before, profile="smoke", known=path)
    assert ("shuffled" in states(report)) == applies


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[known_issue]]\ncandidate = 'mine'\n", "known issue 1: it lacks stage, name, reason"),
        ("[[known_issue", "is not valid TOML"),
        (TABLE.format(versions="five"), "known issue 1: it has the versions 'five'"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(text: str, says: str, tmp_path: Path) -> None:
    """It names the file and the table."""
    path = tmp_path / "known.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CandidateError) as refusal:
        with_known_issues(candidate(attend_loops), path)
    assert says in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_not_there_and_a_name_that_no_stage_has_are_refused(tmp_path: Path) -> None:
    """Before anything runs."""
    with pytest.raises(CandidateError, match="cannot be read: No such file"):
        csa_spec.check(candidate(attend_loops), profile="smoke", known=tmp_path / "nothing.toml")
    path = tmp_path / "known.toml"
    path.write_text(TABLE.format(versions="").replace("shuffled", "shufled"), encoding="utf-8")
    with pytest.raises(csa_spec.UsageError, match="lacks names 'shufled'"):
        csa_spec.check(candidate(attend_loops), profile="smoke", known=path)


def test_a_candidate_without_known_issues_is_plainly_conformant() -> None:
    """Nothing is said of any."""
    plain = replace(candidate(attend_loops), capabilities=Capabilities())
    report = csa_spec.check(plain, profile="smoke")
    assert list(report.known_issues) == []
    assert summarise(report).endswith("mine: CONFORMANT for attend")


EMPTY = "mine 1.4 declares that it does not support indices empty: leaves a query without keys; run all the same:"


def test_a_single_case_that_is_declared_unsupported_says_so_and_is_run_all_the_same() -> None:
    """Before what happens: the failure, or that it passes."""
    line = "attend N=2 n=2 indices=empty"
    assert csa_spec.check_case(candidate(attend_loops), line) == EMPTY
    with pytest.raises(Failure) as caught:
        csa_spec.check_case(candidate(nan_where_empty), line)
    (note,) = caught.value.__notes__
    assert note.split()[: len(EMPTY.split())] == EMPTY.split()
    assert "Output is not finite" in note
    assert csa_spec.check_case(candidate(attend_loops), "attend N=2 n=2") == ""


@pytest.mark.parametrize(
    ("declares", "line", "says"),
    [
        ({"limits": {"S": 2}}, "csa rows=3", "S over 2"),
        (
            {"lacks": {("csa", "packed documents"): "a row a document"}},
            "csa rows=1+1",
            "packed documents: a row a document",
        ),
        ({"kinds": {LayerKind.HCA}}, "csa rows=1", "csa layers"),
        (
            {"limits": {"S": 2}, "lacks": {("csa", "packed documents"): "why"}},
            "csa rows=1+2",
            "packed documents: why, and S over 2",
        ),
    ],
)
def test_everything_that_is_declared_is_said(declares: dict[str, Any], line: str, says: str) -> None:
    """Sizes, features of rows with their reasons, layer kinds."""
    mine = Candidate("mine", {"layer": following(SPEC)}, Capabilities(**declares))
    assert (
        csa_spec.check_case(mine, line)
        == f"mine declares that it does not support {says}; run all the same:"
    )


def test_a_case_that_the_candidate_refuses_cannot_be_used() -> None:
    """One sentence, which says what was refused."""
    case = "attend N=2 n=2 indices=empty values=gaussian seed=1"
    with pytest.raises(
        csa_spec.UsageError, match=r"mine cannot run this case \(empty lists\); choose another case"
    ):
        csa_spec.check_case(candidate(refused_at_times), case)
