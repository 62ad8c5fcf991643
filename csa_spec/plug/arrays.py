"""Tensors for candidates of any framework: what a candidate is handed, and what it gives back."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor


def named_tensors(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return every tensor of a call by name; a weight inside a dataclass is e.g. ``weights.wkv``."""
    tensors: dict[str, Tensor] = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif is_dataclass(value):
            inner = {field.name: getattr(value, field.name) for field in fields(value)}
            tensors |= {f"{name}.{key}": tensor for key, tensor in named_tensors(inner).items()}
    return tensors


def map_tensors(change: Callable[[str, Tensor], Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Replace every tensor, also those inside dataclasses, by ``change(name, tensor)``."""
    return {name: _map_value(change, name, value) for name, value in arguments.items()}


def _map_value(change: Callable[[str, Tensor], Any], name: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        return change(name, value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {}
        for field in fields(value):
            before = getattr(value, field.name)
            after = _map_value(change, f"{name}.{field.name}", before)
            if after is not before:
                changed[field.name] = after
        return replace(value, **changed) if changed else value
    return value


def to_library(tensor: Tensor, arrays: str) -> Any:
    """Return a tensor as an array of the library that a candidate wants, without a copy where possible.

    Parameters
    ----------
    tensor
        Any shape.
    arrays
        ``torch``, ``numpy``, or a module with ``from_dlpack``, such as ``jax.numpy`` or ``cupy``.
    """
    if arrays == "torch":
        return tensor
    if arrays == "numpy":
        return tensor.numpy()
    return importlib.import_module(arrays).from_dlpack(tensor)


def library_problem(arrays: str) -> str:
    """Say why :func:`to_library` cannot make arrays of a library; nothing if it can."""
    if arrays == "torch":
        return ""
    try:
        library = importlib.import_module(arrays)
    except (ImportError, ValueError, TypeError) as error:
        return f"the module {arrays!r} cannot be imported ({error})"
    if hasattr(library, "from_dlpack"):
        return ""
    return f"{arrays!r} has no from_dlpack; choose torch, numpy, or a module that has it, such as jax.numpy"


def from_library(value: Any) -> Any:
    """Return an array of any library as a tensor; what is no array comes back as it is."""
    if isinstance(value, Tensor) or not (hasattr(value, "__dlpack__") or hasattr(value, "__array__")):
        return value
    if any(stride < 0 for stride in getattr(value, "strides", None) or ()):
        value = value.copy()  # torch ends the process on a reversed view
    try:
        return torch.utils.dlpack.from_dlpack(value)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):  # a read-only array, say
        array = value.__array__() if hasattr(value, "__array__") else value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a read-only array: nothing here writes to it
        return torch.as_tensor(array)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree in shape, dtype and every bit, but for the payload of a NaN."""
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and bool(torch.equal(a.isnan(), b.isnan()))
        and bool(torch.equal(*(x.nan_to_num(posinf=torch.inf, neginf=-torch.inf) for x in (a, b))))
    )


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors lie in overlapping memory."""
    if a.device != b.device or not a.numel() or not b.numel():
        return False
    first, second = a.untyped_storage(), b.untyped_storage()
    return (
        first.data_ptr() < second.data_ptr() + second.nbytes()
        and second.data_ptr() < first.data_ptr() + first.nbytes()
    )
