"""What the batched layouts share: all of the layer but its attention core, without loops over queries.

Numbers are stored in the dtype of the hidden states. Norms, rotations and every softmax run in float32 where
that is wider, as in transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from csa_spec.plug.candidate import Candidate
from csa_spec.plug.capabilities import Capabilities
from csa_spec.spec import PADDING, CompressorWeights, Geometry, LayerKind, LayerWeights
from csa_spec.stages.layer.output import LayerOutput, LayerStage

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
"""``attend(q [B, S, H, D], kv [B, N, D], indices [B, S, n], sinks [H], scale) -> [B, S, H, D]``.

``indices`` name the keys of each query, which are its values too. An index outside of the keys is none."""


def make_candidate(name: str, attend: Attend, **capabilities: Any) -> Candidate:
    """Return a candidate that offers every stage, with ``attend`` as its core."""
    stages: dict[str, Callable[..., Any]] = {
        "compressor": compressor,
        "index_scores": index_scores,
        "select": select,
        "attend": attend,
        "layer": make_layer(attend),
    }
    # Matrix products of another shape may sum in another order, so a row alone can give other bits.
    declared = Capabilities(
        invalid_indices=True, lowest_index_first=True, batch_invariant=False, **capabilities
    )
    return Candidate(name, stages, declared, {"torch": torch.__version__})


def wide(x: Tensor) -> torch.dtype:
    """Return the dtype to compute in: that of ``x``, or float32 where that is wider."""
    return torch.promote_types(x.dtype, torch.float32)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Divide the last dimension of ``x`` by its root mean square; multiply by ``weight`` if there is one."""
    y = x.to(wide(x))
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y if weight is None else y * weight).to(x.dtype)


def frequencies(geometry: Geometry) -> Tensor:
    """Return the rotary frequencies ``[rope_dim / 2]`` of a layer in float64."""
    rope_dim, yarn = geometry.rope_dim, geometry.yarn
    pairs = torch.arange(rope_dim // 2, dtype=torch.float64)
    if geometry.kind is LayerKind.SLIDING:
        return geometry.rope_theta ** (-2 * pairs / rope_dim)
    theta = geometry.compress_rope_theta
    plain = theta ** (-2 * pairs / rope_dim)
    if yarn is None:
        return plain
    fast, slow = (
        rope_dim * math.log(yarn.original_max_position / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (yarn.beta_fast, yarn.beta_slow)
    )
    low, high = max(math.floor(fast), 0), min(math.ceil(slow), rope_dim - 1)
    slowed = ((pairs - low) / (high - low or 0.001)).clamp(0, 1)
    return plain * (1 - slowed) + plain / yarn.factor * slowed


def rotate(x: Tensor, positions: Tensor, geometry: Geometry) -> Tensor:
    """Rotate the trailing channels of ``x`` ``[..., d]``, in neighbouring pairs.

    ``positions`` broadcasts over ``[...]``; negative ones rotate back.
    """
    angles = positions[..., None] * frequencies(geometry).to(x.device, wide(x))
    cos, sin = angles.cos(), angles.sin()
    first = x.shape[-1] - geometry.rope_dim
    a, b = x[..., first::2].to(wide(x)), x[..., first + 1 :: 2].to(wide(x))
    turned = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
    return torch.cat((x[..., :first], turned.to(x.dtype)), -1)


def compressor(
    hidden: Tensor, weights: CompressorWeights, geometry: Geometry, *, starts: Tensor | None = None
) -> Tensor:
    """Pool every complete block of m tokens into an entry.

    Parameters
    ----------
    hidden
        ``[B, S, hidden]``. Blocks are counted from column 0.
    weights, geometry
        The layer's own compressor, or that of its indexer.
    starts
        ``[B]``, the position of column 0; None: 0.

    Returns
    -------
    entries
        ``[B, S // m, d]``, normed and rotated to the first token of their block.
    """
    batch, m, dim = hidden.shape[0], geometry.compress_ratio, len(weights.norm)
    count = hidden.shape[1] // m
    blocks = hidden[:, : count * m]
    content, gate = (
        linear(blocks, weight).reshape(batch, count, m, len(weight)).to(wide(hidden))
        for weight in (weights.wkv, weights.wgate)
    )
    gate = gate + weights.ape
    if geometry.overlap:
        content, gate = _overlap(content, dim, 0), _overlap(gate, dim, -math.inf)
    pooled = (gate.softmax(2) * content).sum(2).to(hidden.dtype)
    positions = m * torch.arange(count, device=hidden.device)
    if starts is not None:
        positions = positions + starts[:, None]
    return rotate(rms_norm(pooled, weights.norm, geometry.norm_eps), positions, geometry)


def _overlap(blocks: Tensor, dim: int, outside: float) -> Tensor:
    """Put the block before beside each block: ``[B, T, m, 2 dim]`` to ``[B, T, 2 m, dim]``.

    The first half of the columns is a token's role in the entry after its own, the second that in its own.
    """
    previous = pad(blocks[..., :dim], (0, 0, 0, 0, 1, 0), value=outside)[:, : blocks.shape[1]]
    return torch.cat((previous, blocks[..., dim:]), 2)


def index_scores(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """Return ``sum_h w_h relu(q_h . k)``, ``[B, S, T]``.

    ``index_q`` ``[B, S, HI, DI]`` and ``index_k`` ``[B, T, DI]`` are rotated; ``head_weights``
    ``[B, S, HI]`` hold all constant factors.
    """
    dtype = wide(index_q)
    products = torch.einsum("bshd,btd->bsht", index_q.to(dtype), index_k.to(dtype)).relu()
    return torch.einsum("bsh,bsht->bst", head_weights.to(dtype), products).to(index_q.dtype)


def select(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Return the ``top_k`` best visible entries of each query, ``[B, S, min(top_k, T)]``; -1 for none.

    Entry s of ``scores`` ``[B, S, T]`` is visible to a query at position t (``positions`` ``[B, S]``) iff
    ``s < floor((t + 1) / compress_ratio)``.
    """
    entries = torch.arange(scores.shape[2], device=scores.device)
    visible_count = ((positions + 1) // compress_ratio)[..., None]
    # A visible entry may have a score of -inf too. Visible entries have the lowest indices, and a stable
    # sort keeps equal scores in order, so it still comes before the invisible ones.
    ranked = scores.masked_fill((entries >= visible_count) | scores.isnan(), -math.inf)
    picks = ranked.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
    return picks.masked_fill(picks >= visible_count, -1)


def key_or_none(indices: Tensor, keys: int) -> Tensor:
    """Return ``indices`` with ``keys``, one past the last key, wherever they name none."""
    return torch.where((indices < 0) | (indices >= keys), keys, indices)


def key_counts(indices: Tensor, keys: int) -> Tensor:
    """Return how often each query names each key: ``[B, S, n]`` to float32 ``[B, S, keys]``, mostly 0 and 1.

    As an additive bias, the logarithm of the count lets a query see just the keys that it names.
    """
    # Indices that name none go to a column of their own. Clamped, they would name key 0.
    counts = torch.zeros(*indices.shape[:2], keys + 1, dtype=torch.float32, device=indices.device)
    return counts.scatter_add_(2, key_or_none(indices, keys), counts.new_ones(indices.shape))[..., :keys]


def named_keys(kv: Tensor, counts: Tensor) -> Tensor:
    """Zero rows of ``kv`` ``[B, N, D]`` that no query names: a weight of 0 does not undo NaN or infinity."""
    return torch.where((counts > 0).any(1)[..., None], kv, 0)


def softmax_with_sink(logits: Tensor, sinks: Tensor) -> Tensor:
    """Return the softmax of ``logits`` ``[..., n]``, -inf for no key, with a sink in the denominator.

    ``sinks`` broadcasts to ``[...]``. All is 0 where there is neither a key nor a sink above -inf.
    """
    terms = torch.cat((logits, sinks.to(logits.dtype).expand(logits.shape[:-1])[..., None]), -1)
    # The lower bound keeps -inf - (-inf) from being NaN where there is nothing at all.
    peak = terms.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(terms.dtype).min)
    exponentials = (terms - peak).exp()
    # The largest term is exp(0), so a sum below 1 is 0.
    return exponentials[..., :-1] / exponentials.sum(-1, keepdim=True).clamp(min=1)


def make_layer(attend: Attend) -> LayerStage:
    """Return the layer whose attention core is ``attend``."""

    def layer(
        hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor, /
    ) -> LayerOutput:
        """Give every document a row of its own, run them as one batch, and put the answers back."""
        previous = pad(documents, (1, 0), value=PADDING)[:, :-1]
        real = documents != PADDING
        first = (real & (documents != previous)).flatten()
        tokens, begins = real.flatten().nonzero()[:, 0], first.nonzero()[:, 0]
        row = first.cumsum(0)[tokens] - 1
        place = row, tokens - begins[row]
        longest = max(row.bincount().tolist(), default=0)
        # Rows end in zeros where a document is shorter. Nothing looks ahead, so they do no harm.
        own = hidden.new_zeros(len(begins), longest, geometry.hidden)
        own = own.index_put(place, hidden.flatten(0, 1)[tokens])
        answer = _run(attend, own, weights, geometry, positions.flatten()[begins])
        out = torch.zeros_like(hidden).flatten(0, 1).index_put((tokens,), answer.out[place]).view_as(hidden)
        whole_rows = torch.arange(len(hidden)).to(begins) * longest
        if longest == hidden.shape[1] and torch.equal(begins, whole_rows):
            return replace(answer, out=out)
        return LayerOutput(out)

    return layer


def _run(
    attend: Attend, hidden: Tensor, weights: LayerWeights, geometry: Geometry, starts: Tensor
) -> LayerOutput:
    """Run the layer on ``hidden`` ``[B, S, hidden]``, a document per row, from ``starts`` ``[B]`` on.

    Queries of long documents are answered a part of them after another, so that memory grows with S alone.
    """
    g, length = geometry, hidden.shape[1]
    columns = torch.arange(length, device=hidden.device).expand(hidden.shape[:2])
    tokens = rms_norm(linear(hidden, weights.wkv), weights.kv_norm, g.norm_eps)
    tokens = rotate(tokens, columns + starts[:, None], g)
    entries, index_k = tokens[:, :0], None
    if weights.compressor is not None:
        entries = compressor(hidden, weights.compressor, g, starts=starts)
    if weights.indexer is not None:
        with torch.no_grad():  # the selection is a constant: no gradient reaches the indexer
            index_k = compressor(hidden, weights.indexer.compressor, g, starts=starts)

    keys = min(g.window, length) + entries.shape[1]
    step = max(
        1, min(_QUERIES, _AT_ONCE // max(1, len(hidden) * keys * max(g.heads, g.index_heads, g.head_dim)))
    )
    parts = []
    for begin in range(0, length, step):
        end, first = begin + step, max(0, begin - g.window + 1)
        kv = torch.cat((tokens[:, first:end], entries), 1)
        part = hidden[:, begin:end], columns[:, begin:end], starts
        parts.append(_answer(attend, *part, first, kv, index_k, weights, g))
    out, scores, selection = zip(*parts, strict=True)
    shown = None if weights.compressor is None else entries
    if len(parts) > 1:
        return LayerOutput(torch.cat(out, 1), shown)
    return LayerOutput(out[0], shown, scores[0], selection[0])


_QUERIES, _AT_ONCE = 4096, 1 << 26
"""Queries that are answered together at most, and the numbers that they have with all keys"""


def _answer(
    attend: Attend,
    hidden: Tensor,
    columns: Tensor,
    starts: Tensor,
    first: int,
    kv: Tensor,
    index_k: Tensor | None,
    weights: LayerWeights,
    g: Geometry,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return output ``[B, s, hidden]``, scores and selection of the queries in some columns ``[B, s]``.

    ``kv`` has the tokens from column ``first`` to the last of these, then all entries.
    """
    positions = columns + starts[:, None]
    latent = rms_norm(linear(hidden, weights.wq_a), weights.q_norm, g.norm_eps)
    q = linear(latent, weights.wq_b).view(*columns.shape, g.heads, g.head_dim)
    q = rotate(rms_norm(q, None, g.norm_eps), positions[..., None], g)
    tokens = int(columns[0, -1]) + 1 - first
    longest = min(g.window, int(columns[0, -1]) + 1)
    window = columns[..., None] - first - torch.arange(longest, device=hidden.device)
    indices = window.clamp(min=-1)  # tokens before the first are none
    scores = selection = None
    if weights.compressor is not None:
        if index_k is not None:
            scores = _scores(hidden, latent, index_k, weights, g, positions)
            selection = select(scores, columns, g.compress_ratio, g.top_k)
        else:  # every visible entry: all scores alike, and room for all
            count = kv.shape[1] - tokens
            selection = select(hidden.new_zeros(*columns.shape, count), columns, g.compress_ratio, count)
        indices = torch.cat((indices, torch.where(selection < 0, -1, selection + tokens)), -1)

    core = rotate(attend(q, kv, indices, weights.attn_sink, g.scale), -positions[..., None], g)
    wo_a = weights.wo_a.view(g.o_groups, g.o_lora_rank, -1)
    low_rank = torch.einsum("bsgd,grd->bsgr", core.reshape(*columns.shape, g.o_groups, wo_a.shape[2]), wo_a)
    return linear(low_rank.flatten(2), weights.wo_b), scores, selection


@torch.no_grad()
def _scores(
    hidden: Tensor, latent: Tensor, index_k: Tensor, weights: LayerWeights, g: Geometry, positions: Tensor
) -> Tensor:
    """Return the index scores ``[B, s, T]``, in float32 at least: rounding them further would make ties."""
    indexer, dtype = weights.indexer, wide(hidden)
    assert indexer is not None
    index_q = linear(latent, indexer.wq_b).view(*positions.shape, g.index_heads, g.index_head_dim)
    index_q = rotate(index_q, positions[..., None], g)
    scale = math.sqrt(g.index_heads * g.index_head_dim)
    head_weights = linear(hidden, indexer.weights_proj).to(dtype) / scale
    return index_scores(index_q.to(dtype), index_k.to(dtype), head_weights)
