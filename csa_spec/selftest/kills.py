"""How a bug is found: every bug is run as a candidate through the checks that anyone's candidate gets."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from csa_spec.bugs import Bug, find_bug
from csa_spec.bundle.subjects import subject_of
from csa_spec.engine.stage import Stage
from csa_spec.engine.trial import Trial
from csa_spec.plug.candidate import Candidate
from csa_spec.profiles import PROFILES, Profile
from csa_spec.spec import LayerKind
from csa_spec.stages import STAGES
from csa_spec.target import Target


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
    """Return the layer kinds in which a bug must be found, the plainest first; None for a stage that has none."""
    return bug.kinds or (None,)


def remembering(stage: Stage) -> Stage:
    """Return a stage that works out only once what the specification says of a case, whoever is tried on it."""
    known: dict[Any, Trial] = {}

    def trial(candidate: Candidate, case: Any) -> Trial:
        found = same_case(known[case], candidate) if case in known else stage.trial(candidate, case)
        known[case] = found
        return found

    return replace(stage, trial=trial)


def hunt(bug: Bug, kind: LayerKind | None, profile: Profile, seed: int, stage: Stage | None = None) -> Hunt:
    """Run the checks in their order up to the first failure; ``stage`` may be one that remembers."""
    one = Target(bug.candidate, stage or STAGES[bug.stage], kind, "float32", "cpu", profile, seed)
    one.cases(one.stage.checks[0])  # drawn once for all bugs, so that the time of one is its own
    cases, begin, first = 0, time.process_time(), None
    for check in one.stage.checks:
        result = one.run(check, enough=1, shrinking=False)
        cases += result.cases
        if result.failures:
            first = Kill(check.name, result.failures[0].kind, cases, time.process_time() - begin)
            break
    return Hunt(bug.name, subject_of(bug.stage, kind), seed, first, cases, time.process_time() - begin)


def hunts(names: Sequence[str], profile: Profile, seeds: Sequence[int]) -> list[Hunt]:
    """Hunt bugs of one stage in all layer kinds in which they show, with several seeds.

    What only a law shows, or nothing at all, is hunted in its plainest layer kind alone: laws are the same in all.
    Equivalent variants are hunted with one seed.
    """
    stage, found = remembering(STAGES[find_bug(names[0]).stage]), []
    for name in names:
        bug = find_bug(name)
        for kind in subjects(bug):
            mine = [
                hunt(bug, kind, profile, seed, stage) for seed in (seeds[:1] if bug.equivalent else seeds)
            ]
            found += mine
            if any(one.first is None or one.first.check != stage.checks[0].name for one in mine):
                break
    return found


def found_by(
    bug: Bug, kind: LayerKind | None, profile: Profile, seed: int, stage: Stage | None = None
) -> Iterator[tuple[str, int, int]]:
    """Run each check by itself; yield its name, the cases that it tried, and those up to the first failure or 0.

    Laws are tried on as many cases as in the smoke profile.
    """
    smoke = PROFILES["smoke"]
    fewer = replace(profile, law=min(profile.law, smoke.law), costly=min(profile.costly, smoke.costly))
    one = Target(bug.candidate, stage or STAGES[bug.stage], kind, "float32", "cpu", fewer, seed)
    for check in one.stage.checks:
        if one.offers(check):
            result = one.run(check, enough=1, shrinking=False)
            yield check.name, result.cases, result.cases if result.failures else 0


def rows(names: Sequence[str], profile: Profile, seed: int) -> dict[str, dict[str, tuple[int, int]]]:
    """Return, by bug and check, the cases tried and those up to the first failure or 0, in the plainest layer kind."""
    stage, found = remembering(STAGES[find_bug(names[0]).stage]), {}
    for name in names:
        bug = find_bug(name)
        checks = found_by(bug, subjects(bug)[0], profile, seed, stage)
        found[name] = {check: (tried, first) for check, tried, first in checks}
    return found
