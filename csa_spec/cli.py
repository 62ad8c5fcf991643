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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from csa_spec.engine.failures import Failure
    from csa_spec.engine.results import Report
    from csa_spec.engine.running import CheckResult

USAGE, INTERNAL, INTERRUPTED = 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(arguments)
    # A candidate given as module:object usually lies in the folder that the command is run in.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        code: int = options.run(options)
        sys.stdout.flush()  # here, where a closed pipe is handled, not when the interpreter ends
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`); keep the interpreter from complaining when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INTERRUPTED
    except KeyboardInterrupt:
        print("\ncsa-spec: interrupted; nothing was decided", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        from csa_spec.engine.case import CaseError
        from csa_spec.plug.candidate import CandidateError
        from csa_spec.resolving import UsageError
        from csa_spec.vectors import VectorsError

        if isinstance(error, (CandidateError, CaseError, UsageError, VectorsError)):
            print(f"csa-spec: {error}", file=sys.stderr)
            return USAGE
        traceback.print_exc()
        print("csa-spec: internal error, not the candidate's fault; please report it", file=sys.stderr)
        return INTERNAL
    return code


class _Parser(argparse.ArgumentParser):
    """A parser whose help lists what the registries hold: ``{stages}``, ``{dtypes}`` and so on."""

    def format_help(self) -> str:
        """Fill the lists in only where they are shown: to know them costs an import of torch."""
        unfilled = [action for action in self._actions if action.help and "{" in action.help]
        if unfilled:
            from csa_spec.resolving import choices

            lists = choices()
            for action in unfilled:
                action.help = str(action.help).format_map(lists)
        return super().format_help()


_CANDIDATE = "one of {candidates}; the name of an entry point; or package.module:object"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="csa-spec",
        description="Compare implementations of DeepSeek-V4's attention with an executable specification.",
    )
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
        "--seed", default=0, type=int, metavar="N", help="seed of the drawn cases (default 0)"
    )
    check.add_argument(
        "--known", type=Path, metavar="FILE", help="a TOML file of the candidate's known issues"
    )
    check.add_argument("--isolate", action="store_true", help="run the candidate in a process of its own")
    check.add_argument(
        "--time-limit",
        default=30.0,
        type=float,
        metavar="S",
        help="seconds for one call with --isolate (default 30)",
    )
    check.add_argument("-x", "--fail-fast", action="store_true", help="stop after the first failure")
    check.add_argument(
        "--jobs",
        default=1,
        type=int,
        metavar="N",
        help="processes that check subjects side by side (default 1)",
    )
    check.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON too")
    check.add_argument(
        "--html", type=Path, metavar="FILE", help="write the report as an HTML page with pictures too"
    )
    check.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write it as Markdown for a pull request too"
    )
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
        type=int,
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
        help="compare the specification with recorded figures",
        description="Compare the specification, or an attention core, with recorded figures. Exit codes: "
        "0 every case agrees; 1 at least one does not; 2 the folder or the candidate cannot be used.",
    )
    vectors.add_argument(
        "folder", metavar="DIR", type=Path, help="folder with index.json and safetensors files"
    )
    vectors.add_argument(
        "--attend",
        metavar="CANDIDATE",
        help="compare this candidate's attend with the figures in place of the specification",
    )
    vectors.set_defaults(run=_vectors)
    return parser


def _check(options: argparse.Namespace) -> int:
    from csa_spec.checking import check
    from csa_spec.report.text import Failures, conclude
    from csa_spec.resolving import UsageError, resolve_candidate

    for name in ("json", "html", "markdown"):
        _require_writable(f"--{name}", getattr(options, name))
    if options.bundle is not None and options.bundle.exists() and not options.bundle.is_dir():
        raise UsageError(f"--bundle: {options.bundle} is not a folder; name a folder, or one to make")
    line = ProgressLine()
    told: list[Failures] = []

    def tell(failure: Failure, result: CheckResult) -> None:
        line.clear()
        print(told[0](failure, result), end="\n\n", flush=True)

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
            progress=line.show,
            begun=lambda report: told.append(Failures(report)),
            found=tell,
            fail_fast=options.fail_fast,
            jobs=options.jobs,
        )
    finally:
        line.clear()
    _write(report, options)
    print(conclude(report))
    if options.bundle is not None:
        from csa_spec.bundle import write_bundles

        for path in write_bundles(
            report, resolve_candidate(options.candidate, options.stage), options.bundle
        ):
            print(f"bundle: {path}")
    return report.verdict.value


def _replay(options: argparse.Namespace) -> int:
    from csa_spec.replay import exit_code, replay, summarise_replay

    replayed = replay(options.bundles, options.candidate)
    print(summarise_replay(replayed))
    return exit_code(replayed)


def _require_writable(option: str, path: Path | None) -> None:
    """Refuse a file that cannot be written, before the work is done."""
    from csa_spec.resolving import UsageError

    if path is not None and not path.absolute().parent.is_dir():
        raise UsageError(f"{option}: there is no folder {path.absolute().parent}; make it first")
    if path is not None and path.exists() and not path.is_file():
        raise UsageError(f"{option}: {path} is not a file; name another")


def _write(report: Report, options: argparse.Namespace) -> None:
    from csa_spec.report.files import write_text

    if options.json is not None:
        from csa_spec.report.json import write_json

        write_json(report, options.json)
    if options.html is not None:
        from csa_spec.report.html import to_html

        write_text(options.html, to_html(report))
    if options.markdown is not None:
        from csa_spec.report.markdown import to_markdown

        write_text(options.markdown, to_markdown(report))


def _case(options: argparse.Namespace) -> int:
    from csa_spec.checking import check_case
    from csa_spec.engine.failures import Failure
    from csa_spec.report.text import describe

    try:
        check_case(options.candidate, options.case, options.check)
    except Failure as failure:
        print(describe(failure, options.candidate, options.check))
        return 1
    print(f"{options.candidate} passes {options.check} on: {options.case}")
    return 0


def _selftest(options: argparse.Namespace) -> int:
    from csa_spec.report.files import write_text
    from csa_spec.resolving import UsageError
    from csa_spec.selftest.run import selftest
    from csa_spec.selftest.text import as_markdown, as_text

    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError:
        raise UsageError(
            f"--seeds takes whole numbers separated by commas, not {options.seeds!r}; write e.g. 0,1,2"
        ) from None
    if options.jobs < 1:
        raise UsageError(f"--jobs must be at least 1, not {options.jobs}")
    _require_writable("--markdown", options.markdown)
    line = ProgressLine()
    try:
        outcome = selftest(
            options.bug,
            options.profile,
            seeds,
            options.jobs,
            lambda done, total: line.say(f"{done} of {total} parts done"),
        )
    finally:
        line.clear()
    if options.markdown is not None:
        write_text(options.markdown, as_markdown(outcome, " ".join(["csa-spec", *sys.argv[1:]])))
    print(as_text(outcome))
    return 0 if outcome.passed else 1


def _vectors(options: argparse.Namespace) -> int:
    from csa_spec.resolving import stage_function
    from csa_spec.vectors import STAGE, TOLERANCE, check_attend, check_vectors

    if options.attend is None:
        results = list(check_vectors(options.folder))
    else:
        results = list(check_attend(options.folder, stage_function(options.attend, STAGE)))
    for name in dict.fromkeys(result.file for result in results):
        of_file = [result for result in results if result.file == name]
        errors = {
            key: max(
                (result.errors.get(key, 0.0) for result in of_file),
                key=lambda error: (error != error, error),
            )
            for key in dict.fromkeys(key for result in of_file for key in result.errors)
        }
        worst = ", ".join(f"{key} {error:.1e}" for key, error in sorted(errors.items()))
        wrong = [result.case for result in of_file if not result.agrees]
        state = f"cases {wrong} DISAGREE" if wrong else "agree"
        print(f"{name:<36} {len(of_file):>3} cases {state}; largest error: {worst}")
    wrong_cases = sum(not result.agrees for result in results)
    print(f"{len(results) - wrong_cases} of {len(results)} cases agree within {TOLERANCE:g}")
    return 1 if wrong_cases else 0


class ProgressLine:
    """One line on the terminal that says how far a long run is; on anything else, a line per layer kind."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._last = 0.0
        self._told: set[tuple[str, str]] = set()

    def show(self, result: object) -> None:
        """Say where the run is."""
        from csa_spec.engine.running import CheckResult

        assert isinstance(result, CheckResult)
        where = f"{result.subject} {result.dtype}"
        if not self._live:
            if (result.subject, result.dtype) not in self._told:
                self._told.add((result.subject, result.dtype))
                print(f"checking {where} ...", file=sys.stderr, flush=True)
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
            print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Wipe the line."""
        if self._live:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
