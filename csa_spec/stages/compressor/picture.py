"""Draws a failure of ``compressor``: which tokens each entry pools."""

from __future__ import annotations

import math
from collections.abc import Sequence

from csa_spec.drawing.frame import frame
from csa_spec.drawing.grid import (
    NOTHING,
    Grid,
    Look,
    crop,
    cut_note,
    draw_errors,
    looking,
    side_of,
)
from csa_spec.drawing.items import HEADER, LESS, MORE, errors_of, item_of, row_of, stray_of
from csa_spec.drawing.svg import Sheet
from csa_spec.engine.failures import Failure, SeesTooMuch
from csa_spec.spec import SPEC
from csa_spec.spec.compressor import Half
from csa_spec.stages.compressor.case import CompressorCase

OWN = Look("pools it as a token of its own block", "#54aeff", "#0550ae")
BEFORE = Look("pools it as a token of the block before", "#b6e3ff", "#54aeff")
APART = looking(NOTHING, "does not pool it")


def compressor_picture(failure: Failure, numbers: Sequence[str]) -> str | None:
    """Draw which tokens each entry pools, and the errors of the entries."""
    if failure.place is None:
        return None
    case = failure.case
    assert isinstance(case, CompressorCase)
    geometry, tokens, row, here = case.geometry, case.tokens, row_of(failure), item_of(failure)
    count = geometry.entry_count(tokens)
    if not count:
        return None
    pooled = [
        {one.token: one.half for one in SPEC.pooled_tokens(s, geometry.compress_ratio, geometry.overlap)}
        for s in range(count)
    ]
    stray = stray_of(failure)
    rows, columns = crop(count, here), crop(tokens, here * geometry.compress_ratio)

    def look(s: int, token: int) -> Look:
        if (s, token) == (here, stray):
            return MORE if isinstance(failure, SeesTooMuch) else LESS
        half = pooled[s].get(token)
        return APART if half is None else OWN if half is Half.CURRENT else BEFORE

    grid = Grid(
        rows, columns, look, row_name=lambda s: f"e{s}", above=f"tokens, row {row}", current=here,
        square=side_of(len(rows), len(columns)),
    )  # fmt: skip

    def body(sheet: Sheet, x: float, y: float) -> float:
        right, bottom = grid.draw(sheet, x + grid.label_width, y + HEADER)
        draw_errors(sheet, grid, right + 12, y + HEADER, errors_of(failure, row), "the entry")
        return bottom

    looks = [OWN, *([BEFORE] if geometry.overlap else []), APART]
    looks += [] if stray is None else [MORE if isinstance(failure, SeesTooMuch) else LESS]
    notes = [cut_note("Entries", rows, count), cut_note("Tokens", columns, tokens)]
    return frame(failure, numbers, body, looks, notes)


def _listed(picks: Sequence[int] | None) -> str:
    shown = ", ".join(map(str, (picks or [])[:12]))
    return f"[{shown}{', ...' if picks and len(picks) > 12 else ''}]"


def _distance(expected: float, got: float) -> float:
    difference = abs(got - expected)
    return difference if math.isfinite(difference) else math.inf
