"""Which selections are valid where scores tie, given how exactly scores can be known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress

import torch


@dataclass(frozen=True, slots=True)
class Choice:
    """The selections that are valid for one query, given how exactly its scores can be known."""

    certain: frozenset[int]
    """Entries that every valid selection holds"""
    contested: frozenset[int]
    """Entries that tie, within the budget of their scores, across the k-th place"""
    open_places: int
    """How many of the contested entries a valid selection holds"""

    @property
    def ambiguous(self) -> bool:
        """Whether there is more than one valid selection."""
        return 0 < self.open_places < len(self.contested)

    @property
    def count(self) -> int:
        """How many valid selections there are."""
        return math.comb(len(self.contested), self.open_places)

    def selections(self) -> Iterator[list[int]]:
        """Yield every valid selection."""
        for chosen in itertools.combinations(sorted(self.contested), self.open_places):
            yield sorted(self.certain) + list(chosen)

    def allows(self, selection: list[int]) -> bool:
        """Whether a selection is valid: no duplicates, all that is certain, the rest from the contested."""
        chosen = frozenset(selection)
        return (
            len(chosen) == len(selection) == len(self.certain) + self.open_places
            and self.certain <= chosen <= self.certain | self.contested
        )


NO_CHOICE = Choice(frozenset(), frozenset(), 0)
"""Nothing can be selected."""


def valid_choice(visible: list[int], scores: list[float], tolerances: list[float], top_k: int) -> Choice:
    """Return the valid selections of ``top_k`` out of ``visible``.

    Parameters
    ----------
    visible
        Entries that the query may see.
    scores
        Their scores.
    tolerances
        How far each score may be off.
    top_k
        How many are selected, if there are as many.
    """
    if len(visible) <= top_k:
        return Choice(frozenset(visible), frozenset(), 0)
    exact, tolerance = (torch.tensor(each, dtype=torch.float64) for each in (scores, tolerances))
    low, high = exact - tolerance, exact + tolerance
    surely_above = len(visible) - torch.searchsorted(low.sort().values, high, right=True)
    possibly_above = len(visible) - torch.searchsorted(high.sort().values, low) - 1  # without itself
    certain, reach = (possibly_above < top_k).tolist(), (surely_above < top_k).tolist()
    sure = frozenset(compress(visible, certain))
    return Choice(sure, frozenset(compress(visible, reach)) - sure, top_k - len(sure))
