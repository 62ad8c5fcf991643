"""How long a run makes failures small and names them, so that a failing run is not much longer than others."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

SHARE = 0.5
"""Seconds for each second that cases have taken."""
LEAST = 2.0
"""Seconds for a failure when all others are used up."""


class Allowance:
    """Seconds for failures: a floor, and a share of what the cases of the run have taken so far."""

    def __init__(self, floor: float = math.inf) -> None:
        self._floor = floor
        self._earned = self._spent = 0.0

    @property
    def left(self) -> float:
        """Seconds for the failure that is next: half of what there is, as others may follow."""
        return max(LEAST, (self._floor + self._earned - self._spent) / 2)

    def earn(self, seconds: float) -> None:
        """Add what a case has taken."""
        self._earned += SHARE * seconds

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Take off the time that the body takes."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._spent += time.perf_counter() - begin
