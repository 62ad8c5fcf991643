"""Which known bugs a failing candidate behaves like, and how sure that is.

A case tells a bug apart from the specification where the two give different answers. Only such cases count
for a bug; a case on which the candidate is wrong and the bug is right counts against it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from csa_spec.bugs import Bug
from csa_spec.diagnosis.further import further_cases
from csa_spec.diagnosis.outcome import UNFORMED, Outcome, alike, fails, outcome_on, quiet
from csa_spec.engine.case import CaseError
from csa_spec.engine.failures import Certainty, Likeness
from csa_spec.engine.stage import Check
from csa_spec.plug.candidate import Candidate
from csa_spec.stages import AnyStage

ENOUGH = 8
"""Cases that tell a bug apart from the specification, after which no more are looked for"""
CONTROLS = 3
"""Cases on which the bugs are right that are tried: the candidate must be right there too"""
LOOKED_AT = 60
"""Further cases that are looked at, at most, to find those"""
CERTAIN = 4
"""Cases on which a bug must agree, and on none not, to be what the candidate is said to behave like"""
SHARE = 0.75
"""Of the cases, on which a bug must agree to be named at all"""
TWICE = 2
"""Cases on which a bug must agree to be named at all: one may be chance"""
NAMED = 3
"""Bugs that are named at most"""
STARTS = 2
"""Failing cases for which the catalogue is searched, at most"""
_SEEDS = 3
"""Other seeds on which a failing case is tried"""


@dataclass(slots=True)
class Suspect:
    """A bug that gave the candidate's answer on one failing case."""

    bug: Bug
    agreeing: int = 0
    tried: int = 0
    told: int = 0
    """Of those on which it agrees, the cases where answers show it, and not a side effect alone"""

    @property
    def misses(self) -> int:
        """Cases that speak against it."""
        return self.tried - self.agreeing

    @property
    def share(self) -> float:
        """Of the cases, those on which it agrees."""
        return self.agreeing / self.tried

    @property
    def fits(self) -> bool:
        """Whether it explains all that was seen."""
        return not self.misses and self.told >= CERTAIN

    @property
    def likeness(self) -> Likeness:
        """What a report says of it."""
        bug, sources = self.bug, tuple(self.bug.sources)
        return Likeness(bug.name, bug.title, bug.cause, sources, bug.urls, self.agreeing, self.tried)


@dataclass(slots=True)
class Search:
    """Asks a candidate, and the known bugs, about cases."""

    candidate: Candidate
    check: Check[Any]
    stage: AnyStage
    bugs: Sequence[Bug]
    """Those of the stage, and of the layer kind, that a candidate may have"""
    deadline: float
    """On the monotonic clock"""
    failing: str = ""
    """The kind of failure on the case that was last searched for, where there is no answer to compare"""
    cut: bool = False
    """Whether there was no time to try all bugs, or those that fit on as many cases as it takes"""
    suspects: list[Suspect] = field(default_factory=list)

    @property
    def late(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self.deadline

    def run(self, failing: Sequence[Any], further: bool = True) -> None:
        """Find suspects and weigh them on the failing cases, the best of which is the first.

        And, if ``further``, on others.
        """
        cases = list(self._fitting(failing))
        for start in cases[:STARTS]:
            found = self._found(start)
            self.suspects += found
            if found:
                others = (case for case in cases if case != start)
                self._weigh(found, chain(others, self._further(start) if further else ()))
            if self.late or any(suspect.fits for suspect in found):
                return

    def _further(self, start: Any) -> Iterator[Any]:
        yield from (replace(start, seed=start.seed + 1 + i) for i in range(_SEEDS))
        yield from further_cases(start, self.candidate, self.stage)

    def verdict(self) -> tuple[Certainty, tuple[Likeness, ...]]:
        """Return how sure it is, and which bugs are named, the likeliest first."""
        ranked = sorted(self.suspects, key=lambda one: (one.misses, -one.agreeing, one.bug.seeded))
        fitting = [one for one in ranked if one.fits]
        named = fitting or [one for one in ranked if one.share >= SHARE and one.agreeing >= TWICE]
        certainty = Certainty.RESEMBLES if self.cut or not fitting else Certainty.SEVERAL
        if certainty is Certainty.SEVERAL and len(fitting) == 1:
            certainty = Certainty.CERTAIN
        return certainty, tuple(one.likeness for one in named[:NAMED])

    def _found(self, case: Any) -> list[Suspect]:
        """Return the bugs that give the candidate's wrong answer to a case, where it gives one."""
        trial = self.stage.trial(self.candidate, case)
        got = outcome_on(self.check, trial, self.candidate)
        self.failing = "" if got is None or got.failure is None else got.failure.kind
        if got is None or not fails(self.check, trial, got):
            return []
        known, found = {suspect.bug.name for suspect in self.suspects}, []
        for bug in self.bugs:
            if self.late:
                self.cut = True
                break
            wrong = None if bug.name in known else self._outcome_of(bug, trial, got)
            if (
                wrong is not None
                and alike(self.check, trial, got, wrong)
                and fails(self.check, trial, wrong)
            ):
                found.append(Suspect(bug, 1, 1, int(not quiet(wrong))))
        return found

    def _outcome_of(self, bug: Bug, trial: Any, like: Outcome | None = None) -> Outcome | None:
        try:
            return outcome_on(self.check, trial, bug.candidate, like)
        except Exception:
            return None  # a bug that cannot be run is no explanation

    def _weigh(self, suspects: Sequence[Suspect], cases: Iterable[Any]) -> None:
        """Ask about cases that tell the suspects apart, from the specification and from each other."""
        controls = 0
        for case in self._fitting(cases):
            least = min(suspect.misses for suspect in suspects)
            leading = [suspect for suspect in suspects if suspect.misses <= least + 1]
            enough = all(suspect.tried > ENOUGH for suspect in leading)
            self.cut |= self.late and not enough
            if self.late or (enough and len(leading) == 1):
                return
            trial = self.stage.trial(self.candidate, case)
            outcomes = [self._wrong_of(suspect.bug, trial) for suspect in leading]
            wrong = [one for one in outcomes if one is not None]
            if not wrong and controls >= CONTROLS:
                continue
            if enough and len(wrong) in (0, len(leading)) and self._all_alike(trial, wrong):
                continue
            got = outcome_on(self.check, trial, self.candidate)
            if got is None or self._fails_otherwise(got):
                continue
            controls += not wrong
            failing = fails(self.check, trial, got)
            for suspect, outcome in zip(leading, outcomes, strict=True):
                suspect.tried += outcome is not None or failing
                if outcome is not None and alike(self.check, trial, got, outcome):
                    suspect.agreeing += 1
                    suspect.told += not quiet(outcome)

    def _wrong_of(self, bug: Bug, trial: Any) -> Outcome | None:
        """Return what a bug does on a case; None where that is right."""
        outcome = self._outcome_of(bug, trial)
        return outcome if outcome is not None and fails(self.check, trial, outcome) else None

    def _all_alike(self, trial: Any, wrong: Sequence[Outcome]) -> bool:
        return all(alike(self.check, trial, wrong[0], other) for other in wrong[1:])

    def _fails_otherwise(self, got: Outcome) -> bool:
        """Whether there is no answer to compare, and that is not how the candidate failed first."""
        return isinstance(got.failure, UNFORMED) and got.failure.kind != self.failing

    def _fitting(self, cases: Iterable[Any]) -> Iterator[Any]:
        """Yield, each once, the cases that the candidate supports and that do not take long."""
        capabilities, seen = self.candidate.capabilities_of(self.stage.name), set()
        for number, case in enumerate(cases):
            if number > LOOKED_AT:
                return
            try:
                fitting, _ = case.fit(capabilities)
            except CaseError:
                continue
            if fitting not in seen and fitting.quick:
                seen.add(fitting)
                yield fitting
