"""Which layer is what, and whose entries, index keys, picks and candidates it reads.

A layer publishes; later layers read what was published last. So the source of a layer is the nearest one at
or before it, and entries may come from another layer than picks.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from csa_spec.spec.v41.geometry import StackGeometry


class LayerRole(StrEnum):
    """What a layer does beyond its own queries and its own sliding window."""

    SLIDING = "sliding"
    """Nothing: it has no entries"""
    OWNER = "owner"
    """Makes entries and index keys, and picks among them. The report calls it Full"""
    REINDEX = "reindex"
    """Picks among the owner's entries, by its own queries against the owner's index keys"""
    REUSE = "reuse"
    """Attends to the entries that an earlier layer picked"""


def layer_role(geometry: StackGeometry, layer: int) -> LayerRole:
    """Return the role of a layer. Source: official ``Attention.__init__``."""
    if geometry.compress_ratios[layer] == 0:
        return LayerRole.SLIDING
    if layer in geometry.kv_source_layers:
        return LayerRole.OWNER
    return LayerRole.REINDEX if layer in geometry.index_source_layers else LayerRole.REUSE


def newest(publishers: Sequence[int], layer: int) -> int | None:
    """Return the nearest of the ``publishers`` at or before a layer, None where there is none.

    Source: the four single slots of the official ``shared_attn``, overwritten in the order of layers.
    """
    return max((publisher for publisher in publishers if publisher <= layer), default=None)


def entry_source(geometry: StackGeometry, layer: int) -> int | None:
    """Return the layer whose entries a compressed layer attends to: the nearest owner."""
    return newest(geometry.kv_source_layers, layer)


def key_source(geometry: StackGeometry, layer: int) -> int | None:
    """Return the layer whose index keys an index source scores against: the nearest owner, as for entries."""
    return newest(geometry.kv_source_layers, layer)


def pick_source(geometry: StackGeometry, layer: int) -> int | None:
    """Return the layer whose picks a compressed layer attends to: the nearest index source, owner or not."""
    return newest(geometry.index_source_layers, layer)


def candidate_source(geometry: StackGeometry, layer: int) -> int | None:
    """Return the layer to whose candidates an index source is restricted, None where it picks freely.

    All index sources after ``candidate_source_layer`` are restricted; that layer itself is not, and no later
    one chooses candidates anew. Source: official ``Indexer.__init__``.
    """
    source = geometry.candidate_source_layer
    return source if 0 <= source < layer else None


def chooses_candidates(geometry: StackGeometry, layer: int) -> bool:
    """Return whether a layer chooses the candidates: ``candidate_source_layer`` alone does."""
    return layer == geometry.candidate_source_layer
