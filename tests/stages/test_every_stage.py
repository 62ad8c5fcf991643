"""Every stage that is registered has every part that the rest of the house asks of it."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch

from csa_spec.candidates.gather import load
from csa_spec.engine.failures import Failure
from csa_spec.engine.running import draw_cases, failure_of
from csa_spec.engine.stage import ROWS, SIDE_EFFECTS, SPECIFICATION, Setting
from csa_spec.engine.trial import main_output
from csa_spec.plug.arrays import map_tensors
from csa_spec.plug.call import Answer, LocalCaller
from csa_spec.plug.candidate import Candidate
from csa_spec.plug.capabilities import Capabilities
from csa_spec.profiles import PROFILES
from csa_spec.report.picture import picture
from csa_spec.report.text import describe
from csa_spec.stages import STAGES, AnyStage, parse_case, stage_of
from stages.streams import Tokens, candidate_of

EVERYTHING = Capabilities(invalid_indices=True, gradients=True)
RIGHT = {**load().stages, "cache": candidate_of(Tokens)}
"""Implementations of stages whose specification is not one differentiable function"""
ELSEWHERE = Setting("bfloat16", "cpu")

every_stage = pytest.mark.parametrize("stage", STAGES.values(), ids=list(STAGES))
every_kind = pytest.mark.parametrize(
    ("stage", "variant"),
    [
        pytest.param(stage, variant, id=f"{name}-{variant or 'any'}")
        for name, stage in STAGES.items()
        for variant in stage.variants
    ],
)


@cache
def corners(stage: str, variant: str, setting: Setting = Setting()) -> tuple[Any, ...]:
    """Return the cases that are written by hand."""
    return tuple(STAGES[stage].draws.corners(variant, setting))


@cache
def drawn(stage: str, variant: str, setting: Setting = Setting()) -> tuple[Any, ...]:
    """Return a few cases that are drawn."""
    return tuple(draw_cases(STAGES[stage].draws.cases(variant, setting), 10, 0))


def every_case(stage: AnyStage, variant: str) -> list[Any]:
    """Return cases of every kind."""
    production = stage.draws.production(variant, Setting())
    costly = [case for law in (True, False) for case in stage.draws.for_laws(variant, Setting(), law)]
    return [*corners(stage.name, variant), *drawn(stage.name, variant), *production, *costly]


class Wrong(LocalCaller):
    """Spoils what a right implementation returns: numbers are one too large, picks are all the same."""

    def __call__(self, *arguments: Any) -> Answer:
        """Return another answer."""
        answer = super().__call__(*arguments)
        out = main_output(answer)
        assert isinstance(out, torch.Tensor)
        spoiled = out + 1 if out.is_floating_point() else torch.zeros_like(out)
        if is_dataclass(answer.returned) and not isinstance(answer.returned, type):
            return Answer(replace(answer.returned, **{fields(answer.returned)[0].name: spoiled}))
        return Answer(spoiled)


def first_failure(stage: AnyStage, variant: str) -> Failure:
    """Return what is said of a wrong implementation on the first corner that shows it."""
    candidate = Candidate("wrong", {stage.name: RIGHT[stage.name]}, caller=Wrong())
    failures = (failure_of(stage.checks[0], candidate, stage, case) for case in corners(stage.name, variant))
    return next(failure for failure in failures if failure is not None)


@every_stage
def test_it_is_registered_under_its_name(stage: AnyStage) -> None:
    """Stage, case and trial agree on it, and its cases are told from those of others by their first word."""
    assert STAGES[stage.name] is stage
    assert stage.name == stage.case.stage == stage.trial.stage
    words = [word for one in STAGES.values() for word in one.case.first_words()]
    assert len(words) == len(set(words))
    assert stage.effort in {one.name for one in fields(PROFILES["default"])}
    assert stage.passes


@every_kind
def test_it_is_spoken_of(stage: AnyStage, variant: str) -> None:
    """A title, a noun for its output, a subject for tables, which no other stage has."""
    assert stage.words.title(variant).strip()
    assert stage.words.output.strip()
    assert stage.subject(variant).strip()
    subjects = [one.subject(kind) for one in STAGES.values() for kind in one.variants]
    assert len(subjects) == len(set(subjects))


@every_stage
def test_its_checks_have_names_and_sentences(stage: AnyStage) -> None:
    """The first compares with the specification; the laws of all stages are among the others."""
    first, *laws = stage.checks
    assert first.name == SPECIFICATION
    assert not first.law
    assert all(check.law for check in laws)
    assert set(SIDE_EFFECTS) <= set(laws)
    for texts in ([check.name for check in stage.checks], [check.sentence for check in stage.checks]):
        assert all(texts)
        assert len(texts) == len(set(texts))
    assert not stage.trial.batched or "rows" in {check.name for check in laws}
    assert ROWS.name == "rows"


@every_kind
def test_its_arguments_are_those_of_its_trial(stage: AnyStage, variant: str) -> None:
    """In the order in which a candidate is called; of several calls, those of the first."""
    given = tuple(stage.trial(Candidate("nobody"), corners(stage.name, variant)[0]).arguments)
    assert (given if stage.trial.through is None else given[: len(stage.arguments)]) == stage.arguments
    assert set(stage.trial.batched) <= set(given)


@every_kind
def test_its_strategies_draw_its_cases_where_they_are_asked_for(stage: AnyStage, variant: str) -> None:
    """Of the stage and layer kind, in the dtype of the setting."""
    for setting in (Setting(), ELSEWHERE):
        cases = [*corners(stage.name, variant, setting), *drawn(stage.name, variant, setting)]
        assert len(cases) > 10
        for case in cases:
            assert isinstance(case, stage.case)
            assert stage_of(case) is stage
            assert (case.variant, case.dtype, case.device) == (variant, setting.dtype, setting.device)


@every_kind
def test_its_corners_reach_every_kind_that_is_required(stage: AnyStage, variant: str) -> None:
    """So a run of any profile means something; what the candidate declares decides what is required."""
    for capabilities in (Capabilities(), EVERYTHING):
        candidate = Candidate("nobody", capabilities=capabilities)
        reached: set[str] = set()
        for case in corners(stage.name, variant):
            reached |= stage.trial(candidate, case.fit(capabilities)[0]).all_kinds()
        required = stage.all_required(variant, capabilities)
        assert required
        assert set(required) <= reached


@every_kind
def test_every_stage_has_cases_of_production_sizes(stage: AnyStage, variant: str) -> None:
    """Far larger than what is drawn."""
    production = stage.draws.production(variant, Setting())
    assert production
    usual = max(case.sizes["B"] * max(case.sizes.values()) for case in drawn(stage.name, variant))
    assert all(max(case.sizes.values()) > usual / 4 for case in production)


@every_kind
def test_a_right_implementation_is_right(stage: AnyStage, variant: str) -> None:
    """The specification's own answer is accepted; stages that no candidate here has are asked for it."""
    for case in corners(stage.name, variant)[:3]:
        trial = stage.trial(Candidate("right", {stage.name: RIGHT.get(stage.name, {})}), case)
        if stage.name not in RIGHT:
            exact = map_tensors(lambda _, x: x.double() if x.is_floating_point() else x, trial.arguments)
            (dtype, *_) = trial.form(trial.arguments).dtypes
            assert trial.judge(Answer(trial.specified(exact).to(dtype))).worst <= 1
        else:
            assert trial.judge(trial.answer).queries == trial.queries


@every_kind
def test_a_failure_is_drawn_and_explained(stage: AnyStage, variant: str) -> None:
    """By a picture of its own or the plain one; with the case and where the numbers are."""
    failure = first_failure(stage, variant)
    drawing = picture(failure)
    assert drawing is not None
    assert drawing.startswith("<svg")
    assert drawing.rstrip().endswith("</svg>")
    assert str(failure.case) in drawing
    text = describe(failure, "wrong", SPECIFICATION)
    assert f"smallest case found   {failure.case}" in text
    assert f"  {stage.words.output} " in text


@every_kind
def test_its_cases_are_lines_of_text(stage: AnyStage, variant: str) -> None:
    """They parse back, have words for people, plain JSON, and an order."""
    cases = every_case(stage, variant)
    for case in cases:
        assert parse_case(str(case)) == case
        assert hash(parse_case(str(case))) == hash(case)
        assert case.in_words()
        assert case.to_json()["stage"] == stage.name
    assert sorted(cases, key=lambda case: case.order)


@every_kind
def test_every_size_has_a_letter(stage: AnyStage, variant: str) -> None:
    """That capabilities may name, with the smallest legal size; the smallest case is legal."""
    letters = stage.case.letters()
    for case in every_case(stage, variant):
        assert set(case.sizes) <= set(letters)
        assert all(size >= letters[letter] for letter, size in case.sizes.items())
    names = {letter for case in every_case(stage, variant) for letter in case.sizes}
    used = {letter for kind in stage.variants for case in corners(stage.name, kind) for letter in case.sizes}
    assert used == set(letters)
    assert "B" in names
    assert parse_case(str(stage.case())) == stage.case()


@every_kind
def test_what_may_be_lacking_is_named(stage: AnyStage, variant: str) -> None:
    """Under the stage, the layer kind, or both; a case without it is a case."""
    may = stage.case.may_lack()
    own = {
        place: names
        for place, names in may.items()
        if place in (stage.name, variant, stage.subject(variant))
    }
    assert own
    for place, names in own.items():
        assert names
        assert len(names) == len(set(names))
        for name in names:
            capabilities = Capabilities(lacks={(place, name): "for a reason"})
            for case in drawn(stage.name, variant):
                fitting, _ = case.fit(capabilities)
                assert fitting.fit(capabilities) == (fitting, [])
