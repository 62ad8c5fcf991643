"""Run one check of one candidate over many cases, and shrink what fails."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from csa_spec.harness.candidate import Candidate
from csa_spec.harness.case import Case, Scores, Sinks, Values
from csa_spec.harness.checks import Check
from csa_spec.harness.comparison import Tally
from csa_spec.harness.coverage import kinds_of
from csa_spec.harness.failures import Failure
from csa_spec.harness.shrink import shrink, size
from csa_spec.harness.trial import Trial
from csa_spec.spec import LayerKind

ENOUGH = 12
"""Failing cases after which a check looks no further."""


Regime = tuple[Values, Scores, Sinks]


@dataclass(slots=True)
class RegimeCount:
    """What a check did in one value regime."""

    cases: int = 0
    failing: int = 0
    tally: Tally = field(default_factory=Tally)


@dataclass(slots=True)
class CheckResult:
    """What one check of one layer kind covered and found."""

    check: str
    sentence: str
    kind: LayerKind
    stage: str = "layer"
    dtype: str = "float32"
    cases: int = 0
    """Cases that gave the check something to do"""
    failing: int = 0
    tally: Tally = field(default_factory=Tally)
    regimes: dict[Regime, RegimeCount] = field(default_factory=dict)
    reached: Counter[str] = field(default_factory=Counter)
    """Cases by kind"""
    not_applicable: Counter[str] = field(default_factory=Counter)
    """Cases whose rows lost a feature because the candidate does not support it"""
    failures: list[Failure] = field(default_factory=list)
    """The smallest case of each kind of failure"""
    seconds: float = 0.0

    def ambiguous_share(self, scores: Collection[Scores]) -> float:
        """Return which share of the queries was ambiguous in the regimes with such scores."""
        tallies = [count.tally for (_, regime, _), count in self.regimes.items() if regime in scores]
        return sum(tally.ambiguous for tally in tallies) / max(1, sum(tally.queries for tally in tallies))


def run_check(
    check: Check,
    candidate: Candidate,
    kind: LayerKind,
    corners: Iterable[Case],
    cases: SearchStrategy[Case],
    examples: int,
    run_seed: int = 0,
    progress: Callable[[CheckResult], None] = lambda result: None,
) -> CheckResult:
    """Run a check on hand-written cases, then on drawn ones, and shrink each kind of failure.

    Parameters
    ----------
    check, candidate
        What is checked, and who.
    kind
        Layer kind of all cases; a label here.
    corners
        Cases tried first.
    cases
        Strategy to draw from.
    examples
        How many cases to draw.
    run_seed
        Seed of the draws; the same seed gives the same cases.
    progress
        Called after each case.
    """
    result = CheckResult(check.name, check.sentence, kind)
    found: dict[str, Failure] = {}
    begin = time.perf_counter()

    def attempt(case: Case) -> None:
        if result.failing >= ENOUGH:
            return
        failure = _try(check, candidate, case, result)
        if failure is not None:
            known = found.get(failure.kind)
            if known is None or size(failure.case) < size(known.case):
                found[failure.kind] = failure
        result.seconds = time.perf_counter() - begin
        progress(result)

    for case in corners:
        attempt(case)

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
    def explore(case: Case) -> None:
        attempt(case)

    if examples:
        explore()

    def judge(case: Case) -> Failure | None:
        result.seconds = time.perf_counter() - begin
        progress(result)
        try:
            check.run(Trial(candidate, case))
        except Failure as failure:
            return failure
        return None

    result.failures = [shrink(failure, judge) for failure in found.values()]
    result.failures.sort(key=lambda failure: size(failure.case))
    result.seconds = time.perf_counter() - begin
    return result


def _try(check: Check, candidate: Candidate, case: Case, result: CheckResult) -> Failure | None:
    """Try one case and count what it covered."""
    lacking = candidate.capabilities.lacking(case)
    if lacking:
        result.not_applicable.update(map(str, lacking))
        case = case.without(lacking)
    trial = Trial(candidate, case)
    failure, tally = None, None
    try:
        tally = check.run(trial)
        if tally is None:
            return None
    except Failure as caught:
        failure = caught
    result.cases += 1
    regime = result.regimes.setdefault((case.values, case.scores, case.sinks), RegimeCount())
    regime.cases += 1
    if failure is not None:
        result.failing += 1
        regime.failing += 1
        return failure
    assert tally is not None
    result.tally.add(tally)
    regime.tally.add(tally)
    if not check.law:
        result.reached.update(kinds_of(case, trial.expected))
    return None
