"""Stages whose output is numbers: compared with the specification item by item (a query, an entry)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from csa_spec.engine import agreement
from csa_spec.engine import failures as kinds
from csa_spec.engine.agreement import Part
from csa_spec.engine.failures import Failure, Found, Place, WrongNumbers
from csa_spec.engine.reference import Reference
from csa_spec.engine.tally import Tally, error_ratios
from csa_spec.engine.trial import C, Trial, of_case
from csa_spec.plug.call import Answer


class NumbersTrial(Trial[C]):
    """A trial whose output is ``[B, items, ...]``."""

    item: ClassVar[str]
    """What the second dimension counts, in the singular: ``query``, ``entry``, ``token``"""

    @of_case
    @abstractmethod
    def expected(self) -> tuple[Tensor, Tensor]:
        """What must come back, in float64, and by how much each element may be off."""

    @property
    def reference(self) -> Reference:
        """Every item is compared."""
        output, tolerance = self.expected
        return Reference(output, torch.ones(output.shape[:2], dtype=torch.bool), tolerance)

    def special(self, b: int, i: int) -> Found | None:
        """Name a kind of failure that only this stage has, if a wrong item is one."""
        return None

    def sight(self, b: int, i: int) -> Found | None:
        """Say on which key or token a wrong item depends though it must not, or does not though it must."""
        return None

    def context(self, b: int, i: int) -> tuple[str, ...]:
        """Return lines that show the data around an item."""
        return ()

    @property
    def queries(self) -> int:
        """Items of all rows."""
        return self.expected[0].shape[0] * self.expected[0].shape[1]

    def place(self, row: int, column: int) -> Place | None:
        """Return the name of an item."""
        return Place(row, column, column, item=self.item)

    def judge(self, answer: Answer) -> Tally:
        """Compare every element's error with its budget."""
        got, (expected, budget) = self.relevant(answer).double(), self.expected
        ratios = error_ratios(got, expected, budget)
        if not ratios.numel():
            return Tally(queries=self.queries)
        worst = ratios.flatten(2).amax(-1)
        if float(worst.max()) <= 1:
            return Tally(queries=self.queries, worst=float(worst.max()))
        raise self._classify(got, expected, worst, ratios)

    def _classify(self, got: Tensor, expected: Tensor, worst: Tensor, ratios: Tensor) -> Failure:
        wrong = [(int(b), int(i)) for b, i in (worst > 1).nonzero().tolist()]
        most = divmod(int(worst.argmax()), worst.shape[1])
        (kind, facts), (b, i) = self._named(got, expected, wrong, most)
        within = ratios[b, i]
        lead = within.flatten(1).amax(-1).argmax() if within.dim() > 1 else None

        def pick(x: Tensor) -> Tensor:
            return x[b, i] if lead is None else x[b, i, int(lead)]

        return kind(
            self.case,
            place=Place(b, i, i, None if lead is None else int(lead), item=self.item),
            expected=pick(expected).tolist(),
            got=pick(got).tolist(),
            over_budget=float(pick(ratios).max()),
            context=self.context(b, i),
            errors=ratios,
            **facts,
        )

    def _named(
        self, got: Tensor, expected: Tensor, wrong: list[tuple[int, int]], most: tuple[int, int]
    ) -> tuple[Found, tuple[int, int]]:
        lost = (~got.flatten(2).isfinite()).any(-1) & expected.flatten(2).isfinite().all(-1)
        for place in wrong if bool(lost.any()) else ():
            if lost[place]:
                return (kinds.NotFinite, {}), place
        if kinds.ReturnsZeros.fits(got, expected):
            return (kinds.ReturnsZeros, {}), most
        for place in wrong:
            if (special := self.special(*place)) is not None:
                return special, place
        other = self._answer_of_another(got, expected, wrong)
        if other is not None:
            return (kinds.AnswersAnother, {"other": other}), wrong[0]
        seen = self.sight(*most) if self.can_probe else None
        if seen is not None:
            return seen, most
        items = f"{self.item.removesuffix('y')}ies" if self.item.endswith("y") else f"{self.item}s"
        facts = {"wrong": len(wrong), "total": expected.shape[0] * expected.shape[1], "items": items}
        return (WrongNumbers, facts), most

    def _answer_of_another(self, got: Tensor, expected: Tensor, wrong: list[tuple[int, int]]) -> str | None:
        """Name the item whose answer the first wrong one has, if each wrong one has that of another item."""
        if expected.flatten(2).shape[-1] < 2:
            return None  # a single number coincides too easily
        budget, first = self.expected[1], None
        for place in wrong[:: -(-len(wrong) // _COMPARED)]:
            # Another item's answer counts only where the right one differs from it by far more than
            # rounding.
            ratios = error_ratios(got[place].expand_as(expected), expected, budget)
            apart = error_ratios(expected[place].expand_as(expected), expected, budget)
            close = (ratios.flatten(2).amax(-1) <= 1) & (apart.flatten(2).amax(-1) > _APART)
            if not close.any():
                return None
            first = first or close.nonzero()[0].tolist()
        return None if first is None else f"{self.item} {first[1]} of row {first[0]}"

    def parts(self, *answers: Answer) -> Iterator[Part]:
        """Yield all items at once."""
        expected, budget = (_rows_of(tensor) for tensor in self.expected)
        if expected.numel():
            items = tuple(_rows_of(self.relevant(answer).double()) for answer in answers)
            yield Part(items, expected, budget, torch.zeros(len(budget), dtype=torch.bool))

    def is_wrong(self, answer: Answer) -> bool:
        """Whether the specification gives another answer; judging would probe what wrong items depend on."""
        return agreement.is_wrong(self.parts(answer))

    def summary(self, failure: Failure, says: str) -> list[str]:
        """Add what wrong numbers depend on; that it is the right set is what judging found out."""
        if not isinstance(failure, WrongNumbers):
            return [says]
        factor = _factor(failure)
        times = "" if factor is None else f", {factor:.4g} times what they must be"
        depends = self.depends_on(failure) if self.can_probe else ""
        if not depends:
            return [says, f"The numbers are wrong{times}; what they depend on was not probed"]
        return [says, f"{depends}{times}"]

    def depends_on(self, failure: Failure) -> str:
        """Say what a wrong item depends on; nothing where that was not probed."""
        return ""

    def moved(self, second: Answer, b: int, i: int) -> bool:
        """Whether an item differs from that of the case as it is by more than both may be off."""
        first, other = (
            self.relevant(answer)[b, i].double().nan_to_num() for answer in (self.answer, second)
        )
        return bool(((first - other).abs() > 2 * self.expected[1][b, i]).any())


def _rows_of(items: Tensor) -> Tensor:
    """Return ``[B, items, ...]`` as ``[B * items, width]``."""
    return items.flatten(2).flatten(0, 1)


def _factor(failure: Failure) -> float | None:
    """Return by which factor all numbers are off, if they are by one."""
    expected, got = torch.tensor(failure.expected or []), torch.tensor(failure.got or [])
    if len(expected) < 2 or len(expected) != len(got) or (expected == 0).any():
        return None
    ratios = got / expected
    factor = float(ratios.mean())
    return factor if factor and bool(((ratios - factor).abs() < 1e-3 * abs(factor)).all()) else None


def moved_by(second: Tensor, first: Tensor, budget: Tensor) -> Tensor:
    """Return which elements moved by more than both may be off."""
    return (second.nan_to_num() - first.nan_to_num()).abs() > 2 * budget


RIGHT_SET = "the set is right, the numbers are wrong"
_COMPARED = 64
"""Wrong items that are compared with all others, at most; evenly spread"""
_APART = 8
"""Budgets between two answers that are told apart; others may coincide by chance."""


def equals_the_specification(trial: Trial[Any]) -> Tally:
    """The output matches the specification: within the tolerance, or as its rules allow."""
    return trial.judge(trial.answer)
