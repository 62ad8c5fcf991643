"""Make a flat failing case small, for :func:`csa_spec.engine.shrink.shrink`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import combinations, combinations_with_replacement, product
from typing import Any

from csa_spec.engine.case import Case

SEEDS = 5
"""Seeds tried on each smaller shape."""
MANY_SEEDS = 40
"""Seeds tried where a single size becomes one smaller, once nothing else helps"""

_LARGE = 16
"""What sizes are above their least ones that are bisected"""
_FAR = 8
_NEARLY = 4
"""By how much, in all its sizes together, a shape that is nearly the smallest may be larger than that"""


def bisected(case: Case) -> Iterator[Case]:
    """Yield smaller values of each large size, so that the least that fails is found in few steps.

    They are rounded down to powers of two, which leaves most of them as they were tried before.
    """
    for name, least in _least(case).items():
        value = getattr(case, name)
        if value - least > _LARGE:
            rounded = ((value - 1) >> bits << bits for bits in range(value.bit_length(), -1, -1))
            for smaller in dict.fromkeys(max(least, number) for number in rounded):
                seeds = dict.fromkeys((case.seed, 0, 1))
                yield from (replace(case, **{name: smaller}, seed=seed) for seed in seeds)


def simpler(case: Case) -> Iterator[Case]:
    """Yield simpler cases, those that save most first; shapes with a few seeds, as a seed shrinks badly."""
    shape, larger = _least(case), _larger(case)
    yield from _seeds(replace(case, **{name: shape[name] for name in larger}))  # all sizes at once
    for name in larger:
        value, least = getattr(case, name), shape[name]
        spare = value - least
        for smaller in dict.fromkeys(
            (least, least + 1, least + spare // 2, value - spare // 4, value - spare // 16)
        ):
            if smaller < value:
                yield from _seeds(replace(case, **{name: smaller}))
    for name in larger:  # step by step only when no leap helps any more
        yield from _seeds(replace(case, **{name: getattr(case, name) - 1}))
    yield from _simpler_data(case)
    for names in combinations(larger, 2):  # sizes that only shrink together
        yield from _seeds(replace(case, **{name: getattr(case, name) - 1 for name in names}))


def persistently_simpler(case: Case) -> Iterator[Case]:
    """Yield cases that save little, with many seeds: some mistakes show on few of them."""
    larger, sizes = _larger(case), list(_least(case))
    for name in larger:
        smaller = replace(case, **{name: getattr(case, name) - 1})
        yield from (replace(smaller, seed=seed) for seed in range(MANY_SEEDS))
    for names in combinations(larger, 2):  # two sizes for one that grows
        smaller = replace(case, **{name: getattr(case, name) - 1 for name in names})
        for grown in (name for name in sizes if name not in names):
            yield from _seeds(replace(smaller, **{grown: getattr(case, grown) + 1}))
    yield from (replace(case, seed=seed) for seed in range(min(case.seed, 4 * SEEDS)))


def smallest(case: Case) -> Iterator[Case]:
    """Yield every shape that is nearly the smallest: from where the case is, a way down may be missing."""
    least = _least(case)
    for name in _larger(case):  # other data may need far less of it
        if getattr(case, name) > _FAR:
            for other in _other_data(case):
                yield from _seeds(replace(other, **{name: least[name] + 2}))
    spare = sum(case.sizes.values()) - sum(least.values())
    for seed, more in product(range(2), range(min(spare, _NEARLY + 1))):
        for names in combinations_with_replacement(least, more):
            sizes: dict[str, Any] = {name: least[name] + names.count(name) for name in least}
            yield replace(case, seed=seed, **sizes)


def same_shape(case: Case) -> Iterator[Case]:
    """Yield a few cases of the same shape: other seeds, then other data."""
    yield from (replace(case, seed=seed) for seed in range(2 * SEEDS) if seed != case.seed)
    for other in _other_data(case):
        if other != case:
            yield from (replace(other, seed=seed) for seed in (0, 1))


def _least(case: Case) -> dict[str, Any]:
    """Return the least legal value of every size, by the name of its field."""
    return {field.name: field.metadata["least"] for field in fields(case) if "letter" in field.metadata}


def _larger(case: Case) -> list[str]:
    return [name for name, least in _least(case).items() if getattr(case, name) > least]


def _simpler_data(case: Case) -> Iterator[Case]:
    for field in fields(case):
        if "kind" in field.metadata:
            options = list(field.metadata["kind"])
            for option in options[: options.index(getattr(case, field.name))]:
                yield from _seeds(replace(case, **{field.name: option}))


def _other_data(case: Case) -> Iterator[Case]:
    for field in fields(case):
        if "kind" in field.metadata:
            yield from (replace(case, **{field.name: option}) for option in field.metadata["kind"])


def _seeds(case: Case) -> Iterator[Case]:
    yield from (replace(case, seed=seed) for seed in dict.fromkeys((case.seed, *range(SEEDS))))


FLAT_PASSES = (bisected, simpler, smallest, persistently_simpler)
"""How cases of a stage get smaller."""
