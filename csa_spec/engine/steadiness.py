"""Does a case fail every time? A candidate that is wrong now and then has no smallest case, and no name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from csa_spec.engine.failures import CandidateDied, CandidateHung, Failure, Flaky
from csa_spec.plug.call import Answer, Caller, Request

TRIES = 3
"""How often a case is tried again: before it is made small, and after."""
RUNS = 8
"""How often in all, once it did not fail in the same way every time."""


class Counted:
    """Makes a candidate's calls, and counts them."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.calls = 0

    def __call__(self, function: Callable[..., Any], request: Request, arrays: str) -> Answer:
        """Return the candidate's answer."""
        self.calls += 1
        return self._caller(function, request, arrays)


@dataclass(frozen=True, slots=True)
class Run:
    """One try of a failing case."""

    failure: Failure | None
    moved: bool | None
    """Whether the call before had another shape; None where that is not known"""
    call: int
    """Number of the candidate's first call, from 1"""


def flaky(
    failure: Failure,
    judge: Callable[[Any], Failure | None],
    elsewhere: Callable[[], None],
    caller: Counted,
    call: int,
) -> Flaky | None:
    """Try a failing case again, in turn after itself and after another shape; None if it fails every time.

    Parameters
    ----------
    failure
        To be found again.
    judge
        Tries a case and returns its failure, if it fails.
    elsewhere
        Calls the candidate with another shape.
    caller
        Counts the calls.
    call
        Number of the first call of the run that failed.
    """
    runs = [Run(failure, None, call)]
    tries = {CandidateHung: 0, CandidateDied: 1}.get(type(failure), TRIES)  # each may take its whole time
    for number in range(RUNS - 1):
        if number >= tries and all(
            run.failure is not None and run.failure.kind == failure.kind for run in runs
        ):
            return None
        if number % 2:
            elsewhere()
        call = caller.calls + 1
        runs.append(Run(judge(failure.case), bool(number % 2), call))
    return _told(failure, runs)


def _told(failure: Failure, runs: list[Run]) -> Flaky:
    failing = [run for run in runs if run.failure is not None]

    def share(moved: bool) -> tuple[int, int]:
        return sum(run.moved is moved for run in failing), sum(run.moved is moved for run in runs)

    return Flaky(
        failure.case,
        fails=len(failing),
        runs=len(runs),
        inner=str(failure),
        after_another_shape=share(True),
        after_the_same=share(False),
        failing_calls=[run.call for run in failing],
        **failure.numbers,
    )
