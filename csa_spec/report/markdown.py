"""The report as Markdown, for a comment under a pull request."""

from __future__ import annotations

import re
from dataclasses import replace

from csa_spec.engine.results import Report
from csa_spec.report import content
from csa_spec.report.content import Explained, Table

MOST = 65_536
"""Characters that GitHub takes in a comment."""
_TABLES, _NOTES, _LINE = 12_000, 6_000, 1_500
"""Room for the tables and for the notes after the failures, and for one text."""


def to_markdown(report: Report) -> str:
    """Return the report as a comment; it always fits into one, failures that do not are counted."""
    subjects = f" {_prose(_cut(content.about(report), 500))}" if content.about(report) else ""
    candidate = _code(_cut(report.candidate, 200))
    head = [f"**{str(report.verdict).upper()}**{subjects}: {candidate}", ""]
    head += _within([line for table in content.tables(report) for line in _table(table)], _TABLES)
    notes = [f"* {_prose(_cut(gap, _LINE))}" for gap in content.gaps(report)]
    for issue in report.known_issues:
        short = replace(issue, name=_cut(issue.name, 200), reason=_cut(issue.reason, 300))
        notes.append(f"* {_prose(content.known_issue_line(short))}")
    tail = [
        *_within(notes, _NOTES),
        "",
        f"<sub>{_prose(_cut(content.environment(report), _LINE))}</sub>",
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
        "| " + " | ".join([_prose(table.dtype), *map(_prose, table.subjects)]) + " |",
        "|---|" + "---:|" * len(table.subjects),
    ]
    for name, cells in table.rows:
        shown = (f"**{cell}**" if cell.endswith("FAILED") else cell for cell in cells)
        lines.append(f"| {_prose(name)} | " + " | ".join(shown) + " |")
    return [*lines, ""]


def _failure(failed: Explained) -> str:
    failure = failed.failure
    lines = [
        f"<details><summary><b>{_prose(failed.heading)}</b></summary>",
        "",
        f"{_prose(_cut(failed.detail, _LINE))} The property: {_prose(failed.result.sentence)}.",
        "",
        f"{content.case_label(failure).capitalize()}:",
        "",
        *_fence(_cut(str(failure.case), 2 * _LINE)),
        "",
    ]
    lines += [line for remark in failure.remarks for line in (f"{_prose(remark)}.", "")]
    for likeness in failed.likenesses[:3]:
        links = [
            f"[{_prose(name)}]({url})" if re.fullmatch(r"https://[\w./#?=&%-]+", url) else _prose(name)
            for name, url in zip(likeness.sources, likeness.urls, strict=False)
        ]
        where = f" ({', '.join(links)})" if links else ""
        lines += [
            f"Behaves like: **{_prose(likeness.title)}**{where}. {_prose(_cut(likeness.cause, _LINE))}",
            "",
        ]
    lines += [_prose(_cut(failed.summary, _LINE)), ""] if failed.summary else []
    shown = [*failed.numbers, *failure.context]
    lines += [*_fence(_cut("\n".join(shown), 2 * _LINE)), ""] if shown else []
    lines += [f"* {_prose(_cut(finding, _LINE))}" for finding in failure.findings[:6]]
    lines += ["", *_fence(_cut("\n".join(failed.maps), 4 * _LINE)), ""] if failed.maps else []
    lines += ["To see it again:", "", *_fence(f"from csa_spec import check_case\n\n{failed.call}", "python")]
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


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + " ..."


def _prose(text: str) -> str:
    """Escape a text: nothing in it is markup, starts a cell, or calls a person."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", text).replace("@", "@\u200b")


def _code(text: str) -> str:
    """Return a text as code inside a line."""
    text = " ".join(text.split())
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def _fence(text: str, language: str = "text") -> list[str]:
    """Return a text as a block of code, in a fence that it cannot close."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [f"{ticks}{language}", text, ticks]
