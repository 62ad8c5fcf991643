"""Every smaller case of a stage, for the exhaustive search of :mod:`tools.minimality`.

What is smaller is said by the shape of a case: for a layer by ``LayerCase.shape``, for a single stage by the sum of
its sizes, for a cache by its calls, tokens and rows, then by its layer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from itertools import islice, product
from typing import Any, TypeVar

from csa_spec.engine.case import Case, CaseError
from csa_spec.spec import Geometry, LayerKind
from csa_spec.stages.cache.case import CacheCase
from csa_spec.stages.cache.stream import Call, Op
from csa_spec.stages.layer.case import LayerCase, OfLayer, Row, Scores, Sinks, Values

HEADS = 2
"""Most heads of a layer that are tried, unless the reported case has more"""
SHAPES = 3000
"""Smaller shapes that are tried at most, the smallest first"""

Layer = TypeVar("Layer", bound=OfLayer)
Rules = dict[str, Any]
"""The sizes of a layer that make its shape, by the names of their fields"""


def shape_of(case: Any) -> tuple[int, ...]:
    """Order cases of any stage by their shape."""
    if isinstance(case, LayerCase):
        return case.shape
    if isinstance(case, CacheCase):
        numbers = sum(sum(call.numbers) for call in case.calls)
        first = (len(case.calls), case.total, case.batch, case.turn, numbers)
        return (*first, *case.one_document(1).shape[2:4])
    return (sum(case.sizes.values()),)


def letters(case: Any) -> dict[str, int]:
    """Return the sizes that make the shape of a case, by their letters; S of a cache counts the tokens of all calls."""
    if not isinstance(case, OfLayer):
        return dict(case.sizes)
    found = {"m": case.compress_ratio, "k": case.top_k, "W": case.window, "H": case.heads}
    if isinstance(case, CacheCase):
        own = {"S": case.total, "B": case.batch, "calls": len(case.calls), "turn": case.turn}
        return {**own, **found}
    return {"S": case.sizes["S"], **found}


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
    shapes: Callable[[Any], Iterator[Any]] = _recipes
    probes: Callable[[Any, Any, int], Iterator[Any]] = _probes
    if isinstance(reported, OfLayer):
        shapes, probes = _layers if isinstance(reported, LayerCase) else _schedules, _layer_probes
    smaller = {case for case in shapes(reported) if shape_of(case) < shape_of(reported)}
    for case in islice(sorted(smaller, key=lambda case: (shape_of(case), str(case))), SHAPES):
        yield list(probes(case, found, count))


# LAYERS


def _layers(reported: LayerCase) -> Iterator[LayerCase]:
    for rows in _layouts(reported):
        for rules in _rules(reported, max(length for row in rows for length in row.lengths)):
            yield replace(reported, rows=rows, **rules)


def _rules(case: OfLayer, longest: int) -> Iterator[Rules]:
    """Yield every m, k, W and number of heads that matter for documents up to some length."""
    ratios = [case.compress_ratio] if case.kind is LayerKind.SLIDING else range(1, longest + 2)
    heads = range(1, max(HEADS, case.heads) + 1)
    for m, window, h in product(ratios, range(1, longest + 2), heads):
        for k in range(longest // m + 2) if case.kind is LayerKind.CSA else [case.top_k]:
            rules = {"compress_ratio": m, "top_k": k, "window": window, "heads": h}
            yield {**rules, "o_groups": _groups(h, case)}


def _groups(heads: int, like: OfLayer) -> int:
    return 1 if heads % like.o_groups else like.o_groups


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


_SHAPE = ("kind", "compress_ratio", "top_k", "window", "heads", "o_groups")
_TENSORS = tuple(one.name for one in fields(Geometry) if one.name not in _SHAPE)


def _layer_probes(case: Layer, found: OfLayer, count: int) -> Iterator[Layer]:
    """Yield cases of one shape that differ in everything else."""
    rng = random.Random(str(case))
    wide: Rules = {name: getattr(found, name) for name in _TENSORS}
    wide["o_groups"] = _groups(case.heads, found)
    as_found: Rules = {name: getattr(found, name) for name in ("values", "scores", "sinks")}
    scores = list(Scores) if case.kind is LayerKind.CSA else [Scores.FREE]
    for number in range(count):
        drawn: Rules = {
            **rng.choice(({}, wide)),
            "values": rng.choice(list(Values)),
            "scores": rng.choice(scores),
            "sinks": rng.choice(list(Sinks)),
        }
        changes = ({}, {**wide, **as_found}, drawn)[number % 3]
        yield replace(case, seed=1000 + number, **changes)


# SINGLE STAGES


def _recipes(reported: Case) -> Iterator[Case]:
    declared = [one for one in fields(reported) if "letter" in one.metadata]
    options = [_options(getattr(reported, one.name), one.metadata["least"]) for one in declared]
    for sizes in product(*options):
        changes: Rules = dict(zip((one.name for one in declared), sizes, strict=True))
        yield replace(reported, **changes)


def _options(value: int, least: int) -> list[int]:
    """Return the sizes to try: all up to one more where there are few, else some."""
    if value <= least + 8:
        return list(range(least, value + 2))
    return sorted({least, least + 1, least + 2, value // 4, value // 2, value - 2, value - 1, value})


def _probes(case: Case, found: Case, count: int) -> Iterator[Case]:
    rng = random.Random(str(case))
    names = {one.name: list(one.metadata["kind"]) for one in fields(case) if "kind" in one.metadata}
    as_found: Rules = {name: getattr(found, name) for name in names}
    for number in range(count):
        drawn: Rules = {name: rng.choice(options) for name, options in names.items()}
        yield replace(case, seed=1000 + number, **({}, as_found, drawn)[number % 3])


# CACHES


def _schedules(reported: CacheCase) -> Iterator[CacheCase]:
    batches, turns = range(1, reported.batch + 1), range(1, reported.turn + 1)
    for calls, batch, turn in product(_fewer_calls(reported), batches, turns):
        try:
            case = replace(reported, calls=calls, batch=batch, turn=turn)
        except CaseError:
            continue
        longest = max(len(row) for step in case.steps for row in step.rows)
        for rules in _rules(reported, min(longest, reported.compress_ratio)):
            yield replace(case, **rules)


def _fewer_calls(reported: CacheCase) -> set[tuple[Call, ...]]:
    """Return the schedules that have some of its calls, or shorter ones."""
    options = [[(), *((call,) for call in _shorter_calls(call))] for call in reported.calls]
    chosen = product(*options)
    return {calls for some in chosen if (calls := tuple(call for one in some for call in one))}


def _shorter_calls(call: Call) -> Iterable[Call]:
    if call.op in (Op.EXTEND, Op.ROLLBACK, Op.REPEAT):
        return [Call(call.op, (number,)) for number in range(1, call.numbers[0] + 1)]
    return [call]
