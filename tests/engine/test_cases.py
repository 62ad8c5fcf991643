"""Cases of every stage: whatever is drawn, written by hand, made smaller or made to fit is a case."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from csa_spec.engine.case import CaseError
from csa_spec.engine.stage import Setting
from csa_spec.plug.capabilities import AllBut, Capabilities
from csa_spec.stages import STAGES, AnyStage, parse_case

FIRST = 150
"""Cases of each pass of a shrinker"""
SMALL = 12
"""Tokens or queries"""
quickly = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
every_kind = pytest.mark.parametrize(
    ("stage", "variant"),
    [
        pytest.param(stage, variant, id=f"{name}-{variant or 'any'}")
        for name, stage in STAGES.items()
        for variant in stage.variants
    ],
)


def hold(case: Any) -> None:
    """Check that a case is one: its line gives it back."""
    again = parse_case(str(case))
    assert again == case
    assert type(again) is type(case)
    assert str(again) == str(case)
    assert (hash(again), again.id, again.order) == (hash(case), case.id, case.order)
    assert all(size >= case.letters()[letter] for letter, size in case.sizes.items())


@st.composite
def declarations(draw: st.DrawFn, stage: AnyStage, variant: str) -> Capabilities:
    """Limits of a few sizes, which may contradict each other, for all layer kinds or for one."""
    letters = draw(st.lists(st.sampled_from(sorted(stage.case.letters())), min_size=1, max_size=4))
    values: Mapping[str, st.SearchStrategy[Any]] = {
        "limits": st.integers(0, 40),
        "least": st.integers(0, 9),
        "multiples": st.integers(1, 9),
        "allowed": st.sets(st.integers(0, 20), max_size=4) | st.builds(AllBut, st.integers(1, 8)),
    }
    given_sizes: dict[str, dict[Any, Any]] = {name: {} for name in values}
    for letter in letters:
        key = draw(st.sampled_from([letter, *([(variant, letter)] if variant else [])]))
        name = draw(st.sampled_from(sorted(values)))
        given_sizes[name][key] = draw(values[name])
    return Capabilities(**given_sizes, static_shapes=draw(st.sampled_from((False, False, False, True))))


def fits(case: Any, declared: Capabilities) -> bool:
    """Whether a case is supported as it is."""
    try:
        return bool(case.fit(declared)[0] == case)
    except CaseError:
        return False


def cases_of(stage: AnyStage, variant: str) -> st.SearchStrategy[Any]:
    """Return what is drawn of a stage, and what is written by hand."""
    draws, setting = stage.draws, Setting()
    written = [*draws.corners(variant, setting), *draws.production(variant, setting)]
    return draws.cases(variant, setting) | st.sampled_from(written)


@every_kind
def test_every_case_that_is_written_by_hand_parses_back(stage: AnyStage, variant: str) -> None:
    """Corners, those of laws, and those of production sizes."""
    draws, setting = stage.draws, Setting("bfloat16")
    laws = [case for costly in (True, False) for case in draws.for_laws(variant, setting, costly)]
    for case in (*draws.corners(variant, setting), *draws.production(variant, setting), *laws):
        hold(case)


@every_kind
def test_every_case_that_is_drawn_parses_back(stage: AnyStage, variant: str) -> None:
    """In any mode, whose name may have blanks."""

    @quickly
    @given(stage.draws.cases(variant, Setting(modes=("", "two words"))))
    def run(case: Any) -> None:
        hold(case)

    run()


def is_small(case: Any) -> bool:
    """Whether passes that go through every smaller shape come to an end soon."""
    return bool(case.sizes["B"] * case.sizes.get("S", 1) <= SMALL)


@every_kind
def test_every_case_of_every_pass_of_a_shrinker_parses_back(stage: AnyStage, variant: str) -> None:
    """So a failure never shows a case that cannot be tried again. A first pass of all makes cases small."""
    corners = [case for case in stage.draws.corners(variant, Setting()) if is_small(case)]
    drawn = stage.draws.cases(variant, Setting()).filter(is_small)
    seen: set[Any] = set()

    def hold_all(pass_: Callable[[Any], Iterator[Any]], case: Any) -> None:
        for smaller in islice(pass_(case), FIRST):
            if smaller not in seen:
                seen.add(smaller)
                assert (smaller.stage, smaller.variant) == (stage.name, variant)
                hold(smaller)

    @settings(quickly, max_examples=3)
    @given(drawn | st.sampled_from(corners))
    def run(case: Any) -> None:
        for pass_ in stage.passes:
            hold_all(pass_, case)

    run()
    assert len(seen) > 100


@every_kind
def test_a_case_is_made_to_fit_or_refused(stage: AnyStage, variant: str) -> None:
    """All its sizes are allowed then, and it fits as it is; what leaves no case is one sentence."""
    fitted, refusals = [], []

    @settings(quickly, max_examples=50)
    @given(cases_of(stage, variant), declarations(stage, variant))
    def run(case: Any, declared: Capabilities) -> None:
        try:
            fitting, reasons = case.fit(declared)
        except CaseError as error:
            refusals.append(str(error))
            return
        hold(fitting)
        rules = {letter: declared.rule(letter, variant) for letter in fitting.sizes}
        assert all(rules[letter].allows(size) for letter, size in fitting.sizes.items())
        assert fitting.fit(declared) == (fitting, [])
        assert reasons or fitting == case.formed(declared) or declared.static_shapes
        assert (fitting.stage, fitting.variant) == (stage.name, variant)
        fitted.append(fitting)

    run()
    assert len(fitted) > 10
    assert all(refusals)
    assert not any("\n" in refusal for refusal in refusals)


@every_kind
def test_cases_outside_a_declaration_are_outside_by_that_alone(stage: AnyStage, variant: str) -> None:
    """Each is a case, has what is named as not supported, and nothing else that is declared away."""
    tried = []

    @quickly
    @given(cases_of(stage, variant), declarations(stage, variant))
    def run(case: Any, declared: Capabilities) -> None:
        try:
            fitting, _ = case.fit(declared)
        except CaseError:
            return
        for outside, reason in fitting.outside(declared):
            hold(outside)
            assert reason
            assert not fits(outside, declared)
            tried.append(outside)

    run()
    assert tried
