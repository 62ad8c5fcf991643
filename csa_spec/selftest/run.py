"""Run the self-test, in several processes."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import chain

from csa_spec.bugs import Bug, bugs, find_bug
from csa_spec.resolving import UsageError, resolve_profile
from csa_spec.selftest.kills import Hunt, hunts
from csa_spec.selftest.right import Passed, try_right
from csa_spec.selftest.subjects import all_subjects, kinds_of, parcels
from csa_spec.selftest.work import Progress, Task, do_all

PARCEL = 12
"""Bugs that one process hunts in one go"""


@dataclass(slots=True)
class SelfTest:
    """What the self-test found."""

    bugs: tuple[Bug, ...]
    profile: str
    seeds: tuple[int, ...]
    jobs: int
    hunts: list[Hunt] = field(default_factory=list)
    right: list[Passed] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def survivors(self) -> list[Hunt]:
        """Bugs that no check found, though they are not equivalent to what is right."""
        return [one for one in self.hunts if one.first is None and not find_bug(one.bug).equivalent]

    @property
    def not_equivalent(self) -> list[Hunt]:
        """Bugs that are said to be equivalent, and were found all the same."""
        return [one for one in self.hunts if one.first is not None and find_bug(one.bug).equivalent]

    @property
    def false_alarms(self) -> list[Passed]:
        """Right candidates that failed."""
        return [one for one in self.right if one.false_alarms]

    @property
    def passed(self) -> bool:
        """Whether the suite found what it must, and nothing else."""
        return not (self.survivors or self.not_equivalent or self.false_alarms)


def selftest(
    names: Collection[str] = (),
    profile: str = "default",
    seeds: Sequence[int] = (0,),
    jobs: int = 2,
    progress: Progress = lambda done, total: None,
) -> SelfTest:
    """Put the suite to the test: hunt known bugs, and run right candidates where these bugs are hunted.

    Parameters
    ----------
    names
        Of bugs; none: the whole catalogue.
    profile, seeds
        As of runs.
    jobs
        Processes.
    progress
        Called with how many of how many pieces of work are done.

    Raises
    ------
    UsageError
        If a name is not known.
    """
    begin = time.perf_counter()
    amounts, chosen = resolve_profile(profile), choose_bugs(names)
    places = {(bug.stage, kind) for bug in chosen for kind in kinds_of(bug)}
    hunting: list[Task] = [(hunts, (some, amounts, tuple(seeds))) for some in parcels(chosen, PARCEL)]
    trying: list[Task] = [
        (try_right, (*place, amounts, seed)) for seed in seeds for place in all_subjects() if place in places
    ]
    results = do_all([*trying, *hunting], jobs, progress)
    found = SelfTest(chosen, profile, tuple(seeds), jobs)
    order = {bug.name: number for number, bug in enumerate(chosen)}
    found.right = [*chain(*results[: len(trying)])]
    found.hunts = sorted(chain(*results[len(trying) :]), key=lambda hunt: order[hunt.bug])
    found.seconds = time.perf_counter() - begin
    return found


def choose_bugs(names: Collection[str]) -> tuple[Bug, ...]:
    """Return the bugs of these names, or the whole catalogue where none is given.

    Raises
    ------
    UsageError
        If a name is not known.
    """
    catalogue = {bug.name: bug for bug in bugs()}
    for name in names:
        if name not in catalogue:
            near = [known for known in catalogue if name in known][:5]
            raise UsageError(f"unknown bug {name!r}" + (f"; there is {', '.join(near)}" if near else ""))
    return tuple(catalogue[name] for name in names or catalogue)
