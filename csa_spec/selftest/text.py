"""The self-test's tables, as text for a terminal and as Markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median

from csa_spec.bugs import Bug
from csa_spec.selftest.kills import Hunt
from csa_spec.selftest.run import SelfTest

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Heading and rows"""
WIDEST = 58
"""Columns of a cell on a terminal; what is wider moves the cells after it"""


def as_text(found: SelfTest) -> str:
    """Return everything for a terminal."""
    return "\n\n".join([*_sections(found, plain_table), *_verdict(found)])


def as_markdown(found: SelfTest, command: str) -> str:
    """Return everything as a page."""
    head = f"# How well the suite finds known bugs\n\nMade by `{command}`. Seconds are CPU time on one core."
    return "\n\n".join([head, *_sections(found, marked_table, "## "), *_verdict(found)]) + "\n"


def plain_table(table: Table) -> str:
    """Return a table for a terminal."""
    head, rows = table
    widths = [min(WIDEST, max(len(row[i]) for row in [head, *rows])) for i in range(len(head))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in [head, *rows]]
    return "\n".join(lines)


def marked_table(table: Table) -> str:
    """Return a table in Markdown."""
    head, rows = table
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def counts(found: SelfTest) -> str:
    """Say how many bugs were tried, and when they were found."""
    bugs = [bug for bug in found.bugs if not bug.equivalent]
    reported = [bug for bug in bugs if not bug.seeded]
    urls = {url for bug in found.bugs for url in bug.urls}
    units = len({(one.bug, one.subject) for one in found.hunts})
    cases = [one.first.cases for one in found.hunts if one.first] or [0]
    return (
        f"{len(reported)} reported bugs ({len(urls)} URLs) and {len(bugs) - len(reported)} plausible ones, "
        f"{units} with their layer kinds; profile {found.profile}, seeds "
        f"{', '.join(map(str, found.seeds))}. First failure after {median(cases):g} cases in the median, "
        f"{max(cases)} at most."
    )


def by_candidate(found: SelfTest) -> dict[str, tuple[int, int]]:
    """Return the cases and false alarms of each right candidate."""
    totals: dict[str, tuple[int, int]] = {}
    for one in found.right:
        cases, alarms = totals.get(one.candidate, (0, 0))
        totals[one.candidate] = cases + one.cases, alarms + one.false_alarms
    return totals


def _sections(found: SelfTest, draw: Callable[[Table], str], heading: str = "") -> Iterator[str]:
    for title, sentence, table in _tables(found):
        yield f"{heading}{title}\n\n{sentence}" + (f"\n\n{draw(table)}" if table[1] else "")


def _tables(found: SelfTest) -> Iterator[tuple[str, str, Table]]:
    if found.hunts:
        yield "Bugs", counts(found), _bugs(found)
    equivalent = [(bug.title, bug.stage, bug.equivalent) for bug in found.bugs if bug.equivalent]
    if equivalent:
        sentence = "No check can tell these from a right implementation, and none may."
        yield "Equivalent variants", sentence, (("variant", "stage", "why"), equivalent)
    if found.right:
        alarms = sum(one.false_alarms for one in found.right)
        sentence = f"Cases of the specification check on which candidates that ship fail: {alarms}."
        rows = [(name, str(cases), str(wrong)) for name, (cases, wrong) in by_candidate(found).items()]
        yield "Right candidates", sentence, (("candidate", "cases", "false alarms"), rows)


def _bugs(found: SelfTest) -> Table:
    hunts: dict[str, list[Hunt]] = defaultdict(list)
    for hunted in found.hunts:
        hunts[hunted.bug].append(hunted)
    rows = [_bug(bug, hunts[bug.name]) for bug in found.bugs if not bug.equivalent]
    return ("bug", "reported", "stage", "cases", "seconds", "found by"), rows


def _bug(bug: Bug, hunts: Sequence[Hunt]) -> Sequence[str]:
    kills = [hunt.first for hunt in hunts if hunt.first]
    return (
        bug.title,
        ", ".join(bug.sources) or "seeded",
        " ".join(_once(hunt.subject for hunt in hunts)),
        _range([kill.cases for kill in kills]) if len(kills) == len(hunts) else "SURVIVES",
        f"{median(kill.seconds for kill in kills):.2f}" if kills else "",
        " ".join(_once(kill.check for kill in kills)),
    )


def _once(words: Iterable[str]) -> Iterable[str]:
    return dict.fromkeys(words)


def _range(numbers: list[int]) -> str:
    least, most = min(numbers, default=0), max(numbers, default=0)
    return f"{least}" if least == most else f"{least}–{most}"


def _verdict(found: SelfTest) -> Iterator[str]:
    for one in found.survivors:
        yield f"SURVIVES {one.subject}, seed {one.seed}: {one.bug} ({one.cases} cases)"
    for one in found.not_equivalent:
        assert one.first is not None
        yield f"NOT EQUIVALENT: {one.bug} is found by {one.first.check} in {one.subject}, seed {one.seed}"
    for alarm in found.false_alarms:
        yield f"FALSE ALARM: {alarm.candidate} fails on {alarm.false_alarms} cases of {alarm.subject}"
    if not found.passed:
        yield "The suite does not find all that it must, or more than it must."
    else:
        yield "Every bug that is not equivalent is found, and nothing else. No right candidate fails."
    yield f"{found.seconds:.0f} s with {found.jobs} process{'es' * (found.jobs > 1)}."
