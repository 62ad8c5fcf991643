"""A command under supervision: a fork runs it, and the process that was started gives the exit code.

Implementations under test may end their process in many ways, also with status 0. So the code of a command
counts only once its fork has said, with a token that it was given, that it is finished. The process that was
started imports nothing of a candidate, and hardly uses a CPU: it waits, passes SIGINT and SIGTERM on, and
measures how long calls take.

Where there is no fork (Windows), or torch has been imported already, commands run as they are.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, NoReturn, Protocol

from csa_spec.plug.ending import (
    candidates_frames,
    cause_of_death,
    frames_from,
    no_answer,
    place_in_dump,
    place_of,
)
from csa_spec.plug.position import CALLING, HERE, IMPORTING

INTERNAL = 3
CALL_LIMIT = 120.0
"""Seconds for one call in the process of a run, where it may compile first, and where a hang costs the run"""
IMPORT_LIMIT = 600.0
"""Seconds for importing a candidate; libraries may compile meanwhile."""
GRACE, TELLING = 10.0, 120.0
"""Seconds for obeying an order to stop, and for telling what was found so far"""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_HUNG = b"h"
"""The order to stop a call that does not return; others are the number of a signal"""
_DEBUGGED, _OBEYS = b"d", b"o"
"""Answers to an order"""
_TICK = 0.1


@dataclass(frozen=True, slots=True)
class Stopped:
    """Why a command ends before its end."""

    sentence: str
    code: int
    """The exit code"""
    hung: str = ""
    """Of a call that does not return: since when, and where it is"""
    frames: tuple[str, ...] = ()
    """And the calls that it is in, the innermost first"""

    def __str__(self) -> str:
        """Return the sentence."""
        return self.sentence


Command = Callable[["Child"], int]


class Supervised(Protocol):
    """What stands for the supervision in the process that runs a command."""

    on_stop: Callable[[Stopped], None]
    """Tells what was found so far, in a thread of its own"""

    def finish(self) -> None:
        """Call it when the work is done: from now on orders to stop come too late."""


class Unsupervised:
    """The same where nobody supervises."""

    on_stop: Callable[[Stopped], None]

    def finish(self) -> None:
        """Nobody gives orders."""


def can_supervise() -> bool:
    """Whether a fork can run a command: torch's threads and CUDA do not survive one."""
    return hasattr(os, "fork") and "torch" not in sys.modules


def interrupted(number: int = signal.SIGINT) -> Stopped:
    """Return what a signal means."""
    name = signal.Signals(number).name
    return Stopped(f"interrupted by {name}", 128 + number)


def supervise(command: Command, limit: float, on_death: Callable[[str], None]) -> int:
    """Run a command in a fork; return its exit code.

    Parameters
    ----------
    command
        Is given what stands for the fork, and returns the exit code.
    limit
        Seconds for one call of the candidate in that fork.
    on_death
        Gets a sentence where the fork ends without a word.
    """
    HERE.share()
    token, dump = os.urandom(16), tempfile.TemporaryFile()  # noqa: SIM115 - as long as both processes
    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        ours.close()
        Child(theirs, token, dump, limit).run(command)
    theirs.close()
    return _Parent(process, ours, token, dump, limit, on_death).wait()


class Child:
    """The fork that runs a command. A thread of it waits for orders, so that also a call that hangs is stopped."""

    def __init__(self, channel: socket.socket, token: bytes, dump: IO[bytes], limit: float) -> None:
        self._channel = channel
        self._token = token
        self._limit = limit
        self._ending = threading.Lock()
        """Held by the thread that gives the exit code"""
        self._finished = False
        self._main = threading.get_ident()
        self.on_stop: Callable[[Stopped], None] = lambda stopped: None
        faulthandler.enable(dump)

    def run(self, command: Command) -> NoReturn:
        """Run the command and end."""
        code = INTERNAL
        try:
            wake, waker = socket.socketpair()
            waker.setblocking(False)
            signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
            for number in _SIGNALS:  # no handler in Python would run while a call hangs
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, lambda *_: None)
            threading.Thread(target=self._obey, args=(wake,), daemon=True).start()
            code = command(self)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else INTERNAL
        except BaseException:
            traceback.print_exc()
        self.finish()
        self._end(code)

    def finish(self) -> None:
        """Take orders no longer: the command tells its end."""
        if not self._finished and not self._ending.acquire(blocking=False):
            threading.Event().wait()  # the other thread ends the process
        self._finished = True

    def _end(self, code: int) -> NoReturn:
        with contextlib.suppress(Exception):
            _end_processes()
        with contextlib.suppress(OSError):
            self._channel.sendall(self._token + bytes([code]))
        os._exit(code)  # without exit handlers of the candidate

    def _obey(self, wake: socket.socket) -> None:
        """Wait for an order, or a signal, or the end of the process that supervises this one."""
        while True:
            try:
                ready = select.select([self._channel, wake], [], [])[0]
                order = ready[0].recv(1)
            except (OSError, ValueError):
                return  # the candidate has closed them: the other process sees to the rest
            number = signal.SIGKILL if not order else order[0]
            if order == _HUNG and self._debugged():
                self._channel.sendall(_DEBUGGED)
            elif order == _HUNG or not order or number in _SIGNALS:
                break
        with contextlib.suppress(OSError):
            self._channel.sendall(_OBEYS)
        if not self._ending.acquire(blocking=False):
            return
        if not order:
            stopped = Stopped("the process that supervises this one was ended", 1)
        else:
            stopped = self._hung() if order == _HUNG else interrupted(number)
        try:
            self.on_stop(stopped)
        except Exception:  # of a state that nobody foresaw: the sentence at least
            print(f"csa-spec: {stopped}", file=sys.__stderr__, flush=True)
        self._end(stopped.code)

    def _frames(self) -> list[tuple[str, int, str]]:
        return list(frames_from(sys._current_frames().get(self._main)))

    def _debugged(self) -> bool:
        return any(
            os.path.basename(file) in ("bdb.py", "pdb.py", "pydevd.py") for file, *_ in self._frames()
        )

    def _hung(self) -> Stopped:
        """Say where the main thread is."""
        frames = self._frames()
        inside = list(candidates_frames(frames))
        hung = no_answer(self._limit, place_of(frames))
        lines = tuple(f"{file}, line {line}, in {name}" for file, line, name in inside)
        if HERE.doing != CALLING:
            return Stopped(f"importing {HERE.module} did not end ({hung})", 2)
        at = f" in {HERE}" if str(HERE) else ""
        sentence = (
            f"a call did not return ({hung}){at}; run it with --isolate, which survives a call that hangs"
        )
        return Stopped(sentence, 1, hung, lines)


def _end_processes() -> None:
    """Do what exit handlers of multiprocessing would do: ours do not run, and neither do the candidate's."""
    if "multiprocessing" not in sys.modules:
        return
    import multiprocessing.util

    for process in multiprocessing.active_children():
        process.kill()
    # Else semaphores are left, and warned of.
    multiprocessing.util._run_finalizers(0)  # type: ignore[attr-defined]


class _Parent:
    """The process that was started: it waits for its fork."""

    def __init__(
        self,
        process: int,
        channel: socket.socket,
        token: bytes,
        dump: IO[bytes],
        limit: float,
        on_death: Callable[[str], None],
    ) -> None:
        self._process = process
        self._channel = channel
        self._token = token
        self._dump = dump
        self._limit = limit
        self._on_death = on_death
        self._received = b""
        self._open = True
        self._heard = 0
        """How far the fork was when it said something last, or could say nothing any more"""
        self._signals: list[tuple[int, float]] = []
        self._moment, self._spent, self._last = (0, 0), 0.0, time.monotonic()
        self._ordered = 0.0
        """When the fork was told to stop"""

    def wait(self) -> int:
        """Return the exit code of the command, or say how its process ended and return another than 0."""
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note_signal)
        while True:
            self._receive(_TICK)
            ended, status = os.waitpid(self._process, os.WNOHANG)
            code = self._code()
            if ended or code is not None:
                break
            self._pass_on()
            self._measure()
        if not ended:
            os.waitpid(self._process, 0)
        if ended and code is None:
            self._receive(0.0)
            code = self._code()
        return self._died(status) if code is None else code

    def _note_signal(self, number: int, frame: object) -> None:
        self._signals.append((number, time.monotonic()))

    def _receive(self, seconds: float) -> None:
        if not self._open:
            time.sleep(seconds)
        elif select.select([self._channel], [], [], seconds)[0]:
            part = b""
            with contextlib.suppress(OSError):
                part = self._channel.recv(64)
            self._open, self._received = bool(part), self._received + part
            self._heard = HERE.moment[1]

    def _code(self) -> int | None:
        _, found, after = self._received.partition(self._token)
        return after[0] if found and after else None

    def _pass_on(self) -> None:
        """Tell the fork of the first signal; the second ends it at once, unless it is the same one twice."""
        if not self._signals:
            return
        (number, first), (last, second) = self._signals[0], self._signals[-1]
        if not self._ordered:
            self._order(bytes([number]))
        if second > first + 0.5 or self._is_deaf():
            self._kill(signal.SIGKILL)
            os.waitpid(self._process, 0)
            print(f"csa-spec: {interrupted(last)}, and ended at once", file=sys.stderr)
            sys.exit(128 + last)

    def _is_deaf(self) -> bool:
        grace = TELLING if _OBEYS in self._received else GRACE
        return bool(self._ordered) and time.monotonic() > self._ordered + grace

    def _order(self, order: bytes) -> None:
        self._ordered = time.monotonic()
        with contextlib.suppress(OSError):
            self._channel.send(order)

    def _measure(self) -> None:
        """Stop a call that has taken too long; the time in which this process did not run does not count."""
        now = time.monotonic()
        passed, self._last = min(now - self._last, 5 * _TICK), now
        moment = HERE.moment
        self._spent = self._spent + passed if moment == self._moment else 0.0
        self._moment = moment
        if _DEBUGGED in self._received or self._signals:
            return
        limit = {CALLING: self._limit, IMPORTING: IMPORT_LIMIT}.get(moment[0], float("inf"))
        if self._spent > limit and not self._ordered:
            self._order(_HUNG)
        elif self._is_deaf():
            self._kill(signal.SIGABRT)  # faulthandler says where it is
            time.sleep(0.5)
            self._kill(signal.SIGKILL)

    def _kill(self, number: int) -> None:
        os.kill(self._process, number)

    def _died(self, status: int) -> int:
        """Say how the fork ended; return the exit code."""
        where = HERE.read()
        size = os.fstat(self._dump.fileno()).st_size
        place = place_in_dump(os.pread(self._dump.fileno(), size, 0).decode(errors="replace"))
        how = cause_of_death(status) + place
        if self._ordered:
            how = no_answer(self._limit, f", and it cannot be interrupted{place}")
        at, out = str(where) or "its first call", "run it with --isolate, which survives this"
        if not self._ordered and where.number > self._heard + 1 > 1:
            sentence = f"the candidate closed the files through which the run reports, by {at}; {out}"
        elif where.doing == CALLING:
            sentence = f"a call of the candidate ended the run ({how}) in {at}; {out}"
        elif where.doing == IMPORTING:
            sentence = f"importing {where.module} ended the run ({how}); nothing was decided"
        else:
            sentence = f"the run ended between two calls of the candidate ({how}), the last in {at}; {out}"
        print(f"csa-spec: {sentence}", file=sys.stderr)
        self._on_death(sentence)
        return 1 if where.doing == CALLING else 2
