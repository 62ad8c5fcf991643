"""Text for people: one failure explained, and the table at the end of a run."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

from csa_spec.engine.failures import Failure
from csa_spec.engine.known_issues import Limitation
from csa_spec.engine.results import Report, Verdict
from csa_spec.engine.running import CheckResult
from csa_spec.engine.stage import SPECIFICATION
from csa_spec.engine.tally import Tally
from csa_spec.plug.candidate import Candidate
from csa_spec.report.maps import dependence_map, sight_map
from csa_spec.stages import STAGES, stage_of


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
        *numbers_lines(failure, check),
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


def call_line(failure: Failure, candidate: str, check: str) -> str:
    """Return the line of Python that tries the case again."""
    law = "" if check == "specification" else f', check="{check}"'
    return f'check_case("{candidate}", "{failure.case}"{law})'


def _in_short(failure: Failure, candidate: str, check: str) -> str:
    """Return a failure without its explanation, for laws that fall where the equality does."""
    return "\n".join([*_wrapped(failure.detail), f"  {call_line(failure, candidate, check)}"])


def _wrapped(sentence: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(sentence, 116, initial_indent=indent, subsequent_indent=indent)


def _data(case: Any) -> list[str]:
    """Show the data of a case where they are few enough to read."""
    return [f"  {line}" for line in stage_of(case).trial(Candidate("nobody"), case).data_lines()]


def numbers_lines(failure: Failure, check: str) -> list[str]:
    """Return lines that say where it is wrong, what is expected and what came; none where that is not known."""
    if failure.place is None or failure.expected is None or failure.got is None:
        return []
    stage = stage_of(failure.case)
    first, second = ("one run", "the other") if stage.check(check).two_runs else ("expected", "got")
    lines = [
        f"  {stage.words.output:<22}{failure.place}",
        f"    {first:<20}{_listed(failure.expected)}",
        f"    {second:<20}{_listed(failure.got)}",
    ]
    if failure.over_budget is not None and failure.over_budget > 1:
        lines.append(f"    off by              {failure.over_budget:.4g} times the error budget")
    return lines


def _listed(values: list[float], shown: int = 6) -> str:
    return (
        "[" + ", ".join(f"{x:.7g}" for x in values[:shown]) + (", ..." if len(values) > shown else "") + "]"
    )


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
    for stage in STAGES:
        for dtype in report.dtypes:
            mine = [result for result in report.results if result.dtype == dtype and result.stage == stage]
            blocks += [_table(mine, dtype)] if mine else []
    blocks.append(_verdict(report))
    return "\n\n".join(blocks)


_ROWS: dict[str, Callable[[Tally], str]] = {
    "largest error/budget of what is right": lambda tally: f"{tally.worst:.2f}",
    "queries held against the specification": lambda tally: str(tally.queries),
    "  of these ambiguous (ties across k)": lambda tally: str(tally.ambiguous),
    "  of these with too many choices to judge": lambda tally: str(tally.unjudged),
}


_LEAST_WIDTH = 45


def _table(results: list[CheckResult], dtype: str) -> str:
    """Return the results of one stage in one dtype; a layer has a column for each of its kinds."""
    subjects = list(dict.fromkeys(result.subject for result in results))
    by_place = {(result.check, result.subject): result for result in results}
    wide = max(_LEAST_WIDTH, *(len(result.sentence) for result in results)) + 1
    lines = [f"{dtype:<{wide}}" + "".join(f"{subject:>16}" for subject in subjects)]
    for check, sentence in dict.fromkeys((result.check, result.sentence) for result in results):
        row = [count_cell(by_place.get((check, subject))) for subject in subjects]
        lines.append(f"{sentence:<{wide}}" + "".join(f"{cell:>16}" for cell in row))
    first = [by_place[results[0].check, subject] for subject in subjects]
    for name, cell in _ROWS.items():
        cells = [cell(result.tally) for result in first]
        if name.startswith("  ") and set(cells) == {"0"} and not results[0].variant:
            continue  # ties are a matter of layers and selections
        lines.append(f"{name:<{wide}}" + "".join(f"{cell:>16}" for cell in cells))
    for subject, result in zip(subjects, first, strict=True):
        if result.not_applicable:
            counts = ", ".join(f"{name} {count}" for name, count in sorted(result.not_applicable.items()))
            lines.append(f"not applicable to {subject}: cases with {counts}")
    return "\n".join(lines)


def count_cell(result: CheckResult | None) -> str:
    """Return what a table shows of one check of one subject."""
    if result is None:
        return ""
    if result.failures:
        return f"{result.failing} FAILED"
    return f"{result.cases} ok" if result.cases else "no case"


def _verdict(report: Report) -> str:
    lines = []
    for (dtype, subject), names in report.missing.items():
        if names and report.verdict is Verdict.INCONCLUSIVE:
            lines.append(
                f"inconclusive for {subject} in {dtype}: no case of these kinds was reached: {', '.join(names)}"
            )
    for (dtype, subject), names in report.left_out.items():
        if names and dtype == report.dtypes[0]:
            lines.append(f"not tried for {subject}, as the candidate declares: {', '.join(names)}")
    for result in report.results:
        seen = ", ".join(f"{what} ({count}x)" for what, count in sorted(result.tally.seen.items()))
        lines += [f"outside the declared limits of {result.subject}: {seen}"] if seen else []
    lines += [f"not applicable: {reason}" for reason in report.declined.values()]
    lines += [_limitation(one) for one in report.limitations]
    versions = ", ".join(f"{name} {version}" for name, version in report.environment.items())
    lines.append(
        f"{versions}; {report.profile} profile, {report.device}, seed {report.seed}, {report.seconds:.0f} s"
    )
    failed = dict.fromkeys(result.subject for result in report.results if result.failures)
    right = dict.fromkeys(r.subject for r in report.results if r.subject not in failed)
    if report.verdict is Verdict.NOT_CONFORMANT:
        lines.append(f"{report.candidate}: NOT CONFORMANT for {', '.join(failed)}")
        if right:
            lines[-1] += f" (nothing found for {', '.join(right)})"
    else:
        lines.append(f"{report.candidate}: {str(report.verdict).upper()} for {', '.join(right)}")
        if report.limitations:
            many = len(report.limitations)
            lines[-1] += f", except {many} known limitation" + "s" * (many > 1)
    return "\n".join(lines)


def _limitation(one: Limitation) -> str:
    """Return a line or two about a known limitation."""
    line = f"known limitation of {one.subject}: {one.name}: {one.state} ({one.reason})"
    return line if one.failure is None else f"{line}\n  smallest case found: {one.failure.case}"
