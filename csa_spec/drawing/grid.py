"""Grids of coloured squares: rows of queries by columns of keys, as in transformers' mask pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from csa_spec.drawing.svg import EDGE, INK, PURPLE, QUIET, RED, SMALL, TEXT, Sheet, text_width

MOST = 40
"""Rows and columns that are drawn; of more, those around the place."""


@dataclass(frozen=True, slots=True)
class Look:
    """How a kind of square looks. Signs tell the wrong ones apart without colour."""

    meaning: str
    fill: str
    stroke: str = EDGE
    sign: str = ""
    ink: str = INK
    dash: str = ""
    weight: float = 1

    def draw(self, sheet: Sheet, x: float, y: float, width: float, height: float, title: str = "") -> None:
        """Draw a square, without its sign."""
        sheet.rect(x, y, width, height, self.fill, self.stroke, self.weight, self.dash, title)


TOO_MUCH = Look("", RED, "#82071e", "!", "#ffffff", weight=1.5)
TOO_LITTLE = Look("", "#fbefff", PURPLE, "?", PURPLE, dash="3 2", weight=2)
NOTHING = Look("", "#f3f4f6")


def looking(look: Look, meaning: str) -> Look:
    """Return a look with another meaning."""
    return replace(look, meaning=meaning)


_STEPS = (
    (1, "≤ 1", "#ffffff"),
    (10, "≤ 10", "#ffe2b8"),
    (1e3, "≤ 1 000", "#ffb45e"),
    (1e6, "≤ 1 000 000", "#e8590c"),
    (math.inf, "> 1 000 000", "#8f1d14"),
)
UNKNOWN = Look("not judged", "#ffffff", EDGE, "·", QUIET)


def error_look(ratio: float) -> Look:
    """Return the colour of an error, given as a share of its budget."""
    if math.isnan(ratio):
        return UNKNOWN
    if math.isinf(ratio):
        return Look("not finite", "#24292f", "#24292f", "×", "#ffffff")
    fill = next(fill for most, _, fill in _STEPS if ratio <= most)
    return Look("", fill, "#a8adb4", ink=INK if ratio <= 1e6 else "#ffffff")


def error_text(ratio: float) -> str:
    """Return an error, as a share of its budget, in few letters."""
    return f"{ratio:.2g}" if math.isfinite(ratio) else "not finite"


ERROR_LEGEND = [*(Look(name, fill, "#a8adb4") for _, name, fill in _STEPS), error_look(math.inf)]


def crop(count: int, around: int) -> range:
    """Return which rows or columns to draw: all, or those around a place."""
    begin = min(max(0, around - MOST // 2), max(0, count - MOST))
    return range(begin, min(count, begin + MOST))


def cut_note(what: str, shown: range, count: int) -> str:
    """Say what is left out, if anything is."""
    return "" if len(shown) == count else f"{what} {shown[0]} to {shown[-1]} of {count} are drawn."


def row_label(t: int) -> str:
    """Return e.g. ``t=1``."""
    return f"t={t}"


@dataclass(slots=True)
class Grid:
    """One grid: its rows, its columns, and how their squares look."""

    rows: Sequence[int]
    columns: Sequence[int]
    look: Callable[[int, int], Look]
    """Of a row and a column"""
    row_name: Callable[[int], str] = row_label
    column_name: Callable[[int], str] = str
    column_note: Callable[[int], str] = lambda column: ""
    """Small type under a column"""
    inside: Callable[[int, int], str] = lambda row, column: ""
    """Small type in a square"""
    above: str = ""
    """What the columns are"""
    current: int | None = None
    """The row that the failure is about"""
    square: int = 30
    """Height of a row"""
    wide: int = 0
    """Width of a column, where it is not the same"""

    @property
    def across(self) -> int:
        """Width of a column."""
        return self.wide or self.square

    @property
    def label_width(self) -> float:
        """Room for the names of the rows."""
        return max((text_width(self.row_name(row), TEXT) for row in self.rows), default=0) + 8

    @property
    def width(self) -> float:
        """Of the squares."""
        return self.across * len(self.columns)

    def draw(self, sheet: Sheet, x: float, y: float, labels: bool = True) -> tuple[float, float]:
        """Draw with the corner of the squares at ``x``, ``y``; return the corner at the other end."""
        side, across = self.square, self.across
        if self.above:
            sheet.text(x, y - 20, self.above, SMALL, QUIET)
        # Names that are wider than their column would run into each other: every second or fifth has one.
        widest = max((text_width(self.column_name(column), SMALL) for column in self.columns), default=0) + 5
        every = next(step for step in (1, 2, 5, 10) if step * across >= widest or step == 10)
        bottom = y + len(self.rows) * side
        for place, column in enumerate(self.columns):
            middle = x + (place + 0.5) * across
            if column % every == 0:
                sheet.text(middle, y - 5, self.column_name(column), SMALL, QUIET, "middle")
            if self.column_note(column):
                sheet.text(middle, bottom + 13, self.column_note(column), SMALL, QUIET, "middle")
        for number, row in enumerate(self.rows if labels else ()):
            middle = y + number * side + side / 2
            sheet.text(x - 6, middle + 4, self.row_name(row), TEXT, INK, "end", bold=row == self.current)
        squares = [
            (row, column, x + place * across, y + number * side)
            for number, row in enumerate(self.rows)
            for place, column in enumerate(self.columns)
        ]
        corners: dict[Look, list[tuple[float, float]]] = {}
        for row, column, left, top in squares:
            look = self.look(row, column)
            if not look.sign:
                corners.setdefault(look, []).append((left + 1, top + 1))
        for look, places in corners.items():
            sheet.squares(places, across - 3, side - 3, look.fill, look.stroke)
        for row, column, left, top in squares:
            self._signs(sheet, left, top, row, column)
        if self.current is not None and self.current in self.rows and self.columns:
            top = y + list(self.rows).index(self.current) * side
            sheet.rect(x - 1.5, top - 1.5, self.width + 2, side + 2, "none", INK, 1.5)
        return x + self.width, bottom

    def _signs(self, sheet: Sheet, x: float, y: float, row: int, column: int) -> None:
        """Draw what stands in a square, and the square itself where it has a sign."""
        look, side, across = self.look(row, column), self.square, self.across
        middle, number = x + across / 2 - 0.5, self.inside(row, column)
        lift = 0.2 * side if look.sign and number else 0
        if look.sign:
            title = f"{self.row_name(row)}, {self.column_name(column)}: {look.meaning}"
            look.draw(sheet, x + 1, y + 1, across - 3, side - 3, title)
            size = 15 if side > 20 else SMALL
            height = y + side / 2 + size / 3 - lift
            sheet.text(middle, height, look.sign, size, look.ink, "middle", bold=True)
        if number:
            sheet.text(middle, y + side / 2 + 3.5 + 1.1 * lift, number, SMALL, look.ink, "middle")


def side_of(rows: int, columns: int) -> int:
    """Return how large squares are: smaller where there are many."""
    size = max(rows, columns)
    return 30 if size <= 14 else 22 if size <= 24 else 17


def draw_errors(
    sheet: Sheet,
    grid: Grid,
    x: float,
    y: float,
    errors: Callable[[int], Sequence[float] | None],
    of_what: str = "the output",
) -> float:
    """Draw the errors of each row beside a grid, a square per head; return the right end."""
    side, end = grid.square, x
    sheet.text(x, y - 20, "error of", SMALL, QUIET)
    sheet.text(x, y - 5, of_what, SMALL, QUIET)
    for number, row in enumerate(grid.rows):
        top, values = y + number * side, errors(row)
        for place, value in enumerate(values if values is not None else [None]):
            look = UNKNOWN if value is None else error_look(value)
            name = look.meaning if value is None else f"{value:.3g} times the tolerance"
            title = f"{grid.row_name(row)}: {name}"
            look.draw(sheet, x + place * side + 1, top + 1, side - 3, side - 3, title)
            if look.sign:
                sheet.text(x + (place + 0.5) * side, top + side / 2 + 4, look.sign, TEXT, look.ink, "middle")
        if values:
            worst = max((value for value in values if value == value), default=0)
            end = x + len(values) * side
            if not worst <= 1:
                sheet.text(end + 4, top + side / 2 + 4, error_text(worst), SMALL, INK)
    return max(end + 40, x + text_width(of_what, SMALL))


def draw_legend(
    sheet: Sheet, x: float, y: float, width: float, looks: Sequence[Look], heading: str = ""
) -> float:
    """Draw what the squares mean, over as many lines as it takes; return where the next line is."""
    at = x
    if heading:
        sheet.text(at, y + 12, heading, SMALL, QUIET)
        at += text_width(heading, SMALL) + 10
    for look in looks:
        need = 22 + text_width(look.meaning, SMALL) + 14
        if at > x and at + need > x + width:
            at, y = x, y + 22
        look.draw(sheet, at, y, 16, 16)
        if look.sign:
            sheet.text(at + 8, y + 12, look.sign, SMALL, look.ink, "middle", bold=True)
        sheet.text(at + 22, y + 12, look.meaning, SMALL, INK)
        at += need
    return y + 24
