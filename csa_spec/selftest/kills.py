"""How a bug is found: every bug is run as a candidate through the checks that anyone's candidate gets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from csa_spec.bugs import Bug
from csa_spec.checking import Target
from csa_spec.harness.engine import subject_of
from csa_spec.profiles import Profile
from csa_spec.spec import LayerKind
from csa_spec.stages import STAGES


@dataclass(frozen=True, slots=True)
class Kill:
    """The first failure of a bug in a check."""

    check: str
    failure: str
    """Kind of failure"""
    cases: int
    """Cases tried up to the failing one, in the checks before this one too"""
    seconds: float
    """CPU time up to the failing case, in the checks before this one too"""


@dataclass(frozen=True, slots=True)
class Hunt:
    """What the checks found of one bug in one layer kind (or in a stage that has none)."""

    bug: str
    subject: str
    """Stage or layer kind"""
    seed: int
    first: Kill | None
    """None: it survived every check"""
    cases: int
    """Cases tried in all"""
    seconds: float
    """CPU time in all"""


def subjects(bug: Bug) -> tuple[LayerKind | None, ...]:
    """Return the layer kinds in which a bug must be found; None for a stage that has none."""
    return bug.kinds or (None,)


def target(bug: Bug, kind: LayerKind | None, profile: Profile, seed: int) -> Target:
    """Return a bug as the target of a run."""
    return Target(bug.candidate, STAGES[bug.stage], kind, "float32", "cpu", profile, seed)


def hunt(bug: Bug, kind: LayerKind | None, profile: Profile, seed: int) -> Hunt:
    """Run the checks in their order up to the first failure."""
    cases, begin = 0, time.process_time()
    one = target(bug, kind, profile, seed)
    first = None
    for check in one.stage.checks:
        result = one.run(check, enough=1, shrinking=False)
        cases += result.cases
        if result.failures:
            first = Kill(check.name, result.failures[0].kind, cases, time.process_time() - begin)
            break
    return Hunt(bug.name, subject_of(bug.stage, kind), seed, first, cases, time.process_time() - begin)


def found_by(bug: Bug, kind: LayerKind | None, profile: Profile, seed: int) -> Iterator[tuple[str, int, int]]:
    """Run each check by itself; yield its name, the cases that it tried, and those up to the first failure or 0."""
    one = target(bug, kind, profile, seed)
    for check in one.stage.checks:
        if one.offers(check):
            result = one.run(check, enough=1, shrinking=False)
            yield check.name, result.cases, result.cases if result.failures else 0
