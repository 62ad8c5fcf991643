"""``csa-spec case``: one case, as a report prints it."""

from __future__ import annotations

import argparse

from csa_spec.commands.arguments import CANDIDATE, Commands
from csa_spec.output import Console
from csa_spec.supervising import Supervised


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    case = commands.add_parser(
        "case",
        help="run one case",
        description="Run one case, written as a failure report prints it. Exit codes: 0 it passes; 1 it "
        "fails; 2 the case or the candidate cannot be used as given.",
    )
    case.add_argument("candidate", metavar="CANDIDATE", help=CANDIDATE)
    case.add_argument("case", metavar="CASE", help="the case, one line in quotes")
    case.add_argument(
        "--check",
        default="specification",
        metavar="NAME",
        help="one of the checks of the case's stage (default: specification). Of all stages: {checks}",
    )
    case.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console, supervised: Supervised) -> int:
    """Run the command; return its exit code."""
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
