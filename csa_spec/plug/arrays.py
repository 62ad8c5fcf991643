"""Tensors for candidates of any framework: what a candidate is handed, and what it gives back."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor


def named_tensors(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return every tensor of a call by name; a weight inside a dataclass is e.g. ``weights.wkv``."""
    arrays = named_arrays(arguments)
    return {name: value for name, value in arrays.items() if isinstance(value, Tensor)}


def named_arrays(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return every array of any library likewise."""
    arrays: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor) or hasattr(value, "__dlpack__"):
            arrays[name] = value
        elif is_dataclass(value):
            inner = {field.name: getattr(value, field.name) for field in fields(value)}
            arrays |= {f"{name}.{key}": array for key, array in named_arrays(inner).items()}
    return arrays


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


class Foreign(NamedTuple):
    """What came back in place of an array, in words, so that it can be told of in any process."""

    what: str
    """E.g. ``a coroutine``"""
    todo: str = ""
    """What to do about it"""

    def __str__(self) -> str:
        """Return e.g. ``a generator (return the output, do not yield it)``."""
        return f"{self.what} ({self.todo})" if self.todo else self.what


def received(value: Any, like: Any) -> Any:
    """Return what a candidate gave back as a tensor; what is none, or no plain one, as :class:`Foreign`.

    Parameters
    ----------
    value
        Anything.
    like
        An array that the candidate was handed: of its library, and on its device, the answer must be.
    """
    if isinstance(value, Tensor):
        return _unlike(value, like) or value
    if not hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        return _no_array(value)
    if isinstance(value, type):
        return Foreign(f"the class {value.__name__}", "return an instance")
    library, wanted = _library_of(value), _library_of(like)
    if library != wanted and library in _DECLARED:
        declare = f'declare arrays="{_DECLARED[library]}", or return {_ARRAYS[wanted]}'
        return Foreign(_ARRAYS[library], declare)
    try:
        return from_library(value)
    except Exception:  # text, or Python's objects
        return Foreign(
            f"{_ARRAYS[library]} of {getattr(value, 'dtype', 'objects')}", "return one of numbers"
        )


_DECLARED = {"numpy": "numpy", "jax": "jax.numpy", "cupy": "cupy"}
_ARRAYS = defaultdict(
    lambda: "one of its library's arrays",
    {"torch": "a torch tensor", "numpy": "a NumPy array", "jax": "a JAX array", "cupy": "a CuPy array"},
)


def _library_of(array: Any) -> str:
    if isinstance(array, Tensor):
        return "torch"
    name = type(array).__module__.partition(".")[0]
    return "jax" if name == "jaxlib" else name


def _unlike(out: Tensor, like: Any) -> Foreign | None:
    """Say what keeps a tensor from being a plain one like those that were handed over."""
    library = _library_of(like)
    if library != "torch":
        return Foreign(
            "a torch tensor", f"return {_ARRAYS[library]}, or leave arrays out of what is declared"
        )
    if type(out) not in (Tensor, torch.nn.Parameter):
        return Foreign(f"{_a(type(out).__name__)}, a subclass of tensors", "return a plain torch.Tensor")
    if out.is_nested:
        return Foreign("a nested tensor", "return a padded one: torch.nested.to_padded_tensor")
    if out.layout is not torch.strided:
        return Foreign(
            f"a sparse tensor ({str(out.layout).removeprefix('torch.')})", "return out.to_dense()"
        )
    if out.is_quantized:
        return Foreign("a quantized tensor", "return out.dequantize()")
    if out.device != like.device:
        meta = ", where tensors hold no numbers" if out.is_meta else ""
        return Foreign(f"a tensor on {out.device}{meta}", f"return it on {like.device}, as the inputs are")
    return None


def _no_array(value: Any) -> Foreign | None:
    name = type(value).__name__
    if inspect.iscoroutine(value):
        value.close()  # else Python warns that nobody awaited it
        return Foreign("a coroutine", "give a function that is not async, for instance one with asyncio.run")
    if inspect.isasyncgen(value) or inspect.isgenerator(value):
        return Foreign(_a(name.replace("_", " ")), "return the output, do not yield it")
    if isinstance(value, (tuple, list, dict, set)):
        return Foreign(f"a {name} of {len(value)}", "return the output alone")
    if isinstance(value, type):
        return Foreign(f"the class {value.__name__}", "return an instance")
    if callable(getattr(value, "result", None)) or callable(getattr(value, "wait", None)):
        return Foreign(_a(name), "wait for it, and return its result")
    return Foreign("None", "return the output") if value is None else Foreign(_a(name))


def _a(name: str) -> str:
    return f"an {name}" if name[:1].lower() in "aeiou" else f"a {name}"


def from_library(value: Any) -> Tensor:
    """Return an array of any library as a tensor."""
    if isinstance(value, Tensor):
        return value
    if any(stride < 0 for stride in getattr(value, "strides", None) or ()):
        value = value.copy()  # torch ends the process on a reversed view
    try:
        tensor: Tensor = torch.utils.dlpack.from_dlpack(value)
        return tensor
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):  # a read-only array, say
        array = value.__array__() if hasattr(value, "__array__") else value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a read-only array: nothing here writes to it
        return torch.as_tensor(array)


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether two elements of a tensor lie in the same memory, as after ``expand``."""
    if not tensor.numel() or tensor.is_contiguous():
        return False
    extent = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride < extent:
            break
        extent += stride * (size - 1)
    else:
        return False
    places = torch.zeros(1, dtype=torch.int64)  # strides in an odd order: look at every element
    for stride, size in zip(tensor.stride(), tensor.shape, strict=True):
        places = (places[:, None] + stride * torch.arange(size)).flatten()
    return len(set(places.tolist())) < tensor.numel()


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree in shape, dtype and every bit, but for the payload of a NaN."""
    if a.is_complex() and b.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    if a.is_floating_point() and a.element_size() == 1 and a.dtype == b.dtype:
        a, b = a.view(torch.uint8), b.view(torch.uint8)  # eight bits, with which torch does not compute
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
