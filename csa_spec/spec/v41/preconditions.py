"""What a stack must be: sizes that fit each other, and what the official code takes for granted.

Where a stack is otherwise, the official code computes something all the same: another owner's entries, numbers
of entries that mean others, entries that are no candidates. Here it is refused with a sentence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csa_spec.spec.geometry import GeometryError, require_sizes
from csa_spec.spec.v41.roles import LayerRole, entry_source, layer_role

if TYPE_CHECKING:
    from csa_spec.spec.v41.geometry import StackGeometry

NO_LAYER = -1
"""In place of ``candidate_source_layer``: no layer restricts the others."""

_LEAST = {
    "candidate_source_layer": NO_LAYER, "candidate_blocks": 0, "candidate_block_size": 0, "top_k": 0,
    "window": 1, "hidden": 1, "heads": 1, "head_dim": 2, "rope_dim": 2, "q_lora_rank": 1, "index_heads": 1,
    "index_head_dim": 2, "o_groups": 1, "o_lora_rank": 1,
}  # fmt: skip


def check_stack(geometry: StackGeometry) -> None:
    """Raise :class:`GeometryError` unless there can be such a stack; the message says what is wrong."""
    _check_sizes(geometry)
    _check_lists(geometry)
    _check_sources(geometry)
    _check_candidates(geometry)


def _check_sizes(g: StackGeometry) -> None:
    require_sizes(g, _LEAST)
    if g.rope_dim % 2 or g.rope_dim > min(g.head_dim, g.index_head_dim):
        raise GeometryError(
            f"rope_dim {g.rope_dim} must be even and at most head_dim {g.head_dim} and index_head_dim "
            f"{g.index_head_dim}"
        )
    if g.heads % g.o_groups:
        raise GeometryError(f"o_groups {g.o_groups} must divide heads {g.heads}")
    if not (g.rope_theta > 1 and g.compress_rope_theta > 1):
        raise GeometryError("rope_theta and compress_rope_theta must be greater than 1")
    if not g.norm_eps > 0:
        raise GeometryError(f"norm_eps {g.norm_eps} must be positive")


def _check_lists(g: StackGeometry) -> None:
    if not g.layers:
        raise GeometryError("compress_ratios must name at least one layer")
    for layer, ratio in enumerate(g.compress_ratios):
        if not isinstance(ratio, int) or isinstance(ratio, bool) or ratio < 0:
            raise GeometryError(
                f"layer {layer} has the ratio {ratio!r}, which must be an integer of at least 0"
            )
    for name in ("kv_source_layers", "index_source_layers"):
        listed = getattr(g, name)
        if list(listed) != sorted(set(listed)):
            raise GeometryError(f"{name} {list(listed)} must ascend without repetition")
        for layer in listed:
            if not isinstance(layer, int) or not 0 <= layer < g.layers:
                raise GeometryError(f"{name} names layer {layer!r} of a stack of {g.layers} layers")
            if g.compress_ratios[layer] == 0:
                raise GeometryError(f"{name} names layer {layer}, which is a sliding layer")


def _check_sources(g: StackGeometry) -> None:
    """Every compressed layer needs entries of its own ratio, and picks that are numbers of those entries."""
    for layer in g.kv_source_layers:
        if layer not in g.index_source_layers:
            raise GeometryError(
                f"layer {layer} owns entries but is no index source, so that nobody would make its index keys"
            )
    # Owners are index sources, so the newest picks are never older than the newest entries.
    for layer, ratio in enumerate(g.compress_ratios):
        if layer_role(g, layer) is LayerRole.SLIDING:
            continue
        owner = entry_source(g, layer)
        if owner is None:
            raise GeometryError(f"layer {layer} has the ratio {ratio} but no owner at or before it")
        if g.compress_ratios[owner] != ratio:
            raise GeometryError(
                f"layer {layer} has the ratio {ratio} but would read the entries of layer {owner}, whose ratio "
                f"is {g.compress_ratios[owner]}"
            )


def _check_candidates(g: StackGeometry) -> None:
    """Candidates are numbers of entries, so they hold for one owner; and they must leave top_k entries."""
    source = g.candidate_source_layer
    if source == NO_LAYER:
        return
    if source not in g.index_source_layers:
        raise GeometryError(f"candidate_source_layer {source} is no index source, so that it has no scores")
    for layer in g.index_source_layers:
        if layer > source and entry_source(g, layer) != entry_source(g, source):
            raise GeometryError(
                f"layer {layer} would be restricted to candidates that layer {source} chose among the entries "
                f"of another owner"
            )
    for name in ("candidate_blocks", "candidate_block_size"):
        if getattr(g, name) < 1:
            raise GeometryError(
                f"{name} {getattr(g, name)} must be at least 1 where a layer chooses candidates"
            )
    # The pinned block may be visible by one entry only.
    surely = (g.candidate_blocks - 1) * g.candidate_block_size + 1
    if surely < g.top_k:
        raise GeometryError(
            f"{g.candidate_blocks} blocks of {g.candidate_block_size} entries may leave {surely} candidates, "
            f"fewer than top_k {g.top_k}: the official code would fill up with entries that are none"
        )
