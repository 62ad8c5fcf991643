"""The grouped output projection."""

from __future__ import annotations

import torch
from torch import Tensor


def project_output(heads_out: Tensor, wo_a: Tensor, wo_b: Tensor, groups: int) -> Tensor:
    """Project ``heads_out`` ``[heads, d]`` to ``[hidden]``, group by group and then all together.

    Group g holds the neighbouring heads ``[g * heads/groups, (g+1) * heads/groups)``. No bias, no norm
    between. Source: official ``Attention.forward`` (``einsum("bsgd,grd->bsgr")``, then ``wo_b``).
    """
    per_group = heads_out.reshape(groups, -1)
    low_rank = wo_a.reshape(groups, -1, per_group.shape[1])
    return wo_b @ torch.cat([low_rank[g] @ per_group[g] for g in range(groups)])
