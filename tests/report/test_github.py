"""In a workflow of GitHub: annotations, the summary of a step, and nothing else that the runner would obey."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from test_cli import TINY_PROFILE, run

from csa_spec.engine.failures import CandidateRaised
from csa_spec.engine.results import Report
from csa_spec.plug.origin import Location
from csa_spec.profiles import PROFILES
from csa_spec.report import github
from csa_spec.report.github import annotations, append_summary, command, inert
from csa_spec.stages import parse_case
from report import examples

HOSTILE = "first\n::set-output name=x::y\r\n  ::add-mask::z ##[set-env name=PATH]p,%0A::warning::w"
KERNEL = f"""
def attend(q, kv, indices, sinks, scale):
    raise RuntimeError({HOSTILE!r})
"""


def obeyed(output: str) -> list[str]:
    """Return the lines that the runner takes for commands, as its ActionCommand reads them."""
    return [
        line
        for line in re.split("\r\n|\r|\n", output)
        if line.lstrip().startswith("::") or "##[" in line.partition("::error")[0]
    ]


def parsed(line: str) -> tuple[dict[str, str], str]:
    """Return properties and message of an annotation."""
    found = re.fullmatch(r"::error ([^:\r\n]*)::([^\r\n]*)", line)
    assert found is not None, line
    pairs = (pair.split("=", 1) for pair in found[1].split(","))
    return {key: unquote(value) for key, value in pairs}, unquote(found[2])


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a step, which is the working folder; with a kernel that says hostile things."""
    work = tmp_path / "work"
    (work / "kernels").mkdir(parents=True)
    (work / "kernels" / "hostile_kernel.py").write_text(KERNEL)
    (tmp_path / "summary.md").touch()
    monkeypatch.setitem(PROFILES, "tiny", TINY_PROFILE)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(work))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend(work / "kernels")
    return work


@pytest.fixture
def report(workspace: Path) -> Report:
    """Return a report of one failure."""
    raised = CandidateRaised(ValueError(HOSTILE), parse_case("attend"))
    made = examples.report_of("kernels:attend", [raised])
    return replace(made, functions={"attend": Location(str(workspace / "kernels" / "a,b:c%.py"), 7)})


def test_a_command_is_escaped_as_documented() -> None:
    """Each character, and the percent sign first."""
    line = command("error", "100%\r\na:b,c", {"file": "a:b,c%\n", "title": "t"})
    assert line == "::error file=a%3Ab%2Cc%25%0A,title=t::100%25%0D%0Aa:b,c"


def test_each_failure_is_annotated_at_the_function(report: Report) -> None:
    """Relative to the workspace; what it says can be read again."""
    [line] = annotations(report)
    properties, message = parsed(line)
    assert (properties["file"], properties["line"]) == ("kernels/a,b:c%.py", "7")
    assert properties["title"] == "kernels:attend, attend, float32: the candidate raised an exception"
    assert "::set-output name=x::y" in message
    assert message.endswith('check_case("kernels:attend", "attend")')


@pytest.mark.parametrize("where", ["outside", "unknown", "no workspace"])
def test_a_function_outside_of_the_workspace_has_no_file(
    report: Report, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GitHub could not show it."""
    if where == "no workspace":
        monkeypatch.delenv("GITHUB_WORKSPACE")
    places = {} if where == "unknown" else report.functions
    if where == "outside":
        places = {"attend": Location("/elsewhere/a.py", 1)}
    [line] = annotations(replace(report, functions=places))
    assert parsed(line)[0].keys() == {"title"}


def test_a_run_that_decides_nothing_is_annotated(report: Report) -> None:
    """A step that fails says why."""
    [line] = annotations(replace(report, results=[], stopped="interrupted by SIGTERM"))
    properties, message = parsed(line)
    assert properties == {"title": "kernels:attend: inconclusive"}
    assert message == "not finished: interrupted by SIGTERM"


@pytest.mark.parametrize(
    "text", [HOSTILE, "\x0b::a::b", "\u2028::a::b", " ##[a]b", ":::error::c", "a\r::x::"]
)
def test_no_text_is_obeyed(text: str) -> None:
    """However it begins a line; other texts stay as they are."""
    assert obeyed(inert(text)) == []
    assert inert("a :: b, csa::c\n# [d]") == "a :: b, csa::c\n# [d]"


def test_check_annotates_summarises_and_obeys_nobody(workspace: Path) -> None:
    """The only commands in its output are the annotations, whatever the candidate says."""
    outcome = run("check", "hostile_kernel:attend", "--profile", "tiny")
    assert outcome.code == 1
    assert "set-output" in outcome.out
    commands = obeyed(outcome.out) + obeyed(outcome.err)
    assert len(commands) == 1
    properties, _ = parsed(commands[0])
    assert (properties["file"], properties["line"]) == ("kernels/hostile_kernel.py", "2")
    summary = (workspace.parent / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith("**NOT CONFORMANT** for attend: `hostile_kernel:attend`")
    run("check", "hostile_kernel:attend", "--profile", "tiny")
    assert (workspace.parent / "summary.md").read_text(encoding="utf-8").count("**NOT CONFORMANT**") == 2


def test_a_summary_that_cannot_be_written_is_a_line(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And changes no exit code."""
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(workspace))
    outcome = run("check", "hostile_kernel:attend", "--profile", "tiny")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1] == (
        f"csa-spec: GITHUB_STEP_SUMMARY: {workspace} could not be written: is a directory"
    )


def test_a_summary_stays_within_what_github_takes(workspace: Path) -> None:
    """What is there already stays: of a file that is too long GitHub shows nothing."""
    path = workspace.parent / "summary.md"
    path.write_bytes(b"x" * (github.SUMMARY_BYTES - 10))
    assert append_summary("12345678") == ""
    assert (
        append_summary("")
        == f"GITHUB_STEP_SUMMARY: {path} could not be written: GitHub takes 1 MiB of a step, and that is full"
    )
    assert path.stat().st_size == github.SUMMARY_BYTES


def test_elsewhere_nothing_is_said_to_github(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No annotation and no summary, and texts as they are."""
    monkeypatch.setenv("GITHUB_ACTIONS", "false")
    outcome = run("check", "hostile_kernel:attend", "--profile", "tiny")
    assert "::error" not in outcome.out
    assert "\u200b" not in outcome.out
    assert (workspace.parent / "summary.md").read_text() == ""
