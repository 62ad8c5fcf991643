"""``csa-spec replay``: the failing cases of bundles are run again."""

from __future__ import annotations

import argparse
from pathlib import Path

from csa_spec.commands.arguments import Commands
from csa_spec.output import Console
from csa_spec.supervising import Supervised


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
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
    again.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console, supervised: Supervised) -> int:
    """Run the command; return its exit code."""
    from csa_spec.replay import exit_code, replay, summarise_replay

    replayed = replay(options.bundles, options.candidate, trust=options.trust)
    console.say(summarise_replay(replayed))
    return exit_code(replayed)
