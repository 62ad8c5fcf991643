"""Subjects side by side, in processes: the same report as one after the other, in the same order."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from csa_spec.engine.failures import Failure
from csa_spec.engine.known_issues import KnownIssue
from csa_spec.engine.running import CheckResult
from csa_spec.plug.candidate import CandidateError
from csa_spec.plug.ending import frames_from, no_answer, place_of
from csa_spec.plug.position import CALLING, HERE
from csa_spec.target import Effort, Listener, Target

POLL = 0.5
"""Seconds after which is looked whether all processes are alive."""
DONE = 33
"""Exit status of a process that has nothing left to do; a candidate that exits may choose 0."""


def side_by_side(
    make: Callable[[], Sequence[Target]],
    count: int,
    jobs: int,
    effort: Effort,
    listener: Listener,
    call_limit: float,
) -> bool:
    """Run all checks of some targets; return whether it stopped at the first failure.

    Parameters
    ----------
    make, count
        Makes the targets; it is pickled, and called in each process. How many there are.
    jobs
        Processes.
    effort
        How much is tried.
    listener
        Is told everything about the first target, then about the next, as if they ran one after the other.
    call_limit
        Seconds for one call of the candidate.

    Raises
    ------
    CandidateError
        If a process ends before its time, a call does not return, or the candidate cannot be used there.
    """
    context = multiprocessing.get_context("spawn")
    todo, told = context.Queue(), context.Queue()
    for number in [*range(count), *[None] * jobs]:
        todo.put(number)
    work = (make, effort, todo, told, call_limit)
    processes = [context.Process(target=_work, args=work, daemon=True) for _ in range(min(jobs, count))]
    try:
        for process in processes:
            process.start()
        return _listen(told, processes, count, effort, listener)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _listen(told: Any, processes: Sequence[Any], count: int, effort: Effort, listener: Listener) -> bool:
    """Pass on what is told of the first target that is not done, and keep the rest until its turn."""
    kept: dict[int, list[tuple[str, Any]]] = defaultdict(list)
    for current in range(count):
        done = None
        while done is None:
            while kept[current]:
                name, arguments = kept[current].pop(0)
                if name == "done":
                    done = arguments[0]
                else:
                    getattr(listener, name)(*arguments)
            if done is None:
                number, name, arguments = _next(told, processes)
                kept[number].append((name, arguments))
        if done and effort.fail_fast:
            return True
    return False


def _next(told: Any, processes: Sequence[Any]) -> tuple[int, str, Any]:
    while True:
        try:
            number, name, arguments = pickle.loads(told.get(timeout=POLL))
        except queue.Empty:
            codes = [process.exitcode for process in processes if process.exitcode not in (None, DONE)]
            if codes:
                how = f"with status {codes[0]}" if codes[0] >= 0 else f"by signal {-codes[0]}"
                raise CandidateError(
                    f"a process of --jobs was ended {how} by what it checked; --isolate makes that a failure"
                ) from None
            continue
        if name == "error":
            raise arguments
        return number, name, arguments


def _work(
    make: Callable[[], Sequence[Target]], effort: Effort, todo: Any, told: Any, call_limit: float
) -> None:
    """Run targets until none is left. Runs in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for our parent, which ends us
    watch = (os.getppid(), threading.get_ident(), told, call_limit)
    threading.Thread(target=_watch, args=watch, daemon=True).start()
    number = None
    try:
        targets = make()
        while (number := todo.get()) is not None:
            sender = _Sender(number, told)
            sender.tell("done", targets[number].run_all(sender, effort))
    except CandidateError as error:
        told.put(pickle.dumps((number, "error", error)))
    except Exception:
        told.put(pickle.dumps((number, "error", RuntimeError(traceback.format_exc()))))
    told.close()
    told.join_thread()
    sys.exit(DONE)


def _watch(parent: int, worker: int, told: Any, call_limit: float) -> None:
    """End this process when the one that started it is gone, or when a call does not return."""
    moment, since = 0, time.monotonic()
    while os.getppid() == parent:
        time.sleep(POLL)
        if HERE.doing != CALLING or HERE.number != moment:
            moment, since = HERE.number, time.monotonic()
        elif time.monotonic() > since + call_limit:
            place = place_of(frames_from(sys._current_frames().get(worker)))
            hung = f"a call did not return ({no_answer(call_limit, place)}) in {HERE}"
            error = CandidateError(f"{hung}; --isolate makes that a failure")
            told.put(pickle.dumps((None, "error", error)))
            told.close()
            told.join_thread()
            break
    os._exit(1)


@dataclass(slots=True)
class _Sender:
    """Tells the parent what happens to one target. What cannot travel is an error here, not in a thread."""

    number: int
    told: Any
    last: float = 0.0

    def tell(self, name: str, *arguments: Any) -> None:
        self.told.put(pickle.dumps((self.number, name, arguments)))

    def progress(self, result: CheckResult) -> None:
        if time.monotonic() - self.last > POLL:
            self.last = time.monotonic()
            self.tell("progress", replace(result, failures=[], regimes={}))

    def found(self, failure: Failure, result: CheckResult) -> None:
        self.tell("found", failure, replace(result, failures=[], regimes={}))

    def ended(self, result: CheckResult, missing: list[str], left_out: list[str]) -> None:
        self.tell("ended", result, missing, left_out)

    def tried(self, issues: list[KnownIssue]) -> None:
        self.tell("tried", issues)
