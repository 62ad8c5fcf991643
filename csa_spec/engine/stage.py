"""What the engine has to know of a stage: its trials, its checks, what its cases are and how they get smaller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from csa_spec.engine.comparison import Tally
from csa_spec.engine.recipe import Recipe
from csa_spec.engine.shrink_recipe import RECIPE_PASSES, recipe_size
from csa_spec.engine.side_effects import (
    a_call_answers_its_own_inputs,
    inputs_are_not_changed,
    output_has_its_own_memory,
    rows_do_not_interact,
    state_is_left_alone,
    two_runs_agree,
)
from csa_spec.engine.trial import Trial
from csa_spec.plug.candidate import Candidate, Capabilities


@dataclass(frozen=True, slots=True)
class Check:
    """One property of a candidate."""

    name: str
    """As in ``--check`` and in reports"""
    sentence: str
    """The property"""
    run: Callable[[Any], Tally | None]
    """Takes a trial of the stage"""
    law: bool
    """Whether it needs no specification; a law is tried on fewer cases"""
    costly: bool = False
    """Whether one case takes as long as many: tried on very few"""


MANNERS = (
    Check("repeat", "two runs agree", two_runs_agree, True),
    Check("inputs", "inputs are not mutated", inputs_are_not_changed, True),
    Check("state", "the process is left as it was", state_is_left_alone, True),
    Check("memory", "the output has memory of its own", output_has_its_own_memory, True),
    Check("own-inputs", "a call answers its own inputs", a_call_answers_its_own_inputs, True),
)
"""Of every stage."""
ROWS = Check("rows", "rows do not change each other", rows_do_not_interact, True)


@dataclass(frozen=True, slots=True)
class Shrinking:
    """How cases of a stage get smaller."""

    size: Callable[[Any], tuple[int, ...]]
    """Orders cases; a smaller one is a better explanation"""
    passes: tuple[Callable[[Any], Iterator[Any]], ...]
    """Each yields simpler cases; the first that fails in the same way is taken"""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the layer."""

    name: str
    trial: Callable[[Candidate, Any], Trial]
    checks: tuple[Check, ...]
    """The first is the equality with the specification"""
    fit: Callable[[Any, Capabilities], tuple[Any, list[str]]]
    """Returns the nearest case that a candidate supports, and what of the case it does not support"""
    kinds: Callable[[Any], set[str]]
    """The kinds that a trial's case belongs to"""
    required: Callable[[Any, Capabilities], list[str]]
    """The kinds of case that a run (over a layer kind, or None) must reach to mean anything"""
    parse: Callable[[str], Any]
    """Reads one line of text"""
    recipe: type[Recipe] | None = None
    """The class of its cases, where they are flat"""
    shrinking: Shrinking = Shrinking(recipe_size, RECIPE_PASSES)
