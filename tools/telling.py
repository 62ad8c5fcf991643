"""Choose the cases of ``csa-spec vectors --catalogue``: few that together tell the known bugs apart.

Each bug is run in the specification check on corner cases, drawn ones and cases whose sizes are swept, small ones
first, until it is wrong on one. Of these cases, a greedy cover is kept. A bug that is wrong on none needs more than
the answers to single calls (a side effect, another layout in memory, gradients), or arguments in a form of its own.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from csa_spec.bugs import Bug, find_bug
from csa_spec.engine.failures import Failure
from csa_spec.plug.call import NotOffered
from csa_spec.profiles import PROFILES
from csa_spec.selftest.subjects import batches, kinds_of, target
from csa_spec.selftest.text import Table, marked_table
from csa_spec.selftest.work import Task
from csa_spec.stages import STAGES, AnyStage, parse_case
from csa_spec.vectors import catalogue
from csa_spec.vectors.catalogue import READY, READY_BYTES, telling
from csa_spec.vectors.files import read_index
from csa_spec.vectors.writing import plainest, write_vectors
from tools.command import Command, parser, read_command

FILE = Path(catalogue.__file__).with_name("catalogue.json")
BATCH = 8
CHOSEN = [
    name
    for name, stage in STAGES.items()
    if any(telling(stage.subject(variant)) for variant in stage.variants)
]
"""Stages of which cases are chosen"""
LARGEST = 700
"""Sum of the sizes of a case; vectors are to be small, and a bug's loops take minutes on large ones"""
SIDE_EFFECTS = ("attend_side_effects", "cache_side_effects", "layer_side_effects", "gradients", "memory")
"""Modules of bugs whose answers are right, or are not in plain memory"""

AFTER_OTHERS = ("remembers_answers_by_shape",)
"""Bugs that are wrong on a case only when another was tried before it"""


def first_case(stage: AnyStage, bug: Bug, cases: Iterable[Any]) -> str:
    """Return the first of some cases on which a bug is wrong, called plainly; no text where it is on none."""
    plain = dict.fromkeys(plainest(case) for case in cases)
    return next((str(case) for case in plain if is_wrong(stage, bug, case)), "")


def is_wrong(stage: AnyStage, bug: Bug, case: Any) -> bool:
    """Whether a bug, called plainly, is wrong on a case."""
    if not case.fits(bug.candidate.capabilities_of(stage.name)):
        return False
    trial = stage.trial(bug.candidate, case)
    try:
        return bool(trial.is_wrong(trial.answer))
    except Failure:
        return True
    except NotOffered:
        return False


def first_telling(names: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Return each bug with its layer kinds, the first case that tells it, or else what is known of that."""
    return [
        (name, kind, *_told(find_bug(name), kind)) for name in names for kind in kinds_of(find_bug(name))
    ]


def _told(bug: Bug, kind: str) -> tuple[str, str]:
    if bug.name in AFTER_OTHERS:
        return "", "shows between calls"
    stage, default = STAGES[bug.stage], PROFILES["default"]
    declared = bug.candidate.capabilities_of(stage.name)
    form = stage.trial.extra(declared)
    if form:
        return "", f"takes {', '.join(form)}"
    small = target(bug.candidate, stage, kind, replace(default, sizes=False), 0)
    case = first_case(stage, bug, small.cases(small.checks[0]))
    if case:
        return case, ""
    if small.run(small.checks[0], enough=1, shrinking=False).failures:
        return "", "shows in another layout, mode or form"
    module = bug.function.__module__.rpartition(".")[2]
    if module in SIDE_EFFECTS or declared.gradients:  # large cases would take minutes
        return "", "shows in side effects or gradients"
    sized = target(bug.candidate, stage, kind, default, 0).sized
    case = first_case(stage, bug, (case for case in sized if sum(case.sizes.values()) <= LARGEST))
    return case, "" if case else "shows in larger cases, in side effects, or between calls"


def cover(stage: AnyStage, kind: str, told: dict[str, str]) -> dict[str, list[str]]:
    """Return few cases that tell all bugs of a subject, by case those that no case before it told.

    From the last of the first telling cases to the first: one that only a few bugs need tells many of the others,
    too, and each bug is run until a case tells it, not on all of them.
    """
    left = dict(told)
    chosen: dict[str, list[str]] = {}
    for line in sorted(set(told.values()), key=lambda line: parse_case(line).order, reverse=True):
        if line not in left.values():
            continue  # what needs it was told by a case that is chosen already
        case = parse_case(line)
        chosen[line] = sorted(
            name for name in left if told[name] == line or is_wrong(stage, find_bug(name), case)
        )
        left = {name: first for name, first in left.items() if name not in chosen[line]}
    return dict(sorted(chosen.items(), key=lambda item: parse_case(item[0]).order))


def covers(subjects: Sequence[tuple[str, str, dict[str, str]]]) -> list[tuple[str, dict[str, list[str]]]]:
    """Return the cover of each subject by its name."""
    return [(STAGES[name].subject(kind), cover(STAGES[name], kind, told)) for name, kind, told in subjects]


def make(command: Command) -> tuple[dict[str, dict[str, list[str]]], dict[str, list[str]]]:
    """Return the chosen cases by subject, and by the reason the bugs that none tells."""
    stages = command.options.stage or list(STAGES)
    bugs = [bug for bug in command.bugs if bug.stage in stages and not bug.equivalent]
    tasks: list[Task] = [(first_telling, (names,)) for names in batches(bugs, BATCH)]
    told: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    untold: dict[str, list[str]] = defaultdict(list)
    for batch in command.do(tasks):
        for name, kind, line, reason in batch:
            if line:
                told[find_bug(name).stage, kind][name] = line
            else:
                untold[reason].append(f"{name} {kind}".strip())
    tasks = [(covers, ([(*subject, names)],)) for subject, names in told.items()]
    return dict(pair for pairs in command.do(tasks) for pair in pairs), untold


def table() -> Table:
    """Return how many cases tell how many bugs, and how many of the cases are ready in the package."""
    head = ("stage or layer kind", "bugs told", "cases", "ready in the package", "kB")
    rows = []
    for file in read_index(READY):
        subject = STAGES[file.stage].subject(file.variant)
        cases = telling(subject)
        told = {bug for bugs in cases.values() for bug in bugs}
        size = (READY / file.file).stat().st_size
        rows.append((subject, str(len(told)), str(len(cases)), str(len(file.cases)), f"{size / 1000:.0f}"))
    return head, rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Choose, and write ``csa_spec/vectors/catalogue.json`` where that is asked for."""
    options = parser("telling", __doc__ or "")
    options.add_argument(
        "--stage", action="append", metavar="NAME", help="of this stage only; may be repeated"
    )
    options.add_argument(
        "--ready", action="store_true", help="write csa_spec/vectors/ready of the cases that are chosen"
    )
    command = read_command("telling", options, arguments)
    if command.options.ready:
        write_vectors(READY, stage=",".join(CHOSEN), most_bytes=READY_BYTES)
        print(marked_table(table()))
        return
    chosen, untold = make(command)
    for subject, cases in chosen.items():
        bugs = {bug for told in cases.values() for bug in told}
        print(f"{subject:<14} {len(bugs):>4} bugs {len(cases):>3} cases")
    for reason, names in sorted(untold.items()):
        print(f"{reason}: {len(names)}: {', '.join(names)}")
    if command.options.write:
        before = json.loads(FILE.read_text(encoding="utf-8"))
        FILE.write_text(json.dumps({**before, **chosen}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
