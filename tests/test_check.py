"""The API: what a run decides, beyond what its checks find."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import cli_candidates
import pytest
from engine.candidates import as_specified

from csa_spec import Capabilities, CaseError, UsageError, check, check_case
from csa_spec.candidates import GROUP
from csa_spec.engine.failures import Failure
from csa_spec.engine.results import Report, Verdict
from csa_spec.engine.running import CheckResult, RegimeCount
from csa_spec.engine.tally import Tally
from csa_spec.plug.candidate import Candidate, CandidateError
from csa_spec.profiles import PROFILES, Profile
from csa_spec.resolving import resolve_candidate
from csa_spec.spec import LayerKind
from csa_spec.stages.layer.case import LayerCase, Scores, Sinks, Values
from csa_spec.stages.layer.coverage import too_ambiguous
from csa_spec.stages.layer.stage import LAYER
from csa_spec.target import Target

RIGHT = Candidate("right", {"layer": as_specified()})
TINY = Profile("tiny", light=3, medium=3, heavy=3, law=2, costly=1, patience=float("inf"))


def target(dtype: str = "float32") -> Target:
    """Return a small target."""
    return Target(RIGHT, LAYER, LayerKind.CSA, dtype, "cpu", TINY, 0)


def result_with(regime: Scores, queries: int, ambiguous: int) -> CheckResult:
    """Return a result that reached everything, with so many ambiguous queries in one regime."""
    result = CheckResult("specification", "", "layer", LayerKind.CSA, cases=1)
    result.reached.update(LAYER.all_required(LayerKind.CSA, Capabilities()))
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
    result = target().run(LAYER.checks[0])
    assert result.tally.ambiguous > 0
    assert too_ambiguous(result, "float32") == []


def test_the_same_seed_draws_the_same_cases_and_each_check_draws_its_own() -> None:
    """Counts of queries are a fingerprint of the cases."""
    twice = [target().run(LAYER.checks[1]).tally.queries for _ in range(2)]
    assert twice[0] == twice[1]
    others = [Target(RIGHT, LAYER, LayerKind.CSA, "float32", "cpu", TINY, seed) for seed in range(4)]
    assert len({one.run(LAYER.checks[1]).tally.queries for one in others}) > 1


@pytest.mark.parametrize(
    ("reached", "failed", "verdict"),
    [
        (True, False, Verdict.CONFORMANT),
        (False, False, Verdict.INCONCLUSIVE),
        (False, True, Verdict.NOT_CONFORMANT),
    ],
)
def test_a_failure_outweighs_what_was_not_reached(reached: bool, failed: bool, verdict: Verdict) -> None:
    """Inconclusive is for runs that found nothing and could not have."""
    result = CheckResult("specification", "", "layer", LayerKind.CSA, cases=1)
    result.failures = [Failure(LayerCase(), message="wrong")] if failed else []
    missing = {("float32", LayerKind.CSA): [] if reached else ["partial tail"]}
    report = Report("x", {}, "tiny", ("float32",), "cpu", 0, [result], missing, {}, {}, 0.0)
    assert report.verdict is verdict


def test_layer_kinds_that_a_candidate_declines_are_named_and_not_run() -> None:
    """Asked for by name, they are refused."""
    sliding = Candidate("sliding only", {"layer": as_specified()}, Capabilities(kinds={LayerKind.SLIDING}))
    report = check(sliding, profile="smoke")
    assert {result.variant for result in report.results} == {LayerKind.SLIDING}
    assert set(report.declined) == {LayerKind.CSA, LayerKind.HCA}
    assert report.verdict is Verdict.CONFORMANT
    with pytest.raises(UsageError, match="sliding only does not offer csa layers"):
        check(sliding, layer="csa")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """Add a profile that draws hardly anything; return its name."""
    monkeypatch.setitem(PROFILES, "tiny", TINY)
    return "tiny"


def test_functions_may_be_given_by_the_names_of_their_stages(tiny: str) -> None:
    """Each is judged as its stage, whichever order they are given in, and named as itself."""
    report = check(select=cli_candidates.selects_the_lowest, attend="cli_candidates:attend", profile=tiny)
    assert report.candidate == "cli_candidates:selects_the_lowest, cli_candidates:attend"
    assert [*dict.fromkeys((result.stage, result.variant) for result in report.results)] == [
        ("select", ""), ("attend", ""),
    ]  # fmt: skip
    assert {result.stage for result in report.results if result.failures} == {"select"}
    assert report.verdict is Verdict.NOT_CONFORMANT
    assert check(attend=cli_candidates.attend, profile=tiny).verdict is Verdict.CONFORMANT


def test_functions_given_together_keep_their_own_capabilities(tiny: str) -> None:
    """One that lacks a dtype does not take it from the others."""
    report = check(
        select=cli_candidates.select, attend=cli_candidates.kernels, dtype="float64", profile=tiny
    )
    assert report.verdict is Verdict.CONFORMANT
    assert {result.stage for result in report.results} == {"select"}
    (reason,) = report.declined.values()
    assert reason.startswith("attend of ")
    assert reason.endswith(" does not support float64")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "give either one candidate, or single stages such as attend=function"),
        (
            {"candidate": RIGHT, "attend": cli_candidates.attend},
            "give either one candidate, or single stages such as attend=function",
        ),
        (
            {"compressor": cli_candidates.kernels},
            "is not a function and has no compressor; it offers select, attend",
        ),
        (
            {"attend": cli_candidates.attend, "stage": "select"},
            "does not offer the stage select; it offers attend",
        ),
        ({"attend": cli_candidates.attend, "stage": "nosuch"}, "unknown stage 'nosuch'"),
        ({"candidate": RIGHT, "stage": "attend"}, "right does not offer the stage attend; it offers layer"),
        ({"candidate": RIGHT, "profile": "nosuch"}, "unknown profile 'nosuch'"),
        (
            {"candidate": RIGHT, "time_limit": -1},
            "the time limit must be more than 0 seconds, not -1; give e.g. 30",
        ),
    ],
)
def test_what_cannot_be_put_together_is_a_usage_error(given: dict[str, Any], sentence: str) -> None:
    """Before anything is run."""
    with pytest.raises(UsageError, match=re.escape(sentence)):
        check(**given)


def install(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    """Have other packages declare entry points, by name."""
    found = EntryPoints(EntryPoint(name, value, GROUP) for name, value in values.items())
    monkeypatch.setattr("csa_spec.candidates.entry_points", lambda **wanted: found.select(**wanted))


def test_entry_points_of_installed_packages_are_candidates(
    monkeypatch: pytest.MonkeyPatch, tiny: str
) -> None:
    """By their names, a module as well as an object or a function; shipped names stay what they are."""
    install(monkeypatch, mine="cli_candidates:kernels", layered="cli_candidates:right", gather="cli_candidates:raises",
            whole="csa_spec.candidates.gather")  # fmt: skip
    kernels = resolve_candidate("mine")
    assert (kernels.name, kernels.offers) == ("mine", ("select", "attend"))
    assert resolve_candidate("layered").offers == ("layer",)
    assert resolve_candidate("layered", "attend").offers == ("attend",)
    assert resolve_candidate("whole").offers == ("attend",)
    assert len(resolve_candidate("gather").offers) > 1
    assert check("mine", stage="select", profile=tiny).verdict is Verdict.CONFORMANT


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("a_module_that_nobody_has:attend", "the entry point mine = a_module_that_nobody_has:attend cannot be loaded: "
                                            "ModuleNotFoundError: No module named 'a_module_that_nobody_has'"),
        ("cli_candidates:absent", "the entry point mine = cli_candidates:absent cannot be loaded: AttributeError: "
                                  "module 'cli_candidates' has no attribute 'absent'"),
        ("cli_candidates:lazy", "the entry point mine = cli_candidates:lazy cannot be loaded: RuntimeError: "
                                "lazy import failed"),
        ("cli_candidates:number", "cli_candidates:number offers no stage: it is neither callable nor"),
        ("cli_candidates:Layer", "cli_candidates:Layer is a class; give an instance of it, or a function"),
    ],
)  # fmt: skip
def test_an_entry_point_that_cannot_be_used_says_why(
    monkeypatch: pytest.MonkeyPatch, value: str, sentence: str
) -> None:
    """In one sentence that names it; where its code fails comes on lines of its own."""
    install(monkeypatch, mine=value)
    with pytest.raises(CandidateError, match=re.escape(sentence)) as raised:
        check("mine")
    assert all(line.startswith("  ") for line in str(raised.value).splitlines()[1:])


def test_an_unknown_name_is_answered_with_all_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of other packages, too."""
    install(monkeypatch, mine="cli_candidates:kernels")
    with pytest.raises(
        CandidateError,
        match=r"unknown candidate 'nosuch'; choose from transformers, .*, mine, or give your own as",
    ):
        check("nosuch")


def test_a_function_is_named_so_that_a_failure_can_be_repeated() -> None:
    """``module:name`` is what ``check_case`` takes."""
    assert resolve_candidate(cli_candidates.right).name == "cli_candidates:right"
    assert resolve_candidate(cli_candidates.attend, "attend").name == "cli_candidates:attend"


def test_one_case_can_be_tried_again() -> None:
    """Silence is right; what cannot be read or is not known gets a sentence."""
    check_case(RIGHT, "csa k=2 rows=3")
    with pytest.raises(CaseError, match="'q=2' is not part of a case of layer"):
        check_case(RIGHT, "csa q=2 rows=3")
    with pytest.raises(UsageError, match="unknown check 'nothing'"):
        check_case(RIGHT, "csa rows=3", check="nothing")
    with pytest.raises(UsageError, match="right has no mode 'cache'"):
        check_case(RIGHT, "csa rows=3 mode=cache")
