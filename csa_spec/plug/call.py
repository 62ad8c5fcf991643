"""One call of a candidate: on copies, watched, and settled on the CPU.

The same code runs in this process and in a worker's, so a fault is named the same way in both.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from csa_spec.plug.arrays import (
    map_tensors,
    named_arrays,
    named_tensors,
    overlaps_itself,
    received,
    same_bits,
    share_memory,
    to_library,
)
from csa_spec.plug.growth import growth
from csa_spec.plug.layouts import ALONE, Layout, laid_out, layouts_of, memory_of, once
from csa_spec.plug.position import Ended, in_call
from csa_spec.plug.process_state import Watch
from csa_spec.plug.raised import hint_at_library

_LATER = 0.03
"""Seconds in which threads that a call left may still write to its inputs"""


@dataclass(frozen=True, slots=True)
class Request:
    """What a candidate is asked."""

    stage: str
    arguments: Mapping[str, Any]
    """In the order in which they are passed; tensors on the CPU"""
    mode: str = ""
    device: str = "cpu"
    by_name: tuple[str, ...] = ()
    """Those of the arguments that are passed by name"""
    through: Callable[..., Any] | None = None
    """Calls the stage's function, which it gets first, where that takes more than one call; ``after`` is
    called with the array that was handed over, after each"""
    cotangent: Tensor | None = None
    """Where given, gradients of ``(output * cotangent).sum()`` are asked for too"""
    fill: bool = False
    """Whether memory that torch hands out uninitialised holds NaN, or the largest integer"""
    unusual: bool = False
    """Whether the process has unusual but legal values meanwhile, a working directory of its own say"""
    overwrite: bool = False
    """Whether inputs are overwritten once the call has returned, those of each call where there are several"""
    reuse: bool = False
    """Whether inputs lie in the memory of those of the call before, where they have the same form"""
    grows: bool = False
    """Whether to look what grows from call to call, in place of an answer"""
    layout: str = Layout.PLAIN
    """How the tensors lie in the candidate's memory; they travel as they are"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a candidate returned, and what else it did. Tensors are on the CPU, in their own dtype."""

    returned: Any
    """As the candidate returned it: a tensor, or a dataclass of tensors"""
    gradients: Mapping[str, Tensor | None] = field(default_factory=dict)
    """By the name of the argument; None where autograd found no path"""
    changed_inputs: tuple[str, ...] = ()
    changed_state: Mapping[str, str] = field(default_factory=dict)
    """What of the process, torch's default dtype say, the call left other than it was, and how"""
    shared_with: tuple[str, ...] = ()
    """Inputs in whose memory the output lies"""
    overwrote: bool = False
    """Whether the call changed what the call before had returned"""
    flaw: str = ""
    """Whether the output is no ordinary tensor: ``overlap``, ``lazy`` or ``graph``"""
    changed_later: tuple[str, ...] = ()
    """Inputs of the call before that were changed after it had returned"""
    read_later: bool = False
    """Whether the output changed when the inputs were overwritten"""
    grown: tuple[str, str] = ("", "")
    """What grows from call to call, and by how much"""


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


Given = tuple[Mapping[str, Tensor], Request | None]
NOTHING: Given = {}, None


class LocalCaller:
    """Calls a candidate in this process."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, Tensor] | None = None
        """What the last call returned: as it lies in memory, and a copy of how it was"""
        self._given: Given = {}, None
        """What the last call was handed, and what it was asked"""

    def __call__(self, function: Callable[..., Any], request: Request, arrays: str = "torch") -> Answer:
        """Return what the function says, and what else it did; an ``os._exit`` there is a fault."""
        try:
            with in_call():
                return self._answer(function, request, arrays)
        except Ended as end:
            raise Fault(str(end)) from None

    def _answer(self, function: Callable[..., Any], request: Request, arrays: str) -> Answer:
        if request.grows:
            return self._growing(function, request, arrays)
        earlier = self._given if request.overwrite or request.reuse else NOTHING
        given, converted = arguments_of(request, arrays, earlier[0] if request.reuse else {})
        inputs = named_tensors(given)
        self._given = inputs, request
        returned, changed_state = _watched(function, converted, request, arrays)
        # Several calls are made, and their answers converted, by ``through``.
        like = next(iter(named_arrays(given if request.through else converted).values()), None)
        out = _map_returned(lambda value: received(value, like), returned)
        outputs = [value for value in _leaves(out) if isinstance(value, Tensor)]
        settled = _map_returned(_settled, out)
        return Answer(
            settled,
            {} if request.cotangent is None else _gradients(out, inputs, request.cotangent),
            () if request.overwrite and request.through else _changed(inputs, request),
            changed_state,
            tuple(
                name for name, tensor in inputs.items() if any(share_memory(tensor, out) for out in outputs)
            ),
            self._overwrote(outputs),
            _flaw(out, request),
            _changed_later(earlier) if request.overwrite else (),
            request.overwrite and _read_later(inputs, outputs, settled),
        )

    def _growing(self, function: Callable[..., Any], request: Request, arrays: str) -> Answer:
        """Make the same call many times."""
        self._last, self._given = None, NOTHING
        once = replace(request, grows=False)

        def call() -> None:
            _watched(function, arguments_of(once, arrays)[1], once, arrays)

        return Answer(None, grown=growth(call))

    def _overwrote(self, outputs: list[Tensor]) -> bool:
        """Whether the output of the call before is another now; remember that of this one."""
        before, self._last = self._last, None
        if outputs:
            self._last = outputs[0], _settled(outputs[0])
        return before is not None and not same_bits(before[0].detach().cpu(), before[1])


def arguments_of(
    request: Request, arrays: str, again: Mapping[str, Tensor] = MappingProxyType({})
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return copies of the arguments, in the layout of the request, and the same as arrays of the candidate's library.

    Where a tensor of the same form is there already, the numbers are written into that.
    """
    leaves = request.cotangent is not None or request.layout == Layout.REQUIRES_GRAD
    layouts = layouts_of(named_tensors(request.arguments), request.layout)

    def handed_over(name: str, tensor: Tensor) -> Tensor:
        copy = laid_out(tensor.to(request.device), layouts[name]).detach()
        copy.requires_grad_(leaves and copy.is_floating_point())
        if name in again and _form(again[name]) == _form(copy):
            memory_of(again[name]).copy_(memory_of(copy))
            return again[name]
        return copy

    given = map_tensors(handed_over, request.arguments)
    return given, map_tensors(lambda _, tensor: to_library(tensor, arrays), given)


def _form(tensor: Tensor) -> tuple[Any, ...]:
    place = tensor.storage_offset(), tensor.untyped_storage().nbytes(), tensor.device
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad, place


def _watched(
    function: Callable[..., Any], arguments: Mapping[str, Any], request: Request, arrays: str
) -> tuple[Any, dict[str, str]]:
    """Return what a function returns, and what of the process it changed, which is put back."""
    with torch.set_grad_enabled(request.cotangent is not None), _filled(request.fill):
        watch = Watch(request.unusual)
        try:
            named = {name: arguments[name] for name in request.by_name}
            returned = function(*(arguments[name] for name in arguments if name not in named), **named)
            if request.device == "cuda":
                torch.cuda.synchronize()
        except Exception as error:
            hint = hint_at_library(error, arrays)
            if hint:
                error.add_note(hint)
            raise
        finally:
            changed = watch.settle()
    return returned, changed


def overwrite(array: Any) -> None:
    """Write NaN over an array that was handed over, or zeros where it holds integers."""
    if isinstance(array, Tensor):
        with torch.no_grad():
            once(array).fill_(math.nan if array.is_floating_point() else 0)
    elif hasattr(array, "fill"):  # others cannot be written to
        array.fill(math.nan if array.dtype.kind == "f" else 0)


def _changed_later(earlier: Given) -> tuple[str, ...]:
    time.sleep(_LATER)
    return _changed(*earlier)


def _read_later(inputs: Mapping[str, Tensor], outputs: list[Tensor], settled: Any) -> bool:
    """Whether the output is another once the inputs are; they are overwritten."""
    for tensor in inputs.values():
        overwrite(tensor)
    return bool(outputs) and not same_bits(outputs[0].detach().cpu(), _leaves(settled)[0])


def _flaw(out: Any, request: Request) -> str:
    """Return what keeps the output from being used like any other tensor."""
    main = next(iter(_leaves(out)), None)
    if not isinstance(main, Tensor):
        return ""
    if overlaps_itself(main):
        return "overlap"
    if main.is_neg() or main.is_conj():
        return "lazy"
    return "graph" if main.requires_grad and request.cotangent is None and not request.unusual else ""


def _settled(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def _changed(inputs: Mapping[str, Tensor], request: Request | None) -> tuple[str, ...]:
    """Name the inputs that are not what they were, and those around which memory was written."""
    if request is None:
        return ()
    changed, originals = [], named_tensors(request.arguments)
    for name, layout in layouts_of(originals, request.layout).items():
        if not same_bits(inputs[name].detach().cpu(), originals[name]):
            changed.append(name)
        elif layout not in ALONE:
            memory = memory_of(laid_out(originals[name], layout))
            if not torch.equal(memory_of(inputs[name]).cpu(), memory):
                changed.append(f"memory around {name}, which is not part of it")
    return tuple(changed)


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
    if is_dataclass(returned) and not isinstance(returned, type) and fields(returned):
        main, *others = _leaves(returned)
        changed = [change(main), *(None if other is None else change(other) for other in others)]
        kind: Callable[..., Any] = type(returned)
        return kind(*changed)
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
