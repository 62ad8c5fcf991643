"""Make a failing case small: shapes first, then seeds on every smaller shape, values a person can follow.

It works on cases, not on Hypothesis's choices: a case found by hand, by Hypothesis or in a report shrinks the
same way, and the kind of failure stays pinned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from csa_spec.engine.failures import Failure

TRIALS = 1200
"""Cases tried at most."""
SECONDS = 300.0

Judge = Callable[[Any], Failure | None]
Pass = Callable[[Any], Iterator[Any]]
"""Yields simpler cases."""


def shrink(
    failure: Failure, judge: Judge, passes: Sequence[Pass], trials: int = TRIALS, seconds: float = SECONDS
) -> Failure:
    """Return the same kind of failure on the smallest case found.

    Parameters
    ----------
    failure
        To start from.
    judge
        Tries a case and returns its failure, if it fails.
    passes
        How cases of this stage get smaller.
    trials, seconds
        Cases tried at most, and for how long; only a candidate that hangs takes so long.
    """
    best, tried = failure, {failure.case}
    left, end = trials, time.monotonic() + seconds

    def improves(case: Any) -> bool:
        nonlocal best, left
        if case in tried or left <= 0 or time.monotonic() > end or case.order >= best.case.order:
            return False
        tried.add(case)
        left -= 1
        found = judge(case)
        if found is None or found.kind != best.kind or found.evident < best.evident:
            return False
        best = found
        return True

    progress = True
    while progress:
        progress = False
        for pass_ in passes:
            # Each pass to its end: shapes are settled before values.
            while any(improves(case) for case in pass_(best.case)):
                progress = True
    return best
