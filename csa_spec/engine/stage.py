"""What the rest of the package asks of a stage. It never asks which stage it is.

A stage lives in one place: a room of ``csa_spec/stages`` and a module of ``strategies/`` of the same name.
Everything that differs by stage is a field of :class:`Stage`, a method of its trial
(:mod:`csa_spec.engine.trial`) or of its case (:mod:`csa_spec.engine.case`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from typing import Any, Generic, TypeVar

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from csa_spec.engine import side_effects
from csa_spec.engine.case import Case
from csa_spec.engine.declared_limits import SENTENCE, declares_limits, limits_check
from csa_spec.engine.failures import Failure
from csa_spec.engine.shrink_flat import FLAT_PASSES
from csa_spec.engine.tally import Tally
from csa_spec.engine.trial import Trial
from csa_spec.plug.candidate import Candidate
from csa_spec.plug.capabilities import Capabilities
from csa_spec.plug.layouts import VIEWS, Layout

C = TypeVar("C", bound=Case)
SPECIFICATION = "specification"
"""Name of the check that every stage has first."""
T = TypeVar("T", bound=Trial[Any])


@dataclass(frozen=True, slots=True)
class Check(Generic[T]):
    """One property of a candidate."""

    name: str
    """As in ``--check`` and in reports"""
    sentence: str
    """The property"""
    run: Callable[[T], Tally | None]
    """Takes a trial: raises a failure, or returns what it covered, or None where it does not apply"""
    law: bool = True
    """Whether it needs no specification; a law is tried on fewer cases"""
    costly: bool = False
    """Whether one case takes as long as many: tried on very few"""
    of_memory: bool = False
    """Whether it is about memory, so that it is tried with tensors in every layout; what else depends on the
    layout, the specification check finds"""
    two_runs: bool = False
    """Whether what is shown of a failure are two runs of the candidate, in place of expected and got"""
    needs: Callable[[Capabilities], bool] = lambda capabilities: True
    """Whether a candidate declares what the check is about"""


SIDE_EFFECTS: tuple[Check[Any], ...] = (
    Check("repeat", "two runs agree", side_effects.two_runs_agree, two_runs=True),
    Check("inputs", "inputs are not mutated", side_effects.inputs_are_not_changed, of_memory=True),
    Check("state", "the process is left as it was", side_effects.state_is_left_alone),
    Check(
        "memory", "the output has memory of its own", side_effects.output_has_its_own_memory, of_memory=True
    ),
    Check("growth", "nothing grows with every call", side_effects.nothing_grows, costly=True),
    Check(
        "own-inputs",
        "a call answers its own inputs",
        side_effects.a_call_answers_its_own_inputs,
        of_memory=True,
    ),
)
"""Of every stage."""
ROWS: Check[Any] = Check("rows", "rows do not change each other", side_effects.rows_do_not_interact)
LIMITS: Check[Any] = Check("limits", SENTENCE, limits_check, needs=declares_limits)


def gradients_check(run: Callable[[Any], Tally | None]) -> Check[Any]:
    """Return the check of gradients, for candidates that declare them."""
    sentence = "gradients match the specification's"
    return Check("gradients", sentence, run, costly=True, needs=lambda capabilities: capabilities.gradients)


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """How reports speak of a stage."""

    title: Callable[[str], str]
    """What it is, for people who have never heard of it, given the layer kind: "the CSA layer" """
    output: str = "output of"
    """What stands before the place of a failure"""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where cases run, and what strategies must know of the candidate to draw cases that suit it."""

    dtype: str = "float32"
    device: str = "cpu"
    modes: tuple[str, ...] = ("",)
    ratios: frozenset[int] | None = None
    """Compression ratios that the candidate supports; None for any"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws(Generic[C]):
    """The cases of a stage, given a layer kind (empty for stages that have none) and a setting."""

    cases: Callable[[str, Setting], SearchStrategy[C]]
    """Drawn by Hypothesis"""
    corners: Callable[[str, Setting], Sequence[C]]
    """Written by hand: together they reach every required kind"""
    for_laws: Callable[[str, Setting, bool], Sequence[C]] = lambda variant, setting, costly: ()
    """The few that every law, or every costly law, is tried on beside what is drawn"""
    telling: Callable[[C], C] = lambda case: case
    """Makes of such a case one on which chance decides little, so that it tells one bug from another"""
    production: Callable[[str, Setting], Sequence[C]] = lambda variant, setting: ()
    """Of the sizes of the released models"""
    sizes: Callable[[Sequence[C], int], Iterable[C]] = lambda drawn, seed: ()
    """In which each size crosses those where implementations switch, or schedules are long, made of drawn cases;
    all of the kinds that their sizes make are required"""


def in_every_layout(draws: Draws[C]) -> Draws[C]:
    """Return cases whose tensors also lie in memory in other ways: half of what is drawn, and corner cases."""
    layouts = st.sampled_from([*[Layout.PLAIN] * len(VIEWS), *VIEWS])

    @st.composite  # a failing case is then printed as the call that makes it, not as how it was drawn
    def cases(draw: st.DrawFn, variant: str, setting: Setting) -> C:
        case = draw(draws.cases(variant, setting))
        return replace(case, layout=draw(layouts))

    def all_corners(variant: str, setting: Setting) -> list[C]:
        corners = draws.corners(variant, setting)
        several, *_ = views = laid_out(corners)
        # The seed says which tensors have equal rows.
        more = [replace(several, layout=Layout.EXPANDED, seed=n) for n in (1, 2, 3)]
        return [*corners, *views, *more]

    return replace(draws, cases=cases, corners=all_corners)


def laid_out(corners: Sequence[C]) -> list[C]:
    """Return the first case with several rows, which expanded tensors need, in every layout."""
    several = next((case for case in corners if case.sizes.get("B", 1) > 1), corners[0])
    return [replace(several, layout=layout) for layout in VIEWS]


Picture = Callable[[Failure, Sequence[str]], str | None]
"""Draws a failure, and lines of what was expected and what came, as SVG text; None where it cannot."""


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[C, T]):
    """One stage: what it takes, its cases, how an answer is judged, and how it is spoken of."""

    name: str
    arguments: tuple[str, ...]
    """What a candidate's function is called with, by position"""
    case: type[C]
    trial: type[T]
    checks: tuple[Check[T], ...]
    """The first compares with the specification"""
    words: Words
    required: Callable[[str, Capabilities], Sequence[str]]
    """The kinds of case that a run must reach, given the layer kind and what the candidate declares"""
    variants: tuple[str, ...] = ("",)
    """The layer kinds that are checked one by one, for stages that have some"""
    effort: str = "light"
    """How much one case costs: the profile's ``light``, ``medium`` or ``heavy`` amount of cases is drawn"""
    passes: tuple[Callable[[Any], Iterator[Any]], ...] = FLAT_PASSES
    """How a failing case gets smaller: each yields simpler cases"""
    wanting: Callable[[Any, str], list[str]] = lambda result, dtype: []
    """What else a result of the specification check lacks to mean anything"""
    picture: Picture | None = None
    """None: the sentences and numbers alone"""
    script: Any = None
    """How scripts call it: a ``StageScript`` of ``csa_spec.scripting``. None: bundles have no script"""
    drawn: Draws[C] | None = field(default=None)
    """None: those of the module of ``strategies/`` that has the stage's name"""

    @cached_property
    def draws(self) -> Draws[C]:
        """The cases of the stage, with tensors in every layout.

        Strategies build on stages, so they are looked up when they are needed.
        """
        if self.drawn is not None:
            return in_every_layout(self.drawn)
        return in_every_layout(import_module(f"csa_spec.strategies.{self.name}").DRAWS)

    def law_cases(self, check: Check[Any], variant: str, setting: Setting) -> list[C]:
        """Return the cases, beside drawn ones, on which a law is tried."""
        few = self.draws.for_laws(variant, setting, check.costly)
        return [*few, *laid_out(self.draws.corners(variant, setting))] if check.of_memory else [*few]

    def all_required(self, variant: str, capabilities: Capabilities) -> list[str]:
        """Return the kinds of case that a run must reach, every layout among them."""
        return [*self.required(variant, capabilities), *(f"layout {layout}" for layout in VIEWS)]

    def setting(self, candidate: Candidate, variant: str, dtype: str, device: str) -> Setting:
        """Return where cases run, and what strategies must know of a candidate."""
        allowed = candidate.capabilities_of(self.name).rule("m", variant).allowed
        sets = [frozenset(sizes) for sizes in allowed if isinstance(sizes, Set)]
        ratios = frozenset.intersection(*sets) if sets else None
        return Setting(dtype, device, candidate.modes(self.name), ratios)

    def subject(self, variant: str) -> str:
        """Return what a run checks in one or two words, given the layer kind."""
        return " ".join(filter(None, (self.name, variant)))

    def check(self, name: str) -> Check[T]:
        """Return a check by its name; ``KeyError`` if there is none."""
        return {check.name: check for check in self.checks}[name]
