"""Make ``docs/names.md``: how often a diagnosis names the right bug, in the catalogue and held out of it.

Each bug is plugged in as a black box. In the catalogue, the right name is its own. Then the catalogue is cut
into random thirds, and each bug is diagnosed without the third that it is in: the right name is that of a bug
of the same kind, which :func:`same_kind` defines.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from csa_spec.bugs import Bug, bugs, find_bug
from csa_spec.diagnosis import diagnose
from csa_spec.diagnosis.likeness import CERTAIN, SHARE
from csa_spec.diagnosis.outcome import alike, fails, outcome_on
from csa_spec.engine.failures import Certainty, Diagnosis
from csa_spec.engine.stage import Check
from csa_spec.plug.candidate import Candidate
from csa_spec.profiles import PROFILES, Profile
from csa_spec.selftest.subjects import batches, kinds_of, target
from csa_spec.selftest.text import Table, marked_table
from csa_spec.selftest.work import Task
from csa_spec.stages import STAGES
from csa_spec.stages.layer.output import LayerOutput
from tools.command import Command, parser, read_command

TWINS = 0.9
"""Of the cases on which one of two bugs is wrong, on which both give one answer, where they are one kind"""
THIRDS = 3
SECONDS = 600.0
"""For one diagnosis, so that a busy machine changes nothing"""
FOUND = 3
"""Failing cases out of which the smallest is shrunk"""


@dataclass(frozen=True, slots=True)
class Named:
    """What a diagnosis of one bug as a black box says."""

    certainty: Certainty
    names: tuple[str, ...] = ()
    """The bugs that are named, the likeliest first"""
    agreement: str = ""
    """Of the first"""
    tied: bool = False
    """Whether the first and this bug itself agree with the candidate on every case that was tried"""
    right: bool = False
    """Whether the first is this bug, or one of its kind"""

    @property
    def first(self) -> str:
        """The bug that is named first, in words."""
        return self.names[0].replace("_", " ") if self.names else "nothing"


@dataclass(frozen=True, slots=True)
class Measured:
    """One bug."""

    bug: str
    check: str = ""
    """That fails first; empty where none does"""
    case: str = ""
    known: Named = Named(Certainty.RESEMBLES)
    """With the whole catalogue"""
    held_out: Named = Named(Certainty.RESEMBLES)
    """Without the third of the catalogue that the bug is in"""

    @property
    def title(self) -> str:
        """The bug in words."""
        return self.bug.replace("_", " ")


def black_box(bug: Bug) -> Candidate:
    """Return a bug as a candidate of another name that shows its output alone."""

    def function(*arguments: Any, **by_name: Any) -> Any:
        returned = bug.function(*arguments, **by_name)
        return returned.out if isinstance(returned, LayerOutput) else returned

    capabilities = bug.candidate.capabilities_of(bug.stage)
    return Candidate("black box", {bug.stage: function}, capabilities)


def same_kind(bug: Bug, other: Bug, check: Check[Any]) -> bool:
    """Whether two bugs of a stage are of one kind: they replace the same, or give the same answers.

    What they replace are rules of the specification or arguments, as the catalogue has them. The answers are
    those to cases that no diagnosis asks about.
    """
    if bug.replaces and bug.replaces == other.replaces:
        return True
    stage, candidate, same, tried = STAGES[bug.stage], black_box(bug), 0, 0
    run = target(candidate, stage, kinds_of(bug)[0], PROFILES["smoke"], 1)
    for case in run.cases(check):
        trial = stage.trial(candidate, case.fit(run.capabilities)[0])
        answers = [outcome_on(check, trial, one.candidate) for one in (bug, other) if trial.case.quick]
        wrong = [one for one in answers if one is not None and fails(check, trial, one)]
        tried += bool(wrong)
        same += len(wrong) == 2 and alike(check, trial, *wrong)
    return tried > 0 and same >= TWINS * tried


def third_of(name: str, seed: int) -> set[str]:
    """Return the third of the catalogue that a bug is in."""
    names = [bug.name for bug in bugs()]
    random.Random(seed).shuffle(names)
    return next(set(names[i::THIRDS]) for i in range(THIRDS) if name in names[i::THIRDS])


def name_bugs(names: Sequence[str], profile: Profile, seed: int) -> list[Measured]:
    """Return what is said of each bug: the first check that it fails, made small, and diagnosed.

    What the smoke profile finds is diagnosed; the given profile is run only where that finds nothing.
    """
    profiles = (PROFILES["smoke"], profile)
    return [_measured(bug, seed, profiles) for bug in map(find_bug, names) if not bug.equivalent]


def _measured(bug: Bug, seed: int, profiles: Sequence[Profile]) -> Measured:
    candidate, kind = black_box(bug), kinds_of(bug)[0]
    for profile in profiles:
        run = target(candidate, STAGES[bug.stage], kind, profile, seed)
        for check in run.stage.checks:
            result = run.run(check, enough=FOUND, naming=False)
            if result.failures:
                failure = result.failures[0]
                both = [
                    _said(
                        bug,
                        check,
                        diagnose(candidate, check, failure, SECONDS, failure.met_on, without),
                    )
                    for without in ((), third_of(bug.name, seed))
                ]
                return Measured(bug.name, check.name, str(failure.case), *both)
    return Measured(bug.name)


def _said(bug: Bug, check: Check[Any], diagnosis: Diagnosis | None) -> Named:
    alike = () if diagnosis is None else diagnosis.behaves_like
    if diagnosis is None or not alike:
        return Named(Certainty.RESEMBLES)
    agrees = {one.name: one.agreeing == one.tried for one in alike}
    first = find_bug(alike[0].name)
    tied = agrees.get(bug.name, False) and agrees[first.name]
    right = first == bug or (bug.name not in agrees and same_kind(bug, first, check))
    return Named(diagnosis.certainty, tuple(agrees), alike[0].agreement, tied, right)


def measure(command: Command, nth: int = 1) -> list[Measured]:
    """Diagnose all bugs, or every n-th."""
    parts = batches(command.bugs[::nth], 4)
    tasks: list[Task] = [(name_bugs, (part, command.profile, command.seeds[0])) for part in parts]
    return [*chain(*command.do(tasks))]


def page(measured: Sequence[Measured], command: Command, nth: int = 1) -> str:
    """Return the page, of every n-th bug."""
    failed = [one for one in measured if one.check]
    certain = [one for one in failed if one.held_out.certainty is Certainty.CERTAIN]
    likely = [one for one in failed if one.held_out.names and one not in certain]
    parts = [
        command.head("How often a diagnosis names the right bug"),
        f"A diagnosis says *behaves like* of a bug that agrees on every case that tells it apart from the "
        f"specification, on at least {CERTAIN} of them, where no other bug does. Of several that do it says so. "
        f"Of one that agrees on at least {SHARE:.0%} of the cases, two or more, it says *resembles*; of others, "
        "nothing.",
        f"{_which(nth)} was plugged in as a black box that shows its output alone, and made small: "
        f"{_share([one for one in failed if one.known.first == one.title], failed)} "
        f"bugs are what the diagnosis names first; {_with_certainty(failed)} alone and with certainty. "
        "The others:",
        marked_table(others_table(failed)),
        "## Held out",
        "Each bug was diagnosed again without the random third of the catalogue that it is in. A name is right "
        "if that bug is of the same kind: it replaces the same rules of the specification or the same "
        f"arguments, or gives the same answer in at least {TWINS:.0%} of other cases in which one of the two "
        f"is wrong. {_share(certain, failed)} bugs get a certain name, and "
        f"{_share([one for one in certain if one.held_out.right], certain)} of these are right. "
        f"{_share(likely, failed)} resemble bugs or fit several, the first of which is right for "
        f"{_share([one for one in likely if one.held_out.right], likely)}. "
        "The certain names:",
        marked_table(held_out_table(certain)),
    ]
    return "\n\n".join(parts) + "\n"


def _share(some: Sequence[Any], of: Sequence[Any]) -> str:
    return f"{len(some)} of {len(of)} ({len(some) / max(1, len(of)):.1%})"


def _which(nth: int) -> str:
    return "Each bug of the catalogue" if nth == 1 else f"One bug in {nth} of the catalogue"


def _with_certainty(failed: Sequence[Measured]) -> str:
    return str(sum(one.known.certainty is Certainty.CERTAIN for one in failed))


def others_table(measured: Sequence[Measured]) -> Table:
    """Return the bugs that are not named first."""
    lines = []
    for one in measured:
        said = one.known
        if said.first != one.title:
            again = "yes" if said.tied else "later" if one.bug in said.names else "no"
            lines.append((one.title, one.check, f"`{one.case}`", said.first, again))
    return ("bug", "check", "case", "named first", "agrees as well"), lines


def held_out_table(certain: Sequence[Measured]) -> Table:
    """Return the certain names of held out bugs."""
    lines = [(one.title, one.held_out.first, "yes" if one.held_out.right else "no") for one in certain]
    return ("bug", "behaves like", "of its kind"), lines


def details(one: Measured) -> str:
    """Return what is said of a bug, in a line."""
    known, held_out = (
        f"{said.certainty.value}: {', '.join(said.names) or 'nothing'}; {said.agreement}"
        for said in (one.known, one.held_out)
    )
    right = "right" if one.held_out.right else "wrong"
    return f"{one.bug}: {one.check} on {one.case}; {known}; held out: {held_out} ({right})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the page if asked to."""
    options = parser("names", __doc__ or "")
    options.add_argument("--nth", type=int, default=1, metavar="N", help="take only every n-th bug")
    command = read_command("names", options, arguments)
    measured = measure(command, command.options.nth)
    print(*map(details, measured), sep="\n")
    command.finish(page(measured, command, command.options.nth))


if __name__ == "__main__":
    main()
