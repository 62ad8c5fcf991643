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


def as_text(result: SelfTest) -> str:
    """Return everything for a terminal."""
    return "\n\n".join([*_sections(result, plain_table), *_verdict(result)])


def as_markdown(result: SelfTest, command: str) -> str:
    """Return everything as a page."""
    head = f"# How well the suite finds known bugs\n\nMade by `{command}`. Seconds are CPU time on one core."
    return "\n\n".join([head, *_sections(result, marked_table, "## "), *_verdict(result)]) + "\n"


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


def counts(result: SelfTest) -> str:
    """Say how many bugs were tried, and when they were found."""
    bugs = [bug for bug in result.bugs if not bug.equivalent]
    reported = [bug for bug in bugs if not bug.seeded]
    urls = {url for bug in result.bugs for url in bug.urls}
    units = len({(hunt.bug, hunt.subject) for hunt in result.hunts})
    cases = [hunt.first.cases for hunt in result.hunts if hunt.first] or [0]
    return (
        f"{len(reported)} reported bugs ({len(urls)} URLs) and {len(bugs) - len(reported)} plausible ones, "
        f"{units} with their layer kinds; profile {result.profile}, seeds "
        f"{', '.join(map(str, result.seeds))}. First failure after {median(cases):g} cases in the median, "
        f"{max(cases)} at most."
    )


def by_candidate(result: SelfTest) -> dict[str, tuple[int, int]]:
    """Return the cases and false alarms of each right candidate."""
    totals: dict[str, tuple[int, int]] = {}
    for passed in result.right:
        cases, alarms = totals.get(passed.candidate, (0, 0))
        totals[passed.candidate] = cases + passed.cases, alarms + passed.false_alarms
    return totals


def _sections(result: SelfTest, draw: Callable[[Table], str], heading: str = "") -> Iterator[str]:
    for title, sentence, table in _tables(result):
        yield f"{heading}{title}\n\n{sentence}" + (f"\n\n{draw(table)}" if table[1] else "")


def _tables(result: SelfTest) -> Iterator[tuple[str, str, Table]]:
    if result.hunts:
        yield "Bugs", counts(result), _bugs(result)
    equivalent = [(bug.title, bug.stage, bug.equivalent) for bug in result.bugs if bug.equivalent]
    if equivalent:
        sentence = "No check can tell these from a right implementation, and none may."
        yield "Equivalent variants", sentence, (("variant", "stage", "why"), equivalent)
    if result.right:
        alarms = sum(passed.false_alarms for passed in result.right)
        sentence = f"Cases of the specification check on which candidates that ship fail: {alarms}."
        rows = [(name, str(cases), str(wrong)) for name, (cases, wrong) in by_candidate(result).items()]
        yield "Right candidates", sentence, (("candidate", "cases", "false alarms"), rows)


def _bugs(result: SelfTest) -> Table:
    hunts: dict[str, list[Hunt]] = defaultdict(list)
    for hunted in result.hunts:
        hunts[hunted.bug].append(hunted)
    rows = [_bug(bug, hunts[bug.name]) for bug in result.bugs if bug.name in hunts and not bug.equivalent]
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


def wrong(result: SelfTest) -> Iterator[str]:
    """Yield a sentence for each bug that was not found, and for each right implementation that failed."""
    for hunt in result.survivors:
        yield f"SURVIVES {hunt.subject}, seed {hunt.seed}: {hunt.bug} ({hunt.cases} cases)"
    for hunt in result.not_equivalent:
        assert hunt.first is not None
        where = f"{hunt.subject}, seed {hunt.seed}"
        yield f"NOT EQUIVALENT: {hunt.bug} is found by {hunt.first.check} in {where}"
    for alarm in result.false_alarms:
        yield f"FALSE ALARM: {alarm.candidate} fails on {alarm.false_alarms} cases of {alarm.subject}"


def _verdict(result: SelfTest) -> Iterator[str]:
    yield from wrong(result)
    if result.done < result.total:
        yield f"Stopped after {result.done} of {result.total} parts; what they found stands above."
    elif not result.passed:
        yield "The suite does not find all that it must, or more than it must."
    else:
        yield "Every bug that is not equivalent is found, and nothing else. No right candidate fails."
    yield f"{result.seconds:.0f} s with {result.jobs} process{'es' * (result.jobs > 1)}."
