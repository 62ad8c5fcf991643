"""Breaking any single rule of the specification is noticed.

Every rule is replaced by a wrong one that somebody has shipped or could ship. For each the table says who
notices: the official vectors, the second oracle on drawn cases, or both. A rule that nobody would miss is a rule
that nothing holds in place.
"""
# ruff: noqa: D103

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from oracles import TOLERANCE, VECTORS, Array, second_batch
from torch import Tensor

from csa_spec.harness.case import Case
from csa_spec.harness.inputs import Inputs, make_inputs
from csa_spec.spec import SPEC, Geometry, LayerKind, Spec, attend_batch
from csa_spec.spec.attention import attend
from csa_spec.spec.compressor import Half, PooledToken, entry_position, half_columns, pool, pool_logit, pooled_tokens
from csa_spec.spec.indexer import index_score
from csa_spec.spec.output import project_output
from csa_spec.spec.rope import layer_frequencies, rope_frequencies, rotate
from csa_spec.spec.selection import select
from csa_spec.strategies import cases
from csa_spec.vectors import check_vectors

# --- Wrong rules ---------------------------------------------------------------------------------------------


def _without_overlap(s: int, m: int, overlap: bool) -> list[PooledToken]:
    return pooled_tokens(s, m, False)


def _previous_block_wraps_around(s: int, m: int, overlap: bool) -> list[PooledToken]:
    previous = [PooledToken((s - 1) * m + p, p, Half.PREVIOUS) for p in range(m)]
    return previous + pooled_tokens(s, m, False) if overlap else pooled_tokens(s, m, False)


def _ape_row_shifted_in_previous_half(s: int, m: int, overlap: bool) -> list[PooledToken]:
    return [
        p._replace(place=(p.place + 1) % m) if p.half is Half.PREVIOUS else p for p in pooled_tokens(s, m, overlap)
    ]


def _halves_swapped(half: Half, dim: int, overlap: bool) -> slice:
    return half_columns(Half.CURRENT if half is Half.PREVIOUS else Half.PREVIOUS, dim, overlap)


def _one_softmax_for_all_channels(values: Tensor, logits: Tensor) -> Tensor:
    return pool(values, logits.mean(dim=1, keepdim=True))


def _base_theta_everywhere(geometry: Geometry) -> Tensor:
    yarn = None if geometry.kind is LayerKind.SLIDING else geometry.yarn
    return rope_frequencies(geometry.rope_dim, geometry.rope_theta, yarn)


def _compress_theta_everywhere(geometry: Geometry) -> Tensor:
    yarn = None if geometry.kind is LayerKind.SLIDING else geometry.yarn
    return rope_frequencies(geometry.rope_dim, geometry.compress_rope_theta, yarn)


def _yarn_in_sliding_layers(geometry: Geometry) -> Tensor:
    theta = geometry.rope_theta if geometry.kind is LayerKind.SLIDING else geometry.compress_rope_theta
    return rope_frequencies(geometry.rope_dim, theta, geometry.yarn)


def _frequencies_over_head_dim(geometry: Geometry) -> Tensor:
    return rope_frequencies(geometry.head_dim, geometry.compress_rope_theta, geometry.yarn)[: geometry.rope_dim // 2]


def _scaled_by_yarn(vectors: Tensor, position: int, frequencies: Tensor) -> Tensor:
    # 0.1 ln(factor) + 1 of the released factor 16, on cos and sin.
    turned = rotate(vectors, position, frequencies)
    channels = torch.arange(turned.shape[-1]) >= turned.shape[-1] - 2 * len(frequencies)
    return torch.where(channels, 1.2772588722239782 * turned, turned)


def _half_split_pairs(vectors: Tensor, position: int, frequencies: Tensor) -> Tensor:
    width = 2 * len(frequencies)
    plain, (a, b) = vectors[..., :-width], vectors[..., -width:].chunk(2, dim=-1)
    turned = rotate(torch.stack((a, b), dim=-1).flatten(-2), position, frequencies)
    return torch.cat((plain, turned[..., 0::2], turned[..., 1::2]), dim=-1)


def _leading_channels(vectors: Tensor, position: int, frequencies: Tensor) -> Tensor:
    width = 2 * len(frequencies)
    return torch.cat((rotate(vectors[..., :width], position, frequencies), vectors[..., width:]), dim=-1)


def _relu_after_the_sum(queries: Tensor, head_weights: Tensor, key: Tensor) -> Tensor:
    return torch.relu((head_weights * (queries @ key)).sum())


def _best_head_only(queries: Tensor, head_weights: Tensor, key: Tensor) -> Tensor:
    return (head_weights * torch.relu(queries @ key)).amax()


def _lowest_scores(visible: Sequence[int], scores: Sequence[float], top_k: int) -> list[int]:
    return select(visible, [-score for score in scores], top_k)


def _highest_entry_of_a_tie(visible: Sequence[int], scores: Sequence[float], top_k: int) -> list[int]:
    return select(visible[::-1], scores[::-1], len(visible))[::-1][-top_k:] if False else _ranked(visible, scores)[:top_k]


def _ranked(visible: Sequence[int], scores: Sequence[float]) -> list[int]:
    return [entry for _, entry in sorted(zip(scores, visible, strict=True), reverse=True)]


def _positive_scores_only(visible: Sequence[int], scores: Sequence[float], top_k: int) -> list[int]:
    return [entry for entry in select(visible, scores, top_k) if scores[visible.index(entry)] > 0]
