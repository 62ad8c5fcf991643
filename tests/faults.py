"""Candidates for ``attend`` that are right but for one fault: ``faults:zeros``, say.

``docs/faults.md`` shows what the suite says about each; ``python tests/test_faults.py --write`` writes it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import random
import resource
import signal
import sys
import threading
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
    ends: str = ""
    """Where no process of ours survives it: what the command says then without ``--isolate``"""
    code: int = 1
    """Its exit code then"""


FAULTS: dict[str, Fault] = {}


Attend = TypeVar("Attend", bound=Callable[..., Any])


def fault(check: str, kind: str, ends: str = "", code: int = 1) -> Callable[[Attend], Attend]:
    """Enter a candidate into the table."""

    def enter(attend: Attend) -> Attend:
        FAULTS[attend.__name__] = Fault(attend, check, kind, ends, code)
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


def _each(inputs: Inputs, query: Callable[..., Tensor]) -> Tensor:
    """Answer each query from q ``[H, D]``, its keys ``[n, D]``, sinks and scale, with the specification or not."""
    q, kv, indices, sinks, scale = inputs
    out = torch.zeros_like(q)
    for b in range(len(q)):
        for t in range(q.shape[1]):
            keys = kv[b][[i for i in indices[b, t].tolist() if i >= 0]]
            out[b, t] = query(q[b, t].double(), keys.double(), sinks.double(), scale).to(q.dtype)
    return out


def _attend(q: Tensor, keys: Tensor, sinks: Tensor, scale: float) -> Tensor:
    return SPEC.attend(q, keys, sinks, scale)[0]


@fault("specification", "WrongNumbers")
def ignores_sinks(*inputs: *Inputs) -> Tensor:
    """It leaves the sinks out of the softmax."""
    return _each(inputs, lambda q, k, sinks, scale: _attend(q, k, sinks - torch.inf, scale))


@fault("specification", "WrongNumbers")
def shares_sink(*inputs: *Inputs) -> Tensor:
    """Every head has the sink of the first."""
    return _each(inputs, lambda q, k, sinks, scale: _attend(q, k, sinks[:1].expand_as(sinks), scale))


@fault("specification", "WrongNumbers")
def forgets_scale(*inputs: *Inputs) -> Tensor:
    """It does not scale the logits."""
    return _each(inputs, lambda q, k, sinks, scale: _attend(q, k, sinks, 1.0))


@fault("specification", "WrongNumbers")
def scales_sinks(*inputs: *Inputs) -> Tensor:
    """It scales the sinks like the logits."""
    return _each(inputs, lambda q, k, sinks, scale: _attend(q, k, sinks * scale, scale))


@fault("specification", "WrongNumbers")
def swaps_heads(*inputs: *Inputs) -> Tensor:
    """The heads come out in reverse order."""
    return right(*inputs).flip(2)


@fault("specification", "WrongNumbers")
def keeps_eight_bits(*inputs: *Inputs) -> Tensor:
    """It rounds its answer to bfloat16."""
    return right(*inputs).bfloat16().to(inputs[0].dtype)


@fault("specification", "SeesTooLittle")
def drops_last_pick(*inputs: *Inputs) -> Tensor:
    """It reads all indices but the last."""
    q, kv, indices, sinks, scale = inputs
    return right(q, kv, indices[..., :-1], sinks, scale)


@fault("specification", "SeesTooLittle")
def one_tile(*inputs: *Inputs) -> Tensor:
    """It reads the first 64 indices only."""
    q, kv, indices, sinks, scale = inputs
    return right(q, kv, indices[..., :64], sinks, scale)


@fault("specification", "SeesTooMuch")
def none_is_first(*inputs: *Inputs) -> Tensor:
    """The index -1 is taken for the first key."""
    q, kv, indices, sinks, scale = inputs
    return right(q, kv, indices.clamp(min=0) if kv.shape[1] else indices, sinks, scale)


@fault("specification", "SeesTooMuch")
def tiles_of_queries(*inputs: *Inputs) -> Tensor:
    """Two queries share the list of the first."""
    q, kv, indices, sinks, scale = inputs
    shared = indices[:, ::2].repeat_interleave(2, dim=1)[:, : indices.shape[1]]
    return right(q, kv, shared, sinks, scale)


@fault("specification", "NotFinite")
def overflows(*inputs: *Inputs) -> Tensor:
    """It takes exponentials without subtracting the largest logit first."""
    exploded = (inputs[3].abs() > 80)[:, None] if inputs[1].shape[1] else torch.tensor(False)
    return torch.where(exploded, torch.nan, right(*inputs))


@fault("specification", "NotFinite")
def one_nan(*inputs: *Inputs) -> Tensor:
    """The last element of a wide output is NaN."""
    out = right(*inputs)
    if out.shape[-1] > 2:
        out.view(-1)[-1:] = torch.nan
    return out


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


def _entered(name: str, sentence: str, kind: str, form: Callable[[Tensor], Any]) -> Callable[..., Any]:
    """Enter a candidate that makes something else of a right answer."""

    def attend(*inputs: *Inputs) -> Any:
        return form(right(*inputs))

    attend.__name__, attend.__doc__ = name, sentence
    return fault("specification", kind)(attend)


returns_tuple = _entered("returns_tuple", "It returns a tuple.", "NotATensor", lambda out: (out, out))
returns_lists = _entered("returns_lists", "It returns lists of numbers.", "NotATensor", Tensor.tolist)
returns_text = _entered("returns_text", "It returns a text.", "NotATensor", str)
returns_mean = _entered("returns_mean", "It returns one number.", "WrongShape", Tensor.mean)
returns_more = _entered(
    "returns_more", "It returns a row too many.", "WrongShape", lambda out: torch.cat((out, out[:1]))
)
returns_nobody = _entered("returns_nobody", "It returns no row.", "WrongShape", lambda out: out[:0])
transposes = _entered(
    "transposes", "It returns ``[B, H, S, D]``.", "WrongShape", lambda out: out.transpose(1, 2)
)
returns_integers = _entered("returns_integers", "It returns integers.", "WrongDtype", Tensor.int)
returns_complex = _entered(
    "returns_complex", "It returns complex numbers.", "WrongDtype", lambda out: out.to(torch.complex64)
)
returns_bools = _entered("returns_bools", "It returns booleans.", "WrongDtype", Tensor.bool)
returns_half = _entered("returns_half", "It returns float16.", "WrongDtype", Tensor.half)


@fault("specification", "NotATensor")
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


@fault("specification", "CandidateRaised[Refusal]")
def raises_unpicklable(*inputs: *Inputs) -> Tensor:
    """It raises an exception that cannot be pickled, where there are more than 64 picks."""
    if _wide(inputs):
        raise Refusal(inputs[0].shape)
    return right(*inputs)


def _raises(name: str, sentence: str, error: BaseException) -> Callable[..., Any]:
    """Enter a candidate that raises an exception where there are more than 64 picks."""

    def attend(*inputs: *Inputs) -> Tensor:
        if _wide(inputs):
            raise error
        return right(*inputs)

    attend.__name__, attend.__doc__ = name, f"It raises {sentence} where there are more than 64 picks."
    return fault("specification", f"CandidateRaised[{type(error).__name__}]")(attend)


class Unlucky(BaseException):
    """No Exception."""


raises_index = _raises("raises_index", "IndexError", IndexError("index 64 is out of range"))
raises_assert = _raises("raises_assert", "AssertionError without a message", AssertionError())
raises_lines = _raises("raises_lines", "an exception of many lines", RuntimeError("line\n" * 1000))
raises_stop = _raises("raises_stop", "StopIteration", StopIteration(3))
raises_warning = _raises("raises_warning", "a warning", DeprecationWarning("old"))
raises_exit = _raises("raises_exit", "GeneratorExit", GeneratorExit())
raises_interrupt = _raises("raises_interrupt", "KeyboardInterrupt, as Ctrl-C does", KeyboardInterrupt())
raises_base = _raises("raises_base", "a BaseException of its own", Unlucky("out of luck"))


@fault("specification", "CandidateRaised[RecursionError]")
def recurses(*inputs: *Inputs) -> Tensor:
    """It calls itself for ever where there are more than 64 picks."""
    return recurses(*inputs) if _wide(inputs) else right(*inputs)


# The end of the process. Mostly at lists wider than a tile, so that few cases die and tests of it are quick.


def _wide(inputs: Inputs) -> bool:
    return inputs[2].shape[-1] > 64


def _where_wide(
    name: str, sentence: str, kind: str, do: Callable[[], Any], ends: str = "", code: int = 1
) -> Callable[..., Any]:
    """Enter a candidate that does something where there are more than 64 picks."""

    def attend(*inputs: *Inputs) -> Tensor:
        if _wide(inputs):
            do()
        return right(*inputs)

    attend.__name__, attend.__doc__ = name, f"It {sentence} where there are more than 64 picks."
    return fault("specification", kind, ends, code)(attend)


_SHORT = 0.001
_end = os._exit  # as a library that is written in C does, which nobody can keep from it


def _for_ever() -> None:
    while True:
        time.sleep(_SHORT)


def _in_spite_of_all() -> None:
    while True:
        with contextlib.suppress(BaseException):
            _for_ever()


def _thread_ends_all() -> None:
    threading.Thread(target=_end, args=(0,), daemon=True).start()
    time.sleep(10)


def _killed_by(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def _alarm() -> None:
    signal.setitimer(signal.ITIMER_REAL, _SHORT)
    time.sleep(10)


def _parent_killed() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(10)


def _terminated() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)


DIED, HUNG = "CandidateDied", "CandidateHung"
ENDED = "a call of the candidate ended the run"
hangs = _where_wide("hangs", "never ends", HUNG, _for_ever, "a call did not return (no answer within")
hangs_in_spite = _where_wide(
    "hangs_in_spite",
    "never ends, and catches whatever should end it",
    HUNG, _in_spite_of_all, "a call did not return (no answer within",
)  # fmt: skip
hangs_in_c = _where_wide(
    "hangs_in_c",
    "waits in C for ever, with the interpreter's lock",
    HUNG, lambda: ctypes.PyDLL(None).sleep(1000), f"{ENDED} (no answer within",
)  # fmt: skip
stops = _where_wide(
    "stops", "stops its process", HUNG, _killed_by(signal.SIGSTOP), f"{ENDED} (no answer within"
)
exits = _where_wide("exits", "ends its process with status 3", DIED, lambda: os._exit(3))
exits_with_0 = _where_wide("exits_with_0", "ends its process as if all were well", DIED, lambda: os._exit(0))
exits_in_c = _where_wide(
    "exits_in_c", "ends its process in C, with status 0", DIED, lambda: _end(0), f"{ENDED} (exited with status 0)"
)  # fmt: skip
exits_in_thread = _where_wide(
    "exits_in_thread",
    "starts a thread that ends the process",
    DIED, _thread_ends_all, f"{ENDED} (exited with status 0)",
)  # fmt: skip
aborts = _where_wide("aborts", "aborts", DIED, os.abort, f"{ENDED} (ended by SIGABRT")
killed = _where_wide(
    "killed", "is killed, as by the out-of-memory killer,",
    DIED, _killed_by(signal.SIGKILL), f"{ENDED} (ended by SIGKILL",
)  # fmt: skip
terminated = _where_wide(
    "terminated", "sends SIGTERM to itself", DIED, _terminated, "interrupted by SIGTERM", 143
)
alarmed = _where_wide(
    "alarmed", "sets an alarm that nobody handles", DIED, _alarm, f"{ENDED} (ended by SIGALRM"
)
kills_parent = _where_wide(
    "kills_parent",
    "kills the process that started its own",
    DIED, _parent_killed, "the process that supervises this one was ended", 137,
)  # fmt: skip
becomes_another = _where_wide(
    "becomes_another",
    "replaces its process by another program",
    DIED, lambda: os.execv("/bin/true", ["true"]), f"{ENDED} (exited with status 0)",
)  # fmt: skip
closes_files = _where_wide(
    "closes_files",
    "closes all files of its process but the standard streams",
    DIED, lambda: os.closerange(3, 1024), "the candidate closed the files through which the run reports", 2,
)  # fmt: skip


@fault("specification", DIED, f"{ENDED} (ended by SIGSEGV")
def segfaults(*inputs: *Inputs) -> Tensor:
    """It reads address 0 from five keys on."""
    if inputs[1].shape[1] >= 5:
        ctypes.string_at(0)
    return right(*inputs)


@fault("specification", "CandidateRaised[MemoryError]")
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


@fault("specification", "CandidateRaised[RuntimeError]")
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
    """Of lists wider than a tile it returns zeros for several rows, and is killed with one."""
    if not _wide(inputs):
        return right(*inputs)
    return killed(*inputs) if len(inputs[0]) == 1 else zeros(*inputs)


def noisy(*inputs: *Inputs) -> Tensor:
    """Write garbage to all standard streams, and close them: none of the suite's business."""
    for number in (0, 1, 2):
        with contextlib.suppress(OSError):  # the second time they are closed
            os.write(number, b"\x00\xff garbage\n" * 1000)
            os.close(number)
    return right(*inputs)


def leaves_fork(*inputs: *Inputs) -> Tensor:
    """Fork where there are more than 64 picks, and let the child return from the call."""
    if _wide(inputs) and not os.fork():
        return zeros(*inputs)
    with contextlib.suppress(ChildProcessError):
        os.wait()
    return right(*inputs)


def ends_at_exit(*inputs: *Inputs) -> Tensor:
    """Leave an exit handler that ends the process as if all were well."""
    atexit.register(_end, 0)
    return right(*inputs)
