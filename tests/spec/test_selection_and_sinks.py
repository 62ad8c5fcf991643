"""Ties, empty and overfull selections, extreme sinks, and documents too short for an entry."""
# ruff: noqa: D103

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from oracles import TOLERANCE, error, second_layer, small_inputs, with_weights
from torch import Tensor

from csa_spec.spec import Document, DocumentTrace, Geometry, LayerKind, LayerWeights, attend_document
from csa_spec.spec.attention import attend
from csa_spec.stages.layer.case import Scores
from csa_spec.stages.layer.inputs import Inputs

KINDS = ("csa", "hca", "sliding")


def run(inputs: Inputs, geometry: Geometry, weights: LayerWeights | None = None) -> DocumentTrace:
    hidden = inputs.hidden[0]
    return attend_document(hidden, Document(0, 0, len(hidden), 0), weights or inputs.weights, geometry)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def as_sliding(inputs: Inputs, geometry: Geometry) -> tuple[LayerWeights, Geometry]:
    """Return the same layer without entries, on the table of a layer with entries."""
    own = {name: tensor for name, tensor in inputs.weights.named().items() if "." not in name}
    return LayerWeights.from_named(own), replace(
        geometry, kind=LayerKind.SLIDING, rope_theta=geometry.compress_rope_theta
    )


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_among_entries_that_all_tie_the_lowest_are_selected(top_k: int) -> None:
    inputs, geometry = small_inputs("csa", "19", scores=Scores.TIED, top_k=top_k)
    for query in run(inputs, geometry).queries:
        assert query.scores.tolist() == [0.0] * len(query.visible)
        assert query.selection == list(range(min(top_k, len(query.visible))))
        assert query.margin == (0.0 if len(query.visible) > top_k else None)


def test_entries_below_the_relu_tie_at_zero_and_the_lowest_of_them_is_selected() -> None:
    ties = 0
    for seed in range(4):
        inputs, geometry = small_inputs(
            "csa", "19", scores=Scores.PLATEAU, top_k=3, index_heads=1, seed=seed
        )
        for query in run(inputs, geometry).queries:
            if query.margin == 0.0:
                ties += 1
                last, score = query.selection[-1], query.scores.tolist()
                rejected = [s for s in query.visible if s not in query.selection]
                assert all(s > last for s in rejected if score[s] == score[last])
    assert ties >= 5


def test_negative_scores_are_selected_like_any_other() -> None:
    inputs, geometry = small_inputs("csa", "19", top_k=2)
    assert inputs.weights.indexer is not None
    # Positive tokens and negative head weights: no score can be above 0.
    negative = with_weights(inputs.weights, indexer__weights_proj=-inputs.weights.indexer.weights_proj.abs())
    inputs = replace(inputs, hidden=inputs.hidden.abs())
    trace = run(inputs, geometry, negative)
    scores = torch.cat([query.scores for query in trace.queries])
    assert (scores <= 0).all()
    assert any((query.scores[query.selection] < 0).any() for query in trace.queries)
    for query in trace.queries:
        assert len(query.selection) == min(2, len(query.visible))
        assert query.scores[query.selection].tolist() == sorted(query.scores.tolist(), reverse=True)[:2]


def test_without_selection_a_csa_layer_is_its_sliding_window() -> None:
    inputs, geometry = small_inputs("csa", "19", top_k=0)
    trace = run(inputs, geometry)
    assert all(query.selection == [] and query.margin is None for query in trace.queries)
    assert len(trace.queries[-1].visible) == 6
    weights, sliding = as_sliding(inputs, geometry)
    assert torch.equal(trace.out, run(inputs, sliding, weights).out)


@pytest.mark.parametrize("top_k", [6, 7, 100])
def test_a_selection_of_all_entries_does_not_depend_on_the_indexer(top_k: int) -> None:
    inputs, geometry = small_inputs("csa", "19", top_k=top_k)
    trace = run(inputs, geometry)
    assert all(sorted(query.selection) == query.visible and query.margin is None for query in trace.queries)
    named = inputs.weights.named()
    others = {name: -2 * tensor for name, tensor in named.items() if name.startswith("indexer.")}
    other = run(inputs, geometry, LayerWeights.from_named(named | others))
    assert any(a.selection != b.selection for a, b in zip(trace.queries, other.queries, strict=True))
    assert error(other.out, trace.out) <= TOLERANCE


def test_one_place_fewer_than_entries_rejects_one_entry_of_the_last_query_only() -> None:
    inputs, geometry = small_inputs("csa", "18", top_k=5)
    *earlier, last = run(inputs, geometry).queries
    assert (len(last.visible), len(last.selection)) == (6, 5)
    assert last.margin is not None
    assert all(query.margin is None for query in earlier)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", range(1, 9))
def test_the_shortest_documents_have_one_entry_for_every_complete_block(kind: str, length: int) -> None:
    inputs, geometry = small_inputs(kind, str(length))
    trace = run(inputs, geometry)
    assert len(trace.context.entries) == (0 if kind == "sliding" else length // 3)
    assert len(trace.context.index_keys) == (length // 3 if kind == "csa" else 0)
    assert error(trace.out, second_layer(inputs.hidden[0], inputs.weights, geometry).out) <= TOLERANCE


@pytest.mark.parametrize("kind", ["csa", "hca"])
def test_a_document_shorter_than_a_block_sees_its_window_only(kind: str) -> None:
    inputs, geometry = small_inputs(kind, "6", compress_ratio=7)
    trace = run(inputs, geometry)
    assert all(query.visible == query.selection == [] for query in trace.queries)
    weights, sliding = as_sliding(inputs, geometry)
    assert torch.equal(trace.out, run(inputs, sliding, weights).out)


def test_a_lone_token_without_sink_attends_to_itself_alone() -> None:
    inputs, geometry = small_inputs("sliding", "1")
    weights = with_weights(inputs.weights, attn_sink=torch.full((4,), -math.inf, dtype=torch.float64))
    (query,) = run(inputs, geometry, weights).queries
    assert query.probabilities.tolist() == [[1.0]] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_sink_of_minus_infinity_leaves_a_plain_softmax(kind: str) -> None:
    inputs, geometry = small_inputs(kind, "11")
    weights = with_weights(inputs.weights, attn_sink=torch.full((4,), -math.inf, dtype=torch.float64))
    trace = run(inputs, geometry, weights)
    for query in trace.queries:
        assert error(query.probabilities.sum(-1), torch.ones(4).double()) <= TOLERANCE
    assert error(trace.out, second_layer(inputs.hidden[0], weights, geometry).out) <= TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sink", [1e3, 1e300])
def test_a_huge_sink_takes_everything_without_overflow(kind: str, sink: float) -> None:
    inputs, geometry = small_inputs(kind, "11")
    weights = with_weights(inputs.weights, attn_sink=doubles(sink, 0.0, sink, 0.0))
    for query in run(inputs, geometry, weights).queries:
        assert query.out.isfinite().all()
        assert torch.equal(query.core[[0, 2]], torch.zeros(2, 8).double())
        assert (query.core[[1, 3]] != 0).any(-1).all()


@pytest.mark.parametrize("sink", [-1e300, -1e3])
def test_a_sink_far_below_the_logits_is_no_sink(sink: float) -> None:
    inputs, geometry = small_inputs("csa", "11")
    without = with_weights(inputs.weights, attn_sink=torch.full((4,), -math.inf, dtype=torch.float64))
    almost = with_weights(inputs.weights, attn_sink=torch.full((4,), sink, dtype=torch.float64))
    assert torch.equal(run(inputs, geometry, almost).out, run(inputs, geometry, without).out)


def test_the_softmax_has_the_sink_in_its_denominator_unscaled() -> None:
    q, keys, sink = (
        doubles(2.0, 0.0)[None],
        torch.stack((doubles(1.0, 3.0), doubles(2.0, 5.0))),
        doubles(0.7),
    )
    out, probabilities = attend(q, keys, sink, 0.5)
    weights = [math.exp(1.0), math.exp(2.0)]
    total = sum(weights) + math.exp(0.7)
    assert error(probabilities, doubles(*weights)[None] / total) <= TOLERANCE
    assert (
        error(out, doubles(weights[0] + 2 * weights[1], 3 * weights[0] + 5 * weights[1])[None] / total)
        <= TOLERANCE
    )


def test_logits_that_overflow_the_exponential_are_fine() -> None:
    q, keys = doubles(1e4, 0.0)[None], torch.stack((doubles(1.0, 3.0), doubles(0.0, 5.0)))
    out, probabilities = attend(q, keys, doubles(-1e4), 1.0)
    assert probabilities.tolist() == [[1.0, 0.0]]
    assert out.tolist() == [[1.0, 3.0]]


@pytest.mark.parametrize("sink", [-math.inf, 0.0, 1e300])
def test_without_keys_the_output_is_exactly_zero(sink: float) -> None:
    out, probabilities = attend(doubles(1.0, 2.0)[None], torch.zeros(0, 2).double(), doubles(sink), 1.0)
    assert out.tolist() == [[0.0, 0.0]]
    assert probabilities.shape == (1, 0)
