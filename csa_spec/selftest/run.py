"""Run the self-test, in several processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from csa_spec.bugs import Bug, bugs, find_bug
from csa_spec.plug.names import MOST, did_you_mean
from csa_spec.plug.plain import shown
from csa_spec.resolving import UsageError, resolve_profile
from csa_spec.selftest.kills import Hunt, hunts
from csa_spec.selftest.right import Passed, try_right
from csa_spec.selftest.subjects import all_subjects, batches, kinds_of
from csa_spec.selftest.work import Task, do_all

BATCH = 12
"""Bugs that one process hunts in one go"""


@dataclass(slots=True)
class SelfTest:
    """What the self-test found. It grows while the self-test runs."""

    bugs: tuple[Bug, ...]
    profile: str
    seeds: tuple[int, ...]
    jobs: int
    hunts: list[Hunt] = field(default_factory=list)
    right: list[Passed] = field(default_factory=list)
    seconds: float = 0.0
    done: int = 0
    """Parts of the work"""
    total: int = 0

    @property
    def survivors(self) -> list[Hunt]:
        """Bugs that no check found, though they are not equivalent to what is right."""
        return [hunt for hunt in self.hunts if hunt.first is None and not find_bug(hunt.bug).equivalent]

    @property
    def not_equivalent(self) -> list[Hunt]:
        """Bugs that are said to be equivalent, and were found all the same."""
        return [hunt for hunt in self.hunts if hunt.first is not None and find_bug(hunt.bug).equivalent]

    @property
    def false_alarms(self) -> list[Passed]:
        """Right candidates that failed."""
        return [passed for passed in self.right if passed.false_alarms]

    @property
    def passed(self) -> bool:
        """Whether the suite found what it must, and nothing else."""
        return not (self.survivors or self.not_equivalent or self.false_alarms)


def selftest(
    names: Collection[str] = (),
    profile: str = "default",
    seeds: Sequence[int] = (0,),
    jobs: int = 2,
    progress: Callable[[SelfTest], None] = lambda so_far: None,
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
        Called with what was found so far, after each part of the work.

    Raises
    ------
    UsageError
        If a name is not known.
    """
    begin = time.perf_counter()
    amounts, chosen = resolve_profile(profile), choose_bugs(names)
    places = {(bug.stage, kind) for bug in chosen for kind in kinds_of(bug)}
    hunting: list[Task] = [(hunts, (names, amounts, tuple(seeds))) for names in batches(chosen, BATCH)]
    trying: list[Task] = [
        (try_right, (*place, amounts, seed)) for seed in seeds for place in all_subjects() if place in places
    ]
    result = SelfTest(chosen, profile, tuple(seeds), jobs)
    order = {bug.name: number for number, bug in enumerate(chosen)}

    def add(done: int, total: int, part: list[Hunt] | list[Passed]) -> None:
        for found in part:
            if isinstance(found, Hunt):
                result.hunts.append(found)
            else:
                result.right.append(found)
        result.hunts.sort(key=lambda hunt: order[hunt.bug])
        result.done, result.total, result.seconds = done, total, time.perf_counter() - begin
        progress(result)

    do_all([*trying, *hunting], jobs, add)
    return result


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
            near = [known for known in catalogue if name in known][:MOST]
            listed = f"choose from {', '.join(near)}" if near else "docs/power.md lists all"
            raise UsageError(f"unknown bug {shown(name)}; {did_you_mean(name, catalogue) or listed}")
    return tuple(catalogue[name] for name in names or catalogue)
