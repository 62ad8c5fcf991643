"""The report as JUnit XML, for Jenkins, GitLab and others that know tests by it.

A suite for each subject in each dtype, a case for each check. What is not judged, or applies to no case, is
skipped; what makes a run inconclusive is an error. Jenkins and GitLab read ``failure``, ``error`` and ``skipped``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from csa_spec.engine.results import Report, Verdict
from csa_spec.engine.running import CheckResult
from csa_spec.plug.origin import beside
from csa_spec.report import content
from csa_spec.report.text import describe

_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot hold, not even escaped"""


def to_junit(report: Report) -> str:
    """Return the report as an XML document."""
    root = Element("testsuites", name=_legal(f"csa-spec {report.candidate}"))
    root.extend(_suites(report))
    for name in ("tests", "failures", "errors", "skipped"):
        root.set(name, str(sum(int(suite.get(name, 0)) for suite in root)))
    root.set("time", f"{report.seconds:.3f}")
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, "unicode")}\n'


def _suites(report: Report) -> Iterator[Element]:
    for (subject, dtype), results in groupby(report.results, lambda result: (result.subject, result.dtype)):
        suite = _suite(report, f"{report.candidate}.{subject}.{dtype}")
        for result in results:
            _add_check(suite, result, report)
        kinds = _case(suite, "every required kind of case is tried")
        missing = ", ".join(report.missing.get((dtype, subject), []))
        if missing and report.verdict is Verdict.INCONCLUSIVE:
            _say(kinds, "error", f"inconclusive: no case of these kinds was reached: {missing}")
        elif missing:
            _say(kinds, "skipped", f"not judged: the run ended at failures, before it reached: {missing}")
        yield _counted(suite)
    run = _suite(report, f"{report.candidate}.run")
    whole = _case(run, "the run is finished")
    if report.stopped:
        _say(whole, "error", *content.unfinished(report))
    for subject, line in zip(report.declined, content.declined(report), strict=True):
        _say(_case(run, f"{subject} is checked"), "skipped", line)
    yield _counted(run)


def _suite(report: Report, name: str) -> Element:
    suite = Element("testsuite", name=_legal(name))
    about = {
        **content.versions(report),
        "profile": report.profile,
        "device": report.device,
        "seed": report.seed,
    }
    properties = SubElement(suite, "properties")
    for key, value in about.items():
        SubElement(properties, "property", name=_legal(key), value=_legal(str(value)))
    return suite


def _case(suite: Element, name: str, seconds: float = 0.0) -> Element:
    place = suite.get("name", "")
    return SubElement(suite, "testcase", classname=place, name=_legal(name), time=f"{seconds:.3f}")


def _add_check(suite: Element, result: CheckResult, report: Report) -> None:
    case = _case(suite, f"{result.check}: {result.sentence}", result.seconds)
    if result.stage in report.functions:
        case.set("file", _legal(beside(report.functions[result.stage].file)))
    if result.failures:
        texts = [describe(failure, report.candidate, result.check) for failure in result.failures]
        first = result.failures[0]
        _say(case, "failure", f"{first.title}: {first.detail}", "\n\n".join(texts), kind=first.kind)
    elif result.state == "not judged":
        _say(case, "skipped", "not judged: the candidate fails here in a way that is reported elsewhere")
    elif not result.cases:
        _say(case, "skipped", "does not apply to any case that was tried")


def _say(case: Element, what: str, message: str, text: str = "", kind: str = "") -> None:
    said = SubElement(case, what, message=_legal(" ".join(message.split())))
    said.text = _legal(text) or None
    if what != "skipped":
        said.set("type", _legal(kind) or "Inconclusive")


def _counted(suite: Element) -> Element:
    """Say in a suite how many cases it has, and how they ended."""
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    for plural, what in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(plural, str(len(suite.findall(f"testcase/{what}"))))
    suite.set("time", f"{sum(float(case.get('time', 0)) for case in cases):.3f}")
    return suite


def _legal(text: str) -> str:
    return _ILLEGAL.sub("", text)
