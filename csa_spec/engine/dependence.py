"""Which output depends on which token: what is allowed, what is needed, what a candidate does."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Dependence:
    """Boolean matrices ``[queries, tokens]`` of one document."""

    allowed: Tensor
    """The query may depend on the token: it is in the window or pooled into a visible entry"""
    needed: Tensor
    """The specification's output does change with the token"""
    observed: Tensor
    """The candidate's output changes with the token"""
    outside: tuple[tuple[int, int, int], ...] = ()
    """Query, row and column: outputs that change with what is outside of the document, padding say"""

    @property
    def too_much(self) -> list[tuple[int, int]]:
        """Pairs of query and token that depend on each other and must not."""
        return _pairs(self.observed & ~self.allowed)

    @property
    def too_little(self) -> list[tuple[int, int]]:
        """Pairs that must depend on each other and do not."""
        return _pairs(self.needed & ~self.observed)


def _pairs(matrix: Tensor) -> list[tuple[int, int]]:
    return [(int(t), int(token)) for t, token in matrix.nonzero().tolist()]
