"""Draw many examples from a strategy at once, to count and to reuse them."""

from __future__ import annotations

from typing import Any

from hypothesis.strategies import SearchStrategy

from csa_spec.engine.running import draw_cases


def draw(strategy: SearchStrategy[Any], examples: int, run_seed: int = 0) -> list[Any]:
    """Return ``examples`` draws; the same seed gives the same ones."""
    return draw_cases(strategy, examples, run_seed)
