"""A stack of layers on one document, or on a batch of documents, each alone.

What happens between layers is not part of it: every layer is given its own input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from csa_spec.spec.batch import split_documents
from csa_spec.spec.trace import Document
from csa_spec.spec.v41.context import empty_context
from csa_spec.spec.v41.geometry import StackGeometry
from csa_spec.spec.v41.layer import attend_layer
from csa_spec.spec.v41.rules import STACK_SPEC, StackSpec
from csa_spec.spec.v41.trace import LayerTrace, Published, StackDocumentTrace, StackTrace
from csa_spec.spec.v41.weights import StackLayerWeights


def attend_stack_document(
    hidden: Tensor,
    document: Document,
    weights: Sequence[StackLayerWeights],
    geometry: StackGeometry,
    spec: StackSpec = STACK_SPEC,
    past: StackDocumentTrace | None = None,
    selections: Mapping[int, Mapping[int, Sequence[int]]] | None = None,
) -> StackDocumentTrace:
    """Run a stack on a document, or on the next tokens of one.

    Parameters
    ----------
    hidden
        ``[layers, n, hidden]``, n >= 1: the input of each layer, after the layer's input norm.
    document
        Its place in the batch; only ``start``, the position of its first token, has an effect.
    weights, geometry
        The stack.
    spec
        The rules.
    past
        What the tokens before these gave, by default none. One call with all tokens, token by token, and
        chunks that begin inside a group all give the same. To take tokens back, go on from an earlier trace.
    selections
        By layer and query, entries to attend to in place of what the rules pick; later layers reuse them.
    """
    layers: list[LayerTrace] = []
    published: dict[int, Published] = {}
    last_keys = hidden.new_zeros(0, geometry.index_head_dim) if past is None else past.layers[-1].last_keys
    for layer, own in enumerate(weights):
        if past is None:
            context, earlier = empty_context(layer, hidden, document, geometry, spec), None
        else:
            context, earlier = past.layers[layer].context, past.layers[layer].published
        trace = attend_layer(
            hidden[layer],
            context,
            published,
            last_keys,
            own,
            geometry,
            spec,
            earlier=earlier,
            selections=None if selections is None else selections.get(layer),
        )
        last_keys, published[layer] = trace.last_keys, trace.published
        layers.append(trace)
    return StackDocumentTrace(layers)


def attend_stack(
    hidden: Tensor,
    weights: Sequence[StackLayerWeights],
    geometry: StackGeometry,
    positions: Tensor,
    documents: Tensor,
    spec: StackSpec = STACK_SPEC,
) -> StackTrace:
    """Run a stack on a batch.

    Parameters
    ----------
    hidden
        ``[layers, B, S, hidden]``, the input of each layer.
    weights, geometry
        The stack.
    positions
        ``[B, S]``, absolute and 0-based.
    documents
        ``[B, S]``, the document that each token belongs to, -1 for padding.
    spec
        The rules.

    As in V4 each document is alone: groups, entries, blocks of candidates and windows are counted from its own
    first token, and the output at padding is zero (our convention).
    """
    out = torch.zeros_like(hidden)
    traces = []
    for document in split_documents(positions, documents):
        tokens = hidden[:, document.row, document.columns]
        trace = attend_stack_document(tokens, document, weights, geometry, spec)
        out[:, document.row, document.columns] = trace.out
        traces.append(trace)
    return StackTrace(out, traces)
