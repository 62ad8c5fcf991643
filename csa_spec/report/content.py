"""What reports for the web say, before it is HTML or Markdown: plain texts, nothing escaped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from csa_spec.engine.failures import Failure, Flaky, Likeness
from csa_spec.engine.known_issues import KnownIssue
from csa_spec.engine.results import Report, Verdict
from csa_spec.engine.running import CheckResult
from csa_spec.engine.stage import SPECIFICATION
from csa_spec.report.maps import maps
from csa_spec.stages import STAGES, stage_of


def listed(values: list[float], shown: int = 6) -> str:
    """Return the first numbers as text."""
    more = ", ..." if len(values) > shown else ""
    return f"[{', '.join(f'{value:.7g}' for value in values[:shown])}{more}]"


def sides(failure: Failure, check: str) -> tuple[str, str]:
    """Return what the two sides of a failure are: expected and got, or two runs that are compared."""
    two_runs = stage_of(failure.case).check(check).two_runs
    return ("one run", "the other") if two_runs else ("expected", "got")


def numbers_lines(failure: Failure, check: str, shown: int = 6) -> list[str]:
    """Return lines that say where it is wrong, what is expected and what came; none where not known."""
    if failure.expected is None or failure.got is None:
        return []
    first, second = sides(failure, check)
    place = failure.place
    lines = [] if place is None else [f"{stage_of(failure.case).words.output:<22}{place}"]
    lines.append(f"  {first:<20}{listed(failure.expected, shown)}")
    lines.append(f"  {second:<20}{listed(failure.got, shown)}")
    if failure.over_budget is not None and failure.over_budget > 1:
        lines.append(f"  {'off by':<20}{failure.over_budget:.4g} times the tolerance")
    return lines


def case_label(failure: Failure) -> str:
    """Return what the case of a failure is: the smallest one that was found, or one as it was met."""
    return "failing case" if isinstance(failure, Flaky) or failure.alone else "smallest case found"


def call_line(failure: Failure, candidate: str, check: str) -> str:
    """Return the line of Python that tries the case again."""
    if failure.recorded_as:
        return f"csa_spec.tensors({quoted(str(failure.case))})  # {failure.recorded_as}"
    law = "" if check == SPECIFICATION else f", check={quoted(check)}"
    return f"check_case({quoted(candidate)}, {quoted(str(failure.case))}{law})"


def quoted(text: str) -> str:
    """Return a text as Python writes it, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Explained:
    """One failure in words."""

    failure: Failure
    result: CheckResult
    """Of the check that found it"""
    call: str
    """The line that shows it again"""

    @property
    def heading(self) -> str:
        """Which subject, and what is wrong."""
        return f"{self.result.subject}, {self.result.dtype}: {self.failure.title}"

    @property
    def detail(self) -> str:
        """What is wrong, as a sentence."""
        detail = self.failure.detail
        return f"{detail[:1].upper()}{detail[1:]}" + ("" if detail.endswith((".", "!", "?")) else ".")

    @property
    def case_label(self) -> str:
        """What the case is."""
        return case_label(self.failure)

    @property
    def likenesses(self) -> tuple[Likeness, ...]:
        """Known bugs that behave like this."""
        return () if self.failure.diagnosis is None else self.failure.diagnosis.behaves_like

    @property
    def certainty(self) -> str:
        """How sure it is that it is one of these, e.g. ``Behaves like``."""
        return "" if self.failure.diagnosis is None else self.failure.diagnosis.certainty.value.capitalize()

    @property
    def summary(self) -> str:
        """What the diagnosis says in sentences."""
        return "" if self.failure.diagnosis is None else self.failure.diagnosis.summary

    @property
    def numbers(self) -> list[str]:
        """Expected and got."""
        return numbers_lines(self.failure, self.result.check)

    @property
    def maps(self) -> list[str]:
        """The maps of text reports."""
        return "\n\n".join("\n".join(lines) for lines in maps(self.failure)).splitlines()


def explained(report: Report) -> list[Explained]:
    """Return the failures of a report, those of the specification check first."""
    results = sorted(report.results, key=lambda result: result.check != SPECIFICATION)
    return [
        Explained(failure, result, call_line(failure, report.candidate, result.check))
        for result in results
        for failure in result.failures
    ]


@dataclass(frozen=True, slots=True)
class Table:
    """Properties by subjects, of one stage in one dtype."""

    dtype: str
    subjects: list[str]
    rows: list[tuple[str, list[str]]]
    """A property, and what each subject says to it: ``12 ok``, ``3 FAILED``"""
    first: list[CheckResult]
    """By subject, the result of the first property"""


def tables(report: Report) -> Iterator[Table]:
    """Yield the tables of a report, in the order of the text report."""
    for stage, dtype in product(STAGES, report.dtypes):
        results = [result for result in report.results if (result.stage, result.dtype) == (stage, dtype)]
        if not results:
            continue
        subjects = list(dict.fromkeys(result.subject for result in results))
        place = {(result.check, result.subject): result for result in results}
        rows = [
            (
                sentence,
                [result.state if (result := place.get((check, subject))) else "" for subject in subjects],
            )
            for check, sentence in dict.fromkeys((result.check, result.sentence) for result in results)
        ]
        yield Table(dtype, subjects, rows, [place[results[0].check, subject] for subject in subjects])


def verdict(report: Report) -> str:
    """Return the verdict in words, with what it is about."""
    return f"{report.verdict}{about(report)}"


def about(report: Report) -> str:
    """Say what a verdict is about, e.g. `` for csa (nothing found for hca)``."""
    end = ", unfinished" if report.stopped else ""
    failed = list(dict.fromkeys(result.subject for result in report.results if result.failures))
    others = list(dict.fromkeys(result.subject for result in report.results if result.subject not in failed))
    if report.verdict is Verdict.NOT_CONFORMANT:
        rest = f" (nothing found for {', '.join(others)})" if others else ""
        return f" for {', '.join(failed)}{rest}{end}"
    many = len(report.known_issues)
    issues = f", except {many} known issue{'s' * (many > 1)}" if many else ""
    return (f" for {', '.join(others)}" if others else "") + issues + end


def versions(report: Report) -> dict[str, str]:
    """Return what was run, by name: the version, and of what is under development folder and revision."""
    names = dict.fromkeys([*report.environment, *report.sources])
    parts = {name: (report.environment.get(name, ""), report.sources.get(name, "")) for name in names}
    return {name: " ".join(str(part) for part in both if part) for name, both in parts.items()}


def environment(report: Report) -> str:
    """Return versions, profile, device and seed in a line."""
    named = ", ".join(f"{name} {version}" for name, version in versions(report).items())
    return f"{named}; {report.profile} profile, {report.device}, seed {report.seed}"


def gaps(report: Report) -> list[str]:
    """Return what a run did not reach, and what the candidate does not offer."""
    return [*unfinished(report), *unreached(report), *out_of_reach(report), *declined(report)]


def unfinished(report: Report) -> list[str]:
    """Say why a run is not finished; nothing where it is."""
    return [f"not finished: {report.stopped}"] if report.stopped else []


def unreached(report: Report) -> list[str]:
    """Return the kinds of case that a run did not reach."""
    return [
        f"{subject} in {dtype}: no case of these kinds was reached: {', '.join(names)}"
        for (dtype, subject), names in report.missing.items()
        if names
    ]


def out_of_reach(report: Report) -> list[str]:
    """Return what could not be tried within the declared limits, and what happens outside of them."""
    lines = [
        f"not tried for {subject}, as the candidate declares: {', '.join(names)}"
        for (dtype, subject), names in report.left_out.items()
        if names and dtype == report.dtypes[0]
    ]
    for result in report.results:
        seen = ", ".join(f"{what} ({count}x)" for what, count in sorted(result.tally.seen.items()))
        lines += [f"outside the declared limits of {result.subject}: {seen}"] if seen else []
    return lines


def declined(report: Report) -> list[str]:
    """Return what the candidate does not offer."""
    return [f"not checked: {reason}" for reason in report.declined.values()]


def skipped(result: CheckResult) -> str:
    """Say which cases were skipped; nothing where none was."""
    counts = ", ".join(
        f"{count} case{'s' * (count > 1)} with {name}"
        for name, count in sorted(result.not_applicable.items())
    )
    return f"{result.subject}: {counts} skipped (declared unsupported)" if counts else ""


def known_issue_line(issue: KnownIssue) -> str:
    """Say what became of a known issue."""
    about = f"known issue of {issue.subject}: {issue.name}"
    return f"{about}: {issue.outcome} ({issue.reason})"


@dataclass(frozen=True, slots=True)
class Covered:
    """What the specification check was tried on."""

    result: CheckResult
    worst: str
    kinds: list[str]
    skipped: str


def covered(report: Report) -> list[Covered]:
    """Return the coverage by subject and dtype."""
    first: dict[tuple[str, str], CheckResult] = {}
    for result in report.results:
        first.setdefault((result.subject, result.dtype), result)
    return [
        Covered(
            result,
            f"{result.tally.worst:.2f}",
            [f"{name} {count}" for name, count in sorted(result.reached.items())],
            skipped(result),
        )
        for result in first.values()
    ]
