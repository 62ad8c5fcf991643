"""One attention layer, one document, one query at a time.

Read :func:`answer_query` first: it is the layer. Every decision that it takes is a small named function held by
a :class:`Spec`, so that a variant (a known bug, say) is ``replace(SPEC, visible_entries=...)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from csa_spec.spec.attention import attend
from csa_spec.spec.compressor import (
    Half,
    PooledToken,
    entry_position,
    half_columns,
    pool,
    pool_logit,
    pooled_tokens,
)
from csa_spec.spec.geometry import Geometry, LayerKind
from csa_spec.spec.indexer import index_scale, index_score
from csa_spec.spec.norm import rms_norm
from csa_spec.spec.output import project_output
from csa_spec.spec.rope import layer_frequencies, rotate
from csa_spec.spec.selection import select, selection_margin, visible_entries
from csa_spec.spec.trace import Context, Document, DocumentTrace, QueryTrace
from csa_spec.spec.weights import CompressorWeights, LayerWeights
from csa_spec.spec.window import window_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """The rules of the layer, one function each; ``SPEC`` holds the right ones."""

    layer_frequencies: Callable[[Geometry], Tensor] = layer_frequencies
    rotate: Callable[[Tensor, int, Tensor], Tensor] = rotate
    window_tokens: Callable[[int, int], list[int]] = window_tokens
    pooled_tokens: Callable[[int, int, bool], list[PooledToken]] = pooled_tokens
    half_columns: Callable[[Half, int, bool], slice] = half_columns
    pool_logit: Callable[[Tensor, Tensor], Tensor] = pool_logit
    pool: Callable[[Tensor, Tensor], Tensor] = pool
    entry_position: Callable[[int, int], int] = entry_position
    visible_entries: Callable[[int, int], list[int]] = visible_entries
    index_score: Callable[[Tensor, Tensor, Tensor], Tensor] = index_score
    select: Callable[[Sequence[int], Sequence[float], int], list[int]] = select
    softmax_scale: Callable[[Geometry], float] = lambda geometry: geometry.scale
    attend: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]] = attend
    output_position: Callable[[int], int] = lambda position: -position
    project_output: Callable[[Tensor, Tensor, Tensor, int], Tensor] = project_output


SPEC = Spec()


def attend_document(
    hidden: Tensor,
    document: Document,
    weights: LayerWeights,
    geometry: Geometry,
    spec: Spec = SPEC,
    selections: Sequence[Sequence[int]] | None = None,
) -> DocumentTrace:
    """Run the layer on one document.

    Parameters
    ----------
    hidden
        ``[S, hidden]``: the tokens of the document, after the layer's input norm.
    document
        Its place in the batch; only ``start``, the position of its first token, has an effect.
    weights, geometry
        The layer.
    spec
        The rules.
    selections
        Entries that each query attends to, in place of what the rules select.
    """
    context = document_context(hidden, document, weights, geometry, spec)
    queries = [
        answer_query(t, context, weights, geometry, spec, None if selections is None else selections[t])
        for t in range(len(hidden))
    ]
    return DocumentTrace(context, queries)


def document_context(
    hidden: Tensor, document: Document, weights: LayerWeights, geometry: Geometry, spec: Spec = SPEC
) -> Context:
    """Compute what all queries share: a window key per token, an entry and an index key per complete block."""
    frequencies = spec.layer_frequencies(geometry)
    window_keys = [
        spec.rotate(rms_norm(weights.wkv @ x, weights.kv_norm, geometry.norm_eps), document.start + t, frequencies)
        for t, x in enumerate(hidden)
    ]
    entries = hidden.new_zeros(0, geometry.head_dim)
    index_keys = hidden.new_zeros(0, geometry.index_head_dim)
    if weights.compressor is not None:
        entries = _compress(hidden, document.start, weights.compressor, geometry, frequencies, spec)
    if weights.indexer is not None:
        index_keys = _compress(hidden, document.start, weights.indexer.compressor, geometry, frequencies, spec)
    return Context(document, hidden, frequencies, torch.stack(window_keys), entries, index_keys)


def _compress(
    hidden: Tensor,
    start: int,
    weights: CompressorWeights,
    geometry: Geometry,
    frequencies: Tensor,
    spec: Spec,
) -> Tensor:
    """Return the entries ``[T, d]`` of one compressor, main or indexer."""
    m, dim, overlap = geometry.compress_ratio, len(weights.norm), geometry.overlap
    content = hidden @ weights.wkv.T
    gate = hidden @ weights.wgate.T
    entries = [hidden.new_zeros(0, dim)]
    for s in range(geometry.entry_count(len(hidden))):
        values, logits = [], []
        for token, place, half in spec.pooled_tokens(s, m, overlap):
            columns = spec.half_columns(half, dim, overlap)
            values.append(content[token, columns])
            logits.append(spec.pool_logit(gate[token, columns], weights.ape[place, columns]))
        pooled = spec.pool(torch.stack(values), torch.stack(logits))
        entry = rms_norm(pooled, weights.norm, geometry.norm_eps)
        entries.append(spec.rotate(entry, start + spec.entry_position(s, m), frequencies)[None])
    return torch.cat(entries)


def answer_query(
    t: int,
    context: Context,
    weights: LayerWeights,
    geometry: Geometry,
    spec: Spec = SPEC,
    selection: Sequence[int] | None = None,
) -> QueryTrace:
    """Run query ``t`` of a document through the layer.

    Parameters
    ----------
    t
        Index of the query, counted from the document's first token.
    context, weights, geometry
        The document and the layer.
    spec
        The rules.
    selection
        Entries to attend to, in place of what the rules select.
    """
    x = context.hidden[t]
    position = context.document.start + t
    latent = rms_norm(weights.wq_a @ x, weights.q_norm, geometry.norm_eps)
    q = rms_norm((weights.wq_b @ latent).view(geometry.heads, -1), None, geometry.norm_eps)
    q = spec.rotate(q, position, context.frequencies)

    # VISIBLE
    window = spec.window_tokens(t, geometry.window)
    visible: list[int] = []
    if geometry.kind is not LayerKind.SLIDING:
        visible = spec.visible_entries(t, geometry.compress_ratio)

    # SCORE
    scores = x.new_zeros(0)
    if weights.indexer is not None and visible:
        index_q = (weights.indexer.wq_b @ latent).view(geometry.index_heads, -1)
        index_q = spec.rotate(index_q, position, context.frequencies)
        head_weights = weights.indexer.weights_proj @ x
        head_weights = head_weights * index_scale(geometry.index_heads, geometry.index_head_dim)
        scores = torch.stack([spec.index_score(index_q, head_weights, context.index_keys[s]) for s in visible])

    # SELECT: a constant for gradients; HCA attends to every visible entry
    ranking, margin = scores.tolist(), None
    chosen = visible
    if weights.indexer is not None:
        chosen = spec.select(visible, ranking, geometry.top_k)
        margin = selection_margin(ranking, geometry.top_k)
    if selection is not None:
        chosen = list(selection)

    # GATHER
    keys = torch.cat((context.window_keys[window], context.entries[chosen]))

    # SOFTMAX
    core, probabilities = spec.attend(q, keys, weights.attn_sink, spec.softmax_scale(geometry))

    # OUTPUT
    heads_out = spec.rotate(core, spec.output_position(position), context.frequencies)
    out = spec.project_output(heads_out, weights.wo_a, weights.wo_b, geometry.o_groups)
    return QueryTrace(t, window, visible, scores, chosen, margin, q, probabilities, core, out)
