"""A loop over items; where they are many, the same function is called for all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

MANY = 24
"""Items from which on ``torch.vmap`` is faster than a loop"""
LONG = 64
"""The same where a loop is kept, for whoever reads or replaces its rules, as long as it does not take long"""
_CHUNK = 1 << 22
"""Numbers of one argument that are worked on at once"""
_MOST = 1 << 10
"""Items that are worked on at once, each of which may take much more memory than its arguments"""

R = TypeVar("R", Tensor, tuple[Tensor, Tensor])


def each(function: Callable[..., R], *items: Tensor | Sequence[int], many: int = MANY) -> R:
    """Return what a function gives for each of at least one item, stacked.

    Parameters
    ----------
    function
        Of one item of each argument; returns a tensor, or two. A rule that asks for the value of a number
        cannot be called for all items at once, and is called in a loop.
    items
        As many tensors, or numbers, each.
    many
        Items from which on they are worked on at once.
    """
    if len(items[0]) >= many:
        tensors = [item if isinstance(item, Tensor) else torch.tensor(item) for item in items]
        chunk = max(1, _CHUNK // max(1, *(item[0].numel() for item in tensors)))
        try:
            at_once: R = torch.vmap(function, chunk_size=min(chunk, _MOST))(*tensors)
            return at_once
        except RuntimeError:  # what torch raises where control flow depends on a number
            pass
    results = [function(*item) for item in zip(*items, strict=True)]
    if isinstance(results[0], Tensor):
        return torch.stack(results)
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))  # type: ignore[return-value]
