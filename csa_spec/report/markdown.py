"""The report as Markdown, for a comment under a pull request."""

from __future__ import annotations

import re
from dataclasses import replace

from csa_spec.engine.results import Report
from csa_spec.report import content
from csa_spec.report.content import Explained, Table
from csa_spec.report.markup import code, cut, fence, prose

MOST = 65_536
"""Characters that GitHub takes in a comment."""
_TABLES, _NOTES, _LINE = 12_000, 6_000, 1_500
"""Room for the tables and for the notes after the failures, and for one text."""


def to_markdown(report: Report) -> str:
    """Return the report as a comment; it always fits into one, failures that do not are counted."""
    subjects = f" {prose(cut(content.about(report), 500))}" if content.about(report) else ""
    candidate = code(cut(report.candidate, 200))
    head = [f"**{str(report.verdict).upper()}**{subjects}: {candidate}", ""]
    head += _within([line for table in content.tables(report) for line in _table(table)], _TABLES)
    notes = [f"* {prose(cut(gap, _LINE))}" for gap in content.gaps(report)]
    for issue in report.known_issues:
        short = replace(issue, name=cut(issue.name, 200), reason=cut(issue.reason, 300))
        notes.append(f"* {prose(content.known_issue_line(short))}")
    tail = [
        *_within(notes, _NOTES),
        "",
        f"<sub>{prose(cut(content.environment(report), _LINE))}</sub>",
        "",
    ]
    room = MOST - len("\n".join([*head, *tail])) - 200
    blocks: list[str] = []
    failures = content.explained(report)
    for number, failed in enumerate(failures):
        block = _failure(failed)
        if len(block) + 1 > room:
            left = len(failures) - number
            blocks.append(f"{left} more failure{'s' * (left > 1)} would not fit into a comment.\n")
            break
        blocks.append(block)
        room -= len(block) + 1
    return "\n".join([*head, *blocks, *tail])


def _table(table: Table) -> list[str]:
    lines = [
        "| " + " | ".join([prose(table.dtype), *map(prose, table.subjects)]) + " |",
        "|---|" + "---:|" * len(table.subjects),
    ]
    for name, cells in table.rows:
        shown = (f"**{cell}**" if cell.endswith("FAILED") else cell for cell in cells)
        lines.append(f"| {prose(name)} | " + " | ".join(shown) + " |")
    return [*lines, ""]


def _failure(failed: Explained) -> str:
    failure = failed.failure
    lines = [
        f"<details><summary><b>{prose(failed.heading)}</b></summary>",
        "",
        f"{prose(cut(failed.detail, _LINE))} The property: {prose(failed.result.sentence)}.",
        "",
        f"{content.case_label(failure).capitalize()}:",
        "",
        *fence(cut(str(failure.case), 2 * _LINE)),
        "",
    ]
    lines += [line for remark in failure.remarks for line in (f"{prose(remark)}.", "")]
    for likeness in failed.likenesses[:3]:
        links = [
            f"[{prose(name)}]({url})" if re.fullmatch(r"https://[\w./#?=&%-]+", url) else prose(name)
            for name, url in zip(likeness.sources, likeness.urls, strict=False)
        ]
        where = f" ({', '.join(links)})" if links else ""
        lines += [
            f"{failed.certainty}: **{prose(likeness.title)}**{where}. "
            f"{prose(cut(likeness.cause, _LINE))} It {likeness.agreement}.",
            "",
        ]
    lines += [prose(cut(failed.summary, _LINE)), ""] if failed.summary else []
    shown = [*failed.numbers, *failure.context]
    lines += [*fence(cut("\n".join(shown), 2 * _LINE)), ""] if shown else []
    lines += [f"* {prose(cut(finding, _LINE))}" for finding in failure.findings[:6]]
    lines += ["", *fence(cut("\n".join(failed.maps), 4 * _LINE)), ""] if failed.maps else []
    lines += ["To see it again:", "", *fence(f"from csa_spec import check_case\n\n{failed.call}", "python")]
    return "\n".join([*lines, "", "</details>", ""])


def _within(lines: list[str], room: int) -> list[str]:
    """Return as many lines as fit, and how many there are more."""
    kept: list[str] = []
    for number, line in enumerate(lines):
        room -= len(line) + 1
        if room < 0:
            return [*kept, "", f"{len(lines) - number} more lines would not fit into a comment.", ""]
        kept.append(line)
    return kept
