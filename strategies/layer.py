"""Strategies and corner cases of whole layers: recipes of integers and names, never tensors by element."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TypeVar

from hypothesis import event
from hypothesis import strategies as st

from csa_spec.engine.stage import Draws, Setting
from csa_spec.spec import LayerKind, Yarn
from csa_spec.stages.layer.case import DRAWN_SCORES, LayerCase, OfLayer, Row, Scores, Sinks, Values
from csa_spec.strategies.flat import SEEDS
from csa_spec.strategies.geometry import compress_ratios, geometries
from csa_spec.strategies.rows import batches
from csa_spec.strategies.sizes import Sweep

L = TypeVar("L", bound=OfLayer)
_VALUES = st.sampled_from((Values.INTEGERS, Values.GAUSSIAN, Values.LARGE_LOGITS, Values.GAUSSIAN))
_SCORES = st.sampled_from((Scores.FREE, *DRAWN_SCORES))
_SINKS = st.sampled_from((*Sinks, Sinks.DRAWN))


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
def cases(draw: st.DrawFn, kind: LayerKind | str = LayerKind.CSA, setting: Setting = Setting()) -> LayerCase:
    """Cases of one layer kind.

    They shrink towards one short document in the smallest layer, with small integers for values.

    Parameters
    ----------
    draw
        Given by Hypothesis.
    kind
        Layer kind.
    setting
        Where the case runs, and what the candidate supports.
    """
    kind = LayerKind(kind)
    ratio = draw(compress_ratios(setting.ratios), label="compress_ratio")
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
    case = LayerCase.of(
        geometry,
        rows=rows,
        judged=_JUDGED if longest > _LONG else 0,
        values=draw(_VALUES, label="values"),
        scores=draw(_SCORES, label="scores") if kind is LayerKind.CSA else Scores.FREE,
        sinks=draw(_SINKS, label="sinks"),
        seed=draw(SEEDS, label="seed"),
        mode=draw(st.sampled_from(setting.modes), label="mode"),
        dtype=setting.dtype,
        device=setting.device,
    )
    _say_what_was_reached(case)
    return case


def _say_what_was_reached(case: LayerCase) -> None:
    """Emit events, so that ``--hypothesis-show-statistics`` shows the distribution."""
    entries = max(case.geometry.entry_count(length) for row in case.rows for length in row.lengths)
    event("kind", str(case.kind))
    event("values", str(case.values))
    event("sinks", str(case.sinks))
    event("rows", len(case.rows))
    for feature in sorted(case.features):
        event("feature", str(feature))
    if case.kind is not LayerKind.SLIDING:
        event("entries", "none" if entries == 0 else "one" if entries == 1 else "several")
    if case.kind is LayerKind.CSA:
        event("scores", str(case.scores))
        event("top-k", "truncates" if 0 < case.top_k < entries else "keeps everything visible")


def corner_cases(kind: LayerKind | str, setting: Setting = Setting()) -> list[LayerCase]:
    """Return the corners of one layer kind; the candidate's modes take turns."""
    m = _nearest(4, setting.ratios)
    text = f"{kind} {SMALL_LAYER} m={m} W={2 * m} rows={5 * m + 1} values=gaussian sinks=drawn"
    base = replace(LayerCase.parse(text), dtype=setting.dtype, device=setting.device)
    if kind == LayerKind.CSA:
        base = replace(base, top_k=2, index_heads=2)
    corners = _every_kind(base)
    if kind != LayerKind.SLIDING:
        corners += _compressed(base, _nearest(1, setting.ratios))
    if kind == LayerKind.CSA:
        corners += _selecting(base)
    return [
        replace(case, seed=n, mode=setting.modes[n % len(setting.modes)]) for n, case in enumerate(corners)
    ]


SMALL_LAYER = "E=6 H=2 D=8 R=4 q_lora=4 DI=6 groups=2 o_lora=3"
"""The sizes of layers written by hand"""
_YARN = Yarn(factor=4.0, original_max_position=64)


def law_corners(kind: LayerKind | str, setting: Setting = Setting()) -> list[LayerCase]:
    """Return the few corners that every law is tried on, beside what is drawn: those with extreme sinks."""
    corners = corner_cases(kind, setting)
    return [case for case in corners if case.sinks is Sinks.EXTREME]


def _every_kind(base: LayerCase) -> list[LayerCase]:
    m, window = base.compress_ratio, base.window
    return [
        # Lengths around one block, two blocks and the window, and one well past all of them.
        *(_lengths(base, length) for length in (1, m - 1, m, m + 1, 2 * m - 1, 2 * m, 2 * m + 1) if length),
        *(_lengths(base, length) for length in (window - 1, window, window + 1, 3 * window + 3)),
        replace(base, window=1),
        replace(base, window=max(1, m - 1)),
        replace(base, window=6 * m),
        replace(base, yarn=_YARN),
        replace(base, norm_eps=1e-2),
        replace(base, sinks=Sinks.ZERO),
        replace(base, heads=8, sinks=Sinks.EXTREME),  # so many heads that one of them has a sink of -inf
        replace(base, values=Values.LARGE_LOGITS),
        replace(
            replace(base, heads=8, head_dim=2, rope_dim=2), values=Values.INTEGERS
        ),  # logits of exactly 0
        # Rows: equal ones, padded on the right, on the left, packed, shifted on and off the grid.
        _rows(base, Row((3 * m,)), Row((3 * m,))),
        _rows(base, Row((3 * m + 1,)), Row((2 * m - 1,)), Row((1,))),
        _rows(base, Row((3 * m,), left_padding=1), Row((2 * m + 1,), left_padding=m)),
        _rows(base, Row((m + 1, 2 * m - 1))),
        _rows(base, Row((2 * m + 3,), start=2 * m)),
        _rows(base, Row((2 * m + 3,), start=2 * m + 1), Row((2 * m + 3,))),
        _rows(base, Row(((1,) * 7 + (m,)) * 2 + (m + 1,))),  # more documents than a kernel may have room for
        # Documents across the positions at which tables end and narrow numbers wrap.
        _rows(base, *(Row((2 * m + 3,), start=2**power - m - 1) for power in range(8, 21))),
    ]


def _compressed(base: LayerCase, smallest_ratio: int) -> list[LayerCase]:
    m = base.compress_ratio
    return [
        replace(base, compress_ratio=smallest_ratio, rows=(Row((6 * smallest_ratio,)),)),
        replace(base, yarn=_YARN, rows=(Row((12 * m + 1,)),)),
        replace(base, window=1, yarn=_YARN),
    ]


def _selecting(base: LayerCase) -> list[LayerCase]:
    m = base.compress_ratio
    wide = replace(base, rows=(Row((8 * m + 2,)), Row((6 * m,))))
    return [
        *(replace(base, top_k=k) for k in (0, 1, 4, 5, 6)),
        *(replace(wide, scores=scores) for scores in DRAWN_SCORES),
        replace(wide, index_heads=8),
        replace(wide, top_k=1, window=1),
    ]


def _lengths(base: LayerCase, length: int) -> LayerCase:
    return replace(base, rows=(Row((length,)),))


def _rows(base: LayerCase, *rows: Row) -> LayerCase:
    return replace(base, rows=rows)


def _nearest(ratio: int, allowed: Collection[int] | None) -> int:
    return ratio if allowed is None else min(allowed, key=lambda other: (abs(other - ratio), other))


def without_ties(case: L) -> L:
    """Return the case with so many index heads that ReLU hardly ever makes several scores of a query 0.

    Among those, implementations choose as they like.
    """
    return replace(case, index_heads=max(case.index_heads, 12)) if case.kind is LayerKind.CSA else case


_LONG, _JUDGED = 64, 16
"""Tokens beyond which a row is long, and queries of each of its documents that are judged then: the specification
answers one at a time"""
_MANY = 64
"""Entries, from which on their blocks are as short as may be"""
_MOST = {"S": 2048, "W": 128, "m": 128, "k": 512, "H": 64, "D": 128, "HI": 64, "DI": 128}
"""The largest threshold that a size crosses; the released models have them, but for S, D and H"""


def sizes(drawn: Sequence[LayerCase], seed: int) -> Iterable[LayerCase]:
    """Return cases whose sizes cross those where implementations switch, few queries of which are judged."""
    has = drawn[0].sizes
    most = {letter: size for letter, size in _MOST.items() if letter in has}
    room = partial(_with_room, smallest=min(case.compress_ratio for case in drawn))
    sweep: Sweep[LayerCase] = Sweep(most, least=16, between=False, room=room)
    return sweep.cases(drawn, seed)


def _with_room(case: LayerCase, letter: str, smallest: int) -> LayerCase:
    """Return the case with so many tokens that the size matters, and where they are many, scores of few ties.

    Blocks of the smallest ratio make so many entries of the fewest tokens.
    """
    if letter == "k" and case.top_k > _MANY:
        case = replace(case, compress_ratio=smallest)
    m = case.compress_ratio
    long = {"W": case.window + 8, "m": 3 * m + 1, "k": m * (case.top_k + 3) + 1}
    if letter in long:
        case = case.with_sizes({"S": long[letter]})
    elif letter == "S":  # wide enough that some windows cross whatever border there is
        case = case.with_sizes({"W": max(case.window, case.columns // 16)})
    if case.columns <= _LONG:
        return case
    longest = max(case.rows, key=lambda row: row.width)  # one of them: time grows with the square of S
    case = replace(case, rows=(longest,), judged=_JUDGED, values=Values.GAUSSIAN, scores=Scores.FREE)
    return case if letter == "HI" else without_ties(case)


FLASH = "E=4096 H=64 D=512 R=64 q_lora=1024 HI=64 DI=128 groups=8 o_lora=1024 W=128 yarn=16/65536/32/1"
PRO = "E=7168 H=128 D=512 R=64 q_lora=1536 HI=64 DI=128 groups=16 o_lora=1024 W=128 yarn=16/65536/32/1"
"""DeepSeek-V4-Flash and DeepSeek-V4-Pro, as released"""


def released_ratio(kind: LayerKind | str) -> int:
    """Return the compression ratio that layers of a kind have in the released models."""
    return {LayerKind.CSA: 4, LayerKind.HCA: 128}.get(LayerKind(kind), 1)


def production(kind: LayerKind | str, setting: Setting = Setting()) -> list[LayerCase]:
    """Return cases of the released models, few queries of which are judged."""
    # Rows of the second would have to be twice as long to truncate its top-k.
    texts = (f"{FLASH} k=512 rows=2061", f"{PRO} k=1024 rows=515,130")
    cases = [
        LayerCase.parse(
            f"{kind} m={released_ratio(kind)} {text} judged=8 values=gaussian sinks=drawn seed={number}"
        )
        for number, text in enumerate(texts)
    ]
    return [replace(case, dtype=setting.dtype, device=setting.device) for case in cases]


DRAWS = Draws(
    cases=cases,
    sizes=sizes,
    production=production,
    corners=corner_cases,
    telling=without_ties,
    for_laws=lambda kind, setting, costly: [] if costly else law_corners(kind, setting),
)
