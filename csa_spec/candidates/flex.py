"""``flex_attention`` with a block mask; the sink is applied afterwards, through the log-sum-exp.

Compiled on CUDA only. Uncompiled it has no backward on the CPU, so no gradients are claimed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.nn.functional import pad

from csa_spec.candidates.batched import key_counts, make_candidate, named_keys, wide
from csa_spec.plug.candidate import Candidate


def attend(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Attend from every query to the keys that it names, as :data:`csa_spec.candidates.batched.Attend`."""
    (batch, queries, _, dim), dtype = q.shape, wide(q)
    counts = key_counts(indices, kv.shape[1])
    if not counts.numel() or not q.numel():  # flex_attention refuses empty tensors
        return torch.zeros_like(q)
    # Compiled, it takes no fewer than 16 channels. Zeros change nothing.
    more = (0, max(0, 16 - dim))
    heads = pad(q.to(dtype).transpose(1, 2), more)
    keys = pad(named_keys(kv, counts).to(dtype)[:, None], more)
    bias = counts.to(dtype).log()

    def named(b: Tensor, h: Tensor, s: Tensor, key: Tensor) -> Tensor:
        return counts[b, s, key] > 0

    def biased(score: Tensor, b: Tensor, h: Tensor, s: Tensor, key: Tensor) -> Tensor:
        return score + bias[b, s, key]  # 0, or the logarithm of 2 where a query names a key twice

    mask = flex.create_block_mask(named, batch, None, queries, kv.shape[1], device=str(q.device))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it runs uncompiled
        out, lse = _flex(q.device.type)(heads, keys, keys, biased, mask, scale)
    # exp(lse) / (exp(lse) + exp(sink)); where there is no key, lse - sink may be -inf - (-inf).
    share = torch.where(lse.isneginf(), 0, torch.sigmoid(lse - sinks.to(dtype)[:, None]))
    return (out[..., :dim] * share[..., None]).transpose(1, 2).to(q.dtype)


def _with_lse(
    q: Tensor, k: Tensor, v: Tensor, score_mod: Any, mask: Any, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the output and the log-sum-exp of the logits."""
    arguments = (q, k, v, score_mod, mask, scale)
    if not hasattr(flex, "AuxRequest"):  # before torch 2.9
        return flex.flex_attention(*arguments, enable_gqa=True, return_lse=True)
    more = flex.AuxRequest(lse=True)
    out, aux = flex.flex_attention(*arguments, enable_gqa=True, return_aux=more)
    assert aux.lse is not None
    return out, aux.lse


@lru_cache
def _flex(device: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the function to call, compiled where that pays; once, as a compiled one keeps its kernels."""
    return torch.compile(_with_lse) if device == "cuda" else _with_lse


def load() -> Candidate:
    """Return the candidate."""
    candidate = make_candidate("flex", attend, static_shapes=torch.cuda.is_available())
    # On its own it may be called with far larger sizes than a layer is: each row has a mask of 128 x 128.
    declared = replace(candidate.capabilities, limits={"B": 64, "S": 256, "H": 256})
    return candidate.declaring("attend", declared)
