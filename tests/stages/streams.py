"""Streams: right ones, and wrong ones with one mistake each, and what the suite must say about them.

``Cache`` keeps what serving engines keep: the last keys, what the compressors made of the block that is being filled
and of the block before it, finished entries and index keys, and a count. ``Tokens`` keeps all tokens. A wrong stream is
``Cache`` with one method replaced. Where the mistake is one that somebody made, its URL is there.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from csa_spec.spec import SPEC, CompressorWeights, Geometry, LayerKind, LayerWeights, attend_batch
from csa_spec.spec.compressor import Half
from csa_spec.spec.indexer import index_scale
from csa_spec.spec.norm import rms_norm

Projected = tuple[Tensor, Tensor]
"""What a compressor makes of a token: content, and logits with the bias of its place."""


@dataclass
class Blocks:
    """One compressor's state in one row."""

    before: list[Projected] = field(default_factory=list)
    """The tokens of the last complete block"""
    filling: list[Projected] = field(default_factory=list)
    """Those of the block that is not complete"""
    entries: list[Tensor] = field(default_factory=list)

    def copied(self) -> Blocks:
        """Return the same in lists of its own; tensors never change."""
        return Blocks(list(self.before), list(self.filling), list(self.entries))


@dataclass
class Slot:
    """What is kept of one row."""

    count: int = 0
    """Tokens so far"""
    keys: list[Tensor] = field(default_factory=list)
    """Keys of the last tokens"""
    main: Blocks = field(default_factory=Blocks)
    index: Blocks = field(default_factory=Blocks)
    past: list[Slot] = field(default_factory=list)
    """What was kept before each token, to go back to"""

    def copied(self) -> Slot:
        """Return the same in lists of its own."""
        return Slot(self.count, list(self.keys), self.main.copied(), self.index.copied(), list(self.past))


class Cache:
    """A right stream, row by row and token by token, in float32 where the dtype is not wider."""

    def __init__(self, weights: LayerWeights, geometry: Geometry, batch: int) -> None:
        self.dtype = weights.wkv.dtype
        wide = torch.promote_types(self.dtype, torch.float32)
        self.weights = LayerWeights.from_named({name: tensor.to(wide) for name, tensor in weights.named().items()})
        self.geometry = geometry
        self.frequencies = SPEC.layer_frequencies(geometry).to(wide)
        self.slots = [Slot() for _ in range(batch)]

    # OPERATIONS

    def extend(self, hidden: Tensor) -> Tensor:
        """Take all tokens of a row in, then answer its queries."""
        rows = [self.extend_row(slot, tokens.to(self.weights.wkv.dtype)) for slot, tokens in zip(self.slots, hidden)]  # noqa: B905
        return torch.stack(rows).to(self.dtype)

    def rollback(self, n: int) -> None:
        """Go back to what was kept before the last n tokens."""
        self.slots = [self.rolled_back(slot, n) for slot in self.slots]

    def reset(self) -> None:
        """Forget everything."""
        self.slots = [self.emptied(slot) for slot in self.slots]

    def clear(self, rows: list[int]) -> None:
        """Forget some rows."""
        self.slots = [self.emptied(slot) if b in rows else slot for b, slot in enumerate(self.slots)]

    def reorder(self, rows: list[int]) -> None:
        """Row i goes on as ``rows[i]``."""
        self.slots = [self.moved(self.slots[b], self.slots[i]) for i, b in enumerate(rows)]

    def select(self, rows: list[int]) -> None:
        """Keep some rows."""
        self.slots = [self.slots[b].copied() for b in rows]

    def repeat(self, times: int) -> None:
        """Put the copies of a row side by side."""
        self.slots = [slot.copied() for slot in self.slots for _ in range(times)]

    def fork(self) -> Cache:
        """Return a copy."""
        other = copy(self)
        other.slots = self.save()
        return other

    def save(self) -> list[Slot]:
        """Return a copy of all rows."""
        return [slot.copied() for slot in self.slots]

    def restore(self, state: list[Slot]) -> None:
        """Go on with a copy of what was saved."""
        self.slots = [slot.copied() for slot in state]

    # PARTS OF OPERATIONS

    def emptied(self, slot: Slot) -> Slot:
        """Return what a row is like without tokens."""
        return Slot()

    def moved(self, source: Slot, target: Slot) -> Slot:
        """Return what row ``target`` is like when it goes on as ``source``."""
        return source.copied()

    def rolled_back(self, slot: Slot, n: int) -> Slot:
        """Return what a row was like n tokens ago."""
        length = slot.count - n
        back = slot.past[length] if n else slot
        return replace(back.copied(), past=slot.past[:length])

    def extend_row(self, slot: Slot, tokens: Tensor) -> Tensor:
        """Take in ``[n, hidden]``, and answer them."""
        start = slot.count
        for x in tokens:
            slot.past.append(replace(slot.copied(), past=[]))
            self.take_in(slot, x, start)
            slot.count += 1
        out = torch.stack([self.answer(slot, x, start + i, start) for i, x in enumerate(tokens)])
        self.finish(slot, start)
        return out

    def finish(self, slot: Slot, start: int) -> None:
        """Drop keys that no later query sees."""
        slot.keys = slot.keys[max(0, len(slot.keys) - self.kept()) :]
        for blocks in (slot.main, slot.index):
            self.carry(blocks)

    def carry(self, blocks: Blocks) -> None:
        """Make what a compressor keeps from one call to the next out of what it has at its end: all of it."""

    def kept(self) -> int:
        """Return how many keys later queries see at most."""
        return self.geometry.window - 1

    def take_in(self, slot: Slot, x: Tensor, start: int) -> None:
        """Store what is kept of one token."""
        w, t = self.weights, slot.count
        slot.keys.append(self.rotate(rms_norm(w.wkv @ x, w.kv_norm, self.geometry.norm_eps), t))
        if w.compressor is not None:
            self.feed(slot.main, w.compressor, x, t, start)
        if w.indexer is not None:
            self.feed(slot.index, w.indexer.compressor, x, t, start)

    def feed(self, blocks: Blocks, w: CompressorWeights, x: Tensor, t: int, start: int) -> None:
        """Give a token to a compressor; at the end of a block it makes an entry."""
        blocks.filling.append((w.wkv @ x, SPEC.pool_logit(w.wgate @ x, w.ape[t % self.geometry.compress_ratio])))
        if (t + 1) % self.geometry.compress_ratio == 0:
            blocks.entries.append(self.entry(blocks, w, t, start))
            self.next_block(blocks)

    def next_block(self, blocks: Blocks) -> None:
        """Let the complete block be the one before."""
        blocks.before, blocks.filling = blocks.filling, []

    def entry(self, blocks: Blocks, w: CompressorWeights, t: int, start: int) -> Tensor:
        """Pool the block that ends with token t, and the one before it."""
        dim, overlap = len(w.norm), self.geometry.overlap
        parts = [(one, SPEC.half_columns(Half.CURRENT, dim, overlap)) for one in blocks.filling]
        if overlap:
            before = blocks.before[-self.geometry.compress_ratio :]
            parts += [(one, SPEC.half_columns(Half.PREVIOUS, dim, overlap)) for one in before]
        values, logits = (torch.stack([one[i][columns] for one, columns in parts]) for i in (0, 1))
        pooled = rms_norm(SPEC.pool(values, logits), w.norm, self.geometry.norm_eps)
        return self.rotate(pooled, self.entry_position(t, start))

    def entry_position(self, t: int, start: int) -> int:
        """Return the position of the entry that ends with token t: that of its first token."""
        return t + 1 - self.geometry.compress_ratio

    def answer(self, slot: Slot, x: Tensor, t: int, start: int) -> Tensor:
        """Answer query t."""
        g, w, position = self.geometry, self.weights, self.query_position(t, start)
        latent = rms_norm(w.wq_a @ x, w.q_norm, g.norm_eps)
        q = self.rotate(rms_norm((w.wq_b @ latent).view(g.heads, -1), None, g.norm_eps), position)
        keys = [*self.window(slot, t, start), *(slot.main.entries[s] for s in self.chosen(slot, x, latent, t, start))]
        core, _ = SPEC.attend(q, torch.stack(keys), w.attn_sink, g.scale)
        return SPEC.project_output(self.rotate(core, -position), w.wo_a, w.wo_b, g.o_groups)

    def query_position(self, t: int, start: int) -> int:
        """Return the position of query t."""
        return t

    def window(self, slot: Slot, t: int, start: int) -> list[Tensor]:
        """Return the keys that query t sees; the last of all keys is that of the last token."""
        end = len(slot.keys) - (slot.count - 1 - t)
        return slot.keys[max(0, end - self.geometry.window) : end]

    def visible(self, slot: Slot, t: int, start: int) -> list[int]:
        """Return the entries that query t may select."""
        sliding = self.geometry.kind is LayerKind.SLIDING
        return [] if sliding else SPEC.visible_entries(t, self.geometry.compress_ratio)

    def chosen(self, slot: Slot, x: Tensor, latent: Tensor, t: int, start: int) -> list[int]:
        """Return the entries that query t attends to."""
        g, w, visible = self.geometry, self.weights.indexer, self.visible(slot, t, start)
        if w is None or not visible:
            return visible
        q = self.rotate((w.wq_b @ latent).view(g.index_heads, -1), t)
        head_weights = (w.weights_proj @ x) * index_scale(g.index_heads, g.index_head_dim)
        scores = [float(SPEC.index_score(q, head_weights, slot.index.entries[s])) for s in visible]
        return SPEC.select(visible, scores, g.top_k)

    def rotate(self, x: Tensor, position: int) -> Tensor:
        """Rotate to a position."""
        return SPEC.rotate(x, position, self.frequencies)


class Tokens:
    """A right stream that keeps all tokens of every row, and runs the specification on them."""

    def __init__(self, weights: LayerWeights, geometry: Geometry, batch: int) -> None:
        exact = LayerWeights.from_named({name: tensor.double() for name, tensor in weights.named().items()})
        self.layer = exact, geometry
        self.rows: list[list[Tensor]] = [[] for _ in range(batch)]

    def extend(self, hidden: Tensor) -> Tensor:
        """Run every row anew."""
        self.rows = [[*row, *tokens] for row, tokens in zip(self.rows, hidden, strict=True)]
        outs = []
        for row in self.rows:
            positions = torch.arange(len(row))[None]
            trace = attend_batch(torch.stack(row)[None].double(), *self.layer, positions, torch.zeros_like(positions))
            outs.append(trace.out[0, -hidden.shape[1] :])
        return torch.stack(outs).to(hidden.dtype)

    def rollback(self, n: int) -> None:
        """Drop the last n."""
        self.rows = [row[: len(row) - n] for row in self.rows]

    def reset(self) -> None:
        """Drop all."""
        self.rows = [[] for _ in self.rows]

    def clear(self, rows: list[int]) -> None:
        """Drop all of some rows."""
        self.rows = [[] if b in rows else row for b, row in enumerate(self.rows)]

    def reorder(self, rows: list[int]) -> None:
        """Take rows; lists are never changed in place."""
        self.rows = [self.rows[b] for b in rows]

    select = reorder

    def repeat(self, times: int) -> None:
        """Take every row that many times."""
        self.rows = [row for row in self.rows for _ in range(times)]

    def fork(self) -> Tokens:
        """Return another with the same rows."""
        return copy(self)

    def save(self) -> list[list[Tensor]]:
        """Return the rows."""
        return self.rows

    def restore(self, state: list[list[Tensor]]) -> None:
        """Take them back."""
        self.rows = state


def candidate_of(stream: type[Any], **operations: Any) -> Any:
    """Return a candidate that opens such streams."""

    def cache(weights: LayerWeights, geometry: Geometry, batch: int) -> Any:
        return stream(weights, geometry, batch)

    cache.__name__ = cache.__qualname__ = stream.__name__
    return cache


# WRONG BETWEEN ANY TWO CALLS


class LosesTheRemainder(Cache):
    """Tokens of an unfinished block are dropped at the end of a call."""

    def carry(self, blocks: Blocks) -> None:
        """Keep whole blocks only."""
        blocks.filling = []


class LosesTheOverlap(Cache):
    """The block before is known inside of a call only."""

    def carry(self, blocks: Blocks) -> None:
        """Forget it."""
        blocks.before = []


class CarriesTheBlockBeforeThat(Cache):
    """Of several blocks in one call the last but one is kept: https://github.com/GDzhu01/vllm-ascend-deepseekv4/pull/132."""

    def next_block(self, blocks: Blocks) -> None:
        """Keep all blocks until the call ends."""
        blocks.before, blocks.filling = blocks.before + blocks.filling, []

    def carry(self, blocks: Blocks) -> None:
        """Keep the last but one, where there are two."""
        m = self.geometry.compress_ratio
        blocks.before = (blocks.before[:-m] or blocks.before)[-m:]


class CarriesTheBlockThatIsFilled(Cache):
    """The block before is overwritten by what there is of the next."""

    def carry(self, blocks: Blocks) -> None:
        """Keep the unfinished block in both places."""
        blocks.before = list(blocks.filling) or blocks.before


class CarriesTheWrongHalf(Cache):
    """Of the block before the columns of the current role are kept."""

    def carry(self, blocks: Blocks) -> None:
        """Put the second half in the place of the first."""
        blocks.before = [tuple(x[len(x) // 2 :].repeat(2) for x in one) for one in blocks.before]  # type: ignore[misc]


class WritesIntoTheFirstEntry(Cache):
    """Decoding a token that ends no block writes to slot 0: https://github.com/sgl-project/sglang/pull/24872."""

    def feed(self, blocks: Blocks, w: CompressorWeights, x: Tensor, t: int, start: int) -> None:
        """Pool what there is of the block."""
        super().feed(blocks, w, x, t, start)
        if start and blocks.filling and blocks.entries:
            blocks.entries[0] = self.entry(blocks, w, t, start)


class CountsEntriesOnceACall(Cache):
    """All queries of a later call see what its first may see: VIS-07, in a port of the official helper."""

    def visible(self, slot: Slot, t: int, start: int) -> list[int]:
        """Count at the first token."""
        return super().visible(slot, start or t, start)


class CountsEntriesAfterTheCall(Cache):
    """The mask is made of the count after the update: https://github.com/SharpAI/SwiftLM/pull/159."""

    def visible(self, slot: Slot, t: int, start: int) -> list[int]:
        """Count at the last token."""
        return super().visible(slot, slot.count - 1 if start else t, start)


class SelectsOfThisCall(Cache):
    """Only entries of this call are scored: https://github.com/hw-native-sys/pypto-lib/issues/592."""

    def visible(self, slot: Slot, t: int, start: int) -> list[int]:
        """Leave earlier entries out."""
        return [s for s in super().visible(slot, t, start) if s >= start // self.geometry.compress_ratio]


class KeepsIndexKeysOfThisCall(Cache):
    """Index keys are not kept, picks count from the call's first: https://github.com/ml-explore/mlx-lm/pull/1189."""

    def finish(self, slot: Slot, start: int) -> None:
        """Drop them."""
        super().finish(slot, start)
        slot.index.entries = []

    def visible(self, slot: Slot, t: int, start: int) -> list[int]:
        """As many as there are index keys."""
        return super().visible(slot, t, start)[: len(slot.index.entries)]


class ClipsTheWindow(Cache):
    """Keys of earlier calls are not seen."""

    def window(self, slot: Slot, t: int, start: int) -> list[Tensor]:
        """Leave them out."""
        return super().window(slot, t, start)[-(t - start + 1) :]


class KeepsOneKeyTooFew(Cache):
    """The ring is as wide as the window without the query and its neighbour."""

    def kept(self) -> int:
        """One too few."""
        return max(0, self.geometry.window - 2)


class OverwritesTheRing(Cache):
    """A call longer than the window overwrites keys that it still needs: https://github.com/xLLM-AI/xllm/pull/1515."""

    def take_in(self, slot: Slot, x: Tensor, start: int) -> None:
        """Hold no more keys than the window has."""
        super().take_in(slot, x, start)
        if start:
            slot.keys = slot.keys[-self.geometry.window :]

    def window(self, slot: Slot, t: int, start: int) -> list[Tensor]:
        """Take what is left."""
        return super().window(slot, t, start) or slot.keys[:1]


class CountsEntryPositionsInTheCall(Cache):
    """Entries are rotated as if the call were the document."""

    def entry_position(self, t: int, start: int) -> int:
        """Count from the call's first token."""
        return super().entry_position(t, start) - start


class CountsQueryPositionsInTheCall(Cache):
    """Queries are rotated as if the call were the document."""

    def query_position(self, t: int, start: int) -> int:
        """Count from the call's first token."""
        return t - start


class SharesOneState(Cache):
    """All rows have one state: https://github.com/sgl-project/sglang/pull/35494."""

    def __init__(self, weights: LayerWeights, geometry: Geometry, batch: int) -> None:
        super().__init__(weights, geometry, batch)
        self.slots = self.slots[:1] * batch


# RESET


class ResetKeepsTheCount(Cache):
    """The counter of tokens survives."""

    def emptied(self, slot: Slot) -> Slot:
        """Keep it."""
        return Slot(slot.count, past=slot.past)

    def visible(self, slot: Slot, t: int, start: int) -> list[int]:
        """Point to what there is."""
        return super().visible(slot, t, start)[: len(slot.main.entries)]


class ResetKeepsTheEntries(Cache):
    """The counter of entries survives until a block is complete: https://github.com/Avarok-Cybersecurity/atlas/pull/279."""

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


class ResetKeepsTheRemainder(Cache):
    """What there is of a block goes into the first block of the next request."""

    def emptied(self, slot: Slot) -> Slot:
        """Keep it."""
        return Slot(main=Blocks(filling=slot.main.filling), index=Blocks(filling=slot.index.filling))


class ResetKeepsTheBlockBefore(Cache):
    """The first block of the next request overlaps with the last request."""

    def emptied(self, slot: Slot) -> Slot:
        """Keep it."""
        return Slot(main=Blocks(before=slot.main.before), index=Blocks(before=slot.index.before))


class ResetKeepsTheBlockBeforeAShortRequest(ResetKeepsTheBlockBefore):
    """A first call of a whole block clears it, as in the official code, whose state is never cleared otherwise."""

    def extend_row(self, slot: Slot, tokens: Tensor) -> Tensor:
        """Clear it."""
        if not slot.count and len(tokens) >= self.geometry.compress_ratio:
            slot.main.before, slot.index.before = [], []
        return super().extend_row(slot, tokens)


class ResetKeepsTheKeys(Cache):
    """The window reaches into the last request."""

    def emptied(self, slot: Slot) -> Slot:
        """Keep them."""
        return Slot(keys=slot.keys)


# REORDER, SELECT, REPEAT, CLEAR


class ReorderForgetsTheEntries(Cache):
    """Entries stay where they are."""

    def moved(self, source: Slot, target: Slot) -> Slot:
        """Keep those of the row."""
        return replace(source.copied(), main=replace(source.main.copied(), entries=list(target.main.entries)))


class ReorderForgetsTheIndexKeys(Cache):
    """Index keys stay where they are."""

    def moved(self, source: Slot, target: Slot) -> Slot:
        """Keep those of the row."""
        return replace(source.copied(), index=replace(source.index.copied(), entries=list(target.index.entries)))


class ReorderForgetsTheKeys(Cache):
    """Keys of the window stay where they are."""

    def moved(self, source: Slot, target: Slot) -> Slot:
        """Keep those of the row."""
        return replace(source.copied(), keys=list(target.keys))


class ReorderForgetsTheRemainder(Cache):
    """Unfinished blocks stay where they are; transformers before 5.23.0 moved no state of compressors at all."""

    def moved(self, source: Slot, target: Slot) -> Slot:
        """Keep those of the row."""
        new = source.copied()
        new.main.filling, new.index.filling = list(target.main.filling), list(target.index.filling)
        return new


class ReorderForgetsTheBlockBefore(Cache):
    """Blocks before stay where they are."""

    def moved(self, source: Slot, target: Slot) -> Slot:
        """Keep those of the row."""
        new = source.copied()
        new.main.before, new.index.before = list(target.main.before), list(target.index.before)
        return new


class ReordersBackwards(Cache):
    """Row ``rows[i]`` goes on as row i."""

    def reorder(self, rows: list[int]) -> None:
        """Send rows where they should come from."""
        new = self.save()
        for i, b in enumerate(rows):
            new[b] = self.slots[i].copied()
        self.slots = new


class ReordersInPlace(Cache):
    """Rows are overwritten before they are read."""

    def reorder(self, rows: list[int]) -> None:
        """Copy one after another."""
        for i, b in enumerate(rows):
            self.slots[i] = self.slots[b].copied()


class ReorderShares(Cache):
    """Two rows that go on as the same one have one state."""

    def moved(self, source: Slot, target: Slot) -> Slot:
        """Copy nothing."""
        return source


class SelectKeepsTheFirst(Cache):
    """As many rows as there should be, the first ones."""

    def select(self, rows: list[int]) -> None:
        """Cut the batch."""
        self.slots = self.slots[: len(rows)] + [slot.copied() for slot in self.slots[: len(rows) - len(self.slots)]]


class SelectKeepsTheOrder(Cache):
    """Rows stay in the order of the old batch."""

    def select(self, rows: list[int]) -> None:
        """Sort them."""
        super().select(sorted(rows))


class RepeatTiles(Cache):
    """The whole batch again and again: 0 1 0 1 in place of 0 0 1 1."""

    def repeat(self, times: int) -> None:
        """Put copies behind one another."""
        self.slots = [slot.copied() for _ in range(times) for slot in self.slots]


class RepeatShares(Cache):
    """Copies have one state."""

    def repeat(self, times: int) -> None:
        """Copy nothing."""
        self.slots = [slot for slot in self.slots for _ in range(times)]


class ClearLeavesTheRemainder(Cache):
    """Another request gets a slot with what there is of a block."""

    def clear(self, rows: list[int]) -> None:
        """Keep it."""
        for b in rows:
            old = self.slots[b]
            self.slots[b] = Slot(main=Blocks(filling=old.main.filling), index=Blocks(filling=old.index.filling))


class ClearLosesTheOverlapOfOthers(Cache):
    """The blocks before are cleared in all rows."""

    def clear(self, rows: list[int]) -> None:
        """Clear too much."""
        super().clear(rows)
        for slot in self.slots:
            slot.main.before, slot.index.before = [], []


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


class RollbackKeepsTheCompressor(Cache):
    """Only keys are cropped, as in transformers."""

    def rolled_back(self, slot: Slot, n: int) -> Slot:
        """Keep the compressors' state."""
        return replace(super().rolled_back(slot, n), main=slot.main, index=slot.index)


class RollbackKeepsTheBlockBefore(Cache):
    """A block that is no longer complete stays the one before."""

    def rolled_back(self, slot: Slot, n: int) -> Slot:
        """Keep it."""
        back = super().rolled_back(slot, n)
        back.main.before, back.index.before = slot.main.before, slot.index.before
        return back


class RollbackDropsOldKeys(Cache):
    """The ring holds no more than the window, so rejected drafts have overwritten what is needed again."""

    def rolled_back(self, slot: Slot, n: int) -> Slot:
        """Keep what is left: https://github.com/ml-explore/mlx-lm/pull/1109."""
        return replace(super().rolled_back(slot, n), keys=slot.keys[: max(0, len(slot.keys) - n)])


class RollsBackFourTokens(Cache):
    """The state has room for four drafts: https://github.com/sgl-project/sglang/pull/32183."""

    def rolled_back(self, slot: Slot, n: int) -> Slot:
        """Lose the first token of the block beyond that."""
        back = super().rolled_back(slot, n)
        if n > 4:
            back.main.filling, back.index.filling = back.main.filling[1:], back.index.filling[1:]
        return back


class RollsBackTheFirstRow(Cache):
    """Only the first row is rolled back, the others by one token less: https://github.com/Blaizzy/mlx-vlm/issues/1896."""

    def rollback(self, n: int) -> None:
        """Take one count for all."""
        self.slots = [self.rolled_back(slot, n - (b > 0)) for b, slot in enumerate(self.slots)]


# FORK, SAVE, RESTORE


class ForkShares(Cache):
    """Both go on with one state."""

    def fork(self) -> Cache:
        """Copy nothing."""
        return copy(self)


class ForkSharesUnfinishedBlocks(Cache):
    """All is copied but the unfinished block: https://github.com/sgl-project/sglang/pull/35494."""

    def fork(self) -> Cache:
        """Share it."""
        other = super().fork()
        for new, old in zip(other.slots, self.slots, strict=True):
            new.main.filling, new.index.filling = old.main.filling, old.index.filling
        return other


class ForkMoves(Cache):
    """The copy takes everything with it."""

    def fork(self) -> Cache:
        """Leave nothing."""
        other = super().fork()
        self.reset()
        return other


class SharesSlotsWithOthers(Cache):
    """All streams have the same slots, which opening one clears; alone, each is right."""

    common: list[Slot]

    @property
    def slots(self) -> list[Slot]:  # type: ignore[override]
        """Those of all."""
        return SharesSlotsWithOthers.common

    @slots.setter
    def slots(self, slots: list[Slot]) -> None:
        SharesSlotsWithOthers.common = slots


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


class RestoresOnce(Cache):
    """What was restored goes on in what was saved."""

    def restore(self, state: list[Slot]) -> None:
        """Copy nothing."""
        self.slots = state


class SavesWithoutKeys(Cache):
    """Keys are left out of what is saved: https://github.com/ggml-org/llama.cpp/pull/26063."""

    def restore(self, state: list[Slot]) -> None:
        """Start the window anew."""
        super().restore([replace(slot, keys=[]) for slot in state])


class SavesWithoutTheRemainder(Cache):
    """Unfinished blocks are left out of what is saved."""

    def restore(self, state: list[Slot]) -> None:
        """Start the block anew."""
        super().restore(state)
        for slot in self.slots:
            slot.main.filling, slot.index.filling = [], []


@dataclass(frozen=True, slots=True)
class Wrong:
    """A wrong stream, and what must be said of it."""

    stream: type[Cache]
    after: str
    """The operation that the failure must name"""
    layer: str = "csa"
    calls: int = 3
    """Calls of the smallest schedule"""


def _table(after: str, *rows: type[Cache] | tuple[type[Cache], dict[str, Any]]) -> dict[str, Wrong]:
    wrong = [Wrong(row, after) if isinstance(row, type) else Wrong(row[0], after, **row[1]) for row in rows]
    return {one.stream.__name__: one for one in wrong}


SLIDING: dict[str, Any] = {"layer": "sliding"}
HCA: dict[str, Any] = {"layer": "hca"}
FOUR: dict[str, Any] = {"calls": 4}
"""Something must be there to be saved, it must be saved, restored, and asked for."""

WRONG = {
    **_table(
        "extend",
        LosesTheRemainder,
        LosesTheOverlap,
        CarriesTheBlockBeforeThat,
        CarriesTheBlockThatIsFilled,
        CarriesTheWrongHalf,
        (WritesIntoTheFirstEntry, HCA),
        (CountsEntriesOnceACall, HCA),
        (CountsEntriesAfterTheCall, HCA),
        SelectsOfThisCall,
        KeepsIndexKeysOfThisCall,
        (ClipsTheWindow, SLIDING),
        (KeepsOneKeyTooFew, SLIDING),
        (OverwritesTheRing, SLIDING),
        (CountsEntryPositionsInTheCall, HCA),
        (CountsQueryPositionsInTheCall, SLIDING),
        (SharesOneState, SLIDING),
    ),
    **_table(
        "reset",
        (ResetKeepsTheCount, HCA),
        (ResetKeepsTheEntries, HCA),
        (ResetKeepsTheRemainder, HCA),
        ResetKeepsTheBlockBefore,
        # Only a first call of less than a block does not clear it, so the block has to be finished by another call.
        (ResetKeepsTheBlockBeforeAShortRequest, FOUR),
        (ResetKeepsTheKeys, SLIDING),
    ),
    **_table(
        "reorder",
        (ReorderForgetsTheEntries, HCA),
        ReorderForgetsTheIndexKeys,
        (ReorderForgetsTheKeys, SLIDING),
        ReorderForgetsTheRemainder,
        ReorderForgetsTheBlockBefore,
        (ReordersBackwards, SLIDING),
        (ReordersInPlace, SLIDING),
        (ReorderShares, SLIDING),
    ),
    **_table("select", (SelectKeepsTheFirst, SLIDING), (SelectKeepsTheOrder, SLIDING)),
    **_table("repeat", (RepeatTiles, SLIDING), (RepeatShares, SLIDING)),
    **_table("clear", (ClearLeavesTheRemainder, HCA), ClearLosesTheOverlapOfOthers, (ClearKeepsOneLength, SLIDING)),
    **_table(
        "rollback",
        RollbackKeepsTheCompressor,
        RollbackKeepsTheBlockBefore,
        (RollbackDropsOldKeys, SLIDING),
        (RollsBackFourTokens, HCA),
        (RollsBackTheFirstRow, SLIDING),
    ),
    **_table("fork", (ForkShares, SLIDING), ForkSharesUnfinishedBlocks, (ForkMoves, SLIDING)),
    **_table("other", (SharesSlotsWithOthers, SLIDING)),
    **_table(
        "restore",
        (SavesAReference, SLIDING | FOUR),
        (RestoresOnce, SLIDING | {"calls": 5}),  # the second time it restores what the first went on with
        (SavesWithoutKeys, SLIDING | FOUR),
        (SavesWithoutTheRemainder, HCA | FOUR),
    ),
}
"""Wrong streams by name."""
