"""What reports for the web say, before it is HTML or Markdown: plain texts, nothing escaped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from csa_spec.engine.failures import Failure, Likeness
from csa_spec.engine.results import Report, Verdict
from csa_spec.engine.running import CheckResult
from csa_spec.report.maps import dependence_map, sight_map
from csa_spec.report.text import call_line, count_cell, numbers_lines
from csa_spec.stages import STAGES


@dataclass(frozen=True, slots=True)
class Explained:
    """One failure in words."""

    failure: Failure
    check: str
    subject: str
    dtype: str
    sentence: str
    """The property that does not hold"""
    call: str
    """The line that shows it again"""

    @property
    def heading(self) -> str:
        """Which subject, and what is wrong."""
        return f"{self.subject}, {self.dtype}: {self.failure.title}"

    @property
    def detail(self) -> str:
        """What is wrong, as a sentence."""
        detail = self.failure.detail
        return f"{detail[:1].upper()}{detail[1:]}" + ("" if detail.endswith((".", "!", "?")) else ".")

    @property
    def likenesses(self) -> tuple[Likeness, ...]:
        """Known bugs that behave like this."""
        return () if self.failure.diagnosis is None else self.failure.diagnosis.behaves_like

    @property
    def summary(self) -> str:
        """What the diagnosis says in sentences."""
        return "" if self.failure.diagnosis is None else self.failure.diagnosis.summary

    @property
    def numbers(self) -> list[str]:
        """Expected and got."""
        return [line.removeprefix("  ") for line in numbers_lines(self.failure, self.check)]

    @property
    def maps(self) -> list[str]:
        """The maps of text reports."""
        sight = sight_map(self.failure.document) if self.failure.document else []
        depends = dependence_map(self.failure.dependence) if self.failure.dependence else []
        return [*sight, *([""] if sight and depends else []), *depends]


def explained(report: Report) -> list[Explained]:
    """Return the failures of a report, those of the equality with the specification first."""
    found = [
        Explained(
            failure, result.check, result.subject, result.dtype, result.sentence,
            call_line(failure, report.candidate, result.check),
        )
        for result in report.results
        for failure in result.failures
    ]  # fmt: skip
    return sorted(found, key=lambda one: one.check != "specification")


@dataclass(frozen=True, slots=True)
class Table:
    """Properties by subjects, of one stage in one dtype."""

    dtype: str
    subjects: list[str]
    rows: list[tuple[str, list[str]]]
    """A property, and what each subject says to it: ``12 ok``, ``3 FAILED``"""


def tables(report: Report) -> Iterator[Table]:
    """Yield the tables of a report, in the order of the text report."""
    for stage in STAGES:
        for dtype in report.dtypes:
            results = [one for one in report.results if (one.stage, one.dtype) == (stage, dtype)]
            if not results:
                continue
            subjects = list(dict.fromkeys(result.subject for result in results))
            place = {(result.check, result.subject): result for result in results}
            sentences = dict.fromkeys((result.check, result.sentence) for result in results)
            yield Table(
                dtype,
                subjects,
                [
                    (text, [count_cell(place.get((check, subject))) for subject in subjects])
                    for check, text in sentences
                ],
            )


def verdict(report: Report) -> str:
    """Return the verdict in words, with what it is about."""
    failed = list(dict.fromkeys(result.subject for result in report.results if result.failures))
    subjects = [
        name for name in dict.fromkeys(result.subject for result in report.results) if name not in failed
    ]
    if report.verdict is Verdict.NOT_CONFORMANT:
        rest = f"; nothing found for {', '.join(subjects)}" if subjects else ""
        return f"{report.verdict} for {', '.join(failed)}{rest}"
    return f"{report.verdict} for {', '.join(subjects)}" if subjects else str(report.verdict)


def environment(report: Report) -> str:
    """Return versions, profile, device and seed in a line."""
    versions = [f"{name} {version}" for name, version in report.environment.items()]
    return ", ".join([*versions, f"{report.profile} profile", report.device, f"seed {report.seed}"])


def gaps(report: Report) -> list[str]:
    """Return what a run did not reach, and what the candidate does not offer."""
    missing = [
        f"{subject} in {dtype}: no case of these kinds was reached: {', '.join(names)}"
        for (dtype, subject), names in report.missing.items()
        if names
    ]
    return [*missing, *(f"not applicable: {reason}" for reason in report.declined.values())]


@dataclass(frozen=True, slots=True)
class Covered:
    """What the equality with the specification was held on."""

    subject: str
    dtype: str
    cases: int
    queries: int
    worst: str
    kinds: list[str]
    left_out: list[str]


def covered(report: Report) -> list[Covered]:
    """Return the coverage by subject and dtype."""
    first: dict[tuple[str, str], CheckResult] = {}
    for result in report.results:
        first.setdefault((result.subject, result.dtype), result)
    return [
        Covered(
            subject,
            dtype,
            result.cases,
            result.tally.queries,
            f"{result.tally.worst:.2f}",
            [f"{name} {count}" for name, count in sorted(result.reached.items())],
            [f"{name} {count}" for name, count in sorted(result.not_applicable.items())],
        )
        for (subject, dtype), result in first.items()
    ]
