"""What the arguments of several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias


class Parser(argparse.ArgumentParser):
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


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
"""Where a command adds its parser."""
CANDIDATE = "one of {candidates}; the name of an entry point; or package.module:object"
"""What a command that takes a candidate says of it."""


def whole(text: str) -> int:
    """Read a whole number that is short enough to mean something."""
    if text.lstrip("+-").isdecimal() and len(text) > 18:
        raise argparse.ArgumentTypeError(f"a number of {len(text):,} digits; at most 18 can be read")
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text[:40]!r}") from None


def seconds(text: str) -> float:
    """Read a number of seconds."""
    seconds = float(text)
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"it must be more than 0 seconds, not {text}")
    return seconds


def add_report_files(command: argparse.ArgumentParser) -> None:
    """Add the files that a report is written to."""
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
