"""The suite against candidates with one known fault each: it names the fault, and lives to tell.

``python tests/test_faults.py --write`` runs them all and writes ``docs/faults.md``, in a minute or two.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import io
import json
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import faults
import pytest
from faults import FAULTS

from csa_spec import cli, resolving, supervising
from csa_spec.plug.worker import WorkerCaller
from csa_spec.plug.worker_pool import WorkerPool
from csa_spec.stages.attend.case import AttendCase

DOCUMENT = Path(__file__).parents[1] / "docs" / "faults.md"
AT_IMPORT = {
    name: f"importing import_faults.{name} {how}"
    for name, how in {
        "refuses": "failed: RuntimeError: no GPU found",
        "exits": "failed: SystemExit: 0",
        "interrupts": "failed: KeyboardInterrupt",
        "ends": "ended the run (exited with status 0); nothing was decided",
        "aborts": "ended the run (ended by SIGABRT); nothing was decided",
    }.items()
}
"""Modules that cannot be imported, and what is said of them"""
SMALLEST = {
    "segfaults": AttendCase(keys=5),
    "breaks_device": AttendCase(keys=40),
    "hangs": AttendCase(picks=65),
    "killed": AttendCase(picks=65),
}
"""Crashes whose cases are made small"""
SLOW = ("hangs", "hangs_in_spite", "hangs_in_c", "stops")


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str
    report: dict[str, Any]
    """The JSON report, where there is one"""
    bundles: int

    def failure(self, check: str, kind: str) -> dict[str, Any] | None:
        """Return a failure of the report."""
        failures = (
            failure
            for result in self.report.get("results", ())
            for failure in result["failures"]
            if (result["check"], failure["kind"]) == (check, kind)
        )
        return next(failures, None)

    @property
    def kinds(self) -> set[tuple[str, str]]:
        """The failures of the report, by check and kind."""
        results = self.report.get("results", ())
        return {(result["check"], failure["kind"]) for result in results for failure in result["failures"]}

    @property
    def last_line(self) -> str:
        """The last line on stderr, without what changes from machine to machine."""
        lines = [line for line in self.err.splitlines() if line and not line.startswith("  ")]
        line = (lines or [""])[-1].removeprefix("csa-spec: ")
        line = re.sub(r'case "[^"]*"', 'case "..."', line)
        return re.sub(r"(, in| <) [\w<>.]+ \([\w.]+:\d+\)|, at \S+:\d+ in \S+", "", line)


@cache
def outcome(name: str, isolate: bool) -> Outcome:
    """Check a candidate of ``faults``, or another by its full name, as the command does."""
    limit = ["--time-limit", "1"] if name in SLOW else []
    candidate = name if ":" in name else f"faults:{name}"
    options = ["--stage", "attend", "--profile", "smoke", *limit, *["--isolate"] * isolate]
    # What a worker does cannot harm this process; what importing does can.
    return _run(isolate and ":" not in name, name in SMALLEST, "check", candidate, *options)


@contextlib.contextmanager
def quick(shrinks: bool) -> Iterator[None]:
    """Leave out what takes most of the time and is no matter here: small cases and names of known bugs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("csa_spec.target.diagnose", lambda *_, **__: None)
        if not shrinks:
            patch.setattr("csa_spec.engine.running.shrink", lambda failure, *_, **__: failure)
        yield


def _run(here: bool, shrinks: bool, *arguments: str) -> Outcome:
    """Run a command in this process, which has imported torch and knows the answers, or in a fork of it."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("out", "err", "report.json")]
        written = ["--json", str(files[2]), "--bundle", str(Path(folder, "bundles"))]
        options = cli.make_parser().parse_args([*arguments, *written])
        code = (_in_this_process if here else _in_a_fork)(options, files, shrinks)
        out, err, report = (path.read_text(errors="replace") if path.exists() else "" for path in files)
        bundles = len([*Path(folder).glob("bundles/*/README.md")])
    return Outcome(code, out, err, json.loads(report or "{}"), bundles)


def _in_this_process(options: Any, files: list[Path], shrinks: bool) -> int:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _shared_pool(), quick(shrinks):
        code = cli.start(options, supervised=False)
    files[0].write_text(out.getvalue())
    files[1].write_text(err.getvalue())
    return code


def _in_a_fork(options: Any, files: list[Path], shrinks: bool) -> int:
    """Run a command in a fork of a process that has imported torch, and nothing else that other tests import.

    JAX, say, has threads, and a fork of a process with threads may hang.
    """
    process: Any = FORKS.Process(target=_command, args=(options, files, shrinks))
    process.start()
    process.join()
    code: int = process.exitcode
    end = time.monotonic() + 60
    while code < 0 and "csa-spec: " not in files[1].read_text() and time.monotonic() < end:
        time.sleep(0.05)  # its own fork has yet to say that
    return code if code >= 0 else 128 - code


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["test_faults", "csa_spec.checking", "csa_spec.bugs", "csa_spec.report.text"])


def _command(options: Any, files: list[Path], shrinks: bool) -> None:
    for number, path in enumerate(files[:2], 1):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), number)
    sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    supervising.GRACE = 1.0
    code = 3
    try:
        with quick(shrinks):
            code = cli.start(options, supervised=True)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stderr.flush()
        os._exit(code)


class Sharing(WorkerCaller):
    """Leaves the pool, which takes seconds to start, to the next candidate."""

    pool: WorkerPool | None = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._pool = Sharing.pool

    def close(self) -> None:
        """End the worker alone."""
        if self._pool is not None and self._works:
            self._pool.end_worker()
        self._works, Sharing.pool = False, self._pool


@contextlib.contextmanager
def _shared_pool() -> Iterator[None]:
    before, resolving.WorkerCaller = resolving.WorkerCaller, Sharing  # type: ignore[attr-defined, misc]
    try:
        yield
    finally:
        resolving.WorkerCaller = before  # type: ignore[attr-defined, misc]


@pytest.fixture(scope="module", autouse=True)
def _close_pool() -> Iterator[None]:
    yield
    if Sharing.pool is not None:
        Sharing.pool.close()
        Sharing.pool = None


@cache
def rows() -> dict[str, str]:
    """Run everything; return the rows of the table by candidate."""
    outcome("right", False), outcome("right", True)  # the answers of the specification are kept
    names = [*FAULTS, *(f"import_faults.{module}:attend" for module in AT_IMPORT)]
    return {name: row(name) for name in names}


def row(name: str) -> str:
    """Run a candidate in process and isolated; return its row."""
    cells = (_cell(name, isolate) for isolate in (False, True))
    return f"| {_sentence(name)} | `{name}` | {' | '.join(cells)} |"


def _sentence(name: str) -> str:
    if name in FAULTS:
        text = FAULTS[name].attend.__doc__
    else:
        source = DOCUMENT.parents[1] / "tests" / f"{name.partition(':')[0].replace('.', '/')}.py"
        text = f"When it is imported: {ast.get_docstring(ast.parse(source.read_text()))}"
    return (text or "").removesuffix(".")


def _cell(name: str, isolate: bool) -> str:
    """Return the exit code, and the failure that is named, or the last line on stderr."""
    done, fault = outcome(name, isolate), FAULTS.get(name)
    failure = fault and done.failure(fault.check, fault.kind)
    if not fault or not failure:
        return f"{done.code}: {done.last_line}"
    _, _, what = fault.kind.rstrip("]").partition("[")
    end = "" if done.report["finished"] else "; the run ends there"
    return f"{done.code}: {fault.check}: {failure['title']}{f': {what}' if what else ''}{end}"


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_by_the_check_that_names_it(name: str, isolate: bool) -> None:
    """Or the run ends with a sentence: never with a traceback, with success or with an error of ours.

    Every failure that is reported has a bundle.
    """
    fault, done = FAULTS[name], outcome(name, isolate)
    assert "Traceback" not in done.err, done.err
    if done.code == 1 and done.out:
        assert done.bundles == sum(len(result["failures"]) for result in done.report["results"]) > 0
        assert not re.search("Warning|could not be written", done.err), done.err
    if fault.ends and not isolate:
        assert done.code == fault.code
        assert done.report["finished"] is (fault.code == 2)
        assert fault.ends in done.err
        assert ' of attend, case "attend ' in done.err or fault.code > 2
        return
    assert done.failure(fault.check, fault.kind), done
    assert (done.code, done.report["finished"]) == (1, True)
    assert f"faults:{name}: NOT CONFORMANT for attend\n" in done.out


@pytest.mark.parametrize("module", AT_IMPORT)
def test_a_candidate_that_cannot_be_imported_is_refused(module: str) -> None:
    """Exit 2, in one sentence."""
    done = outcome(f"import_faults.{module}:attend", False)
    assert (done.code, done.last_line) == (2, AT_IMPORT[module])
    assert "Traceback" not in done.err


def test_the_page_about_faults_is_what_the_command_writes() -> None:
    """``python tests/test_faults.py --write``; what was run above is not run again."""
    page = DOCUMENT.read_text(encoding="utf-8").splitlines()
    assert page == document().splitlines()


def test_there_are_at_least_seventy_faults() -> None:
    """Each a function of its own, which a command line can name."""
    assert len(FAULTS) + len(AT_IMPORT) >= 70
    assert all(getattr(faults, name) is fault.attend for name, fault in FAULTS.items())


def test_the_only_fault_is_the_one_that_is_named() -> None:
    """What has a side effect alone fails no other check: the answers are right."""
    for name, fault in FAULTS.items():
        if fault.check in ("inputs", "state"):
            # Torch refuses to write to expanded tensors, and records a graph for inputs that require grad.
            refused = {("specification", "CandidateRaised[RuntimeError]"), ("memory", "HoldsGraph")}
            assert outcome(name, False).kinds - refused == {(fault.check, fault.kind)}, name


@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_case_of_a_crash_is_true(name: str) -> None:
    """It dies on that case in a new process, and on none that is smaller."""
    fault = FAULTS[name]
    failure = outcome(name, True).failure(fault.check, fault.kind)
    assert failure is not None
    assert failure["case_line"] == str(SMALLEST[name])


@pytest.mark.parametrize(
    ("name", "isolate", "words"),
    [
        ("segfaults", False, r"\(ended by SIGSEGV, in string_at \(.*\) < segfaults \(faults.py:\d+\)\) in "),
        ("segfaults", True, r"ended by SIGSEGV, in string_at .* < segfaults \(faults.py:\d+\)"),
        ("hangs", False, r"no answer within 1 s, in _for_ever \(faults.py:\d+\) < attend \(faults.py:\d+\)"),
        ("hangs", True, r"no answer within 1 s, in _for_ever \(faults.py:\d+\)"),
        ("hangs_in_c", False, r"no answer within 1 s, and it cannot be interrupted, in .*\(faults.py:\d+\)"),
        ("exits", False, r"exited with status 3, in .*\(faults.py:\d+\)"),
        ("exits", True, r"exited with status 3, in .*\(faults.py:\d+\)"),
    ],
)
def test_the_place_of_a_crash_is_named(name: str, isolate: bool, words: str) -> None:
    """The signal and the line; where it hangs, too."""
    done, fault = outcome(name, isolate), FAULTS[name]
    failure = done.failure(fault.check, fault.kind)
    assert re.search(words, done.err if failure is None else failure["detail"])


def test_a_call_that_hangs_is_in_the_report() -> None:
    """Though the run ends there: with its case, and the calls that it is in."""
    failure = outcome("hangs", False).failure("specification", "CandidateHung")
    assert failure is not None
    assert failure["case_line"].startswith("attend ")
    assert failure["context"][0].endswith("in _for_ever")


def test_what_was_found_before_a_crash_is_reported() -> None:
    """A candidate with two faults, of which one kills."""
    kinds = {kind for check, kind in outcome("zeros_then_killed", True).kinds if check == "specification"}
    assert kinds == {"ReturnsZeros", "CandidateDied"}
    report = outcome("zeros_then_killed", False).report
    assert (report["finished"], report["stopped"][:39]) == (False, "a call of the candidate ended the run (")


@pytest.mark.parametrize("name", ["right", "noisy", "leaves_fork", "ends_at_exit"])
@pytest.mark.parametrize("isolate", [False, True])
def test_what_is_no_fault_of_the_answers_is_survived(name: str, isolate: bool) -> None:
    """The same cases and the same largest error, in one report that is finished."""
    done, right = outcome(name, isolate), outcome("right", False)
    assert done.code == 0, done.err
    assert done.out.count(f"faults:{name}: CONFORMANT for attend") == 1

    def counts(report: dict[str, Any]) -> list[Any]:
        names = ("check", "cases", "queries", "worst_error_over_budget", "reached")
        return [[result[name] for name in names] for result in report["results"]]

    assert counts(done.report) == counts(right.report)


INTRODUCTION = """# Faults and bad inputs

What `csa-spec check` says about candidates with one fault each, and what commands say about inputs that mean nothing:
the exit code and the sentence. `python tests/test_faults.py --write` runs them all and writes this page, and
`tests/test_faults.py` tests it.

## Candidates

Each of these candidates for `attend` (`tests/faults.py`) is right but for one fault. With exit code 1 it is not
conformant, and the check that fails and the failure follow; with 2 it cannot be used, or nothing was decided.

| fault | candidate | in process | with `--isolate` |
| --- | --- | --- | --- |
"""
WHAT_IS_LEFT = """
### What ends a run in process

A command runs in a fork of the process that was started, whose exit code counts only once it says that it is finished.
Where it dies, the sentence names the call, and `--json` has what was found before, with `"finished": false`. With
`--isolate` the candidate has a process of its own, and every end of that is a failure like any other.

`csa_spec.check()` and the pytest plugin have no such process. There, too, an exception of any kind and `os._exit` are
failures, and a fork that returns from a call ends; but a signal, an exit in C or in a thread, and a call that hangs end
or stop the whole Python process, as they would in any other test: use `isolate=True` or `--csa-isolate` for these.
Where Python has no `os.fork` (Windows), the same holds for the command.
"""


def document() -> str:
    """Return ``docs/faults.md``."""
    return (
        "\n".join([INTRODUCTION + "\n".join(rows().values()), WHAT_IS_LEFT, *_bad_inputs()]).rstrip() + "\n"
    )


def _bad_inputs() -> list[str]:
    """Return the part about inputs, whose rows are made elsewhere."""
    if importlib.util.find_spec("bad_inputs") is None:
        return []
    inputs = importlib.import_module("bad_inputs")
    table = [f"| {_code(shown)} | {code}: {_plain(sentence)} |" for shown, code, sentence in inputs.rows()]
    return ["## Inputs", "", "| input | exit code and sentence |", "| --- | --- |", *table]


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _code(text: str) -> str:
    return _plain(ascii(text)[1:-1])


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_faults.py --write")
    DOCUMENT.write_text(document(), encoding="utf-8")
    if Sharing.pool is not None:
        Sharing.pool.close()
