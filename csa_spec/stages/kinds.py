"""The kinds of case that a run must reach: a table of names, each with the rule for what belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from csa_spec.engine.trial import Trial

T = TypeVar("T", bound=Trial[Any])


def kinds_of(trial: T, table: Mapping[str, Callable[[T], bool]]) -> set[str]:
    """Return the names of a case's data, and the kinds of a table that it belongs to."""
    return {*trial.case.regime, *(name for name, holds in table.items() if holds(trial))}
