"""The command ``csa-spec``.

Exit codes of ``check``: 0 conformant; 1 not conformant; 2 the command or the candidate cannot be used as
given, or the run is inconclusive; 3 internal error. ``--help`` of each command has its own.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from functools import partial

import csa_spec
from csa_spec.commands import COMMANDS, replay
from csa_spec.commands.arguments import Parser
from csa_spec.output import INTERRUPTED, USAGE, Console, note_death, problem_of_output
from csa_spec.supervising import (
    CALL_LIMIT,
    Supervised,
    Unsupervised,
    can_supervise,
    interrupted,
    supervise,
)

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
    if options.run is replay.run and not options.trust and ":" not in (options.candidate or ""):
        sys.path[:] = [folder for folder in sys.path if folder not in ("", here)]
    elif here not in sys.path:
        sys.path.insert(0, here)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="csa-spec",
        description="Compare implementations of DeepSeek-V4's attention with an executable specification.",
    )
    parser.add_argument("--version", action="version", version=f"csa-spec {csa_spec.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        command.add(commands)
    return parser
