"""Which known bugs a failing candidate behaves like."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from csa_spec.bugs import Bug
from csa_spec.diagnosis.further import further_cases
from csa_spec.diagnosis.outcome import UNFORMED, Outcome, alike, equal, fails, outcome
from csa_spec.engine.failures import Likeness
from csa_spec.engine.stage import Check
from csa_spec.engine.trial import Trial
from csa_spec.plug.candidate import Candidate
from csa_spec.stages import AnyStage

ASKED = 16
"""Further cases on which the candidate is asked at most, of those that tell bugs apart."""
CONFIRMING = 4
"""Further cases on which a bug that is alone with its answer is confirmed."""
REPORTED = 3
NEARLY_ALL = 0.9


@dataclass(slots=True)
class _Suspect:
    """A bug that gave the candidate's answer on the failing case."""

    bug: Bug
    agreeing: int = 1
    tried: int = 1

    @property
    def misses(self) -> int:
        return self.tried - self.agreeing

    @property
    def share(self) -> float:
        return self.agreeing / self.tried


def likenesses(
    candidate: Candidate,
    check: Check[Any],
    stage: AnyStage,
    known: Trial[Any],
    bugs: Sequence[Bug],
    seconds: float,
) -> tuple[Likeness, ...]:
    """Return the known bugs that a candidate behaves like, the likeliest first.

    Parameters
    ----------
    candidate, check, stage
        Who failed in what.
    known
        Its trial on the failing case.
    bugs
        The catalogue; only bugs of the stage, and of the case's layer kind, are tried.
    seconds
        After which no further case is looked at.
    """
    begin = time.monotonic()
    got = outcome(check, known, candidate)
    if got is None:
        return ()
    kind = known.case.variant
    suspects = []
    for bug in bugs:
        if bug.stage != stage.name or bug.equivalent or (kind and kind not in bug.kinds):
            continue
        theirs = _asked(check, known, bug, got)
        if theirs is not None and alike(check, known, got, theirs) and fails(check, known, theirs):
            suspects.append(_Suspect(bug))
        if time.monotonic() > begin + 2 * seconds:
            break
    _tell_apart(suspects, candidate, check, stage, known, got, time.monotonic() + seconds)
    suspects.sort(key=lambda one: (one.misses, -one.agreeing, one.bug.seeded))
    if suspects and suspects[0].share >= NEARLY_ALL:
        suspects = [one for one in suspects if one.share >= NEARLY_ALL]
    return tuple(_likeness(one) for one in suspects[:REPORTED])


def _asked(check: Check[Any], known: Trial[Any], bug: Bug, like: Outcome | None = None) -> Outcome | None:
    try:
        return outcome(check, known, bug.candidate, like)
    except Exception:
        return None  # a bug that cannot be run is no explanation


def _tell_apart(
    suspects: list[_Suspect],
    candidate: Candidate,
    check: Check[Any],
    stage: AnyStage,
    known: Trial[Any],
    first: Outcome,
    deadline: float,
) -> None:
    """Ask about further cases on which the suspects differ; where there is one, on which it is wrong."""
    asked, failing = 0, None if first.failure is None else first.failure.kind
    for case in further_cases(known.case, candidate, stage):
        least = min((one.misses for one in suspects), default=0)
        leading = [one for one in suspects if one.misses <= least + 1]
        if (
            not leading
            or asked >= (ASKED if len(leading) > 1 else CONFIRMING)
            or time.monotonic() > deadline
        ):
            return
        trial = stage.trial(candidate, case)
        theirs = {one.bug.name: _asked(check, trial, one.bug) for one in leading}
        given = [one for one in theirs.values() if one is not None]
        if len(given) < len(leading) or not any(fails(check, trial, one) for one in given):
            continue
        if len(leading) > 1 and all(equal(check, trial, given[0], one) for one in given[1:]):
            continue
        got = outcome(check, trial, candidate)
        if got is None or (isinstance(got.failure, UNFORMED) and got.failure.kind != failing):
            continue  # it fails here for another reason
        asked += 1
        for one in leading:
            mine = theirs[one.bug.name]
            assert mine is not None
            one.tried += 1
            one.agreeing += equal(check, trial, got, mine)


def _likeness(suspect: _Suspect) -> Likeness:
    bug = suspect.bug
    return Likeness(
        bug.name, bug.title, bug.cause, tuple(bug.sources), bug.urls, suspect.agreeing, suspect.tried
    )
