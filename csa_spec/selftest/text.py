"""The self-test's tables, as text for a terminal and as Markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import median

from csa_spec.bugs import Bug, bugs
from csa_spec.bundle.subjects import subject_of
from csa_spec.selftest.kills import Hunt, subjects
from csa_spec.selftest.pool import KEPT, Pool, regimes
from csa_spec.selftest.run import SelfTest
from csa_spec.spec import LayerKind
from csa_spec.stages import STAGES

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Heading and rows"""


def as_text(found: SelfTest) -> str:
    """Return everything for a terminal."""
    return "\n\n".join([*_sections(found, _plain), *_verdict(found)])


def as_markdown(found: SelfTest, command: str) -> str:
    """Return everything as a page of the documentation."""
    title = "How well the suite finds known bugs"
    if not (found.hunts or found.matrix or found.grid):
        title = "Which cases known bugs need" if found.pools else "How often a diagnosis names the right bug"
    head = f"# {title}\n\nMade by `{command}`. Seconds are CPU time on one core.\n"
    return head + "\n" + "\n\n".join([*_sections(found, _marked, "## "), *_verdict(found)]) + "\n"


def _sections(found: SelfTest, draw: object, heading: str = "") -> Iterator[str]:
    assert callable(draw)
    for title, sentence, table in _tables(found):
        yield f"{heading}{title}\n\n{sentence}" + (f"\n\n{draw(table)}" if table[1] else "")


def _tables(found: SelfTest) -> Iterator[tuple[str, str, Table]]:
    if found.hunts or found.matrix:
        yield "Bugs", _counts(found), _bugs(found)
        equivalent = [one for one in found.bugs if one.equivalent]
        if equivalent:
            rows = [(one.title, one.stage, one.equivalent) for one in equivalent]
            yield (
                "Equivalent variants",
                "No check can tell these from a right implementation, and none may.",
                (("variant", "stage", "why"), rows),
            )
    if found.matrix:
        yield (
            "Checks",
            "What each check finds, run by itself in the plainest layer kind; laws on as many cases as in the smoke "
            "profile.",
            _checks(found),
        )
    if found.pools:
        yield "Inputs", _inputs_sentence(found), _labels(found)
        yield (
            "Right candidates",
            f"Cases of the equality with the specification on which candidates that ship fail: "
            f"{sum(count for _, _, count in found.false_alarms)}.",
            _right(found),
        )
    if found.named:
        yield "Names", _names_sentence(found), _names(found)
    if found.grid:
        yield "A grid of random inputs instead", _grid_sentence(found), _grid(found)


def _counts(found: SelfTest) -> str:
    reported = sum(not one.seeded and not one.equivalent for one in found.bugs)
    urls = {url for one in found.bugs for url in one.urls}
    seeded = sum(one.seeded and not one.equivalent for one in found.bugs)
    text = f"{reported} reported bugs ({len(urls)} URLs) and {seeded} plausible ones"
    if found.hunts:
        units = len({(one.bug, one.subject) for one in found.hunts})
        worst = max((one.first.cases for one in found.hunts if one.first), default=0)
        typical = median([one.first.cases for one in found.hunts if one.first] or [0])
        text += (
            f", {units} with their layer kinds; profile {found.profile}, seeds {', '.join(map(str, found.seeds))}. "
            f"First failure after {typical:g} cases in the median, {worst} at most"
        )
    return text + "."


def _bugs(found: SelfTest) -> Table:
    hunts: dict[str, list[Hunt]] = defaultdict(list)
    for hunted in found.hunts:
        hunts[hunted.bug].append(hunted)
    rows = []
    for one in found.bugs:
        if one.equivalent:
            continue
        mine = hunts[one.name]
        killed = [hunt.first for hunt in mine if hunt.first]
        cases = _range([kill.cases for kill in killed])
        seconds = f"{median(kill.seconds for kill in killed):.2f}" if killed else ""
        if mine and len(killed) < len(mine):
            cases = "SURVIVES"
        by = " ".join(
            f"{check}:{first}" for check, (_, first) in found.matrix.get(one.name, {}).items() if first
        )
        if not found.matrix:
            by = " ".join(dict.fromkeys(kill.check for kill in killed))
        subject = " ".join(dict.fromkeys(hunt.subject for hunt in mine)) or one.stage
        rows.append((one.title, ", ".join(one.sources) or "seeded", subject, cases, seconds, by))
    return ("bug", "reported", "stage", "cases", "seconds", "found by (check:cases)"), rows


def _range(numbers: list[int]) -> str:
    if not numbers:
        return ""
    least, most = min(numbers), max(numbers)
    return f"{least}" if least == most else f"{least}–{most}"


def _checks(found: SelfTest) -> Table:
    rows = []
    for stage, one in STAGES.items():
        for check in one.checks:
            mine = {
                name: checks
                for name, checks in found.matrix.items()
                if check.name in checks and _bug(found, name).stage == stage
            }
            by_it = [name for name, checks in mine.items() if checks[check.name][1]]
            alone = [
                name for name in by_it if sum(first > 0 for _, first in found.matrix[name].values()) == 1
            ]
            if mine:
                rows.append((stage, check.name, f"{len(by_it)} of {len(mine)}", str(len(alone))))
    return ("stage", "check", "bugs found", "found by no other check"), rows


def _bug(found: SelfTest, name: str) -> Bug:
    return next(one for one in found.bugs if one.name == name)


def _inputs_sentence(found: SelfTest) -> str:
    return (
        "Without the cases of one regime, or of one required kind, these bugs would escape the equality with the "
        "specification (first seed). What no bug needs is dead weight, or there is a reason to keep it. How much a row "
        "counts depends on the draw: a bug that only one case shows needs everything that this case has."
    )


def label_rows(pool: Pool, stage: str, kind: LayerKind | None) -> Iterator[tuple[str, int, list[str]]]:
    """Yield every regime and required kind of a pool, how many cases have it, and the bugs that need it."""
    for label in dict.fromkeys([*pool.required, *regimes(stage, kind)]):
        cases = sum(label in labels for labels in pool.labels)
        yield label, cases, pool.needing(label)


def _labels(found: SelfTest) -> Table:
    rows, whole = [], len(found.bugs) == len(bugs())
    for stage in STAGES:
        for kind in (*LayerKind,) if stage in (LAYER, CACHE) else (None,):
            subject = subject_of(stage, kind)
            for pool in found.pools:
                if pool.subject != subject:
                    continue
                for label, cases, names in label_rows(pool, stage, kind):
                    if cases:
                        rows.append(
                            (
                                subject,
                                label,
                                f"{cases} of {len(pool.labels)}",
                                str(len(names)),
                                _why(stage, label, names, whole),
                            )
                        )
    return (
        "stage",
        "regime or kind of case",
        "cases",
        "bugs that need it",
        "such as, or why it is kept",
    ), rows


def _why(stage: str, label: str, names: Sequence[str], whole: bool) -> str:
    """Say what a regime or kind of case is good for, as far as the bugs can say it that were tried."""
    if not names:
        return KEPT.get((stage, label), "dead weight" if whole else "")
    shown = ", ".join(name.replace("_", " ") for name in names[:2])
    return shown + (f", {len(names) - 2} more" if len(names) > 2 else "")


def _right(found: SelfTest) -> Table:
    by_name: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for pool in found.pools:
        for name, shown in pool.right.items():
            by_name[name].append((shown.tried, shown.failing))
    rows = [
        (name, str(sum(n for n, _ in pairs)), str(sum(f for _, f in pairs)))
        for name, pairs in by_name.items()
    ]
    return ("candidate", "cases", "false alarms"), rows


def _names_sentence(found: SelfTest) -> str:
    failed = [one for one in found.named if one.check]
    right = sum(one.right for one in failed)
    return (
        f"Plugged in as a black box that shows its output alone, and made small, {right} of {len(failed)} bugs "
        f"({right / max(1, len(failed)):.0%}) are what the diagnosis names first. The others:"
    )


def _names(found: SelfTest) -> Table:
    rows = []
    for one in found.named:
        if not one.right:
            said = one.first.replace("_", " ") if one.first else "nothing" if one.check else "not found"
            again = "yes" if one.tied else "later" if one.bug in one.others else "no"
            rows.append((one.bug.replace("_", " "), one.check, one.case, said, again))
    return ("bug", "check", "case", "named first", "agrees as well"), rows


def _grid_sentence(found: SelfTest) -> str:
    return (
        "Random normal inputs on a grid of shapes, float32, allclose with 1e-3, against the same specification; the "
        "suite as above, with its first seed. Each bug in its plainest layer kind."
    )


def _grid(found: SelfTest) -> Table:
    equivalent = {one.name for one in found.bugs if one.equivalent}
    grid = [one for one in found.grid if one.bug not in equivalent]
    rows = []
    for name, total, kills, cases, seconds in (
        (
            "grid",
            len(grid),
            sum(one.found for one in grid),
            sum(one.cases for one in grid),
            sum(g.seconds for g in grid),
        ),
        *_suite_row(found, equivalent),
    ):
        share = f"{kills / max(1, total):.0%}"
        rows.append(
            (
                name,
                f"{kills} of {total}",
                share,
                str(cases),
                f"{seconds:.0f}",
                f"{seconds / max(1, kills):.2f}",
            )
        )
    return ("", "bugs found", "share", "cases", "seconds", "seconds per bug found"), rows


def _suite_row(found: SelfTest, equivalent: set[str]) -> Iterator[tuple[str, int, int, int, float]]:
    mine = [
        one
        for one in found.hunts
        if one.seed == found.seeds[0]
        and one.bug not in equivalent
        and one.subject == _plainest(_bug(found, one.bug))
    ]
    if mine:
        kills = sum(one.first is not None for one in mine)
        yield "suite", len(mine), kills, sum(one.cases for one in mine), sum(one.seconds for one in mine)


def _plainest(bug: Bug) -> str:
    return subject_of(bug.stage, subjects(bug)[0])


def _verdict(found: SelfTest) -> Iterator[str]:
    for one in found.survivors:
        yield f"SURVIVES {one.subject}, seed {one.seed}: {one.bug} ({one.cases} cases)"
    for one in found.not_equivalent:
        assert one.first is not None
        yield f"NOT EQUIVALENT: {one.bug} is found by {one.first.check} in {one.subject}, seed {one.seed}"
    for name, subject, count in found.false_alarms:
        yield f"FALSE ALARM: {name} fails on {count} cases of {subject}"
    if not found.passed:
        yield "The suite does not find all that it must, or more than it must."
    else:
        if found.hunts:
            yield "Every bug that is not equivalent is found, and nothing else."
        if found.pools:
            yield "No right candidate fails."
    yield f"{found.seconds:.0f} s with {found.jobs} process{'es' * (found.jobs > 1)}."


def _plain(table: Table) -> str:
    head, rows = table
    widths = [min(58, max(len(row[i]) for row in [head, *rows])) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in [head, *rows])  # fmt: skip


def _marked(table: Table) -> str:
    head, rows = table
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)
