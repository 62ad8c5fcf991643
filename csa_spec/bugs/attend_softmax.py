"""Wrong softmax: sinks, maximum, scale, and masking."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from csa_spec.bugs.calls import TILE, AttendCall, attend_bug, hadamard
from csa_spec.candidates.batched import softmax_with_sink, wide


@attend_bug.function(
    "https://github.com/vllm-project/vllm/issues/48364",
    "https://github.com/AMD-AGI/Primus-Turbo/pull/417",
    "https://github.com/ikawrakow/ik_llama.cpp/issues/2344",
)
def returns_nan_when_the_first_tile_is_empty(call: AttendCall) -> Tensor:
    """A first tile that holds nothing but -1 makes exp(-inf - -inf), which is NaN."""
    logits = call.logits(*call.gathered())
    first = logits[..., :TILE].amax(-1, keepdim=True) if logits.shape[-1] else logits.sum(-1, keepdim=True)
    return call.right() + (0 * torch.exp(first - first)).to(call.q.dtype)


attend_bug(
    "drops_the_sink",
    "The sink is left out, which makes it a plain softmax.",
    "https://github.com/vllm-project/vllm/pull/54568",
    "https://github.com/tenstorrent/tt-metal/pull/55327",
    sinks=lambda call: call.no_sinks,
)


@attend_bug.function()
def starts_the_running_maximum_at_zero(call: AttendCall) -> Tensor:
    """The running maximum begins at 0 instead of -inf, so that logits far below 0 all vanish."""
    keys, named = call.gathered()
    terms = call.terms(call.logits(keys, named))
    exponentials = (terms - terms.amax(-1, keepdim=True).clamp(min=0)).exp()
    total = exponentials.sum(-1, keepdim=True).clamp(min=torch.finfo(terms.dtype).tiny)
    return call.mix(exponentials[..., :-1] / total, keys)


attend_bug(
    "scales_the_sink",
    "The sink joins the logits before they are scaled.",
    sinks=lambda call: call.scale * call.sinks,
)
attend_bug(
    "negates_the_sink",
    "The sink has the wrong sign.",
    sinks=lambda call: torch.where(call.sinks.isinf(), call.sinks, -call.sinks),
)
attend_bug(
    "reads_the_sink_as_bfloat16",
    "Sinks are stored in float32 and their bytes are read as bfloat16.",
    "https://github.com/Avarok-Cybersecurity/atlas/pull/341",
    sinks=lambda call: (
        call.sinks.float().view(torch.bfloat16)[: len(call.sinks)].nan_to_num().to(call.q.dtype)
    ),
)
attend_bug(
    "counts_the_sink_in_every_tile",
    "Each tile of 16 indices adds the sink to the denominator.",
    sinks=lambda call: call.sinks + math.log(max(1, -(-call.indices.shape[-1] // TILE))),
)
attend_bug(
    "uses_the_sink_of_head_0_for_every_head",
    "The sink of head 0 is broadcast over all heads.",
    sinks=lambda call: call.sinks[:1].expand_as(call.sinks),
)


@attend_bug.function()
def does_not_subtract_the_maximum(call: AttendCall) -> Tensor:
    """Logits are exponentiated without subtracting their maximum, and overflow."""
    keys, named = call.gathered()
    p = torch.exp(call.scale * torch.einsum("bshd,bsnd->bshn", call.q, keys).to(wide(call.q)))
    p = p * named[:, :, None]
    sinks = torch.exp(call.sinks.to(p.dtype))[:, None]
    p = p / (p.sum(-1, keepdim=True) + sinks + torch.finfo(p.dtype).tiny)
    return torch.einsum("bshn,bsnd->bshd", p.to(call.q.dtype), keys)


@attend_bug.function()
def does_not_rescale_when_the_maximum_grows(call: AttendCall) -> Tensor:
    """Earlier tiles are not rescaled: each tile counts as if its maximum were the last one."""
    width = call.indices.shape[-1]
    if width <= TILE:
        return call.right()
    tiles = [call.right(indices=call.indices[..., i : i + TILE]) for i in range(0, width, TILE)]
    return torch.stack(tiles).mean(0)


attend_bug(
    "computes_the_scale_from_the_head_dim",
    "The scale is 1 / sqrt(D), whatever the caller passes.",
    scale=lambda call: call.q.shape[-1] ** -0.5,
)
attend_bug(
    "ignores_the_scale",
    "The products q . k are not scaled, as if the caller had scaled the queries.",
    scale=lambda call: 1.0,
)


@attend_bug.function()
def masks_keys_whose_logit_is_zero(call: AttendCall) -> Tensor:
    """A logit of 0 marks a masked key, but a key of zeros and orthogonal vectors give 0 as well."""
    keys, named = call.gathered()
    logits = call.logits(keys, named)
    return call.mix(softmax_with_sink(logits.masked_fill(logits == 0, -math.inf), call.sinks), keys)


attend_bug(
    "uses_exp2_without_log2_e",
    "exp2 takes the place of exp, without the factor log2(e) on its argument.",
    sinks=lambda call: call.sinks * math.log(2),
    scale=lambda call: call.scale * math.log(2),
)


@attend_bug.function("https://github.com/hw-native-sys/pypto-lib/pull/1014")
def counts_unused_slots_as_zero_keys(call: AttendCall) -> Tensor:
    """An index of -1 is read as a key of zeros, which adds exp(0) to the denominator."""
    keys, named = call.gathered()
    return call.attend_to(keys, torch.ones_like(named))


@attend_bug.function()
def masks_logits_with_a_finite_number(call: AttendCall) -> Tensor:
    """Logits are masked with -1e4: a query without keys and sink returns the mean of masked keys."""
    keys, named = replace(call, indices=call.indices.clamp(min=0)).gathered()
    return call.attend_to(keys.nan_to_num(0, 0, 0), named & (call.indices >= 0), none=-1e4)


@attend_bug.function()
def rounds_to_bfloat16(call: AttendCall) -> Tensor:
    """Everything is computed in bfloat16 whatever the dtype of the inputs, and this is not declared."""
    rounded = call.right(q=call.q.bfloat16(), kv=call.kv.bfloat16(), sinks=call.sinks.bfloat16())
    return rounded.to(call.q.dtype)


attend_bug(
    "ignores_sinks_that_are_all_zero",
    "`if sinks.any()` decides whether there are sinks, but a sink of 0 counts in the softmax.",
    sinks=lambda call: call.sinks if call.sinks.any() else call.no_sinks,
)


@attend_bug.function()
def subtracts_the_share_of_the_sink_from_one(call: AttendCall) -> Tensor:
    """The factor for the sink is 1 - sigmoid(sink - lse), which cancels where the sink is large."""
    plain = call.right(sinks=call.no_sinks)
    keys, named = call.gathered()
    logits = call.scale * torch.einsum("bshd,bsnd->bshn", call.q, keys).to(wide(call.q))
    lse = logits.masked_fill(~named[:, :, None], -math.inf).logsumexp(-1)
    gap = torch.where(call.sinks == -math.inf, -math.inf, call.sinks.to(lse.dtype) - lse)
    return (plain * (1 - gap.sigmoid())[..., None]).to(call.q.dtype)


attend_bug(
    "clamps_sinks_at_10",
    "Sinks are clamped to 10, so that their exponentials stay in the range of half precision.",
    sinks=lambda call: call.sinks.clamp(max=10),
)
attend_bug(
    "broadcasts_sinks_by_a_matrix_product",
    "Sinks are broadcast by a product with a 0/1 matrix: one sink of -inf turns the others into NaN.",
    sinks=lambda call: torch.eye(len(call.sinks), dtype=call.sinks.dtype) @ call.sinks,
)


@attend_bug.function()
def shares_the_maximum_across_heads(call: AttendCall) -> Tensor:
    """All heads share one running maximum: a head whose logits lie far below it underflows."""
    keys, named = call.gathered()
    terms = call.terms(call.logits(keys, named))
    peak = terms.flatten(2).amax(-1)[..., None, None].clamp(min=torch.finfo(terms.dtype).min)
    exponentials = (terms - peak).exp()
    total = exponentials.sum(-1, keepdim=True)
    return call.mix(exponentials[..., :-1] / torch.where(total == 0, 1, total), keys)


attend_bug(
    "reads_a_scale_of_1_as_unset",
    "A scale of 1 is taken for one that was not set, and replaced by 1 / sqrt(D).",
    scale=lambda call: call.q.shape[-1] ** -0.5 if call.scale == 1 else call.scale,
)
attend_bug(
    "rounds_the_scale_to_a_power_of_two",
    "The scale is folded into the exponents of a quantized query, and so rounded to a power of two.",
    scale=lambda call: 2.0 ** round(math.log2(call.scale)),
)


@attend_bug.function()
def clamps_logits_to_30(call: AttendCall) -> Tensor:
    """Logits are clamped to between -30 and 30 instead of subtracting their maximum."""
    keys, named = call.gathered()
    logits = call.logits(keys, torch.ones_like(named)).clamp(-30, 30)
    return call.mix(softmax_with_sink(logits.masked_fill(~named[:, :, None], -math.inf), call.sinks), keys)


attend_bug(
    "leaves_values_in_the_hadamard_basis",
    "Queries and keys are multiplied by a Hadamard matrix, and the output is not turned back.",
    "https://github.com/ggml-org/llama.cpp/issues/25382",
    "https://github.com/ggml-org/llama.cpp/pull/25391",
    q=lambda call: hadamard(call.q),
    kv=lambda call: hadamard(call.kv),
)
