"""Text for people: one failure explained, and the table at the end of a run."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

from csa_spec.engine.failures import Failure
from csa_spec.engine.results import Report, Verdict
from csa_spec.engine.stage import SPECIFICATION
from csa_spec.engine.tally import Tally
from csa_spec.plug.candidate import Candidate
from csa_spec.report.content import (
    Table,
    about,
    call_line,
    declined,
    environment,
    known_issue_line,
    numbers_lines,
    out_of_reach,
    tables,
    unreached,
)
from csa_spec.report.maps import dependence_map, sight_map
from csa_spec.stages import stage_of


def describe(failure: Failure, candidate: str, check: str) -> str:
    """Explain one failure to someone who does not know how the suite works."""
    case = failure.case
    lines = [
        f"  {failure.title[0].upper()}{failure.title[1:]}:",
        *_wrapped(failure.detail),
        "",
        f"  smallest case found   {case}",
        f"  which is              {case.in_words()}",
        *_data(case),
        *(f"  {line}" for line in numbers_lines(failure, check)),
        *_diagnosis(failure),
    ]
    if failure.findings:
        lines += ["", "  first stage that differs", *_wrapped(failure.findings[0], "    ")]
        if len(failure.findings) > 1:
            lines += [
                "  later stages",
                *(line for one in failure.findings[1:] for line in _wrapped(one, "    ")),
            ]
    lines += ["", *("  " + line for line in failure.context)] if failure.context else []
    for drawing in (
        sight_map(failure.document) if failure.document else [],
        dependence_map(failure.dependence) if failure.dependence else [],
    ):
        lines += ["", *("  " + line for line in drawing)] if drawing else []
    lines += [
        "",
        "  to see it again",
        "    from csa_spec import check_case",
        f"    {call_line(failure, candidate, check)}",
    ]
    return "\n".join(lines)


def _diagnosis(failure: Failure) -> list[str]:
    """Say which known bugs it looks like, and what is wrong with what it depends on."""
    found = failure.diagnosis
    if found is None:
        return []
    lines = []
    for one in found.behaves_like:
        lines += ["", *_wrapped(f"behaves like: {one.title}", "  "), *_wrapped(one.cause, "    ")]
        lines += [f"    {url}" for url in one.urls]
    return [*lines, "", *_wrapped(found.summary)]


def _in_short(failure: Failure, candidate: str, check: str) -> str:
    """Return a failure without its explanation, for laws that fall where the equality does."""
    return "\n".join([*_wrapped(failure.detail), f"  {call_line(failure, candidate, check)}"])


def _wrapped(sentence: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(sentence, 116, initial_indent=indent, subsequent_indent=indent)


def _data(case: Any) -> list[str]:
    """Show the data of a case where they are few enough to read."""
    return [f"  {line}" for line in stage_of(case).trial(Candidate("nobody"), case).data_lines()]


def summarise(report: Report) -> str:
    """Return the failures, the table and the verdict of a run."""
    blocks = []
    explained = set()
    for result in report.results:
        for failure in result.failures:
            where = f"{result.subject}, {result.dtype}" if len(report.dtypes) > 1 else result.subject
            heading = f"FAILED {where}: {result.sentence}"
            if (result.subject, result.dtype) in explained and result.check != SPECIFICATION:
                blocks.append(f"{heading}\n{_in_short(failure, report.candidate, result.check)}")
            else:
                blocks.append(f"{heading}\n{describe(failure, report.candidate, result.check)}")
                explained.add((result.subject, result.dtype))
    blocks += [_table(table) for table in tables(report)]
    blocks.append(_verdict(report))
    return "\n\n".join(blocks)


_ROWS: dict[str, Callable[[Tally], str]] = {
    "largest error/budget of what is right": lambda tally: f"{tally.worst:.2f}",
    "queries held against the specification": lambda tally: str(tally.queries),
    "  of these ambiguous (ties across k)": lambda tally: str(tally.ambiguous),
    "  of these with too many choices to judge": lambda tally: str(tally.unjudged),
}


def _table(table: Table) -> str:
    """Return the results of one stage in one dtype; a layer has a column for each of its kinds."""
    rows = [(table.dtype, table.subjects), *table.rows]
    for name, cell in _ROWS.items():
        cells = [cell(result.tally) for result in table.first]
        if name.startswith("  ") and set(cells) == {"0"} and not table.first[0].variant:
            continue  # ties are a matter of layers and selections
        rows.append((name, cells))
    wide = max(45, *(len(name) for name, _ in rows)) + 1
    lines = [f"{name:<{wide}}" + "".join(f"{cell:>16}" for cell in cells) for name, cells in rows]
    for subject, result in zip(table.subjects, table.first, strict=True):
        if result.not_applicable:
            counts = ", ".join(f"{name} {count}" for name, count in sorted(result.not_applicable.items()))
            lines.append(f"not applicable to {subject}: cases with {counts}")
    return "\n".join(lines)


def _verdict(report: Report) -> str:
    inconclusive = report.verdict is Verdict.INCONCLUSIVE
    lines = [f"inconclusive for {line}" for line in unreached(report)] if inconclusive else []
    lines += out_of_reach(report) + declined(report)
    for issue in report.known_issues:
        lines.append(known_issue_line(issue))
        if issue.failure is not None:
            lines.append(f"  smallest case found: {issue.failure.case}")
    lines.append(f"{environment(report)}, {report.seconds:.0f} s")
    return "\n".join([*lines, f"{report.candidate}: {str(report.verdict).upper()}{about(report)}"])
