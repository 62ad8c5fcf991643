"""How a bug is found: every bug is run as a candidate through the checks that anyone's candidate gets."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from csa_spec.bugs import Bug, find_bug
from csa_spec.profiles import Profile
from csa_spec.selftest.subjects import kinds_of, target
from csa_spec.stages import STAGES


@dataclass(frozen=True, slots=True)
class Kill:
    """The first failure of a bug in a check."""

    check: str
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


def hunt(bug: Bug, kind: str, profile: Profile, seed: int) -> Hunt:
    """Run the checks in their order up to the first failure, and large cases last: few bugs need them."""
    run = target(bug.candidate, STAGES[bug.stage], kind, profile, seed)
    small = target(bug.candidate, run.stage, kind, replace(profile, sizes=False), seed)
    first_check = run.stage.checks[0]
    small.cases(first_check)  # drawn once for all bugs, so that the time of one is its own
    large = [] if bug.equivalent else [(first_check, run.sized)]
    cases, begin, first = 0, time.process_time(), None
    for check, tried in chain(((check, None) for check in small.checks), large):
        result = small.run(check, enough=1, shrinking=False, cases=tried)
        cases += result.cases
        if result.failures:
            first = Kill(check.name, cases, time.process_time() - begin)
            break
    return Hunt(bug.name, run.subject, seed, first, cases, time.process_time() - begin)


def hunts(names: Sequence[str], profile: Profile, seeds: Sequence[int]) -> list[Hunt]:
    """Hunt bugs of one stage in all layer kinds in which they show, with several seeds.

    What only a law shows, or nothing at all, is hunted in its plainest layer kind alone: laws are the same
    in all. Equivalent variants are hunted with one seed.
    """
    stage, done = STAGES[find_bug(names[0]).stage], []
    for bug in map(find_bug, names):
        chosen = seeds[:1] if bug.equivalent else seeds
        for kind in kinds_of(bug):
            here = [hunt(bug, kind, profile, seed) for seed in chosen]
            done += here
            if any(found.first is None or found.first.check != stage.checks[0].name for found in here):
                break
    return done
