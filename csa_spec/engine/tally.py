"""What a comparison covered, and errors as shares of their budgets."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class Tally:
    """What a comparison covered."""

    queries: int = 0
    ambiguous: int = 0
    """Queries with more than one valid selection"""
    unjudged: int = 0
    """Ambiguous queries with too many valid selections to try"""
    worst: float = 0.0
    """Largest error of what was judged right, as a share of its budget"""
    seen: Counter[str] = field(default_factory=Counter)
    """What else is worth a line in the report, with how often it was seen"""

    def add(self, other: Tally) -> None:
        """Add another comparison to this one."""
        self.queries += other.queries
        self.ambiguous += other.ambiguous
        self.unjudged += other.unjudged
        self.worst = max(self.worst, other.worst)
        self.seen.update(other.seen)


def error_ratios(got: Tensor, expected: Tensor, budget: Tensor) -> Tensor:
    """Return each error over its budget: 0 where both sides are equal, infinite where only one is finite."""
    ratios = (got - expected).abs() / budget
    ratios = torch.where(ratios.isnan(), torch.inf, ratios)
    return torch.where(got == expected, 0.0, ratios)
