"""Draws a failure of ``index_scores``: the error of every score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from csa_spec.drawing.frame import frame
from csa_spec.drawing.grid import (
    UNKNOWN,
    Grid,
    Look,
    crop,
    cut_note,
    error_look,
    error_text,
    side_of,
)
from csa_spec.drawing.items import FEW, HEADER, item_of, row_of
from csa_spec.drawing.svg import Sheet
from csa_spec.engine.failures import Failure
from csa_spec.stages.index_scores.case import IndexScoresCase


def index_scores_picture(failure: Failure, numbers: Sequence[str]) -> str | None:
    """Draw the error of every score."""
    if failure.place is None:
        return None
    case = failure.case
    assert isinstance(case, IndexScoresCase)
    row, here = row_of(failure), item_of(failure)
    errors: Any = failure.errors
    expected, got = failure.expected or [], failure.got or []
    worst = max(range(len(expected)), key=lambda s: _distance(expected[s], got[s]), default=0)
    rows, columns = crop(case.queries, here), crop(case.entries, worst)

    def value(t: int, s: int) -> float | None:
        if errors is not None:
            return float(errors[row, t, s])
        return failure.over_budget if (t, s) == (here, worst) else None

    def look(t: int, s: int) -> Look:
        ratio = value(t, s)
        return UNKNOWN if ratio is None else error_look(ratio)

    def inside(t: int, s: int) -> str:
        ratio = value(t, s)
        return error_text(ratio) if ratio is not None and not ratio <= 1 and len(columns) <= FEW else ""

    square = side_of(len(rows), len(columns))
    grid = Grid(
        rows, columns, look, column_name=lambda s: f"e{s}", inside=inside,
        above=f"entries, row {row}; squares: error of the score", current=here, square=square,
        wide=52 if len(columns) <= FEW else square,
    )  # fmt: skip

    def body(sheet: Sheet, x: float, y: float) -> float:
        return grid.draw(sheet, x + grid.label_width, y + HEADER)[1]

    notes = [cut_note("Queries", rows, case.queries), cut_note("Entries", columns, case.entries)]
    return frame(failure, numbers, body, [], notes)


def _distance(expected: float, got: float) -> float:
    difference = abs(got - expected)
    return difference if math.isfinite(difference) else math.inf
