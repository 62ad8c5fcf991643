"""What can be wrong with a candidate: a class per kind of failure, its facts as data, all words here.

Hypothesis and pytest tell failures apart by their type, and shrinking keeps the type pinned, so two kinds of
failure never hide each other. Whoever finds a failure gives its facts; this module alone makes sentences of
them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from csa_spec.engine.case import Case
from csa_spec.engine.dependence import Dependence
from csa_spec.plug.plain import plain
from csa_spec.plug.raised import described
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
    """What ``t`` counts: queries, entries, tokens; at padding the columns of the row"""
    document: int | None = None
    """Number of its document, where the row has several"""

    @property
    def name(self) -> str:
        """E.g. ``query 1``, or in a packed row ``query 1 of document 2 (column 9)``."""
        return self.named(of_row=False)

    def named(self, of_row: bool) -> str:
        """Return the name, with the row in which it is if that is asked for."""
        if self.item == "padding":
            return f"the padding in column {self.column}" + (f" of row {self.row}" if of_row else "")
        name = f"{self.item} {self.t}" + ("" if self.document is None else f" of document {self.document}")
        name += f" of row {self.row}" if of_row else ""
        return name if self.column == self.t else f"{name} (column {self.column})"

    def other(self, t: int, item: str) -> Place:
        """Return another place of the same document."""
        return replace(self, column=self.column + t - self.t, t=t, item=item, head=None)

    def __str__(self) -> str:
        """Return e.g. ``row 0, query 1``."""
        return f"row {self.row}, {self.name}" + ("" if self.head is None else f", head {self.head}")


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
    """Cases on which the bug, or the candidate alone, does other than the specification"""

    @property
    def agreement(self) -> str:
        """How sure it is, e.g. ``agrees on 9 of 9 cases that tell it apart from the reference``."""
        apart = "case that tells" if self.tried == 1 else "cases that tell"
        return f"agrees on {self.agreeing} of {self.tried} {apart} it apart from the reference"

    def __str__(self) -> str:
        """Return e.g. ``attends to what all queries selected (transformers #45758)``."""
        return self.title + (f" ({', '.join(self.sources)})" if self.sources else "")


class Certainty(Enum):
    """How sure it is that a candidate has the bugs that are named; the value is what reports say."""

    CERTAIN = "behaves like"
    """One bug does what the candidate does, on every case that was tried"""
    SEVERAL = "one of several bugs that fit"
    """More than one does"""
    RESEMBLES = "resembles"
    """One does on most cases, or on few that could be tried"""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a failure looks like."""

    behaves_like: tuple[Likeness, ...]
    """Known bugs, the likeliest first"""
    summary: str
    """The first stage that differs, where, and what is wrong with what it depends on; in sentences"""
    certainty: Certainty = Certainty.RESEMBLES
    """Of the bugs that are named"""


READS_TOO_MUCH = "It reads what it must not read"
READS_TOO_LITTLE = "It does not read what it must read"
"""What is wrong with what an output depends on, in the same words in every report."""

Found = tuple[type["Failure"], dict[str, Any]]
"""A kind of failure, and its facts."""


class Failure(AssertionError):
    """A candidate is wrong about a case."""

    title: ClassVar[str] = "failure"
    """What is wrong, in a few words"""
    says: ClassVar[str] = "{message}"
    """The sentence, with the names of facts in braces; ``{item}`` is the query or entry that it is about"""
    told_apart_by: ClassVar[str] = ""
    """A fact that makes failures of one class different kinds"""
    same_cause: ClassVar[tuple[str, ...] | None] = None
    """For failures that say nothing of the check that met them: facts in which those of one cause agree"""

    def __init__(
        self,
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
        **facts: Any,
    ) -> None:
        super().__init__()
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
        """What the candidate selected, ``[B, S, k]``, where that is what the stage answers"""
        self.facts: dict[str, Any] = {
            name: plain(fact) if isinstance(fact, str) else fact for name, fact in facts.items()
        }
        """What else is known, by name: what the sentence is made of"""
        self.declared = ""
        """That the candidate declares not to support the case, in words, where it was run all the same"""
        self.vague = False
        """Whether the case is too large to probe what depends on what, so that a smaller one says more"""
        self.alone = False
        """Whether nobody looked for other cases that fail"""
        self.recorded_as = ""
        """Name of the case among test vectors, where the answer was written down by another program"""
        self.met_on: tuple[Case, ...] = ()
        """Cases from before shrinking on which the candidate failed"""
        self.remarks: tuple[str, ...] = ()
        """Sentences on how far to trust the case: that shrinking was cut short, say"""
        self.diagnosis: Diagnosis | None = None
        """What it looks like, where somebody looked"""

    @property
    def kind(self) -> str:
        """The kind of failure; shrinking keeps it."""
        name = type(self).__name__
        return f"{name}[{self.facts[self.told_apart_by]}]" if self.told_apart_by else name

    def shows_as(self, other: Failure) -> bool:
        """Whether another failure, on a simpler case, is of the same kind, as far as that is known."""
        return self.kind == other.kind or (self.vague and other.over_budget is not None)

    @property
    def cause(self) -> tuple[object, ...] | None:
        """The same for failures that are one, whichever check meets them; None where the check found it."""
        if self.same_cause is None:
            return None
        return (type(self).__name__, *(self.facts.get(name) for name in self.same_cause))

    @property
    def evident(self) -> bool:
        """Whether the output itself shows it when a token is replaced."""
        return self.dependence is not None and bool(self.dependence.too_much)

    @property
    def item(self) -> str:
        """The query or entry that it is about, e.g. ``query 1``; of which row, where there are several."""
        if self.place is None:
            return "the output"
        return self.place.named(self.case.sizes.get("B", 1) > 1)

    @property
    def numbers(self) -> dict[str, Any]:
        """Where it is wrong and by how much, for a failure that follows from this one."""
        names = ("place", "expected", "got", "over_budget")
        return {name: getattr(self, name) for name in names}

    @cached_property
    def detail(self) -> str:
        """The sentence."""
        return self.says.format_map({"item": self.item, **self.facts, **self.words()})

    def words(self) -> dict[str, str]:
        """Return facts that are put into words."""
        return {}

    def __str__(self) -> str:
        """Return title and detail."""
        return f"{self.title}: {self.detail}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process as it is, but for an exception of the candidate, which may not travel."""
        return _restored, (type(self), {**vars(self), "error": None})


def _restored(kind: type[Failure], attributes: dict[str, Any]) -> Failure:
    failure = kind.__new__(kind)
    vars(failure).update(attributes)
    return failure


class CandidateRaised(Failure):
    title = "the candidate raised an exception"
    says = "{error}: {message}{at}"
    told_apart_by = "error"
    same_cause = ("error", "where")

    def __init__(self, error: BaseException, case: Case) -> None:
        raised = described(error)
        facts: dict[str, Any] = {"error": raised.error, "message": raised.message, "where": raised.where}
        super().__init__(case, context=raised.trace, **facts)
        self.error = error

    def words(self) -> dict[str, str]:
        """Say where in the candidate's code it was raised, where that is known."""
        return {"at": f" (at {self.facts['where']})" if self.facts["where"] else ""}


class CandidateHung(Failure):
    title = "the call does not return"
    says = "{message}"
    same_cause = ()


class CandidateDied(Failure):
    title = "the call ends the process"
    says = "{message}"
    same_cause = ()


class WrongShape(Failure):
    title = "output has the wrong shape"
    says = "expected {wanted}, got {received}"
    same_cause = ()


class NotATensor(WrongShape):
    title = "the call does not return a plain tensor"


class WrongDtype(Failure):
    title = "output has the wrong dtype"
    says = "expected {wanted}, got {received}"
    same_cause = ()


class Flaky(Failure):
    title = "the same input fails in some runs and not in others"
    says = "{fails} of {runs} runs on the same input fail{when}; {again}. A failing run: {inner}"
    same_cause = ()

    def words(self) -> dict[str, str]:
        """Say what the runs that fail have in common, where they have something."""
        (other, of_other), (same, of_same) = self.facts["after_another_shape"], self.facts["after_the_same"]
        fails, runs, when = self.facts["fails"], self.facts["runs"], ""
        if {(other == of_other, other == 0), (same == of_same, same == 0)} == {(True, False), (False, True)}:
            when = (
                f" ({other} of {of_other} after a call of another shape, {same} of {of_same} after the same)"
            )
        elif fails == 1:
            when = f" (that of call {self.facts['failing_calls'][0]} of the check)"
        again = "it may not fail again" if fails < runs else "but not in the same way"
        return {"when": when, "again": again}


class NotFinite(Failure):
    title = "output is not finite"
    says = "{item} has NaN or infinity where the reference has finite numbers"


class ReturnsZeros(Failure):
    title = "output is zero everywhere"
    says = "every element is zero; in the reference some are not"

    @staticmethod
    def fits(got: Tensor, expected: Tensor) -> bool:
        """Whether an output is zero where it should not be; a single element says nothing of "everywhere"."""
        return not bool(got.any()) and int(expected.count_nonzero()) > 1


class AnswersAnother(Failure):
    title = "output equals the reference for a different query or entry"
    says = "{item} has the output of {other}"


class SeesTooMuch(Failure):
    title = "output depends on what it must not depend on"
    says = "the output of {item} changes when {other} changes; {reason}"

    def words(self) -> dict[str, str]:
        """Say on what it depends, and why it must not."""
        other = _dependence(self)
        reasons = {
            "later": f"{other} comes after it",
            "outside": f"{other} is neither in its window nor in an entry that it may see",
            "not listed": f"its index list does not contain {other}",
            "not pooled": f"it does not pool {other}",
            "padding": "padding belongs to no document",
            "document": "that is another document",
            "row": "that is another row",
        }
        reason = reasons[self.facts["why"]]
        if "entry" in self.facts:
            reason += f"; it is in entry {self.facts['entry']} if blocks are counted from column "
            reason += str(self.facts["blocks_from"])
        elif "window" in self.facts:
            reason += f"; it is one of the {self.facts['window']} columns of the row that end with the query"
        return {"other": other, "reason": reason}


class ExposesTooMuch(SeesTooMuch):
    title = "a query selects or attends to what it must not see"
    says = "{finding}"

    @property
    def kind(self) -> str:
        """The same kind, seen in what the candidate exposes in place of the output."""
        return SeesTooMuch.__name__

    def words(self) -> dict[str, str]:
        """The finding is in words."""
        return {}


class SeesTooLittle(Failure):
    title = "output does not depend on what it must depend on"
    says = "the output of {item} does not change when {other} changes; {reason}"

    def words(self) -> dict[str, str]:
        """Say on what it must depend, and why."""
        other, document = _dependence(self), None if self.place is None else self.place.document
        entry = f"entry {self.facts.get('entry')}" + ("" if document is None else f" of document {document}")
        reasons = {
            "window": f"{other} is in its window",
            "entry": f"{other} is part of {entry}, which it may see",
            "listed": f"its index list contains {other}",
            "pooled": f"it pools {other}",
        }
        return {"other": other, "reason": reasons[self.facts["why"]]}


class WrongNumbers(Failure):
    title = "numbers are wrong"
    says = "{differ}"

    def words(self) -> dict[str, str]:
        """Say how many differ."""
        wrong, total = self.facts["wrong"], self.facts["total"]
        if total == 1:
            return {"differ": f"{self.item} differs from the reference"}
        many = f"{wrong} of {total} {self.facts['items']} {'differs' if wrong == 1 else 'differ'}"
        return {"differ": f"{many} from the reference" + ("" if wrong == 1 else f", {self.item} the most")}


class WrongSelection(Failure):
    title = "the selection that the layer returns is wrong"
    says = "the output is right, but the selection returned with it is not: {finding}"


class PickOutOfRange(Failure):
    title = "an index points to no entry"
    says = "{item} selects index {index}, which is neither -1 nor one of {entries} entries"


class PickNotVisible(Failure):
    title = "a query selects an entry that it must not see"
    says = "{item} selects entry {entry}; it may see {sees}"

    def words(self) -> dict[str, str]:
        """Name the entries that it may see."""
        return {"sees": first_entries(self.facts["visible"])}


class PickedTwice(Failure):
    title = "a query selects an entry twice"
    says = "{item} selects entry {entry} {times} times"


class WrongCount(Failure):
    title = "a query selects too few or too many entries"
    says = "{item} selects {count} entries, expected min(k, visible) = min({top_k}, {visible}) = {wanted}"


class MissedHigherScore(Failure):
    title = "a query leaves out an entry that scores higher than one that it selects"
    says = (
        "{item} leaves out entry {left_out} (score {higher:.9g}) "
        "and selects entry {selected} (score {lower:.9g})"
    )


class TieNotLowestFirst(Failure):
    title = "a tie is not broken towards the lowest entry, as the candidate declares"
    says = "{item} selects entry {selected} and leaves out entry {left_out}, which scores the same"


class NotZero(Failure):
    title = "a query without keys has an output that is not zero"
    says = "{item} has no key, so its output must be exactly zero"


class WrongGradient(Failure):
    title = "a gradient is wrong"
    says = "the gradient of {of} at {at} is {gradient:.6g}, expected {reference:.6g}"
    told_apart_by = "of"


class StrayGradient(WrongGradient):
    title = "a gradient that must be zero is not"
    says = "the gradient of {of} at {at} is {gradient:.6g}, expected exactly 0"


class NoGradient(WrongGradient):
    title = "an argument gets no gradient"
    says = "autograd finds no path from the output to {of}"


class StreamDiffers(Failure):
    title = "a call gives a wrong output for the tokens that a row then holds"
    says = "call {number} of {calls} ({op}): wrong output for row {row}, which holds {tokens} at this point"
    told_apart_by = "after"

    def words(self) -> dict[str, str]:
        """Count tokens and calls from 1."""
        return {"number": str(self.facts["call"] + 1), "tokens": counted(self.facts["tokens"], "token")}


class FutureLeak(Failure):
    title = "future tokens change earlier outputs"
    says = "the output of {item} changes when the tokens from column {column} on change"


class RowsInteract(Failure):
    title = "rows of a batch change each other"
    says = "{item} has a different output when its row is run alone"


class PrefixDiffers(Failure):
    title = "a prefix gives a different output than the whole"
    says = "{item} has a different output when the input ends at column {column}"


class NotBatchInvariant(Failure):
    title = "a row has different bits alone than in a batch"
    says = (
        "a row has the same output alone as in the batch within rounding, but not bit for bit; "
        "declare batch_invariant=False if that is intended"
    )


class BatchOrderMatters(Failure):
    title = "the order of the rows changes their outputs"
    says = "{item} has a different output when the rows come in the order {order}"


class NotRepeatable(Failure):
    title = "two runs on the same input differ"
    says = "{item} differs between two runs; declare deterministic=False if that is intended"


class InputsChanged(Failure):
    title = "the call changes its inputs"
    says = "changed by the call: {names}"


class ReadsInputsLater(Failure):
    title = "an answer depends on what is written to the inputs after the call"
    says = "the inputs are overwritten once the call has returned, and {item} is wrong; copy what is kept"


class StateChanged(Failure):
    title = "the call changes the state of the process"
    says = "{what}: {how}"
    told_apart_by = "what"


class SeedsGenerator(StateChanged):
    title = "the call seeds a random generator of the process"
    says = "{what} is seeded by the call; give the call a generator of its own"


class DrawsRandom(StateChanged):
    title = "the call draws from a random generator of the process"
    says = "{what} has moved on after the call; declare draws_random=True if that is intended"


class SharesMemory(Failure):
    title = "output shares memory with an input"
    says = "the output lies in the memory of {names}"


class OverlapsItself(Failure):
    title = "output overlaps itself in memory"
    says = "several elements of the output lie in the same memory; return it with .contiguous()"


class LazyView(Failure):
    title = "output is a lazily negated or conjugated view"
    says = "the memory of the output does not hold its numbers; return out.resolve_neg().resolve_conj()"


class HoldsGraph(Failure):
    title = "output requires grad, though nobody asked for gradients"
    says = "called under torch.no_grad(), the output holds on to a graph and its memory; return it detached"


class GrowsWithCalls(Failure):
    title = "every call leaves something behind"
    says = "{what}: {how}"
    told_apart_by = "what"


class OverwritesOutput(Failure):
    title = "a call changes the output of an earlier call"
    says = "the output of one call changes when the candidate is called again"


class ReadsUninitialised(Failure):
    title = "output depends on uninitialised memory"
    says = "with torch.empty filled with NaN the output is no longer right: {inner}"


class ReturnsPrevious(Failure):
    title = "a call returns the answer of the call before"
    says = "called with seed {first} and then with seed {second}, the second call returns {what}"

    def words(self) -> dict[str, str]:
        """Say what is returned again."""
        return {"what": "the same bits" if self.facts["same_bits"] else "the right answer to the first"}


class IgnoresWrites(Failure):
    title = "a call ignores what was written to its inputs since the call before"
    says = (
        "called again with other numbers in the same tensors, {item} is wrong; with new tensors it is right. "
        "What is kept of an input must not be found by its address or identity alone"
    )


class SilentlyWrong(Failure):
    title = "an input outside the declared limits gives a wrong answer in place of an error"
    says = (
        "{limit} is declared unsupported, but {outside} gives a wrong answer in place of an error: {inner}"
    )


class OrderMatters(Failure):
    title = "the order of the index list changes the output"
    says = "the output is right, but not with the index list reversed and padded with -1: {inner}"


class WeightIgnored(Failure):
    title = "a weight has no effect where it must have one"
    says = "replacing {weight} does not change the output of {item}; it must"
    told_apart_by = "weight"


def _dependence(failure: Failure) -> str:
    """Name what an output depends on, or must depend on: of its own document, unless the facts say where."""
    what, number = failure.facts["what"], failure.facts["number"]
    elsewhere = failure.facts.get("elsewhere")
    if elsewhere is not None and failure.place is not None:
        row, column, document = elsewhere
        place = Place(row, column, number, item=what, document=document)
        return place.named(of_row=row != failure.place.row)
    return f"{what} {number}" if failure.place is None else failure.place.other(number, what).name


def first_entries(count: int) -> str:
    """Name the first entries, e.g. ``entries 0 to 2``."""
    return "no entry" if count == 0 else "entry 0 only" if count == 1 else f"entries 0 to {count - 1}"


def numbered(noun: str, many: str, numbers: list[int]) -> str:
    """Return e.g. ``entry 0``, ``tokens 2 to 5`` or ``no entry``."""
    if not numbers:
        return f"no {noun}"
    if len(numbers) == 1:
        return f"{noun} {numbers[0]}"
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{many} {numbers[0]} to {numbers[-1]}"
    return f"{many} {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def counted(number: int, what: str) -> str:
    """Return e.g. ``1 token`` or ``3 tokens``."""
    return f"{number} {what}{'' if number == 1 else 's'}"
