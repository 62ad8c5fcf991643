"""Make ``docs/names.md``: how often a diagnosis names the right bug first, plugged in as a black box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from csa_spec.bugs import Bug, find_bug
from csa_spec.diagnosis import diagnose
from csa_spec.engine.failures import Failure
from csa_spec.engine.stage import Check
from csa_spec.plug.candidate import Candidate
from csa_spec.profiles import PROFILES, Profile
from csa_spec.selftest.subjects import kinds_of, parcels, target
from csa_spec.selftest.text import Table, marked_table
from csa_spec.selftest.work import Task
from csa_spec.spec import LayerKind
from csa_spec.stages import STAGES
from csa_spec.stages.layer.output import LayerOutput
from tools.command import Command, parser, read_command


@dataclass(frozen=True, slots=True)
class Named:
    """What the diagnosis of one bug as a black box says."""

    bug: str
    kind: LayerKind | None
    check: str
    """That fails first; empty where none does"""
    case: str = ""
    first: str = ""
    """The bug that is named first; empty where none is"""
    others: tuple[str, ...] = ()
    """Bugs named after it"""
    tied: bool = False
    """Whether the first and this bug agree with the candidate on every case that was tried"""

    @property
    def right(self) -> bool:
        """Whether the bug itself is named first."""
        return self.first == self.bug


def black_box(bug: Bug) -> Candidate:
    """Return a bug as a candidate of another name that shows its output alone."""

    def function(*arguments: Any) -> Any:
        returned = bug.function(*arguments)
        return returned.out if isinstance(returned, LayerOutput) else returned

    return Candidate("black box", {bug.stage: function}, bug.candidate.capabilities_of(bug.stage))


def name_bugs(names: Sequence[str], profile: Profile, seed: int) -> list[Named]:
    """Return what is said of each bug: the first check that it fails, made small, and diagnosed.

    What the smoke profile finds is diagnosed; the given profile is run only where that finds nothing.
    """
    profiles = (PROFILES["smoke"], profile)
    return [_named(bug, seed, profiles) for bug in map(find_bug, names) if not bug.equivalent]


def _named(bug: Bug, seed: int, profiles: Sequence[Profile]) -> Named:
    candidate, kind = black_box(bug), kinds_of(bug)[0]
    for profile in profiles:
        run = target(candidate, STAGES[bug.stage], kind, replace(profile, shrinks=False), seed)
        for check in run.stage.checks:
            failures = run.run(check, enough=1).failures
            if failures:
                return _said(bug, kind, candidate, check, failures[0])
    return Named(bug.name, kind, "")


def _said(bug: Bug, kind: LayerKind | None, candidate: Candidate, check: Check, failure: Failure) -> Named:
    diagnosis = failure.diagnosis or diagnose(candidate, check, failure)
    alike = () if diagnosis is None else diagnosis.behaves_like
    agrees = {one.name: one.agreeing == one.tried for one in alike}
    first, *others = [one.name for one in alike] or [""]
    tied = agrees.get(bug.name, False) and agrees[first]
    return Named(bug.name, kind, check.name, str(failure.case), first, tuple(others), tied)


def measure(command: Command) -> list[Named]:
    """Diagnose all bugs."""
    parts = parcels(command.bugs, 4)
    tasks: list[Task] = [(name_bugs, (part, command.profile, command.seeds[0])) for part in parts]
    return [*chain(*command.do(tasks))]


def page(named: Sequence[Named], command: Command) -> str:
    """Return the page."""
    failed = [one for one in named if one.check]
    right = sum(one.right for one in failed)
    sentence = (
        f"Plugged in as a black box that shows its output alone, and made small, {right} of {len(failed)} "
        f"bugs ({right / max(1, len(failed)):.0%}) are what the diagnosis names first. The others:"
    )
    head = command.head("How often a diagnosis names the right bug")
    return "\n\n".join([head, sentence, marked_table(others_table(named))]) + "\n"


def others_table(named: Sequence[Named]) -> Table:
    """Return the bugs that are not named first."""
    lines = []
    for one in named:
        if not one.right:
            said = one.first.replace("_", " ") if one.first else "nothing" if one.check else "not found"
            again = "yes" if one.tied else "later" if one.bug in one.others else "no"
            lines.append((one.bug.replace("_", " "), one.check, one.case, said, again))
    return ("bug", "check", "case", "named first", "agrees as well"), lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the page if asked to."""
    command = read_command("names", parser("names", __doc__ or ""), arguments)
    named = measure(command)
    for one in named:
        print(f"{one.bug}: {one.check} on {one.case}; {', '.join([one.first, *one.others])}")
    command.finish(page(named, command))


if __name__ == "__main__":
    main()
