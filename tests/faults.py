"""Candidates for ``attend`` that are right but for one fault: ``faults:zeros``, say.

``docs/faults.md`` shows what the suite says about each; ``python tests/test_faults.py --write`` writes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
from torch import Tensor

from csa_spec.spec import SPEC

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, float]
"""q ``[B, S, H, D]``, kv ``[B, N, D]``, indices ``[B, S, n]``, sinks ``[H]`` and the scale"""


def right(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Follow the specification, and round once."""
    out = torch.zeros_like(q)
    for b in range(len(q)):
        for t in range(q.shape[1]):
            keys = kv[b][[i for i in indices[b, t].tolist() if i >= 0]]
            out[b, t] = SPEC.attend(q[b, t].double(), keys.double(), sinks.double(), scale)[0].to(q.dtype)
    return out


class Fault(NamedTuple):
    """What the suite must say."""

    attend: Callable[..., Any]
    check: str
    kind: str
    """Of the failure, as in reports"""
    isolate: bool
    """Whether only a process of its own survives it, or sees it"""


FAULTS: dict[str, Fault] = {}


Attend = TypeVar("Attend", bound=Callable[..., Any])


def fault(check: str, kind: str, isolate: bool = False) -> Callable[[Attend], Attend]:
    """Enter a candidate into the table."""

    def enter(attend: Attend) -> Attend:
        FAULTS[attend.__name__] = Fault(attend, check, kind, isolate)
        return attend

    return enter


# Answers that are not those to the question.


@fault("specification", "ReturnsZeros")
def zeros(q: Tensor, *others: Any) -> Tensor:
    """It returns zeros."""
    return torch.zeros_like(q)


@fault("specification", "AnswersAnother")
def first_row(*inputs: *Inputs) -> Tensor:
    """It answers the first row of the batch in every row."""
    out = right(*inputs)
    return out[:1].expand_as(out).clone()


@fault("specification", "AnswersAnother")
def query_before(*inputs: *Inputs) -> Tensor:
    """Each query gets the answer of the one before."""
    return right(*inputs).roll(1, dims=1)


@fault("specification", "SeesTooMuch")
def none_is_last(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The index -1 is taken for the last key, as Python does."""
    return right(q, kv, indices % max(1, kv.shape[1]), sinks, scale) if kv.shape[1] else torch.zeros_like(q)


@fault("specification", "NotZero")
def mean_of_none(*inputs: *Inputs) -> Tensor:
    """A query without keys gets the mean of all keys in place of zero."""
    _, kv, indices, _, _ = inputs
    none = (indices < 0).all(dim=-1)[..., None, None]
    return torch.where(none, kv.nan_to_num(1.0, 1.0, 1.0).sum(dim=1)[:, None, None] + 1, right(*inputs))


_last: dict[tuple[int, ...], Tensor] = {}


@fault("own-inputs", "ReturnsPrevious")
def lags_one(*inputs: *Inputs) -> Tensor:
    """It returns the answer to the call before, where that had the same shape."""
    out = right(*inputs)
    previous = _last.get(tuple(out.shape), out)
    _last[tuple(out.shape)] = out
    return previous.clone()


_cache: dict[tuple[Any, ...], Tensor] = {}


@fault("own-inputs", "ReturnsPrevious")
def caches_by_shape(*inputs: *Inputs) -> Tensor:
    """It keeps the first answer for each shape of its inputs."""
    key = tuple(one.shape for one in inputs[:-1])
    if key not in _cache:
        _cache[key] = right(*inputs)
    return _cache[key].clone()


_noise = torch.Generator()


@fault("repeat", "NotRepeatable")
def last_bit(*inputs: *Inputs) -> Tensor:
    """The last bit of an output differs from run to run, as with atomic additions."""
    out = right(*inputs)
    up = (torch.rand(out.shape, generator=_noise) < 0.5) & (out != 0)
    return torch.where(up, torch.nextafter(out, torch.full_like(out, torch.inf)), out)


# Memory.


@fault("inputs", "InputsChanged")
def scales_queries(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """It multiplies q by the scale in place."""
    out = right(q, kv, indices, sinks, scale)
    q *= scale + 1
    return out


@fault("memory", "SharesMemory")
def writes_into_queries(*inputs: *Inputs) -> Tensor:
    """It writes the answer into q and returns that."""
    return inputs[0].copy_(right(*inputs))


@fault("memory", "ReadsUninitialised")
def skips_empty(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """It never writes the output of a query without keys; memory fresh from the system happens to be zero."""
    workspace = torch.empty(10 << 20, dtype=q.dtype)  # so large that malloc asks the system each time
    out = workspace[: q.numel()].view(q.shape)
    named = (indices >= 0).any(dim=-1)
    out[named] = right(q, kv, indices, sinks, scale)[named]
    return out


_buffers: dict[tuple[int, ...], Tensor] = {}


@fault("memory", "OverwritesOutput")
def reuses_buffer(*inputs: *Inputs) -> Tensor:
    """It returns one buffer for all calls."""
    out = right(*inputs)
    return _buffers.setdefault(tuple(out.shape), out).copy_(out)


# The process.


@fault("state", "DrawsRandom[torch's random generator]")
def draws_from_torch(*inputs: *Inputs) -> Tensor:
    """It draws from torch's random generator."""
    torch.rand(1)
    return right(*inputs)


@fault("state", "DrawsRandom[Python's random generator]")
def draws_from_python(*inputs: *Inputs) -> Tensor:
    """It draws from Python's random generator."""
    random.random()
    return right(*inputs)


@fault("state", "StateChanged[default dtype]")
def sets_default_dtype(*inputs: *Inputs) -> Tensor:
    """It sets torch's default dtype."""
    torch.set_default_dtype(torch.float64)
    return right(*inputs)


@fault("state", "StateChanged[number of threads]")
def sets_threads(*inputs: *Inputs) -> Tensor:
    """It sets the number of threads."""
    torch.set_num_threads(torch.get_num_threads() + 1)
    return right(*inputs)


@fault("state", "StateChanged[grad mode]")
def turns_gradients_on(*inputs: *Inputs) -> Tensor:
    """It turns autograd on for everyone."""
    torch.set_grad_enabled(True)
    return right(*inputs)


@fault("state", "StateChanged[working directory]")
def changes_directory(*inputs: *Inputs) -> Tensor:
    """It changes the working directory."""
    os.chdir(os.sep)
    return right(*inputs)


# Things that are no answer.


@fault("specification", "NotATensor")
def returns_nothing(*inputs: *Inputs) -> None:
    """It returns None."""


@fault("specification", "WrongShape")
def flattens_heads(*inputs: *Inputs) -> Tensor:
    """It returns ``[B, S, H * D]``."""
    return right(*inputs).flatten(2)


@fault("specification", "WrongDtype")
def returns_float64(*inputs: *Inputs) -> Tensor:
    """It returns float64 whatever it is given."""
    return right(*inputs).double()


@fault("specification", "NotATensor", isolate=True)
def returns_generator(*inputs: *Inputs) -> Any:
    """It returns a generator, which no process can send to another."""
    return (row for row in right(*inputs))


@fault("specification", "CandidateRaised[SystemExit]")
def calls_exit(*inputs: *Inputs) -> Tensor:
    """It calls sys.exit where there is no key."""
    return right(*inputs) if inputs[1].shape[1] else sys.exit("nothing to do")


class Refusal(Exception):
    """An exception that pickle refuses."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__(f"no kernel for {list(shape)}")
        self.kernels = (kernel for kernel in shape)


@fault("specification", "CandidateRaised[Refusal]", isolate=True)
def raises_unpicklable(*inputs: *Inputs) -> Tensor:
    """It raises an exception that cannot be pickled, where there are more than 64 picks."""
    if _wide(inputs):
        raise Refusal(inputs[0].shape)
    return right(*inputs)


# The end of the process. Mostly at lists wider than a tile, so that few cases die and tests of it are quick.


def _wide(inputs: Inputs) -> bool:
    return inputs[2].shape[-1] > 64


@fault("specification", "CandidateHung", isolate=True)
def hangs(*inputs: *Inputs) -> Tensor:
    """It never ends where there are more than 64 picks."""
    while _wide(inputs):
        time.sleep(0.01)
    return right(*inputs)


@fault("specification", "CandidateDied", isolate=True)
def segfaults(*inputs: *Inputs) -> Tensor:
    """It reads address 0 from five keys on."""
    if inputs[1].shape[1] >= 5:
        ctypes.string_at(0)
    return right(*inputs)


@fault("specification", "CandidateDied", isolate=True)
def exits(*inputs: *Inputs) -> Tensor:
    """It ends its process with status 3 where there are more than 64 picks."""
    if _wide(inputs):
        os._exit(3)
    return right(*inputs)


@fault("specification", "CandidateDied", isolate=True)
def killed(*inputs: *Inputs) -> Tensor:
    """It is killed, as by the out-of-memory killer, where there are more than 64 picks."""
    if _wide(inputs):
        os.kill(os.getpid(), signal.SIGKILL)
    return right(*inputs)


@fault("specification", "CandidateRaised[MemoryError]", isolate=True)
def takes_all_memory(*inputs: *Inputs) -> Tensor:
    """It allocates until there is no more, where there are more than 64 picks."""
    if _wide(inputs):
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), before[1]))
        try:
            hoard: list[bytearray] = []
            while True:
                hoard.append(bytearray(8 << 20))
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
    return right(*inputs)


_context = {"broken": False}


@fault("specification", "CandidateRaised[RuntimeError]", isolate=True)
def breaks_device(*inputs: *Inputs) -> Tensor:
    """From 40 keys on it breaks what stands for the CUDA context: every later call of the process fails too."""
    _context["broken"] |= inputs[1].shape[1] >= 40
    if _context["broken"]:
        _no_context()
    return right(*inputs)


def _no_context() -> NoReturn:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


# Not in the table.


def zeros_then_killed(*inputs: *Inputs) -> Tensor:
    """Of lists wider than a tile it returns zeros for one row, and is killed with several."""
    if not _wide(inputs):
        return right(*inputs)
    return zeros(*inputs) if len(inputs[0]) == 1 else killed(*inputs)


def noisy(*inputs: *Inputs) -> Tensor:
    """Write garbage to all standard streams, and close them: none of the suite's business."""
    for number in (0, 1, 2):
        with contextlib.suppress(OSError):  # the second time they are closed
            os.write(number, b"\x00\xff garbage\n" * 1000)
            os.close(number)
    return right(*inputs)
