"""Right candidates: the specification itself, the same with its stages exposed, and an independent vectorised layer.

The vectorised layer shares no code with the specification and rounds as a real implementation does, so that error
budgets meet real rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import pad

from csa_spec.plug.candidate import Candidate
from csa_spec.plug.capabilities import Capabilities
from csa_spec.spec import (
    SPEC,
    BatchTrace,
    CompressorWeights,
    DocumentTrace,
    Geometry,
    LayerKind,
    LayerWeights,
    Spec,
    attend_batch,
)
from csa_spec.stages.layer.case import Feature
from csa_spec.stages.layer.inputs import Inputs
from csa_spec.stages.layer.output import LayerOutput, LayerStage


def trace_batch(
    hidden: Tensor,
    weights: LayerWeights,
    geometry: Geometry,
    positions: Tensor,
    documents: Tensor,
    spec: Spec = SPEC,
) -> BatchTrace:
    """Run the specification, or a variant of it, in float64 on what a candidate is given."""
    exact = Inputs(hidden, weights, positions, documents).double()
    return attend_batch(exact.hidden, exact.weights, geometry, exact.positions, exact.documents, spec)


def as_specified(spec: Spec = SPEC) -> LayerStage:
    """Return a layer that follows ``spec`` in float64 and rounds once, at the end."""

    def layer(
        hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor, /
    ) -> Tensor:
        return trace_batch(hidden, weights, geometry, positions, documents, spec).out.to(hidden.dtype)

    return layer


def with_stages(spec: Spec = SPEC) -> LayerStage:
    """Return a layer that follows ``spec`` and exposes every stage of it."""

    def layer(
        hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor, /
    ) -> LayerOutput:
        trace = trace_batch(hidden, weights, geometry, positions, documents, spec)
        return expose(trace, geometry, hidden.dtype)

    return layer


def expose(trace: BatchTrace, geometry: Geometry, dtype: torch.dtype) -> LayerOutput:
    """Lay the stages of a trace out as a batched implementation would, rounded to ``dtype``."""
    rows, columns, _ = trace.out.shape
    count = geometry.entry_count(columns)
    entries = torch.zeros(rows, count, geometry.head_dim, dtype=torch.float64)
    scores = torch.full((rows, columns, count), -math.inf, dtype=torch.float64)
    selection = torch.full((rows, columns, max(count, 1)), -1)
    probabilities = torch.zeros(rows, geometry.heads, columns, columns + count, dtype=torch.float64)
    for document in _first_documents(trace):
        row = document.context.document.row
        entries[row, : len(document.context.entries)] = document.context.entries
        for query in document.queries:
            if len(query.scores):
                scores[row, query.t, query.visible] = query.scores
            selection[row, query.t, : len(query.selection)] = torch.tensor(query.selection, dtype=torch.long)
            keys = query.window + [columns + s for s in query.selection]
            probabilities[row, :, query.t, keys] = query.probabilities
    return LayerOutput(
        trace.out.to(dtype), entries.to(dtype), scores.to(dtype), selection, probabilities.to(dtype)
    )  # fmt: skip


def _first_documents(trace: BatchTrace) -> Iterator[DocumentTrace]:
    return (document for document in trace.documents if document.context.document.begin == 0)


def vectorised(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> LayerOutput:
    """Run whole batches of one document per row in the dtype of ``hidden``, with a dense additive bias."""
    g, length = geometry, hidden.shape[1]
    frequencies = _frequencies(g, hidden.dtype)
    latent = _norm(hidden @ weights.wq_a.T, weights.q_norm, g.norm_eps)
    q = _norm((latent @ weights.wq_b.T).unflatten(-1, (g.heads, g.head_dim)), None, g.norm_eps)
    q = _rotate(q, positions[..., None], frequencies)
    keys = _rotate(_norm(hidden @ weights.wkv.T, weights.kv_norm, g.norm_eps), positions, frequencies)

    t = torch.arange(length)
    age = t[:, None] - t
    attended = ((age >= 0) & (age < g.window)).expand(len(hidden), -1, -1)
    entries = scores = None
    if weights.compressor is not None:
        starts = positions[:, :1]
        entries = _compress(hidden, weights.compressor, g, starts, frequencies)
        visible = (torch.arange(entries.shape[1]) < (t[:, None] + 1) // g.compress_ratio).expand(
            len(hidden), -1, -1
        )
        if weights.indexer is not None:
            index_keys = _compress(hidden, weights.indexer.compressor, g, starts, frequencies)
            index_q = (latent @ weights.indexer.wq_b.T).unflatten(-1, (g.index_heads, g.index_head_dim))
            index_q = _rotate(index_q, positions[..., None], frequencies)
            products = torch.relu(torch.einsum("bthd,bsd->bths", index_q, index_keys))
            head_weights = (hidden @ weights.indexer.weights_proj.T) * (
                g.index_heads * g.index_head_dim
            ) ** -0.5
            scores = (head_weights[..., None] * products).sum(2)
            visible = _highest(scores.masked_fill(~visible, -math.inf), g.top_k) & visible
        keys, attended = torch.cat((keys, entries), 1), torch.cat((attended, visible), 2)

    bias = torch.zeros_like(attended, dtype=hidden.dtype).masked_fill(~attended, -math.inf)
    logits = g.scale * torch.einsum("bthd,bkd->bhtk", q, keys) + bias[:, None]
    sink = weights.attn_sink[:, None, None].expand(len(hidden), -1, length, 1)
    probabilities = torch.softmax(torch.cat((logits, sink), -1), -1)[..., :-1]
    core = torch.einsum("bhtk,bkd->bthd", probabilities, keys)
    grouped = _rotate(core, -positions[..., None], frequencies).flatten(2).unflatten(2, (g.o_groups, -1))
    low_rank = torch.einsum("btgi,gri->btgr", grouped, weights.wo_a.unflatten(0, (g.o_groups, -1)))
    return LayerOutput(
        low_rank.flatten(2) @ weights.wo_b.T,
        entries=entries,
        index_scores=scores,
        probabilities=probabilities,
    )


def _norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return normed if weight is None else normed * weight


def _frequencies(g: Geometry, dtype: torch.dtype) -> Tensor:
    """Make the rotary table as models do: in float32, unless everything is wider."""
    pairs = torch.arange(0, g.rope_dim, 2, dtype=torch.promote_types(dtype, torch.float32))
    if g.kind is LayerKind.SLIDING:
        return torch.exp(-pairs / g.rope_dim * math.log(g.rope_theta))
    plain = torch.exp(-pairs / g.rope_dim * math.log(g.compress_rope_theta))
    if g.yarn is None:
        return plain
    turns = [
        math.log(g.yarn.original_max_position / (2 * math.pi * b))
        for b in (g.yarn.beta_fast, g.yarn.beta_slow)
    ]
    ends = [g.rope_dim / 2 * turn / math.log(g.compress_rope_theta) for turn in turns]
    low, high = max(math.floor(ends[0]), 0), min(math.ceil(ends[1]), g.rope_dim - 1)
    kept = 1 - ((pairs / 2 - low) / (high - low or 1e-3)).clamp(0, 1)
    return plain * kept + plain / g.yarn.factor * (1 - kept)


def _rotate(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    angles = positions[..., None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    plain, turned = x.tensor_split([x.shape[-1] - 2 * len(frequencies)], dim=-1)
    a, b = turned.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.cat((plain, torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)), -1)


def _compress(
    hidden: Tensor, weights: CompressorWeights, g: Geometry, starts: Tensor, frequencies: Tensor
) -> Tensor:
    m, dim = g.compress_ratio, len(weights.norm)
    count = hidden.shape[1] // m
    blocks = hidden[:, : count * m].unflatten(1, (count, m))
    content, gate = blocks @ weights.wkv.T, blocks @ weights.wgate.T + weights.ape
    if g.overlap and count:
        shift = (0, 0, 0, 0, 1, 0)
        content = torch.cat((pad(content[:, :-1, :, :dim], shift), content[..., dim:]), 2)
        gate = torch.cat((pad(gate[:, :-1, :, :dim], shift, value=-math.inf), gate[..., dim:]), 2)
    pooled = (torch.softmax(gate, 2) * content).sum(2)[..., :dim]
    return _rotate(_norm(pooled, weights.norm, g.norm_eps), starts + m * torch.arange(count), frequencies)


def _highest(scores: Tensor, top_k: int) -> Tensor:
    picks = scores.topk(min(top_k, scores.shape[-1])).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, picks, True)


RIGHT = Candidate("engine.candidates:RIGHT", {"layer": as_specified()})
"""The specification, held against itself."""

WITH_STAGES = Candidate(
    "engine.candidates:WITH_STAGES", {"layer": with_stages()}, Capabilities(gradients=True)
)
"""The specification with every stage exposed, and with autograd running through it."""

_ONE_DOCUMENT_PER_ROW = "computes one document per row, from its first column on"
VECTORISED = Candidate(
    "engine.candidates:VECTORISED",
    {"layer": vectorised},
    Capabilities(
        lacks=MappingProxyType(
            {
                (kind, feature): _ONE_DOCUMENT_PER_ROW
                for kind in LayerKind
                for feature in (Feature.LEFT_PADDING, Feature.PACKING)
            }
        ),
        batch_invariant=False,  # matrix products of another shape add up in another order
    ),
)
"""The independent layer; it shows its entries, index scores and probabilities."""
