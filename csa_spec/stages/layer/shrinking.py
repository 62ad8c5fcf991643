"""How a failing case of a layer gets small: shapes first, then tensors, values and seeds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from csa_spec.engine.case import CaseError
from csa_spec.spec import LayerKind
from csa_spec.stages.layer.case import CONSTANTS, LayerCase, Row, Scores, Sinks, Values

SEEDS = 6
"""Seeds tried on each smaller shape, and twice as many for simpler values."""

_MANY_SEEDS = 30
"""Seeds tried where only the number of tokens changes"""
_FEW_TOKENS = 5
"""Longest document of which every smaller shape is tried"""
_MOST_SHAPES = 20_000
"""Smaller shapes that are looked at; several packed rows have millions"""
_MUCH = 32
"""Above it, not everything that is less is tried"""
_SWEEP = 150
"""Cases of one sweep, about: where there are many shapes each gets fewer seeds"""

_SMALLEST = LayerCase()


def _fewer_rows(case: LayerCase) -> Iterator[LayerCase]:
    if len(case.rows) > 1:
        for row in case.rows:
            yield replace(case, rows=(row,))
        for index in range(len(case.rows)):
            yield replace(case, rows=case.rows[:index] + case.rows[index + 1 :])


def _simpler_rows(case: LayerCase) -> Iterator[LayerCase]:
    for index, row in enumerate(case.rows):
        for simpler in _simpler_row(row):
            yield replace(case, rows=(*case.rows[:index], simpler, *case.rows[index + 1 :]))


def _simpler_row(row: Row) -> Iterator[Row]:
    if row.start:
        yield replace(row, start=0)
        yield replace(row, start=1)
    for padding in _less_than(row.left_padding, 0):
        yield replace(row, left_padding=padding)
    if len(row.lengths) > 1:
        for length in row.lengths:
            yield replace(row, lengths=(length,))
    for index, length in enumerate(row.lengths):
        for shorter in _less_than(length, 1):
            yield replace(row, lengths=(*row.lengths[:index], shorter, *row.lengths[index + 1 :]))


def _less_than(value: int, least: int) -> Iterable[int]:
    """Return what is less, the least first; of what is less than much, what bisecting takes."""
    if value <= _MUCH:
        return range(least, value)
    halved = {value >> shift for shift in range(1, value.bit_length())}
    return sorted({least, *halved, *(value - (value >> shift) for shift in range(2, value.bit_length()))})


def _simpler_values(case: LayerCase) -> Iterator[LayerCase]:
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
_SIZES = (
    *("heads", "head_dim", "rope_dim", "hidden", "index_heads", "index_head_dim"),
    *("q_lora_rank", "o_groups", "o_lora_rank"),
)


def _smaller_rules(case: LayerCase) -> Iterator[LayerCase]:
    for name in _RULES[case.kind]:
        least = 0 if name == "top_k" else 1
        for value in _less_than(getattr(case.geometry, name), least):
            yield from _with(case, **{name: value})


def _fewer_heads(case: LayerCase) -> Iterator[LayerCase]:
    for heads in _less_than(case.heads, 1):
        yield from _with(case, **_of_heads(case, heads))


def _of_heads(case: LayerCase, heads: int) -> dict[str, int]:
    """Return so many heads, in as many groups as before where that is possible."""
    return {"heads": heads, "o_groups": case.o_groups if heads % case.o_groups == 0 else 1}


def _smaller_sizes(case: LayerCase) -> Iterator[LayerCase]:
    smallest = LayerCase(kind=case.kind)
    everything = {name: getattr(smallest, name) for name in _SIZES}
    for seed in (case.seed, *range(SEEDS)):
        yield from _with(replace(case, seed=seed), **everything)
    for name in _SIZES:
        value = getattr(case.geometry, name)
        for smaller in dict.fromkeys((getattr(smallest, name), value // 2, value - 2, value - 1)):
            if getattr(smallest, name) <= smaller < value:
                for seed in (case.seed, 0, 1):
                    yield from _with(replace(case, seed=seed), **{name: smaller})
    yield from _with(case, yarn=None)


def _plain_constants(case: LayerCase) -> Iterator[LayerCase]:
    for names in (CONSTANTS, *((name,) for name in CONSTANTS)):
        yield from _with(case, **{name: getattr(_SMALLEST, name) for name in names})
    yield replace(case, mode="")
    if case.judged and case.columns <= 2 * case.judged:
        yield replace(case, judged=0)


def _smaller_seed(case: LayerCase) -> Iterator[LayerCase]:
    yield from (replace(case, seed=seed) for seed in range(min(case.seed, 4 * SEEDS)))


def _fewer_tokens(case: LayerCase) -> Iterator[LayerCase]:
    """A little less of one thing, with many seeds: some mistakes rarely change what is selected."""
    fewer = [replace(case, rows=rows) for rows in itertools.product(*(_shortened(row) for row in case.rows))]
    if len(case.rows) > 1 or case.features:
        longest = max(length for row in case.rows for length in row.lengths)
        fewer += [replace(case, rows=(Row((length,)),)) for length in _less_than(longest + 1, 1)]
    fewer += [*_smaller_blocks(case), *_fewer_heads(case)]
    for smaller in fewer:
        if smaller.shape < case.shape:
            yield from (replace(smaller, seed=seed) for seed in range(_MANY_SEEDS))


def _smaller_blocks(case: LayerCase) -> Iterator[LayerCase]:
    """As many blocks, of fewer tokens each."""
    m = case.compress_ratio

    def shorter(row: Row, ratio: int) -> Row:
        lengths = [length // m * ratio + min(length % m, ratio - 1) or 1 for length in row.lengths]
        return replace(row, lengths=tuple(lengths))

    for ratio in range(1, m if case.kind is not LayerKind.SLIDING else 1):
        rows = tuple(shorter(row, ratio) for row in case.rows)
        for window in {case.window, min(case.window, ratio)}:
            yield from _with(case, compress_ratio=ratio, window=window, rows=rows)


def _shortened(row: Row) -> Iterator[Row]:
    *others, last = row.lengths
    for length in range(max(1, last - 3), last + 1):
        yield replace(row, lengths=(*others, length))


def _every_smaller_shape(case: LayerCase) -> Iterator[LayerCase]:
    """Every smaller shape, each with a few seeds: a seed that fails here may pass there.

    A length can cost a larger rule: what shows in a window of one token after four shows in one of two after
    two.
    """
    shapes = sorted(itertools.islice(_smaller_shapes(case), _MOST_SHAPES), key=lambda smaller: smaller.shape)
    for seed in range(max(2, min(SEEDS, _SWEEP // max(1, len(shapes))))):
        yield from (replace(smaller, seed=seed) for smaller in shapes)


def _smaller_shapes(case: LayerCase) -> Iterator[LayerCase]:
    for rows in itertools.product(*map(_no_longer, case.rows)):
        longest = max(length for row in rows for length in row.lengths)
        if longest > _FEW_TOKENS:
            continue
        for rules in _rules_for(case, longest, max(length for row in case.rows for length in row.lengths)):
            changes = dict(zip(("compress_ratio", "top_k", "window"), rules, strict=True))
            for heads in sorted({1, 2, case.heads}):
                for smaller in _with(case, **_of_heads(case, heads), **changes, rows=rows):
                    if smaller.shape < case.shape:
                        yield smaller


def _no_longer(row: Row) -> Iterator[Row]:
    for lengths in itertools.product(*(range(1, length + 1) for length in row.lengths)):
        yield replace(row, lengths=lengths)


def _rules_for(case: LayerCase, length: int, before: int) -> Iterator[tuple[int, int, int]]:
    """Yield m, k and W for a shorter document; rules beyond its length only if they were so before."""
    m, k, window = case.compress_ratio, case.top_k, case.window
    spare = int(window > before)
    for fewer in range(1, length + spare + 1):
        if case.kind is LayerKind.SLIDING:
            yield m, k, fewer
            continue
        for ratio in range(1, length + int(m > before) + 1):
            if case.kind is LayerKind.HCA:
                yield ratio, k, fewer
                continue
            spare_k = int(k > before // m)
            yield from ((ratio, few, fewer) for few in range(length // ratio + spare_k + 1))


def _with(case: LayerCase, **changes: Any) -> Iterator[LayerCase]:
    try:
        yield replace(case, **changes)
    except CaseError:
        return


def _shapes(case: LayerCase) -> Iterator[LayerCase]:
    for pass_ in (_fewer_rows, _simpler_rows, _smaller_rules, _fewer_heads):
        yield from pass_(case)


SHAPES = (_shapes, _every_smaller_shape, _fewer_tokens)
"""How a layer gets a smaller shape"""
DATA = (_smaller_sizes, _simpler_values, _plain_constants, _smaller_seed)
"""How its tensors get smaller and simpler"""
PASSES = (*SHAPES, *DATA)
