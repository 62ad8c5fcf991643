"""Every check run by itself on every known bug: which of them find it, and after how many cases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from csa_spec.bugs import Bug, find_bug
from csa_spec.profiles import PROFILES, Profile
from csa_spec.selftest.subjects import kinds_of, target
from csa_spec.stages import STAGES

Matrix = dict[str, dict[str, tuple[int, int]]]
"""By bug and check: cases tried, and cases up to the first failure or 0; in the plainest layer kind"""


def found_by(bug: Bug, kind: str, profile: Profile, seed: int) -> Iterator[tuple[str, int, int]]:
    """Run each check by itself; yield its name, the cases tried, and those up to the first failure or 0.

    Laws are tried on as many cases as in the smoke profile.
    """
    smoke = PROFILES["smoke"]
    fewer = replace(profile, law=min(profile.law, smoke.law), costly=min(profile.costly, smoke.costly))
    run = target(bug.candidate, STAGES[bug.stage], kind, fewer, seed)
    for check in run.stage.checks:
        if run.offers(check):
            result = run.run(check, enough=1, shrinking=False)
            yield check.name, result.cases, result.cases if result.failures else 0


def rows(names: Sequence[str], profile: Profile, seed: int) -> Matrix:
    """Return the rows of some bugs."""
    return {bug.name: _row(bug, profile, seed) for bug in map(find_bug, names)}


def _row(bug: Bug, profile: Profile, seed: int) -> dict[str, tuple[int, int]]:
    checks = found_by(bug, kinds_of(bug)[0], profile, seed)
    return {check: (tried, first) for check, tried, first in checks}
