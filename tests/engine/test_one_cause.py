"""What fails now and then is said to, and what fails everywhere for one reason fails once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from cli_candidates import attend as right
from torch import Tensor

import csa_spec
from csa_spec import Report, Verdict
from csa_spec.candidates.recognise import as_candidate
from csa_spec.engine.failures import Certainty, Failure, Flaky, Likeness
from csa_spec.engine.running import STILL_LOOKING, CheckResult, failure_of
from csa_spec.engine.stage import Setting
from csa_spec.engine.steadiness import Counted, flaky
from csa_spec.profiles import PROFILES
from csa_spec.report.json import to_json
from csa_spec.report.text import Failures, summarise
from csa_spec.stages import STAGES
from csa_spec.target import Target

Function = Callable[..., Tensor]


def wrong(*inputs: Tensor) -> Tensor:
    """Be a little off everywhere."""
    return right(*inputs) * 1.01 + 0.01


def raising(*inputs: Tensor) -> Tensor:
    """Refuse."""
    raise IndexError("no such row")


def now_and_then(share: float) -> Function:
    """Be wrong in a share of the calls, by lot."""
    lot = random.Random(1)
    return lambda *inputs: (wrong if lot.random() < share else right)(*inputs)


def counting(is_wrong: Callable[[int], bool]) -> Function:
    """Be wrong in some calls, by their number."""
    calls = iter(range(1, 1_000_000))
    return lambda *inputs: (wrong if is_wrong(next(calls)) else right)(*inputs)


def stale() -> Function:
    """Be wrong in the first call after one of another shape."""
    before: list[torch.Size] = []

    def attend(q: Tensor, *others: Tensor) -> Tensor:
        moved = before != [q.shape]
        before[:] = [q.shape]
        return (wrong if moved else right)(q, *others)

    return attend


UNSTEADY = {
    "2 % of the calls": partial(now_and_then, 0.02),
    "half of the calls": partial(now_and_then, 0.5),
    "every 50th call": lambda: counting(lambda number: number % 50 == 0),
    "the first call": lambda: counting(lambda number: number == 1),
    "after another shape": stale,
}


def check(function: Function, **options: Any) -> Report:
    """Check an attention core with few cases."""

    def attend(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
        return function(q, kv, indices, sinks, scale)

    return csa_spec.check(attend=attend, profile="smoke", **options)


def failures(report: Report) -> list[tuple[str, Failure]]:
    """Return the failures and the checks that met them."""
    return [(result.check, failure) for result in report.results for failure in result.failures]


@pytest.mark.parametrize("make", UNSTEADY.values(), ids=UNSTEADY)
def test_what_fails_now_and_then_is_said_to_and_has_no_name(make: Callable[[], Function]) -> None:
    """The case stays as it was met, and the facts say what changed between the runs."""
    report = check(make())
    assert report.verdict is Verdict.NOT_CONFORMANT
    (failure,) = [failure for name, failure in failures(report) if name == "specification"]
    assert isinstance(failure, Flaky), failure
    assert 0 < failure.facts["fails"] < failure.facts["runs"] == 8
    assert failure.diagnosis is None
    assert failure.facts["failing_calls"][0] > 0
    text = " ".join(summarise(report).split())
    assert text.count("in some runs and not in others") == 1
    assert f"{failure.facts['fails']} of 8 runs on the same input fail" in text
    assert "it may not fail again" in text
    assert f"failing case {failure.case}" in text
    assert {name for name, _ in failures(report)} <= {"specification", "repeat"}


def test_what_the_runs_that_fail_have_in_common_is_said() -> None:
    """The shape of the call before, or the number of the only call."""
    assert "after a call of another shape, 0 of 4 after the same)" in " ".join(
        summarise(check(stale())).split()
    )
    assert "(that of call 1 of the check)" in summarise(check(counting(lambda number: number == 1)))


@pytest.mark.parametrize("function", [wrong, raising])
def test_what_fails_every_time_is_tried_again_a_few_times_only(function: Function) -> None:
    """Before it is made small and after, with a call of another shape in between."""
    stage, (first, *_) = STAGES["attend"], STAGES["attend"].checks
    candidate = as_candidate(function, "mine", "attend")
    case = next(iter(stage.draws.corners("", Setting())))
    failure = failure_of(first, candidate, stage, case)
    assert failure is not None
    tried: list[Any] = []

    def judge(case: Any) -> Failure | None:
        tried.append(case)
        return failure_of(first, candidate, stage, case)

    moved: list[int] = []
    assert flaky(failure, judge, lambda: moved.append(1), Counted(candidate.caller), 1) is None
    assert tried == [case] * 3
    assert moved == [1]


# One cause.


def wrong_dtype(*inputs: Tensor) -> Tensor:
    """Answer in float64."""
    return right(*inputs).double()


def wrong_shape(*inputs: Tensor) -> Tensor:
    """Answer with a dimension too many."""
    return right(*inputs)[..., None]


@pytest.mark.parametrize("function", [wrong_dtype, wrong_shape, raising])
def test_one_cause_fails_once(function: Function) -> None:
    """Whatever check meets it; the others are not judged, and every report says so."""
    report = check(function)
    assert [name for name, _ in failures(report)] == ["specification"]
    states = {result.check: result.state for result in report.results}
    assert states.pop("specification").endswith("FAILED")
    assert set(states.values()) <= {"not judged", "no case"}, states
    assert states["repeat"] == "not judged"
    text = summarise(report)
    assert text.count("FAILED ") == 1
    assert "not judged: the candidate fails there in a way that is reported above" in text
    assert "not judged" in [result["state"] for result in to_json(report)["results"]]


class Breaking:
    """Right until the specification check is over; then every call raises."""

    def __init__(self) -> None:
        self.broken = False

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Answer, or raise."""
        return (raising if self.broken else right)(*inputs)

    def progress(self, result: CheckResult) -> None:
        """Break once a law is under way."""
        self.broken |= result.check != "specification"


def test_an_exception_in_a_law_is_no_finding_of_the_law() -> None:
    """It is reported once, where it is met first, under a heading of its own."""
    breaking = Breaking()
    report = check(breaking, progress=breaking.progress)
    ((name, failure),) = failures(report)
    assert failure.kind == "CandidateRaised[IndexError]"
    assert name != "specification"
    sentence = next(result.sentence for result in report.results if result.check == name)
    text = summarise(report)
    assert "FAILED attend: the candidate raised an exception" in text
    assert f"FAILED attend: {sentence}" not in text
    assert report.verdict is Verdict.NOT_CONFORMANT


def test_an_exception_of_another_class_is_reported_too() -> None:
    """Two causes are two failures, though both are exceptions."""
    breaking = Breaking()

    def attend(q: Tensor, *others: Tensor) -> Tensor:
        if q.shape[0] > 1:
            raise KeyError("rows")
        return breaking(q, *others)

    kinds = sorted(failure.kind for _, failure in failures(check(attend, progress=breaking.progress)))
    assert kinds == ["CandidateRaised[IndexError]", "CandidateRaised[KeyError]"]


@pytest.mark.parametrize("fault", ["hangs", "segfaults"])
def test_after_a_hang_or_a_death_nothing_more_is_asked(fault: str) -> None:
    """Each further check would take its whole time again."""
    begin = time.monotonic()
    report = csa_spec.check(
        f"faults:{fault}", stage="attend", profile="smoke", isolate=True, time_limit=1, patience=3
    )
    assert [name for name, _ in failures(report)] == ["specification"]
    assert {result.state for result in report.results[1:]} == {"not judged"}
    assert time.monotonic() - begin < 120


# At once.


def test_a_failure_is_told_when_it_is_found_and_the_first_may_be_the_last() -> None:
    """Before the checks after it have begun."""
    order: list[str] = []
    options = {
        "found": lambda failure, result: order.append(f"found {failure.kind}"),
        "progress": lambda result: order.append(result.check),
    }
    report = check(wrong, **options)
    assert order.index("found WrongNumbers") < order.index("repeat")
    assert report.stopped == ""
    order.clear()
    report = check(wrong, fail_fast=True, **options)
    assert order[-1] == "specification"
    assert len(failures(report)) == 1
    assert "not finished: it stopped at the first failure" in summarise(report)
    assert to_json(report)["stopped"] is not None


@pytest.mark.parametrize("seconds", [0.0, 0.1])
def test_what_takes_long_to_make_small_is_told_before(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And again once it is small; what is quick is told once."""
    if seconds:
        monkeypatch.setattr("csa_spec.engine.running.AT_ONCE", 1.0)

    def slow(*inputs: Tensor) -> Tensor:
        time.sleep(seconds)
        return wrong(*inputs)

    told: list[Failure] = []
    texts, printed = Failures(), []

    def found(failure: Failure, result: CheckResult) -> None:
        told.append(failure)
        printed.append(texts.explain(failure, result, report))

    report = check(right)  # for its labels
    ended = check(slow, found=found, fail_fast=True, patience=60)
    ((_, last),) = failures(ended)
    assert told[-1] is last
    assert last.diagnosis is not None
    assert not texts.untold(ended)
    if not seconds:
        assert len(told) == 1
        return
    first, again = told
    assert first.remarks == (STILL_LOOKING,)
    assert STILL_LOOKING not in last.remarks
    assert STILL_LOOKING in printed[0]
    assert again.case.order < first.case.order
    assert "(as above, on a smaller case)" in printed[1]
    assert str(again.case) in printed[1]


def test_further_search_that_finds_nothing_smaller_says_so() -> None:
    """With what it found beside: the known bugs like it, say."""
    report = check(wrong, stage="attend")
    (result, *_) = report.results
    (failure, *_) = result.failures
    texts = Failures()
    first = copy(failure)
    first.diagnosis, first.remarks = None, (STILL_LOOKING,)
    texts.explain(first, result, report)
    again = texts.explain(failure, result, report)
    assert again.startswith("FAILED attend: ")
    assert "(as above, after a longer look)" in again
    assert again.splitlines()[1:] == ["  no smaller case was found, and no known bug like it"]
    assert failure.diagnosis is not None
    likeness = Likeness("a", "does what a does", "Why.", (), (), 4, 4)
    named = copy(failure)
    named.diagnosis = replace(failure.diagnosis, behaves_like=(likeness,), certainty=Certainty.CERTAIN)
    again = texts.explain(named, result, report)
    assert again.splitlines()[1:] == [
        "  no smaller case was found",
        "",
        "  behaves like: does what a does",
        "    Why.",
        "    agrees on 4 of 4 cases that tell it apart from the reference",
    ]


def test_kinds_that_come_late_are_found_where_another_fails_all_the_time() -> None:
    """Failing cases that tell nothing new are counted from the last new kind on."""
    calls = 0

    def attend(*inputs: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls <= 3:
            return wrong(*inputs)
        return wrong(*inputs).double() if calls <= 6 else wrong(*inputs)[..., :0]

    target = Target(
        as_candidate(attend, "attend"), STAGES["attend"], "", "float32", "cpu", PROFILES["smoke"], 0
    )
    result = target.run(target.checks[0], enough=4, shrinking=False)
    assert {failure.kind for failure in result.failures} >= {"WrongNumbers", "WrongDtype", "WrongShape"}
    assert result.failing > 4


def test_jobs_give_the_same_report() -> None:
    """In the same order; only how long it took differs."""

    def lines(jobs: int) -> list[str]:
        found: list[str] = []
        report = csa_spec.check(
            "cli_candidates:mixed", profile="smoke", jobs=jobs, patience=float("inf"),
            found=lambda failure, result: found.append(failure.kind),
        )  # fmt: skip
        assert list(dict.fromkeys(found)) == [failure.kind for _, failure in failures(report)] != []
        return summarise(report).split(", cpu, seed 0")[0].splitlines()

    assert lines(1) == lines(2)


def test_jobs_need_a_name() -> None:
    """A function of this process is not there in another."""
    with pytest.raises(csa_spec.UsageError, match="give its name"):
        check(right, jobs=2)
