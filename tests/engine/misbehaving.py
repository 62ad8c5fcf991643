"""One candidate with a stage for each way to misbehave; each stage is given one tensor."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csa_spec import Candidate, CandidateError

_state = {"broken": False}


class Refusal(Exception):
    """An exception that pickle refuses."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.handle = (one for one in message)


class Nameless(Exception):
    """An exception without a message."""

    def __str__(self) -> str:
        """Raise, too."""
        raise ValueError("no message")


def _forget() -> None:
    raise ImportError("no such class here")


class OneWay:
    """Pickles, but never unpickles."""

    def __reduce__(self) -> Any:
        """Return what raises."""
        return _forget, ()


def double(x: Tensor) -> Tensor:
    """Do nothing wrong."""
    return x * 2


def in_place(x: Tensor) -> Tensor:
    """Change the input and return it, with the default dtype changed."""
    torch.set_default_dtype(torch.float64)
    return x.mul_(2)


def process(x: Tensor) -> Tensor:
    """Tell which process this is."""
    return torch.tensor(os.getpid())


def segfault(x: Tensor) -> Tensor:
    """Read address 0."""
    return torch.tensor(ctypes.string_at(0)[0])


def exit_3(x: Tensor) -> Tensor:
    """End the process without a word."""
    os._exit(3)


def kill(x: Tensor) -> Tensor:
    """Do as the out-of-memory killer does."""
    print("I need more memory", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    return x


def close_everything(x: Tensor) -> Tensor:
    """Close the worker's own socket, too."""
    os.closerange(0, 256)
    return x


def hang(x: Tensor) -> Tensor:
    """Never end; start a process that does not end either."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    Path(os.environ["CHILD"]).write_text(str(child.pid))
    while True:
        time.sleep(0.01)


def hang_without_the_interpreter(x: Tensor) -> Tensor:
    """Never end, in C, with the interpreter locked."""
    ctypes.PyDLL(None).sleep(1000)
    return x


def call_exit(x: Tensor) -> Tensor:
    """Call sys.exit."""
    sys.exit("enough")


def interrupt(x: Tensor) -> Tensor:
    """Raise what Ctrl-C raises."""
    raise KeyboardInterrupt("not from the keyboard")


def refuse(x: Tensor) -> Tensor:
    """Raise what cannot be pickled."""
    raise Refusal("no kernel")


def end_of_file(x: Tensor) -> Tensor:
    """Raise what a closed socket raises."""
    raise EOFError("no more")


def fork_and_forget(x: Tensor) -> Tensor:
    """Return twice, once in each process."""
    os.fork()
    return x * 2


def raise_nameless(x: Tensor) -> Tensor:
    """Raise what has no message."""
    raise Nameless


def break_device(x: Tensor) -> Tensor:
    """Fail from the first 13 on, as a broken CUDA context does."""
    _state["broken"] |= bool((x == 13).any())
    if _state["broken"]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return x * 2


def garbage(x: Tensor) -> Tensor:
    """Write garbage to all standard streams and close them."""
    for number in (0, 1, 2):
        with contextlib.suppress(OSError):  # the second time they are closed
            os.write(number, b"\x00\xff" * 1000)
            os.close(number)
    return x * 2


def one_way(x: Tensor) -> Any:
    """Return what cannot be unpickled."""
    return OneWay()


def generator(x: Tensor) -> Any:
    """Return what cannot be pickled."""
    return (one for one in x)


def load() -> Candidate:
    """Return the candidate."""
    functions = (double, in_place, process, segfault, exit_3, kill, close_everything, hang,
                 hang_without_the_interpreter, call_exit, interrupt, refuse, end_of_file, fork_and_forget,
                 raise_nameless, break_device, garbage, one_way, generator)  # fmt: skip
    return Candidate("misbehaving", {one.__name__: one for one in functions})


def load_not() -> Candidate:
    """Refuse to load."""
    raise CandidateError("there is no such thing")


def load_wrongly() -> Candidate:
    """Fail to load."""
    raise ValueError("out of luck")


def load_dying() -> Candidate:
    """Die while loading."""
    os._exit(4)


def load_once() -> Candidate:
    """Load only as long as a file is not there."""
    mark = Path(os.environ["MARK"])
    if mark.exists():
        raise CandidateError("it is locked")
    mark.touch()
    return load()
