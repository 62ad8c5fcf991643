"""A trial: one candidate on one case of one stage, with what the specification says about it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from csa_spec.engine.case import AnyCase
from csa_spec.engine.comparison import Tally
from csa_spec.engine.failures import (
    CandidateDied,
    CandidateHung,
    CandidateRaised,
    Place,
    WrongDtype,
    WrongShape,
)
from csa_spec.engine.stream import NotOffered
from csa_spec.plug.call import Answer, Fault, Request
from csa_spec.plug.candidate import Candidate, CandidateError, Capabilities


class Form(NamedTuple):
    """What must come back."""

    shape: tuple[int | None, ...]
    """None: any length"""
    dtypes: tuple[torch.dtype, ...]
    letters: str
    """The shape in letters"""


INTEGERS = (torch.int64, torch.int32, torch.int16)


class Trial(ABC):
    """One candidate on one case. What is computed once is kept."""

    stage: ClassVar[str]
    batched: ClassVar[tuple[str, ...]]
    """Arguments whose first dimension is the rows of the batch"""

    def __init__(self, candidate: Candidate, case: Any) -> None:
        self.candidate = candidate
        self.case = case

    @property
    def capabilities(self) -> Capabilities:
        """What the candidate's stage supports."""
        return self.candidate.capabilities_of(self.stage)

    @cached_property
    @abstractmethod
    def arguments(self) -> Mapping[str, Any]:
        """The case's arguments, in order, on the CPU; candidates only ever get copies."""

    @abstractmethod
    def form(self, arguments: Mapping[str, Any]) -> Form:
        """What must come back."""

    @property
    @abstractmethod
    def queries(self) -> int:
        """How many things (queries, entries) the case has that are judged one by one."""

    @abstractmethod
    def judge(self, answer: Answer) -> Tally:
        """Hold an answer to the case against the specification.

        Raises
        ------
        Failure
            If it is wrong.
        """

    @abstractmethod
    def specified(self, arguments: Mapping[str, Any], noise: Any = None) -> Tensor:
        """Return the specification's output for float64 arguments, differentiably; its roundings are ``noise``'s."""

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
        request = Request(self.stage, arguments, self.case.mode, self.case.device, **options)
        try:
            answer = self.candidate.ask(request)
        except CandidateError:
            raise  # it could not be loaded in a worker: nothing is known of it
        except Fault as fault:
            raise (CandidateHung if fault.hung else CandidateDied)(str(fault), self.case) from None
        except (Exception, SystemExit) as error:
            if type(error).__name__ == NotOffered.__name__:  # a worker's has only the name in common
                raise NotOffered(str(error)) from error
            raise CandidateRaised(error, self.case) from error
        self._check_form(main_output(answer), arguments)
        return answer

    def _check_form(self, out: object, arguments: Mapping[str, Any]) -> None:
        shape, dtypes, letters = self.form(arguments)
        if not isinstance(out, Tensor):
            what = type(out).__name__
            if isinstance(out, (tuple, list)):
                what = f"a {what} of {len(out)} (return the output alone)"
            raise WrongShape(f"expected one tensor, got {what}", self.case)
        if out.dim() != len(shape) or any(
            w is not None and w != h for w, h in zip(shape, out.shape, strict=True)
        ):
            wanted = ", ".join("any" if one is None else str(one) for one in shape)
            raise WrongShape(f"expected [{wanted}] {letters}, got {list(out.shape)}", self.case)
        if out.dtype not in dtypes:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise WrongDtype(f"expected {names}, got {str(out.dtype).removeprefix('torch.')}", self.case)

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
        changed: AnyCase = replace(self.case, seed=self.case.seed + 1)
        return type(self)(self.candidate, changed)


def main_output(answer: Answer) -> object:
    """Return the output proper: what was returned, or the first field of a dataclass."""
    returned = answer.returned
    if is_dataclass(returned) and not isinstance(returned, type):
        return getattr(returned, fields(returned)[0].name)
    return returned
