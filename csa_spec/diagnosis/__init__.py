"""What a failure looks like: which known bugs the candidate behaves like, and where it goes wrong.

Every known bug is run on the failing case as a candidate. It is named where the candidate gives its answer
and the specification another one. Where several bugs give that answer, further cases on which they differ
tell them apart.
"""

from __future__ import annotations

from typing import Any

from csa_spec.diagnosis.summary import summary
from csa_spec.engine.failures import CandidateDied, CandidateHung, Diagnosis, Failure
from csa_spec.engine.stage import Check
from csa_spec.plug.candidate import Candidate, CandidateError
from csa_spec.stages import stage_of

__all__ = ["SECONDS", "diagnose"]

SECONDS = 10.0
"""After which no further case is looked at."""


def diagnose(
    candidate: Candidate, check: Check[Any] | str, failure: Failure, seconds: float = SECONDS
) -> Diagnosis | None:
    """Say what a failure of a candidate looks like; None where the candidate cannot be asked again.

    Its case is best the smallest that was found: on it little but the bug is at work. After ``seconds`` no
    further case is looked at.
    """
    stage = stage_of(failure.case)
    named = check if isinstance(check, Check) else stage.check(check)
    trial = stage.trial(candidate, failure.case)
    try:
        if isinstance(failure, (CandidateHung, CandidateDied)):  # each further call may take its whole time
            return Diagnosis((), summary(trial, failure))
        from csa_spec.bugs import bugs  # only a failure needs the catalogue
        from csa_spec.diagnosis.likeness import likenesses

        behaves_like = likenesses(candidate, named, stage, trial, bugs(), seconds)
        return Diagnosis(behaves_like, summary(trial, failure))
    except CandidateError:
        return None
