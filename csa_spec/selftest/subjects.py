"""Stages and layer kinds to try, and on which cases: what the self-test and the maintainers' tools share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from csa_spec.bugs import Bug
from csa_spec.bugs.bug import following
from csa_spec.bugs.stream import Cache
from csa_spec.candidates import find_candidate
from csa_spec.diagnosis.agreement import same_case
from csa_spec.engine.stage import Stage
from csa_spec.engine.trial import Trial
from csa_spec.plug.candidate import CACHE, LAYER, Candidate, as_candidate
from csa_spec.profiles import Profile
from csa_spec.spec import SPEC, LayerKind
from csa_spec.stages import STAGES
from csa_spec.target import Target

Subject = tuple[str, LayerKind | None]
"""A stage and a layer kind, or None for a stage that has none"""


def all_subjects() -> Iterator[Subject]:
    """Yield every stage with every layer kind that it has."""
    for stage in STAGES:
        for kind in (*LayerKind,) if stage in (LAYER, CACHE) else (None,):
            yield stage, kind


def kinds_of(bug: Bug) -> tuple[LayerKind | None, ...]:
    """Return the layer kinds in which a bug must be found, the plainest first; None for a stage without."""
    return bug.kinds or (None,)


def target(
    candidate: Candidate, stage: Stage, kind: LayerKind | None, profile: Profile, seed: int
) -> Target:
    """Return what a run with the default options checks."""
    return Target(candidate, stage, kind, "float32", "cpu", profile, seed)


def specification(stage: str) -> Candidate:
    """Return a right candidate that lacks nothing: the specification, or a shipped one for single stages."""
    if stage == LAYER:
        return as_candidate(following(SPEC), "specification", LAYER)
    if stage == CACHE:

        def stream(weights: Any, geometry: Any, batch: int) -> Cache:
            return Cache(weights, geometry, batch)

        return as_candidate(stream, "specification", CACHE)
    return find_candidate("gather")


def remembering(stage: Stage) -> Stage:
    """Return a stage that works out what the specification says of a case once, whoever is tried on it."""
    known: dict[Any, Trial] = {}

    def trial(candidate: Candidate, case: Any) -> Trial:
        found = same_case(known[case], candidate) if case in known else stage.trial(candidate, case)
        known[case] = found
        return found

    return replace(stage, trial=trial)


def parcels(bugs: Iterable[Bug], size: int) -> list[tuple[str, ...]]:
    """Return the names of bugs in parcels of work, each of one stage and of one plainest layer kind."""
    alike: dict[Subject, list[str]] = {}
    for bug in bugs:
        alike.setdefault((bug.stage, kinds_of(bug)[0]), []).append(bug.name)
    return [tuple(names[i : i + size]) for names in alike.values() for i in range(0, len(names), size)]
