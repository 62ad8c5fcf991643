"""What is right, plugged in as a candidate: the specification itself, where a stage can be run by it."""

from __future__ import annotations

from typing import Any

from csa_spec.bugs.bug import following
from csa_spec.bugs.stream import Cache
from csa_spec.candidates import find_candidate
from csa_spec.candidates.recognise import as_candidate
from csa_spec.plug.candidate import Candidate
from csa_spec.spec import SPEC


def specification(stage: str) -> Candidate:
    """Return a right candidate that lacks nothing: the specification, or a shipped one for single stages."""
    if stage == "layer":
        return as_candidate(following(SPEC), "specification", stage)
    if stage == "cache":

        def stream(weights: Any, geometry: Any, batch: int) -> Cache:
            return Cache(weights, geometry, batch)

        return as_candidate(stream, "specification", stage)
    return find_candidate("gather")
