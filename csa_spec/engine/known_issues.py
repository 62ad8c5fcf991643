"""Known issues: what a candidate is known not to support, tried all the same so that reports can tell.

A known issue is an entry of ``Capabilities.lacks``. Ordinary checks leave it out and count that. Here the
cases that have it are tried, up to the first that fails: the report shows the smallest such case. If none
fails, the issue may have been fixed upstream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion

from csa_spec.engine.failures import Failure
from csa_spec.engine.known_file import read_known_file
from csa_spec.engine.shrink import shrink
from csa_spec.engine.stage import Stage
from csa_spec.plug.call import NotOffered
from csa_spec.plug.candidate import Candidate, CandidateError
from csa_spec.plug.capabilities import Capabilities
from csa_spec.plug.plain import plain_line
from csa_spec.plug.reading import Unreadable

TRIED = 20
"""Cases tried for one known issue: where there are fewer, they are tried with other seeds too."""
_APART = 1000
"""Between the seeds of one case."""
SHRUNK = 30
"""Cases tried at most to make its failing case small."""


@dataclass(frozen=True, slots=True)
class KnownIssue:
    """A known issue, and what trying it showed."""

    subject: str
    """Stage or layer kind"""
    name: str
    """What is not supported, as in ``lacks``"""
    reason: str
    """Why, or the URL that says so"""
    cases: int = 0
    """Cases that had it"""
    refused: int = 0
    """Of these, those that the candidate refused with a clear error"""
    failure: Failure | None = None
    """The smallest case found that fails because of it"""

    def __post_init__(self) -> None:
        """Take the texts of the candidate, or of a file, as they can be shown."""
        object.__setattr__(self, "name", plain_line(self.name, 200))
        object.__setattr__(self, "reason", plain_line(self.reason))

    @property
    def state(self) -> str:
        """What trying it showed, in words."""
        if self.failure is not None:
            return "raises an exception" if self.failure.kind.startswith("CandidateRaised") else "wrong"
        if not self.cases:
            return "not tried"
        if self.refused:
            return "refused" if self.refused == self.cases else "refused at times"
        return "passes now"

    @property
    def outcome(self) -> str:
        """The state, and where nothing failed on how many cases: ``passes now on 20 of 20 cases tried``."""
        if self.failure is not None or not self.cases:
            return self.state
        right = self.cases - self.refused
        if self.refused and right:
            return f"refused on {self.refused} and right on {right} of {self.cases} cases tried"
        return f"{self.state} on {self.cases} of {self.cases} cases tried"


def probe(
    candidate: Candidate,
    stage: Stage[Any, Any],
    subject: str,
    place: tuple[str, str],
    cases: Iterable[Any],
    shrinking: bool = True,
) -> KnownIssue:
    """Try cases that have one known issue, the key ``place`` of ``lacks``, and no other."""
    declared = candidate.capabilities_of(stage.name)
    others = {key: reason for key, reason in declared.lacks.items() if key != place}
    lifted = replace(declared, lacks=others)
    free = candidate.declaring(stage.name, lifted)
    issue = KnownIssue(subject, str(place[1]), declared.lacks[place])
    check = stage.checks[0]

    def has_it(case: Any) -> bool:  # it fits as it is once this issue is not declared, and not before
        return bool(case.fit(lifted)[0] == case != case.fit(declared)[0])

    refusals: list[Any] = []

    def judge(case: Any) -> Failure | None:
        if not has_it(case):
            return None
        try:
            check.run(stage.trial(free, case))
        except Failure as failure:
            return failure
        except NotOffered:
            refusals.append(case)
        return None

    for case in _with_more_seeds([case for case in cases if has_it(case)]):
        issue = replace(issue, cases=issue.cases + 1)
        failure = judge(case)
        if failure is not None:  # one is enough to show it
            if shrinking:
                failure = shrink(failure, judge, stage.passes, SHRUNK)
            return replace(issue, failure=failure)
    return replace(issue, refused=len(refusals))


def _with_more_seeds(cases: Sequence[Any]) -> Iterator[Any]:
    """Yield so many cases that it means something if all pass: the same ones again with other seeds."""
    for number in range(TRIED if cases else 0):
        rounds, place = divmod(number, len(cases))
        yield replace(cases[place], seed=cases[place].seed + _APART * rounds)


def with_known_issues(candidate: Candidate, path: Path) -> Candidate:
    """Add the known issues that a file lists for a candidate to what it declares.

    The file is TOML, a table ``[[known_issue]]`` for each (``[[limitation]]``, its old name, is read too):
    ``candidate``, ``stage`` (or the layer kind), ``name`` (as in ``lacks``), ``reason``, and where wanted
    ``url`` and ``versions`` (such as ``>=5.8,<6``, of what the candidate's report calls by the candidate's
    name).

    Raises
    ------
    CandidateError
        If the file cannot be used; the sentence says where and why.
    """
    try:
        tables = read_known_file(path)
    except Unreadable as problem:
        raise CandidateError(f"{path} {problem}") from None
    version = candidate.environment.get(candidate.name)
    added: dict[Any, str] = {}
    for table in tables:
        if table["candidate"] != candidate.name:
            continue
        if _applies(table["versions"], version):
            reason = table["reason"] + (f": {table['url']}" if "url" in table else "")
            added[table["stage"], table["name"]] = reason
    return _lacking(candidate, added)


def _applies(versions: SpecifierSet, version: str | None) -> bool:
    """Whether an issue is one of an installed version; of one that nobody can compare, it is."""
    try:
        return version is None or versions.contains(version, prereleases=True)
    except InvalidVersion:
        return True


def _lacking(candidate: Candidate, added: Mapping[tuple[str, str], str]) -> Candidate:
    """Return a candidate that lacks more, in whatever place it declares what it lacks."""

    def more(declared: Capabilities) -> Capabilities:
        return replace(declared, lacks={**declared.lacks, **added})

    for stage in candidate.offers:
        own = candidate.capabilities_of(stage)
        if own is not candidate.capabilities:
            candidate = candidate.declaring(stage, more(own))
    return replace(candidate, capabilities=more(candidate.capabilities))
