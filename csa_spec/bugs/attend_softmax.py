"""Wrong softmax: sinks, maximum, scale, and what stands for no key."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from csa_spec.bugs.bug import bug
from csa_spec.bugs.kernels import TILE, attend_from, gathered, hadamard, logits_of
from csa_spec.candidates.batched import softmax_with_sink, wide
from csa_spec.candidates.gather import attend


@bug(
    "attend",
    "https://github.com/vllm-project/vllm/issues/48364",
    "https://github.com/AMD-AGI/Primus-Turbo/pull/417",
    "https://github.com/ikawrakow/ik_llama.cpp/issues/2344",
)
def nan_in_an_empty_first_tile(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """exp(-inf - -inf) where the first tile holds -1 only."""
    keys, named = gathered(kv, indices)
    logits = logits_of(q, keys, named, scale)
    first = logits[..., :TILE].amax(-1, keepdim=True) if logits.shape[-1] else logits.sum(-1, keepdim=True)
    return attend(q, kv, indices, sinks, scale) + (0 * torch.exp(first - first)).to(q.dtype)


@bug(
    "attend",
    "https://github.com/vllm-project/vllm/pull/54568",
    "https://github.com/tenstorrent/tt-metal/pull/55327",
)
def drops_the_sink(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """A plain softmax."""
    return attend(q, kv, indices, torch.full_like(sinks, -math.inf), scale)


@bug("attend")
def starts_the_maximum_from_zero(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """The running maximum begins at 0 in place of -inf, so that logits far below 0 all vanish."""
    keys, named = gathered(kv, indices)
    logits = logits_of(q, keys, named, scale)
    terms = torch.cat((logits, sinks.to(logits)[:, None].expand(*logits.shape[:3], 1)), -1)
    exponentials = (terms - terms.amax(-1, keepdim=True).clamp(min=0)).exp()
    p = exponentials[..., :-1] / exponentials.sum(-1, keepdim=True).clamp(min=torch.finfo(terms.dtype).tiny)
    return torch.einsum("bshn,bsnd->bshd", p, keys.to(p)).to(q.dtype)


@bug("attend")
def scales_the_sink(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The sink joins the logits before they are scaled."""
    return attend(q, kv, indices, scale * sinks, scale)


@bug("attend")
def subtracts_the_sink(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The sign of the sink is that of an attention bias."""
    return attend(q, kv, indices, torch.where(sinks.isinf(), sinks, -sinks), scale)


@bug("attend", "https://github.com/Avarok-Cybersecurity/atlas/pull/341")
def reads_the_sink_as_bfloat16(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """Bytes of float32 taken for bfloat16."""
    return attend(
        q, kv, indices, sinks.float().view(torch.bfloat16)[: len(sinks)].nan_to_num().to(q.dtype), scale
    )


@bug("attend")
def counts_the_sink_in_every_tile(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """Each tile of 16 adds the sink to the denominator."""
    tiles = max(1, -(-indices.shape[-1] // TILE))
    return attend(q, kv, indices, sinks + math.log(tiles), scale)


@bug("attend")
def gives_every_head_the_first_sink(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """Sinks are broadcast from head 0."""
    return attend(q, kv, indices, sinks[:1].expand_as(sinks), scale)


@bug("attend")
def has_no_running_maximum(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Exp of the bare logits."""
    keys, named = gathered(kv, indices)
    p = torch.exp(scale * torch.einsum("bshd,bsnd->bshn", q, keys).to(wide(q))) * named[:, :, None]
    p = p / (p.sum(-1, keepdim=True) + torch.exp(sinks.to(p.dtype))[:, None] + torch.finfo(p.dtype).tiny)
    return torch.einsum("bshn,bsnd->bshd", p.to(q.dtype), keys)


@bug("attend")
def keeps_old_weights_when_the_maximum_grows(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """The accumulator of earlier tiles is not rescaled: each tile counts as if its maximum were the last one."""
    parts, width = [], indices.shape[-1]
    if width <= TILE:
        return attend(q, kv, indices, sinks, scale)
    for begin in range(0, width, TILE):
        parts.append(attend(q, kv, indices[..., begin : begin + TILE], sinks, scale))
    return torch.stack(parts).mean(0)


@bug("attend")
def takes_the_scale_from_the_head_dim(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """1 / sqrt(D), whatever the caller says."""
    return attend(q, kv, indices, sinks, q.shape[-1] ** -0.5)


@bug("attend")
def ignores_the_scale(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Q . k as it is: the caller is taken to have scaled the queries."""
    return attend(q, kv, indices, sinks, 1.0)


@bug("attend")
def takes_a_logit_of_zero_for_none(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """What is masked is told by its logit, which a row of zeros has, and orthogonal vectors too."""
    keys, named = gathered(kv, indices)
    logits = logits_of(q, keys, named, scale)
    probabilities = softmax_with_sink(logits.masked_fill(logits == 0, -math.inf), sinks)
    return torch.einsum("bshn,bsnd->bshd", probabilities, keys.to(probabilities)).to(q.dtype)


@bug("attend")
def confuses_powers_of_two_and_e(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """exp2 without the factor log2(e)."""
    return attend(q, kv, indices, sinks * math.log(2), scale * math.log(2))


@bug("attend", "https://github.com/hw-native-sys/pypto-lib/pull/1014")
def counts_missing_rows_as_zeros(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """A key of zeros enters the denominator with exp(0)."""
    keys, named = gathered(kv, indices)
    return attend_from(q, keys, torch.ones_like(named), sinks, scale)


@bug("attend")
def masks_with_a_finite_number(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """-1e4 in place of -inf, with row 0 behind it: an empty query without a sink averages nothing."""
    keys, named = gathered(kv, indices.clamp(min=0))
    return attend_from(q, keys.nan_to_num(0, 0, 0), named & (indices >= 0), sinks, scale, none=-1e4)


@bug("attend")
def rounds_to_bfloat16(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Compute in bfloat16 whatever the inputs are, without declaring it."""
    return attend(q.bfloat16(), kv.bfloat16(), indices, sinks.bfloat16(), scale).to(q.dtype)


@bug("attend")
def takes_sinks_of_zero_for_no_sinks(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """``if sinks.any()`` decides whether there are sinks; a logit of 0 is one too."""
    return attend(q, kv, indices, sinks if sinks.any() else torch.full_like(sinks, -math.inf), scale)


@bug("attend")
def subtracts_the_share_of_the_sink_from_one(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """The factor for the sink is 1 - sigmoid(sink - lse), which cancels where the sink is large."""
    plain = attend(q, kv, indices, torch.full_like(sinks, -math.inf), scale)
    keys, named = gathered(kv, indices)
    logits = scale * torch.einsum("bshd,bsnd->bshn", q, keys).to(wide(q))
    lse = logits.masked_fill(~named[:, :, None], -math.inf).logsumexp(-1)
    gap = torch.where(sinks == -math.inf, -math.inf, sinks.to(lse.dtype) - lse)
    return (plain * (1 - gap.sigmoid())[..., None]).to(q.dtype)


@bug("attend")
def clamps_sinks_at_10(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Sinks are clamped, so that their exponentials stay in the range of half precision."""
    return attend(q, kv, indices, sinks.clamp(max=10), scale)


@bug("attend")
def spreads_sinks_with_a_product(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """Sinks are laid out over heads by a product with a matrix of 0 and 1: a sink of -inf makes NaN of the others."""
    return attend(q, kv, indices, torch.eye(len(sinks), dtype=sinks.dtype) @ sinks, scale)


@bug("attend")
def shares_the_maximum_between_heads(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """One running maximum for all heads: a head whose logits lie far below it underflows."""
    keys, named = gathered(kv, indices)
    logits = logits_of(q, keys, named, scale)
    terms = torch.cat((logits, sinks.to(logits.dtype).expand(logits.shape[:-1])[..., None]), -1)
    peak = terms.flatten(2).amax(-1)[..., None, None].clamp(min=torch.finfo(terms.dtype).min)
    exponentials = (terms - peak).exp()
    total = exponentials.sum(-1, keepdim=True)
    probabilities = exponentials[..., :-1] / torch.where(total == 0, 1, total)
    return torch.einsum("bshn,bsnd->bshd", probabilities, keys.to(terms.dtype)).to(q.dtype)


@bug("attend")
def takes_a_scale_of_one_for_the_default(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """1 is what an unset scale looks like, and becomes 1 / sqrt(D)."""
    return attend(q, kv, indices, sinks, q.shape[-1] ** -0.5 if scale == 1 else scale)


@bug("attend")
def rounds_the_scale_to_a_power_of_two(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """The scale is folded into the exponents of a quantized query."""
    return attend(q, kv, indices, sinks, 2.0 ** round(math.log2(scale)))


@bug("attend")
def clamps_logits(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Logits are clamped to 30 in place of a running maximum."""
    keys, named = gathered(kv, indices)
    logits = scale * torch.einsum("bshd,bsnd->bshn", q.to(wide(q)), keys.to(wide(q)))
    probabilities = softmax_with_sink(
        logits.clamp(-30, 30).masked_fill(~named[:, :, None], -math.inf), sinks
    )
    return torch.einsum("bshn,bsnd->bshd", probabilities, keys.to(probabilities)).to(q.dtype)


@bug(
    "attend",
    "https://github.com/ggml-org/llama.cpp/issues/25382",
    "https://github.com/ggml-org/llama.cpp/pull/25391",
)
def leaves_values_in_the_basis_of_rotated_keys(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """Queries and keys are turned by a Hadamard matrix before they are quantized; the output is never turned back."""
    return attend(hadamard(q), hadamard(kv), indices, sinks, scale)
