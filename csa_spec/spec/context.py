"""What all queries of a document share: a key per token, an entry and an index key per complete block."""

from __future__ import annotations

import torch
from torch import Tensor

from csa_spec.spec.each import LONG, each
from csa_spec.spec.geometry import Geometry
from csa_spec.spec.norm import rms_norm
from csa_spec.spec.rules import SPEC, Spec
from csa_spec.spec.trace import Context, Document
from csa_spec.spec.weights import CompressorWeights, LayerWeights


def document_context(
    hidden: Tensor, document: Document, weights: LayerWeights, geometry: Geometry, spec: Spec = SPEC
) -> Context:
    """Compute the keys of a document, ``hidden`` ``[S, hidden]``, from its position on."""
    frequencies = spec.layer_frequencies(geometry)

    def window_key(x: Tensor, position: int) -> Tensor:
        return spec.rotate(
            rms_norm(weights.wkv @ x, weights.kv_norm, geometry.norm_eps), position, frequencies
        )

    positions = range(document.start, document.start + len(hidden))
    window_keys = each(window_key, hidden, positions, many=LONG)
    entries = hidden.new_zeros(0, geometry.head_dim)
    index_keys = hidden.new_zeros(0, geometry.index_head_dim)
    if weights.compressor is not None:
        entries = entries_of(hidden, document.start, weights.compressor, geometry, frequencies, spec)
    if weights.indexer is not None:
        compressor = weights.indexer.compressor
        index_keys = entries_of(hidden, document.start, compressor, geometry, frequencies, spec)
    return Context(document, hidden, frequencies, window_keys, entries, index_keys)


def entries_of(
    hidden: Tensor,
    start: int,
    weights: CompressorWeights,
    geometry: Geometry,
    frequencies: Tensor,
    spec: Spec = SPEC,
    many: int = LONG,
) -> Tensor:
    """Return what :func:`compress` returns, and sooner where there are many entries.

    Each is then made from its own block and the one before it alone, many of them at once. Other rules than
    the right ones may read more.
    """
    m, count = geometry.compress_ratio, geometry.entry_count(len(hidden))
    if count < many or spec is not SPEC:
        return compress(hidden, start, weights, geometry, frequencies, spec)

    def last_of_two(tokens: Tensor, begin: int) -> Tensor:
        return compress(tokens, begin, weights, geometry, frequencies)[1]

    blocks = hidden[: count * m].reshape(count, m, -1)
    pairs = torch.cat((blocks[:-1], blocks[1:]), 1)
    first = compress(hidden[:m], start, weights, geometry, frequencies)
    begins = range(start, start + (count - 1) * m, m)
    return torch.cat((first, each(last_of_two, pairs, begins, many=many)))


def compress(
    hidden: Tensor,
    start: int,
    weights: CompressorWeights,
    geometry: Geometry,
    frequencies: Tensor,
    spec: Spec = SPEC,
) -> Tensor:
    """Return the entries ``[T, d]`` of one compressor, main or indexer, for the tokens of one document.

    ``hidden`` is ``[S, hidden]``; the first of them stands at position ``start``.
    """
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
