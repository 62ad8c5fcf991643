"""``csa-spec compare``: two JSON reports, held against each other."""

from __future__ import annotations

import argparse
from pathlib import Path

from csa_spec.commands.arguments import Commands
from csa_spec.commands.telling import summarise_step, write_markdown
from csa_spec.output import Console
from csa_spec.report.github import in_github
from csa_spec.supervising import Supervised


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
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
    comparison.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console, supervised: Supervised) -> int:
    """Run the command; return its exit code."""
    from csa_spec.comparing import as_markdown, as_text, compare

    comparison = compare(options.base, options.head)
    console.say(as_text(comparison))
    write_markdown(options, as_markdown(comparison), console)
    if in_github():
        summarise_step(as_markdown(comparison), console)
    return comparison.exit_code
