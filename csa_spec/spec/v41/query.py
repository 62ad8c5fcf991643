"""One query of one layer of a stack.

Read :func:`answer_query` first: it is V4's, step by step, with other sources of entries, scores and picks.
Every decision that it takes is a rule of :mod:`csa_spec.spec.v41.rules`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from csa_spec.spec.each import LONG, each
from csa_spec.spec.indexer import index_scale
from csa_spec.spec.selection import selection_margin
from csa_spec.spec.v41.candidates import choose_candidates
from csa_spec.spec.v41.geometry import StackGeometry
from csa_spec.spec.v41.rope import Rotated
from csa_spec.spec.v41.rules import STACK_SPEC, StackSpec
from csa_spec.spec.v41.trace import LayerContext, Published, Sources, StackQueryTrace
from csa_spec.spec.v41.weights import StackLayerWeights


def answer_query(
    t: int,
    context: LayerContext,
    sources: Sources,
    published: Mapping[int, Published],
    last_keys: Tensor,
    weights: StackLayerWeights,
    geometry: StackGeometry,
    spec: StackSpec = STACK_SPEC,
    selection: Sequence[int] | None = None,
) -> StackQueryTrace:
    """Run query ``t`` of a document through one layer.

    Parameters
    ----------
    t
        Index of the query, counted from the document's first token.
    context
        The document in this layer.
    sources, published
        Whose entries, index keys, picks and candidates it reads, and what these layers published: this one's
        own entries and index keys, too.
    last_keys
        The index keys that were published last; no right rule reads them.
    weights, geometry
        The layer and the stack.
    spec
        The rules.
    selection
        Entries to attend to, and to publish, in place of what the rules pick.
    """
    x, position, eps = context.hidden[t], context.document.start + t, spec.norm_eps(geometry)
    ratio, frequencies = geometry.compress_ratios[context.layer], context.frequencies
    latent = spec.norm(weights.wq_a @ x, weights.q_norm, eps)
    q = spec.query_norm((weights.wq_b @ latent).view(geometry.heads, -1), eps)
    q = spec.rotate(q, position, frequencies[Rotated.QUERY])

    # VISIBLE: entries of the nearest owner
    window = spec.window_tokens(t, geometry.window)
    entries, visible = context.entries, list[int]()
    if sources.entries is not None:
        entries = _there(published[sources.entries].entries)
        visible = spec.visible_entries(t, ratio)

    # SCORE: own queries against the owner's index keys
    index_q, scores = x.new_zeros(0), x.new_zeros(0)
    known: dict[int, float] = {}
    allowed, blocks = visible, None
    if weights.indexer is not None and sources.index_keys is not None:
        index_q = (weights.indexer.wq_b @ latent).view(geometry.index_heads, -1)
        index_q = spec.rotate(spec.index_queries(index_q, eps), position, frequencies[Rotated.INDEX_QUERY])
        head_weights = weights.indexer.weights_proj @ x
        head_weights = head_weights * index_scale(geometry.index_heads, geometry.index_head_dim)
        index_keys = spec.scored_keys(_there(published[sources.index_keys].index_keys), last_keys)

        def score(key: Tensor) -> Tensor:
            return spec.index_score(index_q, head_weights, key)

        if visible:
            scores = each(score, index_keys[visible], many=LONG)
        known = dict(zip(visible, scores.tolist(), strict=True))

        # CANDIDATES: chosen by one layer, binding for later ones
        if spec.chooses_candidates(geometry, context.layer):

            def score_of(s: int) -> float:
                return known[s] if s in known else score(index_keys[s]).item()

            blocks = choose_candidates(visible, score_of, geometry, len(entries), spec)
        if sources.candidates is not None:
            candidates = published[sources.candidates].candidates
            assert candidates is not None
            allowed = spec.restrict(visible, candidates[t])

    # SELECT: own picks, or those of the nearest index source; a constant for gradients
    chosen, margin = list[int](), None
    if sources.picks == context.layer:
        ranking = [known[s] for s in allowed]
        chosen = sorted(spec.select(allowed, ranking, geometry.top_k))
        margin = selection_margin(ranking, geometry.top_k)
    elif sources.picks is not None:
        picks = published[sources.picks].picks
        assert picks is not None
        chosen = spec.reuse(picks[t], visible)
    if selection is not None:
        chosen = sorted(selection)

    # GATHER
    keys = torch.cat((context.window_keys[window], entries[chosen]))

    # SOFTMAX
    core, probabilities = spec.attend(q, keys, weights.attn_sink, spec.softmax_scale(geometry))

    # OUTPUT
    heads_out = spec.rotate(core, spec.output_position(position), frequencies[Rotated.OUTPUT])
    out = spec.project_output(heads_out, weights.wo_a, weights.wo_b, geometry.o_groups)
    return StackQueryTrace(
        t, window, visible, scores, chosen, margin, q, probabilities, core, out, index_q, allowed, blocks
    )


def _there(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
