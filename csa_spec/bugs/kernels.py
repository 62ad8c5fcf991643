"""Parts of right kernels that wrong ones are built from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from csa_spec.candidates.batched import key_or_none, softmax_with_sink, wide
from csa_spec.plug.capabilities import Capabilities

Function = TypeVar("Function", bound=Callable[..., Tensor])

TILE = 16
"""Indices that a kernel reads at once"""


def declaring(**declared: Any) -> Callable[[Function], Function]:
    """Let the decorated function declare capabilities."""

    def declare(function: Function) -> Function:
        function.capabilities = Capabilities(**declared)  # type: ignore[attr-defined]
        return function

    return declare


def gathered(kv: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return every query's own keys ``[B, S, n, D]``, rows of zeros for none, and which of them there are."""
    rows = key_or_none(indices, kv.shape[1])
    return pad(kv, (0, 0, 0, 1))[torch.arange(len(kv))[:, None, None], rows], rows < kv.shape[1]


def membership(kv: Tensor, indices: Tensor) -> Tensor:
    """Return which rows ``[B, S, N]`` of ``kv`` a query names."""
    return (indices[..., None] == torch.arange(kv.shape[1])).any(2)


def logits_of(q: Tensor, keys: Tensor, named: Tensor, scale: float, none: float = -math.inf) -> Tensor:
    """Return the logits ``[B, S, H, n]`` of every query's own keys."""
    logits = scale * torch.einsum("bshd,bsnd->bshn", q.to(wide(q)), keys.to(wide(q)))
    return logits.masked_fill(~named[:, :, None], none)


def attend_from(
    q: Tensor, keys: Tensor, named: Tensor, sinks: Tensor, scale: float, *, values: Tensor | None = None,
    none: float = -math.inf,
) -> Tensor:  # fmt: skip
    """Attend from every query to its own keys ``[B, S, n, D]``; ``named [B, S, n]`` says which of them there are."""
    probabilities = softmax_with_sink(logits_of(q, keys, named, scale, none), sinks)
    values = keys if values is None else values
    return torch.einsum("bshn,bsnd->bshd", probabilities, values.to(probabilities)).to(q.dtype)


def hadamard(x: Tensor) -> Tensor:
    """Turn the last dimension by one step of a Hadamard transform, an orthogonal matrix."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half : 2 * half]
    return torch.cat(((a + b) / math.sqrt(2), (a - b) / math.sqrt(2), x[..., 2 * half :]), -1)
