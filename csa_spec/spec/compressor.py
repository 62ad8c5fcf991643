"""The compressor: one entry for every complete block of ``compress_ratio`` tokens."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor


class Half(Enum):
    """The role in which a token is pooled, and so the half of the columns that is read."""

    PREVIOUS = "previous"
    CURRENT = "current"


class PooledToken(NamedTuple):
    """One token of the many that an entry pools."""

    token: int
    """Index of the token in its document"""
    place: int
    """Its place inside its own block, which is its row of ``ape`` in either role"""
    half: Half


def pooled_tokens(s: int, compress_ratio: int, overlap: bool) -> list[PooledToken]:
    """Return the tokens that entry ``s`` pools: its own block and, with overlap, the block before it.

    Entry 0 has no block before it; the official code gives those slots a logit of -inf, weight exactly 0.
    Source: official ``Compressor.overlap_transform``; paper eqs. 11-12 (CSA), 22-23 (HCA).
    """
    places = range(compress_ratio)
    previous = [PooledToken((s - 1) * compress_ratio + p, p, Half.PREVIOUS) for p in places]
    current = [PooledToken(s * compress_ratio + p, p, Half.CURRENT) for p in places]
    return previous + current if overlap and s > 0 else current


def half_columns(half: Half, dim: int, overlap: bool) -> slice:
    """Return the columns of ``wkv``, ``wgate`` and ``ape`` for a role: ``[:d]`` previous, ``[d:]`` current.

    Source: official ``Compressor`` ("the first half of dims is for overlapping compression").
    """
    if not overlap or half is Half.PREVIOUS:
        return slice(0, dim)
    return slice(dim, 2 * dim)


def pool_logit(gate: Tensor, bias: Tensor) -> Tensor:
    """Return a token's pooling logit ``[d]``: its gate plus the bias of its place. Paper eq. 11."""
    return gate + bias


def pool(values: Tensor, logits: Tensor) -> Tensor:
    """Average ``values`` ``[n, d]`` with weights softmax(``logits``) over the tokens, per channel.

    Every channel has its own softmax; there is no scale. Source: official ``Compressor.forward``.
    """
    return (torch.softmax(logits, dim=0) * values).sum(dim=0)


def entry_position(s: int, compress_ratio: int) -> int:
    """Return the position at which entry ``s`` is rotated: the first token of its own block.

    Counted from the document's first token. The paper does not state it. Source: official
    ``Compressor.forward`` (``freqs_cis[:cutoff:ratio]``).
    """
    return s * compress_ratio
