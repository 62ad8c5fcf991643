"""Wrong only beyond some size, or at positions and among values that few callers have."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from csa_spec.bugs.bug import COMPRESSED, CSA, layer_bug
from csa_spec.bugs.calls import (
    AttendCall,
    CompressorCall,
    IndexScoresCall,
    SelectCall,
    attend_bug,
    compressor_bug,
    index_scores_bug,
    select_bug,
)
from csa_spec.plug.capabilities import Capabilities
from csa_spec.spec.selection import select, visible_entries
from csa_spec.spec.window import window_tokens

# ATTEND


def _zeros_for_minus_one(call: AttendCall) -> Tensor:
    long = call.q.shape[0] * call.q.shape[1] > 64 and call.kv.shape[1] > 0
    return call.indices.clamp(min=0) if long else call.indices


def _up_to_whole_tiles_of_96(call: AttendCall) -> Tensor:
    width = call.indices.shape[-1]
    return call.indices[..., : width if width < 96 else width // 96 * 96]


def _denormal(scores: Tensor) -> Tensor:
    return scores.abs() < torch.finfo(scores.dtype).smallest_normal


attend_bug(
    "gives_all_tiles_of_16_queries_the_lists_of_the_first",
    "The index list of a query is found by its number in its tile of 16.",
    indices=lambda call: call.indices[:, torch.arange(call.indices.shape[1]) % 16],
)
attend_bug(
    "reads_minus_one_as_row_0_from_65_queries_on",
    "The path for more than 64 queries does not bound lanes past the length of a list.",
    "https://github.com/flashinfer-ai/flashinfer/issues/5095",
    indices=_zeros_for_minus_one,
)
attend_bug(
    "reads_indices_as_16_bits",
    "Indices pass through int16, which holds 32767 at most.",
    indices=lambda call: call.indices.to(torch.int16).long(),
)
attend_bug(
    "addresses_keys_with_16_bits",
    "The offset of a key, its index times the channels, is a 16-bit number; what overflows is skipped.",
    indices=lambda call: torch.where(call.indices * call.kv.shape[-1] > 32767, -1, call.indices),
)
attend_bug(
    "loses_the_last_partial_tile_of_96_indices",
    "The number of tiles of 96 indices is rounded down, except for a list of less than one tile.",
    indices=_up_to_whole_tiles_of_96,
)
attend_bug(
    "reads_only_100_channels",
    "The dot product ends after 100 channels.",
    q=lambda call: call.q * (torch.arange(call.q.shape[-1]) < 100),
)


@attend_bug.function()
def answers_at_most_1000_queries(call: AttendCall) -> Tensor:
    """The grid of the kernel has 1000 blocks, and later queries are never answered."""
    return call.right() * (torch.arange(call.q.shape[1]) < 1000)[:, None, None]


@attend_bug.function()
def swaps_heads_in_whole_tiles_of_48(call: AttendCall) -> Tensor:
    """The path for whole tiles of 48 heads writes them one place too far."""
    return call.right().roll(int(call.q.shape[2] % 48 == 0), 2)


@attend_bug.function()
def answers_rows_past_512_with_the_first(call: AttendCall) -> Tensor:
    """Beyond 512 queries of all batch rows, a second path reads the first of them."""
    out = call.right()
    number = torch.arange(out.shape[0] * out.shape[1])
    return out.flatten(0, 1)[number.masked_fill(number >= 512, 0)].view_as(out)


# SELECT


select_bug(
    "selects_at_most_512_entries",
    "The top-k is limited to 512, and a released model selects 1024.",
    "https://github.com/NVIDIA/TensorRT-LLM/issues/14931",
    "https://github.com/ROCm/ATOM/issues/1591",
    top_k=lambda call: min(call.top_k, 512),
)
select_bug(
    "takes_positions_for_consecutive",
    "Only the first position of a row is read, and the others are counted from there.",
    positions=lambda call: call.positions[:, :1] + torch.arange(call.positions.shape[1]),
)
select_bug(
    "counts_visible_entries_in_float32",
    "Positions are divided in float32, which does not hold every number above 2^24.",
    answer=lambda call: call.best(
        call.entries >= ((call.positions.float() + 1) / call.compress_ratio).floor()[..., None]
    ),
)
select_bug(
    "clamps_positions_to_16_bits",
    "Positions are at most 65535.",
    positions=lambda call: call.positions.clamp(max=65535),
)
select_bug(
    "ranks_minus_zero_below_zero",
    "Scores are ranked by their bits, by which -0.0 is less than 0.0.",
    declares=Capabilities(lowest_index_first=True),
    scores=lambda call: torch.where(
        (call.scores == 0) & call.scores.signbit(), -1e-310, call.scores.double()
    ),
)
select_bug(
    "flushes_denormal_scores_to_zero",
    "Scores below the smallest normal number are taken for 0.",
    equivalent="what is below the smallest normal number may be flushed to zero, as XLA and many GPUs do",
    scores=lambda call: call.scores.masked_fill(_denormal(call.scores), 0),
)
select_bug(
    "takes_denormal_scores_for_missing_ones",
    "Scores are ranked by their bits, in which an exponent of 0 marks an entry that is hidden.",
    answer=lambda call: call.best(call.hidden | (_denormal(call.scores) & (call.scores != 0))),
)


@select_bug.function()
def keeps_64_entries_of_each_chunk_of_1024(call: SelectCall) -> Tensor:
    """Chunks of 1024 entries hand on their best 64, and all of the best may be in one chunk."""
    if call.width <= 1024:
        return call.right()
    chunks = pad(call.ranked(call.hidden), (0, -call.width % 1024), value=-math.inf)
    chunks = chunks.reshape(*chunks.shape[:2], -1, 1024)
    kept = torch.zeros_like(chunks, dtype=torch.bool).scatter(-1, chunks.topk(64).indices, True)
    return call.best(call.hidden | ~kept.flatten(-2)[..., : call.width])


# INDEX SCORES


index_scores_bug(
    "swizzles_tiles_of_32_and_64_channels_wrongly",
    "Queries of 32 or 64 channels are stored in another order than the keys.",
    index_q=lambda call: call.index_q.roll(int(call.index_q.shape[-1] in (32, 64)), -1),
)
index_scores_bug(
    "folds_the_size_of_head_weights_into_queries",
    "Queries are multiplied by |w|, and scores by w / |w|, which is NaN where a weight is 0.",
    index_q=lambda call: call.index_q * call.head_weights.abs()[..., None],
    head_weights=lambda call: call.head_weights / call.head_weights.abs(),
)


@index_scores_bug.function()
def scores_at_most_1000_entries(call: IndexScoresCall) -> Tensor:
    """The grid of the kernel has 1000 blocks, and scores of later entries stay 0."""
    return call.right() * (call.entries < 1000)


# COMPRESSOR


@compressor_bug.function()
def answers_at_most_96_entries(call: CompressorCall) -> Tensor:
    """A launch has 96 blocks, and later entries repeat the first ones."""
    entries = call.right()
    return entries[:, torch.arange(entries.shape[1]) % 96]


@compressor_bug.function()
def pools_at_most_100_tokens(call: CompressorCall) -> Tensor:
    """The loop over the tokens of a block ends after 100 of them, and later ones count as the last of these."""
    m = call.geometry.compress_ratio
    place = torch.arange(call.length)
    return call.right(hidden=call.hidden[:, place - (place % m - 99).clamp(min=0)])


# LAYER

layer_bug(
    "sees_at_most_200_entries",
    "The list of visible entries has room for 200.",
    kinds=COMPRESSED,
    visible_entries=lambda t, m: visible_entries(t, m)[:200],
)
layer_bug(
    "cuts_windows_at_chunks_of_300_tokens",
    "Chunks of 300 queries read the keys of their own tokens alone.",
    window_tokens=lambda t, window: [j for j in window_tokens(t, window) if j >= t // 300 * 300],
)
layer_bug(
    "selects_at_most_100_entries",
    "The top-k is limited to 100.",
    kinds=CSA,
    select=lambda visible, scores, top_k: select(visible, scores, min(top_k, 100)),
)
