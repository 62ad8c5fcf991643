"""What a right answer to a case is, for those who compare answers themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from csa_spec.engine.choices import Choice


@dataclass(frozen=True, slots=True)
class Choices:
    """The valid selections of every query: all certain entries, and as many of the contested as there are places."""

    certain: Tensor
    """``[..., T]`` bool: entries that every valid selection holds"""
    contested: Tensor
    """``[..., T]`` bool: entries that tie across the k-th place; a valid selection holds some of them"""
    places: Tensor
    """``[...]`` int64: how many of these. -1 where it depends on which, as with NaN among the scores: then the
    rules of ``select`` decide"""

    @property
    def ambiguous(self) -> Tensor:
        """``[...]`` bool: which queries have more than one valid selection."""
        several: Tensor = (self.places != 0) & (self.places != self.contested.sum(-1))
        return several

    @classmethod
    def of(cls, choices: Sequence[Choice | None], entries: int) -> Choices:
        """Return those of some queries, ``[n, ...]``; None for one to which the rules alone apply."""
        certain = torch.zeros(len(choices), entries, dtype=torch.bool)
        contested, places = certain.clone(), torch.full((len(choices),), -1)
        for number, choice in enumerate(choices):
            if choice is not None:
                certain[number, sorted(choice.certain)] = True
                contested[number, sorted(choice.contested)] = True
                places[number] = choice.open_places
        return cls(certain, contested, places)

    def shaped(self, *shape: int) -> Choices:
        """Return the same with other leading dimensions."""
        return Choices(
            self.certain.view(*shape, -1), self.contested.view(*shape, -1), self.places.view(*shape)
        )


@dataclass(frozen=True, slots=True)
class Reference:
    """A right answer to a case, and what else is right. Everything is on the CPU."""

    output: Tensor
    """One right answer: float64, before it is rounded to the dtype of the case; int64 where the stage selects"""
    compared: Tensor
    """Bool, the first two dimensions of ``output``, or the first alone for a stream: what must be right. The
    rest, padding say, means nothing."""
    tolerance: Tensor | None = None
    """float64, of the shape of ``output``: by how much each element may be off, its error budget. None where the
    stage selects: ``choices`` say what is right."""
    choices: Choices | None = field(default=None)
    """Of stages that select, or select on the way. The output of an ambiguous query may be that of another valid
    selection."""
