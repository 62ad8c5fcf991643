"""Failing cases shrink to the smallest shape that there is, by exhaustive search."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from torch import Tensor

from csa_spec.bugs.bug import following
from csa_spec.candidates.recognise import as_candidate
from csa_spec.engine.failures import Failure, SeesTooMuch, WrongNumbers
from csa_spec.engine.running import failure_of
from csa_spec.spec import SPEC, Geometry, LayerWeights
from csa_spec.spec.compressor import pooled_tokens
from csa_spec.spec.selection import select
from csa_spec.stages import parse_case
from csa_spec.stages.layer.case import LayerCase, Values
from csa_spec.stages.layer.stage import LAYER
from tools.minimality import measure, measure_bug, measure_failure
from tools.smaller_cases import letters, shape_of, smaller_cases

BROKEN = {
    "own unfinished block visible": {"visible_entries": lambda t, m: list(range(t // m + 1))},
    "window without its own token": {"window_tokens": lambda t, window: list(range(max(0, t - window), t))},
    "no overlap": {"pooled_tokens": lambda s, m, overlap: pooled_tokens(s, m, False)},
    "newest entries selected": {"select": lambda visible, scores, k: visible[max(0, len(visible) - k) :]},
    "one entry fewer selected": {
        "select": lambda visible, scores, k: select(visible, scores, max(0, k - 1))
    },
    "no softmax scale": {"softmax_scale": lambda geometry: 1.0},
}


FOUND = LayerCase.parse("csa m=2 k=2 W=3 E=4 H=2 D=4 HI=2 DI=4 rows=2,8 values=gaussian sinks=drawn seed=3")
"""Where the search starts: all of these bugs show"""


def test_what_is_reported_has_the_smallest_shape() -> None:
    """Of each of these bugs, though the case that is found is far from it."""
    for name, rules in BROKEN.items():
        candidate = as_candidate(following(replace(SPEC, **rules)), name, "layer")
        judge = partial(failure_of, LAYER.checks[0], candidate, LAYER)
        found = judge(FOUND)
        assert found is not None, name
        measured = measure_failure(found, judge, probes=5)
        assert measured.is_minimal, (name, str(measured.reported), str(measured.minimum))
        assert measured.complete, name


def test_the_exhaustive_search_finds_what_shrinking_missed() -> None:
    """A case that is reported too large is named, with what is smaller."""
    found = WrongNumbers(LayerCase.parse("csa m=2 k=2 rows=4"))
    hidden = {"S": 2, "m": 2, "k": 1, "W": 2, "H": 2}

    def judge(case: LayerCase) -> Failure | None:
        return WrongNumbers(case) if letters(case) == hidden and case.seed > 999 else None

    measured = measure_failure(found, judge, probes=24)
    assert measured.reported == found.case
    assert letters(measured.minimum) == hidden
    assert measured.steps == {"S": 2, "k": 1}


@pytest.mark.parametrize(
    ("line", "least"),
    [
        ("csa m=2 rows=3", {"S": {1, 2, 3}, "W": {1, 2, 3}}),
        ("select S=2 T=3 k=1", {"S": {1, 2, 3}, "T": {0, 1, 2, 3, 4}, "start": {0, 1}}),
        ("cache csa calls=2,rollback:1,2 m=2", {"S": {1, 2, 3, 4}, "calls": {1, 2, 3}, "m": {1, 2, 3}}),
    ],
)
def test_every_shape_of_the_search_is_smaller_and_in_order(line: str, least: dict[str, set[int]]) -> None:
    """In the order that shrinking has, for every stage."""
    reported = parse_case(line)
    tried = [probes[0] for probes in smaller_cases(reported, reported, 3)]
    shapes = [shape_of(case) for case in tried]
    assert shapes == sorted(shapes)
    assert shapes[-1] < shape_of(reported)
    assert len(set(map(str, tried))) == len(tried)
    for letter, sizes in least.items():
        assert {letters(case)[letter] for case in tried} == sizes


@pytest.mark.parametrize(
    "name",
    [
        "masks_keys_whose_logit_is_zero",
        "uses_the_position_of_the_first_query_for_all",
        "saturates_products_at_448",
        "rollback_does_nothing",
    ],
)
def test_cases_of_stages_and_caches_are_minimal_too(name: str) -> None:
    """Among them some for which a way down was missing."""
    (one,) = measure_bug(name, probes=6)
    assert one.is_minimal
    assert one.complete


def two_mistakes(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """Every query sees its unfinished block, and every output is a little too large."""
    rules = replace(SPEC, visible_entries=lambda t, m: list(range(t // m + 1)))
    return 1.01 * following(rules)(hidden, weights, geometry, positions, documents)


def test_the_kind_stays_pinned_where_another_kind_fails_on_smaller_cases() -> None:
    """Wrong numbers show with one token; seeing too much needs a block that is not complete."""
    measured = measure(as_candidate(two_mistakes, "two mistakes", "layer"), "csa", every=True, probes=0)
    by_kind = {one.kind: one for one in measured}
    assert set(by_kind) == {WrongNumbers.__name__, SeesTooMuch.__name__}
    assert letters(by_kind["WrongNumbers"].reported) == {"S": 1, "m": 1, "k": 0, "W": 1, "H": 1}
    assert by_kind["SeesTooMuch"].reported.columns == 2
    assert by_kind["SeesTooMuch"].reported.geometry.compress_ratio == 2


def test_values_are_zeros_and_ones_where_they_show_it() -> None:
    """After the shape is settled."""
    (one,) = measure(
        as_candidate(
            following(replace(SPEC, output_position=lambda position: position)), "forwards", "layer"
        ),
        "sliding",
        probes=8,
    )
    assert one.reported.values is Values.UNITS
    assert one.is_minimal
