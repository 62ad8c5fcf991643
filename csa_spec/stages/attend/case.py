"""Cases of the stage ``attend``, and their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from csa_spec.engine.case import PER_QUERY, drawn, size
from csa_spec.engine.tensors import choice, generator, normal, with_shared_rows
from csa_spec.plug.capabilities import Capabilities
from csa_spec.plug.layouts import Layout
from csa_spec.stages.pages import PagedCase


class IndexLists(StrEnum):
    """What the index list of a query looks like. Where it is wider than needed, -1 fill it up."""

    PREFIX = "prefix"
    """0, 1, 2, ...: what hides a kernel that ignores its list"""
    SHUFFLED = "shuffled"
    """Some rows, in any order"""
    HOLES = "holes"
    """Shuffled, with -1 anywhere beside at least one key, which is often row 0"""
    LEADING = "leading"
    """Nothing but -1 at first, for whole tiles where the list is wide"""
    EMPTY = "empty"
    """About half of the queries, the first among them, have no key at all"""
    OUTSIDE = "outside"
    """Holes of indices that are out of range in other ways than -1; only for candidates that declare it"""


class CoreValues(StrEnum):
    """How queries and keys are drawn."""

    INTEGERS = "integers"
    GAUSSIAN = "gaussian"
    OVERFLOW = "overflow"
    """exp of a logit overflows without a running maximum"""


class CoreSinks(StrEnum):
    """Sink logits."""

    ZERO = "zero-sinks"
    DRAWN = "drawn-sinks"
    """About as large as the logits"""
    NONE = "no-sinks"
    """-inf: a plain softmax"""
    EXTREME = "extreme-sinks"
    """-inf, far above, far below or among the logits, one per head"""


class UnusedRows(StrEnum):
    """What stands in the rows of ``kv`` that no index of their batch row names."""

    DRAWN = "plain-unused"
    NAN = "nan-unused"
    HUGE = "huge-unused"
    """The largest number of the dtype, and infinity"""


class Scale(StrEnum):
    """The factor on q . k."""

    ONE = "scale-1"
    ROOT = "scale-root"
    """1 / sqrt(D), as in the layer"""


class Lengths(StrEnum):
    """How many places of a list count; only for candidates that declare it."""

    FULL = "full"
    """All of them"""
    RAGGED = "ragged"
    """For each query another number, none and all among them; behind them lies garbage"""


class IndexDtype(StrEnum):
    """The dtype of the indices, as far as candidates declare it."""

    INT64 = "int64"
    INT32 = "int32"


@dataclass(frozen=True, kw_only=True, repr=False)
class AttendCase(PagedCase):
    """One trial of ``attend``."""

    stage = "attend"
    products = (("B", "S"), ("S", "H"), ("H", "D"), ("N", "D"), ("B", "N"), ("S", "n"))
    rows: int = size("B", 1, "rows")
    queries: int = size("S", 1, "queries")
    heads: int = size("H", 1, "heads")
    head_dim: int = size("D", 1, "channels")
    keys: int = size("N", 0, "keys")
    picks: int = size("n", 0, "picks per query")
    indices: IndexLists = drawn(IndexLists)
    values: CoreValues = drawn(CoreValues)
    sinks: CoreSinks = drawn(CoreSinks)
    unused: UnusedRows = drawn(UnusedRows)
    scale: Scale = drawn(Scale)
    lengths: Lengths = drawn(Lengths, form=True)
    index_dtype: IndexDtype = drawn(IndexDtype, form=True)
    forms = frozenset({"index_dtypes", "lengths", "paged"})

    def formed(self, capabilities: Capabilities) -> AttendCase:
        """Return the case with lengths, indices and pages as a candidate declares them."""
        case, dtypes = super().formed(capabilities), capabilities.index_dtypes
        if case.lengths is not Lengths.FULL and not capabilities.lengths:
            case = replace(case, lengths=Lengths.FULL)
        if case.index_dtype not in dtypes:
            case = replace(case, index_dtype=next(dtype for dtype in IndexDtype if dtype in dtypes))
        return case

    @property
    def room(self) -> int:
        """What is behind the last key that a candidate can know of: pages have no number of keys."""
        return self.places(self.keys)

    @property
    def numbers(self) -> Mapping[str, int]:
        """How many numbers it takes, by what they are for; unused keys are found with Python's sets."""
        queries = self.rows * self.queries
        return {
            "q": queries * self.heads * self.head_dim,
            "kv": self.rows * self.keys * (self.head_dim + 16),
            "pages": self.pages(self.rows, self.keys) * self.page * self.head_dim,
            "index lists": queries * self.picks,
            "the work on each query": queries * self.heads * PER_QUERY + self.heads * self.picks,
        }

    def without_lacks(self, capabilities: Capabilities) -> tuple[AttendCase, list[str]]:
        """Return the case without what is not supported; other indices than -1 for none must be declared."""
        declared = capabilities.invalid_indices or (self.stage, IndexLists.OUTSIDE) in capabilities.lacks
        if self.indices is not IndexLists.OUTSIDE or declared:
            return super().without_lacks(capabilities)
        case, lacking = replace(self, indices=IndexLists.HOLES).without_lacks(capabilities)
        return case, [*lacking, "indices outside"]


def make_attend_inputs(case: AttendCase) -> dict[str, Any]:
    """Make the tensors of a case, on the CPU."""
    b, s, h, d, n = case.rows, case.queries, case.heads, case.head_dim, case.keys
    dtype = getattr(torch, case.dtype)
    if case.values is CoreValues.INTEGERS:
        q = choice(case.seed, "q", (b, s, h, d), (-1.0, 1.0, 2.0))
        kv = choice(case.seed, "kv", (b, n, d), (-2.0, -1.0, 1.0, 2.0, 3.0))
    else:
        q, kv = normal(case.seed, "q", (b, s, h, d)), normal(case.seed, "kv", (b, n, d))
    if case.values is CoreValues.OVERFLOW:
        q, kv = 12 * q, 12 * kv
    listed, lengths = _indices(case), None if case.lengths is Lengths.FULL else _lengths(case)
    if lengths is not None:
        listed = torch.where(torch.arange(case.picks) < lengths[..., None], listed, -1)
    kv, q, indices = with_shared_rows(case, kv=kv.to(dtype), q=q, indices=listed)
    kv = _unused_filled(case, kv, indices)
    scale = {Scale.ONE: 1.0, Scale.ROOT: d**-0.5}[case.scale]
    inputs = {
        "q": q.to(dtype),
        "kv": kv,
        "indices": indices,
        "sinks": _sinks(case).to(dtype),
        "scale": scale,
    }
    return inputs if lengths is None else {**inputs, LENGTHS: lengths}


def _indices(case: AttendCase) -> Tensor:
    """Return the index lists ``[B, S, n]``; those of very many queries repeat after a prime number of them."""
    rows, queries = (min(count, _LISTS) for count in (case.rows, case.queries))
    lists = torch.full((rows, queries, case.picks), -1, dtype=torch.long)
    for row in range(rows):
        for t in range(queries):
            listed = _index_list(case, row, t)
            lists[row, t, : len(listed)] = torch.tensor(listed, dtype=torch.long)
    return lists[torch.arange(case.rows) % rows][:, torch.arange(case.queries) % queries]


LENGTHS = "topk_length"


def _lengths(case: AttendCase) -> Tensor:
    """Return how many places of each list count, ``[B, S]``: none, all, whole tiles, or any number."""
    shape, n = (case.rows, case.queries), case.picks
    rng = generator(case.seed, "lengths")
    lengths = torch.randint(n + 1, shape, generator=rng)
    tile = 2 ** torch.randint(8, shape, generator=rng)
    what = torch.rand(shape, generator=rng)
    lengths = torch.where(what < 0.3, lengths // tile * tile, lengths)
    lengths = lengths.masked_fill(what > 0.8, 0).masked_fill(what > 0.9, n)
    # Where rows of lists are equal, so are their lengths.
    return lengths[:1].repeat(case.rows, 1) if case.layout is Layout.EXPANDED else lengths


def behind_lengths(case: AttendCase, indices: Tensor, lengths: Tensor) -> Tensor:
    """Return lists ``[B, S, n]`` with garbage behind their lengths: mostly other keys, some that are none."""
    rng = generator(case.seed, "garbage")
    odd = torch.tensor((-1, case.room, 2**31 - 1, -(2**31)))
    garbage = odd[torch.randint(len(odd), indices.shape, generator=rng)]
    if case.keys:
        keys = torch.randint(case.keys, indices.shape, generator=rng)
        garbage = torch.where(torch.rand(indices.shape, generator=rng) < 0.7, keys, garbage)
    return torch.where(torch.arange(indices.shape[-1]) < lengths[..., None], indices, garbage)


def named_keys(indices: Tensor, keys: int) -> Tensor:
    """Return which keys ``[B, N]`` an index of their row names."""
    named = torch.where((indices < 0) | (indices >= keys), keys, indices).flatten(1)
    return torch.zeros(len(indices), keys + 1, dtype=torch.bool).scatter(1, named, True)[:, :-1]


def _unused_filled(case: AttendCase, kv: Tensor, indices: Tensor) -> Tensor:
    """Return ``kv`` with something else in the rows that no index of their batch row names."""
    if case.unused is UnusedRows.DRAWN:
        return kv
    unused = ~named_keys(indices, case.keys)
    largest = torch.finfo(kv.dtype).max
    fill = [torch.nan] if case.unused is UnusedRows.NAN else [largest, -largest, torch.inf]
    numbers = (unused.cumsum(1) - 1) % len(fill)
    return torch.where(unused[..., None], torch.tensor(fill, dtype=kv.dtype)[numbers][..., None], kv)


_LISTS = 997
"""Different index lists at most, along each dimension: a prime, so that no tile has the lists of another.
And of longer lists the holes are drawn at once."""


def _index_list(case: AttendCase, row: int, t: int) -> list[int]:
    """Return the index list of one query, without what fills it up at its end."""
    rng = generator(case.seed, f"indices {row} {t}")
    n, width, kind = case.keys, case.picks, case.indices

    def some(most: int, pool: range) -> list[int]:
        order = torch.randperm(len(pool), generator=rng)[: max(0, most)].tolist()
        return [pool[i] for i in order]

    def at_random(probability: float) -> bool:
        return bool(torch.rand((), generator=rng) < probability)

    if kind is IndexLists.PREFIX:
        return list(range(min(n, width)))
    if kind is IndexLists.EMPTY:
        return [] if t == 0 or at_random(0.5) else some(width, range(n))
    if kind is IndexLists.LEADING:
        few = min(n, max(1, width // 4))
        return ([-1] * (width - few) + some(few, range(n)))[:width]
    listed = some(width, range(n))
    if listed and n > _LISTS and at_random(0.5):  # the farthest address; shorter kv are named to their ends
        listed = [*(index for index in listed if index != n - 1), n - 1][-len(listed) :]
    if kind is IndexLists.SHUFFLED:
        return listed
    if not listed:
        return []
    if 0 not in listed and at_random(0.5):
        listed[0] = 0
    kept = int(torch.randint(len(listed), (), generator=rng))
    holes = (-1,) if kind is IndexLists.HOLES else (-2, case.room, case.room + 1, 2**31 - 1, -(2**31), -1)
    if len(listed) > _LISTS:  # one by one takes too long
        gone = (torch.rand(len(listed), generator=rng) < 0.4).tolist()
        which = torch.randint(len(holes), (len(listed),), generator=rng).tolist()
        return [holes[which[i]] if gone[i] and i != kept else listed[i] for i in range(len(listed))]
    return [
        holes[int(torch.randint(len(holes), (), generator=rng))]
        if place != kept and at_random(0.4)
        else index
        for place, index in enumerate(listed)
    ]


def _sinks(case: AttendCase) -> Tensor:
    shape = (case.heads,)
    if case.sinks is CoreSinks.ZERO:
        return torch.zeros(shape, dtype=torch.float64)
    if case.sinks is CoreSinks.NONE:
        return torch.full(shape, -torch.inf, dtype=torch.float64)
    if case.sinks is CoreSinks.EXTREME:
        return choice(case.seed, "sinks", shape, (-torch.inf, -50.0, 0.5, 4.0, 50.0))
    if case.values is CoreValues.INTEGERS:
        return choice(case.seed, "sinks", shape, (-1.0, 1.0, 2.0))
    return normal(case.seed, "sinks", shape)
