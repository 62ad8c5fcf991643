"""Two JSON reports held against each other: what a change of the candidate broke, mended or slowed down.

Nothing is run. The texts of reports are somebody else's, and are shown as plain ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from csa_spec.plug.plain import plain_line, shown
from csa_spec.plug.reading import Unreadable, read_as
from csa_spec.report.json import VERSION
from csa_spec.report.markup import code, cut, prose
from csa_spec.resolving import UsageError

SLOWER, SECONDS = 2.0, 2.0
"""A subject is clearly slower that takes so many times as long, and so many seconds longer."""
_SHOWN = 50
"""Lines of a section in Markdown, so that a comment has room for all sections"""
NEW, CHANGED, FIXED = "new failures", "changed failures", "fixed"
BASE_ONLY, HEAD_ONLY, UNJUDGED, SLOW = (
    "only in the base",
    "only in the head",
    "not judged any more",
    "slower",
)


class Key(NamedTuple):
    """A check of a subject."""

    subject: str
    dtype: str
    check: str

    def __str__(self) -> str:
        """Return it as reports say it."""
        return f"{self.subject}, {self.dtype}, {self.check}"


class Failed(NamedTuple):
    """One failure."""

    title: str
    case: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What a report says about one check."""

    state: str
    cases: int
    seconds: float
    failures: Mapping[str, Failed]
    """By kind"""


@dataclass(frozen=True, slots=True)
class Read:
    """What is compared of a report."""

    path: Path
    verdict: str
    run: Mapping[str, str]
    """What was run: candidate, profile and so on"""
    environment: str
    checks: Mapping[Key, Checked]


class Line(NamedTuple):
    """One thing that differs."""

    text: str
    case: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs between two reports."""

    base: Read
    head: Read
    sections: dict[str, list[Line]] = field(
        default_factory=lambda: {
            name: [] for name in (NEW, CHANGED, FIXED, UNJUDGED, BASE_ONLY, HEAD_ONLY, SLOW)
        }
    )

    @property
    def exit_code(self) -> int:
        """1 where something fails that did not fail in this way before, else 0."""
        return 1 if self.sections[NEW] or self.sections[CHANGED] else 0

    @property
    def heads(self) -> list[str]:
        """What was compared, and how the two runs differ."""
        pairs = (("base", self.base), ("head", self.head))
        lines = [f"{name}: {read.path}: {read.verdict} ({read.environment})" for name, read in pairs]
        for name, value in self.base.run.items():
            if value != self.head.run[name]:
                lines.append(
                    f"the reports are of different runs: {name} {value} in the base, "
                    f"{self.head.run[name]} in the head"
                )
        return lines

    @property
    def sum(self) -> str:
        """The numbers of what matters, in a line."""
        new, changed, fixed = (len(self.sections[name]) for name in (NEW, CHANGED, FIXED))
        return f"{new} new failure{'s' * (new != 1)}, {changed} changed, {fixed} fixed"


def compare(base: Path, head: Path) -> Comparison:
    """Compare the JSON reports of two runs.

    Raises
    ------
    UsageError
        If a file is no report of this version, or of a run that is not finished.
    """
    comparison = Comparison(read_report(base), read_report(head))
    before, after = comparison.base.checks, comparison.head.checks
    sections = comparison.sections
    for key in dict.fromkeys([*before, *after]):
        if key not in after:
            sections[BASE_ONLY].append(Line(f"{key}: {before[key].state}"))
            continue
        if key not in before:
            sections[HEAD_ONLY].append(Line(f"{key}: {after[key].state}"))
        for name, line in _differences(key, before.get(key), after[key]):
            sections[name].append(line)
    sections[SLOW] += _slower(before, after)
    return comparison


def _differences(key: Key, before: Checked | None, after: Checked) -> Iterator[tuple[str, Line]]:
    """Yield what differs in one check, with the section where that belongs."""
    old = {} if before is None else before.failures
    gone = {kind: failed for kind, failed in old.items() if kind not in after.failures}
    come = {kind: failed for kind, failed in after.failures.items() if kind not in old}
    was = "; ".join(failed.title for failed in gone.values())
    for failed in come.values():
        now = f"{failed.title}, was: {was}" if gone else failed.title
        yield CHANGED if gone else NEW, Line(f"{key}: {now}", failed.case)
    passes = after.state.endswith((" ok", " FAILED"))
    for failed in gone.values():
        if not come:
            yield FIXED if passes else UNJUDGED, Line(f"{key}: {failed.title}", failed.case)
    if before is not None and before.state.endswith(" ok") and not passes and not come:
        yield UNJUDGED, Line(f"{key}: {after.state}, was {before.state}")


def _slower(before: Mapping[Key, Checked], after: Mapping[Key, Checked]) -> Iterator[Line]:
    """Yield subjects that take longer, as far as they pass: making failures small takes time of its own."""
    clean = [
        key
        for key in after
        if key in before and not before[key].failures and not after[key].failures and before[key].cases
    ]
    for subject, dtype in dict.fromkeys(key[:2] for key in clean):
        keys = [key for key in clean if key[:2] == (subject, dtype)]
        old, new = (sum(checks[key].seconds for key in keys) for checks in (before, after))
        if new > SLOWER * old and new > old + SECONDS:
            yield Line(f"{subject}, {dtype}: {new:.1f} s, was {old:.1f} s, in checks that pass in both")


def as_text(comparison: Comparison) -> str:
    """Return a comparison for the terminal."""
    lines = [*comparison.heads]
    for name, found in comparison.sections.items():
        lines += ["", f"{name.upper()} ({len(found)})"] if found else []
        for line in found:
            lines += [f"  {line.text}", *([f"    {line.case}"] if line.case else [])]
    return "\n".join([*lines, "", comparison.sum])


def as_markdown(comparison: Comparison) -> str:
    """Return a comparison as a comment under a pull request."""
    lines = [f"**csa-spec: {comparison.sum}**", ""]
    for name, found in comparison.sections.items():
        lines += ["", f"{prose(name.capitalize())}:", ""] if found else []
        for line in found[:_SHOWN]:
            case = f" on {code(cut(line.case, 300))}" if line.case else ""
            lines.append(f"* {prose(cut(line.text, 300))}{case}")
        lines += [f"* {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return "\n".join([*lines, "", *(f"<sub>{prose(line)}</sub><br>" for line in comparison.heads), ""])


def read_report(path: Path) -> Read:
    """Read what is compared of a JSON report.

    Raises
    ------
    UsageError
        If it cannot be used; the sentence says why.
    """
    try:
        data = read_as("JSON", json.loads, path)
    except Unreadable as problem:
        raise UsageError(f"{path} {problem}") from None
    version = data.get("csa_spec_report") if isinstance(data, dict) else None
    if version is None:
        raise UsageError(f"{path} is no report of csa-spec; write one with check --report FILE.json")
    if version != VERSION or isinstance(version, bool):
        said = shown(version, 40)
        raise UsageError(
            f"{path} is a report of version {said}, and this csa-spec reads {VERSION}; write it anew"
        )
    if data.get("finished") is not True:
        why = plain_line(data.get("stopped") or "nobody knows why", 200)
        raise UsageError(f"{path} is not finished ({why}); let the run come to its end, without --fail-fast")
    try:
        return _read(path, data)
    except KeyError as error:
        reason = f"it lacks {plain_line(error, 80)}"
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        reason = "a field in it is of another type than csa-spec writes"
    raise UsageError(f"{path} is damaged: {reason}; write it anew")


def _read(path: Path, data: Any) -> Read:
    run = {name: plain_line(data[name], 200) for name in ("candidate", "profile", "device", "seed")}
    run["dtypes"] = plain_line(", ".join(data["dtypes"]), 200)
    versions = ", ".join(_versions(data["environment"], data.get("sources", {})))
    checks: dict[Key, Checked] = {}
    for result in data["results"]:
        subject = result.get("subject") or result["layer_kind"] or result["stage"]
        key = Key(*(plain_line(part, 80) for part in (subject, result["dtype"], result["check"])))
        failures = {
            plain_line(failure["kind"], 80): Failed(
                plain_line(failure["title"]), plain_line(failure["case_line"], 1000)
            )
            for failure in result["failures"]
        }
        state, cases = plain_line(result["state"], 40), int(result["cases"])
        checks[key] = Checked(state, cases, float(result["seconds"]), failures)
    return Read(path, plain_line(data["verdict"], 40), run, plain_line(versions, 1000), checks)


def _versions(environment: Mapping[str, Any], sources: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys([*environment, *sources]):
        parts = [name, str(environment.get(name, ""))]
        if name in sources:
            parts.append(f"at {sources[name]['revision'][:7]}{'+dirty' * bool(sources[name]['dirty'])}")
        yield " ".join(filter(None, parts))
