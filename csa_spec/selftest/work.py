"""Work that several processes share."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch

Task = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function of a module, and what it is called with"""
Progress = Callable[[int, int, Any], None]
"""Called with how many of how many tasks are done, and the result of the last one"""


def do_all(tasks: Sequence[Task], jobs: int, progress: Progress) -> list[Any]:
    """Do the tasks, in this process if one is enough; return their results in order."""
    if jobs == 1:
        results = []
        for function, arguments in tasks:
            results.append(function(*arguments))
            progress(len(results), len(tasks), results[-1])
        return results
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_begin) as pool:
        futures = [pool.submit(function, *arguments) for function, arguments in tasks]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                progress(done, len(tasks), future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def _begin() -> None:
    """Let a worker use one thread, and end with the process that started it, however that ends."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for that process, which ends us
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
