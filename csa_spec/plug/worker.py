"""Calls in a process of their own, so that a hang or a crash is a failure like any other."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from csa_spec.plug.call import Answer, Fault, Request
from csa_spec.plug.candidate import Candidate, CandidateError
from csa_spec.plug.growth import SECONDS
from csa_spec.plug.raised import in_short
from csa_spec.plug.wire import remote_error
from csa_spec.plug.worker_pool import WorkerPool

TIME_LIMIT = 30.0
"""Seconds for one call."""
LOADING = 600.0
"""Seconds for loading a candidate; libraries may compile meanwhile."""

_BROKEN_DEVICE = re.compile(
    r"AcceleratorError|CUDA error|device-side assert|illegal memory access|CUBLAS_STATUS|CUDNN_STATUS"
)
"""In exceptions after which every later call in the process fails too, so that shrinking would lie."""


class WorkerCaller:
    """Makes the calls of a candidate in a process of its own, which is replaced when a call ends it.

    Parameters
    ----------
    loader
        Returns the candidate; it is pickled, and called once in each worker.
    time_limit
        Seconds for one call.
    """

    def __init__(self, loader: Callable[[], Candidate], time_limit: float = TIME_LIMIT) -> None:
        self._loader = loader
        self._time_limit = time_limit
        self._pool: WorkerPool | None = None
        self._works = False
        self._has_loaded = False

    def __call__(self, function: Callable[..., Any], request: Request, arrays: str) -> Answer:
        """Return the candidate's answer.

        Raises
        ------
        Fault
            If the call ends without one; the next gets a new process.
        RemoteError
            For an exception of the candidate.
        CandidateError
            If the candidate cannot be loaded in a worker, though nothing is known against it.
        """
        try:
            pool = self._worker()
            # Where one call is made many times, it stops by itself.
            reply = pool.ask(request, self._time_limit * 3 + SECONDS if request.grows else self._time_limit)
        except Fault:
            self._works = False
            raise
        except BaseException:  # KeyboardInterrupt, too
            self.close()
            raise
        if isinstance(reply, Answer):
            return reply
        error = remote_error(reply)
        if isinstance(error, Fault) or _BROKEN_DEVICE.search(in_short(error)):
            self._works = False
            pool.end_worker()
        raise error

    def close(self) -> None:
        """End all processes; another call would start them again."""
        pool, self._pool, self._works = self._pool, None, False
        if pool is not None:
            pool.close()

    def _worker(self) -> WorkerPool:
        """See to it that there is a worker with the candidate."""
        if self._pool is None or not self._pool.alive:
            self.close()
            self._pool = WorkerPool()
        if not self._works:
            sentence = self._load(self._pool)
            if sentence and self._has_loaded:  # a run that has found something goes on
                raise Fault(f"it cannot be loaded any more in a new process: {sentence}")
            if sentence:
                raise CandidateError(f"in a process of its own: {sentence}")
            self._works = self._has_loaded = True
        return self._pool

    def _load(self, pool: WorkerPool) -> str:
        """Start a worker and load the candidate there; return what is wrong, if something is."""
        try:
            pool.start_worker()
            failed = pool.ask(self._loader, LOADING)
        except Fault as fault:
            return f"loading it: {fault}"
        if failed is None:
            return ""
        pool.end_worker()
        if failed.error == CandidateError.__name__:
            return str(failed.message)
        return f"loading it failed: {in_short(remote_error(failed))}"
