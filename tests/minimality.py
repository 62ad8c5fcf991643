"""Make ``docs/minimality.md``: whether failing cases shrink to the smallest that there is.

``python tests/minimality.py --write`` finds a failure of each known bug as a run does, shrinks it as a run does, and
looks for a smaller one at every smaller shape, with more seeds, sizes of tensors and regimes than shrinking tries. What
is smaller is said by :func:`csa_spec.harness.shrink.shape`.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch

from csa_spec.bugs import bugs, find_bug
from csa_spec.harness.candidate import LAYER, Candidate
from csa_spec.harness.case import Case, Row, Scores, Sinks, Values
from csa_spec.harness.engine import draw_cases, failure_of, run_check
from csa_spec.harness.failures import Failure
from csa_spec.harness.shrink import LAYER_SHRINKING, shape, shrink, size
from csa_spec.spec import LayerKind
from csa_spec.stages import LAYER_STAGE
from csa_spec.stages.layer import SPECIFICATION
from csa_spec.strategies import cases, corner_cases

PAGE = Path(__file__).parents[1] / "docs" / "minimality.md"
DRAWN = 25
"""Cases in which a failure is looked for, after the corner cases"""
PROBES = 24
"""Cases that the exhaustive search tries at each shape"""
OTHERS = 5
"""Failures of another kind after which it goes on to the next shape"""
FOUND = 4
"""Failing cases out of which the smallest is shrunk"""
HEADS = 2
"""Most heads that it tries, unless the reported case has more"""
STEP = ("S", "m", "k", "W", "H")

Judge = Callable[[Case], Failure | None]


@dataclass(frozen=True, slots=True)
class Measured:
    """One kind of failure of one bug."""

    bug: str
    kind: str
    """Of the failure"""
    reported: Case
    minimum: Case
    """The smallest case that was found by shrinking and exhaustive search"""
    trials: int
    """Of shrinking"""
    seconds: float
    shapes: int
    """Smaller shapes that the exhaustive search went through"""

    @property
    def is_minimal(self) -> bool:
        """Whether there is no failure at a smaller shape."""
        return shape(self.reported) == shape(self.minimum)

    @property
    def steps(self) -> dict[str, int]:
        """By how much the reported case is larger, for each letter where it is."""
        pairs = zip(STEP, letters(self.reported), letters(self.minimum), strict=True)
        return {letter: mine - least for letter, mine, least in pairs if mine > least}


def letters(case: Case) -> tuple[int, ...]:
    """Return S, m, k, W and heads."""
    g = case.geometry
    return case.columns, g.compress_ratio, g.top_k, g.window, g.heads


def measure(
    candidate: Candidate, kind: LayerKind, name: str = "", every: bool = False, probes: int = PROBES
) -> list[Measured]:
    """Return how the failure that a run reports first shrinks, or ``every`` kind of failure."""

    def judge(case: Case) -> Failure | None:
        return failure_of(SPECIFICATION, candidate, LAYER_STAGE, case)

    tried = [*corner_cases(kind), *draw_cases(cases(kind), DRAWN, 0)]
    found = run_check(SPECIFICATION, candidate, LAYER_STAGE, kind, tried, enough=FOUND, shrinking=False).failures
    smallest = sorted(found, key=lambda failure: size(failure.case))
    return [measure_failure(failure, judge, name, probes) for failure in (smallest if every else smallest[:1])]


def measure_failure(found: Failure, judge: Judge, name: str = "", probes: int = PROBES) -> Measured:
    """Shrink a failure and look for a smaller one of its kind."""
    trials = 0

    def counted(case: Case) -> Failure | None:
        nonlocal trials
        trials += 1
        return judge(case)

    begin = time.process_time()
    shrunk = shrink(found, counted, LAYER_SHRINKING)
    reported = shrunk.case
    seconds = time.process_time() - begin
    assert isinstance(reported, Case)
    assert isinstance(found.case, Case)
    minimum, shapes = reported, 0
    for tried in smaller_shapes(reported, found.case, probes):
        shapes += 1
        minimum = _failing(tried, judge, shrunk) or reported
        if minimum is not reported:
            break
    return Measured(name, found.kind, reported, minimum, trials, seconds, shapes)


def _failing(probes: Iterable[Case], judge: Judge, like: Failure) -> Case | None:
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


def smaller_shapes(reported: Case, found: Case, count: int = PROBES) -> Iterator[list[Case]]:
    """Yield what to try at each smaller shape, the smallest shape first."""
    g = reported.geometry
    shapes = []
    for rows in layouts(reported):
        longest = max(length for row in rows for length in row.lengths)
        ratios = [g.compress_ratio] if g.kind is LayerKind.SLIDING else range(1, longest + 2)
        heads = range(1, max(HEADS, g.heads) + 1)
        for m, window, h in product(ratios, range(1, longest + 2), heads):
            groups = 1 if h % g.o_groups else g.o_groups
            for k in range(longest // m + 2) if g.kind is LayerKind.CSA else [g.top_k]:
                sizes = replace(g, compress_ratio=m, top_k=k, window=window, heads=h, o_groups=groups)
                shapes.append(replace(reported, geometry=sizes, rows=rows))
    for case in sorted(shapes, key=size):
        if shape(case) < shape(reported):
            yield list(probes_of(case, found, count))


def layouts(reported: Case) -> Iterator[tuple[Row, ...]]:
    """Yield the rows to try: single ones, and such as the reported case has."""
    yield from product(*map(_shorter, reported.rows))
    if len(reported.rows) > 1 or reported.features:
        yield from ((Row((length,)),) for length in range(1, reported.columns + 1))


def _shorter(row: Row) -> Iterator[Row]:
    for lengths in product(*(range(1, length + 1) for length in row.lengths)):
        for padding in range(row.left_padding + 1):
            for start in {0, min(row.start, 1), row.start}:
                yield Row(lengths, padding, start)


def probes_of(case: Case, found: Case, count: int) -> Iterator[Case]:
    """Yield cases of one shape that differ in everything else."""
    rng = random.Random(str(case))
    g, f = case.geometry, found.geometry
    groups = 1 if g.heads % f.o_groups else f.o_groups
    wide = replace(f, compress_ratio=g.compress_ratio, top_k=g.top_k, window=g.window, heads=g.heads, o_groups=groups)
    csa = g.kind is LayerKind.CSA
    for number in range(count):
        probe = replace(case, seed=1000 + number)
        if number % 3:
            probe = replace(probe, geometry=wide, values=found.values, scores=found.scores, sinks=found.sinks)
        if number % 3 == 2:
            probe = replace(probe, geometry=rng.choice((g, wide)), values=rng.choice(list(Values)),
                            scores=rng.choice(list(Scores)) if csa else Scores.FREE,
                            sinks=rng.choice(list(Sinks)))  # fmt: skip
        yield probe


def measure_bug(name: str, every: bool = False) -> list[Measured]:
    """Measure a bug of the catalogue, in the plainest layer kind in which it shows."""
    torch.set_num_threads(1)
    bug = find_bug(name)
    return measure(bug.candidate, (bug.kinds or tuple(LayerKind))[0], name, every)


def layer_bugs(every_nth: int = 1) -> list[str]:
    """Return the names of the layer bugs that a check can tell from a right layer."""
    return [bug.name for bug in bugs() if bug.stage == LAYER and not bug.equivalent][::every_nth]


def row(one: Measured) -> str:
    """Return one line of the table."""
    steps = ", ".join(f"{letter} + {step}" for letter, step in one.steps.items())
    said = "-" if one.is_minimal else f"`{one.minimum}`: {steps or 'another order'}"
    return f"| {one.bug.replace('_', ' ')} | {one.kind} | `{one.reported}` | {said} | {one.shapes} | {one.trials} |"


def summary(measured: list[Measured]) -> str:
    """Return the share of true minima and the largest step, in a sentence."""
    minimal = sum(one.is_minimal for one in measured)
    largest = max((step for one in measured for step in one.steps.values()), default=0)
    trials = statistics.mean(one.trials for one in measured)
    return (
        f"{minimal} of {len(measured)} reported cases ({minimal / len(measured):.1%}) have the smallest shape. None is "
        f"more than {largest} larger in any of S, m, k, W and heads. Shrinking took {trials:.0f} cases on average."
    )


def page(measured: list[Measured]) -> str:
    """Return the page."""
    return "\n".join(
        [
            "# Whether failing cases shrink to the smallest",
            "",
            "Made by `python tests/minimality.py --write`; do not edit.",
            "",
            "Each known bug of a whole layer fails as in a run, and is shrunk as in a run. Then every smaller",
            f"shape is tried with {PROBES} cases, of other seeds, regimes and larger tensors. A shape is smaller if",
            "it has fewer tokens; then fewer rows, a smaller m + k + W, fewer heads. The kind of failure is the same.",
            "",
            summary(measured),
            "",
            "| bug | kind of failure | reported case | smaller one | smaller shapes | cases tried |",
            "|---|---|---|---|---|---|",
            *map(row, measured),
            "",
        ]
    )


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure, print, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--nth", type=int, default=1, help="take only every n-th bug")
    parser.add_argument("--every-kind", action="store_true", help="every kind of failure of a bug, not the first only")
    options = parser.parse_args(None if arguments is None else list(arguments))
    measured: list[Measured] = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for found in pool.map(partial(measure_bug, every=options.every_kind), layer_bugs(options.nth)):
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
