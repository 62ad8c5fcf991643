"""GitHub Actions: an annotation for each failure, and the summary of a step. Without torch until there is a report.

https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands has what is documented.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from csa_spec.report.files import reason_of

if TYPE_CHECKING:
    from csa_spec.engine.results import Report
    from csa_spec.plug.origin import Location

SUMMARY_BYTES = 1 << 20
"""What GitHub takes of a step; of more it shows nothing at all."""
_LONGEST = 4_000
"""Characters of one annotation"""
_COMMAND = re.compile(r"(?m)^(\s*:)(?=:)|(##)(?=\[)")
"""What the runner takes for a command: a line that begins with ``::``, and ``##[`` anywhere in one"""


def in_github() -> bool:
    """Whether this is a step of a workflow."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def inert(text: str) -> str:
    """Return a text in which nothing is a workflow command: what candidates say is printed, too."""
    return _COMMAND.sub(lambda found: f"{found[0]}\u200b", text.replace("\r", ""))


def command(name: str, message: str, properties: Mapping[str, str]) -> str:
    """Return a workflow command, escaped as GitHub documents."""
    escaped = ",".join(f"{key}={_escaped(_escaped(value), ':,')}" for key, value in properties.items())
    return f"::{name} {escaped}::{_escaped(message)}"


def _escaped(text: str, characters: str = "%\r\n") -> str:
    for character in characters:  # % is the first, so that no escape is escaped
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def annotations(report: Report) -> Iterator[str]:
    """Yield a workflow command for each failure, at the candidate's function, and one where nothing was decided."""
    from csa_spec.engine.results import Verdict
    from csa_spec.report import content

    for failed in content.explained(report):
        place = _place(report.functions.get(failed.result.stage))
        title = {"title": f"{report.candidate}, {failed.heading}"[:_LONGEST]}
        yield command("error", f"{failed.detail}\n{failed.call}"[:_LONGEST], place | title)
    if report.verdict is Verdict.INCONCLUSIVE:
        reasons = [*content.unfinished(report), *content.unreached(report)]
        yield command("error", "\n".join(reasons)[:_LONGEST], {"title": f"{report.candidate}: inconclusive"})


def _place(location: Location | None) -> dict[str, str]:
    """Return file and line of what lies in the workspace; nothing elsewhere."""
    workspace = os.environ.get("GITHUB_WORKSPACE")
    if location is None or not workspace:
        return {}
    file, root = Path(location.file).resolve(), Path(workspace).resolve()
    if not file.is_relative_to(root):
        return {}
    return {"file": file.relative_to(root).as_posix(), "line": str(location.line)}


def append_summary(text: str) -> str:
    """Append Markdown to the summary of the step; return what went wrong, if something did."""
    name = os.environ.get("GITHUB_STEP_SUMMARY")
    if not name:
        return ""
    data = f"{text}\n\n".encode(errors="backslashreplace")
    try:
        with open(name, "ab") as file:
            if file.tell() + len(data) <= SUMMARY_BYTES:
                file.write(data)
                return ""
        reason = f"GitHub takes {SUMMARY_BYTES >> 20} MiB of a step, and that is full"
    except (OSError, ValueError) as error:
        reason = reason_of(error)
    return f"GITHUB_STEP_SUMMARY: {name} could not be written: {reason}"
