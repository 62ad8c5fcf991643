"""Reports as JUnit XML: read as Jenkins and GitLab read them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from csa_spec.engine.failures import CandidateRaised
from csa_spec.engine.results import Report
from csa_spec.plug.origin import Location
from csa_spec.report.junit import to_junit
from csa_spec.stages import parse_case
from report import examples

HOSTILE = "mod:<b>]]>\x00\x1b[31m\ud800\ufffe & \"'\n# no"
KINDS = "every required kind of case is tried"
ATTRIBUTES = {
    "testsuites": {"name", "tests", "failures", "errors", "skipped", "time"},
    "testsuite": {"name", "tests", "failures", "errors", "skipped", "time"},
    "properties": set(),
    "property": {"name", "value"},
    "testcase": {"classname", "name", "time"},
    "failure": {"message", "type"},
    "error": {"message", "type"},
    "skipped": {"message"},
}
"""What both read, with the attributes that must be there"""
INSIDE = {
    "testsuites": {"testsuite"},
    "testsuite": {"properties", "testcase"},
    "properties": {"property"},
    "testcase": {"failure", "error", "skipped"},
}


def read(report: Report) -> Element:
    """Parse a report, after the layout and all counts are checked."""
    root = ElementTree.fromstring(to_junit(report).encode())
    assert root.tag == "testsuites"
    for element in root.iter():
        assert ATTRIBUTES[element.tag] <= set(element.attrib), element.tag
        assert {inner.tag for inner in element} <= INSIDE.get(element.tag, set())
        for name in {"time"} & set(element.attrib):
            assert float(element.attrib[name]) >= 0
    for suite in (root, *root):
        cases = list(suite.iter("testcase"))
        assert int(suite.attrib["tests"]) == len(cases)
        for plural, what in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(suite.attrib[plural]) == sum(case.find(what) is not None for case in cases)
    keys = [(case.attrib["classname"], case.attrib["name"]) for case in root.iter("testcase")]
    assert len(set(keys)) == len(keys), "GitLab takes two of these for one"
    return root


def outcomes(root: Element) -> dict[str, Element | None]:
    """Return by the name of each case what it says, None where it passed."""
    return {case.attrib["name"]: next(iter(case), None) for case in root.iter("testcase")}


@pytest.fixture(scope="module")
def report() -> Report:
    """Return a report of a failing, a passing, a skipped and a not judged check."""
    raised = CandidateRaised(ValueError(HOSTILE), parse_case("attend"))
    made = examples.report_of("kernels:attend", [raised])
    [failing] = made.results
    others = [
        replace(failing, check="repeat", sentence="two runs agree", failing=0, failures=[], seconds=1.25),
        replace(failing, check="rows", sentence="rows", cases=0, failing=0, failures=[]),
        replace(failing, check="order", sentence="order", not_judged=1, cases=0, failing=0, failures=[]),
    ]
    return replace(made, results=[failing, *others], seconds=2.5, declined={"hca": "it has none"})


def test_each_check_is_a_case_that_says_how_it_ended(report: Report) -> None:
    """A failure with the text of the terminal; the others skipped, with the reason."""
    root = read(report)
    ended = outcomes(root)
    failure = ended["specification: output matches the specification"]
    assert failure is not None
    assert (failure.tag, failure.attrib["type"]) == ("failure", "CandidateRaised[ValueError]")
    assert 'check_case("kernels:attend", "attend")' in (failure.text or "")
    assert ended["repeat: two runs agree"] is None
    skipped = {name: said.attrib["message"] for name, said in ended.items() if said is not None}
    assert "does not apply" in skipped["rows: rows"]
    assert "not judged" in skipped["order: order"]
    assert skipped["hca is checked"] == "not checked: it has none"
    assert root.attrib["time"] == "2.500"
    assert root[0].attrib["time"] == "1.250"


def test_a_failure_that_is_reported_under_another_check_is_not_lost(report: Report) -> None:
    """An exception that only a later check met."""
    failing = replace(report.results[0], check="growth", sentence="grows")
    assert failing.state == "not judged"
    said = outcomes(read(replace(report, results=[failing])))["growth: grows"]
    assert said is not None
    assert said.tag == "failure"


def test_what_makes_a_run_inconclusive_is_an_error(report: Report) -> None:
    """A kind of case that was not reached, and an end before the end; beside failures the first is skipped."""
    missing = {("float32", "attend"): ["empty", "holes"]}
    right = replace(report, results=report.results[1:], missing=missing)
    said = outcomes(read(right))[KINDS]
    assert said is not None
    assert said.tag == "error"
    assert said.attrib["message"].endswith("reached: empty, holes")
    beside = outcomes(read(replace(report, missing=missing)))[KINDS]
    assert beside is not None
    assert beside.tag == "skipped"
    stopped = outcomes(read(replace(right, stopped="interrupted by SIGINT")))["the run is finished"]
    assert stopped is not None
    assert (stopped.tag, stopped.attrib["message"]) == ("error", "not finished: interrupted by SIGINT")


def test_it_says_what_was_run_where(report: Report) -> None:
    """As properties of every suite; GitLab links the file of a case."""
    written = {"attend": Location(str(Path.cwd() / "kernels" / "a.py"), 3)}
    files = {case.get("file") for case in read(replace(report, functions=written)).iter("testcase")}
    assert files == {"./kernels/a.py", None}
    for suite in read(replace(report, environment={"torch": "2.9"}, seed=7)):
        properties = {one.attrib["name"]: one.attrib["value"] for one in suite.iter("property")}
        assert {"torch": "2.9", "seed": "7", "device": "cpu"}.items() <= properties.items()


def test_characters_that_xml_cannot_hold_are_left_out(report: Report) -> None:
    """And markup in texts of others stays text."""
    failing = replace(report.results[0], sentence=HOSTILE)
    root = read(replace(report, candidate=HOSTILE, environment={HOSTILE: HOSTILE}, results=[failing]))
    assert root.attrib["name"] == "csa-spec mod:<b>]]>[31m & \"'\n# no"
    assert f"specification: {root.attrib['name'].removeprefix('csa-spec ')}" in outcomes(root)


def test_a_run_that_has_just_begun_is_an_error(report: Report) -> None:
    """The file of a run that dies is none of a run that passes."""
    root = read(replace(report, results=[], stopped="the run goes on"))
    assert (root.attrib["tests"], root.attrib["errors"]) == ("2", "1")
