"""A right stream, from which wrong ones are derived, and how they are registered.

``Cache`` keeps what serving engines keep: the last keys, what the compressors made of the unfinished block
and of the previous one, finished entries and index keys, and a count.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from csa_spec.bugs.bug import register
from csa_spec.spec import SPEC, CompressorWeights, Geometry, LayerKind, LayerWeights
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

    @property
    def compressors(self) -> tuple[Blocks, Blocks]:
        """Both compressors."""
        return self.main, self.index

    def only(self, part: str) -> Slot:
        """Return an empty slot but for one field of both compressors."""
        return Slot().taking(part, self)

    def without(self, part: str) -> Slot:
        """Return a copy in which one field of both compressors is empty."""
        return self.taking(part, Slot())

    def taking(self, part: str, other: Slot) -> Slot:
        """Return a copy with one field of both compressors of another slot."""
        new = self.copied()
        for mine, its in zip(new.compressors, other.compressors, strict=True):
            setattr(mine, part, list(getattr(its, part)))
        return new


class Cache:
    """A right stream, row by row and token by token, in float32 where the dtype is not wider."""

    def __init__(self, weights: LayerWeights, geometry: Geometry, batch: int) -> None:
        self.dtype = weights.wkv.dtype
        wide = torch.promote_types(self.dtype, torch.float32)
        self.weights = LayerWeights.from_named(
            {name: tensor.to(wide) for name, tensor in weights.named().items()}
        )
        self.geometry = geometry
        self.frequencies = SPEC.layer_frequencies(geometry).to(wide)
        self.slots = [Slot() for _ in range(batch)]

    # OPERATIONS

    def extend(self, hidden: Tensor) -> Tensor:
        """Take all tokens of a row in, then answer its queries."""
        rows = [
            self.extend_row(slot, tokens.to(self.weights.wkv.dtype))
            for slot, tokens in zip(self.slots, hidden, strict=False)
        ]
        return torch.stack(rows).to(self.dtype)

    def extend_rows(self, hidden: Tensor, lengths: list[int]) -> Tensor:
        """Take only the first tokens of each row in; what stands behind them gets zeros."""
        out = torch.zeros_like(hidden)
        for row, (slot, length) in enumerate(zip(self.slots, lengths, strict=True)):
            if length:
                tokens = hidden[row, :length].to(self.weights.wkv.dtype)
                out[row, :length] = self.extend_row(slot, tokens).to(self.dtype)
        return out

    def rollback(self, n: int) -> None:
        """Go back to what was kept before the last n tokens."""
        self.slots = [self.rolled_back(slot, n) for slot in self.slots]

    def rollback_rows(self, counts: list[int]) -> None:
        """Go back by as many tokens as each row's count says."""
        self.slots = [self.rolled_back(slot, n) for slot, n in zip(self.slots, counts, strict=True)]

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
        for blocks in slot.compressors:
            self.carry(blocks)

    def carry(self, blocks: Blocks) -> None:
        """Reduce a compressor's state to what is kept from one call to the next: all of it."""

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
        blocks.filling.append(self.projected(w, x, t))
        if (t + 1) % self.geometry.compress_ratio == 0:
            blocks.entries.append(self.entry(blocks, w, t, start))
            self.next_block(blocks)

    def projected(self, w: CompressorWeights, x: Tensor, t: int) -> Projected:
        """Return what a compressor makes of token t."""
        return w.wkv @ x, SPEC.pool_logit(w.wgate @ x, w.ape[t % self.geometry.compress_ratio])

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
        keys = [
            *self.window(slot, t, start),
            *(slot.main.entries[s] for s in self.chosen(slot, x, latent, t, start)),
        ]
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
        scores = [float(SPEC.index_score(q, head_weights, self.index_key(slot, s, start))) for s in visible]
        return SPEC.select(visible, scores, g.top_k)

    def index_key(self, slot: Slot, s: int, start: int) -> Tensor:
        """Return the index key of entry s."""
        return slot.index.entries[s]

    def rotate(self, x: Tensor, position: int) -> Tensor:
        """Rotate to a position."""
        return SPEC.rotate(x, position, self.frequencies)


ANY = (LayerKind.SLIDING, LayerKind.HCA, LayerKind.CSA)
COMPRESSED = (LayerKind.HCA, LayerKind.CSA)
"""Layer kinds in which a wrong stream shows, the plainest first."""

Stream = TypeVar("Stream", bound=type[Cache])


def cache_bug(
    name: str,
    cause: str,
    *urls: str,
    kinds: tuple[LayerKind, ...] = ANY,
    equivalent: str = "",
    **methods: Callable[..., Any],
) -> None:
    """Register a stream that is :class:`Cache` except for some methods.

    Parameters
    ----------
    name, cause, urls, equivalent
        As in :class:`csa_spec.bugs.bug.Bug`.
    kinds
        Layer kinds in which it shows, the plainest first.
    methods
        Methods of :class:`Cache` by name, and what takes their place; the first argument is the stream.
    """
    _register(
        type(name, (Cache,), methods), *urls, name=name, cause=cause, kinds=kinds, equivalent=equivalent
    )


def wrong_stream(*urls: str, kinds: tuple[LayerKind, ...] = ANY) -> Callable[[Stream], Stream]:
    """Register the decorated class; the bug is named after it in lower case, with underscores.

    Parameters are as in :func:`cache_bug`; the docstring of the class is the cause.
    """

    def register_class(stream: Stream) -> Stream:
        name = re.sub(r"(?<!^)(?=[A-Z0-9])", "_", stream.__name__).lower()
        _register(stream, *urls, name=name, cause=inspect.getdoc(stream), kinds=kinds)
        return stream

    return register_class


def _register(stream: type[Cache], *urls: str, **more: Any) -> None:
    def opened(weights: LayerWeights, geometry: Geometry, batch: int, /) -> Cache:
        return stream(weights, geometry, batch)

    opened.stream = stream  # type: ignore[attr-defined]
    register(opened, "cache", *urls, **more)
