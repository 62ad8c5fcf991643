"""Rotary frequencies: one table per layer, for everything in it."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from torch import Tensor

from csa_spec.spec.rope import rope_frequencies

if TYPE_CHECKING:
    from csa_spec.spec.v41.geometry import StackGeometry


class Rotated(StrEnum):
    """What is rotated in a layer."""

    QUERY = "query"
    WINDOW = "window"
    ENTRY = "entry"
    INDEX_KEY = "index key"
    INDEX_QUERY = "index query"
    OUTPUT = "output"
    """Rotated back, by the query's position"""


def layer_frequencies(geometry: StackGeometry, ratio: int, rotated: Rotated, end: int) -> Tensor:
    """Return the rotary frequencies ``[rope_dim / 2]`` of a layer with the given ratio.

    Sliding layers (ratio 0) use ``rope_theta`` without YaRN, all others ``compress_rope_theta`` with it. As in
    V4 nothing else matters: not what is ``rotated`` (keys and queries must share a table), nor ``end``, the
    number of positions in use (V3 switched YaRN on by it). Source: official ``Attention.__init__`` and
    ``precompute_freqs_cis``.
    """
    if ratio == 0:
        return rope_frequencies(geometry.rope_dim, geometry.rope_theta, None)
    return rope_frequencies(geometry.rope_dim, geometry.compress_rope_theta, geometry.yarn)
