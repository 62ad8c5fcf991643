"""How often a diagnosis names the right cause first: every known bug, plugged in as a black box."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from csa_spec.bugs import Bug
from csa_spec.diagnosis import diagnose
from csa_spec.plug.candidate import Candidate
from csa_spec.profiles import Profile
from csa_spec.spec import LayerKind
from csa_spec.stages import STAGES
from csa_spec.stages.layer.output import LayerOutput
from csa_spec.target import Target


@dataclass(frozen=True, slots=True)
class Named:
    """What the diagnosis of one bug as a black box says."""

    bug: str
    kind: LayerKind | None
    check: str
    """That fails first; empty where none does"""
    case: str
    first: str
    """The bug that is named first; empty where none is"""
    others: tuple[str, ...]
    """Bugs named after it"""
    tied: bool
    """Whether the first and this bug agree with the candidate on every case that was tried"""

    @property
    def right(self) -> bool:
        """Whether the bug itself is named first."""
        return self.first == self.bug


def black_box(bug: Bug) -> Candidate:
    """Return a bug as a candidate of another name that shows its output alone."""

    def function(*arguments: Any) -> Any:
        returned = bug.function(*arguments)
        return returned.out if isinstance(returned, LayerOutput) else returned

    own = bug.candidate
    capabilities = own.capabilities_of(bug.stage)
    if bug.stage == LAYER:
        return Candidate("black box", {"": function}, capabilities)
    return Candidate("black box", {}, capabilities, stages={bug.stage: function})


def accuracy(
    bugs: Sequence[Bug], seed: int, profiles: Sequence[Profile], kinds: Sequence[LayerKind] = ()
) -> Iterator[Named]:
    """Yield what is said of each bug: the first check that it fails, made small, and diagnosed.

    Parameters
    ----------
    bugs
        Which; equivalent ones are left out.
    seed
        Of the drawn cases.
    profiles
        Tried in this order until a check fails.
    kinds
        Layer kinds; none: the first of those in which a bug shows.
    """
    for bug in bugs:
        if bug.equivalent:
            continue
        for kind in [one for one in bug.kinds if one in kinds] or bug.kinds[:1] or (None,):
            yield _named(bug, kind, seed, profiles)


def _named(bug: Bug, kind: LayerKind | None, seed: int, profiles: Sequence[Profile]) -> Named:
    candidate = black_box(bug)
    for profile in profiles:
        target = Target(
            candidate, STAGES[bug.stage], kind, "float32", "cpu", replace(profile, shrinks=False), seed
        )
        for check in target.stage.checks:
            result = target.run(check, enough=1)
            if not result.failures:
                continue
            failure = result.failures[0]
            diagnosis = failure.diagnosis or diagnose(candidate, check, failure)
            found = () if diagnosis is None else diagnosis.behaves_like
            scores = {one.name: one.agreeing == one.tried for one in found}
            tied = bool(found) and scores.get(bug.name, False) and scores[found[0].name]
            names = [one.name for one in found]
            return Named(
                bug.name,
                kind,
                check.name,
                str(failure.case),
                names[0] if names else "",
                tuple(names[1:]),
                tied,
            )
    return Named(bug.name, kind, "", "", "", (), False)
