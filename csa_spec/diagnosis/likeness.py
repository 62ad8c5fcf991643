"""Which known bugs a failing candidate behaves like."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from csa_spec.bugs import Bug
from csa_spec.diagnosis.further import further_cases
from csa_spec.diagnosis.outcome import UNFORMED, Outcome, alike, equal, fails, outcome_on
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

    @property
    def likeness(self) -> Likeness:
        bug, sources = self.bug, tuple(self.bug.sources)
        return Likeness(bug.name, bug.title, bug.cause, sources, bug.urls, self.agreeing, self.tried)


def likenesses(
    candidate: Candidate,
    check: Check[Any],
    stage: AnyStage,
    known: Trial[Any],
    bugs: Sequence[Bug],
    seconds: float,
) -> tuple[Likeness, ...]:
    """Return the known bugs that a candidate behaves like, the likeliest first.

    ``known`` is its trial on the failing case. Of ``bugs``, the catalogue, only those of the stage, and of
    the case's layer kind, are tried. After ``seconds`` no further case is looked at.
    """
    begin = time.monotonic()
    got = outcome_on(check, known, candidate)
    if got is None:
        return ()
    kind = known.case.variant
    suspects = []
    for bug in bugs:
        if bug.stage != stage.name or bug.equivalent or (kind and kind not in bug.kinds):
            continue
        wrong = _outcome_of(check, known, bug, got)
        if wrong is not None and alike(check, known, got, wrong) and fails(check, known, wrong):
            suspects.append(_Suspect(bug))
        if time.monotonic() > begin + 2 * seconds:
            break
    _tell_apart(suspects, candidate, check, stage, known, got, time.monotonic() + seconds)
    suspects.sort(key=lambda suspect: (suspect.misses, -suspect.agreeing, suspect.bug.seeded))
    if suspects and suspects[0].share >= NEARLY_ALL:  # one that always agrees clears those that do not
        suspects = [suspect for suspect in suspects if suspect.share >= NEARLY_ALL]
    return tuple(suspect.likeness for suspect in suspects[:REPORTED])


def _outcome_of(
    check: Check[Any], known: Trial[Any], bug: Bug, like: Outcome | None = None
) -> Outcome | None:
    try:
        return outcome_on(check, known, bug.candidate, like)
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
        least = min((suspect.misses for suspect in suspects), default=0)
        leading = [suspect for suspect in suspects if suspect.misses <= least + 1]
        enough = ASKED if len(leading) > 1 else CONFIRMING
        if not leading or asked >= enough or time.monotonic() > deadline:
            return
        trial = stage.trial(candidate, case)
        outcomes = [_outcome_of(check, trial, suspect.bug) for suspect in leading]
        given = [outcome for outcome in outcomes if outcome is not None]
        if len(given) < len(leading) or not any(fails(check, trial, outcome) for outcome in given):
            continue  # a case on which all of them are right confirms none
        if len(leading) > 1 and all(equal(check, trial, given[0], outcome) for outcome in given[1:]):
            continue  # and one on which they all do the same tells none apart
        got = outcome_on(check, trial, candidate)
        if got is None or (isinstance(got.failure, UNFORMED) and got.failure.kind != failing):
            continue  # it fails here for another reason
        asked += 1
        for suspect, outcome in zip(leading, given, strict=True):
            suspect.tried += 1
            suspect.agreeing += equal(check, trial, got, outcome)
