"""Draws a failure of ``attend``: which keys each query names."""

from __future__ import annotations

from collections import Counter
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
from csa_spec.drawing.svg import QUIET, SMALL, Sheet, text_width
from csa_spec.engine.failures import Failure, SeesTooMuch
from csa_spec.stages.attend.case import AttendCase, make_attend_inputs

NAMED = Look("named by the query's index list", "#54aeff", "#0550ae")
AGAIN = Look("named more than once", "#0969da", "#0550ae")
UNNAMED = looking(NOTHING, "not named")


def attend_picture(failure: Failure, numbers: Sequence[str]) -> str | None:
    """Draw which keys each query names, and the errors of the outputs, a square per head."""
    if failure.place is None:
        return None
    case = failure.case
    assert isinstance(case, AttendCase)
    inputs, row, here = make_attend_inputs(case), row_of(failure), item_of(failure)
    lists = inputs["indices"][row].tolist()
    keys = case.keys
    counts = [Counter(i for i in one if 0 <= i < keys) for one in lists]
    stray = stray_of(failure)
    rows, columns = crop(len(lists), here), crop(keys, max(0, stray or 0))

    def look(t: int, key: int) -> Look:
        if (t, key) == (here, stray):
            return MORE if isinstance(failure, SeesTooMuch) else LESS
        return {0: UNNAMED, 1: NAMED}.get(counts[t][key], AGAIN)

    def inside(t: int, key: int) -> str:
        return f"{counts[t][key]}" if counts[t][key] > 1 else ""

    grid = Grid(
        rows,
        columns,
        look,
        inside=inside,
        above=f"keys, row {row}",
        current=here,
        square=side_of(len(rows), len(columns)),
    )
    none = [sum(not 0 <= i < keys for i in one) for one in lists]

    def body(sheet: Sheet, x: float, y: float) -> float:
        right, bottom = grid.draw(sheet, x + grid.label_width, y + HEADER)
        right += 12
        sheet.text(right, y + HEADER - 20, "names", SMALL, QUIET)
        sheet.text(right, y + HEADER - 5, "no key", SMALL, QUIET)
        for number, t in enumerate(rows):
            text = f"{none[t]} ×" if none[t] else "–"
            sheet.text(
                right + 20,
                y + HEADER + number * grid.square + grid.square / 2 + 4,
                text,
                SMALL,
                anchor="middle",
            )
        draw_errors(
            sheet, grid, right + text_width("no key", SMALL) + 20, y + HEADER, errors_of(failure, row)
        )
        return bottom

    looks = (
        [NAMED, AGAIN, UNNAMED] if any(max(c.values(), default=0) > 1 for c in counts) else [NAMED, UNNAMED]
    )
    looks += [] if stray is None else [MORE if isinstance(failure, SeesTooMuch) else LESS]
    notes = [
        cut_note("Queries", rows, len(lists)),
        cut_note("Keys", columns, keys),
        "An error square for each head." if case.heads > 1 else "",
    ]
    return frame(failure, numbers, body, looks, notes)
