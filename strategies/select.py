"""Strategies and corner cases of the stage ``select``."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from hypothesis import strategies as st

from csa_spec.stages.select.case import Invisible, Positions, ScoreValues, SelectCase
from csa_spec.strategies.flat import SEEDS, any_of, draws
from csa_spec.strategies.sizes import Sweep


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
        positions=any_of(Positions),
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
    # Chunks are selected from one by one, and then merged: all winners may be in one chunk.
    *(
        replace(LARGE, queries=2, entries=entries, top_k=top_k, start=4 * entries, values=kind)
        for entries, top_k in ((2500, 512), (5000, 1024))
        for kind in (ScoreValues.ASCENDING, ScoreValues.DESCENDING, ScoreValues.CLUSTERED, ScoreValues.EQUAL)
    ),
    # float32 holds not every position above 2**24: the last one before a block is complete becomes the next.
    replace(
        PLAIN,
        rows=1,
        queries=8,
        entries=131_080,
        compress_ratio=128,
        start=2**24 + 120,
        values=ScoreValues.ASCENDING,
    ),
)
PRODUCTION = tuple(
    replace(LARGE, queries=16, entries=entries, start=4 * entries, values=kind)
    for entries in (2_048, 131_072)
    for kind in (ScoreValues.GAUSSIAN, ScoreValues.LOW_BITS)
)


def _room(case: SelectCase, letter: str) -> SelectCase:
    """Return a case that sees all entries, or most of them, and selects some; late queries have entries enough."""
    ratio = case.compress_ratio
    if letter == "start":
        ratio = ratio if case.start < 1024 * ratio else 128
        entries = case.start // ratio + case.seed % 3
        return replace(case, compress_ratio=ratio, entries=entries, top_k=max(1, entries >> case.seed % 2))
    if letter == "k":
        case = replace(case, entries=max(case.entries, case.top_k + case.seed % 3 * case.top_k // 2))
    if letter == "T":
        some = (case.top_k, case.entries // 2, min(case.entries, 512), max(0, case.entries - 1))
        case = replace(case, top_k=some[case.seed % 4])
    return (
        replace(case, start=ratio * max(0, case.entries - case.seed % 5)) if letter in ("k", "T") else case
    )


SWEEP = Sweep({"B": 65536, "S": 65536, "T": 65536, "m": 4096, "k": 65536, "start": 2**24}, room=_room)
DRAWS = draws(select_cases, BASES, SPECIAL, PRODUCTION, sweep=SWEEP)
