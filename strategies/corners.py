"""Cases written by hand: the smallest grid that reaches every required kind of case, in every run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from csa_spec.engine.case import DRAWN_SCORES, Case, Row, Sinks, Values
from csa_spec.spec import Geometry, LayerKind, Yarn


def corner_cases(
    kind: LayerKind,
    *,
    ratios: Collection[int] | None = None,
    modes: Sequence[str] = ("",),
    dtype: str = "float32",
    device: str = "cpu",
) -> list[Case]:
    """Return the corners of one layer kind; the candidate's modes take turns."""
    m = _nearest(4, ratios)
    geometry = Geometry(
        kind=kind, compress_ratio=m, window=2 * m, hidden=6, heads=2, head_dim=8, rope_dim=4, q_lora_rank=4,
        index_head_dim=6, o_groups=2, o_lora_rank=3,
    )  # fmt: skip
    if kind is LayerKind.CSA:
        geometry = replace(geometry, top_k=2, index_heads=2)
    base = Case(
        geometry=geometry,
        rows=(Row((5 * m + 1,)),),
        values=Values.GAUSSIAN,
        sinks=Sinks.DRAWN,
        dtype=dtype,
        device=device,
    )
    corners = _every_kind(base)
    if kind is not LayerKind.SLIDING:
        corners += _compressed(base, _nearest(1, ratios))
    if kind is LayerKind.CSA:
        corners += _selecting(base)
    return [replace(case, seed=n, mode=modes[n % len(modes)]) for n, case in enumerate(corners)]


_YARN = Yarn(factor=4.0, original_max_position=64)


def law_corners(
    kind: LayerKind,
    *,
    ratios: Collection[int] | None = None,
    modes: Sequence[str] = ("",),
    dtype: str = "float32",
    device: str = "cpu",
) -> list[Case]:
    """Return the few corners that every law is tried on, beside what is drawn: those with extreme sinks."""
    corners = corner_cases(kind, ratios=ratios, modes=modes, dtype=dtype, device=device)
    return [case for case in corners if case.sinks is Sinks.EXTREME]


def _every_kind(base: Case) -> list[Case]:
    m, window = base.geometry.compress_ratio, base.geometry.window
    return [
        # Lengths around one block, two blocks and the window, and one well past all of them.
        *(_lengths(base, length) for length in (1, m - 1, m, m + 1, 2 * m - 1, 2 * m, 2 * m + 1) if length),
        *(_lengths(base, length) for length in (window - 1, window, window + 1, 3 * window + 3)),
        _with(base, window=1),
        _with(base, window=max(1, m - 1)),
        _with(base, window=6 * m),
        _with(base, yarn=_YARN),
        _with(base, norm_eps=1e-2),
        replace(base, sinks=Sinks.ZERO),
        replace(
            _with(base, heads=8), sinks=Sinks.EXTREME
        ),  # several heads, so that one of them has a sink of -inf
        replace(base, values=Values.LARGE_LOGITS),
        replace(_with(base, heads=8, head_dim=2, rope_dim=2), values=Values.INTEGERS),  # logits of exactly 0
        # Rows: equal ones, padded on the right, on the left, packed, shifted on and off the grid.
        _rows(base, Row((3 * m,)), Row((3 * m,))),
        _rows(base, Row((3 * m + 1,)), Row((2 * m - 1,)), Row((1,))),
        _rows(base, Row((3 * m,), left_padding=1), Row((2 * m + 1,), left_padding=m)),
        _rows(base, Row((m + 1, 2 * m - 1))),
        _rows(base, Row((2 * m + 3,), start=2 * m)),
        _rows(base, Row((2 * m + 3,), start=2 * m + 1), Row((2 * m + 3,))),
    ]


def _compressed(base: Case, smallest_ratio: int) -> list[Case]:
    m = base.geometry.compress_ratio
    return [
        replace(_with(base, compress_ratio=smallest_ratio), rows=(Row((6 * smallest_ratio,)),)),
        replace(_with(base, yarn=_YARN), rows=(Row((12 * m + 1,)),)),
        _with(base, window=1, yarn=_YARN),
    ]


def _selecting(base: Case) -> list[Case]:
    m = base.geometry.compress_ratio
    wide = replace(base, rows=(Row((8 * m + 2,)), Row((6 * m,))))
    return [
        *(_with(base, top_k=k) for k in (0, 1, 4, 5, 6)),
        *(replace(wide, scores=scores) for scores in DRAWN_SCORES),
        _with(wide, index_heads=8),
        _with(wide, top_k=1, window=1),
    ]


def _lengths(base: Case, length: int) -> Case:
    return replace(base, rows=(Row((length,)),))


def _rows(base: Case, *rows: Row) -> Case:
    return replace(base, rows=rows)


def _with(base: Case, **changes: object) -> Case:
    return replace(base, geometry=replace(base.geometry, **changes))  # type: ignore[arg-type]


def _nearest(ratio: int, allowed: Collection[int] | None) -> int:
    return ratio if allowed is None else min(allowed, key=lambda one: (abs(one - ratio), one))
