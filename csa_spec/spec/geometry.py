"""The shape of one attention layer, checked by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class GeometryError(ValueError):
    """A geometry that no layer can have; the message says which rule it breaks."""


class LayerKind(StrEnum):
    """The three attention layers of DeepSeek-V4."""

    CSA = "csa"
    HCA = "hca"
    SLIDING = "sliding"


UNBOUNDED = 1e100
"""Numbers of this size and more mean nothing here, and powers of them overflow."""


@dataclass(frozen=True, slots=True)
class Yarn:
    """YaRN interpolation of the rotary frequencies, without amplitude correction.

    Source: official ``inference/model.py``, ``precompute_freqs_cis``.
    """

    factor: float = 16.0
    original_max_position: int = 65536
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what the formula cannot use."""
        if not (0 < self.factor < UNBOUNDED and 1 <= self.original_max_position < UNBOUNDED):
            raise GeometryError(
                f"YaRN needs a positive factor and original_max_position, not {self.factor} and "
                f"{self.original_max_position}"
            )
        if not UNBOUNDED > self.beta_fast > self.beta_slow > 0:
            raise GeometryError(
                f"YaRN needs beta_fast > beta_slow > 0, not {self.beta_fast} and {self.beta_slow}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Sizes and constants of one layer. The defaults are the smallest legal layer.

    Names follow the official configuration; ``compress_ratio`` is the paper's m (CSA) or m' (HCA),
    ``top_k`` its k and ``window`` its n_win.
    """

    kind: LayerKind = LayerKind.CSA
    compress_ratio: int = 1
    """Tokens per compressed entry. Sliding layers have no entries and ignore it."""
    top_k: int = 1
    """Entries that a query of a CSA layer selects at most."""
    window: int = 1
    """Tokens in the sliding window, the query's own token included."""
    hidden: int = 2
    heads: int = 1
    head_dim: int = 2
    rope_dim: int = 2
    """Trailing channels of each head (and of each index head) that are rotated."""
    q_lora_rank: int = 1
    index_heads: int = 1
    index_head_dim: int = 2
    o_groups: int = 1
    o_lora_rank: int = 1
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies in sliding-only layers."""
    compress_rope_theta: float = 160_000.0
    """Base of the rotary frequencies in CSA and HCA layers, for their sliding window too."""
    yarn: Yarn | None = None
    """YaRN of CSA and HCA layers; sliding-only layers never use it."""
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        """Check every size; the message names the field and the rule."""
        object.__setattr__(self, "kind", _layer_kind(self.kind))
        require_sizes(self, _LEAST)
        if self.rope_dim % 2 or self.rope_dim > self.head_dim:
            raise GeometryError(
                f"rope_dim {self.rope_dim} must be even and at most head_dim {self.head_dim}"
            )
        if self.kind is LayerKind.CSA and self.rope_dim > self.index_head_dim:
            raise GeometryError(
                f"rope_dim {self.rope_dim} must be at most index_head_dim {self.index_head_dim}"
            )
        if self.heads % self.o_groups:
            raise GeometryError(f"o_groups {self.o_groups} must divide heads {self.heads}")
        if not (self.rope_theta > 1 and self.compress_rope_theta > 1):
            raise GeometryError("rope_theta and compress_rope_theta must be greater than 1")
        if not self.norm_eps > 0:
            raise GeometryError(f"norm_eps {self.norm_eps} must be positive")

    @property
    def overlap(self) -> bool:
        """Whether an entry also pools the previous block: CSA does, HCA does not."""
        return self.kind is LayerKind.CSA

    @property
    def scale(self) -> float:
        """Softmax scale; no YaRN correction. Source: official ``Attention.softmax_scale``."""
        return 1 / math.sqrt(self.head_dim)

    def entry_count(self, length: int) -> int:
        """Return how many complete blocks ``length`` tokens have; a partial block gives no entry."""
        return 0 if self.kind is LayerKind.SLIDING else length // self.compress_ratio


_LEAST = {
    "compress_ratio": 1, "top_k": 0, "window": 1, "hidden": 1, "heads": 1, "head_dim": 2, "rope_dim": 2,
    "q_lora_rank": 1, "index_heads": 1, "index_head_dim": 2, "o_groups": 1, "o_lora_rank": 1,
}  # fmt: skip


def require_sizes(geometry: object, least: Mapping[str, int]) -> None:
    """Refuse a size that is no integer or below its least; the message names the field and the rule."""
    for name, lowest in least.items():
        value = getattr(geometry, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            raise GeometryError(f"{name} {value!r} must be an integer of at least {lowest}")


def _layer_kind(kind: str) -> LayerKind:
    try:
        return LayerKind(kind)
    except ValueError:
        raise GeometryError(f"layer kind {str(kind)!r} is none of csa, hca, sliding") from None
