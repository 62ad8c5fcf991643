"""``csa-spec selftest``: every known bug must be found, and what is right must pass."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from csa_spec.commands.arguments import Commands, whole
from csa_spec.commands.telling import ProgressLine, write_markdown
from csa_spec.output import Console
from csa_spec.supervising import Stopped, Supervised


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
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
        type=whole,
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
    selftest.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console, supervised: Supervised) -> int:
    """Run the command; return its exit code."""
    from csa_spec.resolving import UsageError
    from csa_spec.selftest.run import SelfTest, selftest
    from csa_spec.selftest.text import as_markdown, as_text, wrong

    try:
        seeds = [whole(seed) for seed in options.seeds.split(",")]
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
    write_markdown(options, as_markdown(outcome, " ".join(["csa-spec", *sys.argv[1:]])), console)
    return 0 if outcome.passed else 1
