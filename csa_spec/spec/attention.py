"""The attention core: one softmax over window tokens and selected entries, with a sink."""

from __future__ import annotations

import torch
from torch import Tensor


def sink_term(sink: Tensor, peak: Tensor) -> Tensor:
    """Return what the sink adds to the softmax denominator, relative to ``exp(peak)``.

    The sink is a learned logit per head: not scaled, without a value. Source: paper eq. 27.
    """
    return torch.exp(sink - peak)


def attend(q: Tensor, keys: Tensor, sink: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attend from one query to its keys, which are its values too.

    Parameters
    ----------
    q
        ``[heads, d]``, normed and rotated.
    keys
        ``[n, d]``, shared by all heads.
    sink
        ``[heads]``, logits.
    scale
        Factor on ``q . k``.

    Returns
    -------
    out, probabilities
        ``[heads, d]`` and ``[heads, n]``; each row of probabilities sums to at most 1, the sink has the
        rest. Without keys the output is exactly zero.

    Source: paper eq. 27, official ``sparse_attn``. The sink takes part in the running maximum: the same
    mathematics, but a sink far above the logits cannot overflow.
    """
    if len(keys) == 0:
        return torch.zeros_like(q), q.new_zeros(len(q), 0)
    logits = scale * (q @ keys.T)
    peak = torch.maximum(logits.amax(dim=-1), sink).detach()
    exponentials = torch.exp(logits - peak[:, None])
    denominator = exponentials.sum(dim=-1) + sink_term(sink, peak)
    probabilities = exponentials / denominator[:, None]
    return probabilities @ keys, probabilities
