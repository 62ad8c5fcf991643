"""Every query gathers its own keys: ``[B, S, n, D]``. The plainest layout; memory grows with S times n."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from csa_spec.candidates.batched import key_or_none, make_candidate, softmax_with_sink, wide
from csa_spec.plug.candidate import Candidate


def attend(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Attend from every query to the keys that it names, as :data:`csa_spec.candidates.batched.Attend`."""
    dtype, none = wide(q), kv.shape[1]
    rows = key_or_none(indices, none)
    batch = torch.arange(len(kv), device=kv.device)[:, None, None]
    keys = pad(kv, (0, 0, 0, 1))[batch, rows].to(dtype)  # none is a row of zeros behind the keys
    logits = scale * torch.einsum("bshd,bsnd->bshn", q.to(dtype), keys)
    logits = logits.masked_fill((rows == none)[:, :, None], -math.inf)
    return torch.einsum("bshn,bsnd->bshd", softmax_with_sink(logits, sinks), keys).to(q.dtype)


def load() -> Candidate:
    """Return the candidate."""
    return make_candidate("gather", attend, gradients=True)
