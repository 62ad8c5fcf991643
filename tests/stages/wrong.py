"""Wrong stage functions, one mistake each, and what the suite must say about them.

Most are a right kernel, or the rules of the specification, with one part replaced. Where the mistake is one that
somebody made, its URL is there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from csa_spec.spec import SPEC, CompressorWeights, Geometry
from csa_spec.spec.compressor import Half, PooledToken
from csa_spec.spec.rope import rope_frequencies
from stages.right import (
    TILE,
    attend_gather,
    compressor_kernel,
    compressor_loops,
    compressor_of,
    gathered,
    hidden_entries,
    index_scores_kernel,
    select_sort,
    sink_softmax,
    wide,
)

# ATTEND


def _attend_with(
    q: Tensor, keys: Tensor, named: Tensor, sinks: Tensor, scale: float, none: float = -math.inf
) -> Tensor:
    """Attend from every query to its own keys ``[B, S, n, D]``; ``named [B, S, n]`` says which of them there are."""
    logits = scale * torch.einsum("bshd,bsnd->bshn", q, keys).to(wide(q.dtype))
    logits = logits.masked_fill(~named[:, :, None], none)
    p = sink_softmax(logits, sinks.to(logits.dtype))
    return torch.einsum("bshn,bsnd->bshd", p.to(q.dtype), keys)


def nan_in_an_empty_first_tile(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """exp(-inf - -inf) where the first tile holds -1 only: https://github.com/vllm-project/vllm/issues/48364."""
    keys, named = gathered(kv, indices)
    logits = scale * torch.einsum("bshd,bsnd->bshn", q, keys).to(wide(q.dtype))
    logits = logits.masked_fill(~named[:, :, None], -math.inf)
    first = logits[..., :TILE].amax(-1, keepdim=True) if logits.shape[-1] else logits.sum(-1, keepdim=True)
    return attend_gather(q, kv, indices, sinks, scale) + (0 * torch.exp(first - first)).to(q.dtype)


def starts_from_row_zero(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """A query without keys attends to row 0: https://github.com/hw-native-sys/pypto-lib/pull/234."""
    if not indices.shape[-1] or not kv.shape[1]:
        return torch.zeros_like(q)
    empty = (indices < 0).all(-1, keepdim=True) & (torch.arange(indices.shape[-1]) == 0)
    return attend_gather(q, kv, torch.where(empty, 0, indices), sinks, scale)


def drops_the_sink(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """A plain softmax: https://github.com/vllm-project/vllm/pull/54568."""
    return attend_gather(q, kv, indices, torch.full_like(sinks, -math.inf), scale)


def scales_the_sink(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The sink joins the logits before they are scaled."""
    return attend_gather(q, kv, indices, scale * sinks, scale)


def subtracts_the_sink(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The sign of the sink is that of an attention bias."""
    return attend_gather(q, kv, indices, torch.where(sinks.isinf(), sinks, -sinks), scale)


def reads_the_sink_as_bfloat16(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Bytes of float32 taken for bfloat16: https://github.com/Avarok-Cybersecurity/atlas/pull/341."""
    return attend_gather(
        q, kv, indices, sinks.float().view(torch.bfloat16)[: len(sinks)].nan_to_num().to(q.dtype), scale
    )


def counts_the_sink_in_every_tile(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Each tile of 16 adds the sink to the denominator."""
    tiles = max(1, -(-indices.shape[-1] // TILE))
    return attend_gather(q, kv, indices, sinks + math.log(tiles), scale)


def gives_every_head_the_first_sink(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Sinks are broadcast from head 0."""
    return attend_gather(q, kv, indices, sinks[:1].expand_as(sinks), scale)


def hides_key_zero(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """-1 is clamped to 0 and scattered last: https://github.com/NVIDIA-NeMo/Automodel/issues/2144."""
    lost = (indices == 0) & (indices == -1).any(-1, keepdim=True)
    return attend_gather(q, kv, indices.masked_fill(lost, -1), sinks, scale)


def takes_none_for_row_zero(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """-1 is clamped to 0 and never masked."""
    return attend_gather(q, kv, indices.clamp(min=0), sinks, scale)


def wraps_none_to_the_last_row(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """An index of -1 is the last row in Python."""
    return attend_gather(q, kv, indices % max(1, kv.shape[1]), sinks, scale)


def reads_padded_lanes(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Lanes after the list hold 0: https://github.com/hw-native-sys/pypto-lib/pull/615."""
    return attend_gather(q, kv, pad(indices, (0, -indices.shape[-1] % TILE)), sinks, scale)


def ignores_the_first_index(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The first key is taken to be row 0: https://github.com/hw-native-sys/pypto-lib/pull/158."""
    first = (torch.arange(indices.shape[-1]) == 0) & (indices >= 0)
    return attend_gather(q, kv, torch.where(first, 0, indices), sinks, scale)


def ignores_the_list(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The first n rows in place of those that the list names."""
    prefix = torch.arange(indices.shape[-1]).expand_as(indices)
    return attend_gather(q, kv, torch.where(indices < 0, -1, prefix), sinks, scale)


def stops_at_the_first_none(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """A list ends at its first -1."""
    ended = (indices < 0).cumsum(-1) > 0
    return attend_gather(q, kv, indices.masked_fill(ended, -1), sinks, scale)


def reads_as_many_as_there_are(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The count of valid indices is taken for their extent."""
    count = (indices >= 0).sum(-1, keepdim=True)
    return attend_gather(q, kv, indices.masked_fill(torch.arange(indices.shape[-1]) >= count, -1), sinks, scale)


def reads_whole_tiles_only(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The number of tiles is rounded down, but for the first: https://github.com/hw-native-sys/pypto-lib/pull/910."""
    width = indices.shape[-1]
    return attend_gather(q, kv, indices[..., : width if width < TILE else width // TILE * TILE], sinks, scale)


def has_no_running_maximum(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Exp of the bare logits."""
    keys, named = gathered(kv, indices)
    p = torch.exp(scale * torch.einsum("bshd,bsnd->bshn", q, keys).to(wide(q.dtype))) * named[:, :, None]
    p = p / (p.sum(-1, keepdim=True) + torch.exp(sinks.to(p.dtype))[:, None] + torch.finfo(p.dtype).tiny)
    return torch.einsum("bshn,bsnd->bshd", p.to(q.dtype), keys)


def keeps_old_weights_when_the_maximum_grows(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """The accumulator of earlier tiles is not rescaled: each tile counts as if its maximum were the last one."""
    parts, width = [], indices.shape[-1]
    if width <= TILE:
        return attend_gather(q, kv, indices, sinks, scale)
    for begin in range(0, width, TILE):
        parts.append(attend_gather(q, kv, indices[..., begin : begin + TILE], sinks, scale))
    return torch.stack(parts).mean(0)


def takes_the_scale_from_the_head_dim(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """1 / sqrt(D), whatever the caller says."""
    return attend_gather(q, kv, indices, sinks, q.shape[-1] ** -0.5)


def confuses_powers_of_two_and_e(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """exp2 without the factor log2(e)."""
    return attend_gather(q, kv, indices, sinks * math.log(2), scale * math.log(2))


def takes_keys_of_the_next_row(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The offset of a batch row is added twice: https://github.com/vllm-project/vllm/pull/41834."""
    return attend_gather(q, kv.roll(-1, 0), indices, sinks, scale)


def sees_what_other_queries_gathered(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """All picks in one row without a block mask: https://github.com/huggingface/transformers/issues/45758."""
    everything = indices.flatten(1)[:, None].expand(-1, indices.shape[1], -1)
    return attend_gather(q, kv, everything, sinks, scale)


def counts_missing_rows_as_zeros(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """A key of zeros enters the denominator with exp(0): https://github.com/hw-native-sys/pypto-lib/pull/1014."""
    keys, named = gathered(kv, indices)
    return _attend_with(q, keys, torch.ones_like(named), sinks, scale)


def masks_with_a_finite_number(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """-1e4 in place of -inf, with row 0 behind it: an empty query without a sink averages nothing."""
    keys, named = gathered(kv, indices.clamp(min=0))
    return _attend_with(q, keys.nan_to_num(0, 0, 0), named & (indices >= 0), sinks, scale, none=-1e4)


def multiplies_unused_rows_by_zero(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Dense, with probabilities of exactly 0: NaN in a stale row of the cache is still NaN."""
    rows = torch.arange(kv.shape[1])
    named = (indices[..., None] == rows).any(2) if indices.shape[-1] else torch.zeros(*q.shape[:2], len(rows)).bool()
    keys = kv[:, None].expand(-1, q.shape[1], -1, -1)
    return _attend_with(q, keys, named, sinks, scale)


def forgets_half_of_the_queries(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Each pair of queries gets the answer of its first one."""
    first = torch.arange(q.shape[1]) // 2 * 2
    return attend_gather(q, kv, indices, sinks, scale)[:, first]


def rounds_to_bfloat16(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Compute in bfloat16 whatever the inputs are, without declaring it."""
    return attend_gather(q.bfloat16(), kv.bfloat16(), indices, sinks.bfloat16(), scale).to(q.dtype)


def returns_zeros(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The kernel was never launched."""
    return torch.zeros_like(q)


def returns_float32(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The accumulator is handed out."""
    return attend_gather(q, kv, indices, sinks, scale).float()


def returns_heads_first(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """[B, H, S, D], as most attention functions have it."""
    return attend_gather(q, kv, indices, sinks, scale).transpose(1, 2)


def fails_without_keys(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The largest logit of no logits."""
    (scale * q @ kv.mT[:, None]).amax(-1)
    return attend_gather(q, kv, indices, sinks, scale)


# SELECT


def _best(scores: Tensor, hidden: Tensor, top_k: int) -> Tensor:
    """Return the best entries of those that are not hidden, -1 for none."""
    ranked = scores.double().nan_to_num(-1e300, 1e300, -1e300).masked_fill(hidden, -math.inf)
    best, picks = ranked.topk(min(top_k, scores.shape[-1]), dim=-1)
    return torch.where(best == -math.inf, -1, picks)


def _beyond(scores: Tensor, visible: Tensor) -> Tensor:
    return torch.arange(scores.shape[-1]) >= visible[..., None]


def sees_the_unfinished_block(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """S <= p // m: https://github.com/vllm-project/tpu-inference/issues/3536."""
    return _best(scores, _beyond(scores, positions // compress_ratio + 1), top_k)


def hides_a_block_from_its_last_token(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """S < p // m: the paper's formula, which counts from 1, read from 0."""
    return _best(scores, _beyond(scores, positions // compress_ratio), top_k)


def sees_everything(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """No mask at all: https://github.com/huggingface/transformers/issues/45820."""
    return _best(scores, torch.zeros_like(scores, dtype=torch.bool), top_k)


def masks_after_the_top_k(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Hidden entries are dropped from the list, and their places are lost."""
    picks = _best(scores, torch.zeros_like(scores, dtype=torch.bool), top_k)
    return torch.where(picks >= ((positions + 1) // compress_ratio)[..., None], -1, picks)


def leaves_hidden_picks_in_the_list(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Indices of -inf are not replaced by -1."""
    ranked = scores.nan_to_num(0.0).masked_fill(hidden_entries(scores, positions, compress_ratio), -math.inf)
    return ranked.topk(min(top_k, scores.shape[-1]), dim=-1).indices


def fills_up_with_the_best(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Where fewer entries than k are visible, the best one is repeated."""
    picks = select_sort(scores, positions, compress_ratio, top_k)
    return torch.where(picks < 0, picks[..., :1], picks)


def finds_equal_scores_at_the_same_place(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Looks each of the k best values up: equal ones are all found at the first of them."""
    picks = select_sort(scores, positions, compress_ratio, top_k)
    values = scores.gather(-1, picks.clamp(min=0)) if picks.numel() else scores[..., :0]
    rows = values[..., None] == scores[..., None, :]
    first = rows.int().argmax(-1) if rows.numel() else picks
    return torch.where((picks < 0) | values.isnan(), picks, first)


def takes_everything_visible(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """No top-k: https://github.com/hw-native-sys/pypto-lib/pull/593."""
    return _best(scores, hidden_entries(scores, positions, compress_ratio), scores.shape[-1])


def takes_one_too_few(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Off by one in k."""
    return select_sort(scores, positions, compress_ratio, max(0, top_k - 1))


def takes_every_tie(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Everything at or above the k-th score."""
    hidden = hidden_entries(scores, positions, compress_ratio)
    ranked = scores.double().nan_to_num(-1e300, 1e300, -1e300).masked_fill(hidden, -math.inf)
    if not 0 < top_k < scores.shape[-1]:
        return select_sort(scores, positions, compress_ratio, top_k)
    kth = ranked.topk(top_k, dim=-1).values[..., -1:]
    return torch.where((ranked >= kth) & ~hidden, torch.arange(scores.shape[-1]), -1)


def drops_ties(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Many ties at the k-th score emit -1 among required slots: https://github.com/sgl-project/sglang/pull/30645."""
    picks = select_sort(scores, positions, compress_ratio, top_k)
    values = scores.gather(-1, picks.clamp(min=0)) if picks.numel() else scores[..., :0]
    tied = (values == values[..., -1:]) & (values == values[..., :1].roll(0)).logical_not()
    crowded = tied.sum(-1, keepdim=True) > 1
    return torch.where(tied & crowded, -1, picks)


def ranks_by_the_high_bits(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """One pass of a radix selection: sign and exponent, and no second pass."""
    mantissa, exponent = torch.frexp(scores)
    coarse = torch.ldexp(torch.where(mantissa == 0, 0.0, mantissa.sign() / 2), exponent)
    return select_sort(
        torch.where(scores.isfinite(), coarse.to(scores.dtype), scores), positions, compress_ratio, top_k
    )


def ranks_in_bfloat16(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Scores are rounded before they are compared, without declaring it."""
    return select_sort(scores.bfloat16(), positions, compress_ratio, top_k)


def buffers_4096_candidates(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Candidates that share the high bits of the k-th are cut at 4096: https://github.com/sgl-project/sglang/issues/36807."""
    coarse = scores.bfloat16().double().masked_fill(hidden_entries(scores, positions, compress_ratio), -math.inf)
    if top_k >= scores.shape[-1] or top_k == 0:
        return select_sort(scores, positions, compress_ratio, top_k)
    bucket = coarse == coarse.nan_to_num().topk(top_k, dim=-1).values[..., -1:]
    lost = bucket & (bucket.cumsum(-1) > 4096)
    return select_sort(scores.masked_fill(lost, -math.inf), positions, compress_ratio, top_k)


def writes_nan_nowhere(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Ranks by counting; NaN leaves slots unwritten: https://github.com/vllm-project/vllm/issues/49896."""
    visible = ((positions + 1) // compress_ratio)[..., None]
    picks = select_sort(scores, positions, compress_ratio, top_k)
    values = scores.gather(-1, picks.clamp(min=0)) if picks.numel() else scores[..., :0]
    return torch.where(values.isnan() & (picks >= 0) & (visible > 0), 2**31 - 1, picks)


def pads_with_zeros(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Hidden scores become 0, which beats a negative one: https://github.com/sgl-project/sglang/pull/35429."""
    hidden = hidden_entries(scores, positions, compress_ratio)
    picks = scores.nan_to_num().masked_fill(hidden, 0).topk(min(top_k, scores.shape[-1]), dim=-1).indices
    return torch.where(picks >= ((positions + 1) // compress_ratio)[..., None], -1, picks)


def selects_for_the_last_query(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """One selection for all queries: https://github.com/ml-explore/mlx-lm/pull/1189."""
    picks = select_sort(scores, positions, compress_ratio, top_k)
    return picks[:, -1:].expand_as(picks).contiguous()


def selects_by_the_first_query(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Scores of query 0 decide for all; each still has its own mask."""
    return select_sort(scores[:, :1].expand_as(scores), positions, compress_ratio, top_k)


def assumes_positions_from_zero(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Right for a prefill, and for nothing after it."""
    return select_sort(scores, torch.arange(scores.shape[1]).expand_as(positions), compress_ratio, top_k)


def has_one_position_for_a_call(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """All queries of a call see what its first one sees."""
    return select_sort(scores, positions[:, :1].expand_as(positions), compress_ratio, top_k)


def takes_positions_of_the_first_row(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Positions are broadcast from row 0."""
    return select_sort(scores, positions[:1].expand_as(positions), compress_ratio, top_k)


def takes_the_worst(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Ascending order."""
    return select_sort(-scores, positions, compress_ratio, top_k)


def takes_positive_scores_only(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """A score of 0 or less is taken for none."""
    picks = select_sort(scores, positions, compress_ratio, top_k)
    values = scores.gather(-1, picks.clamp(min=0)) if picks.numel() else scores[..., :0]
    return torch.where(values <= 0, -1, picks)


def points_behind_the_entries(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """None is T, the column that a mask has for it, in place of -1."""
    picks = select_sort(scores, positions, compress_ratio, top_k)
    return torch.where(picks < 0, scores.shape[-1], picks)


# INDEX SCORES


def has_no_relu(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """Products as they are: https://github.com/huggingface/transformers/pull/44364."""
    return torch.einsum("bsh,bshd,btd->bst", *(x.to(wide(x.dtype)) for x in (head_weights, index_q, index_k))).to(
        index_q.dtype
    )


def folds_heads(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """One query of all heads, then ReLU: https://github.com/sgl-project/sglang/issues/33246."""
    return has_no_relu(index_q, index_k, head_weights).relu()


def applies_relu_to_the_terms(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """relu(w q . k): a negative weight times a positive product is lost."""
    terms = torch.einsum("bsh,bshd,btd->bsht", head_weights, index_q, index_k).relu()
    return terms.to(wide(terms.dtype)).sum(2).to(index_q.dtype)


def takes_magnitudes(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """|q . k| in place of ReLU."""
    products = torch.einsum("bshd,btd->bsht", index_q, index_k).abs()
    return torch.einsum("bsh,bsht->bst", head_weights, products)


def squashes_weights(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """Sigmoid of the head weights: https://github.com/ml-explore/mlx-lm/pull/1189."""
    return index_scores_kernel(index_q, index_k, head_weights.sigmoid())


def takes_the_mean_over_heads(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """Mean in place of sum: https://github.com/ml-explore/mlx-lm/pull/1189."""
    return index_scores_kernel(index_q, index_k, head_weights / head_weights.shape[-1])


def scales_by_the_head_dim(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """The constant that the weights hold already."""
    return index_scores_kernel(index_q, index_k, head_weights * index_q.shape[-1] ** -0.5)


def scores_whole_tiles_only(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """Entries after the last whole tile of 4 keep 0: https://github.com/hw-native-sys/pypto-lib/pull/910."""
    scores = index_scores_kernel(index_q, index_k, head_weights)
    done = scores.shape[-1] if scores.shape[-1] < 4 else scores.shape[-1] // 4 * 4
    return scores.masked_fill(torch.arange(scores.shape[-1]) >= done, 0)


def leaves_minus_infinity(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """Scores past the length of the chunk stay -inf: https://github.com/hw-native-sys/pypto-lib/issues/592."""
    scores = index_scores_kernel(index_q, index_k, head_weights)
    return scores.masked_fill(torch.arange(scores.shape[-1]) >= index_q.shape[1], -math.inf)


def takes_weights_of_the_next_query(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """Off by one in the head weights."""
    return index_scores_kernel(index_q, index_k, head_weights.roll(-1, 1))


def takes_entries_of_the_next_row(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """The offset of a batch row is added twice: https://github.com/vllm-project/vllm/pull/41834."""
    return index_scores_kernel(index_q, index_k.roll(-1, 0), head_weights)


def scores_for_the_last_query(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """One list of scores for all queries."""
    scores = index_scores_kernel(index_q, index_k, head_weights)
    return scores[:, -1:].expand_as(scores).contiguous()


def scores_in_bfloat16(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """Queries and keys are rounded first, without declaring it."""
    return index_scores_kernel(index_q.bfloat16(), index_k.bfloat16(), head_weights.bfloat16()).to(index_q.dtype)


def uses_one_head(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """Head 0 only."""
    return index_scores_kernel(index_q[:, :, :1], index_k, head_weights[:, :, :1])


# COMPRESSOR: rules of the specification replaced.


def _swapped(half: Half, dim: int, overlap: bool) -> slice:
    return slice(dim, 2 * dim) if overlap and half is Half.PREVIOUS else slice(0, dim)


def _own_block(s: int, compress_ratio: int, overlap: bool) -> list[PooledToken]:
    return SPEC.pooled_tokens(0 if s == 0 else s, compress_ratio, overlap)[-compress_ratio:]


def _twice(s: int, compress_ratio: int, overlap: bool) -> list[PooledToken]:
    pooled = SPEC.pooled_tokens(s, compress_ratio, overlap)
    return [one._replace(token=s * compress_ratio + one.place) for one in pooled]


def _two_back(s: int, compress_ratio: int, overlap: bool) -> list[PooledToken]:
    pooled = SPEC.pooled_tokens(s, compress_ratio, overlap)
    return [one._replace(token=one.token - compress_ratio) if one.half is Half.PREVIOUS and s > 1 else one
            for one in pooled]  # fmt: skip


def _reversed(s: int, compress_ratio: int, overlap: bool) -> list[PooledToken]:
    pooled = SPEC.pooled_tokens(s, compress_ratio, overlap)
    return [one._replace(place=compress_ratio - 1 - one.place) for one in pooled]


def _one_late(s: int, compress_ratio: int, overlap: bool) -> list[PooledToken]:
    pooled = SPEC.pooled_tokens(s, compress_ratio, overlap)
    return [one._replace(token=max(0, one.token - 1)) for one in pooled]


def _across_channels(values: Tensor, logits: Tensor) -> Tensor:
    return (torch.softmax(logits, dim=1) * values).sum(dim=0)


def _shared(values: Tensor, logits: Tensor) -> Tensor:
    return (torch.softmax(logits.mean(dim=1, keepdim=True), dim=0) * values).sum(dim=0)


def _unsafe(values: Tensor, logits: Tensor) -> Tensor:
    weights = torch.exp(logits.float())
    return (weights / weights.sum(dim=0) * values).sum(dim=0)


def _half_split(vectors: Tensor, position: int, frequencies: Tensor) -> Tensor:
    width = 2 * len(frequencies)
    plain, turned = vectors[..., :-width], vectors[..., -width:]
    a, b = turned.chunk(2, dim=-1)
    cos, sin = torch.cos(position * frequencies), torch.sin(position * frequencies)
    return torch.cat((plain, a * cos - b * sin, a * sin + b * cos), dim=-1)


def _leading(vectors: Tensor, position: int, frequencies: Tensor) -> Tensor:
    width = 2 * len(frequencies)
    return torch.cat((SPEC.rotate(vectors[..., :width], position, frequencies), vectors[..., width:]), dim=-1)


def _following(**rules: Any) -> Callable[..., Tensor]:
    return compressor_of(replace(SPEC, **rules))


swaps_the_halves = _following(half_columns=_swapped)
"""Previous reads the second half: transformers calls them Ca and Cb, the paper b and a."""
does_not_overlap = _following(pooled_tokens=_own_block)
"""Pools its own block only: https://github.com/NVIDIA-NeMo/Automodel/pull/2039."""
pools_its_own_block_twice = _following(pooled_tokens=_twice)
"""The previous role is filled from the same block."""
reads_two_blocks_back = _following(pooled_tokens=_two_back)
"""The overlap state is that of the block before: https://github.com/GDzhu01/vllm-ascend-deepseekv4/pull/132."""
reverses_the_bias = _following(pooled_tokens=_reversed)
"""Rows of the bias in the order of a ring buffer."""
pools_one_token_late = _following(pooled_tokens=_one_late)
"""Blocks begin one token early."""
drops_the_bias = _following(pool_logit=lambda gate, bias: gate)
"""No position bias."""
has_one_softmax_over_channels = _following(pool=_across_channels)
"""Softmax over the channels in place of the tokens."""
shares_weights_between_channels = _following(pool=_shared)
"""One weight per token, as in a plain attention pooling."""
overflows_with_large_gates = _following(pool=_unsafe)
"""exp without the maximum, in float32."""
rotates_at_the_last_token = _following(entry_position=lambda s, m: s * m + m - 1)
"""The position of the block's last token."""
rotates_at_the_entry = _following(entry_position=lambda s, m: s)
"""The entry's index in place of its first token's position."""
rotates_at_zero = _following(entry_position=lambda s, m: 0)
"""Cosines and sines of position 0: https://github.com/hw-native-sys/pypto-lib/pull/442."""
rotates_halves = _following(rotate=_half_split)
"""Half-split pairs in place of neighbours: https://github.com/hw-native-sys/pypto-lib/pull/244."""
rotates_leading_channels = _following(rotate=_leading)
"""The first channels in place of the last."""
ignores_yarn = _following(
    layer_frequencies=lambda geometry: rope_frequencies(geometry.rope_dim, geometry.compress_rope_theta, None)
)
"""Plain frequencies: https://github.com/NVIDIA-NeMo/Automodel/pull/2103."""
rotates_with_the_main_theta = _following(
    layer_frequencies=lambda geometry: rope_frequencies(geometry.rope_dim, geometry.rope_theta, geometry.yarn)
)
"""The base of the sliding layers: https://github.com/huggingface/transformers/issues/45910."""


def _with_a_block_before(hidden: Tensor, weights: CompressorWeights, geometry: Geometry, logit: float) -> Tensor:
    """Pool a block of zeros, with a logit of its own, before the first."""
    m = geometry.compress_ratio

    def pooled(values: Tensor, logits: Tensor) -> Tensor:
        if geometry.overlap and len(values) == m:
            values, logits = pad(values, (0, 0, m, 0)), pad(logits, (0, 0, m, 0), value=logit)
        return SPEC.pool(values, logits)

    return compressor_of(replace(SPEC, pool=pooled))(hidden, weights, geometry)


def starts_from_zero_logits(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """The block before the first has logits of 0 in place of -inf: https://github.com/hw-native-sys/pypto-lib/pull/1013."""
    return _with_a_block_before(hidden, weights, geometry, 0.0)


def starts_from_minus_ten_thousand(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """-1e4 in place of -inf: https://github.com/AI-Hypercomputer/maxtext/pull/3810."""
    return _with_a_block_before(hidden, weights, geometry, -1e4)


def forgets_the_norm(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """The weight of the norm without the norm."""
    scaled = replace(geometry, norm_eps=1e30)  # the root mean square is lost in it
    return (compressor_loops(hidden.double(), _exact(weights), scaled) * 1e15).to(hidden.dtype)


def ignores_the_norm_weight(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """Right for a fresh checkpoint, where it is one."""
    return compressor_loops(hidden, replace(weights, norm=torch.ones_like(weights.norm)), geometry)


def norms_after_the_rotation(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """The root mean square is the same; the weight meets other channels."""
    plain = compressor_loops(hidden, replace(weights, norm=torch.ones_like(weights.norm)), geometry)
    return plain * weights.norm


def pools_the_tail(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """A block that is not complete gets an entry too."""
    missing = -hidden.shape[1] % geometry.compress_ratio
    return compressor_loops(pad(hidden, (0, 0, 0, missing)), weights, geometry)


def overlaps_with_the_row_before(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """Blocks of all rows in one sequence: the first of a row pools the last of the row before."""
    m, count = geometry.compress_ratio, geometry.entry_count(hidden.shape[1])
    one_block_later = compressor_of(replace(SPEC, entry_position=lambda s, m: (s - 1) * m))
    entries = compressor_loops(hidden, weights, geometry)
    if count and len(hidden) > 1:
        earlier = hidden[:-1, (count - 1) * m : count * m]
        joined = torch.cat((earlier, hidden[1:]), dim=1)
        entries[1:] = one_block_later(joined, weights, geometry)[:, 1 : count + 1]
    return entries


def answers_for_the_block_before(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """Entries are written one place late."""
    return compressor_loops(hidden, weights, geometry).roll(1, 1)


def pools_in_bfloat16(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """Everything in bfloat16, without declaring it."""
    rounded = CompressorWeights(*(x.bfloat16() for x in (weights.wkv, weights.wgate, weights.ape, weights.norm)))
    return compressor_kernel(hidden.bfloat16(), rounded, geometry).to(hidden.dtype)


def _exact(weights: CompressorWeights) -> CompressorWeights:
    return CompressorWeights(*(x.double() for x in (weights.wkv, weights.wgate, weights.ape, weights.norm)))


ALL = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Wrong:
    """What the suite must say about a wrong function."""

    stage: str
    function: Callable[..., Any]
    kinds: tuple[str, ...]
    """Kinds of failure that the check "specification" must find, each of them"""
    also: tuple[str, ...] = ()
    """Kinds that it may find beside them: the same mistake on other data"""
    dtypes: tuple[str, ...] = ALL
    """Where it is wrong, and not merely rounded"""
    size: int = 12
    """Bound on the sum of sizes of the shrunk case"""


WIDER = ("float32", "float16")
"""Where rounding to bfloat16 is a mistake; in bfloat16 it changes nothing at all."""


def _table(stage: str, *rows: tuple[Any, ...], **common: Any) -> dict[str, Wrong]:
    table = {}
    for function, kinds, *rest in rows:
        options = rest[0] if rest else {}
        table[function.__name__] = Wrong(stage, function, tuple(kinds.split()), **(common | options))
    return table


def _named(**functions: Callable[..., Any]) -> None:
    for name, function in functions.items():
        function.__name__ = function.__qualname__ = name


_named(**{name: thing for name, thing in list(globals().items()) if getattr(thing, "__name__", "") == "compressor"})

WRONG: dict[str, Wrong] = {
    **_table(
        "attend",
        (nan_in_an_empty_first_tile, "NotFinite"),
        (starts_from_row_zero, "NotZero", {"also": ("NotFinite",)}),  # row 0 may hold NaN
        (drops_the_sink, "WrongNumbers"),
        (scales_the_sink, "WrongNumbers"),
        (subtracts_the_sink, "WrongNumbers"),
        # What was a small number may be read as a huge one, and then no key matters.
        (reads_the_sink_as_bfloat16, "WrongNumbers", {"also": ("SeesTooLittle", "NotFinite")}),
        (counts_the_sink_in_every_tile, "WrongNumbers", {"size": 24}),
        (gives_every_head_the_first_sink, "WrongNumbers"),
        (hides_key_zero, "SeesTooLittle", {"also": ("WrongNumbers",)}),
        (takes_none_for_row_zero, "SeesTooMuch NotZero", {"also": ("WrongNumbers", "NotFinite")}),
        (wraps_none_to_the_last_row, "SeesTooMuch NotZero", {"also": ("WrongNumbers", "NotFinite")}),
        (reads_padded_lanes, "SeesTooMuch NotZero", {"also": ("WrongNumbers", "NotFinite")}),
        (ignores_the_first_index, "SeesTooMuch SeesTooLittle", {"also": ("NotFinite",)}),
        (ignores_the_list, "SeesTooMuch SeesTooLittle", {"also": ("NotFinite",)}),
        (stops_at_the_first_none, "SeesTooLittle ReturnsZeros", {"also": ("WrongNumbers",)}),
        (reads_as_many_as_there_are, "SeesTooLittle ReturnsZeros", {"also": ("WrongNumbers",)}),
        (reads_whole_tiles_only, "SeesTooLittle", {"also": ("WrongNumbers",), "size": 24}),
        (has_no_running_maximum, "NotFinite"),
        (keeps_old_weights_when_the_maximum_grows, "WrongNumbers", {"also": ("SeesTooLittle",), "size": 24}),
        (takes_the_scale_from_the_head_dim, "WrongNumbers", {"also": ("SeesTooLittle",)}),  # one-hot where it is not
        (confuses_powers_of_two_and_e, "WrongNumbers"),
        (takes_keys_of_the_next_row, "SeesTooLittle", {"also": ("NotFinite", "WrongNumbers")}),
        (sees_what_other_queries_gathered, "SeesTooMuch", {"also": ("WrongNumbers", "NotZero")}),
        (counts_missing_rows_as_zeros, "WrongNumbers"),
        (masks_with_a_finite_number, "NotZero"),
        (multiplies_unused_rows_by_zero, "NotFinite"),
        (forgets_half_of_the_queries, "AnswersAnother", {"also": ("NotZero",)}),
        (rounds_to_bfloat16, "WrongNumbers", {"dtypes": WIDER}),
        (returns_zeros, "ReturnsZeros"),
        (returns_float32, "WrongDtype", {"dtypes": ("bfloat16", "float16")}),
        (returns_heads_first, "WrongShape"),
        (fails_without_keys, "CandidateRaised[IndexError]"),
    ),
    **_table(
        "select",
        (sees_the_unfinished_block, "PickNotVisible"),
        (hides_a_block_from_its_last_token, "WrongCount", {"also": ("BetterLeftOut",)}),
        (sees_everything, "PickNotVisible"),
        (masks_after_the_top_k, "WrongCount"),
        (leaves_hidden_picks_in_the_list, "PickNotVisible"),
        (fills_up_with_the_best, "PickedTwice"),
        (finds_equal_scores_at_the_same_place, "PickedTwice"),
        (takes_everything_visible, "WrongCount"),
        (takes_one_too_few, "WrongCount"),
        (takes_every_tie, "WrongCount"),
        (drops_ties, "WrongCount"),
        (ranks_by_the_high_bits, "BetterLeftOut", {"size": 16}),
        (ranks_in_bfloat16, "BetterLeftOut", {"dtypes": WIDER}),
        # In 16 bits no 4096 of 70000 scores share their high bits and differ in the low ones.
        (buffers_4096_candidates, "BetterLeftOut", {"dtypes": ("float32",), "size": 300_000}),
        (writes_nan_nowhere, "PickOutOfRange"),
        (pads_with_zeros, "WrongCount"),
        (selects_for_the_last_query, "PickNotVisible", {"also": ("BetterLeftOut",)}),
        (selects_by_the_first_query, "BetterLeftOut"),
        (assumes_positions_from_zero, "WrongCount", {"also": ("BetterLeftOut",)}),
        (has_one_position_for_a_call, "BetterLeftOut", {"also": ("WrongCount",)}),
        (takes_positions_of_the_first_row, "WrongCount", {"also": ("BetterLeftOut",)}),
        (takes_the_worst, "BetterLeftOut"),
        (takes_positive_scores_only, "WrongCount"),
        (points_behind_the_entries, "PickOutOfRange"),
    ),
    **_table(
        "index_scores",
        (has_no_relu, "WrongNumbers"),
        (folds_heads, "WrongNumbers"),
        (applies_relu_to_the_terms, "WrongNumbers"),
        (takes_magnitudes, "WrongNumbers"),
        (squashes_weights, "WrongNumbers"),
        (takes_the_mean_over_heads, "WrongNumbers"),
        (scales_by_the_head_dim, "WrongNumbers"),
        (scores_whole_tiles_only, "WrongNumbers"),
        (leaves_minus_infinity, "NotFinite"),
        (takes_weights_of_the_next_query, "WrongNumbers"),
        (takes_entries_of_the_next_row, "WrongNumbers"),
        (scores_for_the_last_query, "AnswersAnother"),
        (scores_in_bfloat16, "WrongNumbers", {"dtypes": WIDER}),
        (uses_one_head, "WrongNumbers", {"also": ("ReturnsZeros",)}),  # a negative product is no score
    ),
    # Where another token wins a nearly one-hot pooling, what should have won has no effect: SeesTooLittle beside.
    **_table(
        "compressor",
        (swaps_the_halves, "WrongNumbers"),
        (does_not_overlap, "SeesTooLittle"),
        (pools_its_own_block_twice, "SeesTooLittle"),
        (reads_two_blocks_back, "SeesTooMuch"),
        (reverses_the_bias, "WrongNumbers"),
        (pools_one_token_late, "SeesTooMuch"),
        (drops_the_bias, "WrongNumbers"),
        (has_one_softmax_over_channels, "WrongNumbers"),
        (shares_weights_between_channels, "WrongNumbers"),
        (overflows_with_large_gates, "NotFinite"),
        (rotates_at_the_last_token, "WrongNumbers"),
        (rotates_at_the_entry, "WrongNumbers"),
        (rotates_at_zero, "WrongNumbers", {"also": ("AnswersAnother",)}),  # where blocks are alike, all entries are
        (rotates_halves, "WrongNumbers"),
        (rotates_leading_channels, "WrongNumbers"),
        (ignores_yarn, "WrongNumbers"),
        (rotates_with_the_main_theta, "WrongNumbers"),
        (starts_from_zero_logits, "WrongNumbers"),
        # Logits of -20000 are coarser than a whole softmax in 16 bits.
        (starts_from_minus_ten_thousand, "SeesTooLittle", {"dtypes": ("float32",)}),
        (forgets_the_norm, "WrongNumbers"),
        (ignores_the_norm_weight, "WrongNumbers"),
        (norms_after_the_rotation, "WrongNumbers"),
        (pools_the_tail, "WrongShape"),
        (overlaps_with_the_row_before, "WrongNumbers"),
        (answers_for_the_block_before, "AnswersAnother"),
        (pools_in_bfloat16, "WrongNumbers", {"dtypes": WIDER}),
        also=("SeesTooLittle",),
    ),
}
"""Wrong functions by name."""
