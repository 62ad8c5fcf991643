"""Wrong rules that bugs of several stages have: what takes the place of one rule of the specification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from csa_spec.spec import SPEC, Geometry, Spec
from csa_spec.spec.compressor import Half, PooledToken, half_columns
from csa_spec.spec.rope import rotate

# COMPRESSOR


def own_block(s: int, m: int, overlap: bool) -> list[PooledToken]:
    """Pool one block where two overlap."""
    return SPEC.pooled_tokens(s, m, overlap)[-m:]


ALONE = replace(SPEC, pooled_tokens=own_block)


def reversed_bias(s: int, m: int, overlap: bool) -> list[PooledToken]:
    """Count the rows of the position bias from the newest token of a block."""
    return [token._replace(place=m - 1 - token.place) for token in SPEC.pooled_tokens(s, m, overlap)]


def swapped_halves(half: Half, dim: int, overlap: bool) -> slice:
    """Read the columns of the previous block for the current one, and the other way round."""
    return half_columns(Half.CURRENT if half is Half.PREVIOUS else Half.PREVIOUS, dim, overlap)


def no_bias(gate: Tensor, bias: Tensor) -> Tensor:
    """Use the gate without the position bias."""
    return gate


def mean(values: Tensor, logits: Tensor) -> Tensor:
    """Give every token of a block the same weight."""
    return values.mean(dim=0)


def softmax_over_channels(values: Tensor, logits: Tensor) -> Tensor:
    """Normalize over the channels of a token instead of the tokens of a channel."""
    return (torch.softmax(logits, dim=1) * values).sum(dim=0)


def one_weight_per_token(values: Tensor, logits: Tensor) -> Tensor:
    """Pool all channels alike."""
    return SPEC.pool(values, logits.mean(dim=1, keepdim=True))


def with_a_block_of_zeros(geometry: Geometry, logit: float) -> Spec:
    """Return the rules with a block of zeros, and a logit for it, before the first."""
    m = geometry.compress_ratio

    def pooled(values: Tensor, logits: Tensor) -> Tensor:
        if geometry.overlap and len(values) == m:
            values, logits = pad(values, (0, 0, m, 0)), pad(logits, (0, 0, m, 0), value=logit)
        return SPEC.pool(values, logits)

    return replace(SPEC, pool=pooled)


# SELECTION


def last_of_a_tie(visible: Sequence[int], scores: Sequence[float], top_k: int) -> list[int]:
    """Select the highest entries among equal scores."""
    ranked = sorted(zip(scores, visible, strict=True), reverse=True)
    return [entry for _, entry in ranked[:top_k]]


# ROTATION


def last_token(s: int, m: int) -> int:
    """Rotate an entry to the last token of its block."""
    return s * m + m - 1


def half_split(vectors: Tensor, position: int, frequencies: Tensor) -> Tensor:
    """Rotate pairs of channels that lie half of the rotated channels apart."""
    width = 2 * len(frequencies)
    a, b = vectors[..., -width:].chunk(2, dim=-1)
    turned = rotate(torch.stack((a, b), dim=-1).flatten(-2), position, frequencies)
    return torch.cat((vectors[..., :-width], turned[..., 0::2], turned[..., 1::2]), dim=-1)


def leading_channels(vectors: Tensor, position: int, frequencies: Tensor) -> Tensor:
    """Rotate the first channels of a head."""
    width = 2 * len(frequencies)
    return torch.cat((rotate(vectors[..., :width], position, frequencies), vectors[..., width:]), dim=-1)


def unrotated(vectors: Tensor, position: int, frequencies: Tensor) -> Tensor:
    """Do not rotate."""
    return vectors
