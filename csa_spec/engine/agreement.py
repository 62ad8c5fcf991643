"""Whether two answers to one case are the same within what rounding allows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from csa_spec.engine.tally import error_ratios


class Part(NamedTuple):
    """Some items of answers, and what the specification says of them."""

    answers: tuple[Tensor, ...]
    """The items of each answer, ``[n, width]`` in float64"""
    expected: Tensor
    budget: Tensor
    ambiguous: Tensor
    """``[n]``: whether the item may rightly be another, because of ties"""


def same(parts: Iterable[Part], dtype: torch.dtype) -> bool:
    """Whether two answers are the same, where no tie leaves a choice."""
    return all(bool((_same_items(part, dtype) | part.ambiguous).all()) for part in parts)


def is_wrong(parts: Iterable[Part]) -> bool:
    """Whether an answer is off by more than its budget anywhere."""
    return any(float(error_ratios(part.answers[0], part.expected, part.budget).max()) > 1 for part in parts)


def same_and_wrong(parts: Iterable[Part], dtype: torch.dtype) -> bool:
    """Whether two answers are the same, and wrong.

    Both answers are rounded, so they may differ by two budgets of the case. But where the second is wrong,
    the first must be far nearer to it than the specification is: within a wide budget anything is the same.
    """
    off = apart = 0.0
    for part in parts:
        first, second = part.answers
        same_items = _same_items(part, dtype)
        if not bool((same_items | part.ambiguous).all()):
            return False
        ratios = error_ratios(second, part.expected, part.budget).amax(1)
        ratios = torch.where(same_items, ratios, 0.0)
        between = torch.where(_alike(first, second), 0.0, (first - second).abs() / part.budget).amax(1)
        off = max(off, float(ratios.max()))
        apart = max(apart, float(torch.where(ratios > 1, between, 0.0).max()))
    return off > 1 and _FAR * apart < off


_FAR = 4
"""Times as far as from another candidate's answer must be the specification's"""


def roughly(first: Any, second: Any) -> bool:
    """Whether two tensors that have no budget, gradients say, are about the same."""
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return (first is None) == (second is None)
    if first.shape != second.shape:
        return False
    if not first.is_floating_point():
        return torch.equal(first.sort(-1).values, second.sort(-1).values)
    share = {torch.float64: 1e-7, torch.float32: 1e-4}.get(first.dtype, 0.05)
    first, second = first.double(), second.double()
    allowed = share * first.nan_to_num(0.0, 0.0, 0.0).abs().max() if first.numel() else 0.0
    return bool((((first - second).abs() <= allowed) | _alike(first, second)).all())


def _same_items(part: Part, dtype: torch.dtype) -> Tensor:
    """Return ``[n]``: which items are the same in two answers.

    Budgets hold for right answers; a wrong one may round a little more, relative to the item.
    """
    first, second = part.answers
    slack = min(16 * torch.finfo(dtype).eps, 2.0**-6)
    largest = first.nan_to_num(0.0, 0.0, 0.0).abs().amax(1, keepdim=True)
    close = (first - second).abs() <= 2 * part.budget + slack * largest
    return (close | _alike(first, second)).all(1)


def _alike(first: Tensor, second: Tensor) -> Tensor:
    return (first == second) | (first.isnan() & second.isnan())
