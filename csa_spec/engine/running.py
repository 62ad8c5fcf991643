"""Run one check of one candidate over many cases, and shrink what fails."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.internal.conjecture import providers
from hypothesis.strategies import SearchStrategy

from csa_spec.engine.allowance import Allowance
from csa_spec.engine.case import CaseError
from csa_spec.engine.failures import CandidateDied, CandidateHung, Failure, Flaky, NotRepeatable
from csa_spec.engine.shrink import SECONDS, clear_of_rounding, shrink
from csa_spec.engine.stage import SPECIFICATION, Check, Stage
from csa_spec.engine.steadiness import Counted, flaky
from csa_spec.engine.tally import Tally
from csa_spec.plug.call import NotOffered
from csa_spec.plug.candidate import Candidate
from csa_spec.plug.layouts import ADVICE, Layout
from csa_spec.plug.position import HERE

ENOUGH = 12
"""Failing cases without a new kind of failure after which a check looks no further."""
UNJUDGED_ENOUGH = 3
"""Cases after which a check ends of which every case fails for a reason that was reported before."""
AT_ONCE = 2.0
"""Seconds for a failure until it is told, as small as it is then; what time there is beyond them follows."""
SHRINKING = 0.65
"""Share of the time for a failure in which it is made small; the rest is for saying what it looks like"""
NAMING = 0.5
"""Seconds for saying what a failure looks like, at least"""
HUNG_SECONDS = 60.0
"""For how long a hang is shrunk at most."""

Regime = tuple[str, ...]
"""How the data of a case are drawn: one name for each thing that is drawn"""


@dataclass(slots=True)
class RegimeCount:
    """What a check did in one value regime."""

    cases: int = 0
    failing: int = 0
    tally: Tally = field(default_factory=Tally)


@dataclass(slots=True)
class CheckResult:
    """What one check of one stage, or of one of its layer kinds, covered and found."""

    check: str
    sentence: str
    stage: str
    variant: str = ""
    """The layer kind, for stages that have some"""
    subject: str = ""
    """What was checked: the layer kind, or the stage"""
    dtype: str = "float32"
    cases: int = 0
    """Cases that gave the check something to do"""
    failing: int = 0
    not_judged: int = 0
    """Cases, beside these, on which the candidate failed as it had in an earlier check"""
    not_asked: bool = False
    """Whether no case was tried, since an earlier call hung or ended its process"""
    tally: Tally = field(default_factory=Tally)
    regimes: dict[Regime, RegimeCount] = field(default_factory=dict)
    reached: Counter[str] = field(default_factory=Counter)
    """Cases by kind"""
    sizes: Counter[str] = field(default_factory=Counter)
    """Cases by the kinds that their sizes make"""
    not_applicable: Counter[str] = field(default_factory=Counter)
    """Cases that were changed or left out because the candidate does not support them, by what they had"""
    failures: list[Failure] = field(default_factory=list)
    """The smallest case of each kind of failure"""
    seconds: float = 0.0

    @property
    def found(self) -> list[Failure]:
        """The failures that say something of what is checked; an exception, say, does not."""
        return [f for f in self.failures if f.cause is None or self.check == SPECIFICATION]

    @property
    def state(self) -> str:
        """What the check says: ``3 FAILED``, ``12 ok``, ``not judged`` for what is reported elsewhere."""
        if self.found:
            return f"{self.failing} FAILED"
        if self.cases > self.failing:
            return f"{self.cases - self.failing} ok"
        return "not judged" if self.failures or self.not_judged or self.not_asked else "no case"


@dataclass(slots=True)
class SoFar:
    """What the checks of a subject before this one leave to it."""

    allowance: Allowance = field(default_factory=Allowance)
    """For making failures small and naming them"""
    causes: set[tuple[object, ...]] = field(default_factory=set)
    """Of failures that say nothing of the check that met them"""

    @property
    def lost(self) -> bool:
        """Whether a call hung or ended its process: each further one may, too, after its whole time."""
        return any(cause[0] in LOST for cause in self.causes)

    def reported(self, cause: tuple[object, ...]) -> bool:
        """Whether an earlier check has reported a failure of this cause."""
        return cause in self.causes


LOST = (CandidateHung.__name__, CandidateDied.__name__)


def draw_cases(cases: SearchStrategy[Any], examples: int, run_seed: int) -> list[Any]:
    """Return what a strategy draws; the same seed gives the same cases."""
    drawn: list[Any] = []

    @seed(run_seed)
    @settings(
        max_examples=max(examples, 1),
        phases=[Phase.generate],
        database=None,
        deadline=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def draw(case: Any) -> None:
        drawn.append(case)

    if examples:
        with _constants_of_no_module():
            draw()
    return drawn


@contextmanager
def _constants_of_no_module() -> Iterator[None]:
    """Keep Hypothesis from drawing constants that it finds in the modules that happen to be imported.

    They would make the cases of a seed differ between a test run, a command and the processes of ``--jobs``.
    """
    hypothesis: Any = providers
    if not {"_get_local_constants", "CONSTANTS_CACHE"} <= vars(providers).keys():  # another release
        yield
        return
    cache = type(hypothesis.CONSTANTS_CACHE)(1024)
    with (
        patch.object(providers, "_get_local_constants", hypothesis.Constants),
        patch.object(providers, "CONSTANTS_CACHE", cache),
    ):
        yield


Explain = Callable[[Failure, float], bool]
"""Says what a failure looks like, within so many seconds; returns whether they were enough"""
OnFailure = Callable[[Failure, CheckResult], None]
"""Is told a failure, and the result of its check so far"""
STILL_LOOKING = "a smaller case, and known bugs like this one, are still looked for"


def run_check(
    check: Check[Any],
    candidate: Candidate,
    stage: Stage[Any, Any],
    cases: Iterable[Any],
    *,
    variant: str = "",
    dtype: str = "float32",
    progress: Callable[[CheckResult], None] = lambda result: None,
    found: OnFailure | None = None,
    enough: int = ENOUGH,
    shrinking: bool = True,
    explain: Explain = lambda failure, seconds: True,
    so_far: SoFar | None = None,
) -> CheckResult:
    """Run a check on cases; make each kind of failure small and explain it as soon as it is met.

    Parameters
    ----------
    check, candidate, stage
        What is checked, who, and which of its stages.
    cases
        Tried in this order.
    variant, dtype
        Layer kind and dtype of all cases; labels here.
    progress
        Called after each case.
    found
        Called with each failure once it is small and explained; and before that, if this takes longer than
        :data:`AT_ONCE`, with what is known by then.
    enough
        Failing cases without a new kind of failure after which no more are tried.
    shrinking
        Whether to try failing cases again, and to look for the smallest of each kind of failure. If not,
        the smallest that is met is returned.
    explain
        Called with a failure that was made small, and the seconds that it may take.
    so_far
        What earlier checks of the subject found; this one adds to it. None: nothing, and time without limit.
    """
    caller = Counted(candidate.caller)
    counted = replace(candidate, caller=caller)
    result = CheckResult(check.name, check.sentence, stage.name, variant, stage.subject(variant), dtype)
    explain_small = explain if shrinking else None
    run = _Run(check, counted, caller, stage, result, so_far or SoFar(), progress, found, explain_small)
    HERE.check, HERE.subject = check.name, result.subject
    result.not_asked = run.so_far.lost
    for case in () if result.not_asked else cases:
        run.try_case(case)
        if run.has_enough(enough):
            break
    if run.misfit is not None and not (result.cases or result.not_judged):
        raise run.misfit  # of nothing but what does not fit
    result.failures = sorted(run.kinds.values(), key=lambda failure: failure.case.order)
    run.so_far.causes.update(failure.cause for failure in result.failures if failure.cause)
    run.tell()
    return result


@dataclass
class _Run:
    """One check while it runs."""

    check: Check[Any]
    candidate: Candidate
    caller: Counted
    """Of the candidate"""
    stage: Stage[Any, Any]
    result: CheckResult
    so_far: SoFar
    progress: Callable[[CheckResult], None]
    found: OnFailure | None
    explain: Explain | None
    """None: failures stay as they are met"""
    begin: float = field(default_factory=time.perf_counter)
    kinds: dict[str, Failure] = field(default_factory=dict)
    """The failure of each kind that is reported"""
    misfit: CaseError | None = None
    """Of the last case near which the candidate supports none"""
    nothing_new: int = 0
    """Failing cases since the last new kind, which is one of them"""
    shapes: list[Any] = field(default_factory=list)
    """The first two cases of different shapes"""

    def tell(self) -> None:
        self.result.seconds = time.perf_counter() - self.begin
        self.progress(self.result)

    def has_enough(self, enough: int) -> bool:
        # More failing cases say nothing new, and those of a candidate that hangs take half a minute each.
        result = self.result
        lost = any(failure.kind in LOST for failure in self.kinds.values())
        idle = result.not_judged >= (ENOUGH if result.cases else UNJUDGED_ENOUGH)
        return self.nothing_new >= enough or lost or idle or self.so_far.lost

    def try_case(self, case: Any) -> None:
        """Try one case, count what it covered, and settle what fails."""
        calls, begin = self.caller.calls, time.perf_counter()
        try:
            case, lacking = case.fit(self.candidate.capabilities_of(self.stage.name))
        except CaseError as error:
            self.misfit = error
            self.result.not_applicable["sizes that leave no case near it"] += 1
            return
        self.result.not_applicable.update(lacking)
        trial = self.stage.trial(self.candidate, case)
        try:
            tally, failure = self.check.run(trial), None
        except Failure as caught:
            tally, failure = None, caught
        except NotOffered as refusal:
            self.result.not_applicable[str(refusal)] += 1
            return
        self.so_far.allowance.earn(time.perf_counter() - begin)
        if failure is not None:
            with self.so_far.allowance.spending():
                self.settle(failure, calls + 1)
        elif tally is not None:  # None: the check does not apply to the case, which counts for nothing
            self.count(case, tally, trial)
        if len(self.shapes) < 2 and all(case.sizes != other.sizes for other in self.shapes):
            self.shapes.append(case)
        self.tell()

    def count(self, case: Any, tally: Tally | None, trial: Any = None) -> None:
        """Count a case that was judged; only what was judged right counts as covered."""
        regime = self.result.regimes.setdefault(case.regime, RegimeCount())
        for counts in (self.result, regime):
            counts.cases += 1
            counts.failing += tally is None
            if tally is not None:
                counts.tally.add(tally)
        if tally is not None and not self.check.law:
            self.result.reached.update(trial.all_kinds())
            self.result.sizes.update(case.size_kinds)

    def settle(self, failure: Failure, call: int) -> None:
        """Set aside what was reported before; of each other kind report one failure, small and explained."""
        known = self.kinds.get(failure.kind)
        if known is None and self.explain is not None and not self.is_old(failure):
            self.report(failure, call)
        elif self.is_old(failure):
            self.result.not_judged += 1
        else:
            self.count_failing(failure.case, new=known is None)
            if known is None or (self.explain is None and failure.case.order < known.case.order):
                self.kinds[failure.kind] = failure

    def is_old(self, failure: Failure) -> bool:
        return failure.cause is not None and self.so_far.reported(failure.cause)

    def is_fickle(self, failure: Failure) -> bool:
        """Whether answers are other ones each time, so that no known bug gives the same."""
        known = self.so_far.reported((Flaky.__name__,))
        return isinstance(failure, Flaky) or (known and isinstance(failure, NotRepeatable))

    def count_failing(self, case: Any, new: bool) -> None:
        self.count(case, None)
        self.nothing_new = 1 if new else self.nothing_new + 1

    def report(self, failure: Failure, call: int) -> None:
        """Try a failure again, make it small and say what it looks like, within what the run allows.

        Who listens is told after :data:`AT_ONCE` seconds at the latest, and again once nothing more is looked for.
        """
        begin, allowed = time.perf_counter(), self.so_far.allowance.left
        at_once = allowed if self.found is None else min(allowed, AT_ONCE)
        self.result.failures = [*self.kinds.values(), failure]  # for whoever must report before the end
        unsteady = self.unsteady(failure, call)
        settled, small = (unsteady, True) if unsteady else self.small(failure, SHRINKING * at_once)
        if self.is_old(settled):
            self.result.not_judged += 1
        else:
            self.count_failing(failure.case, new=settled.kind not in self.kinds)
            if settled.kind not in self.kinds:
                settled.met_on = (failure.case,)
                self.explain_and_tell(settled, small, begin, at_once, allowed)
        self.result.failures = list(self.kinds.values())

    def explain_and_tell(
        self, failure: Failure, small: bool, begin: float, at_once: float, allowed: float
    ) -> None:
        """Name a failure and tell it; look further where the time until then was not enough, and tell that."""
        self.kinds[failure.kind] = failure
        named = self.named(failure, begin + at_once)
        if at_once < allowed and not (small and named):
            told = copy(failure)
            told.remarks += (STILL_LOOKING,)
            self.tell_found(told)
            if not small:
                del self.kinds[failure.kind]
                failure, small = self.small(failure, SHRINKING * (begin + allowed - time.perf_counter()))
                self.kinds[failure.kind] = failure
            if not named or failure.case != told.case:
                named = self.named(failure, begin + allowed)
        longer = "" if math.isinf(allowed) else "; --patience gives it longer"
        if not small:
            failure.remarks += (f"shrinking was stopped: a smaller case may exist{longer}",)
        if not named:
            failure.remarks += (f"the search for known bugs like this one was stopped{longer}",)
        self.tell_found(failure)

    def named(self, failure: Failure, end: float) -> bool:
        """Say what a failure looks like; return whether there was time enough to look."""
        assert self.explain is not None
        return self.is_fickle(failure) or self.explain(failure, max(NAMING, end - time.perf_counter()))

    def tell_found(self, failure: Failure) -> None:
        self.result.failures = list(self.kinds.values())
        if self.found is not None:
            self.found(failure, self.result)

    def judge(self, case: Any) -> Failure | None:
        self.tell()
        return failure_of(self.check, self.candidate, self.stage, case)

    def small(self, failure: Failure, seconds: float) -> tuple[Failure, bool]:
        """Return the smallest failure of its kind that is found in time, if that one fails every time.

        And whether there was time enough.
        """
        begin = time.perf_counter()
        seconds = min(seconds, HUNG_SECONDS if failure.kind in LOST else SECONDS)
        smallest = shrink(failure, self.judge, self.stage.passes, seconds=seconds)
        whole = time.perf_counter() - begin < seconds
        smallest = clear_of_rounding(smallest, self.judge)
        unsteady = smallest.case != failure.case and self.unsteady(smallest, self.caller.calls)
        if unsteady:  # what failed each time before was luck
            return self.unsteady(failure, self.caller.calls) or unsteady, True
        smallest.met_on = failure.met_on
        self.compare_with_plain(smallest)
        return smallest, whole

    def compare_with_plain(self, failure: Failure) -> None:
        """Say so where the same case is right once its tensors lie in memory as a test makes them."""
        layout = failure.case.layout
        if layout is Layout.PLAIN or self.judge(replace(failure.case, layout=Layout.PLAIN)) is not None:
            return
        remark = f"without layout={layout} the same case is right: {ADVICE[layout]}"
        failure.remarks = tuple(dict.fromkeys((*failure.remarks, remark)))

    def unsteady(self, failure: Failure, call: int) -> Failure | None:
        """Return what is to be reported of a failure that does not come every time; None if it does."""
        again = flaky(failure, self.judge, partial(self.elsewhere, failure.case), self.caller, call)
        if again is None or not isinstance(failure, NotRepeatable):
            return again
        failure.remarks += (
            f"found in {again.facts['fails']} of {again.facts['runs']} tries of the same case",
        )
        return failure

    def elsewhere(self, case: Any) -> None:
        """Call the candidate with another shape than that of a case, whatever comes of it."""
        simpler = (other for pass_ in self.stage.passes for other in pass_(case))
        other = next((other for other in chain(self.shapes, simpler) if other.sizes != case.sizes), case)
        trial = self.stage.trial(self.candidate, other)
        with suppress(Failure, NotOffered):
            trial.ask(trial.arguments)


def failure_of(check: Check[Any], candidate: Candidate, stage: Stage[Any, Any], case: Any) -> Failure | None:
    """Return how a candidate fails on a case, if it supports the case and fails."""
    if not case.fits(candidate.capabilities_of(stage.name)):
        return None  # a smaller case that is declared unsupported may fail, and rightly so
    try:
        check.run(stage.trial(candidate, case))
    except Failure as failure:
        return failure
    except NotOffered:
        return None
    return None
