"""Where a run is: which check, which case, and whether the candidate is at work just now.

It can lie in memory that another process reads, so that one that dies need not live to say where it was.
Without torch: the process that supervises a run imports this.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from csa_spec.plug.ending import frames_from, place_of

IDLE, CALLING, IMPORTING = 0, 1, 2
_SIZE, _HEAD, _LONGEST = 1 << 14, 16, 2000


class Position:
    """Where a process is."""

    def __init__(self) -> None:
        self.check = ""
        self.subject = ""
        self.case: Any = ""
        """That the candidate is asked about now, or was last"""
        self.module = ""
        """Of the candidate, while it is imported"""
        self.doing, self.number = IDLE, 0
        """What the candidate's code does now, and how often that has changed"""
        self._memory: mmap.mmap | None = None

    def share(self) -> None:
        """From now on, let this process and its forks read where the other is."""
        self._memory = mmap.mmap(-1, _SIZE)

    def note(self, doing: int) -> None:
        """Note what the candidate's code does from now on."""
        self.doing, self.number = doing, self.number + 1
        if self._memory is None:
            return
        texts = [self.check, self.subject, str(self.case)[:_LONGEST], self.module[:_LONGEST]]
        data = json.dumps(texts).encode()
        self._memory[_HEAD : _HEAD + len(data)] = data
        self._memory[:_HEAD] = doing.to_bytes(1) + self.number.to_bytes(8) + len(data).to_bytes(7)

    @property
    def moment(self) -> tuple[int, int]:
        """What the candidate's code does in the process that shares its memory, and the number of that."""
        head = self._memory[:9] if self._memory is not None else bytes(9)
        return head[0], int.from_bytes(head[1:])

    def read(self) -> Position:
        """Take over where the other process is, or was."""
        if self._memory is not None and (size := int.from_bytes(self._memory[9:_HEAD])):
            self.doing, self.number = self._memory[0], int.from_bytes(self._memory[1:9])
            texts = json.loads(self._memory[_HEAD : _HEAD + size])
            self.check, self.subject, self.case, self.module = texts
        return self

    @contextmanager
    def importing(self, module: str) -> Iterator[None]:
        """Note that a module of the candidate is imported meanwhile."""
        before, self.module = self.doing, module
        self.note(IMPORTING)
        try:
            yield
        finally:
            self.note(before)

    def __str__(self) -> str:
        """Return e.g. ``check 'repeat' of attend, case "attend H=2"``."""
        check = f"check {self.check!r} of {self.subject}" if self.check else ""
        return ", ".join(filter(None, (check, f'case "{self.case}"' if self.case else "")))


HERE = Position()
"""Of this process."""


class Ended(BaseException):
    """The candidate called ``os._exit``; the argument says how its process would have ended."""


class in_call:  # noqa: N801 - read as a with-clause
    """Around a call of the candidate: note it, and survive what Python can survive.

    ``os._exit`` in the calling thread raises :class:`Ended` in place of ending the process, also where the
    candidate catches that. A fork that comes back from the call ends there, since it is not our run.
    """

    def __enter__(self) -> None:
        """Let ``os._exit`` raise."""
        self._process, self._thread, self._exit = os.getpid(), threading.get_ident(), os._exit
        self._ended: Ended | None = None
        self._before = HERE.doing
        HERE.note(CALLING)
        os._exit = self._stay

    def __exit__(self, *exception: object) -> None:
        """Put it back, and raise what the candidate may have caught."""
        if os.getpid() != self._process:
            self._exit(0)
        os._exit = self._exit
        HERE.note(self._before)
        if self._ended is not None:
            raise self._ended

    def _stay(self, status: int) -> NoReturn:
        if (os.getpid(), threading.get_ident()) != (self._process, self._thread):
            self._exit(status)  # of a fork, as it should; of another thread, which cannot be stopped
        self._ended = Ended(f"exited with status {status}{place_of(frames_from(sys._getframe(1)))}")
        raise self._ended


def stops_the_run(error: BaseException) -> bool:
    """Whether an exception that came out of a call means the run: Ctrl-C, or pytest's time limit.

    Where Ctrl-C does not raise KeyboardInterrupt, as under a supervisor, it is the candidate's own.
    """
    kind = type(error)  # isinstance would ask the exception itself, too
    if issubclass(kind, KeyboardInterrupt):
        return signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return kind.__module__ == "_pytest.outcomes" and kind.__name__ in ("Failed", "Exit")
