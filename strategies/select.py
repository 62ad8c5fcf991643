"""Strategies and corner cases of the stage ``select``."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from hypothesis import strategies as st

from csa_spec.stages.select.case import Invisible, ScoreValues, SelectCase
from csa_spec.strategies.flat import SEEDS, any_of, draws


@cache
def select_cases() -> st.SearchStrategy[SelectCase]:
    """Positions before, inside and behind the entries; k on both sides of what is visible."""
    return st.builds(
        SelectCase,
        rows=st.sampled_from((1, 1, 2, 3)),
        queries=st.integers(1, 8),
        entries=st.integers(0, 12) | st.sampled_from((31, 64, 65, 300)),
        compress_ratio=st.sampled_from((1, 2, 3, 4, 4, 5, 7, 8, 128)),
        top_k=st.integers(0, 8) | st.sampled_from((13, 64)),
        start=st.integers(0, 48) | st.sampled_from((255, 1024, 4096)),
        values=any_of(ScoreValues),
        invisible=any_of(Invisible),
        seed=SEEDS,
    )


PLAIN = SelectCase.parse("select B=2 S=6 T=8 m=2 k=3 start=8 values=gaussian")
LARGE = replace(PLAIN, rows=1, compress_ratio=4, top_k=512)
BASES = (PLAIN, replace(PLAIN, rows=1, top_k=1, compress_ratio=1, start=0))
SPECIAL = (
    *(replace(PLAIN, top_k=k) for k in (0, 1, 7, 8, 9, 20)),
    *(replace(PLAIN, start=start) for start in (0, 1, 15, 16, 100)),
    replace(PLAIN, entries=0),
    replace(PLAIN, compress_ratio=1, start=0),
    # Buffers of radix selections overflow where very many scores share their high bits.
    *(
        replace(LARGE, queries=1, entries=70_000, start=280_000, values=kind)
        for kind in (ScoreValues.GAUSSIAN, ScoreValues.LOW_BITS, ScoreValues.INTEGERS)
    ),
)
PRODUCTION = tuple(
    replace(LARGE, queries=16, entries=entries, start=4 * entries, values=kind)
    for entries in (2_048, 131_072)
    for kind in (ScoreValues.GAUSSIAN, ScoreValues.LOW_BITS)
)

DRAWS = draws(select_cases, BASES, SPECIAL, PRODUCTION)
