"""The worker pool: a process with torch, but no candidate and no CUDA context, forks worker after worker.

So a worker that crashed is replaced in hundredths of a second, and CUDA, which must not be forked, starts
anew in each. The pool is started by exec: it inherits nothing of ours, and our ``__main__`` is not run
again.

What a candidate prints goes nowhere: a report on stdout must stay one. Of its stderr the end is quoted where
a call ends its process. Sockets of their own carry the calls, so it may close or fill what it likes.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import weakref
from multiprocessing.connection import wait
from typing import IO, Any, NoReturn

import torch

from csa_spec.plug.call import Fault
from csa_spec.plug.candidate import Candidate, CandidateError
from csa_spec.plug.ending import cause_of_death, no_answer, place_in_dump
from csa_spec.plug.wire import packed, received_from, told, unpacked

ENDING = 10.0
"""Seconds in which a killed process is gone, unless it is stuck in the kernel."""


class WorkerPool:
    """The process that forks the workers, one at a time."""

    def __init__(self) -> None:
        if not hasattr(os, "fork"):
            raise CandidateError("a process of its own needs fork, which this system does not have")
        self._control, control = socket.socketpair()
        self._channels: list[socket.socket] = []  # to the worker; a list, which _end can have
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed with everything else
        # Not candidates, which may touch CUDA when imported.
        rooms = ("checking", "engine", "plug", "resolving", "spec", "stages", "strategies", "target")
        ours = [name for name in sys.modules if name.startswith(tuple(f"csa_spec.{room}" for room in rooms))]
        code = (
            f"import sys; sys.path[:] = {[entry for entry in sys.path if isinstance(entry, str)]!r}\n"
            "from csa_spec.plug.worker_pool import serve\n"
            f"serve({control.fileno()}, {self._words.fileno()}, {ours!r})"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._words,
            pass_fds=(control.fileno(), self._words.fileno()),
            start_new_session=True,  # Ctrl-C in a terminal is for us alone
        )
        control.close()
        # When the interpreter exits, too.
        self.close = weakref.finalize(self, _end, self._process, self._control, self._words, self._channels)

    @property
    def alive(self) -> bool:
        """Whether it can start workers."""
        return self._process.poll() is None

    def start_worker(self) -> None:
        """Fork; nothing of the worker before is left."""
        while self._channels:
            self._channels.pop().close()
        ours, theirs = socket.socketpair()
        self._channels.append(ours)
        with theirs, contextlib.suppress(OSError):  # if the pool is gone, the next call says so
            socket.send_fds(self._control, [b"\0"], [theirs.fileno()])

    def ask(self, message: Any, seconds: float) -> Any:
        """Return what the worker replies. If it does not, it is ended, and Fault raised."""
        os.ftruncate(self._words.fileno(), 0)
        os.lseek(self._words.fileno(), 0, os.SEEK_SET)  # the worker's position, too
        end, channel = time.monotonic() + seconds, self._channels[0]
        channel.settimeout(seconds)
        with contextlib.suppress(OSError):
            channel.sendall(packed(message))
        received, watched = bytearray(), [channel, self._control]
        while ready := wait(watched, max(0.0, end - time.monotonic())):
            if channel not in ready:
                raise Fault(self._cause_of_death() + self._last_words())
            part = b""
            with contextlib.suppress(OSError):
                part = channel.recv(1 << 20)
            received += part
            if not part:
                watched.remove(channel)
            elif len(received) >= 8 and len(received) - 8 >= int.from_bytes(received[:8]):
                return unpacked(memoryview(received)[8:])
        self.end_worker(signal.SIGABRT, signal.SIGKILL)  # SIGABRT makes faulthandler say where it is
        raise Fault(no_answer(seconds, self._last_words()), hung=True)

    def end_worker(self, *signals: int) -> None:
        """End the worker and all processes of its group."""
        for number in signals or (signal.SIGKILL,):
            with contextlib.suppress(OSError):
                self._control.send(bytes([number]))
            if wait([self._control], ENDING if number == signal.SIGKILL else 0.5):
                self._status()
                return
        self.close()

    def _status(self) -> bytes:
        """Return how the worker ended, or nothing if the pool has ended too."""
        try:
            return self._control.recv(4)
        except OSError:
            return b""

    def _cause_of_death(self) -> str:
        status = self._status()
        if not status:
            self._process.wait()
            return "the worker pool, the process that it was forked from, has ended"
        return cause_of_death(int.from_bytes(status))

    def _last_words(self) -> str:
        """Return where the candidate was, innermost first, and the last that it wrote to stderr."""
        if self._words.closed:
            return ""
        text = os.pread(self._words.fileno(), 1 << 20, 0).decode(errors="replace")
        written, _, dump = text.partition("Fatal Python error: ")
        lines = written.split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return place_in_dump(dump) + (f"; the last it wrote to stderr: {last[:200]}" if last else "")


def _end(
    process: subprocess.Popen[bytes], control: socket.socket, words: IO[bytes], channels: list[socket.socket]
) -> None:
    with contextlib.suppress(OSError):
        control.shutdown(socket.SHUT_RDWR)  # unlike close, it is seen though a fork of ours holds a copy
    words.close()
    for channel in (control, *channels):
        channel.close()
    try:
        process.wait(ENDING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve(control_fd: int, words_fd: int, modules: list[str]) -> None:
    """Fork workers, report how each ended, and end the last one at the end. Runs in the pool's process."""
    import resource  # not there on systems that cannot isolate

    torch.set_num_threads(1)
    # Imported once for all workers; numpy.random is part of the state that calls must leave alone.
    for name in (*modules, "numpy.random"):
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    hard_limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard_limit))  # core dumps have gigabytes
    faulthandler.enable(words_fd)
    gc.freeze()  # so that collections in workers do not copy every page
    control = socket.socket(fileno=control_fd)
    control.set_inheritable(False)
    wake, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        message, fds, *_ = socket.recv_fds(control, 64, 1)
        if not message:
            return
        if not fds:
            continue  # a signal for a worker that had already ended
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for inherited in (control, wake, waker):
                inherited.close()
            _work(socket.socket(fileno=fds[0]))
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # as the worker does: whoever comes first
        os.close(fds[0])
        status = _wait_for(pid, control, wake)
        if status is None:
            return
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)  # its own children
        control.sendall(status.to_bytes(4))


def _wait_for(pid: int, control: socket.socket, wake: socket.socket) -> int | None:
    """Pass signals on to a worker until it ends; None, and it is killed, where our parent has gone."""
    while True:
        if control in wait([control, wake]):
            number = control.recv(1)
            with contextlib.suppress(OSError):
                os.killpg(pid, number[0] if number else signal.SIGKILL)
            if not number:
                return None
        else:
            wake.recv(64)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status


def _work(channel: socket.socket) -> NoReturn:
    """Load the candidate and make its calls. Runs in a worker."""
    worker = os.getpid()
    try:
        os.setpgid(0, 0)
        channel.set_inheritable(False)
        candidate: Candidate | None = None
        while True:
            data = received_from(channel)
            reply: Any = None
            try:
                message = pickle.loads(data)
                if candidate is None:
                    candidate = message()
                else:
                    reply = candidate.ask(message)
            except BaseException as error:
                reply = told(error)
            if os.getpid() != worker:
                os._exit(0)  # the candidate forked, and forgot to end the fork
            channel.sendall(packed(reply))
    except EOFError:
        os._exit(0)  # without the candidate's exit handlers
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)
