"""One call of a candidate: on copies, watched, and settled on the CPU.

The same code runs in this process and in a worker's, so a fault is named the same way in both.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from csa_spec.plug.arrays import (
    from_library,
    map_tensors,
    named_tensors,
    same_bits,
    share_memory,
    to_library,
)
from csa_spec.plug.position import Ended, in_call


@dataclass(frozen=True, slots=True)
class Request:
    """What a candidate is asked."""

    stage: str
    arguments: Mapping[str, Any]
    """In the order in which they are passed; tensors on the CPU"""
    mode: str = ""
    device: str = "cpu"
    through: Callable[..., Any] | None = None
    """Calls the stage's function, which it gets first, where that takes more than one call"""
    cotangent: Tensor | None = None
    """Where given, gradients of ``(output * cotangent).sum()`` are asked for too"""
    fill: bool = False
    """Whether memory that torch hands out uninitialised holds NaN, or the largest integer"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a candidate returned, and what else it did. Tensors are on the CPU, in their own dtype."""

    returned: Any
    """As the candidate returned it: a tensor, or a dataclass of tensors"""
    gradients: Mapping[str, Tensor | None] = field(default_factory=dict)
    """By the name of the argument; None where autograd found no path"""
    changed_inputs: tuple[str, ...] = ()
    changed_state: tuple[str, ...] = ()
    """What of the process, torch's default dtype say, the call left other than it was"""
    shared_with: tuple[str, ...] = ()
    """Inputs in whose memory the output lies"""
    overwrote: bool = False
    """Whether the call changed what the call before had returned"""


class Fault(Exception):
    """A call that ended without an answer or an exception."""

    hung: bool = False
    """Whether it ran past its time; else the process died"""

    def __init__(self, message: str, hung: bool = False) -> None:
        super().__init__(message)
        self.hung = hung


class NotOffered(Exception):
    """A stream does not have an operation, or refuses it; the message names it."""


class MisshapenAnswer(Exception):
    """One of several calls returned anything but an array of the right shape: wanted, received."""


class Caller(Protocol):
    """Makes the calls of one candidate."""

    def __call__(self, function: Callable[..., Any], request: Request, arrays: str) -> Answer:
        """Return the candidate's answer; raises whatever the candidate raises."""


class LocalCaller:
    """Calls a candidate in this process."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, Tensor] | None = None
        """What the last call returned: as it lies in memory, and a copy of how it was"""

    def __call__(self, function: Callable[..., Any], request: Request, arrays: str = "torch") -> Answer:
        """Return what the function says, and what else it did; an ``os._exit`` there is a fault."""
        try:
            with in_call():
                return self._answer(function, request, arrays)
        except Ended as end:
            raise Fault(str(end)) from None

    def _answer(self, function: Callable[..., Any], request: Request, arrays: str) -> Answer:
        given = map_tensors(lambda _, tensor: _handed_over(tensor, request), request.arguments)
        inputs = named_tensors(given)
        converted = map_tensors(lambda _, tensor: to_library(tensor, arrays), given)
        returned, changed_state = _watched(partial(function, *converted.values()), request)
        out = _map_returned(from_library, returned)
        outputs = [value for value in _leaves(out) if isinstance(value, Tensor)]
        return Answer(
            _map_returned(_settled, out),
            {} if request.cotangent is None else _gradients(out, inputs, request.cotangent),
            _changed(inputs, request),
            changed_state,
            tuple(
                name for name, tensor in inputs.items() if any(share_memory(tensor, out) for out in outputs)
            ),
            self._overwrote(outputs),
        )

    def _overwrote(self, outputs: list[Tensor]) -> bool:
        """Whether the output of the call before is another now; remember that of this one."""
        before, self._last = self._last, None
        if outputs:
            self._last = outputs[0], _settled(outputs[0])
        return before is not None and not same_bits(before[0].detach().cpu(), before[1])


def _watched(call: Callable[[], Any], request: Request) -> tuple[Any, tuple[str, ...]]:
    """Return what a call returns, and what of the process it changed, which is put back."""
    before, with_grad = process_state(), request.cotangent is not None
    try:
        with torch.set_grad_enabled(with_grad), _filled(request.fill):
            returned = call()
            if request.device == "cuda":
                torch.cuda.synchronize()
            after = process_state()
    finally:
        restore_state(before)
    expected = {**before, "grad mode": with_grad}
    return returned, tuple(name for name, value in after.items() if not _same(value, expected[name]))


def _handed_over(tensor: Tensor, request: Request) -> Tensor:
    copy = tensor.clone().to(request.device)
    return copy.requires_grad_() if request.cotangent is not None and copy.is_floating_point() else copy


def _settled(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def _changed(inputs: Mapping[str, Tensor], request: Request) -> tuple[str, ...]:
    originals = named_tensors(request.arguments).items()
    return tuple(name for name, tensor in originals if not same_bits(inputs[name].detach().cpu(), tensor))


def _gradients(out: Any, inputs: Mapping[str, Tensor], cotangent: Tensor) -> dict[str, Tensor | None]:
    main = next(iter(_leaves(out)), None)
    wanted = {name: tensor for name, tensor in inputs.items() if tensor.requires_grad}
    if not isinstance(main, Tensor) or main.shape != cotangent.shape:
        return {}
    if not main.requires_grad:
        return dict.fromkeys(wanted)
    cotangent = cotangent.to(main.device, main.dtype)
    gradients = torch.autograd.grad(main, list(wanted.values()), cotangent, allow_unused=True)
    return {
        name: None if gradient is None else gradient.detach().cpu()
        for name, gradient in zip(wanted, gradients, strict=True)
    }


def _leaves(returned: Any) -> list[Any]:
    """Return the values of a dataclass, the first of them the output, or the value alone."""
    if is_dataclass(returned) and not isinstance(returned, type):
        return [getattr(returned, field.name) for field in fields(returned)]
    return [returned]


def _map_returned(change: Callable[[Any], Any], returned: Any) -> Any:
    if is_dataclass(returned) and not isinstance(returned, type):
        return type(returned)(*(change(value) for value in _leaves(returned)))
    return change(returned)


class _filled:  # noqa: N801 - read as a with-clause
    """Fill memory that torch hands out uninitialised with NaN, so that reading it shows."""

    def __init__(self, on: bool) -> None:
        self._on = on

    def __enter__(self) -> None:
        if self._on:
            self._before = (
                torch.get_deterministic_debug_mode(),
                torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
            )
            # use_deterministic_algorithms would import inductor, for seconds
            torch.set_deterministic_debug_mode("warn")
            torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]

    def __exit__(self, *exception: object) -> None:
        if self._on:
            mode, fill = self._before
            torch.set_deterministic_debug_mode(mode)
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


_STATE: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch's random generator": (torch.get_rng_state, torch.set_rng_state),
    "Python's random generator": (random.getstate, random.setstate),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "float32 matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "working directory": (os.getcwd, os.chdir),
}
"""What a call must leave as it is: how it is read, and put back"""


def process_state() -> dict[str, Any]:
    """Return what a call must leave as it is."""
    return {name: read() for name, (read, _) in _known_state().items()}


def restore_state(state: Mapping[str, Any]) -> None:
    """Put back what :func:`process_state` returned, where it is no longer so."""
    for name, (read, write) in _known_state().items():
        if name in state and not _same(read(), state[name]):
            write(state[name])


def _known_state() -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
    state = dict(_STATE)
    if "numpy" in sys.modules:
        numpy = sys.modules["numpy"].random
        state["numpy's random generator"] = (numpy.get_state, numpy.set_state)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["CUDA's random generator"] = (torch.cuda.get_rng_state, torch.cuda.set_rng_state)
    return state


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple) and any(hasattr(value, "tobytes") for value in a):  # numpy's generator
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if hasattr(a, "tobytes"):  # a numpy array
        return bool(a.tobytes() == b.tobytes())
    return bool(a == b)
