"""Tensors of a layer made from a case: deterministic, drawn on the CPU in float64, then rounded.

They are moved to the case's device when the candidate is called.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from csa_spec.engine.tensors import NORMS, choice, gaussian_weight, generator, normal, with_shared_rows
from csa_spec.spec import (
    Document,
    Geometry,
    LayerKind,
    LayerWeights,
    answer_query,
    document_context,
    split_documents,
    weight_shapes,
)
from csa_spec.stages.layer.case import LayerCase, OfLayer, Scores, Sinks, Values


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a layer is called with, on the CPU."""

    hidden: Tensor
    """``[B, S, hidden]``; at padding numbers like those of tokens"""
    weights: LayerWeights
    positions: Tensor
    """``[B, S]`` int64; 0 at padding"""
    documents: Tensor
    """``[B, S]`` int64; -1 at padding"""

    def double(self) -> Inputs:
        """Return the same numbers in float64, for the specification."""
        named = {name: tensor.double() for name, tensor in self.weights.named().items()}
        return Inputs(self.hidden.double(), LayerWeights.from_named(named), self.positions, self.documents)

    def rows(self, rows: list[int]) -> Inputs:
        """Return some rows of the batch."""
        return Inputs(self.hidden[rows], self.weights, self.positions[rows], self.documents[rows])

    def prefix(self, columns: int) -> Inputs:
        """Return the first columns of the batch."""
        batched = (self.hidden, self.positions, self.documents)
        hidden, positions, documents = (tensor[:, :columns].contiguous() for tensor in batched)
        return Inputs(hidden, self.weights, positions, documents)

    def arguments(self, geometry: Geometry) -> dict[str, Any]:
        """Return what a layer is called with, by name and in order."""
        rows = {"positions": self.positions, "documents": self.documents}
        return {"hidden": self.hidden, "weights": self.weights, "geometry": geometry, **rows}


def make_inputs(case: LayerCase) -> Inputs:
    """Make the tensors of a case; the same bits on every machine with the same version of torch."""
    geometry = case.geometry
    positions, documents = (torch.tensor(rows, dtype=torch.long) for rows in case.positions_and_documents())
    hidden = _hidden(case)
    named = {name: _weight(case, name, shape) for name, shape in weight_shapes(geometry).items()}
    if geometry.kind is LayerKind.CSA:
        _shape_scores(case, named)
        if case.scores is Scores.SEPARATED:
            _separate_scores(case, named, hidden, split_documents(positions, documents))
    dtype = getattr(torch, case.dtype)
    weights = {name: tensor.to(dtype) for name, tensor in named.items()}
    return Inputs(hidden.to(dtype), LayerWeights.from_named(weights), positions, documents)


def fresh_tokens(case: LayerCase, inputs: Inputs, salt: str) -> Tensor:
    """Return other hidden states ``[B, S, hidden]`` of the case's shape and dtype, for perturbations."""
    shape = tuple(inputs.hidden.shape)
    return normal(case.seed, "fresh hidden " + salt, shape).to(inputs.hidden.dtype)


def fresh_weight(case: LayerCase, inputs: Inputs, name: str) -> Inputs:
    """Return the inputs with one weight drawn anew."""
    named = inputs.weights.named()
    fresh = gaussian_weight(case.seed, "fresh " + name, name, tuple(named[name].shape))
    named[name] = fresh.to(named[name].dtype)
    return replace(inputs, weights=LayerWeights.from_named(named))


def _hidden(case: LayerCase) -> Tensor:
    shape = (len(case.rows), case.columns, case.geometry.hidden)
    tokens = draw_tokens(case, "hidden", shape)
    if case.scores is Scores.NEAR_TIED and case.geometry.kind is LayerKind.CSA:
        # Repeat the first block, each repetition a little off: index keys of all blocks nearly coincide.
        block = torch.arange(shape[1]) % case.geometry.compress_ratio
        exponent = int(torch.randint(6, 21, (), generator=generator(case.seed, "nearness")))
        (off,) = with_shared_rows(case, off=normal(case.seed, "off", shape))
        tokens = tokens[:, block] + 2.0**-exponent * off
    return tokens


def draw_tokens(case: OfLayer, name: str, shape: tuple[int, ...]) -> Tensor:
    """Draw hidden states in the case's regime, in float64; ``name`` names the draw."""
    (tokens,) = with_shared_rows(case, tokens=_drawn_tokens(case, name, shape))
    return tokens


def _drawn_tokens(case: OfLayer, name: str, shape: tuple[int, ...]) -> Tensor:
    if case.values is Values.UNITS:
        return choice(case.seed, name, shape, (0.0, 1.0))
    if case.values is Values.INTEGERS:
        return choice(case.seed, name, shape, (-2.0, -1.0, 1.0, 2.0))
    return normal(case.seed, name, shape)


def _weight(case: LayerCase, name: str, shape: tuple[int, ...]) -> Tensor:
    """Draw one weight by its role, which is the last part of its name."""
    role = name.rpartition(".")[2]
    if role == "attn_sink":
        return _sinks(case, shape)
    if case.values in _WHOLE:
        if role in NORMS:
            return torch.ones(shape, dtype=torch.float64)
        return choice(case.seed, name, shape, _WHOLE[case.values] if role != "ape" else _APE[case.values])
    weight = gaussian_weight(case.seed, name, name, shape)
    if case.values is Values.LARGE_LOGITS and name in ("kv_norm", "compressor.norm"):
        doublings = torch.rand((), generator=generator(case.seed, "large"), dtype=torch.float64) * 2 + 2
        weight = weight * 2**doublings
    return weight


_WHOLE = {Values.UNITS: (0.0, 1.0), Values.INTEGERS: (-1.0, 1.0, 2.0)}
"""Numbers of weights and sinks"""
_APE = {Values.UNITS: (0.0, 1.0), Values.INTEGERS: (-1.0, 0.0, 1.0)}


def _sinks(case: LayerCase, shape: tuple[int, ...]) -> Tensor:
    if case.sinks is Sinks.ZERO:
        return torch.zeros(shape, dtype=torch.float64)
    if case.sinks is Sinks.EXTREME:
        return choice(case.seed, "attn_sink", shape, (-math.inf, -50.0, 0.5, 4.0, 20.0))
    if case.values in _WHOLE:
        return choice(case.seed, "attn_sink", shape, _WHOLE[case.values])
    return normal(case.seed, "attn_sink", shape)


def _shape_scores(case: LayerCase, named: dict[str, Tensor]) -> None:
    """Change the indexer's weights so that its scores are of the case's kind."""
    geometry = case.geometry
    if case.scores is Scores.TIED:
        named["indexer.weights_proj"].zero_()
    elif case.scores is Scores.PLATEAU:
        named["indexer.weights_proj"][1:] = 0
    elif case.scores is Scores.NEAR_TIED and geometry.index_head_dim > geometry.rope_dim:
        # Without rotated channels in the query, where an entry stands does not change its score.
        queries = named["indexer.wq_b"].view(geometry.index_heads, geometry.index_head_dim, -1)
        queries[:, -geometry.rope_dim :] = 0


_SEPARATION_DRAWS = 3


def _separate_scores(
    case: LayerCase, named: dict[str, Tensor], hidden: Tensor, documents: list[Document]
) -> None:
    """Keep the indexer weights, out of a few draws, whose narrowest margin is widest."""
    names = ("indexer.wq_b", "indexer.weights_proj")
    best, widest = {name: named[name] for name in names}, -1.0
    shapes = {name: tuple(named[name].shape) for name in names}
    for draw in range(_SEPARATION_DRAWS):
        drawn = {name: gaussian_weight(case.seed, f"{name} {draw}", name, shapes[name]) for name in names}
        weights = LayerWeights.from_named(named | drawn)
        narrowest = min(_margin(hidden, document, weights, case.geometry) for document in documents)
        if narrowest > widest:
            best, widest = drawn, narrowest
    named.update(best)


def _margin(hidden: Tensor, document: Document, weights: LayerWeights, geometry: Geometry) -> float:
    """Return the narrowest margin of a document, relative to the spread of its query's scores."""
    context = document_context(hidden[document.row, document.columns], document, weights, geometry)
    narrowest = math.inf
    for t in range(document.length):
        query = answer_query(t, context, weights, geometry)
        if query.margin is not None:
            spread = (query.scores.amax() - query.scores.amin()).item()
            narrowest = min(narrowest, query.margin / spread if spread else 0.0)
    return narrowest
