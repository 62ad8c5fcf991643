"""Bugs written by somebody who knew neither what strategies draw nor which sizes they visit.

Thresholds, amounts and combinations are those that real kernels might have, and not those of a test. What is
found here therefore says more about the suite than what is found elsewhere: do not fit strategies to it.
"""
# ruff: noqa: D102 - Cache says what its methods do

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from csa_spec.bugs.bug import COMPRESSED, CSA, EVERY, DocumentCall, layer_bug
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
from csa_spec.bugs.memory import packed, read_at, whole_memory
from csa_spec.bugs.stream import ANY, Blocks, Cache, Slot, cache_bug, wrong_stream
from csa_spec.spec import SPEC, CompressorWeights, Geometry, LayerWeights
from csa_spec.spec.compressor import PooledToken
from csa_spec.spec.rope import rotate
from csa_spec.spec.window import window_tokens

# SIZES: ATTEND


@attend_bug.function()
def launches_at_most_96_blocks(call: AttendCall) -> Tensor:
    """The grid has one block per row and head and at most 96 of them, so that later heads stay zero."""
    out = call.right()
    batch, _, heads, _ = out.shape
    return torch.where(torch.arange(batch * heads).view(batch, 1, heads, 1) < 96, out, 0)


@attend_bug.function()
def merges_an_empty_split_of_192_indices_to_nan(call: AttendCall) -> Tensor:
    """Lists of more than 192 indices are split, and the merge makes exp(-inf - -inf) of an empty split."""
    splits = torch.split(call.indices >= 0, 192, dim=-1)
    if len(splits) < 2:
        return call.right()
    empty = torch.stack([~named.any(-1) for named in splits]).any(0) & (call.count > 0)[..., 0]
    return call.right().masked_fill(empty[..., None, None], math.nan)


@attend_bug.function()
def drops_channels_behind_the_last_vector_of_8(call: AttendCall) -> Tensor:
    """With more than 40 channels they are loaded 8 at a time, and those that are left add nothing to logits."""
    dim = call.q.shape[-1]
    return call.right(q=call.q * (torch.arange(dim) < dim // 8 * 8)) if dim > 40 else call.right()


@attend_bug.function("https://github.com/vllm-project/vllm/pull/41834")
def numbers_the_slots_of_all_lists_in_15_bits(call: AttendCall) -> Tensor:
    """The offset of a list's slot in all lists of the call wraps at 32768."""
    lists = call.indices.flatten()
    return call.right(indices=lists[torch.arange(len(lists)) % 2**15].view_as(call.indices))


@attend_bug.function()
def reads_the_sinks_of_the_first_12_heads(call: AttendCall) -> Tensor:
    """Heads come in tiles of 12, and each tile reads the sinks of the first."""
    return call.right(sinks=call.sinks[torch.arange(len(call.sinks)) % 12])


# SIZES: SELECT


@select_bug.function("https://github.com/sgl-project/sglang/issues/36807")
def keeps_64_candidates_of_each_chunk_of_1536_entries(call: SelectCall) -> Tensor:
    """Of more than 1536 entries each chunk passes on its 64 best, although more of the top-k may be there."""
    if call.width <= 1536:
        return call.right()
    chunks = torch.split(call.ranked(call.hidden), 1536, dim=-1)
    ranks = [chunk.argsort(dim=-1, descending=True, stable=True).argsort(-1) for chunk in chunks]
    return call.best(call.hidden | (torch.cat(ranks, -1) >= 64))


@select_bug.function()
def answers_two_queries_per_multiprocessor(call: SelectCall) -> Tensor:
    """Each of 132 programs takes a second query and no third, so that later ones select nothing."""
    picks = call.right()
    batch, queries, _ = picks.shape
    return picks.masked_fill(torch.arange(batch * queries).view(batch, queries, 1) >= 264, -1)


@select_bug.function()
def rounds_a_k_above_96_down_to_a_multiple_of_32(call: SelectCall) -> Tensor:
    """The sorting network of a large top-k has whole warps of 32 slots, and the last slots stay at -1."""
    picks = call.right()
    written = call.top_k if call.top_k <= 96 else call.top_k // 32 * 32
    return picks.masked_fill(torch.arange(picks.shape[-1]) >= written, -1)


# SIZES: INDEX SCORES


@index_scores_bug.function()
def drops_the_remainder_of_tiles_of_24_index_heads(call: IndexScoresCall) -> Tensor:
    """More than 24 index heads are summed in tiles of 24, and heads behind the last whole tile are left out."""
    heads = call.index_q.shape[2]
    kept = heads if heads <= 24 else heads // 24 * 24
    return call.right(index_q=call.index_q[:, :, :kept], head_weights=call.head_weights[:, :, :kept])


@index_scores_bug.function()
def takes_the_head_weights_of_the_tile_before_in_a_partial_one(call: IndexScoresCall) -> Tensor:
    """Queries come in tiles of 12; a last tile that is not full keeps the head weights of the one before."""
    queries = call.head_weights.shape[1]
    rows = torch.arange(queries)
    last = queries // 12 * 12
    return call.right(
        head_weights=call.head_weights[:, torch.where((rows >= last) & (rows >= 12), rows - 12, rows)]
    )


# SIZES: COMPRESSOR

STAGED = 200
"""Tokens that are loaded at once"""


def _without_tokens_of_the_load_before(s: int, m: int, overlap: bool) -> list[PooledToken]:
    border = (s * m + m - 1) // STAGED * STAGED
    pooled = SPEC.pooled_tokens(s, m, overlap)
    return [token for token in pooled if token[0] >= border] if s * m < border else pooled


@compressor_bug.function()
def loses_tokens_of_a_block_across_two_loads(call: CompressorCall) -> Tensor:
    """Tokens are loaded 200 at a time, and a block across two loads is pooled from the second alone."""
    if call.length <= STAGED or STAGED % call.geometry.compress_ratio == 0:
        return call.right()
    return call.follow(replace(SPEC, pooled_tokens=_without_tokens_of_the_load_before))


def _pool_without_rescaling(values: Tensor, logits: Tensor) -> Tensor:
    ends = (torch.arange(len(logits)) // 48 * 48 + 47).clamp(max=len(logits) - 1)
    weights = (logits - logits.cummax(0).values[ends]).exp()
    return (weights * values).sum(0) / weights.sum(0)


@compressor_bug.function()
def does_not_rescale_between_tiles_of_48_tokens(call: CompressorCall) -> Tensor:
    """More than 48 tokens are pooled in tiles, and what was summed is not rescaled when the maximum grows."""
    pooled = call.geometry.compress_ratio * (1 + call.geometry.overlap)
    return call.right() if pooled <= 48 else call.follow(replace(SPEC, pool=_pool_without_rescaling))


@compressor_bug.function()
def squares_the_first_80_channels_alone(call: CompressorCall) -> Tensor:
    """The norm sums the squares of 80 channels, one per thread, and divides by the number of all."""
    out, dim = call.right(), len(call.weights.norm)
    if dim <= 80:
        return out
    plain = call.right(weights=replace(call.weights, norm=torch.ones_like(call.weights.norm)))
    return (out * (plain[..., :80].square().sum(-1, keepdim=True) / dim).rsqrt()).to(out.dtype)


# MEMORY


def _read(tensor: Tensor, strides: Sequence[int]) -> Tensor:
    """Return a tensor read with other strides from its first element on."""
    return read_at(tensor, tuple(strides), int(tensor.storage_offset()))


attend_bug(
    "reads_index_lists_as_packed",
    "The strides of queries and keys are passed to the kernel, and those of the index lists are not.",
    "https://github.com/NVIDIA/TensorRT-LLM/pull/17285",
    indices=lambda call: packed(call.indices),
)
attend_bug(
    "takes_the_stride_of_a_batch_row_for_that_of_its_keys",
    "The stride from one batch row of keys to the next is taken to be that of all its keys.",
    kv=lambda call: _read(call.kv, (call.kv.shape[1] * call.kv.stride(1), *call.kv.stride()[1:])),
)
select_bug(
    "reads_positions_as_packed",
    "Positions are read as if each batch row had its own, although they may be one row that is expanded.",
    positions=lambda call: packed(call.positions),
)


@attend_bug.function()
def pads_keys_to_whole_tiles_in_place(call: AttendCall) -> Tensor:
    """Rows behind the keys are zeroed up to a whole tile of 8, in memory that belongs to somebody else."""
    kv, out = call.kv, call.right()
    if not kv.numel():
        return out
    begin = kv.storage_offset() + kv.shape[1] * kv.stride(1) + (len(kv) - 1) * kv.stride(0)
    whole_memory(kv)[begin : begin + -kv.shape[1] % 8 * kv.stride(1)] = 0
    return out


@index_scores_bug.function()
def reads_head_weights_with_the_strides_of_queries(call: IndexScoresCall) -> Tensor:
    """Offsets of head weights are those of queries divided by the channels, right only where both are packed."""
    strides = [stride // call.index_q.shape[-1] for stride in call.index_q.stride()[:3]]
    return call.right(head_weights=_read(call.head_weights, strides))


_workspace = torch.empty(0)


@index_scores_bug.function()
def returns_a_view_of_its_workspace(call: IndexScoresCall) -> Tensor:
    """More than 400 scores are written to a workspace that grows, which the next call overwrites."""
    global _workspace
    out = call.right()
    if out.numel() <= 400:
        return out
    if _workspace.numel() < out.numel() or _workspace.dtype != out.dtype:
        _workspace = torch.empty(out.numel(), dtype=out.dtype)
    return _workspace[: out.numel()].view(out.shape).copy_(out)


# POSITIONS


@select_bug.function()
def counts_visible_entries_in_half_precision(call: SelectCall) -> Tensor:
    """Positions are converted to float16 along with the scores, which rounds those above 2048."""
    return call.right(positions=call.positions.clamp(max=65504).half().long())


@select_bug.function()
def takes_positions_for_consecutive_if_their_ends_are(call: SelectCall) -> Tensor:
    """Whether positions are consecutive is seen from the first and the last, and those between are made up."""
    queries = call.positions.shape[1]
    run = call.positions[:, :1] + torch.arange(queries)
    return call.right(positions=torch.where(run[:, -1:] == call.positions[:, -1:], run, call.positions))


layer_bug(
    "wraps_positions_at_65536",
    "Positions are stored in 16 bits, so that a document across position 65536 goes on at 0.",
    kinds=EVERY,
    rotate=lambda x, position, frequencies: rotate(
        x, int(math.copysign(abs(position) % 2**16, position)), frequencies
    ),
)
layer_bug(
    "reads_whole_pages_of_the_window_behind_24_tokens",
    "From the 25th token on the window begins with the page of 8 tokens that holds its first.",
    kinds=EVERY,
    window_tokens=lambda t, window: (
        window_tokens(t, window) if t < 24 else list(range(max(0, t - window + 1) // 8 * 8, t + 1))
    ),
)


@compressor_bug.function()
def clamps_entries_to_640_positions(call: CompressorCall) -> Tensor:
    """The rotary table of the compressor has 640 rows, and later entries get the last of them."""
    if call.length <= 640:
        return call.right()
    return call.follow(replace(SPEC, entry_position=lambda s, m: min(SPEC.entry_position(s, m), 639)))


@layer_bug.function("https://github.com/NVIDIA-NeMo/Automodel/pull/3231", kinds=EVERY)
def keeps_the_ends_of_four_documents_per_row(call: DocumentCall) -> Tensor:
    """There is room for four document ends per row, so that later documents belong to the fourth."""
    row, document = call.own_row, call.document
    begin = row[min(3, len(row) - 1)].begin
    if document.begin <= begin:
        return call.follow()
    return replace(call, document=call.stream(begin)).trace().out[-document.length :]


# STREAMS


@wrong_stream("https://github.com/tenstorrent/tt-metal/pull/57192", kinds=CSA)
class LosesTheOverlapBetweenChunksOfALongCall(Cache):
    """A call of more than 48 tokens runs in chunks, each of which begins without a previous block."""

    def extend_row(self, slot: Slot, tokens: Tensor) -> Tensor:
        outs = []
        for number, chunk in enumerate(torch.split(tokens, 48)):
            if number:
                slot.main.before, slot.index.before = [], []
            outs.append(super().extend_row(slot, chunk))
        return torch.cat(outs)


@wrong_stream("https://github.com/sgl-project/sglang/issues/34725", kinds=COMPRESSED)
class HasThreePagesOfEntries(Cache):
    """A row has three pages of 16 entries, and later entries overwrite the first."""

    def feed(self, blocks: Blocks, w: CompressorWeights, x: Tensor, t: int, start: int) -> None:
        super().feed(blocks, w, x, t, start)
        if blocks.entries:
            blocks.entries[(len(blocks.entries) - 1) % 48] = blocks.entries[-1]


@wrong_stream("https://github.com/Blaizzy/mlx-vlm/issues/1897")
class RollbackRowsCropsKeysByMinusZero(Cache):
    """Keys are cropped by `keys[:-n]`, which is empty for a row that rejects nothing."""

    def rollback_rows(self, counts: list[int]) -> None:
        super().rollback_rows(counts)
        for slot, n in zip(self.slots, counts, strict=True):
            slot.keys = slot.keys if n else []


class _TellsSingles(Cache):
    """Knows whether the call that it answers has one token."""

    single = False

    def extend_row(self, slot: Slot, tokens: Tensor) -> Tensor:
        self.single = len(tokens) == 1
        return super().extend_row(slot, tokens)


@wrong_stream()
class MixedCallsRotateDecodesToThePositionOfThePrefill(_TellsSingles):
    """Where one row gets several tokens and another one, that one is rotated to where the longest begins."""

    begins: dict[int, int]

    def extend_rows(self, hidden: Tensor, lengths: list[int]) -> Tensor:
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        begin = self.slots[longest].count
        mixed = lengths[longest] > 3
        self.begins = {
            slot.count: begin for slot, n in zip(self.slots, lengths, strict=True) if mixed and n == 1
        }
        out = super().extend_rows(hidden, lengths)
        self.begins = {}
        return out

    def query_position(self, t: int, start: int) -> int:
        return getattr(self, "begins", {}).get(t, t) if self.single else t


@wrong_stream()
class ReorderForgetsWhichRowsAreCleared(Cache):
    """Cleared rows are emptied when they are used next, and the mark does not move with a row."""

    def __init__(self, weights: LayerWeights, geometry: Geometry, batch: int) -> None:
        super().__init__(weights, geometry, batch)
        self.marked: list[int] = []

    def clear(self, rows: list[int]) -> None:
        self.marked = [*self.marked, *rows]

    def used(self) -> None:
        """Empty what was marked."""
        Cache.clear(self, [b for b in self.marked if b < len(self.slots)])
        self.marked = []

    def extend(self, hidden: Tensor) -> Tensor:
        self.used()
        return super().extend(hidden)

    def extend_rows(self, hidden: Tensor, lengths: list[int]) -> Tensor:
        self.used()
        return super().extend_rows(hidden, lengths)

    def save(self) -> list[Slot]:
        self.used()
        return super().save()

    def restore(self, state: list[Slot]) -> None:
        super().restore(state)
        self.marked = []


@wrong_stream("https://github.com/ggml-org/llama.cpp/issues/26741")
class ForkSharesTheSnapshotsOfRollback(Cache):
    """A fork shares the list of states to go back to, to which its original adds its own."""

    def fork(self) -> Cache:
        other = super().fork()
        for new, old in zip(other.slots, self.slots, strict=True):
            new.past = old.past
        return other


@wrong_stream()
class DecodesAtMostFiftySixPositions(_TellsSingles):
    """The graph of a call of one token has positions up to 55, and later ones are clamped."""

    def query_position(self, t: int, start: int) -> int:
        return min(t, 55) if self.single else t


@wrong_stream("https://github.com/raullenchai/Rapid-MLX/pull/1469")
class SaveSkipsRowsOfTheSameLength(Cache):
    """A later save copies only rows whose length has changed, although other tokens may stand there."""

    saved: Sequence[Slot] = ()

    def save(self) -> list[Slot]:
        new = Cache.save(self)
        old = self.saved if len(self.saved) == len(new) else new
        self.saved = [a if a.count == b.count else b for a, b in zip(old, new, strict=True)]
        return list(self.saved)

    def fork(self) -> Cache:
        other = super().fork()
        other.slots = Cache.save(self)
        return other


def _repeated(cache: Any, times: int) -> None:
    rows = [cache.slots[b // times] for b in range(len(cache.slots) * times)]
    cache.slots = [slot.copied() if slot.count < 12 else slot for slot in rows]


cache_bug(
    "repeat_shares_rows_of_more_than_a_page",
    "Copies of a row share its pages of 12 tokens, and so the state of a row that has a whole page.",
    kinds=ANY,
    repeat=_repeated,
)
