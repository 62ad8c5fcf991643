"""A module with a stage. Its package registers it, so csa-spec knows it by name.

csa-spec check my-kernels
"""

import torch

# Kernel under test: put yours here.


def relu_scores(q, k, w):
    """Return [b, s, t]; q [b, s, h, d], k [b, t, d], w [b, s, h]."""
    products = (q[:, :, :, None] * k[:, None, None]).sum(-1).relu()
    return (w[..., None] * products).sum(2)


# Adapter


def index_scores(index_q, index_k, head_weights):
    """Compute in float32 at least: scores may have the dtype of the queries or float32."""
    wide = torch.promote_types(index_q.dtype, torch.float32)
    return relu_scores(index_q.to(wide), index_k.to(wide), head_weights.to(wide))
