"""Reports: JSON that programs can rely on, and text that explains a failure to someone who has never seen the suite."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import csa_spec
from csa_spec.engine.failures import Failure, FutureLeak, NotFinite, Place
from csa_spec.engine.results import Report
from csa_spec.engine.running import CheckResult
from csa_spec.report.json import VERSION, to_json, write_json
from csa_spec.report.text import describe, summarise
from csa_spec.spec import LayerKind
from csa_spec.stages.layer.case import LayerCase
from csa_spec.stages.layer.stage import LAYER
from engine.drawing import case_of_json, try_only
from engine.wrong import named

LEAK = "csa m=2 rows=4"


@cache
def failure_of(name: str, line: str, check: str = "specification") -> Failure:
    """Return how a wrong candidate fails; the same failure each time."""
    with pytest.raises(Failure) as raised:
        csa_spec.check_case(named(name), line, check)
    assert isinstance(raised.value, Failure)
    return raised.value


def report_of(*failures: Failure, candidate: str = "engine.wrong:leaks_the_future") -> Report:
    """Return a report of one check that found these failures."""
    result = CheckResult(
        "specification",
        LAYER.checks[0].sentence,
        "layer",
        LayerKind.CSA,
        "csa",
        cases=3,
        failing=len(failures),
    )
    result.failures = list(failures)
    result.tally.worst = math.inf
    result.reached = Counter({"one token": 2})
    environment = {"csa-spec": "0", "torch": "0"}
    missing = {("float32", LayerKind.CSA): ["partial tail"]}
    left_out = {("float32", LayerKind.CSA): ["YaRN"]}
    declined = {LayerKind.HCA: "it does not offer hca layers"}
    return Report(
        candidate, environment, "smoke", ("float32",), "cpu", 0, [result], missing, left_out, declined, 1.5
    )


def test_json_has_a_version_and_everything_a_program_needs() -> None:
    """The keys are a promise; whoever removes one raises the version."""
    data = to_json(report_of(failure_of("leaks_the_future", LEAK)))
    assert data["csa_spec_report"] == VERSION == 3
    assert set(data) == {
        "csa_spec_report", "candidate", "environment", "sources", "functions", "profile", "dtypes", "device",
        "seed", "seconds", "verdict",
        "finished", "stopped", "exit_code", "missing", "left_out", "declined", "known_issues", "results",
    }  # fmt: skip
    assert (data["verdict"], data["exit_code"]) == ("not conformant", 1)
    assert data["missing"] == [{"dtype": "float32", "subject": "csa", "kinds": ["partial tail"]}]
    assert data["left_out"] == [{"dtype": "float32", "subject": "csa", "kinds": ["YaRN"]}]
    assert data["declined"] == {"hca": "it does not offer hca layers"}
    (result,) = data["results"]
    assert {"check", "property", "stage", "subject", "layer_kind", "dtype", "cases", "failing_cases", "queries",
            "ambiguous_queries", "unjudged_queries", "worst_error_over_budget", "seconds", "regimes", "reached",
            "not_applicable", "seen", "sizes", "failures", "state", "not_judged_cases"} == set(result)  # fmt: skip
    (failure,) = result["failures"]
    assert failure["kind"] == "SeesTooMuch"
    assert (failure["row"], failure["column"], failure["query"]) == (0, 0, 0)
    assert len(failure["expected"]) == len(failure["got"]) == 2


def test_json_names_the_case_in_three_ways_that_agree() -> None:
    """The line for people, the data for programs, the hash to compare by."""
    found = failure_of("leaks_the_future", LEAK)
    (failure,) = to_json(report_of(found))["results"][0]["failures"]
    assert LayerCase.parse(failure["case_line"]) == found.case
    assert case_of_json(failure["case"]) == found.case
    assert failure["case_id"] == found.case.id


def test_json_stays_json_when_numbers_are_not_finite() -> None:
    """Infinity and NaN become strings, also where they are all there is."""
    odd = NotFinite(
        LayerCase(),
        place=Place(0, 0, 0),
        expected=[1.0, -math.inf],
        got=[math.nan, math.inf],
        over_budget=math.inf,
    )
    report = report_of(odd, failure_of("nan_without_entries", "hca m=2 rows=2"))
    text = json.dumps(to_json(report), allow_nan=False)
    data = json.loads(text)
    assert data == to_json(report)
    first, second = data["results"][0]["failures"]
    assert (first["expected"], first["got"]) == ([1.0, "-inf"], ["nan", "inf"])
    assert first["error_over_budget"] == "inf"
    assert second["got"] == ["nan", "nan"]
    assert data["results"][0]["worst_error_over_budget"] == "inf"


def test_json_of_a_whole_run_can_be_written_and_read(tmp_path: Path) -> None:
    """Failures of every check, with findings and without a place."""
    report = csa_spec.check(named("returns_nothing"), layer="sliding", profile="smoke")
    path = tmp_path / "report.json"
    write_json(report, path)
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data == to_json(report)
    assert {result["check"] for result in data["results"]} >= {"specification", "future", "weights"}
    assert all(result["failures"] for result in data["results"] if result["cases"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else: half a report is worse than none."""
    path = tmp_path / "report.json"
    report = report_of(failure_of("leaks_the_future", LEAK))
    write_json(report, path)
    old = path.read_bytes()

    def full_disk(*args: object, **options: object) -> int:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full_disk)
        with pytest.raises(OSError, match="no space"):
            write_json(report_of(), path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_disk)
        patch.setattr(Path, "replace", full_disk)
        with pytest.raises(OSError, match="no space"):
            write_json(report_of(), path)
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_a_leak_is_explained_to_someone_who_does_not_know_the_suite() -> None:
    """What is wrong, where, in which case, who may see whom, what really happens, and how to see it again."""
    found = failure_of("leaks_the_future", LEAK)
    text = describe(found, "engine.wrong:leaks_the_future", "specification")
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == "Output depends on what it must not depend on:"
    assert "the output of query 0 changes when token 1 changes; token 1 comes after it" in lines
    assert "smallest case found   csa m=2 rows=4" in lines
    assert any(
        line.startswith("which is              B=1, S=4, window 1, compression ratio 2, top-k 1")
        for line in lines
    )
    assert any(line.startswith("hidden states         [") for line in lines)
    assert "output of             row 0, query 0" in lines
    assert any(line.startswith("expected            [") for line in lines)
    assert any(line.startswith("got                 [") for line in lines)
    assert any(line.startswith("off by") and line.endswith("times the tolerance") for line in lines)
    assert lines[-3:] == [
        "to see it again",
        "from csa_spec import check_case",
        'check_case("engine.wrong:leaks_the_future", "csa m=2 rows=4")',
    ]


def test_the_maps_show_who_may_see_whom_and_what_happens_instead() -> None:
    """Query 0 sees itself alone; 1 completes the first block and sees its entry; the leak is marked."""
    found = failure_of("leaks_the_future", LEAK)
    lines = describe(found, "x", "specification").splitlines()
    sight = next(n for n, line in enumerate(lines) if "who may see whom" in line)
    rows = {line.split()[0]: line.split()[1:] for line in lines[sight + 2 : sight + 6]}
    assert lines[sight + 1].split() == ["0", "1", "2", "3", "|", "e0", "e1"]
    assert rows["t=0"] == ["#", ".", ".", ".", "|", ".", "."]
    assert rows["t=1"][:7] == [".", "#", ".", ".", "|", "#", "."]
    assert rows["t=2"][:7] == [".", ".", "#", ".", "|", "#", "."]
    assert rows["t=3"][:5] == [".", ".", ".", "#", "|"]
    assert sorted(rows["t=3"][5:7]) == ["#", "o"]
    dependence = next(n for n, line in enumerate(lines) if "what outputs depend on" in line)
    assert lines[dependence + 1].split() == ["0", "1", "2", "3"]
    assert lines[dependence + 2].split()[0] == "t=0"
    assert lines[dependence + 2].split()[1:] == ["#", "!", ".", "."]


def test_maps_of_long_documents_are_left_out() -> None:
    """They would not fit on a screen."""
    text = describe(failure_of("drops_the_sink", "sliding rows=25"), "x", "specification")
    assert "who may see whom" not in text
    assert "what outputs depend on" not in text


def test_a_broken_law_shows_both_runs() -> None:
    """Nothing was expected of either but that they agree."""
    found = failure_of("leaks_the_future", LEAK, "future")
    assert isinstance(found, FutureLeak)
    lines = [line.strip() for line in describe(found, "x", "future").splitlines()]
    assert "Future tokens change earlier outputs:" in lines
    assert any(line.startswith("one run             [") for line in lines)
    assert any(line.startswith("the other           [") for line in lines)
    assert lines[-1] == 'check_case("x", "csa m=2 rows=4", check="future")'


def test_findings_come_in_the_order_of_the_data() -> None:
    """The first stage that differs stands out; what follows from it is listed below."""
    found = failure_of("selects_everything_and_shows_it", "csa m=2 k=1 W=2 rows=6 seed=1")
    lines = [line.strip() for line in describe(found, "x", "specification").splitlines()]
    first, later = lines.index("first stage that differs"), lines.index("later stages")
    assert first < later
    assert lines[first + 1].startswith(
        "selection: query 3 selects entries 0 and 1 where the scores say entry 1"
    )
    assert lines[later + 1].startswith("attention: query 3, head 0 attends to entry 0")


@pytest.mark.parametrize("line", [LEAK, "csa m=2 k=1 W=2 rows=6 seed=1"])
def test_no_line_is_wider_than_a_screen(line: str) -> None:
    """Long sentences are wrapped, and the maps of a shrunk case are narrow."""
    for name in ("leaks_the_future", "selects_everything_and_shows_it"):
        if (name, line) != ("selects_everything_and_shows_it", LEAK):
            text = describe(failure_of(name, line), "engine.wrong:" + name, "specification")
            assert max(map(len, text.splitlines())) <= 120


def test_a_summary_explains_once_and_lists_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Laws that fall together with the equality get their sentence and their line, not the whole explanation."""
    try_only(monkeypatch, lambda case: case.columns <= 16)
    monkeypatch.setattr("csa_spec.target.ENOUGH", 1)
    report = csa_spec.check(named("leaks_the_future"), layer="csa", profile="smoke", patience=1)
    text = summarise(report)
    assert text.count("to see it again") == 1
    assert text.count('check_case("engine.wrong:leaks_the_future", "csa ') >= 3
    assert "FAILED csa: output matches the specification" in text
    assert "engine.wrong:leaks_the_future: NOT CONFORMANT for csa" in text.splitlines()[-1]
