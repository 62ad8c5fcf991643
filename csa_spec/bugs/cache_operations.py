"""Caches that go wrong after an operation: reset, reorder, rollback, fork, restore and their like."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

from torch import Tensor

from csa_spec.bugs.bug import CSA
from csa_spec.bugs.stream import COMPRESSED, Blocks, Cache, Slot, cache_bug
from csa_spec.spec import CompressorWeights

# RESET


@cache_bug(kinds=COMPRESSED)
class ResetKeepsTheCount(Cache):
    """The counter of tokens survives."""

    def emptied(self, slot: Slot) -> Slot:
        """Keep it."""
        return Slot(slot.count, past=slot.past)

    def visible(self, slot: Slot, t: int, start: int) -> list[int]:
        """Point to what there is."""
        return super().visible(slot, t, start)[: len(slot.main.entries)]


@cache_bug("https://github.com/Avarok-Cybersecurity/atlas/pull/279", kinds=COMPRESSED)
class ResetKeepsTheEntries(Cache):
    """The counter of entries survives until a block is complete."""

    def emptied(self, slot: Slot) -> Slot:
        """Keep entries, and so their number."""
        return Slot(main=Blocks(entries=slot.main.entries), index=Blocks(entries=slot.index.entries))

    def feed(self, blocks: Blocks, w: CompressorWeights, x: Tensor, t: int, start: int) -> None:
        """Begin anew with the first block."""
        if t + 1 == self.geometry.compress_ratio:
            blocks.entries = []
        super().feed(blocks, w, x, t, start)

    def visible(self, slot: Slot, t: int, start: int) -> list[int]:
        """Before that, see them all."""
        begun = slot.count >= self.geometry.compress_ratio
        return super().visible(slot, t, start) if begun else list(range(len(slot.main.entries)))


@cache_bug(kinds=COMPRESSED)
class ResetKeepsTheRemainder(Cache):
    """What there is of a block goes into the first block of the next request."""

    def emptied(self, slot: Slot) -> Slot:
        """Keep it."""
        return Slot(main=Blocks(filling=slot.main.filling), index=Blocks(filling=slot.index.filling))


@cache_bug(kinds=CSA)
class ResetKeepsTheBlockBefore(Cache):
    """The first block of the next request overlaps with the last request."""

    def emptied(self, slot: Slot) -> Slot:
        """Keep it."""
        return Slot(main=Blocks(before=slot.main.before), index=Blocks(before=slot.index.before))


@cache_bug(kinds=CSA)
class ResetKeepsTheBlockBeforeAShortRequest(ResetKeepsTheBlockBefore):
    """A first call of a whole block clears it, as in the official code, whose state is never cleared otherwise."""

    def extend_row(self, slot: Slot, tokens: Tensor) -> Tensor:
        """Clear it."""
        if not slot.count and len(tokens) >= self.geometry.compress_ratio:
            slot.main.before, slot.index.before = [], []
        return super().extend_row(slot, tokens)


@cache_bug()
class ResetKeepsTheKeys(Cache):
    """The window reaches into the last request."""

    def emptied(self, slot: Slot) -> Slot:
        """Keep them."""
        return Slot(keys=slot.keys)


# REORDER, SELECT, REPEAT, CLEAR


@cache_bug(kinds=COMPRESSED)
class ReorderForgetsTheEntries(Cache):
    """Entries stay where they are."""

    def moved(self, source: Slot, target: Slot) -> Slot:
        """Keep those of the row."""
        return replace(
            source.copied(), main=replace(source.main.copied(), entries=list(target.main.entries))
        )


@cache_bug(kinds=CSA)
class ReorderForgetsTheIndexKeys(Cache):
    """Index keys stay where they are."""

    def moved(self, source: Slot, target: Slot) -> Slot:
        """Keep those of the row."""
        return replace(
            source.copied(), index=replace(source.index.copied(), entries=list(target.index.entries))
        )


@cache_bug()
class ReorderForgetsTheKeys(Cache):
    """Keys of the window stay where they are."""

    def moved(self, source: Slot, target: Slot) -> Slot:
        """Keep those of the row."""
        return replace(source.copied(), keys=list(target.keys))


@cache_bug(kinds=CSA)
class ReorderForgetsTheRemainder(Cache):
    """Unfinished blocks stay where they are; transformers before 5.23.0 moved no state of compressors at all."""

    def moved(self, source: Slot, target: Slot) -> Slot:
        """Keep those of the row."""
        new = source.copied()
        new.main.filling, new.index.filling = list(target.main.filling), list(target.index.filling)
        return new


@cache_bug(kinds=CSA)
class ReorderForgetsTheBlockBefore(Cache):
    """Blocks before stay where they are."""

    def moved(self, source: Slot, target: Slot) -> Slot:
        """Keep those of the row."""
        new = source.copied()
        new.main.before, new.index.before = list(target.main.before), list(target.index.before)
        return new


@cache_bug()
class ReordersBackwards(Cache):
    """Row ``rows[i]`` goes on as row i."""

    def reorder(self, rows: list[int]) -> None:
        """Send rows where they should come from."""
        new = self.save()
        for i, b in enumerate(rows):
            new[b] = self.slots[i].copied()
        self.slots = new


@cache_bug()
class ReordersInPlace(Cache):
    """Rows are overwritten before they are read."""

    def reorder(self, rows: list[int]) -> None:
        """Copy one after another."""
        for i, b in enumerate(rows):
            self.slots[i] = self.slots[b].copied()


@cache_bug()
class ReorderShares(Cache):
    """Two rows that go on as the same one have one state."""

    def moved(self, source: Slot, target: Slot) -> Slot:
        """Copy nothing."""
        return source


@cache_bug()
class SelectKeepsTheFirst(Cache):
    """As many rows as there should be, the first ones."""

    def select(self, rows: list[int]) -> None:
        """Cut the batch."""
        self.slots = self.slots[: len(rows)] + [
            slot.copied() for slot in self.slots[: len(rows) - len(self.slots)]
        ]


@cache_bug()
class SelectKeepsTheOrder(Cache):
    """Rows stay in the order of the old batch."""

    def select(self, rows: list[int]) -> None:
        """Sort them."""
        super().select(sorted(rows))


@cache_bug()
class RepeatTiles(Cache):
    """The whole batch again and again: 0 1 0 1 in place of 0 0 1 1."""

    def repeat(self, times: int) -> None:
        """Put copies behind one another."""
        self.slots = [slot.copied() for _ in range(times) for slot in self.slots]


@cache_bug()
class RepeatShares(Cache):
    """Copies have one state."""

    def repeat(self, times: int) -> None:
        """Copy nothing."""
        self.slots = [slot for slot in self.slots for _ in range(times)]


@cache_bug(kinds=COMPRESSED)
class ClearLeavesTheRemainder(Cache):
    """Another request gets a slot with what there is of a block."""

    def clear(self, rows: list[int]) -> None:
        """Keep it."""
        for b in rows:
            old = self.slots[b]
            self.slots[b] = Slot(
                main=Blocks(filling=old.main.filling), index=Blocks(filling=old.index.filling)
            )


@cache_bug(kinds=CSA)
class ClearLosesTheOverlapOfOthers(Cache):
    """The blocks before are cleared in all rows."""

    def clear(self, rows: list[int]) -> None:
        """Clear too much."""
        super().clear(rows)
        for slot in self.slots:
            slot.main.before, slot.index.before = [], []


@cache_bug()
class ClearKeepsOneLength(Cache):
    """Queries of all rows stand where those of the first row do."""

    def extend_row(self, slot: Slot, tokens: Tensor) -> Tensor:
        """The first row has got its tokens before the others."""
        self.shift = self.slots[0].count - slot.count - (slot is not self.slots[0]) * len(tokens)
        return super().extend_row(slot, tokens)

    def query_position(self, t: int, start: int) -> int:
        """Take that of the first row."""
        return t + self.shift


# ROLLBACK


@cache_bug("https://github.com/antirez/ds4/issues/750", kinds=CSA)
class RollbackKeepsTheCompressor(Cache):
    """Only keys are cropped, as in transformers."""

    def rolled_back(self, slot: Slot, n: int) -> Slot:
        """Keep the compressors' state."""
        return replace(super().rolled_back(slot, n), main=slot.main, index=slot.index)


@cache_bug(kinds=CSA)
class RollbackKeepsTheBlockBefore(Cache):
    """A block that is no longer complete stays the one before."""

    def rolled_back(self, slot: Slot, n: int) -> Slot:
        """Keep it."""
        back = super().rolled_back(slot, n)
        back.main.before, back.index.before = slot.main.before, slot.index.before
        return back


@cache_bug()
class RollbackDropsOldKeys(Cache):
    """The ring holds no more than the window, so rejected drafts have overwritten what is needed again."""

    def rolled_back(self, slot: Slot, n: int) -> Slot:
        """Keep what is left."""
        return replace(super().rolled_back(slot, n), keys=slot.keys[: max(0, len(slot.keys) - n)])


@cache_bug(
    "https://github.com/sgl-project/sglang/pull/32183",
    "https://github.com/sgl-project/sglang/pull/34189",
    "https://github.com/bytedance-iaas/sglang/pull/756",
    kinds=COMPRESSED,
)
class RollsBackFourTokens(Cache):
    """The state has room for four drafts."""

    def rolled_back(self, slot: Slot, n: int) -> Slot:
        """Lose the first token of the block beyond that."""
        back = super().rolled_back(slot, n)
        if n > 4:
            back.main.filling, back.index.filling = back.main.filling[1:], back.index.filling[1:]
        return back


@cache_bug("https://github.com/Blaizzy/mlx-vlm/issues/1896")
class RollsBackTheFirstRow(Cache):
    """Only the first row is rolled back, the others by one token less."""

    def rollback(self, n: int) -> None:
        """Take one count for all."""
        self.slots = [self.rolled_back(slot, n - (b > 0)) for b, slot in enumerate(self.slots)]


# FORK, SAVE, RESTORE


@cache_bug()
class ForkShares(Cache):
    """Both go on with one state."""

    def fork(self) -> Cache:
        """Copy nothing."""
        return copy(self)


@cache_bug("https://github.com/sgl-project/sglang/pull/35494", kinds=CSA)
class ForkSharesUnfinishedBlocks(Cache):
    """All is copied but the unfinished block."""

    def fork(self) -> Cache:
        """Share it."""
        other = super().fork()
        for new, old in zip(other.slots, self.slots, strict=True):
            new.main.filling, new.index.filling = old.main.filling, old.index.filling
        return other


@cache_bug()
class ForkMoves(Cache):
    """The copy takes everything with it."""

    def fork(self) -> Cache:
        """Leave nothing."""
        other = super().fork()
        self.reset()
        return other


@cache_bug()
class SharesSlotsWithOthers(Cache):
    """All streams have the same slots, which opening one clears; alone, each is right."""

    common: list[Slot]

    @property
    def slots(self) -> list[Slot]:
        """Those of all."""
        return SharesSlotsWithOthers.common

    @slots.setter
    def slots(self, slots: list[Slot]) -> None:
        SharesSlotsWithOthers.common = slots


@cache_bug()
class SavesAReference(Cache):
    """What was saved goes on with the stream."""

    def save(self) -> list[Slot]:
        """Copy nothing."""
        return self.slots

    def fork(self) -> Cache:
        """Copy here."""
        other = copy(self)
        other.slots = super().save()
        return other


@cache_bug()
class RestoresOnce(Cache):
    """What was restored goes on in what was saved."""

    def restore(self, state: list[Slot]) -> None:
        """Copy nothing."""
        self.slots = state


@cache_bug("https://github.com/ggml-org/llama.cpp/pull/26063")
class SavesWithoutKeys(Cache):
    """Keys are left out of what is saved."""

    def restore(self, state: list[Slot]) -> None:
        """Start the window anew."""
        super().restore([replace(slot, keys=[]) for slot in state])


@cache_bug(kinds=COMPRESSED)
class SavesWithoutTheRemainder(Cache):
    """Unfinished blocks are left out of what is saved."""

    def restore(self, state: list[Slot]) -> None:
        """Start the block anew."""
        super().restore(state)
        for slot in self.slots:
            slot.main.filling, slot.index.filling = [], []


@cache_bug("https://github.com/ml-explore/mlx-lm/pull/1109")
class RollbackDoesNothing(Cache):
    """A cache that cannot be cropped is silently left as it is."""

    def rollback(self, n: int) -> None:
        """Do nothing."""


@cache_bug(
    "https://github.com/ROCm/ATOM/issues/1417",
    "https://github.com/sgl-project/sglang/pull/30339",
)
class ForkForgetsTheKeys(Cache):
    """The keys of the window are in a ring of the request, which a shared prefix does not cover."""

    def fork(self) -> Cache:
        """Leave the ring empty."""
        other = super().fork()
        other.slots = [replace(slot, keys=[]) for slot in other.slots]
        return other


@cache_bug(
    "https://github.com/raullenchai/Rapid-MLX/pull/1469",
    "https://github.com/osaurus-ai/vmlx-swift/pull/199",
    "https://github.com/ikawrakow/ik_llama.cpp/issues/2438",
    kinds=COMPRESSED,
)
class RestoreTrimsKeysOnly(Cache):
    """What the compressors hold is not cut back, so it still has what came after."""

    def restore(self, state: list[Slot]) -> None:
        """Keep the compressors' state."""
        later = self.slots
        super().restore(state)
        for slot, old in zip(self.slots, later, strict=False):
            if old.count > slot.count:
                slot.main, slot.index = old.main.copied(), old.index.copied()


@cache_bug("https://github.com/lightseekorg/tokenspeed/pull/660", kinds=CSA)
class RestoresIndexKeysFromOtherPages(Cache):
    """One list of pages is used for entries and index keys, whose pages are others."""

    def restore(self, state: list[Slot]) -> None:
        """Take each index key from the place of its neighbour."""
        super().restore(state)
        for slot in self.slots:
            slot.index.entries = slot.index.entries[1:] + slot.index.entries[:1]


@cache_bug(
    equivalent="every query takes the last keys of those that there are, as many as the window is wide",
)
class KeepsOneKeyTooMany(Cache):
    """The ring holds one key more than later queries see."""

    def kept(self) -> int:
        """One too many."""
        return self.geometry.window
