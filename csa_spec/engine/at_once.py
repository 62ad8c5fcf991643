"""The specification on many items: its own functions, called for all items at once where a loop takes too long."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

MANY = 24
"""Items from which on ``torch.vmap`` is faster than a loop"""
_CHUNK = 1 << 22
"""Numbers of one argument that are worked on at once"""

R = TypeVar("R", Tensor, tuple[Tensor, Tensor])


def each(function: Callable[..., R], *items: Tensor) -> R:
    """Return what a function gives for each of at least one item, stacked.

    Parameters
    ----------
    function
        Of one item of each tensor; returns a tensor, or two.
    items
        Tensors of the same length in their first dimension.
    """
    if len(items[0]) >= MANY:
        chunk = max(1, _CHUNK // max(1, *(item[0].numel() for item in items)))
        many: R = torch.vmap(function, chunk_size=chunk)(*items)
        return many
    results = [function(*item) for item in zip(*items, strict=True)]
    if isinstance(results[0], Tensor):
        return torch.stack(results)
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))  # type: ignore[return-value]
