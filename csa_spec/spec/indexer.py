"""The lightning indexer: how much a query wants an entry. CSA only."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def index_scale(heads: int, head_dim: int) -> float:
    """Return the constant folded into the head weights; positive, so it never changes a selection.

    Source: official ``Indexer.forward`` (``softmax_scale * n_heads ** -0.5``).
    """
    return 1 / math.sqrt(head_dim * heads)


def index_score(queries: Tensor, head_weights: Tensor, key: Tensor) -> Tensor:
    """Return the score of one entry for one query: ``sum_h w_h * relu(q_h . k)``, a scalar.

    Parameters
    ----------
    queries
        ``[index_heads, index_head_dim]``, rotated, not normalised.
    head_weights
        ``[index_heads]``, may be negative.
    key
        ``[index_head_dim]``, shared by all heads.

    Source: paper eq. 16. The Hadamard rotation of the official code is orthonormal and applied to both
    sides, so it cancels without quantisation.
    """
    return (head_weights * torch.relu(queries @ key)).sum()
