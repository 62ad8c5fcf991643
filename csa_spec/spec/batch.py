"""Batches: rows of independent sequences, padded or packed, each document alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from csa_spec.spec.geometry import Geometry
from csa_spec.spec.layer import attend_document
from csa_spec.spec.rules import SPEC, Spec
from csa_spec.spec.trace import BatchTrace, Document
from csa_spec.spec.weights import LayerWeights

PADDING = -1
"""The document id of a token that belongs to none."""


def attend_batch(
    hidden: Tensor,
    weights: LayerWeights,
    geometry: Geometry,
    positions: Tensor,
    documents: Tensor,
    spec: Spec = SPEC,
    selections: Sequence[Sequence[Sequence[int]]] | None = None,
    queries: Callable[[int], Sequence[int]] | None = None,
) -> BatchTrace:
    """Run the layer on a batch.

    Parameters
    ----------
    hidden
        ``[B, S, hidden]``.
    weights, geometry
        The layer.
    positions
        ``[B, S]``, absolute and 0-based.
    documents
        ``[B, S]``, the document that each token belongs to, -1 for padding.
    spec
        The rules.
    selections
        Per document and query, the entries to attend to in place of what the rules select.
    queries
        Given a document's length, the queries of it to answer, in ascending order; by default all.

    Padding, left or right, and packing all mean the same: each document alone. Its blocks are counted from
    its own first token, tokens of other documents do not exist for it, and the output at padding is zero
    (our convention). Source: paper section 3.4.3 (each packed sequence is compressed independently).
    """
    out = torch.zeros_like(hidden)
    traces = []
    for number, document in enumerate(split_documents(positions, documents)):
        tokens = hidden[document.row, document.columns]
        chosen = None if selections is None else selections[number]
        asked = range(document.length) if queries is None else queries(document.length)
        trace = attend_document(tokens, document, weights, geometry, spec, chosen, asked)
        out[document.row, [document.begin + t for t in asked]] = trace.out
        traces.append(trace)
    return BatchTrace(out, traces)


def split_documents(positions: Tensor, documents: Tensor) -> list[Document]:
    """Return the documents of a batch, row by row, left to right: maximal runs of one id other than -1.

    Raises
    ------
    ValueError
        If the shapes differ, or the positions inside a document are not consecutive.
    """
    if positions.shape != documents.shape or positions.dim() != 2:
        raise ValueError(
            f"positions {list(positions.shape)} and documents {list(documents.shape)} must both be [B, S]"
        )
    found = []
    for row, (row_positions, ids) in enumerate(zip(positions.tolist(), documents.tolist(), strict=True)):
        begin = 0
        while begin < len(ids):
            end = begin + 1
            while end < len(ids) and ids[end] == ids[begin]:
                end += 1
            if ids[begin] != PADDING:
                start = row_positions[begin]
                if row_positions[begin:end] != list(range(start, start + end - begin)):
                    raise ValueError(f"row {row}: positions of document {ids[begin]} are not consecutive")
                found.append(Document(row, begin, end - begin, start))
            begin = end
    return found
