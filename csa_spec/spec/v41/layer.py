"""One layer of a stack on one document: what it reads is handed in, what it publishes is handed on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from csa_spec.spec.v41.context import extend_context
from csa_spec.spec.v41.geometry import StackGeometry
from csa_spec.spec.v41.query import answer_query
from csa_spec.spec.v41.roles import LayerRole
from csa_spec.spec.v41.rules import STACK_SPEC, StackSpec
from csa_spec.spec.v41.trace import LayerContext, LayerTrace, Published, Sources
from csa_spec.spec.v41.weights import StackLayerWeights


def attend_layer(
    hidden: Tensor,
    past: LayerContext,
    published: Mapping[int, Published],
    last_keys: Tensor,
    weights: StackLayerWeights,
    geometry: StackGeometry,
    spec: StackSpec = STACK_SPEC,
    earlier: Published | None = None,
    selections: Mapping[int, Sequence[int]] | None = None,
) -> LayerTrace:
    """Run one layer on tokens of one document.

    Parameters
    ----------
    hidden
        ``[n, hidden]``: the layer's own input, after its norm.
    past
        What the layer holds of the tokens before them.
    published
        What earlier layers published, those n tokens included, by layer.
    last_keys
        The index keys that were published last; no right rule reads them.
    weights, geometry
        The layer and the stack.
    spec
        The rules.
    earlier
        What this layer published in earlier calls, None in the first.
    selections
        By query, entries to attend to in place of what the rules pick or reuse.
    """
    layer = past.layer
    context = extend_context(past, hidden, weights, geometry, spec)
    own = Published()
    if context.role is LayerRole.OWNER:
        own = Published(context.entries, context.index_keys)
        if len(context.index_keys) > len(past.index_keys):
            last_keys = context.index_keys
    everything = {**published, layer: own}
    told = selections or {}
    sources = sources_of(context, geometry, spec)
    queries = [
        answer_query(t, context, sources, everything, last_keys, weights, geometry, spec, told.get(t))
        for t in range(len(past.hidden), len(context.hidden))
    ]
    before, picks, candidates = earlier or Published(), None, None
    if weights.indexer is not None:
        picks = {**(before.picks or {}), **{query.t: query.selection for query in queries}}
    if spec.chooses_candidates(geometry, layer):
        chosen = {query.t: query.blocks.candidates for query in queries if query.blocks is not None}
        candidates = {**(before.candidates or {}), **chosen}
    own = Published(own.entries, own.index_keys, picks, candidates)
    return LayerTrace(context, sources, queries, own, last_keys)


def sources_of(context: LayerContext, geometry: StackGeometry, spec: StackSpec = STACK_SPEC) -> Sources:
    """Return whose publications a layer reads."""
    layer = context.layer
    if context.role is LayerRole.SLIDING:
        return Sources()
    entries = spec.entry_source(geometry, layer)
    if context.role is LayerRole.REUSE:
        return Sources(entries, picks=spec.pick_source(geometry, layer))
    return Sources(entries, spec.key_source(geometry, layer), layer, spec.candidate_source(geometry, layer))
