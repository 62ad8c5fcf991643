"""Root-mean-square normalisation."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(vector: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Divide the last dimension by its root mean square; multiply by ``weight`` where there is one.

    Source: official ``RMSNorm`` (weighted) and ``Attention.forward`` (``q *= rsqrt(...)``, unweighted).
    """
    normed = vector * torch.rsqrt(vector.square().mean(-1, keepdim=True) + eps)
    return normed if weight is None else weight * normed
