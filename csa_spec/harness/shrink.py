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

from csa_spec.harness.case import Case, Row, Scores, Sinks, Values
from csa_spec.harness.failures import Failure
from csa_spec.harness.stage import Shrinking
from csa_spec.spec import Geometry, GeometryError, LayerKind

TRIALS = 400
"""Cases tried at most."""
SECONDS = 300.0
SEEDS = 6
"""Seeds tried on each smaller shape."""

_SMALLEST = Geometry()
_CONSTANTS = ("rope_theta", "compress_rope_theta", "norm_eps")

Judge = Callable[[Any], Failure | None]


def size(case: Case) -> tuple[int, ...]:
    """Order cases as a person would: fewer tokens first, then smaller rules, then smaller tensors."""
    g = case.geometry
    tokens = sum(row.width for row in case.rows)
    odd_constants = sum(getattr(g, name) != getattr(_SMALLEST, name) for name in _CONSTANTS)
    regime = ((Values, case.values), (Scores, case.scores), (Sinks, case.sinks))
    return (
        tokens + sum(len(row.lengths) + row.left_padding + min(row.start, 1) - 1 for row in case.rows),
        len(case.rows),
        g.compress_ratio + g.top_k + g.window,
        g.heads + g.head_dim + g.rope_dim + g.hidden + g.index_heads + g.index_head_dim,
        g.q_lora_rank + g.o_groups + g.o_lora_rank,
        (g.yarn is not None) + odd_constants + bool(case.mode) + sum(list(kind).index(one) for kind, one in regime),
        sum(row.start for row in case.rows),
        case.seed,
    )


def shrink(failure: Failure, judge: Judge, how: Shrinking, trials: int = TRIALS, seconds: float = SECONDS) -> Failure:
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
        if found is None or found.kind != best.kind:
            return False
        best = found
        return True

    progress = True
    while progress and left > 0 and time.monotonic() < end:
        progress = sum(_first(improves, pass_(best.case)) for pass_ in how.passes) > 0
        if not progress:
            progress = _first(improves, how.last(best.case))
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
            yield from (replace(changed, seed=seed) for seed in (case.seed, *range(SEEDS)))


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


def _smaller_shapes(case: Case) -> Iterator[Case]:
    """Every smaller shape of a single row, each with a few seeds: a seed that fails here may pass there."""
    if len(case.rows) > 1 or len(case.rows[0].lengths) > 1:
        return
    geometry, (row,) = case.geometry, case.rows
    rules = _RULES[geometry.kind]
    ranges = [range(0 if name == "top_k" else 1, getattr(geometry, name) + 1) for name in rules]
    shapes = itertools.product(range(1, row.lengths[0] + 1), *ranges)
    for length, *values in sorted(shapes, key=lambda shape: (shape[0], sum(shape[1:]))):
        smaller = replace(case, rows=(replace(row, lengths=(length,)),))
        for seed in range(SEEDS):
            yield from _with_geometry(replace(smaller, seed=seed), **dict(zip(rules, values, strict=True)))


def _with_geometry(case: Case, **changes: object) -> Iterator[Case]:
    try:
        yield replace(case, geometry=replace(case.geometry, **changes))  # type: ignore[arg-type]
    except GeometryError:
        return


_PASSES = (
    _fewer_rows,
    _simpler_rows,
    _smaller_rules,
    _smaller_sizes,
    _simpler_values,
    _plain_constants,
    _smaller_seed,
)

LAYER_SHRINKING = Shrinking(size, _PASSES, _smaller_shapes)
"""How cases of a whole layer get smaller."""
