"""``scaled_dot_product_attention`` with a mask; the sink is one more key, without a value."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from csa_spec.candidates.batched import key_counts, make_candidate, named_keys, wide
from csa_spec.plug.candidate import Candidate


def attend(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Attend from every query to the keys that it names, as :data:`csa_spec.candidates.batched.Attend`."""
    # Not in bfloat16 or float16: the mask must have the dtype of the queries, and it holds the sinks.
    dtype, heads = wide(q), q.shape[2]
    counts = key_counts(indices, kv.shape[1])
    # A key of zeros has a logit of 0, so its bias is its logit, and its value adds nothing.
    keys = pad(named_keys(kv, counts).to(dtype), (0, 0, 1, 0))[:, None].expand(-1, heads, -1, -1)
    # A query without a key would divide 0 by 0 if its sink were -inf; any other sink gives it 0.
    empty = (counts.sum(-1) == 0)[:, None]
    sink = torch.where(empty, 0, sinks.to(dtype)[:, None])
    bias = counts.to(dtype).log()[:, None].expand(-1, heads, -1, -1)
    mask = torch.cat((sink[..., None], bias), -1)  # [B, H, S, 1 + N]
    out = scaled_dot_product_attention(q.to(dtype).transpose(1, 2), keys, keys, attn_mask=mask, scale=scale)
    return out.transpose(1, 2).to(q.dtype)


def load() -> Candidate:
    """Return the candidate."""
    return make_candidate("sdpa", attend, gradients=True)
