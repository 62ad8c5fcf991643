"""What a candidate does in a check on one case: how it fails, and every answer that it gives on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from csa_spec.engine.agreement import roughly
from csa_spec.engine.failures import (
    CandidateRaised,
    Failure,
    InputsChanged,
    NotBatchInvariant,
    NotRepeatable,
    OverwritesOutput,
    ReadsUninitialised,
    SharesMemory,
    StateChanged,
    WrongDtype,
    WrongShape,
)
from csa_spec.engine.stage import Check
from csa_spec.engine.trial import Trial, main_output
from csa_spec.plug.call import Answer, Caller, NotOffered, Request
from csa_spec.plug.candidate import Candidate

UNFORMED = (CandidateRaised, WrongShape, WrongDtype)
"""Failures that leave no answer to compare."""
BITS = (NotRepeatable, ReadsUninitialised, NotBatchInvariant)
"""Failures of answers that are right within the tolerance, or other ones each time."""
SIDE_EFFECTS = (InputsChanged, StateChanged, SharesMemory, OverwritesOutput)
"""Failures that need no wrong answer."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """How one candidate did in a check on a case."""

    failure: Failure | None
    """In the specification check only where there is no answer; wrong numbers are told by comparing"""
    answers: tuple[Answer, ...]
    """Of every call, the case as it is first"""


class _Recorder:
    """Makes the calls of a candidate and keeps what comes back."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.answers: list[Answer] = []

    def __call__(self, function: Callable[..., Any], request: Request, arrays: str) -> Answer:
        answer = self._caller(function, request, arrays)
        self.answers.append(answer)
        return answer


def outcome_on(
    check: Check[Any], known: Trial[Any], candidate: Candidate, like: Outcome | None = None
) -> Outcome | None:
    """Run a check on a case; None where it does not apply, or the candidate declines.

    A law takes many calls: None is returned at once if the first answer is another than that of ``like``.
    """
    recorder = _Recorder(candidate.caller)
    trial = known.of(replace(candidate, caller=recorder))
    try:
        first = trial.answer
        steady = like is not None and like.answers and not isinstance(like.failure, UNFORMED + BITS)
        if check.law and like is not None and steady and not known.same(like.answers[0], first):
            return None
        if check.law and check.run(trial) is None:
            return None
    except Failure as failure:
        return Outcome(failure, tuple(recorder.answers))
    except NotOffered:
        return None
    return Outcome(None, tuple(recorder.answers))


def fails(check: Check[Any], known: Trial[Any], outcome: Outcome) -> bool:
    """Whether an outcome is a failure."""
    if check.law or outcome.failure is not None:
        return outcome.failure is not None
    return known.is_wrong(outcome.answers[0])


def quiet(outcome: Outcome) -> bool:
    """Whether its answers may be right all the same, so that they tell little of what is wrong."""
    return isinstance(outcome.failure, (*BITS, *SIDE_EFFECTS))


def alike(check: Check[Any], known: Trial[Any], got: Outcome, wrong: Outcome) -> bool:
    """Whether a candidate does what a bug does, and the specification would not."""
    if isinstance(got.failure, UNFORMED) or isinstance(wrong.failure, UNFORMED):
        return _same_failure(got, wrong)
    if not check.law:
        return known.same_and_wrong(got.answers[0], wrong.answers[0])
    return _same_law(known, got, wrong)


def _same_failure(got: Outcome, wrong: Outcome) -> bool:
    failure, other = got.failure, wrong.failure
    if failure is None or other is None:
        return False
    same_words = isinstance(failure, CandidateRaised) or failure.detail == other.detail
    return failure.kind == other.kind and same_words


def _same_law(known: Trial[Any], got: Outcome, wrong: Outcome) -> bool:
    """Whether two candidates break a law in the same way and with the same answers."""
    failure, other = got.failure, wrong.failure
    if failure is None or other is None or failure.kind != other.kind:
        return False
    if isinstance(failure, BITS):
        return _bits(got) == _bits(wrong)
    if isinstance(failure, SIDE_EFFECTS) and failure.detail != other.detail:
        return False
    if not got.answers or not wrong.answers or not known.same(got.answers[0], wrong.answers[0]):
        return False
    return all(map(_same_call, got.answers, wrong.answers))


def _bits(outcome: Outcome) -> list[str]:
    """Return what can be compared of answers that are right, or others each time: their bits, in no order."""
    outs = (main_output(answer) for answer in outcome.answers)
    return sorted(str(out.tolist()) for out in outs if isinstance(out, Tensor))


def _same_call(first: Answer, second: Answer) -> bool:
    names = {*first.gradients, *second.gradients}
    return roughly(main_output(first), main_output(second)) and all(
        roughly(first.gradients.get(name), second.gradients.get(name)) for name in names
    )
