"""``csa-spec check``: an implementation is checked, failures are told as they are found."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from csa_spec.commands.arguments import CANDIDATE, Commands, add_report_files, seconds, whole
from csa_spec.commands.telling import ProgressLine, summarise_step
from csa_spec.output import Console, Reports
from csa_spec.report.github import annotate, in_github
from csa_spec.supervising import CALL_LIMIT, Stopped, Supervised

if TYPE_CHECKING:
    from csa_spec.engine.failures import Failure
    from csa_spec.engine.results import Report
    from csa_spec.engine.running import CheckResult
    from csa_spec.report.text import Failures


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    check = commands.add_parser(
        "check",
        help="check an implementation",
        description="Check an implementation. Exit codes: 0 conformant; 1 not conformant; 2 the command or "
        "the candidate cannot be used as given, or the run is inconclusive; 3 internal error.",
    )
    check.add_argument("candidate", metavar="CANDIDATE", help=CANDIDATE)
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
        "--seed", default=0, type=whole, metavar="N", help="seed of the drawn cases (default 0)"
    )
    check.add_argument(
        "--known", type=Path, metavar="FILE", help="a TOML file of the candidate's known issues"
    )
    check.add_argument("--isolate", action="store_true", help="run the candidate in a process of its own")
    check.add_argument(
        "--time-limit",
        type=seconds,
        metavar="S",
        help="seconds for one call: with --isolate (default 30) one that takes longer is a failure like any "
        f"other, without (default {CALL_LIMIT:g}) the run ends there",
    )
    check.add_argument(
        "--patience",
        type=seconds,
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
    add_report_files(check)
    check.add_argument(
        "--bundle", type=Path, metavar="DIR", help="write a bundle for each failure into this folder"
    )
    check.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console, supervised: Supervised) -> int:
    """Run the command; return its exit code."""
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
    summarise_step(to_markdown(report), console)
