"""Caches that break a law: answers that are right the first time only, and calls that change other things."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from csa_spec.bugs.stream import Cache, Slot, cache_bug
from csa_spec.spec import Geometry, LayerWeights


@cache_bug()
class AddsTokensInPlace(Cache):
    """The caller's hidden states take up the residual, after all is done."""

    def extend(self, hidden: Tensor) -> Tensor:
        """Answer, then add the answer."""
        out = super().extend(hidden)
        hidden.add_(out)
        return out


@cache_bug()
class SeedsTheGenerator(Cache):
    """Opening a stream makes the process reproducible."""

    def __init__(self, weights: LayerWeights, geometry: Geometry, batch: int) -> None:
        super().__init__(weights, geometry, batch)
        torch.manual_seed(0)


@cache_bug()
class MultipliesUnwrittenKeysByZero(Cache):
    """Places of the ring that nobody has written are masked out by a product, which keeps NaN."""

    def __init__(self, weights: LayerWeights, geometry: Geometry, batch: int) -> None:
        super().__init__(weights, geometry, batch)
        self.ring = torch.empty(
            2**24
        )  # so large that it comes from the system, which mostly hands out zeros

    def answer(self, slot: Slot, x: Tensor, t: int, start: int) -> Tensor:
        """Add nothing, as long as what memory holds is finite."""
        return super().answer(slot, x, t, start) + (0 * self.ring[: self.geometry.window]).sum()


_opened = itertools.count()


@cache_bug()
class RoundsInTurns(Cache):
    """Which of two kernels serves a stream depends on how many there were before; both are within the budget."""

    def __init__(self, weights: LayerWeights, geometry: Geometry, batch: int) -> None:
        super().__init__(weights, geometry, batch)
        self.factor = 1 + (next(_opened) % 2) * torch.finfo(weights.wkv.dtype).eps

    def extend(self, hidden: Tensor) -> Tensor:
        """Differ by the last bit."""
        return super().extend(hidden) * self.factor


_answers: dict[tuple[object, ...], Tensor] = {}


@cache_bug()
class KnowsSequencesByTheirLength(Cache):
    """What was answered to tokens at the same place is answered again, whatever the tokens."""

    def extend(self, hidden: Tensor) -> Tensor:
        """Look the call up."""
        key = (self.geometry, *hidden.shape, *(slot.count for slot in self.slots))
        return _answers.setdefault(key, super().extend(hidden)).clone()
