"""In 16 bits: what a kernel keeps has 32, unless it says that it has not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from stages.right import gathered, index_scores_kernel, slots
from torch import Tensor
from torch.nn.functional import linear

from csa_spec import check_case
from csa_spec.candidates.batched import rms_norm, rotate, softmax_with_sink
from csa_spec.candidates.gather import load
from csa_spec.engine.failures import WrongNumbers
from csa_spec.engine.running import CheckResult
from csa_spec.plug.candidate import Candidate
from csa_spec.plug.capabilities import NARROW
from csa_spec.profiles import PROFILES
from csa_spec.spec import CompressorWeights, Geometry
from csa_spec.stages import STAGES, parse_case
from csa_spec.target import Target

RIGHT = load()
DEFAULT = replace(PROFILES["default"], patience=math.inf, sizes=False)
Stage = Callable[..., Tensor]


def finite(kv: Tensor) -> Tensor:
    """Return keys with zeros for those that no list names and that hold what is not a number, or huge ones."""
    return torch.where(kv.isfinite() & (kv.abs() < 1e4), kv, 0)


def attend_with_narrow_logits(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Store logits in the dtype, before they are scaled and after."""
    keys, named = gathered(finite(kv), indices)
    logits = (torch.einsum("bshd,bsnd->bshn", q.float(), keys.float()).to(q.dtype) * scale).float()
    weights = softmax_with_sink(logits.masked_fill(~named[:, :, None], -math.inf), sinks.float())
    return torch.einsum("bshn,bsnd->bshd", weights, keys.float()).to(q.dtype)


def attend_with_a_narrow_running_output(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """Keep the output in the dtype from one tile of 16 keys to the next."""
    keys, named = gathered(finite(kv), indices)
    logits = torch.einsum("bshd,bsnd->bshn", q.float(), keys.float()) * scale
    weights = softmax_with_sink(logits.masked_fill(~named[:, :, None], -math.inf), sinks.float())
    out = torch.zeros_like(q)
    for first in range(0, indices.shape[-1], 16):
        tile = slice(first, first + 16)
        out = (out + torch.einsum("bshn,bsnd->bshd", weights[..., tile], keys[:, :, tile].float())).to(
            q.dtype
        )
    return out


def pool_narrowly(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """Add up the pooling softmax and the entries in the dtype, slot by slot."""
    batch, m, dim = len(hidden), geometry.compress_ratio, len(weights.norm)
    count = hidden.shape[1] // m
    blocks = hidden[:, : count * m]
    content, gate = (
        linear(blocks, weight).reshape(batch, count, m, len(weight))
        for weight in (weights.wkv, weights.wgate)
    )
    gate = (gate + weights.ape).to(hidden.dtype)
    content = slots(content, dim, geometry.overlap, 0.0)
    gate = slots(gate, dim, geometry.overlap, -math.inf)
    terms = (gate - gate.amax(2, keepdim=True)).exp()
    total = pooled = torch.zeros_like(terms[:, :, 0])
    for slot in range(terms.shape[2]):
        total, pooled = total + terms[:, :, slot], pooled + terms[:, :, slot] * content[:, :, slot]
    positions = m * torch.arange(count)
    return rotate(rms_norm(pooled / total, weights.norm, geometry.norm_eps), positions, geometry)


def score_narrowly(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """Add up the heads' products in the dtype."""
    products = torch.einsum("bshd,btd->bsht", index_q, index_k).relu() * head_weights[..., None]
    total = torch.zeros_like(products[:, :, 0])
    for head in range(products.shape[2]):
        total = total + products[:, :, head]
    return total


NARROW_ONES: dict[str, Stage] = {
    "attend: logits": attend_with_narrow_logits,
    "attend: running output": attend_with_a_narrow_running_output,
    "compressor: pooling": pool_narrowly,
}


def specification(
    name: str, dtype: str, seed: int, internal_dtype: str | None, shrinking: bool = True
) -> CheckResult:
    """Run the specification check on a function that keeps what it should keep in 32 bits in 16."""
    stage = name.partition(":")[0]
    declared = replace(RIGHT.capabilities, internal_dtype=internal_dtype)
    candidate = Candidate(name, {stage: NARROW_ONES[name]}, declared)
    target = Target(candidate, STAGES[stage], "", dtype, "cpu", DEFAULT, seed)
    return target.run(target.checks[0], enough=1, shrinking=shrinking, naming=False)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", NARROW_ONES)
def test_what_is_kept_in_16_bits_is_found_unless_it_is_declared(name: str, dtype: str) -> None:
    """In default runs, with each of three seeds; and the failure is said to look like that."""
    (failure,) = specification(name, dtype, 0, None).failures
    assert failure.over_budget is not None
    (remark,) = failure.remarks
    assert f"it would pass with internal_dtype='{dtype}' declared" in remark
    for seed in (1, 2) if dtype == "bfloat16" else ():
        assert specification(name, dtype, seed, None, shrinking=False).failures
    assert not specification(name, dtype, 0, dtype).failures


def test_many_heads_added_up_in_bfloat16_are_found() -> None:
    """Products may be stored, with their weights and without; their sum is one of accumulators."""
    case = parse_case("index_scores S=8 T=64 HI=512 DI=8 values=gaussian dtype=bfloat16")
    with pytest.raises(WrongNumbers):
        check_case(score_narrowly, case)
    check_case(index_scores_kernel, case)


@pytest.mark.parametrize("dtype", NARROW)
def test_an_error_that_no_rounding_explains_has_no_such_remark(dtype: str) -> None:
    """The remark would send people the wrong way."""
    wrong = Candidate(
        "wrong", {"attend": lambda q, *others: 1.1 * RIGHT.functions("attend")[""](q, *others)}
    )
    target = Target(wrong, STAGES["attend"], "", dtype, "cpu", DEFAULT, 0)
    for failure in target.run(target.checks[0], naming=False).failures:
        assert not any("internal_dtype" in remark for remark in failure.remarks)
