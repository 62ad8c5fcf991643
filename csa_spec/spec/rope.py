"""Rotary position embedding: trailing channels, interleaved pairs, one table per layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from csa_spec.spec.geometry import Geometry, LayerKind, Yarn


def layer_frequencies(geometry: Geometry) -> Tensor:
    """Return the rotary frequencies ``[rope_dim / 2]`` that everything in one layer uses.

    CSA and HCA layers use ``compress_rope_theta`` with YaRN for queries, window, entries and indexer alike;
    sliding-only layers use ``rope_theta`` without YaRN. Source: official ``Attention.__init__``.
    """
    if geometry.kind is LayerKind.SLIDING:
        return rope_frequencies(geometry.rope_dim, geometry.rope_theta, None)
    return rope_frequencies(geometry.rope_dim, geometry.compress_rope_theta, geometry.yarn)


def rope_frequencies(rope_dim: int, theta: float, yarn: Yarn | None) -> Tensor:
    """Return ``theta ** (-2i / rope_dim)`` for each pair i, slowed down by YaRN where it applies.

    YaRN leaves the fast pairs alone, divides the slow ones by ``factor`` and blends between; cos and sin are
    not scaled. Source: official ``precompute_freqs_cis``.
    """
    pairs = torch.arange(rope_dim // 2, dtype=torch.float64)
    frequencies = theta ** (-2 * pairs / rope_dim)
    if yarn is None:
        return frequencies

    def pair_of(turns: float) -> float:
        """Return the (fractional) pair that makes ``turns`` full turns over the original context."""
        wavelength_ratio = yarn.original_max_position / (turns * 2 * math.pi)
        return rope_dim * math.log(wavelength_ratio) / (2 * math.log(theta))

    low = max(math.floor(pair_of(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_of(yarn.beta_slow)), rope_dim - 1)
    width = high - low if high != low else 0.001
    slowed = ((pairs - low) / width).clamp(0, 1)
    return frequencies / yarn.factor * slowed + frequencies * (1 - slowed)


def rotate(vectors: Tensor, position: int, frequencies: Tensor) -> Tensor:
    """Rotate the trailing channels of ``vectors`` ``[..., d]`` to ``position``.

    Pair i is ``(a, b)``, two neighbouring channels; it becomes ``(a cos - b sin, a sin + b cos)`` with angle
    ``position * frequencies[i]``. A negative position rotates back. Source: official ``apply_rotary_emb``.
    """
    rope_dim = 2 * len(frequencies)
    angle = position * frequencies
    cos, sin = torch.cos(angle), torch.sin(angle)
    plain, turned = vectors[..., :-rope_dim], vectors[..., -rope_dim:]
    a, b = turned[..., 0::2], turned[..., 1::2]
    pairs = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1)
    return torch.cat((plain, pairs.flatten(-2)), dim=-1)
