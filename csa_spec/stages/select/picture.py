"""Draws a failure of ``select``: what each query may see, must select, and selects."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from csa_spec.drawing.grid import NOTHING, TOO_LITTLE, TOO_MUCH, Look, looking
from csa_spec.drawing.items import FEW, Relation, item_of, row_of
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
    """Draw which entries each query may see, what it must select, and what the candidate selects."""
    if failure.place is None:
        return None
    case = failure.case
    assert isinstance(case, SelectCase)
    inputs, row, here = make_select_inputs(case), row_of(failure), item_of(failure)
    scores, count = inputs["scores"][row].double().tolist(), case.entries
    visible = [
        min(count, len(SPEC.visible_entries(position, case.compress_ratio)))
        for position in inputs["positions"][row].tolist()
    ]
    picks = [_picks(failure, row, t, here) for t in range(case.queries)]
    marks = [
        _pick_marks(scores[t][: visible[t]], visible[t], case.top_k, picks[t]) for t in range(case.queries)
    ]
    strange = next((int(p) for p in picks[here] or () if p >= visible[here]), 0)
    unknown = None in picks
    relation = Relation(
        failure=failure,
        items=("Queries", case.queries),
        others=("Entries", count),
        near=min(strange, max(0, count - 1)),
        look=lambda t, s: marks[t].get(s, SEEN if s < visible[t] else UNSEEN),
        looks=[PICKED, *[EXPECTED] * unknown, SEEN, UNSEEN, WRONG_PICK, LEFT_OUT],
        other_name=lambda s: f"e{s}",
        inside=lambda t, s: f"{scores[t][s]:.2g}" if count <= FEW else "",
        beside=("selected by the candidate", lambda t: "" if picks[t] is None else _listed(picks[t])),
        errors="",
        notes=[
            *["The numbers in the squares are the scores."] * (count <= FEW),
            *["Of other queries the candidate's selection is not recorded."] * unknown,
        ],
    )
    return relation.draw(numbers)


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
