"""Caches with side effects, or whose answers depend on what was called before."""
# ruff: noqa: D102 - Cache says what its methods do

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from csa_spec.bugs.stream import Cache, Slot, wrong_stream
from csa_spec.spec import Geometry, LayerWeights


@wrong_stream()
class AddsTheOutputToTheInputInPlace(Cache):
    """The output is added in place to the caller's hidden states, after all is computed."""

    def extend(self, hidden: Tensor) -> Tensor:
        out = super().extend(hidden)
        hidden.add_(out)
        return out


@wrong_stream()
class SeedsTheGenerator(Cache):
    """Opening a stream seeds the global random generator."""

    def __init__(self, weights: LayerWeights, geometry: Geometry, batch: int) -> None:
        super().__init__(weights, geometry, batch)
        torch.manual_seed(0)


@wrong_stream()
class MultipliesUnwrittenKeysByZero(Cache):
    """Unwritten slots of the ring are masked by a product with 0, which keeps NaN."""

    def __init__(self, weights: LayerWeights, geometry: Geometry, batch: int) -> None:
        super().__init__(weights, geometry, batch)
        # So large that it comes from the system, which mostly hands out zeros.
        self.ring = torch.empty(2**24)

    def answer(self, slot: Slot, x: Tensor, t: int, start: int) -> Tensor:
        return super().answer(slot, x, t, start) + (0 * self.ring[: self.geometry.window]).sum()


_opened = itertools.count()


@wrong_stream()
class RoundsDifferentlyInEverySecondStream(Cache):
    """Every second stream is served by another kernel; both kernels are within the tolerance."""

    def __init__(self, weights: LayerWeights, geometry: Geometry, batch: int) -> None:
        super().__init__(weights, geometry, batch)
        self.factor = 1 + (next(_opened) % 2) * torch.finfo(weights.wkv.dtype).eps

    def extend(self, hidden: Tensor) -> Tensor:
        return super().extend(hidden) * self.factor


_answers: dict[tuple[object, ...], Tensor] = {}


@wrong_stream()
class RemembersAnswersByLength(Cache):
    """Answers are remembered by the lengths of the rows and of the call, whatever the tokens are."""

    def extend(self, hidden: Tensor) -> Tensor:
        key = (self.geometry, *hidden.shape, *(slot.count for slot in self.slots))
        return _answers.setdefault(key, super().extend(hidden)).clone()


@wrong_stream()
class KeepsTheLastTokensByReference(Cache):
    """The last tokens are taken in at the next call, from the caller's memory, which by then is reused."""

    def __init__(self, weights: LayerWeights, geometry: Geometry, batch: int) -> None:
        super().__init__(weights, geometry, batch)
        self.last: tuple[Tensor, list[Slot], list[Slot]] | None = None

    def extend(self, hidden: Tensor) -> Tensor:
        if self.last is not None and self.slots is self.last[2]:  # nothing else was asked meanwhile
            tokens, self.slots, _ = self.last
            super().extend(tokens)
        before = self.save()
        out = super().extend(hidden)
        self.last = hidden, before, self.slots
        return out
