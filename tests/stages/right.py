"""Right implementations of every stage: plain loops over the specification, and kernels in the dtype itself.

They share nothing with what ships in ``csa_spec.candidates``. The vectorised ones are built of small parts, so
that a wrong one is a right one with one part replaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from csa_spec.plug.capabilities import Capabilities
from csa_spec.spec import SPEC, CompressorWeights, Geometry, Spec, compress

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
Select = Callable[[Tensor, Tensor, int, int], Tensor]
IndexScores = Callable[[Tensor, Tensor, Tensor], Tensor]
Compressor = Callable[[Tensor, CompressorWeights, Geometry], Tensor]


def declaring(function: Callable[..., Any], **declared: Any) -> Callable[..., Any]:
    """Return a stage that does what ``function`` does and declares capabilities of its own."""

    def stage(*arguments: Any) -> Any:
        return function(*arguments)

    stage.__qualname__ = stage.__name__ = function.__name__
    stage.capabilities = Capabilities(**declared)  # type: ignore[attr-defined]
    return stage


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of accumulators: float32, or float64 where the numbers have that."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# LOOPS: the specification in float64, one query or entry at a time, rounded once.


def attend_loops(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Attend query by query; any index outside of the keys names none."""
    rows = []
    for b in range(len(q)):
        for t in range(q.shape[1]):
            named = [i for i in indices[b, t].tolist() if 0 <= i < kv.shape[1]]
            rows.append(SPEC.attend(q[b, t].double(), kv[b, named].double(), sinks.double(), scale)[0])
    return torch.stack(rows).reshape(q.shape).to(q.dtype)


def select_loops(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Select query by query, the lowest of equal entries first; NaN ranks last."""
    rows, queries, entries = scores.shape
    picks = torch.full((rows, queries, min(top_k, entries)), -1)
    for b in range(rows):
        for t in range(queries):
            visible = SPEC.visible_entries(int(positions[b, t]), compress_ratio)[:entries]
            ranked = [-math.inf if math.isnan(x) else x for x in scores[b, t, : len(visible)].tolist()]
            chosen = SPEC.select(visible, ranked, top_k)
            picks[b, t, : len(chosen)] = torch.tensor(chosen, dtype=torch.long)
    return picks


def index_scores_loops(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """Score pair by pair."""
    scores = index_q.new_zeros(*index_q.shape[:2], index_k.shape[1])
    for b in range(scores.shape[0]):
        for t in range(scores.shape[1]):
            for s in range(scores.shape[2]):
                pair = index_q[b, t].double(), head_weights[b, t].double(), index_k[b, s].double()
                scores[b, t, s] = SPEC.index_score(*pair)
    return scores


def compressor_of(spec: Spec) -> Compressor:
    """Return a compressor that follows the given rules, entry by entry in float64."""

    def compressor(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
        exact = CompressorWeights(
            *(x.double() for x in (weights.wkv, weights.wgate, weights.ape, weights.norm))
        )
        frequencies = spec.layer_frequencies(geometry)
        rows = [
            compress(row.double().clone(), 0, exact, geometry, frequencies, spec) for row in hidden
        ]  # aligned alike
        return torch.stack(rows).to(hidden.dtype)

    return compressor


compressor_loops = compressor_of(SPEC)
compressor_loops.__name__ = compressor_loops.__qualname__ = "compressor_loops"


# KERNELS: in the dtype of the inputs, with accumulators in float32.


def gathered(kv: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return every query's own keys ``[B, S, n, D]``, zeros for none, and which of them there are."""
    named = (indices >= 0) & (indices < kv.shape[1])
    padded = torch.nn.functional.pad(kv, (0, 0, 0, 1))
    rows = torch.where(named, indices, kv.shape[1])
    return padded[torch.arange(len(kv))[:, None, None], rows], named


def sink_softmax(logits: Tensor, sinks: Tensor) -> Tensor:
    """Softmax over the last dimension of ``[B, S, H, n]`` with a sink per head; zeros where all is -inf."""
    peak = torch.maximum(torch.nn.functional.pad(logits, (1, 0), value=-math.inf).amax(-1), sinks)
    peak = torch.where(peak == -math.inf, 0, peak).detach()[..., None]
    exponentials = torch.exp(logits - peak)
    total = exponentials.sum(-1, keepdim=True) + torch.exp(sinks[:, None] - peak)
    return exponentials / torch.where(total == 0, 1, total)


def attend_gather(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Gather the keys of every query; products in the dtype, softmax in float32."""
    keys, named = gathered(kv, indices)
    logits = scale * torch.einsum("bshd,bsnd->bshn", q, keys).to(wide(q.dtype))
    logits = logits.masked_fill(~named[:, :, None], -math.inf)
    p = sink_softmax(logits, sinks.to(logits.dtype))
    return torch.einsum("bshn,bsnd->bshd", p.to(q.dtype), keys)


TILE = 16


def attend_tiles(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Online softmax over tiles of 16 indices, as kernels have it; probabilities are rounded before use."""
    keys, named = gathered(kv, indices)
    accumulate = wide(q.dtype)
    peak = torch.full(q.shape[:3], -math.inf, dtype=accumulate)
    total, out = torch.zeros_like(peak), torch.zeros(q.shape, dtype=accumulate)
    for begin in range(0, indices.shape[-1], TILE):
        tile = keys[:, :, begin : begin + TILE].to(accumulate)
        logits = scale * torch.einsum("bshd,bsnd->bshn", q.to(accumulate), tile)
        logits = logits.masked_fill(~named[:, :, None, begin : begin + TILE], -math.inf)
        higher = torch.maximum(peak, logits.amax(-1))
        safe = torch.where(
            higher == -math.inf, 0, higher
        ).detach()  # a tile without a key must not make a NaN
        factor, p = torch.exp(peak - safe), torch.exp(logits - safe[..., None])
        total = total * factor + p.sum(-1)
        out = out * factor[..., None] + torch.einsum("bshn,bsnd->bshd", p.to(q.dtype).to(accumulate), tile)
        peak = higher.detach()
    last = torch.maximum(peak, sinks.to(accumulate))
    last = torch.where(last == -math.inf, 0, last).detach()
    factor = torch.exp(peak - last)
    total = total * factor + torch.exp(sinks.to(accumulate) - last)
    return (out * (factor / torch.where(total == 0, 1, total))[..., None]).to(q.dtype)


def hidden_entries(scores: Tensor, positions: Tensor, compress_ratio: int) -> Tensor:
    """Return which entries ``[B, S, T]`` a query must not see."""
    return torch.arange(scores.shape[-1]) >= ((positions + 1) // compress_ratio)[..., None]


def select_topk(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """``torch.topk`` over masked scores, done right: a visible -inf still beats what must not be seen."""
    hidden = hidden_entries(scores, positions, compress_ratio)
    ranked = scores.nan_to_num(nan=0.0, neginf=torch.finfo(scores.dtype).min).masked_fill(hidden, -math.inf)
    best, picks = ranked.topk(min(top_k, scores.shape[-1]), dim=-1)
    return torch.where(best == -math.inf, -1, picks)


def select_sort(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Stable sort: among equal scores the lowest entries come first."""
    hidden = hidden_entries(scores, positions, compress_ratio)
    ranked = scores.masked_fill(hidden | scores.isnan(), -math.inf)
    picks = ranked.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
    return torch.where(picks >= ((positions + 1) // compress_ratio)[..., None], -1, picks)


def select_rounded(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Round scores to bfloat16 first: equal there is equal enough, where that is declared."""
    return select_sort(scores.bfloat16(), positions, compress_ratio, top_k)


def index_scores_kernel(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """Products and ReLU in the dtype, the sum over heads in float32."""
    products = torch.einsum("bshd,btd->bsht", index_q, index_k).relu()
    accumulate = wide(index_q.dtype)
    return torch.einsum("bsh,bsht->bst", head_weights.to(accumulate), products.to(accumulate)).to(
        index_q.dtype
    )


def slots(x: Tensor, dim: int, overlap: bool, outside: float) -> Tensor:
    """Lay blocks ``[B, T, m, C]`` out as what each entry pools: the previous block's half, then its own."""
    if not overlap:
        return x
    previous = torch.nn.functional.pad(x[..., :dim], (0, 0, 0, 0, 1, 0), value=outside)[:, : x.shape[1]]
    return torch.cat((previous, x[..., dim:]), dim=2)


def rotated(entries: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """Rotate the trailing channels of ``[B, T, D]``, neighbouring pairs; tables are made in float32."""
    angle = positions[:, None].to(wide(entries.dtype)) * frequencies.to(wide(entries.dtype))
    cos, sin = angle.cos().to(entries.dtype), angle.sin().to(entries.dtype)
    width = 2 * len(frequencies)
    a, b = entries[..., -width::2], entries[..., entries.shape[-1] - width + 1 :: 2]
    turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
    return torch.cat((entries[..., : entries.shape[-1] - width], turned), dim=-1)


def compressor_kernel(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """Projections in the dtype; bias, softmax, sums and norm in float32."""
    m, dim, dtype = geometry.compress_ratio, len(weights.norm), hidden.dtype
    count = geometry.entry_count(hidden.shape[1])
    blocks = hidden[:, : count * m].reshape(len(hidden), count, m, hidden.shape[2])
    content = blocks @ weights.wkv.T
    gate = (blocks @ weights.wgate.T).to(wide(dtype)) + weights.ape
    logits = slots(gate, dim, geometry.overlap, -math.inf).to(wide(dtype))
    values = slots(content, dim, geometry.overlap, 0.0).to(wide(dtype))
    pooled = (logits.softmax(dim=2) * values).sum(dim=2).to(dtype).to(wide(dtype))
    normed = pooled * torch.rsqrt(pooled.square().mean(-1, keepdim=True) + geometry.norm_eps) * weights.norm
    return rotated(normed.to(dtype), m * torch.arange(count), SPEC.layer_frequencies(geometry))


RIGHT: dict[str, tuple[Callable[..., Any], ...]] = {
    "attend": (attend_loops, attend_gather, attend_tiles),
    "select": (select_loops, select_topk, select_sort),
    "index_scores": (index_scores_loops, index_scores_kernel),
    "compressor": (compressor_loops, compressor_kernel),
}
"""By stage."""
