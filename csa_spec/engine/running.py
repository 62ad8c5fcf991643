"""Run one check of one candidate over many cases, and shrink what fails."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from csa_spec.engine.failures import CandidateHung, Failure
from csa_spec.engine.shrink import SECONDS, shrink
from csa_spec.engine.stage import Check, Stage
from csa_spec.engine.tally import Tally
from csa_spec.plug.call import NotOffered
from csa_spec.plug.candidate import Candidate
from csa_spec.plug.position import HERE

ENOUGH = 12
"""Failing cases after which a check looks no further."""
KEPT = 4
"""Failing cases that are kept as they were tried: shrinking may lose what tells one mistake from another."""
HUNG_ENOUGH = 3
"""The same for calls that hang, each of which takes its whole time."""
HUNG_SECONDS = 60.0
"""For how long a hang is shrunk."""

Regime = tuple[str, ...]
"""How the data of a case are drawn: one name for each thing that is drawn"""


@dataclass(slots=True)
class RegimeCount:
    """What a check did in one value regime."""

    cases: int = 0
    failing: int = 0
    tally: Tally = field(default_factory=Tally)


@dataclass(slots=True)
class CheckResult:
    """What one check of one stage, or of one of its layer kinds, covered and found."""

    check: str
    sentence: str
    stage: str
    variant: str = ""
    """The layer kind, for stages that have some"""
    subject: str = ""
    """What was checked: the layer kind, or the stage"""
    dtype: str = "float32"
    cases: int = 0
    """Cases that gave the check something to do"""
    failing: int = 0
    tally: Tally = field(default_factory=Tally)
    regimes: dict[Regime, RegimeCount] = field(default_factory=dict)
    reached: Counter[str] = field(default_factory=Counter)
    """Cases by kind"""
    not_applicable: Counter[str] = field(default_factory=Counter)
    """Cases that were changed or left out because the candidate does not support them, by what they had"""
    failures: list[Failure] = field(default_factory=list)
    """The smallest case of each kind of failure"""
    seconds: float = 0.0


def draw_cases(cases: SearchStrategy[Any], examples: int, run_seed: int) -> list[Any]:
    """Return what a strategy draws; the same seed gives the same cases."""
    drawn: list[Any] = []

    @seed(run_seed)
    @settings(
        max_examples=max(examples, 1),
        phases=[Phase.generate],
        database=None,
        deadline=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def draw(case: Any) -> None:
        drawn.append(case)

    if examples:
        draw()
    return drawn


def run_check(
    check: Check[Any],
    candidate: Candidate,
    stage: Stage[Any, Any],
    cases: Iterable[Any],
    *,
    variant: str = "",
    dtype: str = "float32",
    progress: Callable[[CheckResult], None] = lambda result: None,
    enough: int = ENOUGH,
    shrinking: bool = True,
) -> CheckResult:
    """Run a check on cases, and shrink each kind of failure.

    Parameters
    ----------
    check, candidate, stage
        What is checked, who, and which of its stages.
    cases
        Tried in this order.
    variant, dtype
        Layer kind and dtype of all cases; labels here.
    progress
        Called after each case.
    enough
        Failing cases after which no more are tried.
    shrinking
        Whether to look for the smallest case of each kind of failure.
    """
    result = CheckResult(check.name, check.sentence, stage.name, variant, stage.subject(variant), dtype)
    HERE.check, HERE.subject = check.name, result.subject
    smallest: dict[str, Failure] = {}
    met: list[Any] = []
    begin, hung = time.perf_counter(), 0

    def tell() -> None:
        result.seconds = time.perf_counter() - begin
        progress(result)

    for case in cases:
        failure = _try(check, candidate, stage, case, result)
        if failure is not None:
            hung += isinstance(failure, CandidateHung)
            met += [failure.case][: KEPT - len(met)]
            known = smallest.get(failure.kind)
            if known is None or failure.case.order < known.case.order:
                smallest[failure.kind] = failure
                result.failures = list(smallest.values())  # for whoever must report before the end
        tell()
        # More failing cases say nothing new, and those of a candidate that hangs take half a minute each.
        if result.failing >= enough or hung >= HUNG_ENOUGH:
            break

    def judge(case: Any) -> Failure | None:
        tell()
        return failure_of(check, candidate, stage, case)

    if shrinking:  # only now: one failing case of each kind, the smallest drawn, is worth the time
        result.failures = [_shrunk(failure, judge, stage) for failure in result.failures]
        for failure in result.failures:
            failure.met_on = tuple(met)
    result.failures.sort(key=lambda failure: failure.case.order)
    result.seconds = time.perf_counter() - begin
    return result


def _shrunk(failure: Failure, judge: Callable[[Any], Failure | None], stage: Stage[Any, Any]) -> Failure:
    seconds = HUNG_SECONDS if isinstance(failure, CandidateHung) else SECONDS
    return shrink(failure, judge, stage.passes, seconds=seconds)


def failure_of(check: Check[Any], candidate: Candidate, stage: Stage[Any, Any], case: Any) -> Failure | None:
    """Return how a candidate fails on a case, if it supports the case and fails."""
    if case.fit(candidate.capabilities_of(stage.name))[0] != case:
        return None  # a smaller case that is declared unsupported may fail, and rightly so
    try:
        check.run(stage.trial(candidate, case))
    except Failure as failure:
        return failure
    except NotOffered:
        return None
    return None


def _try(
    check: Check[Any], candidate: Candidate, stage: Stage[Any, Any], case: Any, result: CheckResult
) -> Failure | None:
    """Try one case and count what it covered."""
    case, lacking = case.fit(candidate.capabilities_of(stage.name))
    result.not_applicable.update(lacking)
    trial = stage.trial(candidate, case)
    failure, tally = None, None
    try:
        tally = check.run(trial)
        if tally is None:
            return None  # the check does not apply to the case: it counts for nothing
    except Failure as caught:
        failure = caught
    except NotOffered as refusal:
        result.not_applicable[str(refusal)] += 1
        return None
    result.cases += 1
    regime = result.regimes.setdefault(case.regime, RegimeCount())
    regime.cases += 1
    if failure is not None:
        result.failing += 1
        regime.failing += 1
        return failure
    assert tally is not None
    # Only what was judged right counts as covered.
    result.tally.add(tally)
    regime.tally.add(tally)
    if not check.law:
        result.reached.update(trial.kinds())
    return None
