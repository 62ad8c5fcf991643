"""What all queries of a layer share: a key per token, and in owners a latent, entry and index key per group.

A call with more tokens adds to it; nothing that is there changes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from csa_spec.spec.each import LONG, each
from csa_spec.spec.trace import Document
from csa_spec.spec.v41.geometry import StackGeometry
from csa_spec.spec.v41.roles import LayerRole
from csa_spec.spec.v41.rope import Rotated
from csa_spec.spec.v41.rules import STACK_SPEC, StackSpec
from csa_spec.spec.v41.trace import LayerContext
from csa_spec.spec.v41.weights import StackIndexerWeights, StackLayerWeights


def empty_context(
    layer: int, hidden: Tensor, document: Document, geometry: StackGeometry, spec: StackSpec = STACK_SPEC
) -> LayerContext:
    """Return the context of a layer before the first token; ``hidden`` says dtype and device."""
    ratio, end = geometry.compress_ratios[layer], document.start + document.length
    frequencies = {part: spec.layer_frequencies(geometry, ratio, part, end) for part in Rotated}
    none = hidden.new_zeros(0, geometry.head_dim)
    return LayerContext(
        layer=layer,
        role=spec.layer_role(geometry, layer),
        document=document,
        hidden=hidden.new_zeros(0, geometry.hidden),
        frequencies=frequencies,
        window_keys=none,
        latents=none,
        entries=none,
        index_keys=hidden.new_zeros(0, geometry.index_head_dim),
    )


def extend_context(
    context: LayerContext,
    hidden: Tensor,
    weights: StackLayerWeights,
    geometry: StackGeometry,
    spec: StackSpec = STACK_SPEC,
) -> LayerContext:
    """Return the context with the tokens ``hidden`` ``[n, hidden]`` behind those that are there.

    A group that they complete may have begun in an earlier call. One call with all tokens is the prefill.
    """
    eps, start = spec.norm_eps(geometry), context.document.start

    def window_key(x: Tensor, position: int) -> Tensor:
        key = spec.norm(weights.wkv @ x, weights.kv_norm, eps)
        return spec.rotate(key, position, context.frequencies[Rotated.WINDOW])

    tokens = torch.cat((context.hidden, hidden))
    positions = range(start + len(context.hidden), start + len(tokens))
    window_keys = torch.cat((context.window_keys, each(window_key, hidden, positions, many=LONG)))
    latents, entries, index_keys = [context.latents], [context.entries], [context.index_keys]
    if context.role is LayerRole.OWNER:
        assert weights.indexer is not None
        ratio = geometry.compress_ratios[context.layer]
        for s in range(len(context.entries), spec.entry_count(len(tokens), ratio)):
            position = start + spec.entry_position(s, ratio)
            latent = latent_of(s, tokens, ratio, weights, geometry, spec)
            entry = spec.rotate(latent, position, context.frequencies[Rotated.ENTRY])
            key = index_key(spec.index_key_input(latent, entry), weights.indexer, geometry, spec)
            latents.append(latent[None])
            entries.append(entry[None])
            index_keys.append(spec.rotate(key, position, context.frequencies[Rotated.INDEX_KEY])[None])
    return LayerContext(
        layer=context.layer,
        role=context.role,
        document=context.document._replace(length=len(tokens)),
        hidden=tokens,
        frequencies=context.frequencies,
        window_keys=window_keys,
        latents=torch.cat(latents),
        entries=torch.cat(entries),
        index_keys=torch.cat(index_keys),
    )


def latent_of(
    s: int,
    hidden: Tensor,
    ratio: int,
    weights: StackLayerWeights,
    geometry: StackGeometry,
    spec: StackSpec = STACK_SPEC,
) -> Tensor:
    """Return the latent ``[head_dim]`` of entry ``s``: its group of tokens, pooled and normed.

    Source: official ``Compressor.forward``.
    """
    compressor = weights.compressor
    assert compressor is not None
    tokens = spec.pooled_tokens(s, ratio)
    content = hidden[tokens] @ compressor.wkv.T
    if compressor.wgate is None:
        value = spec.single_value(content[0])
    else:
        gates = hidden[tokens] @ compressor.wgate.T
        logits = [spec.pool_logit(gate, place) for place, gate in enumerate(gates)]
        value = spec.pool(content, torch.stack(logits))
    return spec.norm(value, compressor.norm, spec.norm_eps(geometry))


def index_key(
    latent: Tensor, weights: StackIndexerWeights, geometry: StackGeometry, spec: StackSpec = STACK_SPEC
) -> Tensor:
    """Return the index key ``[index_head_dim]`` of a latent, before its rotation.

    It has a projection and a norm of its own. Source: official ``Indexer.forward``.
    """
    assert weights.wk is not None
    return spec.norm(weights.wk @ latent, weights.k_norm, spec.norm_eps(geometry))
