"""Wrong gradients: the forward pass is right."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from csa_spec.bugs.bug import bug
from csa_spec.bugs.compressor import following
from csa_spec.bugs.kernels import Function, attend_from, declaring, gathered, hadamard, logits_of
from csa_spec.candidates.gather import attend
from csa_spec.spec import SPEC, CompressorWeights, Geometry


def gradient_bug(stage: str, *urls: str) -> Callable[[Function], Function]:
    """Register the decorated function, which declares that it has gradients."""

    def register(function: Function) -> Function:
        return bug(stage, *urls)(declaring(gradients=True)(function))

    return register


def instead(forward: Tensor, backward: Tensor) -> Tensor:
    """Return the numbers of the first with the gradients of the second."""
    return forward.detach() + (backward - backward.detach())


# ATTEND


@gradient_bug("attend")
def detaches_values(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Keys get a gradient through the logits only."""
    keys, named = gathered(kv, indices)
    return attend_from(q, keys, named, sinks, scale, values=keys.detach())


@gradient_bug("attend")
def detaches_keys(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Keys get a gradient as values only."""
    keys, named = gathered(kv, indices)
    return attend_from(q, keys.detach(), named, sinks, scale, values=keys)


@gradient_bug("attend")
def detaches_the_sink(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The sink is taken for a constant."""
    return attend(q, kv, indices, sinks.detach(), scale)


@gradient_bug("attend")
def recomputes_without_the_sink(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """The backward pass recomputes probabilities and forgets the sink."""
    plain = attend(q, kv, indices, torch.full_like(sinks, -math.inf), scale)
    return instead(attend(q, kv, indices, sinks, scale), plain)


def _scatters_none_to(row: int, kv: Tensor, indices: Tensor, out: Tensor) -> Tensor:
    if not kv.shape[1]:
        return out
    stray = kv[:, row].nan_to_num(0, 0, 0)[:, None] * (indices == -1).any(-1, keepdim=True)
    return out + (stray - stray.detach())[:, :, None]


@gradient_bug("attend")
def scatters_none_to_the_first_row(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """The gradient of a masked lane is added to row 0."""
    return _scatters_none_to(0, kv, indices, attend(q, kv, indices, sinks, scale))


@gradient_bug("attend")
def scatters_none_to_the_last_row(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """The gradient of a masked lane is added to row -1."""
    return _scatters_none_to(-1, kv, indices, attend(q, kv, indices, sinks, scale))


@gradient_bug("attend")
def misses_the_scale(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The gradient of queries lacks the factor."""
    return attend(instead(q, q / scale), kv, indices, sinks, scale)


@gradient_bug("attend")
def doubles_the_sink(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The gradient of the sink is added by two programs."""
    return attend(q, kv, indices, torch.where(sinks.isinf(), sinks, instead(sinks, 2 * sinks)), scale)


@gradient_bug("attend")
def keeps_the_last_head(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """What one head gives the keys overwrites what the head before gave."""
    last = q.shape[2] - 1
    heads = [
        attend(q[:, :, h : h + 1], kv if h == last else kv.detach(), indices, sinks[h : h + 1], scale)
        for h in range(q.shape[2])
    ]
    return torch.cat(heads, dim=2)


@gradient_bug("attend", "https://github.com/NVIDIA/Megatron-LM/issues/4468")
def overwrites_the_output_that_backward_needs(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """The output is rotated in place, and the backward pass of the softmax reads the rotated one."""
    out = attend(q, kv, indices, sinks, scale)
    keys, named = gathered(kv, indices)
    logits = logits_of(q, keys, named, scale)
    terms = torch.cat((logits, sinks.to(logits.dtype).expand(logits.shape[:-1])[..., None]), -1)
    peak = terms.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(terms.dtype).min)
    exponentials = (terms - peak).exp()
    total = exponentials.sum(-1, keepdim=True)
    summed = torch.einsum("bshn,bsnd->bshd", exponentials[..., :-1], keys.to(terms.dtype))
    # d(summed / total) = (d summed - out d total) / total, with the wrong out
    saved = hadamard(out.detach().to(terms.dtype))
    return instead(out, ((summed - saved * total) / total.detach().clamp(min=1)).to(out.dtype))


@gradient_bug("attend")
def divides_zero_by_zero_behind_a_where(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """A query without keys gets zeros by a where, behind which the gradient of its softmax is NaN."""
    keys, named = gathered(kv, indices)
    logits = logits_of(q, keys, named, scale)
    share = (
        (logits.logsumexp(-1) - sinks.to(logits.dtype)).sigmoid() if indices.shape[-1] else logits.sum(-1)
    )
    probabilities = torch.where(named.any(-1)[:, :, None, None], logits.softmax(-1) * share[..., None], 0)
    return torch.einsum("bshn,bsnd->bshd", probabilities, keys.to(logits.dtype)).to(q.dtype)


@gradient_bug("attend")
def divides_zero_by_zero_where_there_is_no_sink_either(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """As before, with the sink in the softmax: only a query without keys and without a sink has nothing to divide."""
    keys, named = gathered(kv, indices)
    logits = logits_of(q, keys, named, scale)
    terms = torch.cat((logits, sinks.to(logits)[:, None].expand(*logits.shape[:3], 1)), -1)
    weights = terms.softmax(-1)[..., :-1]
    probabilities = torch.where(named.any(-1)[:, :, None, None], weights, 0)
    return torch.einsum("bshn,bsnd->bshd", probabilities, keys.to(logits.dtype)).to(q.dtype)


# COMPRESSOR


@gradient_bug("compressor")
def detaches_the_gate(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """Pooling weights are taken for constants."""
    return following(SPEC)(
        hidden, replace(weights, wgate=weights.wgate.detach(), ape=weights.ape.detach()), geometry
    )


@gradient_bug("compressor")
def detaches_the_bias(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """The position bias is a buffer."""
    return following(SPEC)(hidden, replace(weights, ape=weights.ape.detach()), geometry)


@gradient_bug("compressor")
def doubles_the_gradient_of_tokens(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """Each block adds its part twice."""
    return following(SPEC)(instead(hidden, 2 * hidden), weights, geometry)


@gradient_bug("compressor")
def reaches_the_tail(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """The last token gets a gradient even where no block is complete with it."""
    last = hidden[:, -1:].sum(-1, keepdim=True)
    return following(SPEC)(hidden, weights, geometry) + (last - last.detach())


@gradient_bug("compressor")
def detaches_the_block_before(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """The overlap is read from a buffer of states, which carries no gradient."""
    entries, m = following(SPEC)(hidden, weights, geometry), geometry.compress_ratio
    if not geometry.overlap:
        return entries
    cut = [
        following(SPEC)(torch.cat((hidden[:, : s * m].detach(), hidden[:, s * m :]), 1), weights, geometry)[
            :, s
        ]
        for s in range(entries.shape[1])
    ]
    return torch.stack(cut, 1) if cut else entries
