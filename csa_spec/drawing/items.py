"""What pictures of single stages ask of a failure: where it is, what it is about, how large its errors are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from csa_spec.drawing.grid import TOO_LITTLE, TOO_MUCH, looking
from csa_spec.engine.failures import Failure, SeesTooLittle, SeesTooMuch

MORE = looking(TOO_MUCH, "the output changes with it and must not")
LESS = looking(TOO_LITTLE, "the output does not change with it and must")
HEADER = 40
FEW = 12


def row_of(failure: Failure) -> int:
    """Return the row that a failure is about."""
    return 0 if failure.place is None else failure.place.row


def item_of(failure: Failure) -> int:
    """Return the query or entry that a failure is about."""
    return 0 if failure.place is None else failure.place.t


def stray_of(failure: Failure) -> int | None:
    """Return the key or token on which the place's output depends wrongly."""
    about: int | None = failure.facts.get("number")
    return about if isinstance(failure, (SeesTooMuch, SeesTooLittle)) else None


def errors_of(failure: Failure, row: int) -> Callable[[int], Sequence[float] | None]:
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
