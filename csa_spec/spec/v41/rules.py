"""The rules of a stack, gathered: those that V4.1 shares with V4, and those that it changed or added.

A variant (a known bug, say) is ``replace(STACK_SPEC, pinned_block=...)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from csa_spec.spec.attention import attend
from csa_spec.spec.compressor import entry_position, pool
from csa_spec.spec.indexer import index_score
from csa_spec.spec.norm import rms_norm
from csa_spec.spec.output import project_output
from csa_spec.spec.rope import rotate
from csa_spec.spec.selection import select, visible_entries
from csa_spec.spec.v41 import candidates, compressor, picks, roles
from csa_spec.spec.v41.geometry import StackGeometry
from csa_spec.spec.v41.roles import LayerRole
from csa_spec.spec.v41.rope import Rotated, layer_frequencies
from csa_spec.spec.window import window_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class StackSpec:
    """The rules of a stack, one function each; ``STACK_SPEC`` holds the right ones."""

    # The same functions as in V4
    rotate: Callable[[Tensor, int, Tensor], Tensor] = rotate
    window_tokens: Callable[[int, int], list[int]] = window_tokens
    pool: Callable[[Tensor, Tensor], Tensor] = pool
    entry_position: Callable[[int, int], int] = entry_position
    visible_entries: Callable[[int, int], list[int]] = visible_entries
    index_score: Callable[[Tensor, Tensor, Tensor], Tensor] = index_score
    select: Callable[[Sequence[int], Sequence[float], int], list[int]] = select
    attend: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]] = attend
    project_output: Callable[[Tensor, Tensor, Tensor, int], Tensor] = project_output
    norm: Callable[[Tensor, Tensor | None, float], Tensor] = rms_norm
    """In V4 no field of its rules, but the same function"""

    # The same in V4, said of a stack
    softmax_scale: Callable[[StackGeometry], float] = lambda geometry: geometry.scale
    output_position: Callable[[int], int] = lambda position: -position
    layer_frequencies: Callable[[StackGeometry, int, Rotated, int], Tensor] = layer_frequencies
    entry_count: Callable[[int, int], int] = compressor.entry_count
    index_queries: Callable[[Tensor, float], Tensor] = picks.index_queries

    # Changed in V4.1
    norm_eps: Callable[[StackGeometry], float] = lambda geometry: geometry.norm_eps
    """1e-20 as released, V4: 1e-6"""
    query_norm: Callable[[Tensor, float], Tensor] = picks.no_query_norm
    pooled_tokens: Callable[[int, int], list[int]] = compressor.pooled_tokens
    pool_logit: Callable[[Tensor, int], Tensor] = compressor.pool_logit
    single_value: Callable[[Tensor], Tensor] = compressor.single_value
    index_key_input: Callable[[Tensor, Tensor], Tensor] = compressor.index_key_input

    # New in V4.1: layers that read what others published
    layer_role: Callable[[StackGeometry, int], LayerRole] = roles.layer_role
    entry_source: Callable[[StackGeometry, int], int | None] = roles.entry_source
    key_source: Callable[[StackGeometry, int], int | None] = roles.key_source
    pick_source: Callable[[StackGeometry, int], int | None] = roles.pick_source
    scored_keys: Callable[[Tensor, Tensor], Tensor] = picks.scored_keys
    reuse: Callable[[Sequence[int], Sequence[int]], list[int]] = picks.reuse

    # New in V4.1: candidates
    chooses_candidates: Callable[[StackGeometry, int], bool] = roles.chooses_candidates
    candidate_source: Callable[[StackGeometry, int], int | None] = roles.candidate_source
    block_members: Callable[[Sequence[int], int, int], dict[int, list[int]]] = candidates.block_members
    block_score: Callable[[Sequence[float]], float] = candidates.block_score
    pinned_block: Callable[[Sequence[int], int], int | None] = candidates.pinned_block
    block_quota: Callable[[int, int | None], int] = candidates.block_quota
    candidate_entries: Callable[[Sequence[int], int, int], list[int]] = candidates.candidate_entries
    restrict: Callable[[Sequence[int], Sequence[int]], list[int]] = candidates.restrict


STACK_SPEC = StackSpec()
