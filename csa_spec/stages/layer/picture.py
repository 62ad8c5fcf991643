"""Layers: who may see whom, beside what the candidate's outputs depend on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
from csa_spec.drawing.svg import QUIET, SMALL, TEXT, Sheet, text_width
from csa_spec.engine.failures import Failure
from csa_spec.spec import SPEC, DocumentTrace, Geometry
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


def layer_picture(failure: Failure, numbers: Sequence[str]) -> str | None:
    """Draw a failure that has a document; None where it has none."""
    trace = failure.document
    if trace is None:
        return None
    case = failure.case
    assert isinstance(case, OfLayer)
    geometry = case.geometry
    around = 0 if failure.place is None else failure.place.t
    length, count = len(trace.queries), len(trace.context.entries)
    shown = crop(length, around)
    entries = crop(count, around // max(1, geometry.compress_ratio))
    tokens, behind = specification_grids(trace, geometry, shown, entries)
    candidate = candidate_grid(failure, shown)
    for grid in (tokens, behind, candidate):
        if grid is not None:
            grid.current = None if failure.place is None else failure.place.t
    errors = errors_of(failure)
    width = tokens.label_width + tokens.width + (16 + behind.width if behind.columns else 0)
    width = max(width, _heading_width("specification"))

    def body(sheet: Sheet, x: float, y: float) -> float:
        right, bottom = _draw(sheet, x, y, "specification", [tokens, behind])
        if candidate is None:
            draw_errors(sheet, tokens, right + 16, y + _HEADER, errors)
            return bottom
        apart = 2 * width + _APART > _BESIDE
        x, y = (x, bottom + 24) if apart else (x + width + _APART, y)
        right, below = _draw(sheet, x, y, "candidate", [candidate])
        draw_errors(sheet, candidate, right + 12, y + _HEADER, errors)
        return max(bottom, below)

    looks = [WINDOW] + ([SELECTED, VISIBLE] if count else []) + [HIDDEN]
    looks += [DEPENDS, MUCH, LITTLE] if candidate is not None else []
    notes = [
        cut_note("Queries and tokens", shown, length),
        cut_note("Entries", entries, count),
        "The row with a frame is the query whose numbers stand below."
        + (" Under an entry: the tokens that it pools." if behind.columns and count <= _NOTED else ""),
        "" if candidate is not None else "What the candidate's outputs depend on was not measured.",
    ]
    return frame(failure, numbers, body, looks, notes)


def specification_grids(
    trace: DocumentTrace, geometry: Geometry, shown: Sequence[int], entries: Sequence[int]
) -> tuple[Grid, Grid]:
    """Return the grids of queries by tokens, and by entries."""
    allowed = allowed_tokens(trace, geometry)
    side = side_of(len(shown), len(shown) + len(entries))

    def token_look(t: int, j: int) -> Look:
        return WINDOW if j in trace.queries[t].window else VISIBLE if allowed[t, j] else HIDDEN

    def entry_look(t: int, s: int) -> Look:
        query = trace.queries[t]
        return SELECTED if s in query.selection else VISIBLE if s in query.visible else HIDDEN

    def covered(s: int) -> str:
        if len(entries) > _NOTED:
            return ""
        pooled = [one.token for one in SPEC.pooled_tokens(s, geometry.compress_ratio, geometry.overlap)]
        return f"{min(pooled)}–{max(pooled)}" if len(pooled) > 1 else str(pooled[0])

    note = max((text_width(covered(s), SMALL) for s in entries), default=0)
    return (
        Grid(shown, shown, token_look, above="tokens", square=side),
        Grid(
            shown, entries, entry_look, column_name=lambda s: f"e{s}", column_note=covered, above="entries",
            square=side, wide=max(side, int(note) + 6),
        ),
    )  # fmt: skip


def candidate_grid(failure: Failure, shown: Sequence[int]) -> Grid | None:
    """Return the grid of what the candidate's outputs depend on; None where nobody measured it."""
    dependence = failure.dependence
    if dependence is None:
        return None
    wrong = dict.fromkeys(dependence.too_much, MUCH) | dict.fromkeys(dependence.too_little, LITTLE)

    def look(t: int, j: int) -> Look:
        return wrong.get((t, j), DEPENDS if dependence.observed[t, j] else NOTHING)

    return Grid(shown, shown, look, above="tokens", square=side_of(len(shown), len(shown)))


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


def _heading_width(heading: str) -> float:
    return text_width(heading, TEXT + 1) + 12 + text_width(_SUBTITLE[heading], SMALL)


def _draw(sheet: Sheet, x: float, y: float, heading: str, grids: Sequence[Grid]) -> tuple[float, float]:
    """Draw grids that share their rows side by side under a heading."""
    sheet.text(x, y + 14, heading, TEXT + 1, bold=True)
    sheet.text(x + text_width(heading, TEXT + 1) + 12, y + 14, _SUBTITLE[heading], SMALL, QUIET)
    right, bottom = x + grids[0].label_width, y
    for number, grid in enumerate(grids):
        if grid.columns:
            right, bottom = grid.draw(sheet, right + 16 * bool(number), y + _HEADER, labels=not number)
    return right, bottom + _FOOTER
