"""The keys of all queries in one row, ``[B, 1, S * n, D]``, and a mask that gives every query its own n.

The layout of plain masked attention, which transformers uses too. Without the block mask every query sees
what the others gathered, later ones included: https://github.com/huggingface/transformers/issues/45758.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from csa_spec.candidates.batched import key_or_none, make_candidate, softmax_with_sink, wide
from csa_spec.plug.candidate import Candidate


def attend(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Attend from every query to the keys that it names, as :data:`csa_spec.candidates.batched.Attend`."""
    dtype, none, queries = wide(q), kv.shape[1], q.shape[1]
    rows = key_or_none(indices, none).flatten(1)  # [B, S * n]
    batch = torch.arange(len(kv), device=kv.device)[:, None]
    keys = pad(kv, (0, 0, 0, 1))[batch, rows][:, None].to(dtype)  # none is a row of zeros behind the keys

    owner = torch.arange(queries, device=q.device).repeat_interleave(indices.shape[2])
    own = owner == torch.arange(queries, device=q.device)[:, None]  # [S, S * n]
    visible = own & (rows != none)[:, None, None]  # [B, 1, S, S * n]
    logits = scale * (q.to(dtype).transpose(1, 2) @ keys.mT)
    probabilities = softmax_with_sink(logits.masked_fill(~visible, -math.inf), sinks[:, None])
    return (probabilities @ keys).transpose(1, 2).to(q.dtype)


def load() -> Candidate:
    """Return the candidate."""
    candidate = make_candidate("flattened", attend, gradients=True)
    # The mask has S * S * n elements.
    declared = replace(candidate.capabilities, limits={"B": 64, "S": 128})
    return candidate.declaring("attend", declared).declaring("layer", declared)
