"""Gradients of single stages: right ones pass in every dtype, and each mistake in a backward pass is named."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness.drawing import draw
from torch import Tensor

import csa_spec
from csa_spec.harness.candidate import as_candidate
from csa_spec.harness.engine import CheckResult, run_check
from csa_spec.harness.failures import WrongGradient
from csa_spec.harness.stage import Check
from csa_spec.spec import CompressorWeights, Geometry
from csa_spec.stages import STAGES
from csa_spec.strategies import stage_cases
from stages.right import (
    RIGHT,
    attend_gather,
    compressor_kernel,
    compressor_loops,
    declaring,
    gathered,
    sink_softmax,
    wide,
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
    return run_check(gradients(stage), candidate, STAGES[stage], None, [], stage_cases(stage, dtype), examples)


def failures(function: Callable[..., Any], enough: int) -> dict[str, WrongGradient]:
    """Return what is found on a few draws, by kind, until there is enough of it."""
    stage = stage_of(function)
    found: dict[str, WrongGradient] = {}
    candidate = as_candidate(declaring(function, gradients=True), function.__name__, stage)
    for case in draw(stage_cases(stage), 30):
        try:
            gradients(stage).run(STAGES[stage].trial(candidate, case))
        except WrongGradient as failure:
            found.setdefault(failure.kind, failure)
        if len(found) >= enough:
            break
    return found


def stage_of(function: Callable[..., Any]) -> str:
    """Return which stage a function is."""
    return "compressor" if "hidden" in inspect.signature(function).parameters else "attend"


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


def instead(forward: Tensor, backward: Tensor) -> Tensor:
    """Return the numbers of the first with the gradients of the second."""
    return forward.detach() + (backward - backward.detach())


def _attend(q: Tensor, keys: Tensor, values: Tensor, named: Tensor, sinks: Tensor, scale: float) -> Tensor:
    logits = scale * torch.einsum("bshd,bsnd->bshn", q, keys).to(wide(q.dtype))
    logits = logits.masked_fill(~named[:, :, None], -math.inf)
    return torch.einsum("bshn,bsnd->bshd", sink_softmax(logits, sinks.to(logits.dtype)).to(q.dtype), values)


def detaches_values(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Keys get a gradient through the logits only."""
    keys, named = gathered(kv, indices)
    return _attend(q, keys, keys.detach(), named, sinks, scale)


def detaches_keys(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Keys get a gradient as values only."""
    keys, named = gathered(kv, indices)
    return _attend(q, keys.detach(), keys, named, sinks, scale)


def detaches_the_sink(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The sink is taken for a constant."""
    return attend_gather(q, kv, indices, sinks.detach(), scale)


def recomputes_without_the_sink(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The backward pass recomputes probabilities and forgets the sink."""
    plain = attend_gather(q, kv, indices, torch.full_like(sinks, -math.inf), scale)
    return instead(attend_gather(q, kv, indices, sinks, scale), plain)


def _scatters_none_to(row: int, kv: Tensor, indices: Tensor, out: Tensor) -> Tensor:
    if not kv.shape[1]:
        return out
    stray = kv[:, row].nan_to_num(0, 0, 0)[:, None] * (indices == -1).any(-1, keepdim=True)
    return out + (stray - stray.detach())[:, :, None]


def scatters_none_to_the_first_row(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The gradient of a masked lane is added to row 0."""
    return _scatters_none_to(0, kv, indices, attend_gather(q, kv, indices, sinks, scale))


def scatters_none_to_the_last_row(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The gradient of a masked lane is added to row -1."""
    return _scatters_none_to(-1, kv, indices, attend_gather(q, kv, indices, sinks, scale))


def misses_the_scale(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The gradient of queries lacks the factor."""
    return attend_gather(instead(q, q / scale), kv, indices, sinks, scale)


def doubles_the_sink(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The gradient of the sink is added by two programs."""
    return attend_gather(q, kv, indices, torch.where(sinks.isinf(), sinks, instead(sinks, 2 * sinks)), scale)


def keeps_the_last_head(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """What one head gives the keys overwrites what the head before gave."""
    heads = [attend_gather(q[:, :, h : h + 1], kv if h == q.shape[2] - 1 else kv.detach(), indices, sinks[h : h + 1],
                           scale) for h in range(q.shape[2])]  # fmt: skip
    return torch.cat(heads, dim=2)


def detaches_the_gate(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """Pooling weights are taken for constants."""
    constants = CompressorWeights(weights.wkv, weights.wgate.detach(), weights.ape.detach(), weights.norm)
    return compressor_loops(hidden, constants, geometry)


def detaches_the_bias(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """The position bias is a buffer."""
    constants = CompressorWeights(weights.wkv, weights.wgate, weights.ape.detach(), weights.norm)
    return compressor_kernel(hidden, constants, geometry)


def doubles_the_gradient_of_tokens(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """Each block adds its part twice."""
    return compressor_loops(instead(hidden, 2 * hidden), weights, geometry)


def reaches_the_tail(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """The last token gets a gradient even where no block is complete with it."""
    last = hidden[:, -1:].sum(-1, keepdim=True)
    return compressor_kernel(hidden, weights, geometry) + (last - last.detach())


WRONG = {
    detaches_values: {"WrongGradient[kv]"},
    detaches_keys: {"WrongGradient[kv]"},
    detaches_the_sink: {"NoGradient[sinks]"},
    recomputes_without_the_sink: {"WrongGradient[q]", "WrongGradient[kv]", "NoGradient[sinks]"},
    scatters_none_to_the_first_row: {"StrayGradient[kv]", "WrongGradient[kv]"},
    scatters_none_to_the_last_row: {"StrayGradient[kv]", "WrongGradient[kv]"},
    misses_the_scale: {"WrongGradient[q]"},
    doubles_the_sink: {"WrongGradient[sinks]"},
    keeps_the_last_head: {"WrongGradient[kv]"},
    detaches_the_gate: {"NoGradient[weights.wgate]", "NoGradient[weights.ape]"},
    detaches_the_bias: {"NoGradient[weights.ape]"},
    doubles_the_gradient_of_tokens: {"WrongGradient[hidden]"},
    reaches_the_tail: {"StrayGradient[hidden]", "WrongGradient[hidden]"},
}
"""Functions with a right forward pass, and what their gradients must be called."""


@pytest.mark.parametrize("function", WRONG, ids=lambda function: function.__name__)
def test_a_wrong_gradient_is_named(function: Callable[..., Any]) -> None:
    """By the argument that it is of, and by whether it is wrong, missing, or where nothing flows."""
    kinds = WRONG[function]
    found = failures(function, 2 if "StrayGradient[kv]" in kinds else 1)
    assert found
    assert set(found) <= kinds
    if "StrayGradient[kv]" in kinds:
        assert set(found) == kinds
    for failure in found.values():
        assert f"of {failure.of} at [" in failure.detail or f"to {failure.of}" in failure.detail


def test_a_wrong_gradient_is_shown_on_a_small_case() -> None:
    """One key is enough to miss a factor."""
    failure: Any
    (failure,) = held("attend", misses_the_scale, 6).failures
    assert failure.kind == "WrongGradient[q]"
    assert sum(failure.case.sizes.values()) <= 8
    candidate = as_candidate(declaring(misses_the_scale, gradients=True), "wrong", "attend")
    with pytest.raises(type(failure), match="the gradient of q at"):
        csa_spec.check_case(candidate, str(failure.case), "gradients")


@pytest.mark.parametrize("function", WRONG, ids=lambda function: function.__name__)
def test_a_wrong_gradient_has_a_right_forward_pass(function: Callable[..., Any]) -> None:
    """Or it would not be the gradient that is wrong."""
    stage = stage_of(function)
    candidate = as_candidate(function, function.__name__, stage)
    result = run_check(STAGES[stage].checks[0], candidate, STAGES[stage], None, [], stage_cases(stage), 15)
    assert result.failures == []
