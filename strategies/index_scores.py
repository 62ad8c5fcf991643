"""Strategies and corner cases of the stage ``index_scores``."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from hypothesis import strategies as st

from csa_spec.stages.index_scores.case import IndexScoresCase, ProductValues
from csa_spec.strategies.flat import SEEDS, any_of, draws
from csa_spec.strategies.sizes import Sweep


@cache
def index_scores_cases() -> st.SearchStrategy[IndexScoresCase]:
    """Few and many heads and entries."""
    return st.builds(
        IndexScoresCase,
        rows=st.sampled_from((1, 1, 2, 3)),
        queries=st.integers(1, 5),
        entries=st.integers(0, 9) | st.just(33),
        index_heads=st.sampled_from((1, 2, 3, 4, 8)),
        index_head_dim=st.sampled_from((1, 2, 4, 6, 16)),
        values=any_of(ProductValues),
        seed=SEEDS,
    )


PLAIN = IndexScoresCase.parse("index_scores B=2 S=3 T=5 HI=4 DI=6 values=gaussian")
BASES = (PLAIN,)
SPECIAL = (
    replace(PLAIN, entries=0),
    replace(PLAIN, index_heads=1),
    replace(PLAIN, entries=70, index_heads=16),
    # For candidates that declare pages: full ones, and others.
    *(replace(PLAIN, page=page, entries=page * 2 + more) for page in (64, 16, 1) for more in (0, 5)),
    replace(PLAIN, index_head_dim=2, page=16, spare=66000),
)
PRODUCTION = (replace(PLAIN, queries=16, entries=256, index_heads=64, index_head_dim=128),)


def _room(case: IndexScoresCase, letter: str) -> IndexScoresCase:
    """Return a case whose products stay finite in float16, however many numbers they sum."""
    large = case.values is ProductValues.LARGE
    return replace(case, values=ProductValues.GAUSSIAN) if large else case


SWEEP: Sweep[IndexScoresCase] = Sweep(
    {"B": 32768, "S": 32768, "T": 65536, "HI": 4096, "DI": 4096}, room=_room
)
DRAWS = draws(index_scores_cases, BASES, SPECIAL, PRODUCTION, sweep=SWEEP)
