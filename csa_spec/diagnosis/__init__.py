"""What a failure looks like: which known bugs the candidate behaves like, and where it goes wrong.

Every known bug is run on the failing case as a candidate. Those that give the candidate's answer, where the
specification gives another, are weighed on further cases: :mod:`csa_spec.diagnosis.likeness`.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from csa_spec.diagnosis.summary import summary
from csa_spec.engine.case import Case
from csa_spec.engine.failures import CandidateDied, CandidateHung, Diagnosis, Failure
from csa_spec.engine.stage import Check
from csa_spec.engine.trial import Trial
from csa_spec.plug.candidate import Candidate, CandidateError
from csa_spec.stages import AnyStage, stage_of

if TYPE_CHECKING:
    from csa_spec.bugs import Bug

__all__ = ["SECONDS", "diagnose"]

SECONDS = 10.0
"""After which nothing more is tried."""


def diagnose(
    candidate: Candidate,
    check: Check[Any] | str,
    failure: Failure,
    seconds: float = SECONDS,
    others: Sequence[Any] = (),
    without: Collection[str] = (),
    recorded: bool = False,
) -> Diagnosis | None:
    """Say what a failure of a candidate looks like; None where the candidate cannot be asked again.

    Parameters
    ----------
    candidate, check, failure
        Who fails, what, and how. Its case is best the smallest that was found: on it little but the bug is at
        work.
    seconds
        After which nothing more is tried.
    others
        Other cases on which it fails, as they were before shrinking.
    without
        Names of known bugs that are not tried.
    recorded
        Whether the candidate can be asked about ``others`` only, on which it need not fail.
    """
    stage = stage_of(failure.case)
    named = check if isinstance(check, Check) else stage.check(check)
    trial = stage.trial(candidate, failure.case)
    try:
        if isinstance(failure, (CandidateHung, CandidateDied)):  # each further call may take its whole time
            return Diagnosis((), summary(trial, failure, named.law))
        from csa_spec.diagnosis.likeness import Search  # only a failure needs the catalogue

        end = time.monotonic() + seconds
        known = [bug for bug in _may_have(failure.case, trial, stage) if bug.name not in without]
        search = Search(candidate, named, stage, known, end)
        search.run([failure.case, *sorted(others, key=lambda case: case.order)], further=not recorded)
        certainty, behaves_like = search.verdict()
        return Diagnosis(behaves_like, summary(trial, failure, named.law), certainty)
    except CandidateError:
        return None


def _may_have(case: Case, trial: Trial[Any], stage: AnyStage) -> list[Bug]:
    """Return the known bugs of the stage and of the layer kind, in forms that the candidate takes."""
    from csa_spec.bugs import bugs

    kind, given = case.variant, set(trial.extra(trial.capabilities))
    return [
        bug
        for bug in bugs()
        if bug.stage == stage.name
        and not bug.equivalent
        and (not kind or kind in bug.kinds)
        and given.issuperset(trial.extra(bug.candidate.capabilities_of(stage.name)))
    ]
