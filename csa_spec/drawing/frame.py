"""What all pictures share: the sentence on top, the legend, the numbers and the likely cause below."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from csa_spec.drawing.grid import ERROR_LEGEND, UNKNOWN, Look, draw_legend
from csa_spec.drawing.svg import HEAD, INK, MARGIN, PURPLE, QUIET, SMALL, TEXT, Sheet
from csa_spec.engine.failures import Diagnosis, Failure

LEAST = 720
"""Narrower pictures would break their sentences too often."""


def frame(
    failure: Failure,
    numbers: Sequence[str],
    body: Callable[[Sheet, float, float], float],
    looks: Sequence[Look],
    notes: Sequence[str] = (),
    errors: bool = True,
) -> str:
    """Draw a picture: sentences, body, legend, notes, and the ``numbers`` that were expected and came.

    ``body`` draws the grids from a corner on, and returns where they end below. ``looks`` are for the
    legend, which has the scale of errors too where ``errors`` are drawn.
    """
    trial = Sheet()
    body(trial, MARGIN, 0)
    width = max(LEAST - 2 * MARGIN, trial.right - MARGIN)
    sheet = Sheet()
    sheet.rect(MARGIN, MARGIN, width, 0, "none")
    y = sheet.paragraph(MARGIN, MARGIN + 14, _sentence(failure.title), width, HEAD, bold=True)
    y = sheet.paragraph(MARGIN, y + 1, _sentence(failure.detail), width, TEXT)
    y = sheet.paragraph(MARGIN, y + 1, str(failure.case), width, SMALL, QUIET, mono=True)
    if failure.diagnosis is not None and failure.diagnosis.behaves_like:
        likely = _likely(failure.diagnosis)
        y = sheet.paragraph(MARGIN, y + 4, likely, width, TEXT, PURPLE, bold=True)
    y = body(sheet, MARGIN, y + 8) + 16
    y = draw_legend(sheet, MARGIN, y, width, looks)
    if errors:
        measured = failure.errors
        scale = ERROR_LEGEND + ([UNKNOWN] if measured is None or bool(measured.isnan().any()) else [])
        y = draw_legend(sheet, MARGIN, y, width, scale, "error, as a share of the tolerance:")
    y += 10
    for note in filter(None, notes):
        y = sheet.paragraph(MARGIN, y, note, width, SMALL, QUIET) + 2
    y += 4
    for line in numbers:
        sheet.text(MARGIN, y, line.replace(" ", "\u00a0"), SMALL, INK, mono=True)
        y += 16
    described = "; ".join(look.meaning for look in looks if look.meaning)
    return sheet.finish(f"{failure.title}: {failure.case}", f"{failure.detail}. Squares: {described}.")


def _likely(diagnosis: Diagnosis) -> str:
    """Name the likeliest known bug and its first source; reports list them all."""
    likeness = diagnosis.behaves_like[0]
    first, more = likeness.sources[:1], len(likeness.sources) - 1
    where = f" ({first[0]}{f' and {more} more' if more > 0 else ''})" if first else ""
    return f"{diagnosis.certainty.value}: {likeness.title}{where}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def plain_picture(failure: Failure, numbers: Sequence[str]) -> str:
    """Draw a failure of a stage that has no picture of its own: the sentences and numbers alone."""
    return frame(failure, numbers, lambda sheet, x, y: y, (), errors=False)
