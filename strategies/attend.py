"""Strategies and corner cases of the stage ``attend``."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from hypothesis import strategies as st

from csa_spec.stages.attend.case import (
    AttendCase,
    CoreSinks,
    CoreValues,
    IndexDtype,
    IndexLists,
    Lengths,
    Scale,
    UnusedRows,
)
from csa_spec.strategies.flat import SEEDS, any_of, draws
from csa_spec.strategies.sizes import Sweep


@cache
def attend_cases() -> st.SearchStrategy[AttendCase]:
    """Index lists of every kind on both sides of the number of keys and of a tile of 16."""
    return st.builds(
        AttendCase,
        rows=st.sampled_from((1, 1, 2, 3)),
        queries=st.sampled_from((1, 2, 3, 5)),
        heads=st.sampled_from((1, 2, 4, 3)),
        head_dim=st.sampled_from((1, 2, 4, 8, 16, 3)),
        keys=st.integers(0, 12) | st.sampled_from((15, 16, 17, 40)),
        picks=st.integers(0, 12) | st.sampled_from((15, 16, 17, 33, 40)),
        indices=any_of(IndexLists),
        values=any_of(CoreValues),
        sinks=any_of(CoreSinks),
        unused=any_of(UnusedRows),
        scale=any_of(Scale),
        seed=SEEDS,
    ).map(_in_a_form)


def _in_a_form(case: AttendCase) -> AttendCase:
    """Return a case whose seed says in which form it is handed over, so that others are drawn as ever."""
    lengths = Lengths.FULL if case.seed % 4 == 0 else Lengths.RAGGED
    return replace(case, lengths=lengths, index_dtype=list(IndexDtype)[case.seed // 4 % 2])


PLAIN = AttendCase.parse(
    "attend B=2 S=3 H=2 D=4 N=9 n=6 indices=shuffled values=gaussian sinks=drawn-sinks scale=scale-root"
)
BASES = (PLAIN, replace(PLAIN, rows=1, picks=12))
SPECIAL = (
    replace(PLAIN, keys=0),
    replace(PLAIN, picks=0),
    replace(PLAIN, keys=1, picks=1),
    # A lone key has all the weight, however far below 0 its logit lies.
    replace(PLAIN, keys=1, picks=1, queries=6, values=CoreValues.OVERFLOW, sinks=CoreSinks.NONE),
    # Tiles of kernels hold 16 to 128 indices: whole tiles of -1 first, in the middle, and none at all.
    *(replace(PLAIN, rows=1, picks=200, keys=90, indices=kind) for kind in IndexLists),
    replace(PLAIN, indices=IndexLists.LEADING, picks=130, sinks=CoreSinks.NONE, unused=UnusedRows.NAN),
    replace(PLAIN, indices=IndexLists.EMPTY, sinks=CoreSinks.NONE),
    replace(PLAIN, indices=IndexLists.EMPTY, sinks=CoreSinks.NONE, unused=UnusedRows.NAN),
    replace(PLAIN, indices=IndexLists.EMPTY, sinks=CoreSinks.EXTREME, unused=UnusedRows.HUGE),
    # So many keys that a running sum in 16 bits shows.
    replace(PLAIN, rows=1, heads=4, head_dim=64, keys=900, picks=900, indices=IndexLists.SHUFFLED),
    # So many heads that one of them has a sink far above its logits.
    replace(PLAIN, heads=16, sinks=CoreSinks.EXTREME),
    replace(PLAIN, values=CoreValues.OVERFLOW, sinks=CoreSinks.NONE, scale=Scale.ONE),
    replace(PLAIN, values=CoreValues.INTEGERS, head_dim=2, heads=1, rows=1, queries=1, keys=2, picks=1),
    # For candidates that declare them: lists with lengths, and pages that are full and that are not.
    *(replace(PLAIN, queries=8, lengths=Lengths.RAGGED, unused=unused) for unused in UnusedRows),
    replace(PLAIN, rows=1, picks=200, keys=90, lengths=Lengths.RAGGED, index_dtype=IndexDtype.INT32),
    *(replace(PLAIN, page=page, keys=page * 2 + more) for page in (64, 16, 1) for more in (0, 5)),
    replace(PLAIN, page=16, keys=60, unused=UnusedRows.NAN, indices=IndexLists.HOLES),
    replace(PLAIN, head_dim=2, page=16, spare=66000),
)
PRODUCTION = tuple(
    replace(PLAIN, rows=rows, queries=16, heads=64, head_dim=512, keys=1152, picks=640, indices=kind)
    for rows, kind in ((1, IndexLists.HOLES), (1, IndexLists.SHUFFLED), (2, IndexLists.LEADING))
)

# A softmax over nothing has gradients too.
NOTHING = replace(PLAIN, indices=IndexLists.EMPTY, sinks=CoreSinks.NONE)


def _room(case: AttendCase, letter: str) -> AttendCase:
    """Return a case that mostly has enough keys for its lists."""
    keys = max(case.keys, case.picks + case.seed % 7) if letter == "n" and case.seed % 4 else case.keys
    return replace(case, keys=keys)


SWEEP = Sweep({"B": 65536, "S": 65536, "H": 4096, "D": 4096, "N": 65536, "n": 65536}, room=_room)
DRAWS = draws(attend_cases, BASES, SPECIAL, PRODUCTION, gradients=(*BASES, NOTHING), sweep=SWEEP)
