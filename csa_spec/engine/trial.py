"""A trial: one candidate on one case of one stage, with what the specification says about it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from csa_spec.engine import agreement
from csa_spec.engine import failures as kinds
from csa_spec.engine.agreement import Part
from csa_spec.engine.case import Case
from csa_spec.engine.failures import Failure, Place
from csa_spec.engine.reference import Reference
from csa_spec.engine.tally import Tally
from csa_spec.engine.tensors import dtype_of
from csa_spec.plug.arrays import named_tensors
from csa_spec.plug.call import Answer, Fault, MisshapenAnswer, NotOffered, Request
from csa_spec.plug.candidate import Candidate, CandidateError
from csa_spec.plug.capabilities import Capabilities
from csa_spec.plug.layouts import CONTIGUOUS, laid_out, layouts_of
from csa_spec.plug.position import HERE, stops_the_run


class Form(NamedTuple):
    """What must come back."""

    shape: tuple[int | None, ...]
    """None: any length"""
    dtypes: tuple[torch.dtype, ...]
    letters: str
    """The shape in letters"""


class Handed(NamedTuple):
    """What a candidate is called with."""

    arguments: Mapping[str, Any]
    """In order, on the CPU"""
    batched: tuple[str, ...]
    """Those whose first dimension is the rows of the batch"""
    by_name: tuple[str, ...] = ()
    """Those that are passed by name"""


INTEGERS = (torch.int64, torch.int32, torch.int16)


C = TypeVar("C", bound=Case)
T = TypeVar("T")


class of_case(cached_property[T]):  # noqa: N801 - read as a decorator
    """A cached property that the case alone decides: another candidate's trial of the case has it too.

    Hundreds of candidates, known bugs among them, are tried on the same cases, and shrinking comes back to
    some.
    """

    if not TYPE_CHECKING:  # the types are those of a cached property

        def __get__(self, trial: Any, owner: Any = None) -> Any:
            """Return what an earlier trial found, or find it."""
            if trial is None:
                return self
            key = (type(trial), trial.case, self.attrname, trial.capabilities.internal_dtype)
            if key in _KNOWN:
                value = vars(trial)[str(self.attrname)] = _KNOWN[key]
                return value
            value = super().__get__(trial, owner)
            if sum(trial.case.sizes.values()) <= _SMALL:
                _KNOWN[key] = value
                if len(_KNOWN) > _MOST_KNOWN:
                    del _KNOWN[next(iter(_KNOWN))]
            return value


_KNOWN: dict[Any, Any] = {}
_MOST_KNOWN = 1500
_SMALL = 500
"""Sum of the sizes of a case whose tensors are kept."""


class Trial(ABC, Generic[C]):
    """One candidate on one case. What is computed once is kept."""

    stage: ClassVar[str]
    batched: ClassVar[tuple[str, ...]]
    """Arguments whose first dimension is the rows of the batch"""
    through: ClassVar[Callable[..., Any] | None] = None
    """Calls the candidate's function, where one question takes more than one call"""

    def __init__(self, candidate: Candidate, case: C) -> None:
        self.candidate = candidate
        self.case = case

    @property
    def can_probe(self) -> bool:
        """Whether the candidate can be asked about other inputs too, to see what its output depends on."""
        return not self.candidate.recorded

    @property
    def capabilities(self) -> Capabilities:
        """What the candidate's stage supports."""
        return self.candidate.capabilities_of(self.stage)

    @of_case
    @abstractmethod
    def arguments(self) -> Mapping[str, Any]:
        """The case's arguments, in order, on the CPU; candidates only ever get copies."""

    @classmethod
    def extra(cls, capabilities: Capabilities) -> tuple[str, ...]:
        """Return what a candidate is called with by name, beside the arguments of the stage."""
        return ()

    def handed(self, arguments: Mapping[str, Any]) -> Handed:
        """Return arguments in the form that the candidate declares; the specification only sees the plain one."""
        return Handed(arguments, self.batched)

    @abstractmethod
    def form(self, arguments: Mapping[str, Any]) -> Form:
        """What must come back."""

    @property
    @abstractmethod
    def queries(self) -> int:
        """How many things (queries, entries) the case has that are judged one by one."""

    @abstractmethod
    def judge(self, answer: Answer) -> Tally:
        """Compare an answer to the case with the specification.

        Raises
        ------
        Failure
            If it is wrong.
        """

    @property
    @abstractmethod
    def reference(self) -> Reference:
        """What the specification answers, and how far an answer may be from it."""

    @abstractmethod
    def specified(self, arguments: Mapping[str, Any], noise: Any = None) -> Tensor:
        """Return the specification's output for float64 arguments, differentiably; ``noise`` rounds it."""

    @cached_property
    def answer(self) -> Answer:
        """What the candidate says about the case as it is."""
        return self.ask(self.arguments)

    def ask(self, arguments: Mapping[str, Any], **options: Any) -> Answer:
        """Call the candidate on a copy of the arguments.

        Raises
        ------
        Failure
            If it raises, hangs or dies, or returns something other than a tensor of the right form.
        """
        through, HERE.case = type(self).through, self.case
        case, handed = self.case, self.handed(arguments)
        request = Request(
            self.stage,
            handed.arguments,
            case.mode,
            case.device,
            handed.by_name,
            through,
            layout=case.layout,
            **options,
        )
        try:
            answer = self.candidate.ask(request)
        except CandidateError:
            raise  # it could not be loaded in a worker: nothing is known of it
        except Fault as fault:
            raise (kinds.CandidateHung if fault.hung else kinds.CandidateDied)(
                self.case, message=str(fault)
            ) from None
        except MisshapenAnswer as error:
            wanted, received = error.args
            kind = kinds.WrongShape if str(received).startswith("[") else kinds.NotATensor
            raise kind(self.case, wanted=wanted, received=received) from None
        except NotOffered:
            raise
        except BaseException as error:
            if stops_the_run(error):
                raise
            raise kinds.CandidateRaised(error, self.case) from error
        if not request.grows:
            self._check_form(answer, arguments)
        return answer

    def _check_form(self, answer: Answer, arguments: Mapping[str, Any]) -> None:
        shape, dtypes, letters = self.form(arguments)
        out = main_output(answer)
        if not isinstance(out, Tensor):  # what is shown beside the output in an odd form is passed over
            raise kinds.NotATensor(self.case, wanted="one tensor", received=str(out))
        fits = out.dim() == len(shape) and all(
            length is None or length == size for length, size in zip(shape, out.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if length is None else str(length) for length in shape)
            raise kinds.WrongShape(self.case, wanted=f"[{wanted}] {letters}", received=list(out.shape))
        if out.dtype not in dtypes:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise kinds.WrongDtype(self.case, wanted=names, received=str(out.dtype).removeprefix("torch."))

    def relevant(self, answer: Answer) -> Tensor:
        """Return the part of the output that has to mean something."""
        out = main_output(answer)
        assert isinstance(out, Tensor)
        return out

    def rows(self, rows: Sequence[int]) -> dict[str, Any]:
        """Return the arguments of some rows of the batch."""
        return {
            name: value[list(rows)] if name in self.batched else value
            for name, value in self.arguments.items()
        }

    def place(self, row: int, column: int) -> Place | None:
        """Return the name of a place in the output; None where the output means nothing."""
        return Place(row, column, column)

    def sibling(self) -> Self:
        """Return a trial of the same shape with other values."""
        return type(self)(self.candidate, replace(self.case, seed=self.case.seed + 1))

    def of(self, candidate: Candidate) -> Self:
        """Return a trial of another candidate on the same case."""
        return type(self)(candidate, self.case)

    def kinds(self) -> set[str]:
        """Return the kinds of case that this one belongs to; a run must reach those that are required."""
        return set(self.case.regime)

    def all_kinds(self) -> set[str]:
        """Return the same with how its tensors lie in memory, where any of them shows it."""
        kinds, layout = self.kinds(), self.case.layout
        tensors = named_tensors(self.handed(self.arguments).arguments)
        layouts = layouts_of(tensors, layout)
        views = (laid_out(tensor, layouts[name]) for name, tensor in tensors.items())
        shows = layout in CONTIGUOUS or any(not view.is_contiguous() for view in views)
        return kinds | {f"layout {layout}"} if shows else kinds

    def allows(self, letter: str, size: int) -> bool:
        """Whether the candidate supports a size."""
        return self.capabilities.rule(letter, self.case.variant).allows(size)

    # To compare the answers of two candidates.

    def parts(self, *answers: Answer) -> Iterator[Part]:
        """Yield the items of answers with what the specification says of them; no part is empty."""
        raise NotImplementedError

    def same(self, first: Answer, second: Answer) -> bool:
        """Whether two answers are the same, where no tie leaves a choice."""
        return agreement.same(self.parts(first, second), dtype_of(self.case.dtype))

    def same_and_wrong(self, got: Answer, wrong: Answer) -> bool:
        """Whether an answer is a wrong one that somebody else gave."""
        return agreement.same_and_wrong(self.parts(got, wrong), dtype_of(self.case.dtype))

    def is_wrong(self, answer: Answer) -> bool:
        """Whether the specification gives another answer, whichever way ties are broken."""
        try:
            self.judge(answer)
        except Failure:
            return True
        return False

    # To explain a failure.

    def summary(self, failure: Failure, says: str) -> list[str]:
        """Return sentences on what is wrong with what the output depends on.

        Parameters
        ----------
        failure
            Of the candidate, on this case.
        says
            What is known of any failure of its kind.
        """
        return [says]

    def data_lines(self) -> list[str]:
        """Return lines of a report that show the data of a small case."""
        return []


def main_output(answer: Answer) -> object:
    """Return the output proper: what was returned, or the first field of a dataclass."""
    returned = answer.returned
    if is_dataclass(returned) and not isinstance(returned, type):
        return getattr(returned, fields(returned)[0].name)
    return returned
