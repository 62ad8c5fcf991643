"""A kernel with the signature of DeepSeek's official ``sparse_attn``.

csa-spec check official_sparse_attn:attend --stage attend
"""

import torch

from csa_spec import Capabilities

# Kernel under test: put yours here.


def sparse_attn(q, kv, attn_sink, topk_idxs, softmax_scale):
    """Return [b, s, h, d]; kv [b, n, d], attn_sink [h] float32, topk_idxs [b, s, topk] int32, -1 = none."""
    kv = torch.nn.functional.pad(kv, (0, 0, 0, 1)).float()  # a row of zeros, for -1
    keys = kv[torch.arange(len(kv))[:, None, None], torch.where(topk_idxs < 0, kv.shape[1] - 1, topk_idxs)]
    logits = softmax_scale * (q.float()[:, :, :, None] * keys[:, :, None]).sum(-1)
    logits = logits.masked_fill((topk_idxs < 0)[:, :, None], -torch.inf)
    logits = torch.cat((logits, attn_sink[:, None].expand(*logits.shape[:3], 1)), -1)
    peak = logits.amax(-1, keepdim=True).clamp(min=-1e30)
    weights = (logits - peak).exp()
    weights = weights[..., :-1] / weights.sum(-1, keepdim=True).clamp(min=1)
    return (weights[..., None] * keys[:, :, None]).sum(3).to(q.dtype)


# Adapter


def attend(q, kv, indices, sinks, scale):
    """Pass everything on, with the dtypes that the kernel wants."""
    return sparse_attn(q, kv, sinks.float(), indices.int(), scale)


attend.capabilities = Capabilities(dtypes={"float32", "bfloat16", "float16"})
