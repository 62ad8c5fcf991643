"""What travels between this process and a worker: pickles, with their length in front.

The other side is our own child, so pickle is no danger. What a candidate returns or raises may not pickle.
"""

from __future__ import annotations

import ctypes
import functools
import io
import pickle
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from csa_spec.plug.arrays import Foreign
from csa_spec.plug.call import Answer, Fault, MisshapenAnswer, NotOffered
from csa_spec.plug.candidate import one_line
from csa_spec.plug.raised import Raised, described


class RemoteError(Exception):
    """An exception of the candidate, under the name of the class that was raised in the worker."""

    raised: Raised
    """What is known of it"""


_OURS: dict[type, Callable[..., Exception]] = {kind: kind for kind in (Fault, NotOffered, MisshapenAnswer)}
"""Exceptions that mean something here; those of the candidate have only their names."""


def remote_error(told: Raised | Exception) -> Exception:
    """Return what to raise here for an exception there."""
    if isinstance(told, Exception):
        return told
    error: RemoteError = _class_named(told.error)(told.message)
    error.raised = told
    return error


def told(error: BaseException) -> Raised | Exception:
    """Return an exception in plain text, since its object need not survive pickling, or one of ours."""
    ours = _OURS.get(type(error))
    return ours(*map(str, error.args)) if ours else described(error)


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
        what = f"{type(message.returned).__name__}, which cannot be pickled ({reason})"
        data = _pickled(replace(message, returned=Foreign(what), gradients={}))
    return len(data).to_bytes(8) + data


def unpacked(data: memoryview) -> Any:
    """Return what was pickled, or an answer with a stand-in that says why not."""
    try:
        return pickle.loads(data)
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        return Answer(Foreign(f"an object that cannot be unpickled ({reason})"))


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


@functools.cache
def _class_named(name: str) -> Any:
    """Return a class of that name: reports and kinds of failure go by it."""
    return type(name, (RemoteError,), {})
