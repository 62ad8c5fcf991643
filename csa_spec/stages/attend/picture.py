"""Draws a failure of ``attend``: which keys each query names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from csa_spec.drawing.grid import NOTHING, Look, looking
from csa_spec.drawing.items import Relation, row_of, stray_of
from csa_spec.engine.failures import Failure
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
    lists = make_attend_inputs(case)["indices"][row_of(failure)].tolist()
    counts = [Counter(i for i in indices if 0 <= i < case.keys) for indices in lists]
    none = [sum(not 0 <= i < case.keys for i in indices) for indices in lists]
    twice = any(max(count.values(), default=0) > 1 for count in counts)
    relation = Relation(
        failure=failure,
        items=("Queries", len(lists)),
        others=("Keys", case.keys),
        near=stray_of(failure),
        look=lambda t, key: {0: UNNAMED, 1: NAMED}.get(counts[t][key], AGAIN),
        looks=[NAMED, *[AGAIN] * twice, UNNAMED],
        inside=lambda t, key: f"{counts[t][key]}" if counts[t][key] > 1 else "",
        beside=("names no key", lambda t: f"{none[t]} ×" if none[t] else "–"),
        notes=["An error square for each head."] * (case.heads > 1),
    )
    return relation.draw(numbers)
