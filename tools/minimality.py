"""Make ``docs/minimality.md``: whether failing cases shrink to the smallest that there is.

It finds a failure of each known bug as a run does, shrinks it as a run does, and looks for a smaller one at
every smaller shape, with more seeds, sizes of tensors and regimes than shrinking tries. What is
smaller is said by :mod:`tools.smaller_cases`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from statistics import mean, median
from typing import Any

import torch

from csa_spec.bugs import find_bug
from csa_spec.engine.failures import Failure
from csa_spec.engine.running import failure_of
from csa_spec.engine.shrink import shrink
from csa_spec.plug.candidate import Candidate
from csa_spec.profiles import PROFILES
from csa_spec.selftest.subjects import kinds_of, target
from csa_spec.selftest.text import Table, marked_table
from csa_spec.selftest.work import Task
from csa_spec.stages import STAGES, AnyStage
from csa_spec.stages.layer.stage import LAYER
from tools.command import Command, parser, read_command
from tools.smaller_cases import letters, shape_of, smaller_cases

PROBES = {"layer": 24, "cache": 6}
"""Cases that the exhaustive search tries at each shape, and 12 of other stages"""
OTHERS = 5
"""Failures of another kind after which it goes on to the next shape"""
SECONDS = 90.0
"""CPU time after which the search for one failure ends"""
FOUND = 4
"""Failing cases out of which the smallest is shrunk"""

Judge = Callable[[Any], Failure | None]


@dataclass(frozen=True, slots=True)
class Measured:
    """One kind of failure of one bug."""

    bug: str
    subject: str
    """Stage or layer kind"""
    kind: str
    """Of the failure"""
    reported: Any
    minimum: Any
    """The smallest case that was found by shrinking and exhaustive search"""
    trials: int
    """Of shrinking"""
    seconds: float
    shapes: int
    """Smaller shapes that the exhaustive search went through"""
    complete: bool = True
    """Whether it went through all of them"""

    @property
    def is_minimal(self) -> bool:
        """Whether there is no failure at a smaller shape."""
        return shape_of(self.reported) == shape_of(self.minimum)

    @property
    def steps(self) -> dict[str, int]:
        """By how much the reported case is larger, for each letter where it is."""
        mine, least = letters(self.reported), letters(self.minimum)
        return {letter: mine[letter] - least[letter] for letter in mine if mine[letter] > least[letter]}


def measure(
    candidate: Candidate,
    kind: str,
    name: str = "",
    every: bool = False,
    stage: AnyStage = LAYER,
    probes: int | None = None,
) -> list[Measured]:
    """Return how the failure that a run reports first shrinks, or ``every`` kind of failure."""
    check = stage.checks[0]
    judge = partial(failure_of, check, candidate, stage)
    subject, count = stage.subject(kind), PROBES.get(stage.name, 12) if probes is None else probes
    for profile in ("smoke", "default"):
        run = target(candidate, stage, kind, PROFILES[profile], 0)
        failures = run.run(check, enough=FOUND, shrinking=False).failures
        if failures:
            chosen = failures if every else failures[:1]
            measured = [measure_failure(failure, judge, count, stage) for failure in chosen]
            return [replace(one, bug=name, subject=subject) for one in measured]
    return []


def measure_failure(found: Failure, judge: Judge, probes: int, stage: AnyStage = LAYER) -> Measured:
    """Shrink a failure and look for a smaller one of its kind."""
    trials = 0

    def counted(case: Any) -> Failure | None:
        nonlocal trials
        trials += 1
        return judge(case)

    begin = time.process_time()
    shrunk = shrink(found, counted, stage.passes)
    reported, seconds = shrunk.case, time.process_time() - begin
    minimum, shapes, complete, end = reported, 0, True, time.process_time() + SECONDS
    for tried in smaller_cases(reported, found.case, probes):
        if time.process_time() > end:
            complete = False
            break
        shapes += 1
        smaller = _failing(tried, judge, shrunk)
        if smaller is not None:
            minimum = smaller
            break
    return Measured("", "", found.kind, reported, minimum, trials, seconds, shapes, complete)


def _failing(probes: Iterable[Any], judge: Judge, like: Failure) -> Any | None:
    """Return the first case that fails in this way; a shape that keeps failing in others is left at that."""
    others = 0
    for case in probes:
        failure = judge(case)
        if failure is not None and failure.kind == like.kind and failure.evident >= like.evident:
            return case
        others += failure is not None
        if others == OTHERS:
            return None
    return None


def measure_bug(name: str, every: bool = False, probes: int | None = None) -> list[Measured]:
    """Measure a bug of the catalogue, in the plainest layer kind in which it shows."""
    torch.set_num_threads(1)
    bug = find_bug(name)
    return measure(bug.candidate, kinds_of(bug)[0], name, every, STAGES[bug.stage], probes)


def summary(measured: Sequence[Measured]) -> str:
    """Return the share of true minima and the largest step, in a sentence."""
    minimal = sum(one.is_minimal for one in measured)
    cut = sum(not one.complete for one in measured)
    trials = [one.trials for one in measured]
    return (
        f"{minimal} of {len(measured)} reported cases ({minimal / len(measured):.1%}) have the smallest "
        f"shape. None is more than {_largest_step(measured)} larger in any size. Shrinking tried "
        f"{median(trials):.0f} cases in the median, {max(trials)} at most."
        + (f" For {cut} the search had no time for all shapes." if cut else "")
    )


def page(measured: Sequence[Measured], command: Command) -> str:
    """Return the page: totals, and what is not the smallest."""
    parts = [
        command.head("Whether failing cases shrink to the smallest"),
        "Each known bug that the specification check shows fails as in a run, and is shrunk as in a run. "
        "Then every smaller shape is tried with many cases, of other seeds, regimes and larger tensors, "
        f"until one fails in the same way or {SECONDS:.0f} s have passed. A shape of a layer is smaller if "
        "it has fewer tokens; then fewer rows, a smaller m + k + W, fewer heads. One of a stage is smaller "
        "if the sum of its sizes is. One of a cache is smaller if it has fewer calls; then fewer tokens, "
        "fewer rows, then as for layers.",
        summary(measured),
        marked_table(totals_table(measured)),
        "## Not the smallest, or not searched to the end",
        marked_table(exceptions_table(measured)),
    ]
    return "\n\n".join(parts) + "\n"


def totals_table(measured: Sequence[Measured]) -> Table:
    """Return, by stage or layer kind, how many cases are minimal and how many shrinking tried."""
    lines = []
    for subject in dict.fromkeys(one.subject for one in measured):
        mine = [one for one in measured if one.subject == subject]
        minimal, trials = sum(one.is_minimal for one in mine), [one.trials for one in mine]
        tried = f"{median(trials):.0f}, {max(trials)}"
        lines.append((subject, f"{minimal} of {len(mine)}", str(_largest_step(mine)), tried))
    return ("stage", "smallest shape", "largest step", "cases tried: median, most"), lines


def exceptions_table(measured: Sequence[Measured]) -> Table:
    """Return the reported cases for which there is a smaller one, or there may be."""
    lines = [_exception(one) for one in measured if not one.is_minimal or not one.complete]
    return ("stage", "bug", "kind of failure", "reported case", "smaller one"), lines


def _exception(one: Measured) -> tuple[str, ...]:
    steps = ", ".join(f"{letter} + {step}" for letter, step in one.steps.items())
    said = f"none in {one.shapes} shapes, then no time"
    if not one.is_minimal:
        said = f"`{one.minimum}`: {steps or 'another order'}"
    return one.subject, one.bug.replace("_", " "), one.kind, f"`{one.reported}`", said


def _largest_step(measured: Sequence[Measured]) -> int:
    return max((step for one in measured for step in one.steps.values()), default=0)


def details(one: Measured) -> str:
    """Return one measurement in a line."""
    said = "smallest" if one.is_minimal else f"smaller: {one.minimum}"
    return (
        f"{one.subject}: {one.bug}, {one.kind} on {one.reported}; {said}; {one.shapes} smaller shapes "
        f"searched, {one.trials} cases tried in {one.seconds:.1f} s"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the page if asked to."""
    options = parser("minimality", __doc__ or "")
    options.add_argument("--nth", type=int, default=1, metavar="N", help="take only every n-th bug")
    options.add_argument("--stage", choices=[*STAGES], help="bugs of one stage only")
    options.add_argument(
        "--every-kind", action="store_true", help="every kind of failure of a bug, not the first"
    )
    command = read_command("minimality", options, arguments)
    asked = command.options
    names = [bug.name for bug in command.bugs if not bug.equivalent and asked.stage in (None, bug.stage)]
    tasks: list[Task] = [(measure_bug, (name, asked.every_kind)) for name in names[:: asked.nth]]
    measured: list[Measured] = [*chain(*command.do(tasks))]
    print(*map(details, measured), sep="\n")
    seconds = [one.seconds for one in measured]
    print(f"A shrink took {mean(seconds):.1f} s, at most {max(seconds):.1f} s.\n")
    command.finish(page(measured, command))


if __name__ == "__main__":
    main()
