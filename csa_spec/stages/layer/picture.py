"""Layers: who may see whom, beside what the candidate's outputs depend on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from csa_spec.drawing.frame import frame
from csa_spec.drawing.grid import (
    NOTHING,
    TOO_LITTLE,
    TOO_MUCH,
    Grid,
    Look,
    crop,
    cut_note,
    draw_errors,
    looking,
    side_of,
)
from csa_spec.drawing.svg import INK, PAPER, QUIET, SMALL, TEXT, Sheet, text_width
from csa_spec.engine.failures import Failure
from csa_spec.engine.layout import layout_of
from csa_spec.spec import SPEC, DocumentTrace, Geometry, LayerKind
from csa_spec.stages.layer.case import OfLayer
from csa_spec.stages.layer.dependence import allowed_tokens

WINDOW = Look("in the window", "#4ac26b", "#1a7f37")
SELECTED = Look("entry selected", "#54aeff", "#0550ae")
VISIBLE = Look(
    "may be seen: entry not selected, or token in an entry that may be seen", "#ddf4ff", "#80b8ec"
)
HIDDEN = looking(NOTHING, "must not see")
DEPENDS = Look("depends on it, rightly", "#8c959f", "#57606a")
MUCH = looking(TOO_MUCH, "depends on it and must not")
LITTLE = looking(TOO_LITTLE, "does not depend on it and must")
_BESIDE = 1100
"""Wider pairs of grids stand one below the other."""
_NOTED = 8
"""With more entries there is no room to say what each covers."""
_HEADER, _FOOTER, _APART = 64, 18, 44
_HEADER_OF_COLUMNS = 98
"""With three lines on what the columns hold."""


def layer_picture(failure: Failure, numbers: Sequence[str]) -> str | None:
    """Draw a failure that has a document; None where it has none, or not every query was judged."""
    trace = failure.document
    if trace is None or not trace.whole:
        return None
    case = failure.case
    assert isinstance(case, OfLayer)
    drawn = _Drawn(failure, trace, case.geometry)
    tokens, behind = drawn.specification()
    candidate = drawn.candidate()
    errors = errors_of(failure)
    width = tokens.label_width + tokens.width + (16 + behind.width if behind.columns else 0)
    width = max(width, drawn.heading_width("specification"))

    def body(sheet: Sheet, x: float, y: float) -> float:
        right, bottom = drawn.draw(sheet, x, y, "specification", [tokens, behind])
        if candidate is None:
            draw_errors(sheet, tokens, right + 16, y + drawn.header, errors)
            return bottom
        apart = 2 * width + _APART > _BESIDE
        x, y = (x, bottom + 24) if apart else (x + width + _APART, y)
        right, below = drawn.draw(sheet, x, y, "candidate", [candidate])
        draw_errors(sheet, candidate, right + 12, y + drawn.header, errors)
        return max(bottom, below)

    count = len(trace.context.entries)
    looks = [WINDOW] + ([SELECTED, VISIBLE] if count else []) + [HIDDEN]
    looks += [DEPENDS, MUCH, LITTLE] if candidate is not None else []
    notes = [
        *drawn.notes(),
        "The row with a frame is the query whose numbers stand below."
        + (" Under an entry: the tokens that it pools." if behind.columns and count <= _NOTED else ""),
        "" if candidate is not None else "What the candidate's outputs depend on was not measured.",
    ]
    return frame(failure, numbers, body, looks, notes)


class _Drawn:
    """Which queries, columns and entries of a failure are drawn, and how."""

    def __init__(self, failure: Failure, trace: DocumentTrace, geometry: Geometry) -> None:
        self._failure, self._trace, self._geometry = failure, trace, geometry
        self._document, self._layout = trace.context.document, layout_of(failure.case, trace)
        self._current = None if failure.place is None else failure.place.t
        around = self._current or 0
        self._queries = crop(self._document.length, around)
        self._columns = crop(len(self._layout.documents), self._document.begin + around)
        if len(self._columns) < len(self._layout.documents) and not (
            failure.dependence is not None and failure.dependence.outside
        ):  # the document alone, where it depends on nothing else
            begin = self._document.begin
            self._columns = range(begin + self._queries[0], begin + self._queries[-1] + 1)
        self._entries = crop(len(trace.context.entries), around // max(1, geometry.compress_ratio))

    @property
    def header(self) -> int:
        """Height of what stands above the squares."""
        return _HEADER if self._layout.plain else _HEADER_OF_COLUMNS

    @property
    def _whose(self) -> str:
        number = self._layout.documents[self._document.begin]
        return f" of document {number}" if self._layout.several else ""

    def specification(self) -> tuple[Grid, Grid]:
        """Return the grids of queries by tokens, and by entries."""
        trace, begin, entries = self._trace, self._document.begin, self._entries
        allowed = allowed_tokens(trace, self._geometry)
        side = side_of(len(self._queries), len(self._columns) + len(entries))

        def token_look(t: int, column: int) -> Look:
            j = column - begin
            if j in trace.queries[t].window:
                return WINDOW
            return VISIBLE if 0 <= j < len(allowed) and allowed[t, j] else HIDDEN

        def entry_look(t: int, s: int) -> Look:
            query = trace.queries[t]
            return SELECTED if s in query.selection else VISIBLE if s in query.visible else HIDDEN

        def covered(s: int) -> str:
            if len(entries) > _NOTED:
                return ""
            tokens = SPEC.pooled_tokens(s, self._geometry.compress_ratio, self._geometry.overlap)
            pooled = [pooled.token for pooled in tokens]
            return f"{min(pooled)}–{max(pooled)}" if len(pooled) > 1 else str(pooled[0])

        note = max((text_width(covered(s), SMALL) for s in entries), default=0)
        return self._grid(token_look, side), Grid(
            self._queries,
            entries,
            entry_look,
            column_name=lambda s: f"e{s}",
            column_note=covered,
            above=f"entries{self._whose}",
            current=self._current,
            square=side,
            wide=max(side, int(note) + 6),
        )

    def candidate(self) -> Grid | None:
        """Return the grid of what the candidate's outputs depend on; None where nobody measured it."""
        dependence, begin = self._failure.dependence, self._document.begin
        if dependence is None:
            return None
        looks = {(t, begin + j): DEPENDS for t, j in dependence.observed.nonzero().tolist()}
        looks |= {(t, begin + j): MUCH for t, j in dependence.too_much}
        looks |= {(t, begin + j): LITTLE for t, j in dependence.too_little}
        looks |= {(t, column): MUCH for t, row, column in dependence.outside if row == self._layout.row}
        side = side_of(len(self._queries), len(self._columns))
        return self._grid(lambda t, column: looks.get((t, column), NOTHING), side)

    def _grid(self, look: Callable[[int, int], Look], side: int) -> Grid:
        above = "tokens" if self._layout.plain else ""
        return Grid(
            self._queries,
            self._columns,
            look,
            row_name=self._label,
            above=above,
            current=self._current,
            square=side,
        )

    def _label(self, t: int) -> str:
        return f"t={t}" if self._layout.plain else f"t={t} (column {self._document.begin + t})"

    def notes(self) -> list[str]:
        """Say what is cut off, and from where a packed row is counted."""
        several = f"Queries (t) and entries are counted from the first token{self._whose}."
        return [
            several if self._layout.several else "",
            cut_note("Queries", self._queries, self._document.length),
            cut_note("Columns" if self._whose else "Tokens", self._columns, len(self._layout.documents)),
            cut_note("Entries", self._entries, len(self._trace.context.entries)),
        ]

    def _subtitle(self, heading: str) -> str:
        return _SUBTITLE[heading] + (f", {self._whose.strip()}" if self._whose else "").replace(
            ", of", ", in"
        )

    def heading_width(self, heading: str) -> float:
        """Return how wide a heading is."""
        return text_width(heading, TEXT + 1) + 12 + text_width(self._subtitle(heading), SMALL)

    def draw(
        self, sheet: Sheet, x: float, y: float, heading: str, grids: Sequence[Grid]
    ) -> tuple[float, float]:
        """Draw grids that share their rows side by side under a heading."""
        sheet.text(x, y + 14, heading, TEXT + 1, bold=True)
        sheet.text(x + text_width(heading, TEXT + 1) + 12, y + 14, self._subtitle(heading), SMALL, QUIET)
        right, bottom = x + grids[0].label_width, y
        if not self._layout.plain:
            self._draw_columns(sheet, grids[0], right, y + self.header)
        for number, grid in enumerate(grids):
            if grid.columns:
                right, bottom = grid.draw(
                    sheet, right + 16 * bool(number), y + self.header, labels=not number
                )
        return right, bottom + _FOOTER

    def _draw_columns(self, sheet: Sheet, grid: Grid, x: float, y: float) -> None:
        """Write above a grid what its columns hold: documents, their tokens and blocks."""
        sheet.text(x - 6, y - 5, "column", SMALL, QUIET, "end")
        ratio = 0 if self._geometry.kind == LayerKind.SLIDING else self._geometry.compress_ratio
        for line, (name, cells) in enumerate(reversed(self._layout.held(grid.columns, ratio).items())):
            top = y - 35 - 17 * line
            sheet.text(x - 6, top + 12, name, SMALL, QUIET, "end")
            held = zip(cells, (self._layout.documents[column] for column in grid.columns), strict=True)
            left = x
            for (cell, _), run in groupby(held):
                width = len(list(run)) * grid.square
                if name != "t" and cell != "-":
                    sheet.rect(left + 1, top, width - 3, 15, PAPER, QUIET)
                text = "padding" if cell == "-" and name == "document" else cell
                text = text if text_width(text, SMALL) < width else "-"
                sheet.text(left + width / 2, top + 11.5, text, SMALL, INK, "middle")
                left += width


def errors_of(failure: Failure) -> Callable[[int], Sequence[float] | None]:
    """Return the error of each query over its budget; None for those that nobody measured."""
    errors, place = failure.errors, failure.place

    def of(t: int) -> Sequence[float] | None:
        if errors is not None:
            return [float(errors[t])]
        return (
            [failure.over_budget]
            if place is not None and place.t == t and failure.over_budget is not None
            else None
        )

    return of


_SUBTITLE = {"specification": "who may see whom", "candidate": "which tokens its outputs depend on"}
