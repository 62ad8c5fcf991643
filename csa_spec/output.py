"""Where a command writes: the terminal, and the files of a report. Without torch until there is a report."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

from csa_spec.plug.position import HERE
from csa_spec.report.files import is_special, problem_of_file, problem_of_folder, reason_of, write_text
from csa_spec.report.github import in_github, inert
from csa_spec.supervising import Stopped

if TYPE_CHECKING:
    from csa_spec.engine.results import Report
    from csa_spec.engine.running import CheckResult

USAGE, INTERRUPTED = 2, 130
FILES = ("json", "html", "markdown")
"""Options that name files of a report by its format; ``--report`` takes the format from the suffix."""
SUFFIXES = {".json": "json", ".html": "html", ".md": "markdown", ".xml": "junit"}


class ReportFile(NamedTuple):
    """A file that a report is written to."""

    option: str
    form: str
    """Its format; empty where none has its suffix"""
    path: Path


def report_files(options: argparse.Namespace) -> list[ReportFile]:
    """Return the files of a report that a command is to write."""
    named = [(f"--{form}", form, getattr(options, form, None)) for form in FILES]
    named += [
        ("--report", SUFFIXES.get(path.suffix.lower(), ""), path) for path in getattr(options, "report", ())
    ]
    return [ReportFile(option, form, path) for option, form, path in named if path is not None]


class Console:
    """The standard streams as a command found them, whatever its candidate does to ``sys.stdout`` or fd 1.

    Nothing is written by a fork of the process that made it, nor by another thread once one has taken over.
    """

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._err = err
        self._process = os.getpid()
        self._owner = 0
        self._broken: Exception | None = None
        self._shown = inert if in_github() else str

    @classmethod
    def private(cls) -> Console:
        """Return one with file descriptors of its own."""
        return cls(*(_copy(stream) for stream in (sys.stdout, sys.stderr)))

    @property
    def is_live(self) -> bool:
        """Whether somebody looks at what :meth:`tell` writes."""
        return self._err.isatty()

    def say(self, text: str, command: bool = False) -> None:
        """Print to stdout; what goes wrong is told at the end. Only a ``command`` is one to who reads it."""
        self._require_turn()
        try:
            if self._broken is None:
                print(text if command else self._shown(text), file=self._out, flush=True)
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self._broken = error

    def tell(self, text: str, end: str = "\n") -> None:
        """Print to stderr, where that is still there."""
        self._require_turn()
        with contextlib.suppress(OSError, ValueError):
            print(self._shown(text), end=end, file=self._err, flush=True)

    def take_over(self) -> None:
        """Let no other thread write any more."""
        self._owner = threading.get_ident()

    def _require_turn(self) -> None:
        if os.getpid() != self._process:
            os._exit(0)  # the candidate forked, and forgot to end the fork
        if self._owner not in (0, threading.get_ident()):
            threading.Event().wait()  # the other thread ends the process

    def code(self, code: int) -> int:
        """Return the exit code of a command whose output may not have arrived."""
        if self._broken is None:
            return code
        if self._out is sys.stdout:  # keep the interpreter from complaining when it flushes
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(self._broken, BrokenPipeError):  # whoever read it has gone (`| head`)
            return INTERRUPTED
        self.tell(f"csa-spec: the report could not be printed: {reason_of(self._broken)}")
        return code or USAGE


def _copy(stream: TextIO) -> TextIO:
    return open(os.dup(stream.fileno()), "w", encoding=stream.encoding, errors="backslashreplace")


def problem_of_output(options: argparse.Namespace) -> str:
    """Try to write all that a command is to write; say what cannot be written."""
    for option, form, path in report_files(options):
        known = ", ".join(SUFFIXES)
        problem = (
            problem_of_file(path) if form else f"no format has the suffix of {path}; choose from {known}"
        )
        if problem:
            return f"{option}: {problem}"
    folder: Path | None = getattr(options, "bundle", None)
    problem = "" if folder is None else problem_of_folder(folder)
    return f"--bundle: {problem}" if problem else ""


class Reports:
    """The files of a run's report. From its beginning they say that it is not finished, so no old one stays."""

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self._files = report_files(options)
        self._console = console
        self._report: Report | None = None
        self._current: CheckResult | None = None
        self._told: list[int] = []
        self._start = time.perf_counter()

    def begin(self, report: Report) -> None:
        """Take the report that grows while the run goes on."""
        self._report = report
        self.write(report, final=False)

    def progress(self, result: CheckResult) -> None:
        """Keep the JSON up to date: what was found survives whatever becomes of this process."""
        self._current = result
        if not any(file.form == "json" for file in self._files):
            return
        report = self.so_far()
        found = [id(failure) for result in report.results for failure in result.failures]
        if found != self._told:
            self._told = found
            self.write(report, "json", final=False)

    def so_far(self, stopped: Stopped | None = None) -> Report:
        """Return what was found so far; a call that made the run stop is a failure."""
        report, current = self._report, self._current
        assert report is not None
        results = list(report.results)
        if current is not None and not any(result is current for result in results):
            results.append(current)
        report = replace(report, results=results, seconds=time.perf_counter() - self._start)
        if stopped is None:
            return report
        return replace(report, results=_with_hung(results, stopped), stopped=str(stopped))

    @property
    def begun(self) -> bool:
        """Whether there is something to report."""
        return self._report is not None

    def write(self, report: Report, form: str = "", final: bool = True) -> None:
        """Write these files; one that cannot be written is a line, and the others are written all the same.

        Parameters
        ----------
        report
            What they say.
        form
            Their format; all of them, where none is given.
        final
            Whether nothing follows.
        """
        for file in self._files:
            if form not in ("", file.form) or (
                not final and is_special(file.path)
            ):  # a pipe takes one report
                continue
            try:
                write_text(file.path, _text(report, file.form))
            except Exception as error:
                reason = reason_of(error)
                self._console.tell(f"csa-spec: {file.option}: {file.path} could not be written: {reason}")


def note_death(options: argparse.Namespace, sentence: str) -> None:
    """Say in the JSON reports of a run why they are not finished, where that run could not."""
    for path in [file.path for file in report_files(options) if file.form == "json"]:
        with contextlib.suppress(OSError, ValueError):
            data = json.loads(path.read_bytes()) if path.is_file() else {}
            if data.get("finished") is False:
                write_text(path, json.dumps({**data, "stopped": sentence}, indent=1) + "\n")


def _with_hung(results: list[CheckResult], stopped: Stopped) -> list[CheckResult]:
    """Add the call that hangs, if one does, to what its check has found."""
    from csa_spec.engine.failures import CandidateHung
    from csa_spec.engine.running import CheckResult
    from csa_spec.stages import stage_of

    case = HERE.case
    if not stopped.hung or not case:
        return results
    stage, failure = stage_of(case), CandidateHung(case, message=stopped.hung, context=stopped.frames)
    new = CheckResult(
        HERE.check, stage.check(HERE.check).sentence, stage.name, case.variant, HERE.subject, case.dtype
    )
    *before, last = results or [new]
    if (last.check, last.subject, last.dtype) != (new.check, new.subject, new.dtype):
        before, last = results, new
    whole = replace(last, cases=last.cases + 1, failing=last.failing + 1, failures=[*last.failures, failure])
    return [*before, whole]


def _text(report: Report, form: str) -> str:
    """Return a report in a format; what writes it is imported only for it."""
    if form == "json":
        from csa_spec.report.json import as_text as to_text
    elif form == "html":
        from csa_spec.report.html import to_html as to_text
    elif form == "junit":
        from csa_spec.report.junit import to_junit as to_text
    else:
        from csa_spec.report.markdown import to_markdown as to_text
    return to_text(report)
