"""Logits against all N keys, and an additive bias that hides what a query does not name."""

from __future__ import annotations

import torch
from torch import Tensor

from csa_spec.candidates.batched import key_counts, make_candidate, named_keys, softmax_with_sink, wide
from csa_spec.plug.candidate import Candidate


def attend(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Attend from every query to the keys that it names, as :data:`csa_spec.candidates.batched.Attend`."""
    dtype = wide(q)
    counts = key_counts(indices, kv.shape[1])
    keys = named_keys(kv, counts).to(dtype)
    logits = scale * torch.einsum("bshd,bnd->bshn", q.to(dtype), keys)
    bias = counts.to(dtype).log()[:, :, None]  # 0 for a key that is named once, -inf for one that is not
    return torch.einsum("bshn,bnd->bshd", softmax_with_sink(logits + bias, sinks), keys).to(q.dtype)


def load() -> Candidate:
    """Return the candidate."""
    return make_candidate("dense", attend, gradients=True)
