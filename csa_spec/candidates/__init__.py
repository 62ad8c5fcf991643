"""Candidates that ship ready. Each module imports its library only when it is loaded."""

from __future__ import annotations

import importlib

from csa_spec.harness.candidate import Candidate, CandidateError, import_candidate

SHIPPED = {"transformers": "csa_spec.candidates.transformers"}
"""Name: module with a function ``load``."""


def find_candidate(name: str) -> Candidate:
    """Return a shipped candidate by its name, or whatever ``package.module:object`` is.

    Raises
    ------
    CandidateError
        If there is none, or it cannot be used.
    """
    if ":" in name:
        return import_candidate(name)
    if name not in SHIPPED:
        raise CandidateError(
            f"unknown candidate {name!r}: give {', '.join(SHIPPED)}, or your own as package.module:object"
        )
    candidate = importlib.import_module(SHIPPED[name]).load()
    assert isinstance(candidate, Candidate)
    return candidate
