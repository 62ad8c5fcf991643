"""Cases in which one size, or two that multiply, cross the sizes at which implementations switch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from math import isqrt
from typing import Generic, TypeVar

from csa_spec.engine.case import Case
from csa_spec.engine.sizes import LEAST_PRODUCT, THRESHOLDS

C = TypeVar("C", bound=Case)
Resized = dict[str, int]
_SMALL, _LARGE = 9, 8192
"""What the other sizes are at most, and what they and the swept one make at most, though 2 is always small"""
_FACTORS = (2, 3, 5, 7)


@dataclass(frozen=True, slots=True)
class Sweep(Generic[C]):
    """Which sizes of a stage are swept, and how far."""

    most: Mapping[str, int]
    """By letter, the largest threshold that is crossed"""
    product: int = 65536
    """The same for the products of ``Case.products``"""
    room: Callable[[C, str], C] = lambda case, letter: case
    """Changes a case so that the swept size matters, given its letter, or a product's letters: ``B*S``"""
    least: int = 1
    """The smallest threshold that is crossed; what is drawn reaches those below"""
    between: bool = True
    """Whether sizes between thresholds are tried, too"""

    def cases(self, smaller: Sequence[C], seed: int) -> Iterator[C]:
        """Yield a case for each swept size: a drawn one, with all other sizes small.

        Parameters
        ----------
        smaller
            Drawn cases, which are used in turn.
        seed
            Decides which sizes between thresholds are tried, and which factors a product has.
        """
        rng = random.Random(seed)
        drawn, letters = cycle(rng.sample(smaller, len(smaller))), smaller[0].letters()
        for letter, most in self.most.items():
            for size in self._crossing(letters[letter], most, rng):
                yield self.room(_resized(next(drawn), {letter: size}), letter)
        for pair in smaller[0].products:
            for sizes in self._products(pair, rng):
                yield self.room(_resized(next(drawn), sizes), "*".join(pair))

    def _products(self, pair: tuple[str, str], rng: random.Random) -> Iterator[Resized]:
        """Yield two sizes whose product is just above each threshold, and two whose product is at most that."""
        for threshold in THRESHOLDS:
            factors = (*_FACTORS, isqrt(threshold))
            for just in (1, 0) if LEAST_PRODUCT <= threshold <= self.product else ():
                both = [(factor, threshold // factor + just) for factor in factors]
                either = (dict(zip(pair, sizes, strict=True)) for one in both for sizes in (one, one[::-1]))
                yield rng.choice([sizes for sizes in either if self._within(sizes)])

    def _crossing(self, smallest: int, most: int, rng: random.Random) -> list[int]:
        """Return each threshold, one less and one more, and three sizes between each and the next.

        One of these is any size, one half as much again, for tiles of 24, 48 or 96, one a multiple of ten.
        """
        crossed = [t for t in THRESHOLDS if self.least <= t <= most]
        sizes = {size for t in crossed for size in (t - 1, t, t + 1)}
        for low, high in pairwise(crossed) if self.between else ():
            if low + 2 < high - 1:
                between = rng.randrange(low + 2, high - 1)
                sizes |= {between, low + low // 2, max(low + 2, between // 10 * 10)}
        return sorted(size for size in sizes if size >= smallest)

    def _within(self, sizes: Resized) -> bool:
        return all(size <= self.most[letter] + 1 for letter, size in sizes.items())


def _resized(case: C, sizes: Resized) -> C:
    """Return a case with these sizes, and none of the others large or 0."""
    most = max(2, min(_SMALL, _LARGE // max(1, *sizes.values())))
    whole = {letter: most - most % multiple for letter, multiple in case.multiples().items()}
    others = {letter: min(max(size, 1), whole.get(letter, most)) for letter, size in case.sizes.items()}
    return case.with_sizes({**others, **sizes})
