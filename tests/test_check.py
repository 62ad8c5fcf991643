"""The API: what a run decides, beyond what its checks find."""

from __future__ import annotations

import pytest
from harness.candidates import as_specified

from csa_spec import Capabilities, Case, CaseError, UsageError, check, check_case
from csa_spec.checking import Target, resolve_candidate
from csa_spec.harness.candidate import Candidate
from csa_spec.harness.case import Scores, Sinks, Values
from csa_spec.harness.comparison import Tally
from csa_spec.harness.coverage import required
from csa_spec.harness.engine import CheckResult, RegimeCount
from csa_spec.harness.failures import Failure
from csa_spec.harness.results import Report, Verdict
from csa_spec.profiles import Profile
from csa_spec.spec import LayerKind
from csa_spec.stages import LAYER_STAGE, SPECIFICATION

RIGHT = Candidate("right", {"": as_specified()})
TINY = Profile("tiny", specification=3, law=2, weights=1)


def target(dtype: str = "float32") -> Target:
    """Return a small target."""
    return Target(RIGHT, LAYER_STAGE, LayerKind.CSA, dtype, "cpu", TINY, 0)


def result_with(regime: Scores, queries: int, ambiguous: int) -> CheckResult:
    """Return a result that reached everything, with so many ambiguous queries in one regime."""
    result = CheckResult("specification", "", "layer", LayerKind.CSA, cases=1)
    result.reached.update(required(LayerKind.CSA, RIGHT.capabilities))
    count = RegimeCount(cases=1, tally=Tally(queries=queries, ambiguous=ambiguous))
    result.regimes[Values.GAUSSIAN, regime, Sinks.ZERO] = count
    return result


def test_ambiguous_queries_are_a_small_share_outside_the_tie_regimes() -> None:
    """Otherwise the run has judged too much leniently, and says so; drawn ties do not count."""
    assert target().missing(result_with(Scores.FREE, 1000, 100)) == []
    (sentence,) = target().missing(result_with(Scores.FREE, 1000, 101))
    assert sentence == "enough queries without ties (10% are ambiguous where no tie was drawn, over 10%)"
    assert target().missing(result_with(Scores.TIED, 1000, 1000)) == []
    assert target("bfloat16").missing(result_with(Scores.FREE, 1000, 400)) == []


def test_a_right_candidate_stays_below_that_share() -> None:
    """As the strategies really draw them."""
    result = target().run(SPECIFICATION)
    assert result.tally.ambiguous > 0
    assert result.ambiguous_share((Scores.FREE, Scores.SEPARATED)) < 0.1


def test_the_same_seed_draws_the_same_cases_and_each_check_draws_its_own() -> None:
    """Counts of queries are a fingerprint of the cases."""
    twice = [target().run(LAYER_STAGE.checks[1]).tally.queries for _ in range(2)]
    assert twice[0] == twice[1]
    fingerprints = {Target(RIGHT, LAYER_STAGE, LayerKind.CSA, "float32", "cpu", TINY, seed).run(LAYER_STAGE.checks[1]).tally.queries
                    for seed in range(4)}  # fmt: skip
    assert len(fingerprints) > 1


@pytest.mark.parametrize(
    ("reached", "failed", "verdict"),
    [(True, False, Verdict.CONFORMANT), (False, False, Verdict.INCONCLUSIVE), (False, True, Verdict.NOT_CONFORMANT)],
)
def test_a_failure_outweighs_what_was_not_reached(reached: bool, failed: bool, verdict: Verdict) -> None:
    """Inconclusive is for runs that found nothing and could not have."""
    result = CheckResult("specification", "", "layer", LayerKind.CSA, cases=1)
    result.failures = [Failure("wrong", Case())] if failed else []
    missing = {("float32", LayerKind.CSA): [] if reached else ["partial tail"]}
    report = Report("x", {}, "tiny", ("float32",), "cpu", 0, [result], missing, {}, 0.0)
    assert report.verdict is verdict


def test_layer_kinds_that_a_candidate_declines_are_named_and_not_run() -> None:
    """Asked for by name, they are refused."""
    sliding = Candidate("sliding only", {"": as_specified()}, Capabilities(kinds={LayerKind.SLIDING}))
    report = check(sliding, profile="smoke")
    assert {result.kind for result in report.results} == {LayerKind.SLIDING}
    assert set(report.declined) == {LayerKind.CSA, LayerKind.HCA}
    assert report.verdict is Verdict.CONFORMANT
    with pytest.raises(UsageError, match="sliding only does not offer csa layers"):
        check(sliding, layer="csa")


def test_a_function_is_named_so_that_a_failure_can_be_repeated() -> None:
    """``module:name`` is what ``check_case`` takes."""
    assert resolve_candidate(as_specified).name == "harness.candidates:as_specified"


def test_one_case_can_be_tried_again() -> None:
    """Silence is right; what cannot be read or is not known gets a sentence."""
    check_case(RIGHT, "csa k=2 rows=3")
    with pytest.raises(CaseError, match="'q=2' is not part of a case"):
        check_case(RIGHT, "csa q=2 rows=3")
    with pytest.raises(UsageError, match="unknown check 'nothing'"):
        check_case(RIGHT, "csa rows=3", check="nothing")
    with pytest.raises(UsageError, match="right has no mode 'cache'"):
        check_case(RIGHT, "csa rows=3 mode=cache")
