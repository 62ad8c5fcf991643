"""``csa-spec judge``: answers of another program to test vectors."""

from __future__ import annotations

import argparse
from pathlib import Path

from csa_spec.commands.arguments import Commands, add_report_files
from csa_spec.output import Console, Reports
from csa_spec.supervising import Supervised


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
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
    add_report_files(judge)
    judge.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console, supervised: Supervised) -> int:
    """Run the command; return its exit code."""
    from csa_spec.report.text import summarise
    from csa_spec.vectors.judging import judge

    report = judge(options.folder, options.answers, options.name)
    console.say(summarise(report))
    Reports(options, console).write(report)
    return report.verdict.value
