"""Caches that go wrong only as servers use them: long prompts, rows of their own lengths, shared prefixes."""
# ruff: noqa: D102 - Cache says what its methods do

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from csa_spec.bugs.stream import COMPRESSED, Blocks, Cache, Slot, cache_bug, wrong_stream
from csa_spec.spec import CompressorWeights, Geometry, LayerKind, LayerWeights

# LONG PROMPTS

cache_bug(
    "cuts_windows_at_pages_of_32_tokens",
    "A query reads only the keys on its own page of 32 tokens, so that windows end where pages begin.",
    window=lambda cache, slot, t, start: Cache.window(cache, slot, t, start)[-(t % 32 + 1) :],
)
cache_bug(
    "reads_at_most_24_entries",
    "Entries are read in tiles of 8, and those after the third tile are skipped.",
    kinds=COMPRESSED,
    visible=lambda cache, slot, t, start: Cache.visible(cache, slot, t, start)[:24],
)


def _cut_in_the_ragged_tile(tile: int) -> Callable[..., list[Tensor]]:
    """Return a window whose queries in the last tile of a call, if it is not full, read only that tile."""

    def window(cache: Cache, slot: Slot, t: int, start: int) -> list[Tensor]:
        seen, tokens, place = Cache.window(cache, slot, t, start), slot.count - start, t - start
        ragged = tokens > tile and place >= tokens - tokens % tile
        return seen[-(place % tile + 1) :] if ragged else seen

    return window


for _tile in (24, 100):
    cache_bug(
        f"loses_the_window_before_a_ragged_tile_of_{_tile}",
        f"In a call of more than {_tile} tokens, queries of a last tile that is not full read only its keys.",
        window=_cut_in_the_ragged_tile(_tile),
    )


@wrong_stream()
class DecodesAtThePositionInTheLastChunk(Cache):
    """A prompt of more than 64 tokens is cut into chunks, and decoding counts positions from the last one."""

    def extend_row(self, slot: Slot, tokens: Tensor) -> Tensor:
        if not slot.count:
            self.chunks = 64 * ((len(tokens) - 1) // 64)
        return super().extend_row(slot, tokens)

    def query_position(self, t: int, start: int) -> int:
        return t - self.chunks if start else t


# ROLLBACK


@wrong_stream(kinds=(LayerKind.HCA,))
class DecodesOverTheWholePool(Cache):
    """A call of one token sees the whole pool, in which rollback has left entries of rejected tokens."""

    def rolled_back(self, slot: Slot, n: int) -> Slot:
        back = super().rolled_back(slot, n)
        return replace(back, main=replace(back.main, entries=list(slot.main.entries)))

    def feed(self, blocks: Blocks, w: CompressorWeights, x: Tensor, t: int, start: int) -> None:
        super().feed(blocks, w, x, t, start)
        if not blocks.filling:  # an entry is written to its place
            entry, place = blocks.entries.pop(), t // self.geometry.compress_ratio
            blocks.entries[place : place + 1] = [entry]

    def visible(self, slot: Slot, t: int, start: int) -> list[int]:
        alone = slot.count - start == 1
        return list(range(len(slot.main.entries))) if alone else super().visible(slot, t, start)


@wrong_stream(
    "https://github.com/ggml-org/llama.cpp/issues/26741",
    "https://github.com/ggml-org/llama.cpp/pull/26756",
)
class KeepsSnapshotsByBatchSlot(Cache):
    """What rollback goes back to is kept by the place in the batch, and does not move with its row."""

    def reorder(self, rows: list[int]) -> None:
        self.select(rows)

    def select(self, rows: list[int]) -> None:
        kept = [slot.past for slot in self.slots]
        super().select(rows)
        self.slots = [replace(slot, past=list(past)) for slot, past in zip(self.slots, kept, strict=False)]

    def rolled_back(self, slot: Slot, n: int) -> Slot:
        if not 0 < n <= len(slot.past):
            return slot
        return replace(slot.past[-n].copied(), past=slot.past[:-n], count=slot.count - n)

    def visible(self, slot: Slot, t: int, start: int) -> list[int]:
        return super().visible(slot, t, start)[: len(slot.main.entries)]


@wrong_stream("https://github.com/ggml-org/llama.cpp/issues/26695", kinds=COMPRESSED)
class RollbackOfAWholeCallKeepsTheCompressors(Cache):
    """The oldest snapshot is that after the first token of a call, so that a whole call cannot be undone."""

    def extend_row(self, slot: Slot, tokens: Tensor) -> Tensor:
        self.begin = slot.count
        return super().extend_row(slot, tokens)

    def rolled_back(self, slot: Slot, n: int) -> Slot:
        back = super().rolled_back(slot, n)
        return replace(back, main=slot.main, index=slot.index) if back.count == self.begin else back


# ROWS OF THEIR OWN LENGTHS

cache_bug(
    "extend_rows_takes_the_longest_length_for_all_rows",
    "Where rows get different numbers of tokens, the padding of the shorter ones is taken for tokens.",
    extend_rows=lambda cache, hidden, lengths: cache.extend(hidden),
)
cache_bug(
    "extend_rows_takes_a_token_in_every_row",
    "A row that gets no token takes its first place of padding for one.",
    extend_rows=lambda cache, hidden, lengths: Cache.extend_rows(
        cache, hidden, [max(1, n) for n in lengths]
    ),
)
cache_bug(
    "rollback_rows_takes_the_least_number_for_all_rows",
    "Where rows reject different numbers of drafts, all go back by the least of them.",
    "https://github.com/Blaizzy/mlx-vlm/pull/1155",
    rollback_rows=lambda cache, counts: cache.rollback(min(counts)),
)


@wrong_stream()
class ExtendRowsAnswersInTheOrderOfLengths(Cache):
    """Rows are packed by falling length, and their outputs are not put back into the rows' order."""

    def extend_rows(self, hidden: Tensor, lengths: list[int]) -> Tensor:
        packed = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        return super().extend_rows(hidden, lengths)[packed]


@wrong_stream(
    "https://github.com/Blaizzy/mlx-vlm/issues/1962", "https://github.com/Blaizzy/mlx-vlm/pull/2113"
)
class RollbackRowsLeavesKeysOfZeros(Cache):
    """Where a row rejects more drafts than another, their keys are zeroed and still in the softmax."""

    def rollback_rows(self, counts: list[int]) -> None:
        super().rollback_rows(counts)
        for slot, n in zip(self.slots, counts, strict=True):
            slot.keys += [torch.zeros(self.geometry.head_dim)] * (n - min(counts))


# SLOTS AND PREFIXES THAT ARE SHARED


@wrong_stream("https://github.com/vllm-project/vllm/pull/32118")
class ClearsASlotOnlyForAPromptOfSeveralTokens(Cache):
    """A request whose first call is one token is taken for a running one, and finds what the last one left."""

    def emptied(self, slot: Slot) -> Slot:
        return replace(slot.copied(), count=0, past=[])

    def extend_row(self, slot: Slot, tokens: Tensor) -> Tensor:
        if not slot.count and len(tokens) > 1:
            slot.keys, slot.main, slot.index = [], Blocks(), Blocks()
        return super().extend_row(slot, tokens)


@wrong_stream()
class ClearsOnlyASlotThatItsRowGetsBack(Cache):
    """Freed slots are on a stack, and a row that gets that of another row finds the keys of its request."""

    def __init__(self, weights: LayerWeights, geometry: Geometry, batch: int) -> None:
        super().__init__(weights, geometry, batch)
        self.free: list[tuple[int, Slot]] = []

    def clear(self, rows: list[int]) -> None:
        self.free = [*self.free, *((row, self.slots[row]) for row in rows)]
        super().clear(rows)

    def extend_row(self, slot: Slot, tokens: Tensor) -> Tensor:
        row = [other is slot for other in self.slots].index(True)
        if not slot.count and self.free:
            *self.free, (owner, freed) = self.free
            slot.keys = [] if owner == row else list(freed.keys)
        return super().extend_row(slot, tokens)


@wrong_stream(kinds=COMPRESSED)
class ForkCopiesTheListOfFreePages(Cache):
    """After a fork both streams write their next entries to the same pages, and find those of the other."""

    def __init__(self, weights: LayerWeights, geometry: Geometry, batch: int) -> None:
        super().__init__(weights, geometry, batch)
        self.pages: dict[tuple[int, int, int], Tensor] | None = None

    def fork(self) -> Any:
        self.pages = {}  # of this stream and its copy
        return super().fork()

    def extend_row(self, slot: Slot, tokens: Tensor) -> Tensor:
        if self.pages is None:
            return super().extend_row(slot, tokens)
        row = [other is slot for other in self.slots].index(True)
        for number, blocks in enumerate(slot.compressors):
            for s in range(len(blocks.entries)):
                blocks.entries[s] = self.pages.get((row, number, s), blocks.entries[s])
        begin, out = len(slot.main.entries), super().extend_row(slot, tokens)
        for number, blocks in enumerate(slot.compressors):
            for s, entry in list(enumerate(blocks.entries))[begin:]:
                self.pages[row, number, s] = entry
        return out
