"""Every smaller case of a stage, for the exhaustive search of :mod:`tools.minimality`.

What is smaller is said by the shape of a case: for a layer by :func:`csa_spec.engine.shrink.shape`, for a
stage by the sum of its sizes, for a cache by its calls, tokens and rows, then by the shape of its layer.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from itertools import islice, product
from typing import Any

from csa_spec.engine.case import CaseError
from csa_spec.engine.shrink import shape
from csa_spec.spec import Geometry, GeometryError, LayerKind
from csa_spec.stages.cache.case import CacheCase
from csa_spec.stages.cache.stream import Call, Op
from csa_spec.stages.layer.case import LayerCase, Row, Scores, Sinks, Values

HEADS = 2
"""Most heads of a layer that are tried, unless the reported case has more"""
SHAPES = 3000
"""Smaller shapes that are tried at most, the smallest first"""


def shape_of(case: Any) -> tuple[int, ...]:
    """Order cases of any stage by their shape."""
    if isinstance(case, Case):
        return (sum(case.sizes.values()),)
    if isinstance(case, CacheCase):
        numbers = sum(sum(call.numbers) for call in case.calls)
        return (len(case.calls), case.total, case.batch, numbers, *shape(case.layer)[2:4])
    return shape(case)


def letters(case: Any) -> dict[str, int]:
    """Return the sizes of a case by their letters; S of a cache is the number of all its tokens."""
    if isinstance(case, Case):
        return case.sizes
    layer = case.layer if isinstance(case, CacheCase) else case
    g = layer.geometry
    found = {"S": layer.columns, "m": g.compress_ratio, "k": g.top_k, "W": g.window, "H": g.heads}
    if isinstance(case, CacheCase):
        found |= {"S": case.total, "B": case.batch, "calls": len(case.calls)}
    return found


def smaller_cases(reported: Any, found: Any, count: int) -> Iterator[list[Any]]:
    """Yield what to try at each smaller shape, the smallest shape first.

    Parameters
    ----------
    reported
        The case that shrinking ended with.
    found
        The one that it began with, whose larger tensors and regimes are tried too.
    count
        Cases to try at each shape.
    """
    if isinstance(reported, Case):
        return islice(_smaller_recipes(reported, found, count), SHAPES)
    if isinstance(reported, CacheCase):
        return islice(_smaller_schedules(reported, found, count), SHAPES)
    return islice(_smaller_layers(reported, found, count), SHAPES)


# LAYERS


def _smaller_layers(reported: LayerCase, found: LayerCase, count: int) -> Iterator[list[LayerCase]]:
    shapes = [
        replace(reported, geometry=sizes, rows=rows)
        for rows in _layouts(reported)
        for sizes in _geometries(reported.geometry, max(length for row in rows for length in row.lengths))
    ]
    for case in sorted(shapes, key=shape):
        if shape(case) < shape(reported):
            yield list(_layer_probes(case, found, count))


def _geometries(g: Geometry, longest: int) -> Iterator[Geometry]:
    """Yield every m, k, W and number of heads that matter for documents up to some length."""
    ratios = [g.compress_ratio] if g.kind is LayerKind.SLIDING else range(1, longest + 2)
    heads = range(1, max(HEADS, g.heads) + 1)
    for m, window, h in product(ratios, range(1, longest + 2), heads):
        groups = 1 if h % g.o_groups else g.o_groups
        for k in range(longest // m + 2) if g.kind is LayerKind.CSA else [g.top_k]:
            yield replace(g, compress_ratio=m, top_k=k, window=window, heads=h, o_groups=groups)


def _layouts(reported: LayerCase) -> Iterator[tuple[Row, ...]]:
    """Yield the rows to try: single ones, and such as the reported case has."""
    yield from product(*map(_shorter, reported.rows))
    if len(reported.rows) > 1 or reported.features:
        yield from ((Row((length,)),) for length in range(1, reported.columns + 1))


def _shorter(row: Row) -> Iterator[Row]:
    for lengths in product(*(range(1, length + 1) for length in row.lengths)):
        for padding in range(row.left_padding + 1):
            for start in {0, min(row.start, 1), row.start}:
                yield Row(lengths, padding, start)


def _layer_probes(case: LayerCase, found: LayerCase, count: int) -> Iterator[LayerCase]:
    """Yield cases of one shape that differ in everything else."""
    rng = random.Random(str(case))
    g, f = case.geometry, found.geometry
    groups = 1 if g.heads % f.o_groups else f.o_groups
    wide = replace(
        f, compress_ratio=g.compress_ratio, top_k=g.top_k, window=g.window, heads=g.heads, o_groups=groups
    )
    csa = g.kind is LayerKind.CSA
    for number in range(count):
        probe = replace(case, seed=1000 + number)
        if number % 3:
            probe = replace(
                probe, geometry=wide, values=found.values, scores=found.scores, sinks=found.sinks
            )
        if number % 3 == 2:
            probe = replace(probe, geometry=rng.choice((g, wide)), values=rng.choice(list(Values)),
                            scores=rng.choice(list(Scores)) if csa else Scores.FREE,
                            sinks=rng.choice(list(Sinks)))  # fmt: skip
        yield probe


# STAGES


def _smaller_recipes(reported: Case, found: Case, count: int) -> Iterator[list[Case]]:
    declared = [one for one in fields(reported) if "letter" in one.metadata]
    options = [_options(getattr(reported, one.name), one.metadata["least"]) for one in declared]
    names = [one.name for one in declared]
    shapes: list[dict[str, Any]] = [dict(zip(names, sizes, strict=True)) for sizes in product(*options)]
    for sizes in sorted(shapes, key=lambda sizes: sum(sizes.values())):
        if sum(sizes.values()) < sum(reported.sizes.values()):
            yield list(_recipe_probes(replace(reported, **sizes), found, count))


def _options(value: int, least: int) -> list[int]:
    """Return the sizes to try: all up to one more where there are few, else some."""
    if value <= least + 8:
        return list(range(least, value + 2))
    return sorted({least, least + 1, least + 2, value // 4, value // 2, value - 2, value - 1, value})


def _recipe_probes(case: Case, found: Case, count: int) -> Iterator[Case]:
    rng = random.Random(str(case))
    names = {one.name: list(one.metadata["kind"]) for one in fields(case) if "kind" in one.metadata}
    as_found = {name: getattr(found, name) for name in names}
    for number in range(count):
        drawn = {name: rng.choice(options) for name, options in names.items()}
        yield replace(case, seed=1000 + number, **({}, as_found, drawn)[number % 3])


# CACHES


def _smaller_schedules(reported: CacheCase, found: CacheCase, count: int) -> Iterator[list[CacheCase]]:
    schedules = {
        calls
        for kept in product((True, False), repeat=len(reported.calls))
        for calls in product(
            *(_shorter_calls(call) for call, keep in zip(reported.calls, kept, strict=True) if keep)
        )
    }
    shapes = {}
    for calls, batch in product(schedules, range(1, reported.batch + 1)):
        try:
            case = CacheCase(reported.layer, batch, calls)
        except CaseError:
            continue
        longest = max(len(row) for step in case.steps for row in step.rows)
        for sizes in _geometries(
            reported.layer.geometry, min(longest, reported.layer.geometry.compress_ratio)
        ):
            smaller = replace(case, layer=replace(reported.layer, geometry=sizes))
            if shape_of(smaller) < shape_of(reported):
                shapes[smaller] = shape_of(smaller)
    for case in sorted(shapes, key=lambda case: (shapes[case], str(case))):
        yield list(_cache_probes(case, found, count))


def _shorter_calls(call: Call) -> Iterable[Call]:
    if call.op in (Op.EXTEND, Op.ROLLBACK, Op.REPEAT):
        return [Call(call.op, (number,)) for number in range(1, call.numbers[0] + 1)]
    return [call]


def _cache_probes(case: CacheCase, found: CacheCase, count: int) -> Iterator[CacheCase]:
    for number, layer in enumerate(_layer_probes(case.layer, found.layer, count)):
        try:
            yield replace(case, layer=layer)
        except GeometryError:
            yield replace(case, layer=replace(case.layer, seed=number))
