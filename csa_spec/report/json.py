"""JSON for programs: versioned, complete, written at once or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from csa_spec.engine.failures import Diagnosis, Failure
from csa_spec.engine.results import Report
from csa_spec.engine.running import CheckResult
from csa_spec.engine.tally import Tally
from csa_spec.report.files import write_text

VERSION = 3
"""Raised whenever a reader of the old layout would misread the new one."""


def to_json(report: Report) -> dict[str, Any]:
    """Return a report as plain JSON data."""
    return {
        "csa_spec_report": VERSION,
        "candidate": report.candidate,
        "environment": dict(report.environment),
        "sources": {name: asdict(source) for name, source in report.sources.items()},
        "functions": {stage: location._asdict() for stage, location in report.functions.items()},
        "profile": report.profile,
        "dtypes": list(report.dtypes),
        "device": report.device,
        "seed": report.seed,
        "seconds": round(report.seconds, 3),
        "finished": not report.stopped,
        "verdict": str(report.verdict),
        "exit_code": report.verdict.value,
        "stopped": report.stopped or None,
        "missing": _kinds(report.missing),
        "left_out": _kinds(report.left_out),
        "declined": dict(report.declined),
        "known_issues": [
            {
                "subject": issue.subject,
                "name": issue.name,
                "reason": issue.reason,
                "state": issue.state,
                "cases": issue.cases,
                "refused_cases": issue.refused,
                "failure": None if issue.failure is None else failure_json(issue.failure),
            }
            for issue in report.known_issues
        ],
        "results": [_result(result) for result in report.results],
    }


def write_json(report: Report, path: Path) -> None:
    """Write a report; an interrupted write leaves the old file as it was."""
    write_text(path, as_text(report))


def as_text(report: Report) -> str:
    """Return a report as the text of a file."""
    return json.dumps(to_json(report), indent=1, allow_nan=False) + "\n"


def _kinds(by_subject: Mapping[tuple[str, str], list[str]]) -> list[dict[str, Any]]:
    return [
        {"dtype": dtype, "subject": subject, "kinds": names}
        for (dtype, subject), names in by_subject.items()
    ]


def _result(result: CheckResult) -> dict[str, Any]:
    return {
        "check": result.check,
        "property": result.sentence,
        "stage": result.stage,
        "subject": result.subject,
        "layer_kind": result.variant or None,
        "dtype": result.dtype,
        "cases": result.cases,
        "failing_cases": result.failing,
        "not_judged_cases": result.not_judged,
        "state": result.state,
        **_tally(result.tally),
        "unjudged_queries": result.tally.unjudged,
        "seen": dict(sorted(result.tally.seen.items())),
        "seconds": round(result.seconds, 3),
        "regimes": {
            "/".join(regime): {
                "cases": count.cases,
                "failing_cases": count.failing,
                **_tally(count.tally),
            }
            for regime, count in sorted(result.regimes.items())
        },
        "reached": dict(sorted(result.reached.items())),
        "sizes": dict(sorted(result.sizes.items())),
        "not_applicable": dict(sorted(result.not_applicable.items())),
        "failures": [failure_json(failure) for failure in result.failures],
    }


def _tally(tally: Tally) -> dict[str, Any]:
    return {
        "queries": tally.queries,
        "ambiguous_queries": tally.ambiguous,
        "worst_error_over_budget": _number(tally.worst),
    }


def failure_json(failure: Failure) -> dict[str, Any]:
    """Return a failure as plain JSON data."""
    place = failure.place
    if place is None:
        where = dict.fromkeys(("row", "column", "query", "head"))
    else:
        where = {"row": place.row, "column": place.column, "query": place.t, "head": place.head}
    return {
        "kind": failure.kind,
        "title": failure.title,
        "detail": failure.detail,
        **where,
        "facts": {name: _plain(value) for name, value in failure.facts.items()},
        "context": list(failure.context),
        "expected": _numbers(failure.expected),
        "got": _numbers(failure.got),
        "error_over_budget": _number(failure.over_budget),
        "findings": list(failure.findings),
        "remarks": list(failure.remarks),
        "diagnosis": _diagnosis(failure.diagnosis),
        "case": failure.case.to_json(),
        "case_line": str(failure.case),
        "case_id": failure.case.id,
    }


def _diagnosis(diagnosis: Diagnosis | None) -> dict[str, Any] | None:
    if diagnosis is None:
        return None
    return {
        "summary": diagnosis.summary,
        "certainty": diagnosis.certainty.name.lower(),
        "behaves_like": [
            {
                "name": likeness.name,
                "title": likeness.title,
                "cause": likeness.cause,
                "urls": list(likeness.urls),
                "agreeing_cases": likeness.agreeing,
                "tried_cases": likeness.tried,
            }
            for likeness in diagnosis.behaves_like
        ],
    }


def _numbers(values: list[float] | None) -> list[float | str] | None:
    return None if values is None else [number for value in values if (number := _number(value)) is not None]


def _number(value: float | None) -> float | str | None:
    """JSON has no infinity and no NaN; they become strings."""
    return value if value is None or math.isfinite(value) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, (int, str)):
        return value
    if isinstance(value, float):
        return _number(value)
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else str(value)
