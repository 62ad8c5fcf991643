"""Stages and layer kinds to try, and on which cases: what the self-test and the maintainers' tools share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from csa_spec.bugs import Bug
from csa_spec.plug.candidate import Candidate
from csa_spec.profiles import Profile
from csa_spec.stages import STAGES, AnyStage
from csa_spec.target import Target

Subject = tuple[str, str]
"""A stage and a layer kind, which is empty for a stage that has none"""


def all_subjects() -> Iterator[Subject]:
    """Yield every stage with every layer kind that it has."""
    for stage in STAGES.values():
        for variant in stage.variants:
            yield stage.name, variant


def kinds_of(bug: Bug) -> tuple[str, ...]:
    """Return the layer kinds in which a bug must be found, the plainest first; ``""`` for other stages."""
    return tuple(map(str, bug.kinds)) or ("",)


def target(candidate: Candidate, stage: AnyStage, kind: str, profile: Profile, seed: int) -> Target:
    """Return what a run with the default options checks."""
    return Target(candidate, stage, kind, "float32", "cpu", profile, seed)


def batches(bugs: Iterable[Bug], size: int) -> list[tuple[str, ...]]:
    """Return the names of bugs in batches of work, each of one stage and of one plainest layer kind."""
    alike: dict[Subject, list[str]] = {}
    for bug in bugs:
        alike.setdefault((bug.stage, kinds_of(bug)[0]), []).append(bug.name)
    return [tuple(names[i : i + size]) for names in alike.values() for i in range(0, len(names), size)]
