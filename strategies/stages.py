"""Strategies for the cases of single stages, and their corner cases. They draw recipes, never tensors."""

from __future__ import annotations

from dataclasses import fields, replace
from enum import StrEnum
from functools import cache
from typing import Any

from hypothesis import event
from hypothesis import strategies as st

from csa_spec.engine.recipe import Recipe
from csa_spec.stages.attend_cases import AttendCase, CoreSinks, CoreValues, IndexLists, Scale, UnusedRows
from csa_spec.stages.compressor import Blocks, CompressorCase, Interpolation, TokenValues
from csa_spec.stages.index_scores import IndexScoresCase, ProductValues
from csa_spec.stages.select import Invisible, ScoreValues, SelectCase

_SEEDS = st.integers(0, 2**16 - 1)


def _any(kind: type[StrEnum]) -> st.SearchStrategy[Any]:
    return st.sampled_from(list(kind))


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
        indices=_any(IndexLists),
        values=_any(CoreValues),
        sinks=_any(CoreSinks),
        unused=_any(UnusedRows),
        scale=_any(Scale),
        seed=_SEEDS,
    )


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
        values=_any(ScoreValues),
        invisible=_any(Invisible),
        seed=_SEEDS,
    )


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
        values=_any(ProductValues),
        seed=_SEEDS,
    )


@cache
def compressor_cases() -> st.SearchStrategy[CompressorCase]:
    """Lengths on both sides of whole blocks."""
    return st.builds(
        CompressorCase,
        rows=st.sampled_from((1, 1, 2, 3)),
        blocks=st.sampled_from((0, 1, 2, 3, 5)),
        tail=st.sampled_from((0, 1, 2, 3, 7)),
        compress_ratio=st.sampled_from((1, 2, 3, 4, 4, 5, 6, 7, 8, 16)),
        hidden=st.integers(1, 12),
        head_dim=st.sampled_from((2, 4, 6, 8, 7)),
        rotated=st.integers(1, 3),
        overlap=_any(Blocks),
        values=_any(TokenValues),
        interpolation=_any(Interpolation),
        seed=_SEEDS,
    )


_STRATEGIES = {
    "attend": attend_cases,
    "select": select_cases,
    "index_scores": index_scores_cases,
    "compressor": compressor_cases,
}


def stage_cases(stage: str, dtype: str = "float32", device: str = "cpu") -> st.SearchStrategy[Any]:
    """Cases of one stage.

    Parameters
    ----------
    stage
        ``compressor``, ``index_scores``, ``select`` or ``attend``.
    dtype, device
        Where the case runs.
    """

    def place(case: Recipe) -> Recipe:
        for name in case.regime:
            event(stage, name)
        return replace(case, dtype=dtype, device=device)

    return _STRATEGIES[stage]().map(place)


def stage_corners(stage: str, dtype: str = "float32", device: str = "cpu") -> list[Any]:
    """Return cases written by hand: the smallest grid that reaches every required kind of case, in every run."""
    corners: list[Recipe] = []
    for case in _BASES[stage]:
        corners.append(case)
        for one in fields(case):
            if "kind" in one.metadata:
                corners += [replace(case, **{one.name: name}) for name in one.metadata["kind"]]
    corners += _SPECIAL[stage]
    return [
        replace(case, seed=n, dtype=dtype, device=device) for n, case in enumerate(dict.fromkeys(corners))
    ]


def gradient_corners(stage: str, dtype: str = "float32", device: str = "cpu") -> list[Any]:
    """Return the cases written by hand that gradients are tried on: plain ones, and a softmax over nothing.

    Gradients are tried on few drawn cases, which may all have no entry or no query.
    """
    corners = [*_BASES[stage]]
    if stage == "attend":
        corners.append(replace(_ATTEND, indices=IndexLists.EMPTY, sinks=CoreSinks.NONE))
    return [replace(case, dtype=dtype, device=device) for case in corners]


def production_cases(stage: str, dtype: str = "bfloat16", device: str = "cpu") -> list[Any]:
    """Return cases of the released models' sizes: 64 heads of 512 channels, 512 picks, blocks of 4."""
    return [replace(case, seed=n, dtype=dtype, device=device) for n, case in enumerate(_PRODUCTION[stage])]


_ATTEND = AttendCase(
    rows=2, queries=3, heads=2, head_dim=4, keys=9, picks=6, indices=IndexLists.SHUFFLED, values=CoreValues.GAUSSIAN,
    sinks=CoreSinks.DRAWN, scale=Scale.ROOT,
)  # fmt: skip
_SELECT = SelectCase(
    rows=2, queries=6, entries=8, compress_ratio=2, top_k=3, start=8, values=ScoreValues.GAUSSIAN
)  # fmt: skip
_INDEX_SCORES = IndexScoresCase(
    rows=2, queries=3, entries=5, index_heads=4, index_head_dim=6, values=ProductValues.GAUSSIAN
)
_COMPRESSOR = CompressorCase(
    rows=2, blocks=3, tail=1, compress_ratio=4, hidden=6, head_dim=8, rotated=3, overlap=Blocks.CSA,
    values=TokenValues.GAUSSIAN,
)  # fmt: skip
_BASES: dict[str, tuple[Any, ...]] = {
    "attend": (_ATTEND, replace(_ATTEND, rows=1, picks=12)),
    "select": (_SELECT, replace(_SELECT, rows=1, top_k=1, compress_ratio=1, start=0)),
    "index_scores": (_INDEX_SCORES,),
    "compressor": (_COMPRESSOR, replace(_COMPRESSOR, rows=1, overlap=Blocks.HCA)),
}
_SPECIAL: dict[str, tuple[Any, ...]] = {
    "attend": (
        replace(_ATTEND, keys=0),
        replace(_ATTEND, picks=0),
        replace(_ATTEND, keys=1, picks=1),
        # A lone key has all the weight, however far below 0 its logit lies.
        replace(_ATTEND, keys=1, picks=1, queries=6, values=CoreValues.OVERFLOW, sinks=CoreSinks.NONE),
        # Tiles of kernels hold 16 to 128 indices: whole tiles of -1 first, in the middle, and none at all.
        *(replace(_ATTEND, rows=1, picks=200, keys=90, indices=kind) for kind in IndexLists),
        replace(_ATTEND, indices=IndexLists.LEADING, picks=130, sinks=CoreSinks.NONE, unused=UnusedRows.NAN),
        replace(_ATTEND, indices=IndexLists.EMPTY, sinks=CoreSinks.NONE),
        replace(_ATTEND, indices=IndexLists.EMPTY, sinks=CoreSinks.NONE, unused=UnusedRows.NAN),
        replace(_ATTEND, indices=IndexLists.EMPTY, sinks=CoreSinks.EXTREME, unused=UnusedRows.HUGE),
        replace(
            _ATTEND, heads=16, sinks=CoreSinks.EXTREME
        ),  # so many that one head has a sink far above its logits
        replace(_ATTEND, values=CoreValues.OVERFLOW, sinks=CoreSinks.NONE, scale=Scale.ONE),
        replace(
            _ATTEND, values=CoreValues.INTEGERS, head_dim=2, heads=1, rows=1, queries=1, keys=2, picks=1
        ),
    ),
    "select": (
        *(replace(_SELECT, top_k=k) for k in (0, 1, 7, 8, 9, 20)),
        *(replace(_SELECT, start=start) for start in (0, 1, 15, 16, 100)),
        replace(_SELECT, entries=0),
        replace(_SELECT, compress_ratio=1, start=0),
        # Buffers of radix selections overflow where very many scores share their high bits.
        *(
            replace(
                _SELECT,
                rows=1,
                queries=1,
                entries=70_000,
                top_k=512,
                compress_ratio=4,
                start=280_000,
                values=kind,
            )
            for kind in (ScoreValues.GAUSSIAN, ScoreValues.LOW_BITS, ScoreValues.INTEGERS)
        ),
    ),
    "index_scores": (
        replace(_INDEX_SCORES, entries=0),
        replace(_INDEX_SCORES, index_heads=1),
        replace(_INDEX_SCORES, entries=70, index_heads=16),
    ),
    "compressor": (
        *(
            replace(_COMPRESSOR, blocks=blocks, tail=tail, overlap=overlap)
            for blocks, tail in ((0, 1), (0, 3), (1, 0), (1, 1), (2, 0), (2, 3), (6, 0))
            for overlap in Blocks
        ),
        replace(_COMPRESSOR, compress_ratio=1, tail=0),
        replace(_COMPRESSOR, compress_ratio=2, rotated=3, head_dim=6),
        replace(_COMPRESSOR, compress_ratio=16, blocks=2, tail=5, overlap=Blocks.HCA),
        replace(_COMPRESSOR, rows=1, compress_ratio=128, blocks=2, tail=1, overlap=Blocks.HCA),
    ),
}
_PRODUCTION: dict[str, tuple[Any, ...]] = {
    "attend": tuple(
        replace(_ATTEND, rows=rows, queries=16, heads=64, head_dim=512, keys=1152, picks=640, indices=kind)
        for rows, kind in ((1, IndexLists.HOLES), (1, IndexLists.SHUFFLED), (2, IndexLists.LEADING))
    ),
    "select": tuple(
        replace(
            _SELECT, rows=1, queries=16, entries=entries, top_k=512, compress_ratio=4, start=4 * entries, values=kind
        )
        for entries in (2_048, 131_072)
        for kind in (ScoreValues.GAUSSIAN, ScoreValues.LOW_BITS)
    ),
    "index_scores": (replace(_INDEX_SCORES, queries=16, entries=256, index_heads=64, index_head_dim=128),),
    "compressor": tuple(
        replace(_COMPRESSOR, rows=1, blocks=blocks, tail=3, compress_ratio=m, hidden=512, head_dim=512, rotated=32,
                overlap=kind)
        for kind, m, blocks in ((Blocks.CSA, 4, 16), (Blocks.HCA, 128, 2))
    ),
}  # fmt: skip
