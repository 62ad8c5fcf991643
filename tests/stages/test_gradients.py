"""Gradients of single stages: right ones pass in every dtype, each mistake in a backward pass is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine.drawing import draw

import csa_spec
from csa_spec.bugs import Bug, find_bug
from csa_spec.candidates.recognise import as_candidate
from csa_spec.engine.failures import WrongGradient
from csa_spec.engine.running import CheckResult, run_check
from csa_spec.engine.stage import Check, Setting
from csa_spec.stages import STAGES
from csa_spec.strategies import stage_cases
from stages.right import (
    RIGHT,
    attend_gather,
    compressor_loops,
    declaring,
)

RIGHT_GRADIENTS = [
    pytest.param(stage, function, dtype, id=f"{function.__name__}-{dtype}")
    for stage in ("attend", "compressor")
    for function in RIGHT[stage]
    for dtype in ("float32", "bfloat16", "float16", "float64")
    if function is not compressor_loops or dtype in ("float32", "bfloat16")  # slow
]


def gradients(stage: str) -> Check:
    """Return the check that is tested here."""
    (check,) = (one for one in STAGES[stage].checks if one.name == "gradients")
    return check


def held(stage: str, function: Callable[..., Any], examples: int, dtype: str = "float32") -> CheckResult:
    """Hold the gradients of a function against the specification's."""
    candidate = as_candidate(declaring(function, gradients=True), function.__name__, stage)
    return run_check(gradients(stage), candidate, STAGES[stage], draw(stage_cases(stage, dtype), examples))


def failures(wrong: Bug, enough: int) -> dict[str, WrongGradient]:
    """Return what is found on a few draws, by kind, until there is enough of it."""
    found: dict[str, WrongGradient] = {}
    for case in draw(stage_cases(wrong.stage), 30):
        try:
            gradients(wrong.stage).run(STAGES[wrong.stage].trial(wrong.candidate, case))
        except WrongGradient as failure:
            found.setdefault(failure.kind, failure)
        if len(found) >= enough:
            break
    return found


@pytest.mark.parametrize(("stage", "function", "dtype"), RIGHT_GRADIENTS)
def test_right_gradients_pass(stage: str, function: Callable[..., Any], dtype: str) -> None:
    """Through float64, and through a kernel's own arithmetic."""
    result = held(stage, function, 6, dtype)
    assert result.failures == []
    assert result.cases >= 2
    assert result.tally.queries >= 3 * result.cases
    assert result.tally.worst <= 0.7


def test_a_whole_run_has_gradients_where_they_are_declared_and_only_there() -> None:
    """What is not differentiable has no gradients to be wrong."""
    checks = [
        {result.check for result in csa_spec.check(attend=function, profile="smoke").results}
        for function in (attend_gather, declaring(attend_gather, gradients=True))
    ]
    assert checks[1] - checks[0] == {"gradients"}


# WRONG GRADIENTS: the forward pass is right.

WRONG = {
    "detaches_values": {"WrongGradient[kv]"},
    "detaches_keys": {"WrongGradient[kv]"},
    "detaches_the_sink": {"NoGradient[sinks]"},
    "recomputes_without_the_sink": {"WrongGradient[q]", "WrongGradient[kv]", "NoGradient[sinks]"},
    "scatters_gradients_of_minus_one_to_the_first_row": {"StrayGradient[kv]", "WrongGradient[kv]"},
    "scatters_gradients_of_minus_one_to_the_last_row": {"StrayGradient[kv]", "WrongGradient[kv]"},
    "misses_the_scale": {"WrongGradient[q]"},
    "doubles_the_gradient_of_the_sink": {"WrongGradient[sinks]"},
    "keeps_the_key_gradient_of_the_last_head_only": {"WrongGradient[kv]"},
    "detaches_the_gate": {"NoGradient[weights.wgate]", "NoGradient[weights.ape]"},
    "detaches_the_bias": {"NoGradient[weights.ape]"},
    "doubles_the_gradient_of_tokens": {"WrongGradient[hidden]"},
    "gives_the_tail_a_gradient": {"StrayGradient[hidden]", "WrongGradient[hidden]"},
}
"""Functions with a right forward pass, and what their gradients must be called."""


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_gradient_is_named(name: str) -> None:
    """By the argument that it is of, and by whether it is wrong, missing, or where nothing flows."""
    kinds = WRONG[name]
    found = failures(find_bug(name), 2 if "StrayGradient[kv]" in kinds else 1)
    assert found
    assert set(found) <= kinds
    if "StrayGradient[kv]" in kinds:
        assert set(found) == kinds
    for failure in found.values():
        assert failure.kind == f"{type(failure).__name__}[{failure.facts['of']}]"
        assert (
            f"of {failure.facts['of']} at [" in failure.detail
            or f"to {failure.facts['of']}" in failure.detail
        )


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_gradient_is_found_whatever_is_drawn(name: str) -> None:
    """The few drawn cases of a run may all be without an entry; those written by hand are not."""
    wrong = find_bug(name)
    written = STAGES[wrong.stage].draws.for_laws("", Setting(), True)
    result = run_check(
        gradients(wrong.stage), wrong.candidate, STAGES[wrong.stage], written, shrinking=False
    )
    assert {failure.kind for failure in result.failures} & WRONG[name]


def test_a_wrong_gradient_is_shown_on_a_small_case() -> None:
    """One key is enough to miss a factor."""
    failure: Any
    wrong = find_bug("misses_the_scale")
    (failure,) = held("attend", wrong.function, 6).failures
    assert failure.kind == "WrongGradient[q]"
    assert sum(failure.case.sizes.values()) <= 8
    with pytest.raises(type(failure), match="the gradient of q at"):
        csa_spec.check_case(wrong.candidate, str(failure.case), "gradients")


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_gradient_has_a_right_forward_pass(name: str) -> None:
    """Or it would not be the gradient that is wrong."""
    wrong = find_bug(name)
    stage = STAGES[wrong.stage]
    result = run_check(stage.checks[0], wrong.candidate, stage, draw(stage_cases(wrong.stage), 15))
    assert result.failures == []
