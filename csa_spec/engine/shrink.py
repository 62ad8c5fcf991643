"""Make a failing case small: shapes first, then seeds on every smaller shape, values a person can follow.

It works on cases, not on Hypothesis's choices: a case found by hand, by Hypothesis or in a report shrinks
the same way, and the kind of failure stays pinned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from csa_spec.engine.failures import Failure
from csa_spec.engine.shrink_flat import same_shape
from csa_spec.plug.layouts import Layout

TRIALS = 1200
"""Cases tried at most."""
SECONDS = 300.0
CLEAR = 100.0
"""An error of so many tolerances does not read like rounding."""

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
        # Every step goes down the order of cases, so shrinking ends.
        if case in tried or left <= 0 or time.monotonic() > end or case.order >= best.case.order:
            return False
        tried.add(case)
        left -= 1
        smaller = judge(case)
        # Another kind of failure is another bug. And a failure that the output itself shows is not given up
        # for one that shows only in a selection that the candidate exposes.
        if smaller is None or not best.shows_as(smaller) or smaller.evident < best.evident:
            return False
        best = smaller
        return True

    progress = True
    while progress:
        progress = False
        for pass_ in (simpler_layouts, *passes):
            # Each pass to its end, so that shapes are settled before values. It starts afresh from every
            # smaller case, whose largest savings are others. Then all passes again: simpler values may allow
            # smaller shapes.
            while any(improves(case) for case in pass_(best.case)):
                progress = True
    return best


def simpler_layouts(case: Any) -> Iterator[Any]:
    """Yield the case with tensors that lie in memory in simpler ways."""
    layouts = list(Layout)
    yield from (replace(case, layout=layout) for layout in layouts[: layouts.index(case.layout)])


def clear_of_rounding(failure: Failure, judge: Judge) -> Failure:
    """Return the same kind of failure on a case of the same shape whose error is far over its tolerance.

    What is found is :data:`CLEAR` times the tolerance off, or as far as a few other seeds and kinds of data go.
    """
    best = failure
    if failure.over_budget is None:
        return best
    for case in same_shape(failure.case):
        if best.over_budget is not None and best.over_budget >= CLEAR:
            break
        other = judge(case)
        if other is None or other.kind != failure.kind or other.evident < failure.evident:
            continue
        if (other.over_budget or 0.0) > (best.over_budget or 0.0):
            best = other
    return best
