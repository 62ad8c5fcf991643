"""The command ``csa-spec``.

Exit codes of ``check``: 0 conformant; 1 not conformant; 2 the command or the candidate cannot be used as
given, or the run is inconclusive; 3 internal error. ``--help`` of each command has its own.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import csa_spec
from csa_spec.output import INTERRUPTED, USAGE, Console, Reports, note_death, problem_of_output
from csa_spec.report.files import reason_of, write_text
from csa_spec.report.github import annotate, append_summary, in_github
from csa_spec.supervising import (
    CALL_LIMIT,
    Stopped,
    Supervised,
    Unsupervised,
    can_supervise,
    interrupted,
    supervise,
)

if TYPE_CHECKING:
    from csa_spec.engine.failures import Failure
    from csa_spec.engine.results import Report
    from csa_spec.engine.running import CheckResult
    from csa_spec.report.text import Failures

INTERNAL = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code.

    Without arguments they are those of the process, and the command runs under supervision.
    """
    options = make_parser().parse_args(arguments)
    _search_here(options)
    return start(options, supervised=arguments is None and can_supervise())


def start(options: argparse.Namespace, supervised: bool) -> int:
    """Run a command whose output can be written, in a fork where it is ``supervised``; return its exit code."""
    problem = problem_of_output(options) if sys.stdout else "stdout is closed; open it, or send it to a file"
    if problem:
        print(f"csa-spec: {problem}", file=sys.stderr)
        return USAGE
    if not supervised:
        return _run(options, Console(sys.stdout, sys.stderr), Unsupervised())
    limit = getattr(options, "time_limit", None) or CALL_LIMIT
    return supervise(
        lambda child: _run(options, Console.private(), child), limit, partial(note_death, options)
    )


def _run(options: argparse.Namespace, console: Console, supervised: Supervised) -> int:
    """Run a command; return its exit code."""
    supervised.on_stop = lambda stopped: console.tell(f"csa-spec: {stopped}; nothing was decided")
    try:
        code: int = options.run(options, console, supervised)
    except KeyboardInterrupt:
        supervised.on_stop(interrupted())
        return INTERRUPTED
    except Exception as error:
        from csa_spec.engine.case import CaseError
        from csa_spec.plug.candidate import CandidateError
        from csa_spec.plug.plain import plain
        from csa_spec.resolving import UsageError
        from csa_spec.vectors.files import VectorsError

        if isinstance(error, (CandidateError, CaseError, UsageError, VectorsError)):
            console.tell(f"csa-spec: {plain(error, 2000)}")
            return USAGE
        console.tell(traceback.format_exc(), end="")
        console.tell("csa-spec: internal error, not the candidate's fault; please report it")
        return INTERNAL
    return console.code(code)


def _search_here(options: argparse.Namespace) -> None:
    """Import from the folder of the command, where a candidate given as module:object usually lies.

    Not where bundles are tried again and the user names no module: that folder may be somebody else's, with
    modules and entry points of theirs.
    """
    try:
        here = os.getcwd()
    except OSError:  # somebody removed it
        return
    if options.run is _replay and not options.trust and ":" not in (options.candidate or ""):
        sys.path[:] = [folder for folder in sys.path if folder not in ("", here)]
    elif here not in sys.path:
        sys.path.insert(0, here)


class _Parser(argparse.ArgumentParser):
    """A parser whose help lists what the registries hold: ``{stages}``, ``{dtypes}`` and so on."""

    def format_help(self) -> str:
        """Fill the lists in only where they are shown: to know them costs an import of torch."""
        if self.unfilled():
            from csa_spec.resolving import choices

            self.fill(choices())
        return super().format_help()

    def unfilled(self) -> list[argparse.Action]:
        """Return the options whose help lists something."""
        return [action for action in self._actions if action.help and "{" in action.help]

    def fill(self, lists: Mapping[str, str]) -> None:
        """Fill the lists in."""
        for action in self.unfilled():
            action.help = str(action.help).format_map(lists)


def _whole(text: str) -> int:
    if text.lstrip("+-").isdecimal() and len(text) > 18:
        raise argparse.ArgumentTypeError(f"a number of {len(text):,} digits; at most 18 can be read")
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text[:40]!r}") from None


_CANDIDATE = "one of {candidates}; the name of an entry point; or package.module:object"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="csa-spec",
        description="Compare implementations of DeepSeek-V4's attention with an executable specification.",
    )
    parser.add_argument("--version", action="version", version=f"csa-spec {csa_spec.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    check = commands.add_parser(
        "check",
        help="check an implementation",
        description="Check an implementation. Exit codes: 0 conformant; 1 not conformant; 2 the command or "
        "the candidate cannot be used as given, or the run is inconclusive; 3 internal error.",
    )
    check.add_argument("candidate", metavar="CANDIDATE", help=_CANDIDATE)
    check.add_argument(
        "--stage",
        default="all",
        metavar="NAME",
        help="{stages}, or all that the candidate offers (default). A bare function is the stage given "
        "here, else the stage that it is named after, else a layer",
    )
    check.add_argument("--layer", default="all", metavar="KIND", help="{layers} or all (default)")
    check.add_argument(
        "--profile",
        default="default",
        metavar="NAME",
        help="{profiles}: how many cases are tried (default: default)",
    )
    check.add_argument(
        "--dtype",
        default="float32",
        metavar="NAME[,NAME]",
        help="{dtypes}: one or several (default: float32)",
    )
    check.add_argument("--device", default="cpu", metavar="NAME", help="{devices} (default: cpu)")
    check.add_argument(
        "--seed", default=0, type=_whole, metavar="N", help="seed of the drawn cases (default 0)"
    )
    check.add_argument(
        "--known", type=Path, metavar="FILE", help="a TOML file of the candidate's known issues"
    )
    check.add_argument("--isolate", action="store_true", help="run the candidate in a process of its own")
    check.add_argument(
        "--time-limit",
        type=_seconds,
        metavar="S",
        help="seconds for one call: with --isolate (default 30) one that takes longer is a failure like any "
        f"other, without (default {CALL_LIMIT:g}) the run ends there",
    )
    check.add_argument(
        "--patience",
        type=_seconds,
        metavar="S",
        help="seconds for making failures small and naming them, beside half of what the cases of the run "
        "take (default: 60, thorough: inf)",
    )
    check.add_argument("-x", "--fail-fast", action="store_true", help="stop after the first failure")
    check.add_argument(
        "--jobs",
        default=1,
        type=int,
        metavar="N",
        help="processes that check subjects side by side (default 1)",
    )
    _add_report_files(check)
    check.add_argument(
        "--bundle", type=Path, metavar="DIR", help="write a bundle for each failure into this folder"
    )
    check.set_defaults(run=_check)

    again = commands.add_parser(
        "replay",
        help="run the failing cases of bundles again",
        description="Run the failing cases of bundles again. Exit codes: 0 all are fixed; 1 at least one "
        "still fails, or fails in another way; 2 at least one could not be run.",
    )
    again.add_argument(
        "bundles", nargs="+", type=Path, metavar="BUNDLE", help="a bundle, or a folder of bundles"
    )
    again.add_argument(
        "--candidate", metavar="OTHER", help="run this candidate in place of that of each bundle"
    )
    again.add_argument(
        "--trust",
        action="store_true",
        help="import whatever module a bundle names; without it only candidates that ship or are installed",
    )
    again.set_defaults(run=_replay)

    case = commands.add_parser(
        "case",
        help="run one case",
        description="Run one case, written as a failure report prints it. Exit codes: 0 it passes; 1 it "
        "fails; 2 the case or the candidate cannot be used as given.",
    )
    case.add_argument("candidate", metavar="CANDIDATE", help=_CANDIDATE)
    case.add_argument("case", metavar="CASE", help="the case, one line in quotes")
    case.add_argument(
        "--check",
        default="specification",
        metavar="NAME",
        help="one of the checks of the case's stage (default: specification). Of all stages: {checks}",
    )
    case.set_defaults(run=_case)

    comparison = commands.add_parser(
        "compare",
        help="compare the JSON reports of two runs, say of a pull request and of what it is based on",
        description="Compare the JSON reports of two runs: new failures, changed and fixed ones, checks that "
        "only one of them has, subjects that are slower. Exit codes: 0 nothing fails that did not fail in "
        "this way before; 1 something does; 2 a file cannot be used.",
    )
    comparison.add_argument("base", type=Path, metavar="BASE", help="the report to start from")
    comparison.add_argument("head", type=Path, metavar="HEAD", help="the report after the change")
    comparison.add_argument("--markdown", type=Path, metavar="FILE", help="write it as Markdown too")
    comparison.set_defaults(run=_compare)

    selftest = commands.add_parser(
        "selftest",
        help="test the suite itself: it must find every known bug, and right candidates must pass",
        description="Run every known bug as a candidate, and right candidates on the same cases. Exit "
        "codes: 0 every bug is found, but for those marked as equivalent, and right candidates pass; 1 "
        "otherwise; 2 the command cannot be used as given.",
    )
    selftest.add_argument(
        "--profile",
        default="default",
        metavar="NAME",
        help="{profiles}: how many cases are tried (default: default)",
    )
    selftest.add_argument(
        "--seeds", default="0", metavar="N,N,...", help="seeds of the drawn cases (default 0)"
    )
    selftest.add_argument(
        "--jobs",
        default=os.cpu_count() or 1,
        type=_whole,
        metavar="N",
        help="processes (default: one per core)",
    )
    selftest.add_argument(
        "--bug",
        action="append",
        default=[],
        metavar="NAME",
        help="run only this bug; may be given several times",
    )
    selftest.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown too")
    selftest.set_defaults(run=_selftest)

    vectors = commands.add_parser(
        "vectors",
        help="write test vectors, or compare the specification with recorded figures",
        description="With --write: write inputs and right answers into a folder, for an implementation in any "
        "language; `csa-spec judge` judges its answers. Without: compare the specification, or an attention "
        "core, with recorded figures. Exit codes: 0 written, or every case agrees; 1 at least one does not; 2 "
        "the folder or the candidate cannot be used.",
    )
    vectors.add_argument(
        "folder",
        metavar="DIR",
        type=Path,
        help="folder with index.json and safetensors files, or one to write",
    )
    vectors.add_argument("--write", action="store_true", help="write vectors into the folder")
    vectors.add_argument(
        "--stage", default="all", metavar="NAME[,NAME]", help="of {stages}, those to write (default: all)"
    )
    vectors.add_argument(
        "--layer", default="all", metavar="KIND", help="{layers} or all (default), for stages that have some"
    )
    vectors.add_argument(
        "--dtype",
        default="float32",
        metavar="NAME[,NAME]",
        help="{dtypes}: one or several (default: float32)",
    )
    which = vectors.add_mutually_exclusive_group()
    which.add_argument(
        "--catalogue",
        action="store_true",
        help="write the cases that tell the known bugs of each stage apart (the default)",
    )
    which.add_argument("--cases", type=_whole, metavar="N", help="write N drawn cases of each instead")
    vectors.add_argument(
        "--seed", default=0, type=_whole, metavar="N", help="seed of the drawn cases (default 0)"
    )
    vectors.add_argument(
        "--attend",
        metavar="CANDIDATE",
        help="compare this candidate's attend with recorded figures in place of the specification",
    )
    vectors.set_defaults(run=_vectors)

    judge = commands.add_parser(
        "judge",
        help="judge the answers of another program to test vectors",
        description="Judge the answers of another program to test vectors that `csa-spec vectors` wrote. "
        "Exit codes: 0 all are right; 1 at least one is wrong; 2 the files cannot be used, or an answer is "
        "missing.",
    )
    judge.add_argument("folder", metavar="DIR", type=Path, help="the folder of vectors")
    judge.add_argument(
        "answers",
        metavar="ANSWERS",
        type=Path,
        help="a safetensors file with a tensor for each case, by its name, or a folder of such files",
    )
    judge.add_argument("--name", default="", metavar="NAME", help="what the report calls the program")
    _add_report_files(judge)
    judge.set_defaults(run=_judge)
    return parser


def _add_report_files(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--report",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="write the report too, in the format of the suffix: .json, .html, .md (for a pull request) or "
        ".xml (JUnit); may be given several times",
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="the same as JSON, whatever the suffix")
    command.add_argument("--html", type=Path, metavar="FILE", help="as an HTML page with pictures")
    command.add_argument("--markdown", type=Path, metavar="FILE", help="as Markdown")


def _seconds(text: str) -> float:
    seconds = float(text)
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"it must be more than 0 seconds, not {text}")
    return seconds


def _check(options: argparse.Namespace, console: Console, supervised: Supervised) -> int:
    from csa_spec.bundle import problem_of_others
    from csa_spec.checking import check
    from csa_spec.report.text import Failures
    from csa_spec.resolving import UsageError

    if options.bundle and (problem := problem_of_others(options.bundle, options.candidate)):
        raise UsageError(f"--bundle: {problem}")
    line, reports, texts = ProgressLine(console), Reports(options, console), Failures()

    def progress(result: CheckResult) -> None:
        line.show(result)
        reports.progress(result)

    def tell(failure: Failure, result: CheckResult) -> None:
        line.clear()
        text = texts.explain(failure, result, reports.so_far())
        if text:
            console.say(text + "\n")

    def stop(stopped: Stopped) -> None:
        console.take_over()
        line.clear()
        if reports.begun:
            _tell(reports.so_far(stopped), texts, reports, options, console)
        outcome = "the report is not finished" if reports.begun else "nothing was decided"
        console.tell(f"csa-spec: {stopped}" + ("" if stopped.hung else f"; {outcome}"))

    supervised.on_stop = stop
    try:
        report = check(
            options.candidate,
            stage=options.stage,
            layer=options.layer,
            profile=options.profile,
            dtype=options.dtype,
            device=options.device,
            seed=options.seed,
            isolate=options.isolate,
            time_limit=options.time_limit,
            known=options.known,
            progress=progress,
            begun=reports.begin,
            found=tell,
            fail_fast=options.fail_fast,
            patience=options.patience,
            jobs=options.jobs,
        )
    finally:
        line.clear()
    supervised.finish()
    _tell(report, texts, reports, options, console)
    return report.verdict.value


def _tell(
    report: Report, texts: Failures, reports: Reports, options: argparse.Namespace, console: Console
) -> None:
    """Print the end of a report, and write what was asked for: what cannot be written stops nothing else."""
    from csa_spec.report.text import conclude

    console.say("\n\n".join([*texts.untold(report), conclude(report)]))
    reports.write(report)
    if in_github():
        _tell_github(report, console)
    if options.bundle is not None:
        from csa_spec.bundle import write_and_tell
        from csa_spec.resolving import resolve_candidate

        candidate = resolve_candidate(options.candidate, options.stage)
        write_and_tell(report, candidate, options.bundle, console.say, console.tell)


def _tell_github(report: Report, console: Console) -> None:
    """Annotate the failures, and add the report to the summary of the step."""
    from csa_spec.report.markdown import to_markdown

    for annotation in annotate(report):
        console.say(annotation, command=True)
    _summarise(to_markdown(report), console)


def _summarise(text: str, console: Console) -> None:
    problem = append_summary(text)
    if problem:
        console.tell(f"csa-spec: {problem}")


def _replay(options: argparse.Namespace, console: Console, supervised: Supervised) -> int:
    from csa_spec.replay import exit_code, replay, summarise_replay

    replayed = replay(options.bundles, options.candidate, trust=options.trust)
    console.say(summarise_replay(replayed))
    return exit_code(replayed)


def _compare(options: argparse.Namespace, console: Console, supervised: Supervised) -> int:
    from csa_spec.comparing import as_markdown, as_text, compare

    comparison = compare(options.base, options.head)
    console.say(as_text(comparison))
    _write_markdown(options, as_markdown(comparison), console)
    if in_github():
        _summarise(as_markdown(comparison), console)
    return comparison.exit_code


def _write_markdown(options: argparse.Namespace, text: str, console: Console) -> None:
    if options.markdown is None:
        return
    try:
        write_text(options.markdown, text)
    except OSError as error:
        console.tell(f"csa-spec: --markdown: {options.markdown} could not be written: {reason_of(error)}")


def _case(options: argparse.Namespace, console: Console, supervised: Supervised) -> int:
    from csa_spec.checking import check_case
    from csa_spec.engine.failures import Failure
    from csa_spec.report.text import describe

    try:
        declared = check_case(options.candidate, options.case, options.check)
    except Failure as failure:
        console.say(describe(failure, options.candidate, options.check))
        return 1
    lines = [declared, f"{options.candidate} passes {options.check} on: {options.case}"]
    console.say("\n".join(filter(None, lines)))
    return 0


def _selftest(options: argparse.Namespace, console: Console, supervised: Supervised) -> int:
    from csa_spec.resolving import UsageError
    from csa_spec.selftest.run import SelfTest, selftest
    from csa_spec.selftest.text import as_markdown, as_text, wrong

    try:
        seeds = [_whole(seed) for seed in options.seeds.split(",")]
    except argparse.ArgumentTypeError:
        raise UsageError(
            f"--seeds takes whole numbers separated by commas, not {options.seeds[:60]!r}; write e.g. 0,1,2"
        ) from None
    if options.jobs < 1:
        raise UsageError(f"--jobs must be at least 1, not {options.jobs}")
    line, so_far, told = ProgressLine(console), list[SelfTest](), set[str]()

    def progress(found: SelfTest) -> None:
        so_far[:] = [found]
        line.clear()
        for sentence in wrong(found):
            if sentence not in told:
                told.add(sentence)
                console.tell(sentence)
        line.say(f"{found.done} of {found.total} parts done")

    def stop(stopped: Stopped) -> None:
        console.take_over()
        line.clear()
        for found in so_far:
            console.say(as_text(found))
        console.tell(f"csa-spec: {stopped}; the self-test is not finished")

    supervised.on_stop = stop
    try:
        outcome = selftest(options.bug, options.profile, seeds, options.jobs, progress)
    finally:
        line.clear()
    console.say(as_text(outcome))
    _write_markdown(options, as_markdown(outcome, " ".join(["csa-spec", *sys.argv[1:]])), console)
    return 0 if outcome.passed else 1


_CHOOSE_VECTORS = {
    "stage": "all",
    "layer": "all",
    "dtype": "float32",
    "catalogue": False,
    "cases": None,
    "seed": 0,
}
"""Options that mean something only with ``--write``, and what they are where they are not given."""


def _vectors(options: argparse.Namespace, console: Console, supervised: Supervised) -> int:
    if options.write:
        return _write_vectors(options, console)
    from csa_spec.resolving import UsageError, stage_function
    from csa_spec.vectors.figures import STAGE, TOLERANCE, check_attend, check_vectors, summarise_figures

    for name, left_out in _CHOOSE_VECTORS.items():
        if getattr(options, name) != left_out:
            raise UsageError(f"--{name} chooses what is written; add --write, or leave it out")
    if options.attend is None:
        results = list(check_vectors(options.folder))
    else:
        results = list(check_attend(options.folder, stage_function(options.attend, STAGE)))
    console.say(summarise_figures(results))
    wrong = sum(not result.agrees for result in results)
    console.say(f"{len(results) - wrong} of {len(results)} cases agree within {TOLERANCE:g}")
    return 1 if wrong else 0


def _write_vectors(options: argparse.Namespace, console: Console) -> int:
    from csa_spec.report.files import problem_of_folder
    from csa_spec.resolving import UsageError
    from csa_spec.vectors.writing import summarise_written, write_vectors

    if options.attend is not None:
        raise UsageError("--attend compares a candidate with recorded figures; leave it out where you write")
    problem = problem_of_folder(options.folder)
    if problem:
        raise UsageError(problem)
    try:
        written = write_vectors(
            options.folder, options.stage, options.layer, options.dtype, options.cases, options.seed
        )
    except OSError as error:
        raise UsageError(f"{options.folder} could not be written: {reason_of(error)}") from None
    console.say(summarise_written(options.folder, written))
    return 0


def _judge(options: argparse.Namespace, console: Console, supervised: Supervised) -> int:
    from csa_spec.report.text import summarise
    from csa_spec.vectors.judging import judge

    report = judge(options.folder, options.answers, options.name)
    console.say(summarise(report))
    Reports(options, console).write(report)
    return report.verdict.value


class ProgressLine:
    """One line on the terminal that says how far a long run is; on anything else, a line per layer kind."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_live
        self._last = 0.0
        self._told: set[tuple[str, str]] = set()

    def show(self, result: CheckResult) -> None:
        """Say where the run is."""
        where = f"{result.subject} {result.dtype}"
        if not self._live:
            if (result.subject, result.dtype) not in self._told:
                self._told.add((result.subject, result.dtype))
                self._console.tell(f"checking {where} ...")
            return
        now = time.monotonic()
        if now - self._last < 0.1:
            return
        self._last = now
        state = f", {result.failing} failing" if result.failing else ""
        self.say(f"{where}  {result.sentence}: {result.cases} cases{state}")

    def say(self, text: str) -> None:
        """Show a text in place of what the line says, where there is a terminal."""
        if self._live:
            self._console.tell(f"\r\x1b[2K{text}", end="")

    def clear(self) -> None:
        """Wipe the line."""
        if self._live:
            self._console.tell("\r\x1b[2K", end="")
