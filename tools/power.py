"""Make ``docs/power.md``: which checks find each known bug, after how many cases, and what a grid finds.

It is the self-test with every check run by itself, and beside it a grid of random inputs as kernels' own
tests have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from csa_spec.bugs import find_bug
from csa_spec.selftest.run import BATCH, SelfTest, selftest
from csa_spec.selftest.subjects import batches, kinds_of
from csa_spec.selftest.text import Table, as_text, by_candidate, counts, marked_table, plain_table
from csa_spec.selftest.work import Task
from csa_spec.stages import STAGES
from tools.command import Command, parser, read_command
from tools.grid import GridResult, try_grids
from tools.matrix import Matrix, rows

LATEST = 6
"""Bugs that the page names: those for which the specification check needs the most cases"""


@dataclass(slots=True)
class Power:
    """All that was measured."""

    found: SelfTest
    matrix: Matrix = field(default_factory=dict)
    grid: list[GridResult] = field(default_factory=list)

    def alone(self, name: str) -> bool:
        """Whether only one check finds a bug."""
        return sum(first > 0 for _, first in self.matrix[name].values()) == 1


def measure(command: Command) -> Power:
    """Hunt the bugs, run every check by itself, and try the grid."""
    bugs, profile, seeds = command.bugs, command.profile, command.seeds
    power = Power(selftest([bug.name for bug in bugs], profile.name, seeds, command.jobs))
    checks: list[Task] = [(rows, (some, profile, seeds[0])) for some in batches(bugs, BATCH)]
    grids: list[Task] = [(try_grids, (some,)) for some in batches(bugs, BATCH)]
    results = command.do([*checks, *grids])
    for some in results[: len(checks)]:
        power.matrix |= some
    power.grid = [*chain(*results[len(checks) :])]
    return power


def page(power: Power, command: Command) -> str:
    """Return the page: totals, and what stands out."""
    found = power.found
    right = ", ".join(f"{name} {wrong} of {cases}" for name, (cases, wrong) in by_candidate(found).items())
    parts = [
        command.head("How well the suite finds known bugs") + " Seconds are CPU time on one core.",
        counts(found),
        f"{_equivalent(found)} False alarms, by right candidate: {right or 'none tried'}.",
        *(f"SURVIVES {one.subject}, seed {one.seed}: {one.bug}" for one in found.survivors),
        "## Checks",
        "Bugs that a check finds when it is run by itself in the plainest layer kind; in brackets, those "
        "that no other check finds. Laws are tried on as many cases as in the smoke profile.",
        marked_table(stages_table(power)),
        "## The last to be found by the specification check",
        marked_table(latest_table(found)),
        "## A grid of random inputs instead",
        "Random normal inputs on a grid of shapes, float32, allclose with 1e-3, against the same "
        "specification; the suite as above, with its first seed. Each bug in its plainest layer kind.",
        marked_table(grid_table(power)),
    ]
    return "\n\n".join(parts) + "\n"


def _equivalent(found: SelfTest) -> str:
    variants = [bug.name for bug in found.bugs if bug.equivalent]
    wrong = {hunt.bug for hunt in found.not_equivalent}
    return f"Of {len(variants)} variants that are right in other ways, {len(wrong)} are taken for bugs."


def stages_table(power: Power) -> Table:
    """Return, by stage, how many bugs are found, the most cases that one took, and what each check finds."""
    lines = []
    for stage in STAGES:
        names = [bug.name for bug in power.found.bugs if bug.stage == stage and not bug.equivalent]
        if names:
            survive = {hunt.bug for hunt in power.found.survivors if hunt.bug in names}
            cases = [hunt.first.cases for hunt in power.found.hunts if hunt.first and hunt.bug in names]
            checks = ", ".join(_checks(power, stage, names))
            share = f"{len(names) - len(survive)} of {len(names)}"
            lines.append((stage, share, str(max(cases, default=0)), checks))
    return ("stage", "bugs found", "most cases", "checks"), lines


def _checks(power: Power, stage: str, names: Sequence[str]) -> Iterator[str]:
    for check in STAGES[stage].checks:
        finding = [name for name in names if power.matrix.get(name, {}).get(check.name, (0, 0))[1]]
        alone = sum(map(power.alone, finding))
        if finding:
            yield f"{check.name} {len(finding)}" + (f" ({alone})" if alone else "")


def latest_table(found: SelfTest) -> Table:
    """Return the bugs for which the specification check needs the most cases."""
    kills = [
        (hunt.first.cases, hunt.bug, hunt.subject)
        for hunt in found.hunts
        if hunt.first and hunt.first.check == "specification"
    ]
    latest: dict[str, tuple[str, ...]] = {}
    for cases, name, subject in sorted(kills, reverse=True):
        latest.setdefault(name, (find_bug(name).title, subject, str(cases)))
    return ("bug", "stage", "cases"), [*latest.values()][:LATEST]


def matrix_table(power: Power) -> Table:
    """Return every bug with the checks that find it."""
    lines = []
    for name, checks in power.matrix.items():
        by = " ".join(f"{check}:{first}" for check, (_, first) in checks.items() if first)
        lines.append((find_bug(name).title, by or "-"))
    return ("bug", "found by check:cases"), lines


def grid_table(power: Power) -> Table:
    """Return what the grid finds, and the suite with its first seed."""
    names = {bug.name: bug for bug in power.found.bugs if not bug.equivalent}
    grid = [one for one in power.grid if one.bug in names]
    plainest = {(name, STAGES[bug.stage].subject(kinds_of(bug)[0])) for name, bug in names.items()}
    seed = power.found.seeds[0]
    hunts = [one for one in power.found.hunts if one.seed == seed and (one.bug, one.subject) in plainest]
    lines = [
        _total("grid", [(one.found, one.cases, one.seconds) for one in grid]),
        _total("suite", [(one.first is not None, one.cases, one.seconds) for one in hunts]),
    ]
    return ("", "bugs found", "share", "cases", "seconds", "seconds per bug found"), lines


def _total(name: str, tried: Sequence[tuple[bool, int, float]]) -> tuple[str, ...]:
    kills, seconds = sum(found for found, _, _ in tried), sum(seconds for _, _, seconds in tried)
    return (
        name,
        f"{kills} of {len(tried)}",
        f"{kills / max(1, len(tried)):.0%}",
        f"{sum(cases for _, cases, _ in tried)}",
        f"{seconds:.0f}",
        f"{seconds / max(1, kills):.2f}",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the page if asked to."""
    command = read_command("power", parser("power", __doc__ or ""), arguments)
    power = measure(command)
    print(as_text(power.found), plain_table(matrix_table(power)), sep="\n\n", end="\n\n")
    command.finish(page(power, command))


if __name__ == "__main__":
    main()
