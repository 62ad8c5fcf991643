"""Make ``docs/minimality.md``: whether failing cases shrink to the smallest that there is.

``python tests/minimality.py --write`` finds a failure of each known bug as a run does, shrinks it as a run does, and
looks for a smaller one at every smaller shape, with more seeds, sizes of tensors and regimes than shrinking tries. What
is smaller is said by :mod:`smaller_cases`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from smaller_cases import letters, shape_of, smaller_cases

from csa_spec.bugs import bugs, find_bug
from csa_spec.engine.failures import Failure
from csa_spec.engine.running import failure_of
from csa_spec.bundle.subjects import subject_of
from csa_spec.engine.shrink import shrink
from csa_spec.plug.candidate import Candidate
from csa_spec.profiles import PROFILES
from csa_spec.spec import LayerKind
from csa_spec.stages import STAGES
from csa_spec.target import Target

PAGE = Path(__file__).parents[1] / "docs" / "minimality.md"
PROBES = {LAYER: 24, CACHE: 6}
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
    kind: LayerKind | None,
    name: str = "",
    every: bool = False,
    stage: str = LAYER,
    probes: int | None = None,
) -> list[Measured]:
    """Return how the failure that a run reports first shrinks, or ``every`` kind of failure."""
    one = STAGES[stage]
    check = one.checks[0]
    judge = partial(failure_of, check, candidate, one)
    for profile in ("smoke", "default"):
        target = Target(candidate, one, kind, "float32", "cpu", PROFILES[profile], 0)
        found = target.run(check, enough=FOUND, shrinking=False).failures
        if found:
            chosen = found if every else found[:1]
            subject, count = subject_of(stage, kind), probes or PROBES.get(stage, 12)
            return [replace(measure_failure(failure, judge, count, stage), bug=name, subject=subject)
                    for failure in chosen]  # fmt: skip
    return []


def measure_failure(found: Failure, judge: Judge, probes: int, stage: str = LAYER) -> Measured:
    """Shrink a failure and look for a smaller one of its kind."""
    trials = 0

    def counted(case: Any) -> Failure | None:
        nonlocal trials
        trials += 1
        return judge(case)

    begin = time.process_time()
    shrunk = shrink(found, counted, STAGES[stage].shrinking)
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


def measure_bug(name: str, every: bool = False) -> list[Measured]:
    """Measure a bug of the catalogue, in the plainest layer kind in which it shows."""
    torch.set_num_threads(1)
    bug = find_bug(name)
    return measure(bug.candidate, bug.kinds[0] if bug.kinds else None, name, every, bug.stage)


def row(one: Measured) -> str:
    """Return one line of the table."""
    steps = ", ".join(f"{letter} + {step}" for letter, step in one.steps.items())
    said = "-" if one.is_minimal else f"`{one.minimum}`: {steps or 'another order'}"
    shapes = f"{one.shapes}" if one.complete else f"{one.shapes}, then no time"
    bug = one.bug.replace("_", " ")
    return f"| {one.subject} | {bug} | {one.kind} | `{one.reported}` | {said} | {shapes} | {one.trials} |"


def summary(measured: list[Measured]) -> str:
    """Return the share of true minima and the largest step, in a sentence."""
    minimal = sum(one.is_minimal for one in measured)
    largest = max((step for one in measured for step in one.steps.values()), default=0)
    cut = sum(not one.complete for one in measured)
    tried, most = statistics.median(one.trials for one in measured), max(one.trials for one in measured)
    return (
        f"{minimal} of {len(measured)} reported cases ({minimal / len(measured):.1%}) have the smallest shape. None is "
        f"more than {largest} larger in any size. Shrinking tried {tried:.0f} cases in the median, {most} at most."
        + (f" For {cut} of them the search had no time for all shapes." if cut else "")
    )


def page(measured: list[Measured]) -> str:
    """Return the page."""
    groups = {"layers": LAYER, "caches": CACHE}
    lines = [
        "# Whether failing cases shrink to the smallest",
        "",
        "Made by `python tests/minimality.py --jobs 2 --write`; do not edit.",
        "",
        "Each known bug that the equality with the specification shows fails as in a run, and is shrunk as in a run.",
        "Then every smaller shape is tried with many cases, of other seeds, regimes and larger tensors, until one",
        f"fails in the same way or {SECONDS:.0f} s have passed. A shape of a layer is smaller if it has fewer tokens;",
        "then fewer rows, a smaller m + k + W, fewer heads. One of a stage is smaller if the sum of its sizes is.",
        "One of a cache is smaller if it has fewer calls; then fewer tokens, fewer rows, then as for layers.",
        "",
        summary(measured),
    ]
    for title in ("layers", "stages", "caches"):
        mine = [one for one in measured if groups.get(title, one.subject) == _stage(one)]
        if mine:
            lines += [
                "",
                f"## {title.capitalize()}",
                "",
                summary(mine),
                "",
                "| subject | bug | kind of failure | reported case | smaller one | smaller shapes | cases tried |",
                "|---|---|---|---|---|---|---|",
                *map(row, mine),
            ]
    return "\n".join([*lines, ""])


def _stage(one: Measured) -> str:
    return find_bug(one.bug).stage


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure, print, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--nth", type=int, default=1, help="take only every n-th bug")
    parser.add_argument("--stage", choices=[*STAGES], help="bugs of one stage only")
    parser.add_argument(
        "--every-kind", action="store_true", help="every kind of failure of a bug, not the first only"
    )
    options = parser.parse_args(None if arguments is None else list(arguments))
    names = [one.name for one in bugs() if not one.equivalent and options.stage in (None, one.stage)][
        :: options.nth
    ]
    measured: list[Measured] = []
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        for found in pool.map(partial(measure_bug, every=options.every_kind), names):
            measured += found
            for one in found:
                print(f"{row(one)} {one.seconds:.1f} s", file=sys.stderr, flush=True)
    print(summary(measured))
    print(f"A shrink took {statistics.mean(one.seconds for one in measured):.1f} s, at most "
          f"{max(one.seconds for one in measured):.1f} s.")  # fmt: skip
    if options.write:
        PAGE.write_text(page(measured))


if __name__ == "__main__":
    main()
