"""Single stages: queries by keys, queries by entries, entries by tokens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from csa_spec.engine.failures import Failure, SeesTooLittle, SeesTooMuch
from csa_spec.report.pictures.frame import frame
from csa_spec.report.pictures.grid import (
    NOTHING,
    TOO_LITTLE,
    TOO_MUCH,
    UNKNOWN,
    Grid,
    Look,
    crop,
    cut_note,
    draw_errors,
    error_look,
    error_text,
    looking,
    side_of,
)
from csa_spec.report.pictures.svg import QUIET, SMALL, Sheet, text_width
from csa_spec.spec import SPEC
from csa_spec.spec.compressor import Half
from csa_spec.stages.attend_cases import AttendCase, make_attend_inputs
from csa_spec.stages.compressor import CompressorCase
from csa_spec.stages.index_scores import IndexScoresCase
from csa_spec.stages.select import SelectCase, make_select_inputs

NAMED = Look("named by the query's index list", "#54aeff", "#0550ae")
AGAIN = Look("named more than once", "#0969da", "#0550ae")
UNNAMED = looking(NOTHING, "not named")
PICKED = Look("selected, rightly", "#54aeff", "#0550ae")
EXPECTED = Look("the specification selects it", "#ffffff", "#0550ae", weight=2)
SEEN = Look("may be seen", "#ddf4ff", "#80b8ec")
UNSEEN = looking(NOTHING, "must not be seen")
OWN = Look("pools it as a token of its own block", "#54aeff", "#0550ae")
BEFORE = Look("pools it as a token of the block before", "#b6e3ff", "#54aeff")
APART = looking(NOTHING, "does not pool it")
WRONG_PICK = looking(TOO_MUCH, "selected and must not be")
LEFT_OUT = looking(TOO_LITTLE, "left out and must not be")
_MORE = looking(TOO_MUCH, "the output changes with it and must not")
_LESS = looking(TOO_LITTLE, "the output does not change with it and must")
_HEADER = 40
_FEW = 12


def attend_picture(failure: Failure, check: str) -> str:
    """Draw which keys each query names, and the errors of the outputs, a square per head."""
    case = failure.case
    assert isinstance(case, AttendCase)
    inputs, row, here = make_attend_inputs(case), _row(failure), _item(failure)
    lists = inputs["indices"][row].tolist()
    keys = case.keys
    counts = [Counter(i for i in one if 0 <= i < keys) for one in lists]
    stray = _stray(failure)
    rows, columns = crop(len(lists), here), crop(keys, max(0, stray or 0))

    def look(t: int, key: int) -> Look:
        if (t, key) == (here, stray):
            return _MORE if isinstance(failure, SeesTooMuch) else _LESS
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
        right, bottom = grid.draw(sheet, x + grid.label_width, y + _HEADER)
        right += 12
        sheet.text(right, y + _HEADER - 20, "names", SMALL, QUIET)
        sheet.text(right, y + _HEADER - 5, "no key", SMALL, QUIET)
        for number, t in enumerate(rows):
            text = f"{none[t]} ×" if none[t] else "–"
            sheet.text(
                right + 20,
                y + _HEADER + number * grid.square + grid.square / 2 + 4,
                text,
                SMALL,
                anchor="middle",
            )
        draw_errors(
            sheet, grid, right + text_width("no key", SMALL) + 20, y + _HEADER, _errors(failure, row)
        )
        return bottom

    looks = (
        [NAMED, AGAIN, UNNAMED] if any(max(c.values(), default=0) > 1 for c in counts) else [NAMED, UNNAMED]
    )
    looks += [] if stray is None else [_MORE if isinstance(failure, SeesTooMuch) else _LESS]
    notes = [
        cut_note("Queries", rows, len(lists)),
        cut_note("Keys", columns, keys),
        "An error square for each head." if case.heads > 1 else "",
    ]
    return frame(failure, check, body, looks, notes)


def select_picture(failure: Failure, check: str) -> str:
    """Draw which entries each query may see, what the specification selects, and what the candidate selects."""
    case = failure.case
    assert isinstance(case, SelectCase)
    inputs, row, here = make_select_inputs(case), _row(failure), _item(failure)
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

    few = count <= _FEW
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
        right, bottom = grid.draw(sheet, x + grid.label_width, y + _HEADER)
        for number, t in enumerate(rows):
            if picks[t] is not None:
                middle = y + _HEADER + number * square + square / 2
                sheet.text(right + 12, middle + 4, _listed(picks[t]), SMALL, mono=True)
        sheet.text(right + 12, y + _HEADER - 5, "selected by the candidate", SMALL, QUIET)
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
    return frame(failure, check, body, looks, notes, errors=False)


def index_scores_picture(failure: Failure, check: str) -> str:
    """Draw the error of every score."""
    case = failure.case
    assert isinstance(case, IndexScoresCase)
    row, here = _row(failure), _item(failure)
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
        return error_text(ratio) if ratio is not None and not ratio <= 1 and len(columns) <= _FEW else ""

    square = side_of(len(rows), len(columns))
    grid = Grid(
        rows, columns, look, column_name=lambda s: f"e{s}", inside=inside,
        above=f"entries, row {row}; squares: error of the score", current=here, square=square,
        wide=52 if len(columns) <= _FEW else square,
    )  # fmt: skip

    def body(sheet: Sheet, x: float, y: float) -> float:
        return grid.draw(sheet, x + grid.label_width, y + _HEADER)[1]

    notes = [cut_note("Queries", rows, case.queries), cut_note("Entries", columns, case.entries)]
    return frame(failure, check, body, [], notes)


def compressor_picture(failure: Failure, check: str) -> str | None:
    """Draw which tokens each entry pools, and the errors of the entries."""
    case = failure.case
    assert isinstance(case, CompressorCase)
    geometry, tokens, row, here = case.geometry, case.tokens, _row(failure), _item(failure)
    count = geometry.entry_count(tokens)
    if not count:
        return None
    pooled = [
        {one.token: one.half for one in SPEC.pooled_tokens(s, geometry.compress_ratio, geometry.overlap)}
        for s in range(count)
    ]
    stray = _stray(failure)
    rows, columns = crop(count, here), crop(tokens, here * geometry.compress_ratio)

    def look(s: int, token: int) -> Look:
        if (s, token) == (here, stray):
            return _MORE if isinstance(failure, SeesTooMuch) else _LESS
        half = pooled[s].get(token)
        return APART if half is None else OWN if half is Half.CURRENT else BEFORE

    grid = Grid(
        rows, columns, look, row_name=lambda s: f"e{s}", above=f"tokens, row {row}", current=here,
        square=side_of(len(rows), len(columns)),
    )  # fmt: skip

    def body(sheet: Sheet, x: float, y: float) -> float:
        right, bottom = grid.draw(sheet, x + grid.label_width, y + _HEADER)
        draw_errors(sheet, grid, right + 12, y + _HEADER, _errors(failure, row), "the entry")
        return bottom

    looks = [OWN, *([BEFORE] if geometry.overlap else []), APART]
    looks += [] if stray is None else [_MORE if isinstance(failure, SeesTooMuch) else _LESS]
    notes = [cut_note("Entries", rows, count), cut_note("Tokens", columns, tokens)]
    return frame(failure, check, body, looks, notes)


def _row(failure: Failure) -> int:
    return 0 if failure.place is None else failure.place.row


def _item(failure: Failure) -> int:
    return 0 if failure.place is None else failure.place.t


def _stray(failure: Failure) -> int | None:
    """Return the key or token on which the place's output depends wrongly."""
    about: int | None = failure.about
    return about if isinstance(failure, (SeesTooMuch, SeesTooLittle)) else None


def _errors(failure: Failure, row: int) -> Callable[[int], Sequence[float] | None]:
    """Return the errors of an item over their budgets, one for each head where there are heads."""
    errors: Tensor | None = failure.errors

    def of(item: int) -> Sequence[float] | None:
        if errors is not None:
            found: list[float] = errors[row, item].reshape(-1, errors.shape[-1]).amax(-1).tolist()
            return found
        place = failure.place
        return (
            [failure.over_budget]
            if place is not None and place.t == item and failure.over_budget is not None
            else None
        )

    return of


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


def _distance(expected: float, got: float) -> float:
    difference = abs(got - expected)
    return difference if math.isfinite(difference) else math.inf
