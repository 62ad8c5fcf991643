"""Make a failing case small: shapes first, then seeds on every smaller shape, values a person can follow.

It works on cases, not on Hypothesis's choices: a case found by hand, by Hypothesis or in a report shrinks the
same way, and the kind of failure stays pinned.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from csa_spec.engine.case import Case, Row, Scores, Sinks, Values
from csa_spec.engine.failures import Failure
from csa_spec.engine.stage import Shrinking
from csa_spec.spec import Geometry, GeometryError, LayerKind

TRIALS = 1200
"""Cases tried at most."""
SECONDS = 300.0
SEEDS = 6
"""Seeds tried on each smaller shape, and twice as many for simpler values."""

_MANY_SEEDS = 30
"""Seeds tried where only the number of tokens changes"""
_FEW_TOKENS = 5
"""Longest document of which every smaller shape is tried"""
_SWEEP = 150
"""Cases of one sweep, about: where there are many shapes each gets fewer seeds"""

_SMALLEST = Geometry()
_CONSTANTS = ("rope_theta", "compress_rope_theta", "norm_eps")

Judge = Callable[[Any], Failure | None]


def shape(case: Case) -> tuple[int, ...]:
    """Order cases by their shape: fewer tokens first, then rows, smaller rules, fewer heads.

    Packed documents, padding and a start other than 0 count as tokens. Of rules whose sum is the same, a smaller m
    comes first, then a smaller k.
    """
    g = case.geometry
    odd = sum(len(row.lengths) - 1 + row.left_padding + min(row.start, 1) for row in case.rows)
    return (
        sum(row.width for row in case.rows) + odd,
        len(case.rows),
        g.compress_ratio + g.top_k + g.window,
        g.heads,
        g.compress_ratio,
        g.top_k,
    )


def size(case: Case) -> tuple[int, ...]:
    """Order cases as a person would: by shape, then smaller tensors, then simpler values, then seeds."""
    g = case.geometry
    odd_constants = sum(getattr(g, name) != getattr(_SMALLEST, name) for name in _CONSTANTS)
    regime = ((Values, case.values), (Scores, case.scores), (Sinks, case.sinks))
    return (
        *shape(case),
        g.head_dim + g.rope_dim + g.hidden + g.index_heads + g.index_head_dim,
        g.q_lora_rank + g.o_groups + g.o_lora_rank,
        (g.yarn is not None)
        + odd_constants
        + bool(case.mode)
        + sum(list(kind).index(one) for kind, one in regime),
        sum(row.start for row in case.rows),
        case.seed,
    )


def shrink(
    failure: Failure, judge: Judge, how: Shrinking, trials: int = TRIALS, seconds: float = SECONDS
) -> Failure:
    """Return the same kind of failure on the smallest case found.

    Parameters
    ----------
    failure
        To start from.
    judge
        Tries a case and returns its failure, if it fails.
    how
        How cases of this stage get smaller.
    trials, seconds
        Cases tried at most, and for how long; only a candidate that hangs takes so long.
    """
    size, best, tried = how.size, failure, {failure.case}
    left, end = trials, time.monotonic() + seconds

    def improves(case: Any) -> bool:
        nonlocal best, left
        if case in tried or left <= 0 or time.monotonic() > end or size(case) >= size(best.case):
            return False
        tried.add(case)
        left -= 1
        found = judge(case)
        if found is None or found.kind != best.kind or found.evident < best.evident:
            return False
        best = found
        return True

    progress = True
    while progress:
        progress = False
        for pass_ in how.passes:
            while _first(improves, pass_(best.case)):  # each to its end: shapes are settled before values
                progress = True
    return best


def _first(improves: Callable[[Any], bool], cases: Iterator[Any]) -> bool:
    return any(improves(case) for case in cases)


def _fewer_rows(case: Case) -> Iterator[Case]:
    if len(case.rows) > 1:
        for row in case.rows:
            yield replace(case, rows=(row,))
        for index in range(len(case.rows)):
            yield replace(case, rows=case.rows[:index] + case.rows[index + 1 :])


def _simpler_rows(case: Case) -> Iterator[Case]:
    for index, row in enumerate(case.rows):
        for simpler in _simpler_row(row):
            yield replace(case, rows=(*case.rows[:index], simpler, *case.rows[index + 1 :]))


def _simpler_row(row: Row) -> Iterator[Row]:
    if row.start:
        yield replace(row, start=0)
        yield replace(row, start=1)
    for padding in range(row.left_padding):
        yield replace(row, left_padding=padding)
    if len(row.lengths) > 1:
        for length in row.lengths:
            yield replace(row, lengths=(length,))
    for index, length in enumerate(row.lengths):
        for shorter in range(1, length):
            yield replace(row, lengths=(*row.lengths[:index], shorter, *row.lengths[index + 1 :]))


def _simpler_values(case: Case) -> Iterator[Case]:
    for name, kind in (("values", Values), ("scores", Scores), ("sinks", Sinks)):
        options = list(kind)
        for option in options[: options.index(getattr(case, name))]:
            changed = replace(case, **{name: option})  # type: ignore[arg-type]
            yield from (replace(changed, seed=seed) for seed in (case.seed, *range(2 * SEEDS)))


_RULES = {
    LayerKind.CSA: ("compress_ratio", "top_k", "window"),
    LayerKind.HCA: ("compress_ratio", "window"),
    LayerKind.SLIDING: ("window",),
}
_SIZES = ("heads", "head_dim", "rope_dim", "hidden", "index_heads", "index_head_dim", "q_lora_rank", "o_groups",
          "o_lora_rank")  # fmt: skip


def _smaller_rules(case: Case) -> Iterator[Case]:
    for name in _RULES[case.geometry.kind]:
        least = 0 if name == "top_k" else 1
        for value in range(least, getattr(case.geometry, name)):
            yield from _with_geometry(case, **{name: value})


def _fewer_heads(case: Case) -> Iterator[Case]:
    for heads in range(1, case.geometry.heads):
        groups = case.geometry.o_groups if heads % case.geometry.o_groups == 0 else 1
        yield from _with_geometry(case, heads=heads, o_groups=groups)


def _smaller_sizes(case: Case) -> Iterator[Case]:
    smallest = Geometry(kind=case.geometry.kind)
    everything = {name: getattr(smallest, name) for name in _SIZES}
    for seed in (case.seed, *range(SEEDS)):
        yield from _with_geometry(replace(case, seed=seed), **everything)
    for name in _SIZES:
        value = getattr(case.geometry, name)
        for smaller in dict.fromkeys((getattr(smallest, name), value // 2, value - 2, value - 1)):
            if getattr(smallest, name) <= smaller < value:
                for seed in (case.seed, 0, 1):
                    yield from _with_geometry(replace(case, seed=seed), **{name: smaller})
    yield from _with_geometry(case, yarn=None)


def _plain_constants(case: Case) -> Iterator[Case]:
    for names in (_CONSTANTS, *((name,) for name in _CONSTANTS)):
        yield from _with_geometry(case, **{name: getattr(_SMALLEST, name) for name in names})
    yield replace(case, mode="")


def _smaller_seed(case: Case) -> Iterator[Case]:
    yield from (replace(case, seed=seed) for seed in range(min(case.seed, 4 * SEEDS)))


def _fewer_tokens(case: Case) -> Iterator[Case]:
    """A little less of one thing, with many seeds: some mistakes rarely change what is selected."""
    fewer = [replace(case, rows=rows) for rows in itertools.product(*(_shortened(row) for row in case.rows))]
    if len(case.rows) > 1 or case.features:
        longest = max(length for row in case.rows for length in row.lengths)
        fewer += [replace(case, rows=(Row((length,)),)) for length in range(1, longest + 1)]
    fewer += [*_smaller_blocks(case), *_fewer_heads(case)]
    for smaller in fewer:
        if shape(smaller) < shape(case):
            yield from (replace(smaller, seed=seed) for seed in range(_MANY_SEEDS))


def _smaller_blocks(case: Case) -> Iterator[Case]:
    """As many blocks, of fewer tokens each."""
    m = case.geometry.compress_ratio
    for ratio in range(1, m if case.geometry.kind is not LayerKind.SLIDING else 1):
        rows = tuple(
            replace(
                row,
                lengths=tuple(
                    length // m * ratio + min(length % m, ratio - 1) or 1 for length in row.lengths
                ),
            )
            for row in case.rows
        )
        for window in {case.geometry.window, min(case.geometry.window, ratio)}:
            yield from (
                replace(one, rows=rows) for one in _with_geometry(case, compress_ratio=ratio, window=window)
            )


def _shortened(row: Row) -> Iterator[Row]:
    *others, last = row.lengths
    for length in range(max(1, last - 3), last + 1):
        yield replace(row, lengths=(*others, length))


def _every_smaller_shape(case: Case) -> Iterator[Case]:
    """Every smaller shape, each with a few seeds: a seed that fails here may pass there.

    A length can cost a larger rule: what shows in a window of one token after four shows in one of two after two.
    """
    shapes = sorted(_smaller_shapes(case), key=shape)
    for seed in range(max(2, min(SEEDS, _SWEEP // max(1, len(shapes))))):
        yield from (replace(smaller, seed=seed) for smaller in shapes)


def _smaller_shapes(case: Case) -> Iterator[Case]:
    geometry = case.geometry
    for rows in itertools.product(*map(_no_longer, case.rows)):
        longest = max(length for row in rows for length in row.lengths)
        if longest > _FEW_TOKENS:
            continue
        for rules in _rules_for(
            geometry, longest, max(length for row in case.rows for length in row.lengths)
        ):
            for heads in sorted({1, 2, geometry.heads}):
                groups = geometry.o_groups if heads % geometry.o_groups == 0 else 1
                changes = dict(zip(("compress_ratio", "top_k", "window"), rules, strict=True))
                for smaller in _with_geometry(case, heads=heads, o_groups=groups, **changes):
                    smaller = replace(smaller, rows=rows)
                    if shape(smaller) < shape(case):
                        yield smaller


def _no_longer(row: Row) -> Iterator[Row]:
    for lengths in itertools.product(*(range(1, length + 1) for length in row.lengths)):
        yield replace(row, lengths=lengths)


def _rules_for(geometry: Geometry, length: int, before: int) -> Iterator[tuple[int, int, int]]:
    """Yield m, k and W for a shorter document; what no query can tell from a smaller rule only if it was so before."""
    m, k, window = geometry.compress_ratio, geometry.top_k, geometry.window
    spare = int(window > before)
    for fewer in range(1, length + spare + 1):
        if geometry.kind is LayerKind.SLIDING:
            yield m, k, fewer
            continue
        for ratio in range(1, length + int(m > before) + 1):
            if geometry.kind is LayerKind.HCA:
                yield ratio, k, fewer
                continue
            spare_k = int(k > before // m)
            yield from ((ratio, few, fewer) for few in range(length // ratio + spare_k + 1))


def _with_geometry(case: Case, **changes: object) -> Iterator[Case]:
    try:
        yield replace(case, geometry=replace(case.geometry, **changes))  # type: ignore[arg-type]
    except GeometryError:
        return


def _shapes(case: Case) -> Iterator[Case]:
    for pass_ in (_fewer_rows, _simpler_rows, _smaller_rules, _fewer_heads):
        yield from pass_(case)


SHAPES = (_shapes, _every_smaller_shape, _fewer_tokens)
"""How a layer gets a smaller shape"""
DATA = (_smaller_sizes, _simpler_values, _plain_constants, _smaller_seed)
"""How its tensors get smaller and simpler"""

LAYER_SHRINKING = Shrinking(size, (*SHAPES, *DATA))
"""How cases of a whole layer get smaller."""
