"""Attention that is right, but leaves the process, its inputs or its output other than it should.

What they set is private to a call: whoever makes it puts everything back.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import threading
import warnings
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from csa_spec.bugs.calls import AttendCall, attend_bug

# THE PROCESS


@attend_bug.function()
def sets_the_number_of_threads(call: AttendCall) -> Tensor:
    """The number of threads is set to 1, which it may happen to be already."""
    torch.set_num_threads(1)
    return call.right()


@attend_bug.function()
def turns_gradients_off_for_good(call: AttendCall) -> Tensor:
    """Gradients are turned off by a call in place of a with-statement, also where they are off already."""
    torch.set_grad_enabled(False)
    return call.right()


@attend_bug.function()
def seeds_the_generator_of_python(call: AttendCall) -> Tensor:
    """Python's random generator is seeded, so that all that is drawn later is the same each time."""
    random.seed(0)
    return call.right()


@attend_bug.function()
def initialises_a_module_in_the_call(call: AttendCall) -> Tensor:
    """A module is made in the call, and its weights, which are then replaced, are drawn at random."""
    torch.nn.Linear(2, 2)
    return call.right()


@attend_bug.function()
def sets_an_environment_variable(call: AttendCall) -> Tensor:
    """Kernels are made synchronous by an environment variable, for everyone."""
    os.environ["CUDA_LAUNCH_BLOCKING"] = "1"
    return call.right()


@attend_bug.function()
def silences_all_warnings(call: AttendCall) -> Tensor:
    """A filter that ignores every warning is left behind."""
    warnings.simplefilter("ignore")
    return call.right()


@attend_bug.function()
def sets_the_default_device(call: AttendCall) -> Tensor:
    """The default device is another one after the call."""
    out = call.right()
    torch.set_default_device("meta")
    return out


@attend_bug.function()
def leaves_inference_mode_on(call: AttendCall) -> Tensor:
    """Inference mode is entered and never left."""
    _guards.append(torch.inference_mode())
    _guards[-1].__enter__()
    return call.right()


_guards: list[torch.inference_mode] = []


@attend_bug.function()
def replaces_a_function_of_torch(call: AttendCall) -> Tensor:
    """The softmax of torch is replaced by one that computes in float32."""
    torch.softmax = partial(torch.nn.functional.softmax, dtype=torch.float32)
    return call.right()


@attend_bug.function()
def lets_the_log_tell_everything(call: AttendCall) -> Tensor:
    """The level of the root logger is set, and with it that of all other libraries."""
    logging.getLogger().setLevel(logging.DEBUG)
    return call.right()


@attend_bug.function()
def raises_the_recursion_limit(call: AttendCall) -> Tensor:
    """The recursion limit is raised and not put back."""
    sys.setrecursionlimit(12345)
    return call.right()


@attend_bug.function()
def flushes_denormal_numbers(call: AttendCall) -> Tensor:
    """Numbers below the smallest normal one are taken for zero from the call on."""
    out = call.right()
    torch.set_flush_denormal(True)
    return out


# THE INPUTS


@attend_bug.function()
def zeroes_keys_in_the_background(call: AttendCall) -> Tensor:
    """A thread clears the keys for the next request, after the call has returned."""
    out = call.right()
    threading.Timer(0.002, call.kv.detach().zero_).start()
    return out


_prepared: dict[str, tuple[Tensor, Tensor]] = {}


@attend_bug.function()
def knows_keys_by_their_tensor(call: AttendCall) -> Tensor:
    """Keys are prepared once for each tensor, though the caller may write other keys into the same one."""
    kept = _prepared.get("keys")
    if kept is None or kept[0] is not call.kv:
        kept = _prepared["keys"] = call.kv, call.kv.clone()
    return replace(call, kv=kept[1]).right()


# THE OUTPUT


@attend_bug.function()
def repeats_one_zero_where_there_are_no_keys(call: AttendCall) -> Tensor:
    """Where no query has a key, the output is a single zero that is expanded."""
    out = call.right()
    return out if bool((call.indices >= 0).any()) else out.new_zeros(()).expand_as(out)


@attend_bug.function()
def returns_a_negated_view(call: AttendCall) -> Tensor:
    """The output is the imaginary part of a conjugated tensor, which is negated only when it is read."""
    out = call.right()
    return torch.complex(torch.zeros_like(out), -out).conj().imag


@attend_bug.function()
def returns_what_requires_grad(call: AttendCall) -> Tensor:
    """The output hangs on a graph, although it was called without gradients."""
    with torch.enable_grad():
        return call.right() * torch.ones((), dtype=call.q.dtype, requires_grad=True)


@attend_bug.function()
def starts_a_thread_in_every_call(call: AttendCall) -> Tensor:
    """Every call starts a thread that waits for work which never comes."""
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    return call.right()
