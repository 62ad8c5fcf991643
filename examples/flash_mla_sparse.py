"""A kernel with the signature of FlashMLA's sparse prefill. It has no batch dimension, so the adapter loops.

    csa-spec check flash_mla_sparse:attend --stage attend

The real kernel takes bfloat16 on CUDA, and 64 or 128 heads of 512 channels. An adapter for it would declare
``dtypes={"bfloat16"}``, ``devices={"cuda"}``, ``head_dims={512}``, ``multiples={"H": 64}``,
``limits={"H": 128}``.
"""

import torch

from csa_spec import Capabilities

# Kernel under test: put ``from flash_mla import flash_mla_sparse_fwd`` here.


def flash_mla_sparse_fwd(q, kv, indices, sm_scale, d_v=512, attn_sink=None, topk_length=None):
    """Return out [s_q, h_q, d_v], max_logits, lse; kv [s_kv, 1, d_qk], indices [s_q, 1, k], sink [h_q]."""
    assert indices.shape[2] in range(128, 1 << 20, 128)
    kv, none = torch.nn.functional.pad(kv[:, 0], (0, 0, 0, 1)).float(), len(kv)
    rows = torch.where((indices < 0) | (indices >= none), none, indices)[:, 0]
    if topk_length is not None:
        rows = rows.masked_fill(torch.arange(rows.shape[1]) >= topk_length[:, None], none)
    keys = kv[rows]
    logits = sm_scale * (q.float()[:, :, None] * keys[:, None]).sum(-1)
    logits = logits.masked_fill((rows == none)[:, None], -torch.inf)
    max_logits = torch.nn.functional.pad(logits, (0, 1), value=-torch.inf).amax(-1)
    sink = torch.full_like(max_logits, -torch.inf) if attn_sink is None else attn_sink.expand_as(max_logits)
    peak = torch.maximum(max_logits, sink).clamp(min=-1e30)
    weights = (logits - peak[..., None]).exp()
    total = weights.sum(-1) + (sink - peak).exp()
    out = (weights[..., None] * keys[:, None, :, :d_v]).sum(2) / total.clamp(min=1)[..., None]
    return out.to(q.dtype), max_logits, logits.logsumexp(-1)


# Adapter


def attend(q, kv, indices, sinks, scale):
    """Fill the lists up to a multiple of 128, run each row alone, keep the first of the three outputs."""
    indices = torch.nn.functional.pad(indices, (0, 128 - indices.shape[2] % 128), value=-1).int()
    rows = [(q[b], kv[b, :, None], indices[b, :, None]) for b in range(len(q))]
    return torch.stack([flash_mla_sparse_fwd(*row, scale, q.shape[-1], sinks.float())[0] for row in rows])


attend.capabilities = Capabilities(dtypes={"float32", "bfloat16", "float16"}, invalid_indices=True)
