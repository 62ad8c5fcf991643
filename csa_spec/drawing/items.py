"""The picture of a single stage: queries or entries in rows, by the keys, entries or tokens they are about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from csa_spec.drawing.frame import frame
from csa_spec.drawing.grid import (
    TOO_LITTLE,
    TOO_MUCH,
    Grid,
    Look,
    crop,
    cut_note,
    draw_errors,
    looking,
    row_label,
    side_of,
)
from csa_spec.drawing.svg import QUIET, SMALL, Sheet, text_width
from csa_spec.engine.failures import Failure, SeesTooLittle, SeesTooMuch

MORE = looking(TOO_MUCH, "the output changes with it and must not")
LESS = looking(TOO_LITTLE, "the output does not change with it and must")
FEW = 12
"""With no more columns there is room for numbers in the squares."""
_HEADER = 40
_BESIDE_NUMBERS = 14
"""Around the number in a square, whose digits are wider than the average letter."""


@dataclass(frozen=True, kw_only=True)
class Relation:
    """What is drawn of one row of the batch."""

    failure: Failure
    items: tuple[str, int]
    """What the rows of the grid are, and how many there are"""
    others: tuple[str, int]
    """The same for its columns"""
    near: int = 0
    """A column that is drawn, where there are too many"""
    look: Callable[[int, int], Look]
    looks: Sequence[Look] = ()
    """For the legend"""
    item_name: Callable[[int], str] = row_label
    other_name: Callable[[int], str] = str
    inside: Callable[[int, int], str] = lambda item, other: ""
    """Small type in a square"""
    beside: tuple[str, Callable[[int], str]] | None = None
    """A column of text: its heading, and what stands there for an item"""
    errors: str = "the output"
    """What the errors beside the grid are of; empty: they are not drawn"""
    inside_are_errors: bool = False
    """Whether the squares themselves show errors, which their legend then explains"""
    notes: Sequence[str] = ()

    def draw(self, numbers: Sequence[str]) -> str:
        """Return the picture."""
        rows, columns = crop(self.items[1], item_of(self.failure)), crop(self.others[1], self.near)
        written = [self.inside(item, other) for item in rows for other in columns]
        widest = max((text_width(text, SMALL) for text in written), default=0)
        square = 38 if widest else side_of(len(rows), len(columns))
        grid = Grid(
            rows,
            columns,
            self._look,
            row_name=self.item_name,
            column_name=self.other_name,
            inside=self.inside,
            above=f"{self.others[0].lower()}, row {row_of(self.failure)}",
            current=item_of(self.failure),
            square=square,
            wide=max(square, int(widest) + _BESIDE_NUMBERS),
        )
        stray = _stray(self.failure)
        looks = [*self.looks, *([] if stray is None else [stray[1]])]
        cuts = [
            cut_note(self.items[0], rows, self.items[1]),
            cut_note(self.others[0], columns, self.others[1]),
        ]
        body = self._body(grid)
        errors = bool(self.errors) or self.inside_are_errors
        return frame(self.failure, numbers, body, looks, [*cuts, *self.notes], errors=errors)

    def _look(self, item: int, other: int) -> Look:
        stray = _stray(self.failure)
        if stray is not None and (item, other) == (item_of(self.failure), stray[0]):
            return stray[1]
        return self.look(item, other)

    def _body(self, grid: Grid) -> Callable[[Sheet, float, float], float]:
        def body(sheet: Sheet, x: float, y: float) -> float:
            right, bottom = grid.draw(sheet, x + grid.label_width, y + _HEADER)
            if self.beside is not None:
                right = self._text(sheet, grid, right + 12, y)
            if self.errors:
                errors = errors_of(self.failure, row_of(self.failure))
                draw_errors(sheet, grid, right + 12, y + _HEADER, errors, self.errors)
            return bottom

        return body

    def _text(self, sheet: Sheet, grid: Grid, x: float, y: float) -> float:
        assert self.beside is not None
        heading, text = self.beside
        sheet.text(x, y + _HEADER - 5, heading, SMALL, QUIET)
        for number, item in enumerate(grid.rows):
            middle = y + _HEADER + (number + 0.5) * grid.square
            sheet.text(x, middle + 4, text(item), SMALL, mono=True)
        return x + text_width(heading, SMALL)


def row_of(failure: Failure) -> int:
    """Return the row that a failure is about."""
    return 0 if failure.place is None else failure.place.row


def item_of(failure: Failure) -> int:
    """Return the query or entry that a failure is about."""
    return 0 if failure.place is None else failure.place.t


def stray_of(failure: Failure) -> int:
    """Return the key or token on which an output depends wrongly; 0 where that is not what is wrong."""
    stray = _stray(failure)
    return 0 if stray is None else stray[0]


def _stray(failure: Failure) -> tuple[int, Look] | None:
    if not isinstance(failure, (SeesTooMuch, SeesTooLittle)) or "number" not in failure.facts:
        return None
    return failure.facts["number"], MORE if isinstance(failure, SeesTooMuch) else LESS


def errors_of(failure: Failure, row: int) -> Callable[[int], Sequence[float] | None]:
    """Return the errors of an item over their budgets, one for each head where there are heads."""
    errors: Tensor | None = failure.errors

    def of(item: int) -> Sequence[float] | None:
        if errors is not None:
            by_head: list[float] = errors[row, item].reshape(-1, errors.shape[-1]).amax(-1).tolist()
            return by_head
        here = failure.place is not None and failure.place.t == item
        return [failure.over_budget] if here and failure.over_budget is not None else None

    return of
