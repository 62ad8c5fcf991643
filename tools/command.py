"""What the commands of this folder share: their options, progress, and the pages that they write."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csa_spec.bugs import Bug
from csa_spec.profiles import PROFILES, Profile
from csa_spec.selftest.run import choose_bugs
from csa_spec.selftest.work import Task, do_all

DOCS = Path(__file__).parents[1] / "docs"


@dataclass(frozen=True, slots=True)
class Command:
    """A measurement as it was asked for."""

    name: str
    """Of the tool, and of its page"""
    line: str
    """As it was typed"""
    options: argparse.Namespace

    @property
    def bugs(self) -> tuple[Bug, ...]:
        """The chosen bugs."""
        return choose_bugs(self.options.bug)

    @property
    def profile(self) -> Profile:
        """How much is tried."""
        return PROFILES[self.options.profile]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the drawn cases."""
        return tuple(int(seed) for seed in self.options.seeds.split(","))

    @property
    def jobs(self) -> int:
        """Processes."""
        return int(self.options.jobs)

    def do(self, tasks: Sequence[Task]) -> list[Any]:
        """Do the work, and say on the terminal how far it is."""

        def say(done: int, total: int, result: Any) -> None:
            print(f"\r{self.name}: {done} of {total}", end="", file=sys.stderr, flush=True)

        results = do_all(tasks, self.jobs, say)
        print(file=sys.stderr)
        return results

    def finish(self, page: str) -> None:
        """Print the page; write it if that was asked for."""
        print(page)
        if self.options.write:
            (DOCS / f"{self.name}.md").write_text(page, encoding="utf-8")

    def head(self, title: str) -> str:
        """Return the first lines of the page."""
        return f"# {title}\n\nMade by `{self.line}`; do not edit. The command prints every row, too."


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser of the options that every tool has."""
    made = argparse.ArgumentParser(prog=f"python -m tools.{name}", description=description)
    made.add_argument(
        "--bug", action="append", default=[], metavar="NAME", help="this bug only; may be repeated"
    )
    made.add_argument(
        "--profile", default="default", choices=[*PROFILES], help="how much is tried (default)"
    )
    made.add_argument("--seeds", default="0", metavar="N,N,...", help="seeds of the drawn cases (0)")
    made.add_argument("--jobs", default=1, type=int, metavar="N", help="processes (1)")
    made.add_argument("--write", action="store_true", help=f"write docs/{name}.md")
    return made


def read_command(
    name: str, made: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> Command:
    """Read the options; a page is made of the whole catalogue only."""
    words = [*(sys.argv[1:] if arguments is None else arguments)]
    options = made.parse_args(words)
    if options.write and options.bug:
        made.error("--write makes a page of the whole catalogue; leave out --bug or --write")
    return Command(name, " ".join([made.prog, *words]), options)
