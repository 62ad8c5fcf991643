"""Caches that go wrong after an operation: reset, reorder, rollback, fork, restore and their like."""
# ruff: noqa: D102 - Cache says what its methods do

from __future__ import annotations

from copy import copy
from dataclasses import replace

from torch import Tensor

from csa_spec.bugs.bug import CSA
from csa_spec.bugs.stream import COMPRESSED, Blocks, Cache, Slot, cache_bug, wrong_stream
from csa_spec.spec import CompressorWeights

# RESET


@wrong_stream(kinds=COMPRESSED)
class ResetKeepsTheCount(Cache):
    """Reset does not clear the number of tokens."""

    def emptied(self, slot: Slot) -> Slot:
        return Slot(slot.count, past=slot.past)

    def visible(self, slot: Slot, t: int, start: int) -> list[int]:
        return super().visible(slot, t, start)[: len(slot.main.entries)]


@wrong_stream("https://github.com/Avarok-Cybersecurity/atlas/pull/279", kinds=COMPRESSED)
class ResetKeepsTheEntries(Cache):
    """Reset does not clear the entries, which stay visible until the next request completes a block."""

    def emptied(self, slot: Slot) -> Slot:
        return slot.only("entries")

    def feed(self, blocks: Blocks, w: CompressorWeights, x: Tensor, t: int, start: int) -> None:
        if t + 1 == self.geometry.compress_ratio:
            blocks.entries = []
        super().feed(blocks, w, x, t, start)

    def visible(self, slot: Slot, t: int, start: int) -> list[int]:
        begun = slot.count >= self.geometry.compress_ratio
        return super().visible(slot, t, start) if begun else list(range(len(slot.main.entries)))


cache_bug(
    "reset_keeps_the_unfinished_block",
    "Reset does not clear the unfinished block, which goes into the first block of the next request.",
    kinds=COMPRESSED,
    emptied=lambda cache, slot: slot.only("filling"),
)
cache_bug(
    "reset_keeps_the_previous_block",
    "Reset does not clear the previous block, with which the first block of the next request then overlaps.",
    kinds=CSA,
    emptied=lambda cache, slot: slot.only("before"),
)


@wrong_stream(kinds=CSA)
class ResetKeepsThePreviousBlockBeforeAShortRequest(Cache):
    """Reset leaves the previous block to a first call of m tokens or more to clear, as the official code."""

    def emptied(self, slot: Slot) -> Slot:
        return slot.only("before")

    def extend_row(self, slot: Slot, tokens: Tensor) -> Tensor:
        if not slot.count and len(tokens) >= self.geometry.compress_ratio:
            slot.main.before, slot.index.before = [], []
        return super().extend_row(slot, tokens)


cache_bug(
    "reset_keeps_the_keys",
    "Reset does not clear the keys of the window, which then reaches into the last request.",
    emptied=lambda cache, slot: Slot(keys=slot.keys),
)

# REORDER, SELECT, REPEAT, CLEAR


@wrong_stream(kinds=COMPRESSED)
class ReorderDoesNotMoveTheEntries(Cache):
    """Reorder leaves entries in their old rows."""

    def moved(self, source: Slot, target: Slot) -> Slot:
        return replace(
            source.copied(), main=replace(source.main.copied(), entries=list(target.main.entries))
        )


@wrong_stream(kinds=CSA)
class ReorderDoesNotMoveTheIndexKeys(Cache):
    """Reorder leaves index keys in their old rows."""

    def moved(self, source: Slot, target: Slot) -> Slot:
        return replace(
            source.copied(), index=replace(source.index.copied(), entries=list(target.index.entries))
        )


cache_bug(
    "reorder_does_not_move_the_keys",
    "Reorder leaves the keys of the window in their old rows.",
    moved=lambda cache, source, target: replace(source.copied(), keys=list(target.keys)),
)
cache_bug(
    "reorder_does_not_move_unfinished_blocks",
    "Reorder leaves unfinished blocks in their old rows, as did transformers before 5.23.0.",
    kinds=CSA,
    moved=lambda cache, source, target: source.taking("filling", target),
)
cache_bug(
    "reorder_does_not_move_previous_blocks",
    "Reorder leaves previous blocks in their old rows.",
    kinds=CSA,
    moved=lambda cache, source, target: source.taking("before", target),
)


@wrong_stream()
class ReorderInvertsThePermutation(Cache):
    """Row `rows[i]` goes on as row i instead of row i as `rows[i]`."""

    def reorder(self, rows: list[int]) -> None:
        new = self.save()
        for i, b in enumerate(rows):
            new[b] = self.slots[i].copied()
        self.slots = new


@wrong_stream()
class ReorderOverwritesRowsBeforeItReadsThem(Cache):
    """Rows are copied one after another in place, so that some are overwritten before they are read."""

    def reorder(self, rows: list[int]) -> None:
        for i, b in enumerate(rows):
            self.slots[i] = self.slots[b].copied()


cache_bug(
    "reorder_shares_state_between_rows",
    "Two rows that continue the same row share its state.",
    moved=lambda cache, source, target: source,
)


@wrong_stream()
class SelectKeepsTheFirstRows(Cache):
    """Select keeps the right number of rows, but always the first ones."""

    def select(self, rows: list[int]) -> None:
        self.slots = self.slots[: len(rows)] + [
            slot.copied() for slot in self.slots[: len(rows) - len(self.slots)]
        ]


cache_bug(
    "select_keeps_the_order",
    "Select leaves rows in the order of the old batch.",
    select=lambda cache, rows: Cache.select(cache, sorted(rows)),
)


@wrong_stream()
class RepeatTilesTheBatch(Cache):
    """Repeat puts copies of the whole batch one after another: rows 0 1 0 1 instead of 0 0 1 1."""

    def repeat(self, times: int) -> None:
        self.slots = [slot.copied() for _ in range(times) for slot in self.slots]


@wrong_stream()
class RepeatSharesState(Cache):
    """The copies of a row share its state."""

    def repeat(self, times: int) -> None:
        self.slots = [slot for slot in self.slots for _ in range(times)]


@wrong_stream(kinds=COMPRESSED)
class ClearKeepsTheUnfinishedBlock(Cache):
    """Clear does not clear the unfinished block, which goes into the next request of the row."""

    def clear(self, rows: list[int]) -> None:
        for b in rows:
            self.slots[b] = self.slots[b].only("filling")


@wrong_stream(kinds=CSA)
class ClearDropsThePreviousBlocksOfOtherRows(Cache):
    """Clear drops the previous blocks of all rows."""

    def clear(self, rows: list[int]) -> None:
        super().clear(rows)
        self.slots = [slot.without("before") for slot in self.slots]


@wrong_stream()
class ClearKeepsOneLengthForAllRows(Cache):
    """After clear, the queries of all rows are rotated to the positions of the first row."""

    def extend_row(self, slot: Slot, tokens: Tensor) -> Tensor:
        first = self.slots[0]  # it has got its tokens before the others
        self.shift = first.count - slot.count - (slot is not first) * len(tokens)
        return super().extend_row(slot, tokens)

    def query_position(self, t: int, start: int) -> int:
        return t + self.shift


# ROLLBACK


@wrong_stream("https://github.com/antirez/ds4/issues/750", kinds=CSA)
class RollbackDoesNotRestoreTheCompressors(Cache):
    """Rollback crops the keys of the window and leaves the compressors as they are, as in transformers."""

    def rolled_back(self, slot: Slot, n: int) -> Slot:
        return replace(super().rolled_back(slot, n), main=slot.main, index=slot.index)


cache_bug(
    "rollback_keeps_the_previous_block",
    "Rollback leaves a block that is no longer complete as the previous one.",
    kinds=CSA,
    rolled_back=lambda cache, slot, n: Cache.rolled_back(cache, slot, n).taking("before", slot),
)


@wrong_stream()
class RollbackDoesNotRestoreOverwrittenKeys(Cache):
    """The ring holds W keys, so that rejected drafts have overwritten some that are needed again."""

    def rolled_back(self, slot: Slot, n: int) -> Slot:
        return replace(super().rolled_back(slot, n), keys=slot.keys[: max(0, len(slot.keys) - n)])


@wrong_stream(
    "https://github.com/sgl-project/sglang/pull/32183",
    "https://github.com/sgl-project/sglang/pull/34189",
    "https://github.com/bytedance-iaas/sglang/pull/756",
    kinds=COMPRESSED,
)
class RollbackHandlesAtMostFourTokens(Cache):
    """The state has room for four drafts, and a longer rollback loses a token of the unfinished block."""

    def rolled_back(self, slot: Slot, n: int) -> Slot:
        back = super().rolled_back(slot, n)
        if n > 4:
            back.main.filling, back.index.filling = back.main.filling[1:], back.index.filling[1:]
        return back


@wrong_stream("https://github.com/Blaizzy/mlx-vlm/issues/1896")
class RollbackIsRightForTheFirstRowOnly(Cache):
    """The first row is rolled back by n tokens, the others by one token less."""

    def rollback(self, n: int) -> None:
        self.slots = [self.rolled_back(slot, n - (b > 0)) for b, slot in enumerate(self.slots)]


# FORK, SAVE, RESTORE

cache_bug(
    "fork_shares_all_state",
    "A fork and its original share one state.",
    fork=lambda cache: copy(cache),
)


@wrong_stream("https://github.com/sgl-project/sglang/pull/35494", kinds=CSA)
class ForkSharesUnfinishedBlocks(Cache):
    """Fork copies everything but the unfinished blocks, which both streams then fill."""

    def fork(self) -> Cache:
        other = super().fork()
        for new, old in zip(other.slots, self.slots, strict=True):
            new.main.filling, new.index.filling = old.main.filling, old.index.filling
        return other


@wrong_stream()
class ForkEmptiesTheOriginal(Cache):
    """Fork moves the state to the copy, and the original is left empty."""

    def fork(self) -> Cache:
        other = super().fork()
        self.reset()
        return other


@wrong_stream()
class SharesStateBetweenStreams(Cache):
    """All streams have the same slots, which opening another one clears; a stream alone is right."""

    common: list[Slot]

    @property
    def slots(self) -> list[Slot]:
        return SharesStateBetweenStreams.common

    @slots.setter
    def slots(self, slots: list[Slot]) -> None:
        SharesStateBetweenStreams.common = slots


@wrong_stream()
class SaveReturnsAReference(Cache):
    """Save returns the state itself, which changes as the stream goes on."""

    def save(self) -> list[Slot]:
        return self.slots

    def fork(self) -> Cache:
        other = copy(self)
        other.slots = super().save()
        return other


@wrong_stream()
class RestoreDoesNotCopy(Cache):
    """Restore goes on in the saved state itself, so that it can be restored only once."""

    def restore(self, state: list[Slot]) -> None:
        self.slots = state


@wrong_stream("https://github.com/ggml-org/llama.cpp/pull/26063")
class SaveOmitsTheKeys(Cache):
    """The keys of the window are not saved."""

    def restore(self, state: list[Slot]) -> None:
        super().restore([replace(slot, keys=[]) for slot in state])


cache_bug(
    "save_omits_unfinished_blocks",
    "Unfinished blocks are not saved.",
    kinds=COMPRESSED,
    restore=lambda cache, state: Cache.restore(cache, [slot.without("filling") for slot in state]),
)
cache_bug(
    "rollback_does_nothing",
    "A cache that cannot be cropped is silently left as it is.",
    "https://github.com/ml-explore/mlx-lm/pull/1109",
    rollback=lambda cache, n: None,
)


@wrong_stream(
    "https://github.com/ROCm/ATOM/issues/1417",
    "https://github.com/sgl-project/sglang/pull/30339",
)
class ForkOmitsTheKeys(Cache):
    """The keys of the window are in a ring of the request, which a shared prefix does not cover."""

    def fork(self) -> Cache:
        other = super().fork()
        other.slots = [replace(slot, keys=[]) for slot in other.slots]
        return other


@wrong_stream(
    "https://github.com/raullenchai/Rapid-MLX/pull/1469",
    "https://github.com/osaurus-ai/vmlx-swift/pull/199",
    "https://github.com/ikawrakow/ik_llama.cpp/issues/2438",
    kinds=COMPRESSED,
)
class RestoreDoesNotTrimTheCompressors(Cache):
    """Restore to an earlier state leaves in the compressors what came after it."""

    def restore(self, state: list[Slot]) -> None:
        later = self.slots
        super().restore(state)
        for slot, old in zip(self.slots, later, strict=False):
            if old.count > slot.count:
                slot.main, slot.index = old.main.copied(), old.index.copied()


@wrong_stream("https://github.com/lightseekorg/tokenspeed/pull/660", kinds=CSA)
class RestoreReadsIndexKeysFromOtherPages(Cache):
    """Index keys are restored with the list of pages of the entries, although they are on other pages."""

    def restore(self, state: list[Slot]) -> None:
        super().restore(state)
        for slot in self.slots:
            slot.index.entries = slot.index.entries[1:] + slot.index.entries[:1]


cache_bug(
    "keeps_one_key_too_many",
    "The ring holds one key more than later queries see.",
    equivalent="every query takes the last keys of those that there are, as many as the window is wide",
    kept=lambda cache: cache.geometry.window,
)
