"""False alarms: right candidates must pass the cases on which the bugs are hunted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from csa_spec.bugs.right import specification
from csa_spec.candidates import find_candidate
from csa_spec.plug.candidate import Candidate, CandidateError
from csa_spec.profiles import Profile
from csa_spec.selftest.subjects import target
from csa_spec.stages import STAGES

RIGHT = ("gather", "flattened", "dense", "sdpa", "transformers")
"""Right candidates that ship; flex and triton compile for minutes."""


@dataclass(frozen=True, slots=True)
class Passed:
    """What the specification check says of one right candidate, in one stage or layer kind."""

    candidate: str
    subject: str
    """Stage or layer kind"""
    seed: int
    cases: int
    false_alarms: int
    """Cases on which it failed"""


def try_right(stage: str, kind: str, profile: Profile, seed: int) -> list[Passed]:
    """Run the specification check on every right candidate that is installed and offers the stage."""
    shared, done = STAGES[stage], []
    for name, candidate in right_candidates(stage, kind):
        run = target(candidate, shared, kind, profile, seed)
        result = run.run(shared.checks[0], shrinking=False)
        done.append(Passed(name, run.subject, seed, result.cases, result.failing))
    return done


def right_candidates(stage: str, kind: str) -> Iterator[tuple[str, Candidate]]:
    """Yield right candidates by name: the specification first, then those that ship."""
    yield "specification", specification(stage)
    for name in RIGHT:
        try:
            candidate = find_candidate(name)
        except CandidateError:  # its library is not installed
            continue
        if stage in candidate.offers and (not kind or kind in candidate.capabilities_of(stage).kinds):
            yield name, candidate
