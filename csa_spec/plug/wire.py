"""What travels between this process and a worker: pickles, with their length in front.

The other side is our own child, so pickle is no danger. What a candidate returns or raises may not pickle.
"""

from __future__ import annotations

import ctypes
import functools
import io
import pickle
import socket
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from csa_spec.plug.call import Answer, Fault, MisshapenAnswer, NotOffered
from csa_spec.plug.candidate import one_line


class RemoteError(Exception):
    """An exception of the candidate, under the name of the class that was raised in the worker."""


_OURS: dict[str, Callable[..., Exception]] = {
    f"{kind.__module__}.{kind.__name__}": kind for kind in (Fault, NotOffered, MisshapenAnswer)
}
"""Exceptions that mean something here; those of the candidate have only their names."""
_BETWEEN = "\x1f"
"""Between the arguments of one of these."""


def remote_error(name: str, message: str, trace: str) -> Exception:
    """Return what to raise here for an exception there."""
    if name in _OURS:
        return _OURS[name](*message.split(_BETWEEN))
    error: RemoteError = _class_named(name, RemoteError)(message)
    error.add_note(f"In the worker:\n{trace}")
    return error


def told(error: BaseException) -> tuple[str, str, str]:
    """Return an exception in plain text, since its object need not survive pickling."""
    kind = type(error)
    ours = kind in _OURS.values()
    name = f"{kind.__module__}.{kind.__name__}" if ours else kind.__name__
    try:
        message = _BETWEEN.join(map(str, error.args)) if ours else str(error)
        return name, message, "".join(traceback.format_exception(error))
    except BaseException as another:  # its message cannot be made, or there is no memory for it
        return name, f"(no message: {type(another).__name__})", ""


def received_from(channel: socket.socket) -> bytes:
    """Return the next pickle; waits for it, and raises EOFError if there is none to come."""
    return _exactly(channel, int.from_bytes(_exactly(channel, 8)))


def _exactly(channel: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        part = channel.recv(min(size - len(received), 1 << 20))
        if not part:
            raise EOFError
        received += part
    return bytes(received)


def packed(message: Any) -> bytes:
    """Pickle, with the length in front; what a candidate returns and pickle refuses becomes a stand-in."""
    try:
        data = _pickled(message)
    except BaseException as error:
        if not isinstance(message, Answer):
            raise
        reason = f"{type(error).__name__}: {one_line(error)}"
        name = f"{type(message.returned).__name__}, which cannot be pickled ({reason})"
        data = _pickled(replace(message, returned=_StandIn(name), gradients={}))
    return len(data).to_bytes(8) + data


def unpacked(data: memoryview) -> Any:
    """Return what was pickled, or an answer with a stand-in that says why not."""
    try:
        return pickle.loads(data)
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        return Answer(_stand_in(f"an object that cannot be unpickled ({reason})"))


def _pickled(message: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(message)
    return buffer.getvalue()


class _Pickler(pickle.Pickler):
    """Pickles small tensors ten times as fast as torch does."""

    def reducer_override(self, obj: Any) -> Any:
        """Send the plain ones as their bytes."""
        if type(obj) is not Tensor or obj.device.type != "cpu" or obj.requires_grad or not obj.numel():
            return NotImplemented
        if obj.layout is not torch.strided or not obj.is_contiguous() or obj.is_neg() or obj.is_conj():
            return NotImplemented
        data = bytearray(ctypes.string_at(obj.data_ptr(), obj.numel() * obj.element_size()))
        return _tensor, (data, obj.dtype, tuple(obj.shape))


def _tensor(data: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(data, dtype=dtype).reshape(shape)


class _StandIn:
    """Takes the place of something that cannot be sent; a trial names its class."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __reduce__(self) -> Any:
        return _stand_in, (self._name,)


def _stand_in(name: str) -> object:
    return _class_named(name, _StandIn)(name)


@functools.cache
def _class_named(name: str, base: type) -> Any:
    """Return a class of that name: reports and kinds of failure go by it."""
    return type(name, (base,), {})
