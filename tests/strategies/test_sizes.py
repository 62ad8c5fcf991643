"""Sizes cross the places where implementations switch; large cases are judged by the specification all the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from engine.drawing import draw

from csa_spec.bugs import find_bug
from csa_spec.candidates import gather
from csa_spec.engine.failures import Failure
from csa_spec.engine.running import CheckResult, failure_of
from csa_spec.engine.shrink import shrink
from csa_spec.engine.sizes import THRESHOLDS, size_kinds, summarised
from csa_spec.plug.arrays import map_tensors
from csa_spec.plug.call import Answer
from csa_spec.plug.candidate import Candidate
from csa_spec.plug.capabilities import Capabilities
from csa_spec.profiles import PROFILES
from csa_spec.stages import STAGES, parse_case
from csa_spec.strategies import stage_cases
from csa_spec.strategies.attend import SWEEP as ATTEND
from csa_spec.strategies.compressor import SWEEP as COMPRESSOR
from csa_spec.strategies.index_scores import SWEEP as INDEX_SCORES
from csa_spec.strategies.select import SWEEP as SELECT
from csa_spec.target import Target

SWEEPS: dict[str, Any] = {
    "attend": ATTEND,
    "select": SELECT,
    "index_scores": INDEX_SCORES,
    "compressor": COMPRESSOR,
}
EACH = pytest.mark.parametrize("stage", SWEEPS)


def target(stage: str, candidate: Candidate, profile: str = "default", seed: int = 0) -> Target:
    """Return a run of one stage."""
    return Target(candidate, STAGES[stage], "", "float32", "cpu", PROFILES[profile], seed)


def swept(stage: str, seed: int = 0) -> list[Any]:
    """Return the cases in which sizes are swept."""
    return list(SWEEPS[stage].cases(draw(stage_cases(stage), 50), seed))


def test_a_size_is_of_one_kind_or_of_neighbouring_ones() -> None:
    """At a threshold, next to it, or between two; products only where both sizes count."""
    assert size_kinds({"S": 65}, ()) == {"S around 64"}
    assert size_kinds({"S": 66}, ()) == {"S between 64 and 128"}
    assert size_kinds({"S": 2}, ()) == {"S around 1", "S around 2", "S around 3"}
    pair = [("B", "S")]
    assert "B*S over 64" in size_kinds({"B": 5, "S": 13}, pair)
    assert "B*S over 64" not in size_kinds({"B": 4, "S": 16}, pair)
    assert "B*S over 64" not in size_kinds({"B": 1, "S": 65}, pair)
    assert summarised(["S around 64", "S around 128", "B*S over 64"]) == [
        "sizes S around 64, ..., around 128",
        "sizes B*S over 64",
    ]


@EACH
def test_every_size_is_tried_at_each_threshold_below_above_and_between(stage: str) -> None:
    """Whatever the seed; and each product is on both sides of each threshold."""
    case_type = STAGES[stage].case
    for seed in (0, 1):
        cases = swept(stage, seed)
        for letter, most in SWEEPS[stage].most.items():
            sizes = {case.sizes[letter] for case in cases}
            least = case_type.letters()[letter]
            wanted = {t + d for t in THRESHOLDS if t <= most for d in (-1, 0, 1) if t + d >= least}
            assert {size for size in wanted if letter != "R" or size % 2 == 0} <= sizes
            assert any(256 + 1 < size < 512 - 1 for size in sizes) or most < 512
        reached = {kind for case in cases for kind in case.size_kinds}
        for first, second in case_type.products:
            assert {
                f"{first}*{second} over {t}" for t in THRESHOLDS if 64 <= t <= SWEEPS[stage].product
            } <= reached
        assert all(parse_case(str(case)) == case for case in cases)
    assert swept(stage, 0) == swept(stage, 0) != swept(stage, 1)


@EACH
def test_a_run_that_leaves_sizes_out_says_so(stage: str) -> None:
    """Limits that are declared excuse what lies beyond; a run that merely never got there is not finished."""
    check = STAGES[stage].checks[0]
    free = target(stage, gather.load())
    result = as_if_tried(free, check, lambda case: case.sizes["B"] < 100)
    assert any(kind.startswith("sizes B ") for kind in free.missing(result))
    bound = replace(gather.load().capabilities_of(stage), limits={"B": 64})
    limited = target(stage, gather.load().declaring(stage, bound))
    assert not any(kind.startswith("sizes B ") for kind in limited.missing(result))
    assert any(kind.startswith("sizes B ") for kind in limited.left_out(result))
    assert target(stage, gather.load(), "smoke").cases(check)[-1:] != free.cases(check)[-1:]


def as_if_tried(run: Target, check: Any, keep: Any) -> Any:
    """Return the result of a check as if it had tried some cases only; nothing is called."""
    result = CheckResult(check.name, check.sentence, run.stage.name, cases=1)
    for case in filter(keep, run.cases(check)):
        result.sizes.update(case.size_kinds)
    return result


@pytest.mark.parametrize("stage", ["attend", "index_scores", "compressor"])
def test_large_cases_are_judged_as_the_loops_of_the_specification_would(stage: str) -> None:
    """``torch.vmap`` of its functions gives what they give one by one, to float64 rounding."""
    cases = [case for case in swept(stage) if 30 < max(case.sizes.values()) < 140][::6]
    assert len(cases) > 12
    for case in cases:
        trial = STAGES[stage].trial(gather.load(), case)
        exact = map_tensors(lambda _, x: x.double() if x.is_floating_point() else x, trial.arguments)
        slow, (fast, budget) = trial.specified(exact), trial.expected
        assert torch.allclose(slow, fast, rtol=1e-12, atol=1e-14), str(case)
        assert budget.shape == fast.shape


@pytest.mark.parametrize("lowest", [False, True])
def test_selections_that_pass_at_once_are_those_that_pass_the_rules(lowest: bool) -> None:
    """Right ones, and ones with a pick dropped, doubled, moved, hidden or out of range."""
    candidate = replace(gather.load(), capabilities=Capabilities(lowest_index_first=lowest))
    agreed = {True: 0, False: 0}
    sized = [case for case in swept("select") if case.rows * case.queries <= 80 and case.entries < 5000]
    for case in [*draw(stage_cases("select"), 60), *sized[::12]]:
        trial = STAGES["select"].trial(candidate, case)
        right = trial.relevant(trial.answer)
        for spoiled in (right, *spoiled_picks(right, case)):
            rules = [
                [trial._wrong(spoiled[b, t], b, t, trial.visible(b, t)) is None for t in range(case.queries)]
                for b in range(case.rows)
            ]
            fast = trial._clearly_right(spoiled)
            assert not (fast & ~torch.tensor(rules)).any(), str(case)  # nothing wrong passes
            if spoiled is right and right.numel() and case.entries and "nan" not in case.regime:
                assert fast.all(), str(case)  # nor is anything right judged slowly
            for verdict in (True, False):
                agreed[verdict] += int((fast == verdict).sum())
            assert trial.is_wrong(Answer(spoiled)) == (not all(map(all, rules)))
    assert min(agreed.values()) > 300


def spoiled_picks(right: torch.Tensor, case: Any) -> list[torch.Tensor]:
    """Return picks with one mistake each."""
    if not right.numel():
        return []
    changes = (-1, 0, case.entries - 1, case.entries, -2)
    spoiled = []
    for change in changes:
        picks = right.clone()
        picks[..., 0] = change
        spoiled.append(picks)
    return [*spoiled, torch.where(right >= 0, right + 1, -1), right.flip(0), right.flip(1)]


@pytest.mark.parametrize(
    ("bug", "found", "smallest"),
    [
        ("reads_only_100_channels", "attend D=1023 N=2 n=2 values=gaussian seed=7", {"D": 101}),
        ("selects_at_most_512_entries", "select T=4500 k=2500 start=9000 seed=3", {"k": 513, "T": 513}),
        ("scores_at_most_1000_entries", "index_scores T=3000 values=gaussian", {"T": 1001}),
        ("answers_at_most_96_entries", "compressor blocks=700 values=gaussian seed=2", {"blocks": 97}),
    ],
)
def test_a_failure_shrinks_to_the_very_size_from_which_it_is_there(
    bug: str, found: str, smallest: dict[str, int]
) -> None:
    """Neither a power of two nor near the size that was met."""
    case, candidate = parse_case(found), find_bug(bug).candidate
    stage = STAGES[case.stage]

    def judge(smaller: Any) -> Failure | None:
        return failure_of(stage.checks[0], candidate, stage, smaller)

    failure = judge(case)
    assert failure is not None
    sizes = shrink(failure, judge, stage.passes).case.sizes
    assert {letter: sizes[letter] for letter in smallest} == smallest
