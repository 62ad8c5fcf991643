"""Gradients of the specification are those of its formulas, and the selection is a constant for them."""
# ruff: noqa: D103

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from oracles import small_inputs
from torch import Tensor

from csa_spec.spec import (
    Document,
    DocumentTrace,
    Geometry,
    LayerKind,
    LayerWeights,
    attend_batch,
    attend_document,
)
from csa_spec.spec.compressor import pooled_tokens
from csa_spec.stages.layer.case import Scores, Sinks
from csa_spec.stages.layer.inputs import Inputs

KINDS = ("csa", "hca", "sliding")

TINY = {
    "compress_ratio": 2, "top_k": 1, "window": 2, "hidden": 3, "heads": 2, "head_dim": 3, "rope_dim": 2,
    "q_lora_rank": 2, "index_heads": 4, "index_head_dim": 2, "o_groups": 2, "o_lora_rank": 1,
}  # fmt: skip


def run(hidden: Tensor, weights: LayerWeights, geometry: Geometry) -> DocumentTrace:
    return attend_document(hidden, Document(0, 0, len(hidden), 0), weights, geometry)


def trainable(inputs: Inputs) -> dict[str, Tensor]:
    return {name: tensor.clone().requires_grad_() for name, tensor in inputs.weights.named().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_tokens_are_those_of_finite_differences(kind: str) -> None:
    inputs, geometry = small_inputs(kind, "5", scores=Scores.SEPARATED, **TINY)
    _check_that_selections_are_stable(inputs, geometry)

    def layer(hidden: Tensor) -> Tensor:
        return run(hidden, inputs.weights, geometry).out

    assert torch.autograd.gradcheck(layer, inputs.hidden[0].clone().requires_grad_())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_every_weight_are_those_of_finite_differences(kind: str) -> None:
    inputs, geometry = small_inputs(kind, "5+2", "1<4@3", scores=Scores.SEPARATED, **TINY)
    _check_that_selections_are_stable(inputs, geometry)
    named = trainable(inputs)

    def layer(*tensors: Tensor) -> Tensor:
        weights = LayerWeights.from_named(dict(zip(named, tensors, strict=True)))
        return attend_batch(inputs.hidden, weights, geometry, inputs.positions, inputs.documents).out

    # The fast mode tries a random direction for each tensor in place of every element.
    assert torch.autograd.gradcheck(layer, tuple(named.values()), fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sinks", list(Sinks))
def test_a_loss_of_the_output_reaches_every_weight_but_those_of_the_indexer(kind: str, sinks: Sinks) -> None:
    inputs, geometry = small_inputs(kind, "19", sinks=sinks)
    named = trainable(inputs)
    out = run(inputs.hidden[0], LayerWeights.from_named(named), geometry).out
    loss = (out * next(_random_like(iter([out])))).sum()
    gradients = dict(
        zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True)
    )
    unreached = {name for name, gradient in gradients.items() if gradient is None or not gradient.any()}
    assert unreached == {name for name in named if name.startswith("indexer.")}
    assert bool(unreached) == (kind == "csa")
    reached = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    assert all(gradient.isfinite().all() for gradient in reached.values())
    assert all(
        (gradient != 0).all() for name, gradient in reached.items() if name not in unreached | {"attn_sink"}
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_depends_on_its_window_and_on_what_its_selected_entries_pool_and_on_nothing_else(
    kind: str,
) -> None:
    inputs, geometry = small_inputs(kind, "19", window=2, scores=Scores.SEPARATED, index_heads=8)
    hidden = inputs.hidden[0].clone().requires_grad_()
    trace = run(hidden, inputs.weights, geometry)
    unselected = 0
    for query in trace.queries:
        (gradient,) = torch.autograd.grad(query.out.sum(), hidden, retain_graph=True)
        pooled = {
            p.token
            for s in query.selection
            for p in pooled_tokens(s, geometry.compress_ratio, geometry.overlap)
        }
        assert set(gradient.any(-1).nonzero().flatten().tolist()) == pooled | set(query.window)
        assert max(pooled | set(query.window)) == query.t
        unselected += len(query.visible) - len(query.selection)
    assert (unselected > 0) == (kind == "csa")


def test_entries_that_are_not_selected_get_exactly_no_gradient() -> None:
    inputs, geometry = small_inputs("csa", "19", scores=Scores.SEPARATED, index_heads=8)
    hidden = inputs.hidden[0].clone().requires_grad_()
    trace = run(hidden, inputs.weights, geometry)
    rejected = 0
    for query in trace.queries:
        (gradient,) = torch.autograd.grad(query.out.sum(), trace.context.entries, retain_graph=True)
        assert set(gradient.any(-1).nonzero().flatten().tolist()) == set(query.selection)
        rejected += len(query.visible) - len(query.selection)
    assert rejected >= 20


@pytest.mark.parametrize("kind", KINDS)
def test_future_tokens_and_other_documents_get_exactly_no_gradient(kind: str) -> None:
    inputs, geometry = small_inputs(kind, "7+6", "2<8")
    hidden = inputs.hidden.clone().requires_grad_()
    trace = attend_batch(hidden, inputs.weights, geometry, inputs.positions, inputs.documents)
    for document in trace.documents:
        place = document.context.document
        for query in document.queries:
            (gradient,) = torch.autograd.grad(query.out.sum(), hidden, retain_graph=True)
            reached = gradient.any(-1)
            past = torch.zeros_like(reached)
            past[place.row, place.begin : place.begin + query.t + 1] = True
            assert not reached[~past].any()
            assert reached[place.row, place.begin + query.t]


@pytest.mark.parametrize("sink", [-torch.inf, -1e300, -1e3, 1e3, 1e300])
def test_gradients_stay_finite_however_far_the_sink_is_from_the_logits(sink: float) -> None:
    inputs, geometry = small_inputs("csa", "11")
    named = trainable(inputs)
    named["attn_sink"] = torch.tensor([sink, 0.0, sink, 0.0], dtype=torch.float64, requires_grad=True)
    out = run(inputs.hidden[0], LayerWeights.from_named(named), geometry).out
    gradients = torch.autograd.grad(out.sum(), list(named.values()), allow_unused=True)
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)
    (sink_gradient,) = (
        gradient for name, gradient in zip(named, gradients, strict=True) if name == "attn_sink"
    )
    assert sink_gradient is not None
    assert sink_gradient.any(dim=0).item()
    assert sink_gradient[[0, 2]].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kind", ["csa", "hca"])
def test_the_gradient_of_a_sink_is_minus_its_share_of_what_the_output_receives(kind: str) -> None:
    inputs, geometry = small_inputs(kind, "11")
    named = trainable(inputs)
    trace = run(inputs.hidden[0], LayerWeights.from_named(named), geometry)
    received = list(_random_like(query.core for query in trace.queries))
    cores = torch.stack([query.core for query in trace.queries])
    loss = (cores * torch.stack(received)).sum()
    (gradient,) = torch.autograd.grad(loss, named["attn_sink"])
    expected = torch.zeros(4, dtype=torch.float64)
    for query, core_gradient in zip(trace.queries, received, strict=True):
        share = 1 - query.probabilities.sum(-1)
        expected -= (share * (core_gradient * query.core).sum(-1)).detach()
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-13)


def _check_that_selections_are_stable(inputs: Inputs, geometry: Geometry) -> None:
    """Make sure that no score is so close to another that a finite difference would change a selection."""
    trace = attend_batch(inputs.hidden, inputs.weights, geometry, inputs.positions, inputs.documents)
    margins = [q.margin for document in trace.documents for q in document.queries if q.margin is not None]
    assert bool(margins) == (geometry.kind is LayerKind.CSA)
    assert all(margin > 1e-3 for margin in margins)


def _random_like(tensors: Iterator[Tensor]) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(2)
    for tensor in tensors:
        yield torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
