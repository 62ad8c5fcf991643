"""The rules of the layer, gathered: every decision is one small named function.

A variant (a known bug, say) is ``replace(SPEC, visible_entries=...)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from csa_spec.spec.attention import attend
from csa_spec.spec.compressor import (
    Half,
    PooledToken,
    entry_position,
    half_columns,
    pool,
    pool_logit,
    pooled_tokens,
)
from csa_spec.spec.geometry import Geometry
from csa_spec.spec.indexer import index_score
from csa_spec.spec.output import project_output
from csa_spec.spec.rope import layer_frequencies, rotate
from csa_spec.spec.selection import select, visible_entries
from csa_spec.spec.window import window_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """The rules of the layer, one function each; ``SPEC`` holds the right ones."""

    layer_frequencies: Callable[[Geometry], Tensor] = layer_frequencies
    rotate: Callable[[Tensor, int, Tensor], Tensor] = rotate
    window_tokens: Callable[[int, int], list[int]] = window_tokens
    pooled_tokens: Callable[[int, int, bool], list[PooledToken]] = pooled_tokens
    half_columns: Callable[[Half, int, bool], slice] = half_columns
    pool_logit: Callable[[Tensor, Tensor], Tensor] = pool_logit
    pool: Callable[[Tensor, Tensor], Tensor] = pool
    entry_position: Callable[[int, int], int] = entry_position
    visible_entries: Callable[[int, int], list[int]] = visible_entries
    index_score: Callable[[Tensor, Tensor, Tensor], Tensor] = index_score
    select: Callable[[Sequence[int], Sequence[float], int], list[int]] = select
    softmax_scale: Callable[[Geometry], float] = lambda geometry: geometry.scale
    attend: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]] = attend
    output_position: Callable[[int], int] = lambda position: -position
    project_output: Callable[[Tensor, Tensor, Tensor, int], Tensor] = project_output


SPEC = Spec()
