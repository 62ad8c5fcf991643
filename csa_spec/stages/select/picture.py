"""Draws a failure of ``select``: what each query may see, must select, and selects."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from csa_spec.drawing.frame import frame
from csa_spec.drawing.grid import (
    NOTHING,
    TOO_LITTLE,
    TOO_MUCH,
    Grid,
    Look,
    crop,
    cut_note,
    looking,
    side_of,
)
from csa_spec.drawing.items import FEW, HEADER, item_of, row_of
from csa_spec.drawing.svg import QUIET, SMALL, Sheet, text_width
from csa_spec.engine.failures import Failure
from csa_spec.spec import SPEC
from csa_spec.stages.select.case import SelectCase, make_select_inputs

PICKED = Look("selected, rightly", "#54aeff", "#0550ae")
EXPECTED = Look("the specification selects it", "#ffffff", "#0550ae", weight=2)
SEEN = Look("may be seen", "#ddf4ff", "#80b8ec")
UNSEEN = looking(NOTHING, "must not be seen")
WRONG_PICK = looking(TOO_MUCH, "selected and must not be")
LEFT_OUT = looking(TOO_LITTLE, "left out and must not be")


def select_picture(failure: Failure, numbers: Sequence[str]) -> str | None:
    """Draw which entries each query may see, what the specification selects, and what the candidate selects."""
    if failure.place is None:
        return None
    case = failure.case
    assert isinstance(case, SelectCase)
    inputs, row, here = make_select_inputs(case), row_of(failure), item_of(failure)
    scores, k = inputs["scores"][row].double().tolist(), case.top_k
    count = case.entries
    visible = [
        min(count, len(SPEC.visible_entries(position, case.compress_ratio)))
        for position in inputs["positions"][row].tolist()
    ]
    picks = [_picks(failure, row, t, here) for t in range(case.queries)]
    strange = next((int(p) for p in picks[here] or () if p >= visible[here]), 0)
    rows, columns = crop(case.queries, here), crop(count, min(strange, max(0, count - 1)))
    marks = [_pick_marks(scores[t][: visible[t]], visible[t], k, picks[t]) for t in range(case.queries)]

    def look(t: int, s: int) -> Look:
        return marks[t].get(s, SEEN if s < visible[t] else UNSEEN)

    def inside(t: int, s: int) -> str:
        return f"{scores[t][s]:.2g}" if few else ""

    few = count <= FEW
    square = 38 if few else side_of(len(rows), len(columns))
    across = (
        max((text_width(f"{scores[t][s]:.2g}", SMALL) for t in rows for s in columns), default=0)
        if few
        else 0
    )
    grid = Grid(
        rows, columns, look, column_name=lambda s: f"e{s}", inside=inside, above=f"entries, row {row}",
        current=here, square=square, wide=max(square, int(across) + 6),
    )  # fmt: skip

    def body(sheet: Sheet, x: float, y: float) -> float:
        right, bottom = grid.draw(sheet, x + grid.label_width, y + HEADER)
        for number, t in enumerate(rows):
            if picks[t] is not None:
                middle = y + HEADER + number * square + square / 2
                sheet.text(right + 12, middle + 4, _listed(picks[t]), SMALL, mono=True)
        sheet.text(right + 12, y + HEADER - 5, "selected by the candidate", SMALL, QUIET)
        return bottom

    notes = [
        cut_note("Queries", rows, case.queries),
        cut_note("Entries", columns, count),
        "The numbers in the squares are the scores." if few else "",
        "Of other queries the candidate's selection is not recorded."
        if any(one is None for one in picks)
        else "",
    ]
    looks = [PICKED, *([EXPECTED] if None in picks else []), SEEN, UNSEEN, WRONG_PICK, LEFT_OUT]
    return frame(failure, numbers, body, looks, notes, errors=False)


def _picks(failure: Failure, row: int, t: int, here: int) -> list[int] | None:
    """Return what the candidate selected for a query, without -1; None where it is not recorded."""
    answer: Tensor | None = failure.answer
    if answer is not None:
        return [int(s) for s in answer[row, t].tolist() if s != -1]
    return [int(s) for s in failure.got if s != -1] if t == here and failure.got is not None else None


def _pick_marks(
    scores: Sequence[float], visible: int, k: int, picks: Sequence[int] | None
) -> dict[int, Look]:
    """Return how the entries look that are selected, or should be."""
    must = SPEC.select(range(visible), [x if x == x else -math.inf for x in scores], k)
    if picks is None:
        return dict.fromkeys(must, EXPECTED)
    right = [s for s in picks if 0 <= s < visible]
    rest = [s for s in range(visible) if s not in right]
    missing = [s for s in must if s in rest]
    # A tie can be broken either way: where the count is right, only a better score makes a pick wrong.
    lowest = min((scores[s] for s in right), default=math.inf)
    better = [s for s in missing if not scores[s] <= lowest] if len(set(right)) == len(must) else missing
    bar = min((scores[s] for s in better), default=-math.inf)
    worse = [s for s in right if s not in must and (scores[s] < bar or len(right) > len(must))]
    twice = [s for s, times in Counter(picks).items() if times > 1]
    marks = dict.fromkeys(right, PICKED) | dict.fromkeys(better, LEFT_OUT)
    wrong = [*worse, *twice, *(s for s in picks if not 0 <= s < visible)]
    return marks | dict.fromkeys(wrong, WRONG_PICK)


def _listed(picks: Sequence[int] | None) -> str:
    shown = ", ".join(map(str, (picks or [])[:12]))
    return f"[{shown}{', ...' if picks and len(picks) > 12 else ''}]"
