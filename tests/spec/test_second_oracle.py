"""The specification and an independent second oracle compute the same, step by step, on drawn cases.

The second oracle is dense, complex-valued numpy and shares no code with the specification: a mistake would have
to be made twice. Near ties are the one place where two right evaluations may part: both then go on from the
specification's selection, and how often that happens is counted.
"""
# ruff: noqa: D103

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from oracles import TOLERANCE, Array, error, output_scale, score_scale, second_batch, second_layer
from second_oracle import Result

from csa_spec.engine.stage import Setting
from csa_spec.spec import DocumentTrace, LayerKind, attend_batch
from csa_spec.stages.layer.case import LayerCase, Scores, Values
from csa_spec.stages.layer.inputs import Inputs, make_inputs
from csa_spec.strategies.layer import cases

NEAR = 1e-9
"""Margins below this share of the score scale are near ties. Rounding moves scores a million times less, but
what it does to a score that nearly cancels is not worth an analysis here."""


@dataclass(slots=True)
class Tally:
    """What was compared, so that agreement means something."""

    count: Counter[str] = field(default_factory=Counter)
    worst: dict[str, float] = field(default_factory=dict)

    def hold(self, step: str, value: float) -> None:
        """Fail unless an error is within the tolerance."""
        __tracebackhide__ = True
        self.worst[step] = max(self.worst.get(step, 0.0), value)
        assert value <= TOLERANCE, f"{step}: the oracles differ by {value:.1e} of their scale"


SMALL, LARGER = (1, 2, 3, 4), (5, 6, 7, 8, 16)
"""Ratios. Most cases have a small one: the same entries in fewer tokens, hence more cases in the same time."""


def test_sliding_layers_agree_at_every_step() -> None:
    tally = _compare_drawn_cases(LayerKind.SLIDING, SMALL, 250)
    assert tally.count["queries"] >= 1500


def test_hca_layers_agree_at_every_step() -> None:
    tally = _compare_drawn_cases(LayerKind.HCA, SMALL, 400)
    assert tally.count["entries"] >= 1500


def test_csa_layers_agree_at_every_step_and_choose_the_same_entries() -> None:
    tally = _compare_drawn_cases(LayerKind.CSA, SMALL, 600)
    assert tally.count["entries"] >= 1500
    assert tally.count["queries that choose"] >= 1000
    assert tally.count["exact ties"] >= 100


@pytest.mark.parametrize("kind", list(LayerKind))
def test_layers_of_larger_ratios_agree_at_every_step(kind: LayerKind) -> None:
    tally = _compare_drawn_cases(kind, LARGER, 40)
    assert tally.count["queries"] >= 400


@pytest.mark.parametrize("kind", [LayerKind.CSA, LayerKind.HCA])
def test_layers_of_the_released_hca_ratio_agree_at_every_step(kind: LayerKind) -> None:
    tally = _compare_drawn_cases(kind, (128,), 6)
    assert tally.count["entries"] >= 4


def _compare_drawn_cases(kind: LayerKind, ratios: Collection[int], examples: int) -> Tally:
    tally = Tally()

    # Derandomized, so that a failure comes back: drawing anew in every run is the conformance suite's business. No
    # batch is larger than 16 of the longest blocks: three equal rows of three documents tell no more than two short.
    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(
        cases(kind, Setting(ratios=frozenset(ratios))).filter(
            lambda case: len(case.rows) * case.columns <= 16 * max(ratios)
        )
    )
    def compare(case: LayerCase) -> None:
        _compare(case, tally)

    compare()
    assert tally.count["cases"] >= 0.9 * examples
    # Left to themselves scores come this close about once in 1/NEAR queries. Small integers may tie exactly in one
    # order of summation and not in another, and near-tied cases are what they say. More would hide a disagreement.
    assert tally.count["near ties"] == 0
    assert tally.count["near ties where they are to be expected"] <= tally.count["queries that choose"] / 100
    return tally


def _compare(case: LayerCase, tally: Tally) -> None:
    inputs = make_inputs(case).double()
    trace = attend_batch(inputs.hidden, inputs.weights, case.geometry, inputs.positions, inputs.documents)
    results = [_second(document, case, inputs, tally) for document in trace.documents]
    for document, (result, _) in zip(trace.documents, results, strict=True):
        _compare_steps(document, result, case, inputs, tally)
    tally.count["cases"] += 1
    if not any(forced for _, forced in results):
        scale = max(output_scale(result.core_out, inputs.weights) for result, _ in results)
        tally.hold("batch", error(trace.out, second_batch(inputs, case.geometry), scale))


def _second(document: DocumentTrace, case: LayerCase, inputs: Inputs, tally: Tally) -> tuple[Result, bool]:
    """Run the second oracle on a document; True if it had to be told the selection of a query."""
    hidden, start, geometry = document.context.hidden, document.context.document.start, case.geometry
    result = second_layer(hidden, inputs.weights, geometry, start)
    if result.index_scores is None:
        return result, False
    scales = score_scale(hidden, inputs.weights, geometry, document.context.index_keys)
    forced = False
    for query in document.queries:
        theirs = result.index_scores[query.t, query.visible]
        same = sorted(query.selection) == result.selection[query.t]
        margins = _margin(query.scores.numpy(), geometry.top_k), _margin(theirs, geometry.top_k)
        tally.count["queries that choose"] += margins[0] is not None
        tally.count["exact ties"] += margins == (0.0, 0.0)
        if any(margin and margin < NEAR * scales[query.t] for margin in margins):
            expected = case.values is Values.INTEGERS or case.scores is Scores.NEAR_TIED
            tally.count["near ties" + " where they are to be expected" * expected] += 1
            forced |= not same
        else:
            assert same, (
                f"query {query.t} selects {query.selection}, the second oracle {result.selection[query.t]}"
            )
    if forced:
        chosen = [query.selection for query in document.queries]
        result = second_layer(hidden, inputs.weights, geometry, start, chosen)
    return result, forced


def _compare_steps(
    document: DocumentTrace, result: Result, case: LayerCase, inputs: Inputs, tally: Tally
) -> None:
    context, queries = document.context, document.queries
    tally.count["queries"] += len(queries)
    tally.count["entries"] += len(context.entries)
    tally.hold("entries", error(context.entries, result.entries))
    tally.hold("window keys", error(context.window_keys, result.window_kv))
    tally.hold("queries", error(torch.stack([query.q for query in queries]), result.q))
    if result.index_scores is not None:
        scales = score_scale(context.hidden, inputs.weights, case.geometry, context.index_keys)
        for query in queries:
            theirs = result.index_scores[query.t, query.visible]
            tally.hold("scores", error(query.scores, theirs, float(scales[query.t])))
    tally.hold("probabilities", error(_dense_probabilities(document, result), result.probabilities, 1.0))
    tally.hold("core", error(torch.stack([query.core for query in queries]), result.core_out))
    tally.hold("output", error(document.out, result.out, output_scale(result.core_out, inputs.weights)))


def _dense_probabilities(document: DocumentTrace, result: Result) -> Array:
    dense = np.zeros_like(result.probabilities)
    for query in document.queries:
        columns = query.window + [len(document.queries) + s for s in query.selection]
        assert len(set(columns)) == len(columns)
        dense[query.t][:, columns] = query.probabilities.numpy()
    return dense


def _margin(scores: Array, top_k: int) -> float | None:
    if not 0 < top_k < len(scores):
        return None
    ranked = np.sort(scores)[::-1]
    return float(ranked[top_k - 1] - ranked[top_k])
