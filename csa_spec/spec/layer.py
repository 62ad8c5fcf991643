"""One attention layer, one document, one query at a time.

Read :func:`answer_query` first: it is the layer. Every decision that it takes is a rule of
:mod:`csa_spec.spec.rules`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from csa_spec.spec.context import document_context
from csa_spec.spec.each import LONG, each
from csa_spec.spec.geometry import Geometry, LayerKind
from csa_spec.spec.indexer import index_scale
from csa_spec.spec.norm import rms_norm
from csa_spec.spec.rules import SPEC, Spec
from csa_spec.spec.selection import selection_margin
from csa_spec.spec.trace import Context, Document, DocumentTrace, QueryTrace
from csa_spec.spec.weights import LayerWeights


def attend_document(
    hidden: Tensor,
    document: Document,
    weights: LayerWeights,
    geometry: Geometry,
    spec: Spec = SPEC,
    selections: Sequence[Sequence[int]] | None = None,
    queries: Sequence[int] | None = None,
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
    queries
        The queries to answer, in ascending order; by default all.
    """
    context = document_context(hidden, document, weights, geometry, spec)
    asked = range(len(hidden)) if queries is None else queries
    chosen = [None] * len(asked) if selections is None else selections
    answers = [
        answer_query(t, context, weights, geometry, spec, own) for t, own in zip(asked, chosen, strict=True)
    ]
    return DocumentTrace(context, answers)


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
        keys = context.index_keys[visible]
        scores = each(lambda key: spec.index_score(index_q, head_weights, key), keys, many=LONG)

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
