"""``docs/schema/report.json`` describes what is written: every field of it, and nothing else."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from engine.drawing import leave_out_corners
from test_cli import TINY_PROFILE, run

import csa_spec
from csa_spec.profiles import PROFILES
from csa_spec.report.json import VERSION, as_text

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs" / "schema" / "report.json").read_text(encoding="utf-8")
)


def closed(schema: Any) -> Any:
    """Return a schema that allows no field without a description; readers are told to allow them."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: closed(value) for key, value in schema.items()}
    return {"additionalProperties": False, **strict} if "required" in schema else strict


VALIDATOR = jsonschema.Draft202012Validator(closed(SCHEMA))


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw hardly anything."""
    monkeypatch.setitem(PROFILES, "tiny", TINY_PROFILE)


def report(candidate: str, **options: Any) -> dict[str, Any]:
    """Return the report of a run, as somebody reads it who wants strict JSON."""
    made = csa_spec.check(candidate, profile="tiny", **options)
    return json.loads(as_text(made), parse_constant=pytest.fail)  # type: ignore[no-any-return]


def test_the_schema_is_one() -> None:
    """Of this version; and it says what is promised."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["csa_spec_report"] == {
        "const": VERSION,
        "description": "Version of this layout",
    }
    assert "readers must ignore what they do not know" in SCHEMA["description"]


def test_a_report_of_a_right_candidate_is_valid() -> None:
    """With layers, libraries and skipped cases."""
    data = report("gather", stage="attend", dtype="float32,bfloat16")
    assert data["verdict"] == "conformant"
    assert data["functions"]["attend"]["line"] > 1
    VALIDATOR.validate(data)


def test_a_report_of_failures_is_valid() -> None:
    """With a diagnosis, numbers that are none, and an exception."""
    for candidate, stage in (
        ("csa_spec.bugs:returns_zeros", "attend"),
        ("cli_candidates:not_finite", "layer"),
    ):
        data = report(candidate, stage=stage, layer="sliding")
        assert data["verdict"] == "not conformant"
        failures = [failure for result in data["results"] for failure in result["failures"]]
        assert (
            any(failure["diagnosis"]["behaves_like"] for failure in failures) or "nan" in failures[0]["got"]
        )
        VALIDATOR.validate(data)
    VALIDATOR.validate(report("cli_candidates:raises", layer="sliding"))


def test_an_inconclusive_report_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kinds of case that were not reached."""
    leave_out_corners(monkeypatch)
    data = report("gather", stage="attend")
    assert data["verdict"] == "inconclusive"
    assert data["missing"][0]["kinds"]
    VALIDATOR.validate(data)


def test_a_report_of_a_run_that_is_not_finished_is_valid(tmp_path: Path) -> None:
    """From its beginning on, and where it stops early."""
    begun: list[str] = []
    csa_spec.check(
        "gather", stage="attend", profile="tiny", begun=lambda so_far: begun.append(as_text(so_far))
    )
    stopped = run(
        "check", "cli_candidates:raises", "--profile", "tiny", "-x", "--report", tmp_path / "r.json"
    )
    assert stopped.code == 1
    for text in (*begun, (tmp_path / "r.json").read_text(encoding="utf-8")):
        data = json.loads(text)
        assert data["finished"] is False
        assert data["stopped"]
        VALIDATOR.validate(data)


def test_a_known_issue_is_described(tmp_path: Path) -> None:
    """With its failure."""
    known = tmp_path / "known.toml"
    known.write_text(
        '[[known_issue]]\ncandidate = "csa_spec.bugs:returns_zeros"\nstage = "attend"\nname = "holes"\nreason = "why"\n'
    )
    data = report("csa_spec.bugs:returns_zeros", stage="attend", known=known)
    assert data["known_issues"]
    VALIDATOR.validate(data)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("csa_spec_report",), 2),
        (("verdict",), "right"),
        (("results", 0, "state"), "fine"),
        (("results", 0, "cases"), -1),
        (("results", 0, "failures"), None),
        (("seed",), "0"),
        (("surprise",), 1),
    ],
)
def test_what_is_no_report_is_not_valid(path: tuple[Any, ...], value: Any) -> None:
    """The schema says no, too."""
    data = deepcopy(REPORT)
    place: Any = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(data)


REPORT: dict[str, Any] = {
    "csa_spec_report": 3, "candidate": "c", "environment": {}, "sources": {}, "functions": {}, "profile": "smoke",
    "dtypes": ["float32"], "device": "cpu", "seed": 0, "seconds": 1.0, "finished": True, "verdict": "conformant",
    "exit_code": 0, "stopped": None, "missing": [], "left_out": [], "declined": {}, "known_issues": [],
    "results": [{
        "check": "c", "property": "p", "stage": "attend", "subject": "attend", "layer_kind": None,
        "dtype": "float32", "cases": 1, "failing_cases": 0, "not_judged_cases": 0, "state": "1 ok", "queries": 1,
        "ambiguous_queries": 0, "worst_error_over_budget": 0.1, "unjudged_queries": 0, "seen": {}, "seconds": 1.0,
        "regimes": {}, "reached": {}, "sizes": {}, "not_applicable": {}, "failures": [],
    }],
}  # fmt: skip


def test_the_report_that_is_made_wrong_above_is_valid() -> None:
    """Else it would not be its change that is refused."""
    VALIDATOR.validate(REPORT)
