"""Draws a failure of ``index_scores``: the error of every score."""

from __future__ import annotations

import math
from collections.abc import Sequence

from csa_spec.drawing.grid import UNKNOWN, Look, error_look, error_text
from csa_spec.drawing.items import FEW, Relation, item_of, row_of
from csa_spec.engine.failures import Failure
from csa_spec.stages.index_scores.case import IndexScoresCase


def index_scores_picture(failure: Failure, numbers: Sequence[str]) -> str | None:
    """Draw the error of every score."""
    if failure.place is None:
        return None
    case = failure.case
    assert isinstance(case, IndexScoresCase)
    row, here, errors = row_of(failure), item_of(failure), failure.errors
    pairs = list(zip(failure.expected or [], failure.got or [], strict=False))
    worst = max(range(len(pairs)), key=lambda s: _distance(*pairs[s]), default=0)

    def error(t: int, s: int) -> float | None:
        if errors is not None:
            return float(errors[row, t, s])
        return failure.over_budget if (t, s) == (here, worst) else None

    def look(t: int, s: int) -> Look:
        ratio = error(t, s)
        return UNKNOWN if ratio is None else error_look(ratio)

    def inside(t: int, s: int) -> str:
        ratio = error(t, s)
        return error_text(ratio) if ratio is not None and not ratio <= 1 and case.entries <= FEW else ""

    relation = Relation(
        failure=failure,
        items=("Queries", case.queries),
        others=("Entries", case.entries),
        near=worst,
        look=look,
        other_name=lambda s: f"e{s}",
        inside=inside,
        errors="",
        inside_are_errors=True,
        notes=["The squares show the error of each score."],
    )
    return relation.draw(numbers)


def _distance(expected: float, got: float) -> float:
    difference = abs(got - expected)
    return difference if math.isfinite(difference) else math.inf
