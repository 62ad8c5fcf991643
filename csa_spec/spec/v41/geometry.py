"""The shape of a stack of DeepSeek-V4.1 layers, checked by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from csa_spec.spec.geometry import Yarn
from csa_spec.spec.v41.preconditions import NO_LAYER, check_stack


@dataclass(frozen=True, slots=True, kw_only=True)
class StackGeometry:
    """Sizes and constants of a stack of layers. The defaults are one sliding layer, the smallest there is.

    Names follow the official configuration, but for ``top_k``, which it calls ``index_topk``. Layers count
    from 0. All layers have the same sizes; what a layer is, the lists say.
    """

    compress_ratios: Sequence[int] = (0,)
    """Per layer: tokens per entry, 0 for a sliding layer. The released model has 0, 2 and 1."""
    kv_source_layers: Sequence[int] = ()
    """Layers that make entries and index keys: the owners."""
    index_source_layers: Sequence[int] = ()
    """Layers that pick entries by scores of their own."""
    candidate_source_layer: int = NO_LAYER
    """The layer that says which blocks of entries later index sources may pick from; -1 for none."""
    candidate_blocks: int = 0
    """Blocks that it keeps for a query, the pinned one included. Without such a layer it has no effect."""
    candidate_block_size: int = 0
    """Entries per block. Without such a layer it has no effect."""
    top_k: int = 1
    """Entries that a query picks at most."""
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
    """Base of the rotary frequencies in sliding layers."""
    compress_rope_theta: float = 160_000.0
    """Base of the rotary frequencies in all other layers, for their sliding window too."""
    yarn: Yarn | None = None
    """YaRN of all layers but the sliding ones."""
    norm_eps: float = 1e-20
    """V4 has 1e-6."""

    def __post_init__(self) -> None:
        """Check sizes, lists, and what the official code takes for granted."""
        for name in ("compress_ratios", "kv_source_layers", "index_source_layers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_stack(self)

    @property
    def layers(self) -> int:
        """How many layers the stack has."""
        return len(self.compress_ratios)

    @property
    def scale(self) -> float:
        """Softmax scale, as in V4."""
        return 1 / math.sqrt(self.head_dim)
