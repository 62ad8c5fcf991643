"""What can be wrong with a candidate: one class per kind of failure.

Hypothesis and pytest tell failures apart by their type, and shrinking keeps the type pinned, so two kinds of
failure never hide each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from csa_spec.harness.case import Case
from csa_spec.harness.dependence import Dependence
from csa_spec.spec import DocumentTrace


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the output something is wrong."""

    row: int
    column: int
    """Token of the row"""
    t: int
    """The same query, counted from its document's first token"""
    head: int | None = None
    """Where the candidate exposes heads"""

    def __str__(self) -> str:
        """Return e.g. ``row 0, query B (t=1)``."""
        return f"row {self.row}, query {query_name(self.t)}" + ("" if self.head is None else f", head {self.head}")


def query_name(t: int) -> str:
    """Return ``A (t=0)``, ``B (t=1)``, ...: letters while they last."""
    return f"{letter(t)} (t={t})" if letter(t) else f"t={t}"


def letter(t: int) -> str:
    """Return A for query 0, B for query 1, ...; nothing past Z."""
    return chr(ord("A") + t) if t < 26 else ""


class Failure(AssertionError):
    """A candidate is wrong about a case."""

    title: ClassVar[str] = "failure"

    def __init__(
        self,
        detail: str,
        case: Case,
        *,
        place: Place | None = None,
        expected: list[float] | None = None,
        got: list[float] | None = None,
        over_budget: float | None = None,
        findings: tuple[str, ...] = (),
        document: DocumentTrace | None = None,
        dependence: Dependence | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.case = case
        self.place = place
        self.expected = expected
        self.got = got
        self.over_budget = over_budget
        """Largest error as a multiple of its budget"""
        self.findings = findings
        """What the stages that the candidate exposes show, the first that differs first"""
        self.document = document
        self.dependence = dependence

    @property
    def kind(self) -> str:
        """The kind of failure; shrinking keeps it."""
        return type(self).__name__

    def __str__(self) -> str:
        """Return title and detail."""
        return f"{self.title}: {self.detail}"


class CandidateRaised(Failure):
    """The candidate raised an exception on a case that it did not decline."""

    title = "the candidate raised an exception"

    def __init__(self, error: BaseException, case: Case) -> None:
        super().__init__(f"{type(error).__name__}: {error}", case)
        self.error = error

    @property
    def kind(self) -> str:
        """Exceptions of different types are different kinds."""
        return f"{type(self).__name__}[{type(self.error).__name__}]"


class WrongShape(Failure):
    """The output is not a tensor of the input's shape."""

    title = "the output has the wrong shape"


class WrongDtype(Failure):
    """The output is not of the input's dtype."""

    title = "the output has the wrong dtype"


class NotFinite(Failure):
    """NaN or infinity where the specification has a number."""

    title = "the output is not finite"


class SeesTooMuch(Failure):
    """An output changes with a token that its query must not see."""

    title = "queries see tokens or entries that they must not see"


class SeesTooLittle(Failure):
    """An output does not change with a token that its query must see."""

    title = "queries miss tokens or entries that they must see"


class WrongNumbers(Failure):
    """Every output depends on the right tokens, but the numbers are wrong."""

    title = "the numbers are wrong, though every query sees the right tokens"


class FutureLeak(Failure):
    """Law: future tokens do not change earlier outputs."""

    title = "future tokens change earlier outputs"


class RowsInteract(Failure):
    """Law: rows do not change each other."""

    title = "rows of a batch change each other"


class PrefixDiffers(Failure):
    """Law: a prefix gives the same outputs as the whole."""

    title = "a prefix gives other outputs than the whole"


class BatchOrderMatters(Failure):
    """Law: permuting the batch permutes the output."""

    title = "the order of rows changes their outputs"


class NotRepeatable(Failure):
    """Law: two runs agree bit for bit."""

    title = "two runs on the same input differ"


class InputsChanged(Failure):
    """Law: inputs are not mutated."""

    title = "the candidate changes its inputs"


class WeightIgnored(Failure):
    """Law: every weight matters where it should."""

    title = "a weight has no effect where it must have one"

    def __init__(self, weight: str, detail: str, case: Case, **details: Any) -> None:
        super().__init__(detail, case, **details)
        self.weight = weight

    @property
    def kind(self) -> str:
        """Different weights are different kinds, so that shrinking cannot slip from one to another."""
        return f"{type(self).__name__}[{self.weight}]"
