"""How the tensors of a call lie in memory: as callers have them, not as a test makes them.

A layout is applied to the copies that a candidate gets, where it is called. The values are the same bits;
all memory around them is poison, so that reading it shows in the output, and writing it can be seen.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from enum import StrEnum

import torch
from torch import Tensor


class Layout(StrEnum):
    """How every tensor of a call lies in memory. The first is the simplest, and the default."""

    PLAIN = "plain"
    """Contiguous, from the first byte of memory of its own"""
    OFFSET = "offset"
    """Contiguous, but its first byte is no multiple of 16"""
    SLICED = "sliced"
    """The first channels of wider records"""
    TRANSPOSED = "transposed"
    """Two dimensions lie in the other order: heads before queries, a weight as its transpose"""
    STRIDED = "strided"
    """Every second element of its last dimension, and the last dimension alone"""
    EXPANDED = "expanded"
    """A stride of 0 along the first dimension in which all values are equal; rows are made so"""
    MIXED = "mixed"
    """Each tensor in a layout of its own, plain ones among them"""
    REQUIRES_GRAD = "requires-grad"
    """Plain, but parameters: floating-point tensors that require grad"""


VIEWS = tuple(layout for layout in Layout if layout is not Layout.PLAIN)
_STRIDES = "use the strides of every argument, or declare contiguous=True"
ADVICE = {
    Layout.OFFSET: "use the address of the first element, which may be no multiple of 16 bytes",
    **dict.fromkeys((Layout.SLICED, Layout.TRANSPOSED, Layout.STRIDED, Layout.MIXED), _STRIDES),
    Layout.EXPANDED: f"rows may lie in the same memory; {_STRIDES}",
    Layout.REQUIRES_GRAD: "detach what is passed on",
}
"""What to do about a failure that comes with a layout only."""
CONTIGUOUS = frozenset({Layout.PLAIN, Layout.OFFSET, Layout.REQUIRES_GRAD})
"""What is left for a candidate that declares that it needs contiguous tensors."""
ALONE = frozenset({Layout.PLAIN, Layout.REQUIRES_GRAD})
"""Without anything around a tensor in its memory."""
_MIXED = (Layout.PLAIN, Layout.SLICED, Layout.OFFSET, Layout.TRANSPOSED, Layout.STRIDED)
"""One after another: of two arguments one at least is no contiguous tensor"""
_AROUND = 16
"""Elements of poison before and behind a tensor: a multiple of 16 bytes in every dtype"""
_PADDING = 3
"""Channels of a record that are not the tensor's"""


def layouts_of(tensors: Mapping[str, Tensor], layout: str) -> dict[str, str]:
    """Return how each tensor of a call lies in memory; mixed layouts differ from call to call by its shapes."""
    if layout != Layout.MIXED:
        return dict.fromkeys(tensors, layout)
    first = zlib.crc32(str([tuple(tensor.shape) for tensor in tensors.values()]).encode())
    return {name: _MIXED[(first + number) % len(_MIXED)] for number, name in enumerate(tensors)}


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """Return a copy of a tensor in memory of its own, which lies as the layout says.

    Parameters
    ----------
    tensor
        Any shape; an empty one is copied as it is.
    layout
        A name of :class:`Layout`, but for mixed ones.
    """
    if layout in ALONE or not tensor.numel():
        return tensor.clone(memory_format=torch.contiguous_format)
    shape, last = list(tensor.shape), tensor.dim() - 1
    if layout == Layout.SLICED and shape:
        view = _room((*shape[:-1], shape[-1] + _PADDING), tensor)[..., : shape[-1]]
    elif layout == Layout.STRIDED and shape:
        view = _room((*shape[:-1], 2 * shape[-1]), tensor)[..., ::2]
    elif layout == Layout.TRANSPOSED and last > 0:
        first = max(0, last - 2)
        shape[first], shape[first + 1] = shape[first + 1], shape[first]
        view = _room(tuple(shape), tensor).transpose(first, first + 1)
    elif layout == Layout.EXPANDED and (equal := _equal_dimension(tensor)) is not None:
        single = tensor.narrow(equal, 0, 1)
        return _room(tuple(single.shape), tensor).copy_(single).expand_as(tensor)
    else:
        view = _room(tuple(shape), tensor, _AROUND + (layout == Layout.OFFSET))
    return view.copy_(tensor)


def _room(shape: tuple[int, ...], like: Tensor, before: int = _AROUND) -> Tensor:
    """Return memory of a shape in the middle of more of it, all of it poison."""
    count = math.prod(shape)
    memory = like.new_empty(before + count + _AROUND)
    for start, poison in enumerate(_poison(like.dtype)):
        memory[start::3] = poison
    return memory[before : before + count].view(shape)


def _poison(dtype: torch.dtype) -> tuple[float, float, float]:
    """Return what is written over memory in turns: three, so that every second element gets each of them."""
    if dtype.is_floating_point:
        return torch.finfo(dtype).max, math.nan, math.nan
    return (1, 1, 1) if dtype == torch.bool else (torch.iinfo(dtype).max // 2, -1, -1)


def _equal_dimension(tensor: Tensor) -> int | None:
    """Return the first dimension along which all values are the same bits; None where there is none."""
    bits = tensor.view(_WORDS[tensor.element_size()]) if tensor.is_floating_point() else tensor
    for dimension, size in enumerate(tensor.shape):
        if size > 1 and torch.equal(bits, bits.narrow(dimension, 0, 1).expand_as(bits)):
            return dimension
    return None


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def once(tensor: Tensor) -> Tensor:
    """Return a view that has each element of an expanded tensor once, so that it can be written to."""
    for dimension, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dimension] > 1:
            tensor = tensor.narrow(dimension, 0, 1)
    return tensor


def memory_of(tensor: Tensor) -> Tensor:
    """Return all memory that a tensor is a view of, as bytes."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
