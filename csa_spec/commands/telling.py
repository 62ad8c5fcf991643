"""What several commands tell beside their result: how far they are, Markdown files, summaries of GitHub."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from csa_spec.output import Console
from csa_spec.report.files import reason_of, write_text
from csa_spec.report.github import append_summary

if TYPE_CHECKING:
    from csa_spec.engine.running import CheckResult


def summarise_step(text: str, console: Console) -> None:
    """Add a text to the summary of a step of GitHub."""
    problem = append_summary(text)
    if problem:
        console.tell(f"csa-spec: {problem}")


def write_markdown(options: argparse.Namespace, text: str, console: Console) -> None:
    """Write ``--markdown`` if it was given; that it cannot be written is told, and changes no exit code."""
    if options.markdown is None:
        return
    try:
        write_text(options.markdown, text)
    except OSError as error:
        console.tell(f"csa-spec: --markdown: {options.markdown} could not be written: {reason_of(error)}")


class ProgressLine:
    """One line on the terminal that says how far a long run is; on anything else, a line per layer kind."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_live
        self._last = 0.0
        self._told: set[tuple[str, str]] = set()

    def show(self, result: CheckResult) -> None:
        """Say where the run is."""
        where = f"{result.subject} {result.dtype}"
        if not self._live:
            if (result.subject, result.dtype) not in self._told:
                self._told.add((result.subject, result.dtype))
                self._console.tell(f"checking {where} ...")
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
            self._console.tell(f"\r\x1b[2K{text}", end="")

    def clear(self) -> None:
        """Wipe the line."""
        if self._live:
            self._console.tell("\r\x1b[2K", end="")
