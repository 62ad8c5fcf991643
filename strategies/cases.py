"""Strategies for whole cases: recipes of integers and names, never tensors element by element."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache

from hypothesis import event
from hypothesis import strategies as st

from csa_spec.engine.case import DRAWN_SCORES, Case, Row, Scores, Sinks, Values
from csa_spec.spec import LayerKind
from csa_spec.strategies.geometry import compress_ratios, geometries
from csa_spec.strategies.rows import batches

_VALUES = st.sampled_from((Values.INTEGERS, Values.GAUSSIAN, Values.LARGE_LOGITS, Values.GAUSSIAN))
_SCORES = st.sampled_from((Scores.FREE, *DRAWN_SCORES))
_SINKS = st.sampled_from((*Sinks, Sinks.DRAWN))
_SEEDS = st.integers(0, 2**16 - 1)


@cache
def windows(compress_ratio: int, longest: int) -> st.SearchStrategy[int]:
    """Window sizes on both sides of the ratio and of the longest document."""
    near = (compress_ratio - 1, compress_ratio, compress_ratio + 1, longest - 1, longest, longest + 1)
    return st.integers(1, 4) | st.sampled_from(tuple(max(1, size) for size in near))


@cache
def top_ks(entries: int) -> st.SearchStrategy[int]:
    """How many entries are selected: none, few, all but one, all, more than there are."""
    few = st.integers(1, max(1, entries // 2))
    return st.one_of(few, few, st.sampled_from((max(0, entries - 1), entries, entries + 1, 0)))


@st.composite
def cases(
    draw: st.DrawFn,
    kind: LayerKind = LayerKind.CSA,
    *,
    ratios: Collection[int] | None = None,
    modes: Sequence[str] = ("",),
    dtype: str = "float32",
    device: str = "cpu",
) -> Case:
    """Cases of one layer kind.

    They shrink towards one short document in the smallest layer, with small integers for values.

    Parameters
    ----------
    draw
        Given by Hypothesis.
    kind
        Layer kind.
    ratios
        Compression ratios that a candidate supports; None for any.
    modes
        The candidate's ways to run.
    dtype, device
        Where the case runs.
    """
    kind = LayerKind(kind)
    ratio = draw(compress_ratios(ratios), label="compress_ratio")
    if kind is LayerKind.SLIDING:
        ratio = 1 + ratio % 8  # only sets the scale of lengths; such layers have no entries
    rows: tuple[Row, ...] = draw(batches(ratio), label="rows")
    longest = max(length for row in rows for length in row.lengths)
    window = draw(windows(ratio, longest), label="window")
    top_k = draw(top_ks(longest // ratio), label="top_k") if kind is LayerKind.CSA else 1
    geometry = replace(
        draw(geometries(kind), label="geometry"),
        compress_ratio=1 if kind is LayerKind.SLIDING else ratio,
        top_k=top_k,
        window=window,
    )
    case = Case(
        geometry=geometry,
        rows=rows,
        values=draw(_VALUES, label="values"),
        scores=draw(_SCORES, label="scores") if kind is LayerKind.CSA else Scores.FREE,
        sinks=draw(_SINKS, label="sinks"),
        seed=draw(_SEEDS, label="seed"),
        mode=draw(st.sampled_from(tuple(modes)), label="mode"),
        dtype=dtype,
        device=device,
    )
    _say_what_was_reached(case)
    return case


def _say_what_was_reached(case: Case) -> None:
    """Emit events, so that ``--hypothesis-show-statistics`` shows the distribution."""
    entries = max(case.geometry.entry_count(length) for row in case.rows for length in row.lengths)
    event("kind", str(case.geometry.kind))
    event("values", str(case.values))
    event("sinks", str(case.sinks))
    event("rows", len(case.rows))
    for feature in sorted(case.features):
        event("feature", str(feature))
    if case.geometry.kind is not LayerKind.SLIDING:
        event("entries", "none" if entries == 0 else "one" if entries == 1 else "several")
    if case.geometry.kind is LayerKind.CSA:
        event("scores", str(case.scores))
        event("top-k", "truncates" if 0 < case.geometry.top_k < entries else "keeps everything visible")
