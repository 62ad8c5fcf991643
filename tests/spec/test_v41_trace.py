"""What layers of a stack publish and read is in the trace, and follows from the roles of the layers."""
# ruff: noqa: D103

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from oracles import TOLERANCE, error
from stacks import DrawnStack, make_stack, with_weight

from csa_spec.spec import SPEC, Spec
from csa_spec.spec.v41 import (
    STACK_SPEC,
    LayerRole,
    Sources,
    StackDocumentTrace,
    StackGeometry,
    StackSpec,
    attend_stack_document,
    layer_role,
    stack_weight_shapes,
    stack_weights,
)

RELEASED = StackGeometry(
    compress_ratios=[0] * 2 + [2] * 18 + [1] * 20 + [0] * 3,
    kv_source_layers=[2, 8, 14, 20],
    index_source_layers=[2, 8, 14, 20, 24, 28, 32, 36],
    candidate_source_layer=20,
    candidate_blocks=2048,
    candidate_block_size=8,
    top_k=512,
)
SMALL: dict[str, Any] = {
    "compress_ratios": [0, 2, 2, 1, 1, 1, 1],
    "kv_source_layers": [1, 3],
    "index_source_layers": [1, 3, 5],
    "candidate_source_layer": 3,
    "candidate_blocks": 2,
    "candidate_block_size": 2,
    "top_k": 3,
    "window": 2,
}
LENGTH = 13


@pytest.fixture(scope="module")
def stack() -> DrawnStack:
    return make_stack(str(LENGTH), **SMALL)


@pytest.fixture(scope="module")
def trace(stack: DrawnStack) -> StackDocumentTrace:
    (document,) = stack.run().documents
    return document


def test_layers_of_the_released_model_have_their_roles() -> None:
    roles = [layer_role(RELEASED, layer) for layer in range(RELEASED.layers)]
    assert [layer for layer, role in enumerate(roles) if role is LayerRole.OWNER] == [2, 8, 14, 20]
    assert [layer for layer, role in enumerate(roles) if role is LayerRole.REINDEX] == [24, 28, 32, 36]
    assert [layer for layer, role in enumerate(roles) if role is LayerRole.SLIDING] == [0, 1, 40, 41, 42]
    assert roles.count(LayerRole.REUSE) == 30
    names = [name for layer in range(RELEASED.layers) for name in stack_weight_shapes(RELEASED, layer)]
    counted = {name: names.count(name) for name in names}
    # What the checkpoint has.
    assert (counted["compressor.wkv"], counted["compressor.wgate"]) == (4, 3)
    assert (counted["indexer.wq_b"], counted["indexer.wk"]) == (8, 4)


def test_a_layer_reads_the_newest_publications(trace: StackDocumentTrace) -> None:
    assert [layer.sources for layer in trace.layers] == [
        Sources(),
        Sources(1, 1, 1),
        Sources(1, None, 1),
        Sources(3, 3, 3),
        Sources(3, None, 3),
        Sources(3, 3, 5, 3),
        Sources(3, None, 5),
    ]


def test_a_layer_publishes_what_its_role_says(trace: StackDocumentTrace) -> None:
    published = [
        {name.name for name in fields(layer.published) if getattr(layer.published, name.name) is not None}
        for layer in trace.layers
    ]
    owner = {"entries", "index_keys", "picks"}
    assert published == [set(), owner, set(), {*owner, "candidates"}, set(), {"picks"}, set()]
    entries = [layer.published.entries for layer in trace.layers]
    assert [None if tensor is None else len(tensor) for tensor in entries] == [
        None,
        6,
        None,
        13,
        None,
        None,
        None,
    ]


def test_reuse_layers_attend_to_the_newest_picks_of_their_owners_entries(trace: StackDocumentTrace) -> None:
    for reader, source, owner in ((2, 1, 1), (4, 3, 3), (6, 5, 3)):
        layer = trace.layers[reader]
        picks = trace.layers[source].published.picks
        entries = trace.layers[owner].published.entries
        assert picks is not None
        assert entries is not None
        for query in layer.queries:
            assert query.selection == picks[query.t]
            assert not len(query.scores)
            keys = torch.cat((layer.context.window_keys[query.window], entries[query.selection]))
            assert error(query.core, query.probabilities @ keys) <= TOLERANCE


def test_a_restricted_layer_picks_candidates_and_the_one_that_chooses_them_picks_freely(
    trace: StackDocumentTrace,
) -> None:
    candidates = trace.layers[3].published.candidates
    assert candidates is not None
    assert set(candidates) == set(range(LENGTH))
    free = bound = 0
    for source, restricted in zip(trace.layers[3].queries, trace.layers[5].queries, strict=True):
        allowed = candidates[source.t]
        assert source.allowed == source.visible
        assert restricted.allowed == [s for s in restricted.visible if s in allowed]
        assert set(restricted.selection) <= set(allowed)
        assert len(restricted.selection) == min(3, len(restricted.visible))
        free += not set(source.selection) <= set(allowed)
        best = restricted.scores.argsort(descending=True, stable=True)[:3].tolist()
        bound += sorted(best) != restricted.selection
        assert source.blocks is not None
        assert len(source.blocks.kept) == min(2, len(source.blocks.scores))
        assert (len(source.visible) - 1) // 2 in source.blocks.kept
    # The three best entries may lie in three blocks, of which two are kept.
    assert free
    assert bound


def test_picks_that_a_layer_is_told_are_reused_by_later_layers(
    stack: DrawnStack, trace: StackDocumentTrace
) -> None:
    weights = stack_weights(stack.geometry, stack.named)
    told = {3: {9: [7, 0], 4: [1]}}
    again = attend_stack_document(
        stack.hidden[:, 0], trace.document, weights, stack.geometry, selections=told
    )
    assert [again.layers[layer].queries[9].selection for layer in (3, 4)] == [[0, 7], [0, 7]]
    assert again.layers[4].queries[4].selection == [1]
    for layer in (5, 6):  # these have the picks of layer 5, which scores for itself
        assert torch.equal(again.layers[layer].out, trace.layers[layer].out)
    moved = (again.layers[4].out - trace.layers[4].out).abs().amax(dim=1) > 1e-6
    assert moved.nonzero().flatten().tolist() == [4, 9]


def test_what_v4_and_v41_share_is_one_function() -> None:
    shared = {"rotate", "window_tokens", "pool", "entry_position", "visible_entries", "index_score", "select",
              "attend", "project_output"}  # fmt: skip
    assert shared < {field.name for field in fields(Spec)} & {field.name for field in fields(StackSpec)}
    assert all(getattr(SPEC, name) is getattr(STACK_SPEC, name) for name in shared)


def out(stack: DrawnStack) -> torch.Tensor:
    return stack.run().out[:, 0]


def differing(stack: DrawnStack, other: DrawnStack) -> list[int]:
    moved = (out(stack) - out(other)).abs().amax(dim=(1, 2)) > 1e-6
    return [layer for layer, differs in enumerate(moved.tolist()) if differs]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [(0, [0]), (1, [1, 2]), (2, [2]), (3, [3, 4, 5, 6]), (4, [4]), (5, [5, 6]), (6, [6])],
)
def test_an_input_changes_its_own_layer_and_those_that_read_it(
    stack: DrawnStack, changed: int, expected: list[int]
) -> None:
    hidden = stack.hidden.clone()
    hidden[changed] = -hidden[changed].flip(1)
    assert differing(stack, replace(stack, hidden=hidden)) == expected


@pytest.mark.parametrize(
    ("layer", "name", "expected"),
    [(1, "compressor.wgate", [1, 2]), (1, "indexer.wk", [1, 2]), (3, "compressor.wkv", [3, 4, 5, 6]),
     (5, "indexer.wq_b", [5, 6]), (3, "indexer.weights_proj", [3, 4, 5, 6])],
)  # fmt: skip
def test_a_shared_weight_changes_its_own_layer_and_those_that_read_it(
    stack: DrawnStack, layer: int, name: str, expected: list[int]
) -> None:
    other = with_weight(stack, layer, name, -stack.named[layer][name].flip(0))
    assert differing(stack, other) == expected


def test_future_tokens_change_nothing(stack: DrawnStack) -> None:
    for t in range(1, LENGTH):
        hidden = stack.hidden.clone()
        hidden[:, :, t:] = torch.nan
        assert error(out(replace(stack, hidden=hidden))[:, :t], out(stack)[:, :t]) <= TOLERANCE


def test_an_owner_gets_gradients_from_all_its_readers(stack: DrawnStack) -> None:
    for owner, readers in ((1, [1, 2]), (3, [3, 4, 5, 6])):
        got = []
        for layer in range(stack.geometry.layers):
            weight = stack.named[owner]["compressor.wkv"].clone().requires_grad_()
            result = out(with_weight(stack, owner, "compressor.wkv", weight))[layer]
            (gradient,) = torch.autograd.grad(result.sum(), weight, allow_unused=True)
            if gradient is not None and gradient.abs().max() > 1e-6:
                got.append(layer)
        assert got == readers


def test_picks_and_candidates_are_constants_for_gradients(stack: DrawnStack) -> None:
    for name in ("indexer.wk", "indexer.k_norm", "indexer.wq_b", "indexer.weights_proj"):
        weight = stack.named[3][name].clone().requires_grad_()
        assert not out(with_weight(stack, 3, name, weight)).requires_grad


@pytest.mark.parametrize("rows", [("7+6",), ("2<7", "9"), ("5", "13", "1"), ("1<3+4+3@1000",)])
def test_a_document_in_a_batch_gets_what_it_gets_alone(rows: tuple[str, ...]) -> None:
    batch = make_stack(*rows, **SMALL)
    trace = batch.run()
    assert len(trace.documents) == sum(row.count("+") + 1 for row in rows)
    for document in trace.documents:
        place = document.document
        alone = replace(
            batch,
            hidden=batch.hidden[:, [place.row], place.columns],
            positions=torch.arange(place.length)[None],  # only differences of positions matter
            documents=torch.zeros(1, place.length, dtype=torch.long),
        )
        assert error(trace.out[:, place.row, place.columns], out(alone)) <= TOLERANCE
    assert torch.equal((trace.out == 0).all(-1).all(0), batch.documents == -1)


def test_weights_are_exactly_those_of_the_roles(stack: DrawnStack) -> None:
    for layer, named in enumerate(stack.named):
        for name in named:
            less = [dict(weights) for weights in stack.named]
            del less[layer][name]
            with pytest.raises(ValueError, match=f"layer {layer}: {name} is missing"):
                stack_weights(stack.geometry, less)
    more = [dict(weights) for weights in stack.named]
    more[4]["indexer.wq_b"] = more[3]["indexer.wq_b"]
    with pytest.raises(ValueError, match=r"layer 4: indexer.wq_b is \[18, 5\], the geometry says missing"):
        stack_weights(stack.geometry, more)
    with pytest.raises(ValueError, match="weights of 6 layers were given for a stack of 7"):
        stack_weights(stack.geometry, stack.named[:-1])
