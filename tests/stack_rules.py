"""Broken rules of stacks, by the name of what is wrong; each is one rule replaced, unless it says more."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from csa_spec.spec.attention import attend
from csa_spec.spec.indexer import index_score
from csa_spec.spec.norm import rms_norm
from csa_spec.spec.rope import rope_frequencies, rotate
from csa_spec.spec.selection import select
from csa_spec.spec.v41 import Rotated, StackGeometry
from csa_spec.spec.v41.candidates import block_members, candidate_entries, restrict
from csa_spec.spec.v41.roles import entry_source, layer_role, newest
from csa_spec.spec.v41.rope import layer_frequencies

Rules = dict[str, Callable[..., Any]]


def _base_table_for(*parts: Rotated) -> Rules:
    """Sliding layers' table for some parts of all layers."""

    def frequencies(g: StackGeometry, ratio: int, part: Rotated, end: int) -> Tensor:
        return layer_frequencies(g, 0 if part in parts else ratio, part, end)

    return {"layer_frequencies": frequencies}


def _yarn_by_length(g: StackGeometry, ratio: int, part: Rotated, end: int) -> Tensor:
    yarn = g.yarn if ratio and g.yarn and end > g.yarn.original_max_position else None
    return rope_frequencies(g.rope_dim, g.compress_rope_theta if ratio else g.rope_theta, yarn)


def _yarn_everywhere(g: StackGeometry, ratio: int, part: Rotated, end: int) -> Tensor:
    return rope_frequencies(g.rope_dim, g.compress_rope_theta if ratio else g.rope_theta, g.yarn)


def _compress_theta_everywhere(g: StackGeometry, ratio: int, part: Rotated, end: int) -> Tensor:
    return rope_frequencies(g.rope_dim, g.compress_rope_theta, g.yarn if ratio else None)


def _ratio_2_alone_is_compressed(g: StackGeometry, ratio: int, part: Rotated, end: int) -> Tensor:
    return layer_frequencies(g, 0 if ratio == 1 else ratio, part, end)


def _half_split(vectors: Tensor, position: int, frequencies: Tensor) -> Tensor:
    n = len(frequencies)
    angle = position * frequencies
    plain, a, b = vectors[..., : -2 * n], vectors[..., -2 * n : -n], vectors[..., -n:]
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.cat((plain, a * cos - b * sin, a * sin + b * cos), -1)


def _rotate_leading(vectors: Tensor, position: int, frequencies: Tensor) -> Tensor:
    n = 2 * len(frequencies)
    return torch.cat((rotate(vectors[..., :n], position, frequencies), vectors[..., n:]), -1)


def _without_sink(q: Tensor, keys: Tensor, sink: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return attend(q, keys, sink - math.inf, scale)


def _scaled_sink(q: Tensor, keys: Tensor, sink: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return attend(q, keys, sink * scale, scale)


def _interleaved_heads(heads_out: Tensor, wo_a: Tensor, wo_b: Tensor, groups: int) -> Tensor:
    per_group = heads_out.reshape(-1, groups, heads_out.shape[1]).transpose(0, 1).reshape(groups, -1)
    low = wo_a.reshape(groups, -1, per_group.shape[1])
    return wo_b @ torch.cat([low[g] @ per_group[g] for g in range(groups)])


def _select_positive(visible: Sequence[int], scores: Sequence[float], k: int) -> list[int]:
    kept = [(s, score) for s, score in zip(visible, scores, strict=True) if score > 0]
    return select([s for s, _ in kept], [score for _, score in kept], k)


def _select_last_of_ties(visible: Sequence[int], scores: Sequence[float], k: int) -> list[int]:
    ranked = sorted(zip(visible, scores, strict=True), key=lambda pair: (-pair[1], -pair[0]))
    return [s for s, _ in ranked[:k]]


def _select_threshold(visible: Sequence[int], scores: Sequence[float], k: int) -> list[int]:
    if not 0 < k < len(scores):
        return select(visible, scores, k)
    least = sorted(scores, reverse=True)[k - 1]
    return [s for s, score in zip(visible, scores, strict=True) if score >= least]


def _later_sources_choose(g: StackGeometry, layer: int) -> bool:
    return 0 <= g.candidate_source_layer <= layer and layer in g.index_source_layers


def _newest_candidates(g: StackGeometry, layer: int) -> int | None:
    if not 0 <= g.candidate_source_layer < layer:
        return None
    return newest(
        [source for source in g.index_source_layers if source >= g.candidate_source_layer], layer - 1
    )


def _first_restricted_only(g: StackGeometry, layer: int) -> int | None:
    source = g.candidate_source_layer
    later = [index_source for index_source in g.index_source_layers if index_source > source]
    return source if source >= 0 and later[:1] == [layer] else None


def _other_owner(g: StackGeometry, layer: int) -> int | None:
    """Return the first owner of the same ratio, so that readers find entries for every number."""
    same = [o for o in g.kv_source_layers if o <= layer and g.compress_ratios[o] == g.compress_ratios[layer]]
    return same[0]


def _overlapping(s: int, ratio: int) -> list[int]:
    return list(range(max(0, (s - 1) * ratio), (s + 1) * ratio))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


RULES: dict[str, Rules] = {
    # Whose
    "picks of the owner across a reindex": {"pick_source": entry_source},
    "picks of the first index source": {"pick_source": lambda g, layer: g.index_source_layers[0]
        if layer not in g.index_source_layers else layer},
    "picks of the source before the newest": {"pick_source": lambda g, layer: layer
        if layer in g.index_source_layers else [s for s in g.index_source_layers if s < layer][-2:][0]},
    "entries of the first owner": {"entry_source": lambda g, layer: g.kv_source_layers[0]},
    "entries of the first owner of that ratio": {"entry_source": _other_owner},
    "index keys of the first owner of that ratio": {"key_source": _other_owner},
    "readers take the entries of the owner before": {"entry_source": lambda g, layer: layer
        if layer in g.kv_source_layers else [o for o in g.kv_source_layers if o < layer][-2:][0]},
    "reindex layers read as reuse": {"pick_source": entry_source, "layer_role": lambda g, layer:
        type(layer_role(g, layer)).REUSE if layer_role(g, layer) == "reindex" else layer_role(g, layer)},
    "ratio 1 read as sliding": {"layer_role": lambda g, layer:
        type(layer_role(g, layer)).SLIDING if g.compress_ratios[layer] == 1 else layer_role(g, layer)},
    "keys of whoever published last": {"scored_keys": lambda own, last: last},
    "reuse sees every visible entry": {"reuse": lambda picks, visible: list(visible)},
    "reuse takes the best of the picks only": {"reuse": lambda picks, visible: list(picks[:1])},
    "reused picks off by one": {"reuse": lambda picks, visible: [s - 1 for s in picks if s > 0]},
    "reuse leaves the picks out": {"reuse": lambda picks, visible: []},
    # Compressor and index keys
    "groups overlap": {"pooled_tokens": _overlapping},
    "pools the first token only": {"pooled_tokens": lambda s, ratio: [s * ratio]},
    "bias by place": {"pool_logit": lambda gate, place: gate + 0.5 * place},
    "mean in place of softmax": {"pool_logit": lambda gate, place: 0 * gate},
    "pooling logits scaled": {"pool_logit": lambda gate, place: gate * len(gate) ** -0.5},
    "one softmax for all channels": {"pool": lambda values, logits:
        (logits.mean(-1, keepdim=True).softmax(0) * values).sum(0)},
    "softmax over channels": {"pool": lambda values, logits: (logits.softmax(-1) * values).sum(0)},
    "sigmoid gates": {"pool": lambda values, logits: (logits.sigmoid() * values).sum(0)},
    "pools without gate": {"pool": lambda values, logits: values.mean(0)},
    "ratio 1 has a gate": {"single_value": lambda content: content.sigmoid() * content},
    "incomplete last group dropped with one more": {"entry_count": lambda n, ratio: max(0, n - 1) // ratio},
    "entry at its last token": {"entry_position": lambda s, ratio: (s + 1) * ratio - 1},
    "entry at its number": {"entry_position": lambda s, ratio: s},
    "entry at the middle of its group": {"entry_position": lambda s, ratio: s * ratio + ratio // 2},
    "entry and index key not rotated": {"entry_position": lambda s, ratio: 0},
    "index keys from rotated latents": {"index_key_input": lambda latent, entry: entry},
    # Norms
    "norm per query head": {"query_norm": lambda q, eps: rms_norm(q, None, eps)},
    "norm per index query head": {"index_queries": lambda q, eps: rms_norm(q, None, eps)},
    "eps 1e-6": {"norm_eps": lambda g: 1e-6},
    "norm weights ignored": {"norm": lambda v, weight, eps: rms_norm(v, None, eps)},
    "mean subtracted": {"norm": lambda v, weight, eps: rms_norm(v - v.mean(-1, keepdim=True), weight, eps)},
    # Rotation
    "yarn by length": {"layer_frequencies": _yarn_by_length},
    "yarn in sliding layers": {"layer_frequencies": _yarn_everywhere},
    "compress theta in sliding layers": {"layer_frequencies": _compress_theta_everywhere},
    "base table at ratio 1": {"layer_frequencies": _ratio_2_alone_is_compressed},
    "base table for queries": _base_table_for(Rotated.QUERY),
    "base table for index queries": _base_table_for(Rotated.INDEX_QUERY),
    "base table for index keys": _base_table_for(Rotated.INDEX_KEY),
    "base table for the window": _base_table_for(Rotated.WINDOW),
    "base table for entries": _base_table_for(Rotated.ENTRY),
    "base table for the inverse rotation": _base_table_for(Rotated.OUTPUT),
    "base table for all but entries and index keys": _base_table_for(
        Rotated.QUERY, Rotated.WINDOW, Rotated.INDEX_QUERY, Rotated.OUTPUT),
    "half-split pairs": {"rotate": _half_split},
    "leading channels rotated": {"rotate": _rotate_leading},
    "output not rotated back": {"output_position": lambda position: 0},
    "output rotated forward": {"output_position": lambda position: position},
    # Visibility, scores, picks
    "entry hidden from its own last token": {"visible_entries": lambda t, ratio: list(range(t // ratio))},
    "own token's entry hidden at ratio 1": {"visible_entries": lambda t, ratio:
        list(range(t if ratio == 1 else (t + 1) // ratio))},
    "no entries at ratio 1": {"visible_entries": lambda t, ratio:
        [] if ratio == 1 else list(range((t + 1) // ratio))},
    "own unfinished group visible": {"visible_entries": lambda t, ratio: list(range(t // ratio + 1))},
    "newest visible entry hidden": {"visible_entries": lambda t, ratio: list(range((t + 1) // ratio - 1))},
    "entries of window tokens hidden": {"visible_entries": lambda t, ratio: list(range((t - 1) // ratio))},
    "window one too wide": {"window_tokens": lambda t, window: list(range(max(0, t - window), t + 1))},
    "window without the own token": {"window_tokens": lambda t, window: list(range(max(0, t - window), t))},
    "scores without relu": {"index_score": lambda q, w, key: (w * (q @ key)).sum()},
    "scores of absolute head weights": {"index_score": lambda q, w, key: index_score(q, w.abs(), key)},
    "relu after the sum": {"index_score": lambda q, w, key: (w * (q @ key)).sum().relu()},
    "picks of positive scores only": {"select": _select_positive},
    "picks by absolute score": {"select": lambda v, scores, k: select(v, [abs(s) for s in scores], k)},
    "one pick too many": {"select": lambda v, scores, k: select(v, scores, k + 1)},
    "the lowest scores": {"select": lambda v, scores, k: select(v, [-s for s in scores], k)},
    "the newest entries": {"select": lambda v, scores, k: list(v[-k:]) if k else []},
    "the last of ties": {"select": _select_last_of_ties},
    "all ties at the threshold": {"select": _select_threshold},
    "a top_k of 0 is unset": {"select": lambda v, scores, k: select(v, scores, k or len(v))},
    # Candidates
    "nobody restricted": {"candidate_source": lambda g, layer: None},
    "only the first later source restricted": {"candidate_source": _first_restricted_only},
    "later sources choose candidates anew": {
        "chooses_candidates": _later_sources_choose, "candidate_source": _newest_candidates},
    "restriction without effect": {"restrict": lambda visible, candidates: list(visible)},
    "everything but candidates": {"restrict": lambda visible, candidates:
        [s for s in visible if s not in set(candidates)]},
    "no pinned block": {"pinned_block": lambda visible, size: None},
    "first block pinned": {"pinned_block": lambda visible, size: 0},
    "pinned block of the next entry": {"pinned_block": lambda visible, size: len(visible) // size},
    "pinned block not counted": {"block_quota": lambda blocks, pinned: blocks + (pinned is not None)},
    "pinned block counted twice": {"block_quota": lambda blocks, pinned: max(1, blocks - 1)},
    "blocks scored by invisible entries": {"block_members": lambda visible, size, count:
        block_members(range(count), size, count)},
    "blocks scored by their first entry": {"block_members": lambda visible, size, count:
        {block: [block * size] for block in block_members(visible, size, count)}},
    "block score as mean": {"block_score": _mean},
    "block score as sum": {"block_score": sum},
    "block score of absolute values": {"block_score": lambda scores: max(map(abs, scores))},
    "block score at least 0": {"block_score": lambda scores: max(0.0, *scores)},
    "lowest score of a block": {"block_score": min},
    "best entry of each block only": {"candidate_entries": lambda kept, size, count:
        [block * size for block in kept]},
    "blocks counted from 1": {"candidate_entries": lambda kept, size, count:
        candidate_entries([block + 1 for block in kept], size, count)},
    "blocks one entry longer": {"candidate_entries": lambda kept, size, count:
        [s for s in range(count) if s // size in kept or (s - 1) // size in kept]},
    # Core and output
    "no sink": {"attend": _without_sink},
    "sink scaled": {"attend": _scaled_sink},
    "index width in the scale": {"softmax_scale": lambda g: (g.head_dim + g.rope_dim) ** -0.5},
    "neighbouring heads in different groups": {"project_output": _interleaved_heads},
}  # fmt: skip

SAME: dict[str, Rules] = {
    "unbroken": {},
    "scores of heads summed one by one": {"index_score": lambda q, w, key:
        torch.stack([weight * (query @ key).relu() for query, weight in zip(q, w, strict=True)]).sum()},
    "tokens in another order": {"pooled_tokens": lambda s, ratio: list(range((s + 1) * ratio - 1, s * ratio - 1, -1))},
    "picks in another order": {"reuse": lambda picks, visible: list(reversed(picks))},
    "block score by sorting": {"block_score": lambda scores: sorted(scores)[-1]},
    # Its block is pinned, so that it is a candidate already.
    "newest entry always allowed": {"restrict": lambda visible, candidates:
        restrict(visible, [*candidates, *visible[-1:]])},
    # Only the pinned block has both visible and invisible entries, and it needs no score.
    "invisible entries score a block that has visible ones": {"block_members": lambda visible, size, count: {
        block: [s for s in range(count) if s // size == block] for block in block_members(visible, size, count)}},
    # Invisible entries of the pinned block are candidates that nobody may pick.
    "visible candidates only": {"restrict": lambda visible, candidates:
        [s for s in candidates if s in set(visible)]},
}  # fmt: skip
"""The right rules in other words, and variants that make no difference, with the reason"""
