"""What the specification records of a query is consistent with itself: every figure follows from the others."""
# ruff: noqa: D103

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from oracles import TOLERANCE, error, small_inputs

from csa_spec.spec import (
    BatchTrace,
    Document,
    DocumentTrace,
    Geometry,
    LayerKind,
    QueryTrace,
    answer_query,
    attend_batch,
)
from csa_spec.spec.output import project_output
from csa_spec.spec.rope import rotate
from csa_spec.spec.selection import visible_entries
from csa_spec.spec.window import window_tokens
from csa_spec.stages.layer.case import Sinks
from csa_spec.stages.layer.inputs import Inputs

ROWS = ("2<7+5@4", "19", "1<3+3+3@1000")

# Kinds, and for CSA layers every relation of k to the number of entries.
LAYERS = [("csa", 0), ("csa", 1), ("csa", 2), ("csa", 5), ("csa", 6), ("csa", 9), ("hca", 1), ("sliding", 1)]

Traced = tuple[Inputs, Geometry, BatchTrace]


@pytest.fixture(scope="module", params=LAYERS, ids=lambda layer: f"{layer[0]}, k={layer[1]}")
def traced(request: pytest.FixtureRequest) -> Traced:
    kind, top_k = request.param
    inputs, geometry = small_inputs(kind, *ROWS, top_k=top_k, sinks=Sinks.EXTREME, seed=1)
    return (
        inputs,
        geometry,
        attend_batch(inputs.hidden, inputs.weights, geometry, inputs.positions, inputs.documents),
    )


def queries(traced: Traced) -> Iterator[tuple[DocumentTrace, QueryTrace]]:
    for document in traced[2].documents:
        for query in document.queries:
            yield document, query


def test_every_token_of_every_document_has_a_query(traced: Traced) -> None:
    inputs, _, trace = traced
    places = [document.context.document for document in trace.documents]
    assert places == [
        Document(0, 2, 7, 4), Document(0, 9, 5, 4), Document(1, 0, 19, 0), Document(2, 1, 3, 1000),
        Document(2, 4, 3, 1000), Document(2, 7, 3, 1000),
    ]  # fmt: skip
    for document, place in zip(trace.documents, places, strict=True):
        assert [query.t for query in document.queries] == list(range(place.length))
        assert torch.equal(document.context.hidden, inputs.hidden[place.row, place.columns])


def test_outputs_are_those_of_the_queries(traced: Traced) -> None:
    for document in traced[2].documents:
        place = document.context.document
        assert torch.equal(document.out, torch.stack([query.out for query in document.queries]))
        assert torch.equal(traced[2].out[place.row, place.columns], document.out)


def test_shapes_are_as_documented(traced: Traced) -> None:
    _, geometry, _ = traced
    for document, query in queries(traced):
        context = document.context
        length, entries = len(document.queries), geometry.entry_count(len(document.queries))
        assert context.frequencies.shape == (geometry.rope_dim // 2,)
        assert context.window_keys.shape == (length, geometry.head_dim)
        assert context.entries.shape == (entries, geometry.head_dim)
        indexed = entries if geometry.kind is LayerKind.CSA else 0
        assert context.index_keys.shape == (indexed, geometry.index_head_dim)
        assert query.q.shape == query.core.shape == (geometry.heads, geometry.head_dim)
        assert query.probabilities.shape == (geometry.heads, len(query.window) + len(query.selection))
        assert query.scores.shape == (len(query.visible) if geometry.kind is LayerKind.CSA else 0,)
        assert query.out.shape == (geometry.hidden,)


def test_window_and_visible_entries_are_those_of_the_rules(traced: Traced) -> None:
    _, geometry, _ = traced
    for _, query in queries(traced):
        sliding = geometry.kind is LayerKind.SLIDING
        assert query.window == window_tokens(query.t, geometry.window)
        assert query.visible == ([] if sliding else visible_entries(query.t, geometry.compress_ratio))


def test_a_selection_holds_visible_entries_best_first_and_as_many_as_it_may(traced: Traced) -> None:
    _, geometry, _ = traced
    for _, query in queries(traced):
        if geometry.kind is not LayerKind.CSA:
            assert query.selection == query.visible
            continue
        assert len(set(query.selection)) == len(query.selection) == min(geometry.top_k, len(query.visible))
        assert set(query.selection) <= set(query.visible)
        chosen = query.scores[query.selection].tolist()
        assert chosen == sorted(query.scores.tolist(), reverse=True)[: geometry.top_k]


def test_there_is_a_margin_exactly_where_some_entries_are_selected_and_some_rejected(traced: Traced) -> None:
    margins = 0
    for _, query in queries(traced):
        rejected = set(query.visible) - set(query.selection)
        assert (query.margin is not None) == bool(query.selection and rejected)
        if query.margin is not None:
            margins += 1
            worst = min(query.scores[s].item() for s in query.selection)
            assert query.margin == worst - max(query.scores[s].item() for s in rejected) >= 0
    _, geometry, _ = traced
    assert bool(margins) == (geometry.kind is LayerKind.CSA and 0 < geometry.top_k < 6)


def test_probabilities_and_the_share_of_the_sink_sum_to_1(traced: Traced) -> None:
    inputs, geometry, _ = traced
    sink = inputs.weights.attn_sink
    assert sink.isinf().any()
    for document, query in queries(traced):
        keys = torch.cat(
            (document.context.window_keys[query.window], document.context.entries[query.selection])
        )
        logits = torch.cat((geometry.head_dim**-0.5 * query.q @ keys.T, sink[:, None]), dim=1)
        shares = logits.softmax(dim=1)
        assert error(query.probabilities, shares[:, :-1], 1.0) <= TOLERANCE
        assert error(query.probabilities.sum(1) + shares[:, -1], torch.ones_like(sink)) <= TOLERANCE
        assert (query.probabilities >= 0).all()


def test_core_and_output_follow_from_the_probabilities(traced: Traced) -> None:
    inputs, geometry, _ = traced
    for document, query in queries(traced):
        context = document.context
        keys = torch.cat((context.window_keys[query.window], context.entries[query.selection]))
        assert error(query.core, query.probabilities @ keys) <= TOLERANCE
        heads_out = rotate(query.core, -(context.document.start + query.t), context.frequencies)
        out = project_output(heads_out, inputs.weights.wo_a, inputs.weights.wo_b, geometry.o_groups)
        assert torch.equal(query.out, out)


def test_queries_and_window_keys_are_normed(traced: Traced) -> None:
    inputs, geometry, _ = traced
    for document, query in queries(traced):
        context = document.context
        key = rotate(context.window_keys[query.t], -(context.document.start + query.t), context.frequencies)
        lengths = torch.cat((query.q, (key / inputs.weights.kv_norm)[None])).square().mean(-1).sqrt()
        # But for eps.
        assert lengths.tolist() == pytest.approx([1.0] * (geometry.heads + 1), abs=1e-3)


def test_a_query_asked_alone_gets_the_same_trace(traced: Traced) -> None:
    inputs, geometry, _ = traced
    for document, query in queries(traced):
        again = answer_query(query.t, document.context, inputs.weights, geometry)
        assert torch.equal(again.out, query.out)
        assert (again.window, again.visible, again.selection) == (
            query.window,
            query.visible,
            query.selection,
        )


def test_a_query_that_is_told_its_selection_keeps_its_scores_and_margin(traced: Traced) -> None:
    inputs, geometry, _ = traced
    told = 0
    for document, query in queries(traced):
        if len(query.visible) < 2:
            continue
        told += 1
        selection = [query.visible[-1], query.visible[0]]
        again = answer_query(query.t, document.context, inputs.weights, geometry, selection=selection)
        assert again.selection == selection
        assert again.margin == query.margin
        assert torch.equal(again.scores, query.scores)
        assert again.probabilities.shape[1] == len(query.window) + 2
    assert bool(told) == (geometry.kind is not LayerKind.SLIDING)
