"""The outcome of a run: what was covered, what was found, the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from csa_spec.engine.known_issues import KnownIssue
from csa_spec.engine.running import CheckResult
from csa_spec.plug.origin import Location, Source


class Verdict(Enum):
    """What a run says about a candidate; the value is the exit code of ``csa-spec check``."""

    CONFORMANT = 0
    NOT_CONFORMANT = 1
    INCONCLUSIVE = 2

    def __str__(self) -> str:
        """Return the verdict in words."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True, slots=True)
class Report:
    """What one run covered and found."""

    candidate: str
    environment: Mapping[str, str]
    profile: str
    dtypes: tuple[str, ...]
    device: str
    seed: int
    results: list[CheckResult]
    missing: dict[tuple[str, str], list[str]]
    """By dtype and stage or layer kind, the required kinds of case that the run never reached"""
    left_out: dict[tuple[str, str], list[str]]
    """The same for those that cannot be reached within what the candidate declares"""
    declined: Mapping[str, str]
    """Layer kinds, stages and dtypes that the candidate does not offer, with the reason"""
    seconds: float
    known_issues: list[KnownIssue] = field(default_factory=list)
    """What the candidate is known not to support, and what trying it showed"""
    stopped: str = ""
    """Why the run ended before its end; empty where it is finished"""
    sources: Mapping[str, Source] = field(default_factory=dict)
    """Of libraries under development: the folder that they were imported from, and its git revision"""
    functions: Mapping[str, Location] = field(default_factory=dict)
    """By stage, where the candidate's function is written"""

    @property
    def verdict(self) -> Verdict:
        """Not conformant if anything failed, else inconclusive if not finished, or a kind was not reached."""
        if any(result.failures for result in self.results):
            return Verdict.NOT_CONFORMANT
        if self.stopped or any(self.missing.values()) or not any(result.cases for result in self.results):
            return Verdict.INCONCLUSIVE
        return Verdict.CONFORMANT
