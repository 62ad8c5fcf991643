"""A run says what it did not try: declined features are counted, and kinds of case that it never reached are named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

import csa_spec
from csa_spec.engine.results import Verdict
from csa_spec.engine.running import CheckResult, draw_cases, run_check
from csa_spec.engine.stage import Setting
from csa_spec.plug.candidate import Candidate
from csa_spec.plug.capabilities import Capabilities
from csa_spec.profiles import PROFILES, Profile
from csa_spec.report.text import summarise
from csa_spec.spec import Geometry, LayerKind, LayerWeights
from csa_spec.stages.layer.case import Feature, LayerCase
from csa_spec.stages.layer.coverage import REQUIRED, kinds_of, required
from csa_spec.stages.layer.stage import LAYER
from csa_spec.stages.layer.trial import LayerTrial
from csa_spec.strategies.layer import cases, corner_cases
from csa_spec.target import Target
from engine.candidates import RIGHT, VECTORISED, as_specified, trace_batch
from engine.drawing import leave_out_corners

SMALL = Setting(ratios=frozenset({1, 2}))
CORNERS = Profile("corners", light=0, medium=0, heavy=0, law=0, costly=0, patience=float("inf"))
"""Draws nothing."""
PADDINGS = (Feature.LEFT_PADDING, Feature.RIGHT_PADDING)


def kinds(line: str) -> set[str]:
    """Return the kinds that a case belongs to."""
    case = LayerCase.parse(line)
    return kinds_of(case, LayerTrial(RIGHT, case).expected)


@pytest.mark.parametrize(
    ("kind", "line", "other"),
    [
        ("one token", "sliding rows=1", "sliding rows=2"),
        ("several rows", "sliding rows=2,2", "sliding rows=2"),
        ("several heads", "sliding H=2 rows=2", "sliding rows=2"),
        ("window of one token", "sliding rows=2", "sliding rows=1"),
        ("window shorter than the sequence", "sliding W=2 rows=3", "sliding W=3 rows=3"),
        ("window longer than the sequence", "sliding W=4 rows=3", "sliding W=3 rows=3"),
        ("sink that is not zero", "sliding rows=1 sinks=drawn", "sliding rows=1"),
        ("extreme sink", "sliding rows=1 sinks=extreme", "sliding rows=1 sinks=drawn"),
        ("some channels not rotated", "sliding D=4 rows=1", "sliding D=4 R=4 rows=1"),
        ("YaRN", "hca yarn=2/64/32/1 rows=1", "hca rows=1"),
        ("left padding", "hca rows=1<2", "hca rows=2"),
        ("right padding", "hca rows=1,2", "hca rows=2,2"),
        ("packed documents", "hca rows=1+2", "hca rows=3"),
        ("positions that do not start at 0", "hca rows=1@1", "hca rows=1"),
        ("shorter than one block", "hca m=2 rows=1", "hca m=2 rows=2"),
        ("partial tail", "hca m=2 rows=3", "hca m=2 rows=4"),
        ("entry completed at t", "hca m=2 rows=2", "hca m=2 rows=1"),
        ("entry completed at t", "hca rows=1", "sliding rows=1"),
        ("several entries", "hca m=2 rows=4", "hca m=2 rows=3"),
        ("ratio of 1", "csa rows=1", "csa m=2 rows=1"),
        ("window shorter than the ratio", "csa m=2 rows=2", "csa m=2 W=2 rows=2"),
        ("truncated top-k", "csa rows=2", "csa k=2 rows=2"),
        ("everything visible selected", "csa rows=1", "csa k=0 rows=1"),
        ("top_k of 0", "csa k=0 rows=1", "csa rows=1"),
        ("tie across k", "csa rows=2 scores=tied", "csa k=2 rows=2 scores=tied"),
        (
            "selection without a tie",
            "csa E=4 D=4 rows=2 values=gaussian scores=separated seed=4",
            "csa k=2 rows=2",
        ),
        ("several index heads", "csa HI=2 rows=1", "csa HI=2 rows=1 scores=plateau"),
        ("negative head weight", "csa HI=8 E=4 rows=3 values=gaussian", "csa HI=8 E=4 rows=3 scores=tied"),
    ],
)
def test_each_kind_of_case_is_told_from_its_neighbour(kind: str, line: str, other: str) -> None:
    """The smallest case of the kind, and the nearest one that is not."""
    assert kind in kinds(line)
    assert kind not in kinds(other)


def test_each_layer_kind_requires_what_the_simpler_one_does_and_more() -> None:
    """Sliding layers have a window, HCA layers entries as well, CSA layers a selection among them."""
    assert set(REQUIRED[LayerKind.SLIDING]) < set(REQUIRED[LayerKind.HCA]) < set(REQUIRED[LayerKind.CSA])


def test_what_must_be_reached_depends_on_what_the_candidate_supports() -> None:
    """What no corner case has once it fits is left out as declared, and cannot be missing."""

    def left_out(kind: LayerKind, **declared: Any) -> set[str]:
        candidate = replace(RIGHT, capabilities=Capabilities(**declared))
        target = Target(candidate, LAYER, kind, "float32", "cpu", CORNERS, 0)
        nothing = CheckResult("specification", "", "layer", kind)
        wanted = LAYER.all_required(kind, target.capabilities)
        assert target.missing(nothing) == wanted
        assert target.left_out(nothing) == []
        result = target.run(LAYER.checks[0])
        assert target.missing(result) == []
        left = set(target.left_out(result))
        assert {name for name in wanted if not result.reached[name]} == left
        return left

    assert {str(feature) for feature in Feature} <= set(required(LayerKind.CSA))
    lacks = {(LayerKind.CSA, feature): "reason" for feature in PADDINGS}
    assert left_out(LayerKind.CSA) == left_out(LayerKind.HCA) == left_out(LayerKind.SLIDING) == set()
    assert left_out(LayerKind.CSA, lacks=lacks) == {"left padding", "right padding"}
    assert left_out(LayerKind.HCA, lacks=lacks) == set()
    assert left_out(LayerKind.CSA, compress_ratios={4}) == {"ratio of 1"}
    dropped = {"shorter than one block", "partial tail", "window shorter than the ratio"}
    inside = "packed documents that start inside a block"
    assert left_out(LayerKind.CSA, compress_ratios={1}) == {*dropped, inside}


def run(candidate: Candidate, kind: LayerKind, examples: int, corners: bool = False) -> CheckResult:
    """Hold a candidate to the specification on small cases."""
    tried = [*(corner_cases(kind, SMALL) if corners else []), *draw_cases(cases(kind, SMALL), examples, 0)]
    return run_check(LAYER.checks[0], candidate, LAYER, tried, variant=kind)


def test_declined_features_are_counted_and_taken_out() -> None:
    """Each case is tried all the same, without what the candidate does not support."""
    result = run(VECTORISED, LayerKind.HCA, 15, corners=True)
    assert set(result.not_applicable) == {"left padding", "packed documents"}
    assert min(result.not_applicable.values()) > 1
    assert not set(result.not_applicable) & set(result.reached)
    assert result.cases == len(corner_cases(LayerKind.HCA, SMALL)) + 15
    assert result.failures == []


@pytest.mark.parametrize("kind", LayerKind)
def test_a_candidate_that_takes_no_padding_gets_none(kind: LayerKind) -> None:
    """Neither drawn nor as the rest of a case from which something else was taken out."""
    given: list[Tensor] = []

    def unpadded(
        hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
    ) -> Tensor:
        given.append(documents)
        return trace_batch(hidden, weights, geometry, positions, documents).out.to(hidden.dtype)

    lacks = {(kind, feature): "reason" for feature in PADDINGS}
    run(Candidate("unpadded", {"layer": unpadded}, Capabilities(lacks=lacks)), kind, 10, corners=True)
    assert len(given) > 20
    assert not [documents.tolist() for documents in given if (documents < 0).any()]


def test_a_run_without_corners_or_examples_is_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    """It found nothing, and says what it would have had to try."""
    leave_out_corners(monkeypatch)
    monkeypatch.setitem(PROFILES, "nothing", CORNERS)
    report = csa_spec.check(RIGHT, profile="nothing")
    assert report.verdict is Verdict.INCONCLUSIVE
    assert all(result.cases == 0 for result in report.results)
    assert report.missing["float32", LayerKind.CSA] == LAYER.all_required(LayerKind.CSA, Capabilities())
    text = summarise(report)
    assert "INCONCLUSIVE" in text
    assert (
        "inconclusive for hca in float32: no case of these kinds was reached: one token, several rows"
        in text
    )


def test_a_run_that_misses_one_kind_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """All other kinds were reached, and still nobody knows what YaRN would do."""
    leave_out_corners(monkeypatch, lambda case: case.yarn is not None)
    monkeypatch.setitem(PROFILES, "nothing", CORNERS)
    report = csa_spec.check(RIGHT, layer="hca", profile="nothing")
    assert report.missing["float32", LayerKind.HCA] == ["YaRN"]
    assert report.verdict is Verdict.INCONCLUSIVE


def test_corner_cases_alone_make_a_run_conclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few cases are drawn."""
    monkeypatch.setitem(PROFILES, "corners", CORNERS)
    report = csa_spec.check(Candidate("right", {"layer": as_specified()}), layer="hca", profile="corners")
    assert report.verdict is Verdict.CONFORMANT
