"""Text for people: one failure explained, and the table at the end of a run."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

from csa_spec.engine.failures import Failure
from csa_spec.engine.results import Report, Verdict
from csa_spec.engine.running import CheckResult
from csa_spec.engine.stage import SPECIFICATION
from csa_spec.engine.tally import Tally
from csa_spec.plug.candidate import Candidate
from csa_spec.report import content
from csa_spec.report.content import Table, call_line, numbers_lines, skipped
from csa_spec.report.maps import maps
from csa_spec.stages import stage_of


def describe(failure: Failure, candidate: str, check: str) -> str:
    """Explain one failure, and say how to see it again."""
    call = call_line(failure, candidate, check)
    return "\n".join(
        [
            explained(failure, check),
            "",
            "  its inputs" if failure.recorded_as else "  to see it again",
            "    import csa_spec" if failure.recorded_as else "    from csa_spec import check_case",
            f"    {call}",
        ]
    )


def explained(failure: Failure, check: str) -> str:
    """Explain one failure to someone who does not know how the suite works."""
    case = failure.case
    lines = [
        *_wrapped(failure.declared),
        *[""] * bool(failure.declared),
        f"  {failure.title[0].upper()}{failure.title[1:]}:",
        *_wrapped(failure.detail),
        "",
        f"  {content.case_label(failure):<22}{case}",
        f"  which is              {case.in_words()}",
        *(f"  {line}" for line in stage_of(case).trial(Candidate("nobody"), case).data_lines()),
        *(f"  {line}" for line in numbers_lines(failure, check)),
        *(line for remark in failure.remarks for line in _wrapped(remark)),
        *_diagnosis(failure),
    ]
    if failure.findings:
        lines += ["", "  first stage that differs", *_wrapped(failure.findings[0], "    ")]
        if len(failure.findings) > 1:
            lines.append("  later stages")
        for finding in failure.findings[1:]:
            lines += _wrapped(finding, "    ")
    for block in (failure.context, *maps(failure)):
        lines += ["", *("  " + line for line in block)] if block else []
    return "\n".join(lines)


def _diagnosis(failure: Failure) -> list[str]:
    """Say which known bugs it looks like, how sure that is, and what is wrong with what it depends on."""
    if failure.diagnosis is None:
        return []
    return [*_likenesses(failure), "", *_wrapped(failure.diagnosis.summary)]


def _likenesses(failure: Failure) -> list[str]:
    if failure.diagnosis is None:
        return []
    lines = []
    says = failure.diagnosis.certainty.value
    for likeness in failure.diagnosis.behaves_like:
        lines += ["", *_wrapped(f"{says}: {likeness.title}"), *_wrapped(likeness.cause, "    ")]
        lines += _wrapped(likeness.agreement, "    ")
        lines += [f"    {url}" for url in likeness.urls]
    return lines


def _wrapped(sentence: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(sentence, 109, initial_indent=indent, subsequent_indent=indent)


def summarise(report: Report) -> str:
    """Return the failures, the tables and the verdict of a run."""
    return "\n\n".join([*Failures().untold(report), conclude(report)])


class Failures:
    """Explains the failures of a run one after the other; those that follow from another in few lines."""

    def __init__(self) -> None:
        # By subject and dtype: the first failure.
        self._explained: dict[tuple[str, str], tuple[str, ...]] = {}
        self._told: dict[tuple[str, ...], Failure] = {}

    def untold(self, report: Report) -> list[str]:
        """Explain the failures that are not explained yet: where a run is stopped, that of the last call."""
        return [
            self.explain(failure, result, report)
            for result in report.results
            for failure in result.failures
            if _key(failure, result) not in self._told
        ]

    def explain(self, failure: Failure, result: CheckResult, report: Report) -> str:
        """Return the text of the next failure, or of what is new about one; empty where nothing is."""
        key = _key(failure, result)
        before = self._told.get(key)
        self._told[key] = failure
        where = f"{result.subject}, {result.dtype}" if len(report.dtypes) > 1 else result.subject
        stray = failure.cause is not None and result.check != SPECIFICATION
        heading = f"FAILED {where}: {failure.title if stray else result.sentence}"
        same_case = before is not None and before.case == failure.case
        if before is not None:
            heading += " (as above, after a longer look)" if same_case else " (as above, on a smaller case)"
        first = self._explained.setdefault((result.subject, result.dtype), key)
        if first != key and result.check != SPECIFICATION and not stray:
            # A law that is broken where another failure is explained: the explanation stands above.
            if same_case:
                return ""
            call = call_line(failure, report.candidate, result.check)
            return "\n".join([heading, *_wrapped(failure.detail), f"  {call}"])
        if before is not None and same_case:
            return "\n".join([heading, *_outcome_of_search(failure, before)])
        return f"{heading}\n{describe(failure, report.candidate, result.check)}"


def _outcome_of_search(failure: Failure, before: Failure) -> list[str]:
    """Say what further search gave beside the case, which is the same."""
    names, named = _likenesses(failure), _likenesses(before)
    new = names if names != named else []
    fruitless = "no smaller case was found"
    if not names:
        fruitless += (
            "; on other cases it is not like what is named above" if named else ", and no known bug like it"
        )
    remarks = failure.remarks or (fruitless,)
    return [*(line for remark in remarks for line in _wrapped(remark)), *new]


def _key(failure: Failure, result: CheckResult) -> tuple[str, ...]:
    return result.subject, result.dtype, result.check, failure.kind


def conclude(report: Report) -> str:
    """Return the tables and the verdict of a run."""
    return "\n\n".join([*map(_table, content.tables(report)), _verdict(report)])


_ROWS: dict[str, Callable[[Tally], str]] = {
    "largest error, as a share of the tolerance": lambda tally: f"{tally.worst:.2f}",
    "queries compared": lambda tally: str(tally.queries),
    "  of these ambiguous (several valid selections)": lambda tally: str(tally.ambiguous),
    "  of these skipped: too many equally valid selections": lambda tally: str(tally.unjudged),
}


def _table(table: Table) -> str:
    """Return the results of one stage in one dtype; a layer has a column for each of its kinds."""
    rows = [(table.dtype, table.subjects), *table.rows]
    for name, cell in _ROWS.items():
        cells = [cell(result.tally) for result in table.first]
        if name.startswith("  ") and set(cells) == {"0"}:
            continue  # ties are a matter of layers and selections
        rows.append((name, cells))
    wide = max(45, *(len(name) for name, _ in rows)) + 1
    lines = [f"{name:<{wide}}" + "".join(f"{cell:>16}" for cell in cells) for name, cells in rows]
    if any(cell == "not judged" for _, cells in table.rows for cell in cells):
        lines.append("not judged: the candidate fails there in a way that is reported above")
    return "\n".join([*lines, *filter(None, map(skipped, table.first))])


def _verdict(report: Report) -> str:
    inconclusive = report.verdict is Verdict.INCONCLUSIVE
    lines = [f"inconclusive for {line}" for line in content.unreached(report)] if inconclusive else []
    lines += content.unfinished(report) + content.out_of_reach(report) + content.declined(report)
    for issue in report.known_issues:
        lines.append(content.known_issue_line(issue))
        if issue.failure is not None:
            lines.append(f"  smallest case found: {issue.failure.case}")
    lines.append(f"{content.environment(report)}, {report.seconds:.0f} s")
    return "\n".join([*lines, f"{report.candidate}: {str(report.verdict).upper()}{content.about(report)}"])
