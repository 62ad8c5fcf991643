"""Draw many examples from a strategy at once, to count and to reuse them."""

from __future__ import annotations

from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

Drawn = TypeVar("Drawn")


def draw(strategy: SearchStrategy[Drawn], examples: int, run_seed: int = 0) -> list[Drawn]:
    """Return ``examples`` draws; the same seed gives the same ones."""
    found: list[Drawn] = []

    @seed(run_seed)
    @settings(
        max_examples=examples,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(example: Drawn) -> None:
        found.append(example)

    collect()
    return found
