"""What a candidate keeps more of with every call: tensors, threads, child processes, open files."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

_CALLS = {"tensors": 140, "threads": 8, "child processes": 8, "open files": 8}
"""Calls after each of which there must be more; caches of 128 answers, the usual size, fill up before"""
SECONDS = 10.0
"""After which nothing is decided"""
_ENDING = 0.3
"""Seconds in which what a call started may still end by itself"""


def growth(call: Callable[[], object]) -> tuple[str, str]:
    """Call until nothing grows any more; return what grows with every call, and by how much.

    Parameters
    ----------
    call
        The same call each time, on new copies of the same inputs; what it returns is dropped.
    """
    end = time.monotonic() + SECONDS
    with _only_what_is_new():
        call()
        call()  # what is made once, and what takes turns, is there now
        before, growing, calls = _counted(), dict(_CALLS), 0
        while growing and time.monotonic() < end:
            call()
            calls += 1
            now = _counted()
            growing = {what: most for what, most in growing.items() if now[what] > before[what]}
            for what, most in growing.items():
                if calls >= most and _stays(what, now[what]):
                    return what, _by_how_much(what, now[what] - before[what], calls)
            before = now
    return "", ""


def _stays(what: str, count: int) -> bool:
    if what == "tensors":
        return True
    time.sleep(_ENDING)
    return _counted()[what] >= count


def _by_how_much(what: str, more: int, calls: int) -> str:
    unit = "bytes of tensors" if what == "tensors" else what
    return f"each of {calls} calls on the same input leaves more behind, the last one {more} {unit}"


@contextlib.contextmanager
def _only_what_is_new() -> Iterator[None]:
    """Hide all objects that there are from the collector, which would look at each of them."""
    hidden = bool(gc.get_freeze_count())
    gc.freeze()
    try:
        yield
    finally:
        if not hidden:
            gc.unfreeze()


def _counted() -> dict[str, int]:
    gc.collect()
    return {
        "tensors": _bytes_of_tensors(),
        "threads": threading.active_count(),
        "child processes": _children(),
        "open files": _open_files(),
    }


def _bytes_of_tensors() -> int:
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor):
            with contextlib.suppress(Exception):  # subclasses without a storage
                storage = torch.Tensor.untyped_storage(thing)
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _children() -> int:
    with contextlib.suppress(OSError):
        return sum(len(path.read_text().split()) for path in Path("/proc/self/task").glob("*/children"))
    return 0


def _open_files() -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/self/fd"))
    return 0
