"""What can be wrong with a candidate: one class per kind of failure.

Hypothesis and pytest tell failures apart by their type, and shrinking keeps the type pinned, so two kinds of
failure never hide each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from csa_spec.engine.case import Case
from csa_spec.engine.dependence import Dependence
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
    item: str = "query"
    """What ``t`` counts: queries, or entries"""

    @property
    def name(self) -> str:
        """E.g. ``query B (t=1)``."""
        return f"query {query_name(self.t)}" if self.item == "query" else f"{self.item} {self.t}"

    def __str__(self) -> str:
        """Return e.g. ``row 0, query B (t=1)``."""
        return f"row {self.row}, {self.name}" + ("" if self.head is None else f", head {self.head}")


def query_name(t: int) -> str:
    """Return ``A (t=0)``, ``B (t=1)``, ...: letters while they last."""
    return f"{letter(t)} (t={t})" if letter(t) else f"t={t}"


def letter(t: int) -> str:
    """Return A for query 0, B for query 1, ...; nothing past Z."""
    return chr(ord("A") + t) if t < 26 else ""


@dataclass(frozen=True, slots=True)
class Likeness:
    """A known bug whose answers the candidate gives, where the specification gives others."""

    name: str
    """Name of the bug in the catalogue"""
    title: str
    """What such an implementation does"""
    cause: str
    """One sentence"""
    sources: tuple[str, ...]
    """E.g. ``transformers #45758``; none for mistakes that nobody reported"""
    urls: tuple[str, ...]
    agreeing: int
    """Of the cases tried, those on which the candidate does what the bug does"""
    tried: int
    """The failing case, and further ones on which this bug is wrong or bugs that look like it differ from each other"""

    def __str__(self) -> str:
        """Return e.g. ``attends to what all queries selected (transformers #45758)``."""
        return self.title + (f" ({', '.join(self.sources)})" if self.sources else "")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a failure looks like."""

    behaves_like: tuple[Likeness, ...]
    """Known bugs, the likeliest first"""
    summary: str
    """The first stage that differs, where, and what is wrong with what it depends on; in sentences"""


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
        context: tuple[str, ...] = (),
        errors: Tensor | None = None,
        answer: Tensor | None = None,
        about: int | None = None,
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
        self.context = context
        """Lines that show the data around the place, the index list of a query say"""
        self.errors = errors
        """Errors over their budgets: of a document's queries ``[S]``, of a stage's output as its shape is"""
        self.answer = answer
        """What the candidate selected, ``[B, S, k]``, where the stage is ``select``"""
        self.about = about
        """The key or token that the sentence is about, where the output depends wrongly on one"""
        self.diagnosis: Diagnosis | None = None
        """What it looks like, where somebody looked"""

    @property
    def kind(self) -> str:
        """The kind of failure; shrinking keeps it."""
        return type(self).__name__

    @property
    def evident(self) -> bool:
        """Whether the output itself shows it when a token is replaced, whatever stages the candidate exposes."""
        return self.dependence is not None and bool(self.dependence.too_much)

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


class CandidateHung(Failure):
    """The call did not end in its time (only seen with a worker process)."""

    title = "the candidate hangs"


class CandidateDied(Failure):
    """The call ended the process that it ran in (only survived with a worker process)."""

    title = "the candidate ends its process"


class WrongShape(Failure):
    """The output is not a tensor of the input's shape."""

    title = "the output has the wrong shape"


class WrongDtype(Failure):
    """The output is not of the input's dtype."""

    title = "the output has the wrong dtype"


class NotFinite(Failure):
    """NaN or infinity where the specification has a number."""

    title = "the output is not finite"


class ReturnsZeros(Failure):
    """Nothing but zeros where the specification has other numbers."""

    title = "the output is zero everywhere"


class AnswersAnother(Failure):
    """Every wrong output is the right one for other inputs of the same call."""

    title = "outputs are the answers to other inputs"


class SeesTooMuch(Failure):
    """An output changes with a token that its query must not see."""

    title = "queries see tokens or entries that they must not see"


class SeesTooLittle(Failure):
    """An output does not change with a token that its query must see."""

    title = "queries miss tokens or entries that they must see"


class WrongNumbers(Failure):
    """Every output depends on the right tokens, but the numbers are wrong."""

    title = "the numbers are wrong, though every query sees the right tokens"


class WrongSelection(Failure):
    """The layer exposes a selection that its scores do not allow."""

    title = "the selection that the candidate exposes is wrong"


class PickOutOfRange(Failure):
    """select: an index that is neither -1 nor that of an entry."""

    title = "an index points to no entry"


class PickNotVisible(Failure):
    """select: an entry whose block ends after the query."""

    title = "a query selects an entry that it must not see"


class PickedTwice(Failure):
    """select: one entry twice for one query."""

    title = "a query selects an entry twice"


class WrongCount(Failure):
    """select: other than min(top_k, visible) entries."""

    title = "a query selects too few or too many entries"


class BetterLeftOut(Failure):
    """select: an entry that was left out scores higher than one that was taken."""

    title = "a query leaves out an entry that scores higher than one that it selects"


class TieBrokenOtherwise(Failure):
    """select: the candidate promises the lowest of equal entries and takes another."""

    title = "a tie is not broken towards the lowest entry, though the candidate promises it"


class NotZero(Failure):
    """attend: a query without any key has an output that is not exactly zero."""

    title = "a query without keys has an output that is not zero"


class WrongGradient(Failure):
    """A gradient differs from that of the specification."""

    title = "a gradient is wrong"

    def __init__(self, of: str, detail: str, case: Case, **details: Any) -> None:
        super().__init__(detail, case, **details)
        self.of = of

    @property
    def kind(self) -> str:
        """Gradients of different arguments are different kinds."""
        return f"{type(self).__name__}[{self.of}]"


class StrayGradient(WrongGradient):
    """A gradient that must be exactly zero is not: of a key that no query selects, or of the indexer."""

    title = "a gradient that must be zero is not"


class NoGradient(WrongGradient):
    """Autograd finds no path to an argument that has a gradient."""

    title = "an argument gets no gradient"


class StreamDiffers(Failure):
    """A call on a stream answers otherwise than the specification on the tokens that are then in the row."""

    title = "calls in sequence give other answers than all tokens at once"

    def __init__(self, after: str, detail: str, case: Case, **details: Any) -> None:
        super().__init__(detail, case, **details)
        self.after = after

    @property
    def kind(self) -> str:
        """What goes wrong after different operations are different kinds."""
        return f"{type(self).__name__}[after {self.after}]"


class FutureLeak(Failure):
    """Law: future tokens do not change earlier outputs."""

    title = "future tokens change earlier outputs"


class RowsInteract(Failure):
    """Law: rows do not change each other."""

    title = "rows of a batch change each other"


class PrefixDiffers(Failure):
    """Law: a prefix gives the same outputs as the whole."""

    title = "a prefix gives other outputs than the whole"


class NotBatchInvariant(Failure):
    """Law: a row gives the same bits alone as in a batch."""

    title = "a row gives other bits alone than in a batch"


class BatchOrderMatters(Failure):
    """Law: permuting the batch permutes the output."""

    title = "the order of rows changes their outputs"


class NotRepeatable(Failure):
    """Law: two runs agree bit for bit."""

    title = "two runs on the same input differ"


class InputsChanged(Failure):
    """Law: inputs are not mutated."""

    title = "the candidate changes its inputs"


class StateChanged(Failure):
    """Law: a call leaves the process as it was."""

    title = "the candidate changes the state of the process"

    def __init__(self, what: str, detail: str, case: Case) -> None:
        super().__init__(detail, case)
        self.what = what

    @property
    def kind(self) -> str:
        """Different things that change are different kinds."""
        return f"{type(self).__name__}[{self.what}]"


class SharesMemory(Failure):
    """Law: the output has memory of its own."""

    title = "the output lies in the memory of an input"


class OverwritesOutput(Failure):
    """Law: what a call returned stays."""

    title = "a call changes what an earlier call returned"


class ReadsUninitialised(Failure):
    """Law: the output does not depend on what uninitialised memory happens to hold."""

    title = "the output depends on uninitialised memory"


class ReturnsPrevious(Failure):
    """Law: a call answers its own inputs."""

    title = "a call returns the answer of the call before"


class SilentlyWrong(Failure):
    """What is declared as unsupported is neither refused nor right."""

    title = "what the candidate declares as unsupported gives a wrong answer in place of an exception"


class OrderMatters(Failure):
    """Law: the order of an index list, and -1 added to it, change nothing."""

    title = "the order of the index list changes the output"


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
