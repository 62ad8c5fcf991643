"""Candidates that ship ready. Each module imports its library only when it is loaded."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points

from csa_spec.candidates.recognise import as_candidate, failed, import_candidate
from csa_spec.plug.candidate import Candidate, CandidateError
from csa_spec.plug.names import did_you_mean
from csa_spec.plug.plain import shown
from csa_spec.plug.position import HERE, stops_the_run

SHIPPED = {
    name: f"csa_spec.candidates.{name}"
    for name in ("transformers", "gather", "flattened", "dense", "sdpa", "flex", "triton")
}
"""Name: module with a function ``load``."""
SCRIPTS = {"transformers": "csa_spec.candidates.transformers_script"}
"""Of those that no plain call shows: the module whose ``subject_of`` writes their calls into scripts."""
GROUP = "csa_spec.candidates"
"""Entry points of other packages in this group are candidates too."""


def find_candidate(name: str, stage: str | None = None) -> Candidate:
    """Return a candidate: one that ships, an entry point of another package, or ``package.module:object``.

    Parameters
    ----------
    name
        The name.
    stage
        What it is if it is a bare function; None for a layer.

    Raises
    ------
    CandidateError
        If there is none, or it cannot be used.
    """
    if ":" in name:
        return import_candidate(name, stage)
    if name in SHIPPED:
        candidate = importlib.import_module(SHIPPED[name]).load()
        assert isinstance(candidate, Candidate)
        return candidate
    for entry in entry_points(group=GROUP, name=name):
        return _load(entry, stage)
    names = [*SHIPPED, *sorted(entry_points(group=GROUP).names)]
    meant, hint = did_you_mean(name, names), ""
    if all(part.isidentifier() for part in name.split(".")) and _is_module(name):
        hint = f" ({name} is a module: give {name}:NAME)"
    listed = f"choose from {', '.join(names)}, or give your own as package.module:object"
    raise CandidateError(f"unknown candidate {shown(name)}; {meant or listed}{hint}")


def is_installed(name: str) -> bool:
    """Whether a name stands for a candidate that ships, or that an installed package offers."""
    return name in SHIPPED or bool(entry_points(group=GROUP, name=name))


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _load(entry: EntryPoint, stage: str | None) -> Candidate:
    try:
        with HERE.importing(entry.value):
            return replace(as_candidate(entry.load(), entry.value, stage), name=entry.name)
    except CandidateError:
        raise
    except BaseException as error:
        if stops_the_run(error):
            raise
        raise failed(f"the entry point {entry.name} = {entry.value} cannot be loaded", error) from error
