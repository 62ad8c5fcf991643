"""What one run checks: a candidate's stage or layer kind, in a dtype, on a device, and on which cases."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Protocol

import torch

from csa_spec.candidates.declarations import declaration_problem
from csa_spec.diagnosis import diagnose
from csa_spec.engine.allowance import Allowance
from csa_spec.engine.failures import Failure, Flaky
from csa_spec.engine.known_issues import KnownIssue, probe
from csa_spec.engine.running import ENOUGH, CheckResult, OnFailure, SoFar, draw_cases, failure_of, run_check
from csa_spec.engine.sizes import summarised
from csa_spec.engine.stage import Check, Setting
from csa_spec.plug.candidate import Candidate
from csa_spec.plug.capabilities import DEVICES, DTYPES, NARROW, Capabilities
from csa_spec.profiles import Profile
from csa_spec.resolving import (
    UsageError,
    resolve_device,
    resolve_dtype,
    resolve_stages,
    resolve_variants,
    unsupported,
)
from csa_spec.stages import STAGES, AnyStage

Progress = Callable[[CheckResult], None]
_LIKE_ROUNDING = 1000.0
"""Tolerances by which arithmetic in 16 bits may be off, where all but results should have 32"""


@dataclass(frozen=True)
class Target:
    """One candidate, stage (and layer kind), dtype and device, and how much to try."""

    candidate: Candidate
    stage: AnyStage
    variant: str
    """The layer kind, for stages that have some"""
    dtype: str
    device: str
    profile: Profile
    seed: int

    def __post_init__(self) -> None:
        """Refuse a dtype or device that is not known, not there, or not supported."""
        resolve_dtype(self.dtype)
        resolve_device(self.device)
        reason = unsupported(self.candidate, self.stage, self.dtype, self.device)
        if reason:
            raise UsageError(reason)

    @property
    def subject(self) -> str:
        """The layer kind, or the stage, as reports call it."""
        return self.stage.subject(self.variant)

    @property
    def capabilities(self) -> Capabilities:
        """What the candidate declares of this stage."""
        return self.candidate.capabilities_of(self.stage.name)

    @property
    def checks(self) -> list[Check[Any]]:
        """The checks of the stage that are about something that the candidate declares."""
        return [check for check in self.stage.checks if self.offers(check)]

    def offers(self, check: Check[Any]) -> bool:
        """Whether the candidate declares what a check needs."""
        return check.needs(self.capabilities)

    def run(
        self,
        check: Check[Any],
        progress: Progress = lambda result: None,
        enough: int = ENOUGH,
        shrinking: bool = True,
        naming: bool = True,
        found: OnFailure | None = None,
        so_far: SoFar | None = None,
        cases: Iterable[Any] | None = None,
    ) -> CheckResult:
        """Run one check, up to ``enough`` failing cases, on what it tries or on other ``cases``.

        One failure of each kind is shrunk if ``shrinking``, diagnosed if ``naming``, and given to ``found``:
        at once, and again if it was made smaller or named after that.
        ``so_far`` is what the subject's other checks found, and how long failures may take; None for no limit.
        """

        def explain(failure: Failure, seconds: float) -> bool:
            begin = time.perf_counter()
            failure.remarks = tuple(dict.fromkeys((*failure.remarks, *self._narrower(check, failure))))
            if not naming:
                return True
            failure.diagnosis = diagnose(self.candidate, check, failure, seconds, others=failure.met_on)
            return time.perf_counter() - begin <= seconds

        with one_thread():
            return run_check(
                check,
                self.candidate,
                self.stage,
                self._tried(check) if cases is None else cases,
                variant=self.variant,
                dtype=self.dtype,
                progress=progress,
                found=found,
                enough=enough,
                shrinking=shrinking,
                explain=explain,
                so_far=so_far,
            )

    def run_all(self, listener: Listener, effort: Effort) -> bool:
        """Run every check; what has one cause fails once. Return whether something failed."""
        so_far, failed, named = SoFar(effort.allowance), False, False
        found = listener.found if effort.at_once else None
        for check in self.checks:
            # Failures that follow from the first one have the same cause, so they are not named.
            enough = 1 if effort.fail_fast else ENOUGH
            result = self.run(check, listener.progress, enough, naming=not named, found=found, so_far=so_far)
            named |= any(not isinstance(failure, Flaky) for failure in result.failures)
            failed |= bool(result.failures)
            first = check is self.stage.checks[0]
            listener.ended(result, *(self.missing(result), self.left_out(result)) if first else ([], []))
            if failed and effort.fail_fast:
                return True
        if self.dtype == effort.first_dtype:
            listener.tried(self.known_issues())
        return failed

    def cases(self, check: Check[Any]) -> tuple[Any, ...]:
        """Return what a check tries: corner cases, of which laws get only a few, and drawn ones."""
        return tuple(self._tried(check))

    def _tried(self, check: Check[Any]) -> Iterator[Any]:
        if not self.offers(check):
            return
        # Each check draws other cases, so that together they see more of them.
        seed = self.seed + zlib.crc32(check.name.encode())
        # Small ones first: what fails there is found, and made small, in a fraction of the time.
        yield from sorted(self._corners(check), key=lambda case: case.order)
        yield from _drawn(self.stage.name, self.variant, self._setting, self._amount(check), seed)
        if not check.law:
            yield from self.sized

    def _narrower(self, check: Check[Any], failure: Failure) -> tuple[str, ...]:
        """Say if it would be right in arithmetic of the case's dtype, 16 bits wide, where that is not declared."""
        narrow = self.dtype in NARROW and self.capabilities.internal_dtype is None
        if not narrow or failure.over_budget is None or failure.over_budget > _LIKE_ROUNDING:
            return ()
        declared = replace(self.capabilities, internal_dtype=self.dtype)
        candidate = self.candidate.declaring(self.stage.name, declared)
        if failure_of(check, candidate, self.stage, failure.case) is not None:
            return ()
        return (
            f"that may be rounding: on this case it would pass with internal_dtype={self.dtype!r} declared, for "
            f"kernels that keep logits, probabilities or sums in {self.dtype}",
        )

    def _amount(self, check: Check[Any]) -> int:
        if check.law:
            return self.profile.costly if check.costly else self.profile.law
        return int(getattr(self.profile, self.stage.effort))

    @cached_property
    def sized(self) -> tuple[Any, ...]:
        """Cases in which each size crosses those where implementations switch."""
        if not self.profile.sizes:
            return ()
        return _sized(self.stage.name, self.variant, self._setting, self.seed)

    @cached_property
    def _setting(self) -> Setting:
        return self.stage.setting(self.candidate, self.variant, self.dtype, self.device)

    def _corners(self, check: Check[Any]) -> list[Any]:
        if check.law:
            return self.stage.law_cases(check, self.variant, self._setting)
        draws = self.stage.draws
        production = draws.production(self.variant, self._setting) if self.profile.production else ()
        return [*draws.corners(self.variant, self._setting), *production]

    def known_issues(self) -> list[KnownIssue]:
        """Try what the candidate is known not to support; the smoke profile does not shrink what fails."""
        first = self.stage.checks[0]
        # Corner cases take turns with the candidate's modes; here each is tried in all of them.
        modes = self.candidate.modes(self.stage.name)
        written = [replace(case, mode=mode) for case in self._corners(first) for mode in modes]
        places = {self.variant, self.stage.name, self.subject} & set(self.stage.case.may_lack())
        with one_thread():
            return [
                probe(self.candidate, self.stage, self.subject, place, written, self.profile.shrinks)
                for place in self.capabilities.lacks
                if place[0] in places
            ]

    def missing(self, result: CheckResult) -> list[str]:
        """Return the required kinds of case that a result of the specification check never reached."""
        unreached = self._unreached(result)
        left_out = self._kinds_out_of_reach(result, unreached)
        names = [name for name in unreached if name not in left_out]
        sizes = [kind for kind in self._sizes_unreached(result) if kind not in self._sizes_out_of_reach]
        return names + summarised(sizes) + self.stage.wanting(result, self.dtype)

    def left_out(self, result: CheckResult) -> list[str]:
        """Return the required kinds that what the candidate declares has put out of reach.

        The corner cases reach every required kind. Those that are lost where a corner case must be changed to
        fit the candidate are out of reach, unless another case has them and fails. Where nothing was tried,
        nothing is excused.
        """
        if not result.cases:
            return []
        sizes = [kind for kind in self._sizes_unreached(result) if kind in self._sizes_out_of_reach]
        return self._kinds_out_of_reach(result, self._unreached(result)) + summarised(sizes)

    def _kinds_out_of_reach(self, result: CheckResult, names: list[str]) -> list[str]:
        if not names or not result.cases:
            return []
        lost: set[str] = set()
        failing: set[str] = set()
        for case in self.stage.draws.corners(self.variant, replace(self._setting, ratios=None)):
            case = case.formed(self.capabilities)
            if not case.fits(self.capabilities):
                lost |= self.stage.trial(self.candidate, case).all_kinds()
            elif result.failing:
                failing |= self.stage.trial(self.candidate, case).all_kinds()
            elif lost.issuperset(names):
                break
        return [name for name in names if name in lost - failing]

    def _unreached(self, result: CheckResult) -> list[str]:
        required = self.stage.all_required(self.variant, self.capabilities)
        return [name for name in required if not result.reached[name]]

    def _sizes_unreached(self, result: CheckResult) -> list[str]:
        required = dict.fromkeys(kind for case in self.sized for kind in sorted(case.size_kinds))
        return [kind for kind in required if not result.sizes[kind]]

    @cached_property
    def _sizes_out_of_reach(self) -> set[str]:
        """The kinds that sizes make where the candidate does not support the case."""
        formed = (case.formed(self.capabilities) for case in self.sized)
        out = (case for case in formed if not case.fits(self.capabilities))
        return {kind for case in out for kind in case.size_kinds}


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of the targets of a run is tried."""

    allowance: Allowance
    """For making failures small and naming them; each process has one of its own"""
    fail_fast: bool
    """Whether the run stops at the first failure"""
    at_once: bool
    """Whether somebody waits for each failure"""
    first_dtype: str
    """In which known issues are tried"""


class Listener(Protocol):
    """Is told what happens, when it happens."""

    def progress(self, result: CheckResult) -> None:
        """A case was tried."""

    def found(self, failure: Failure, result: CheckResult) -> None:
        """A failure was found; told again once it is made smaller or named, where that takes longer."""

    def ended(self, result: CheckResult, missing: list[str], left_out: list[str]) -> None:
        """A check has ended; the first of a subject says which required kinds of case it did not reach."""

    def tried(self, issues: list[KnownIssue]) -> None:
        """The known issues of a subject were tried."""


@lru_cache(maxsize=512)
def _drawn(stage: str, variant: str, setting: Setting, amount: int, seed: int) -> tuple[Any, ...]:
    """Draw cases; whoever is checked next with the same ones need not wait for them."""
    cases = draw_cases(STAGES[stage].draws.cases(variant, setting), amount, seed)
    return tuple(sorted(cases, key=lambda case: case.order))


@lru_cache(maxsize=64)
def _sized(stage: str, variant: str, setting: Setting, seed: int) -> tuple[Any, ...]:
    """Return the cases of a stage whose sizes are swept; drawn ones, of other data for each seed."""
    drawn = _drawn(stage, variant, setting, SWEPT, seed)
    return tuple(sorted(STAGES[stage].draws.sizes(drawn, seed), key=lambda case: case.order))


SWEPT = 100
"""Cases drawn whose sizes are swept"""


def make_targets(
    candidate: Candidate,
    stage: str,
    layer: str,
    dtypes: tuple[str, ...],
    device: str,
    profile: Profile,
    seed: int,
) -> tuple[list[Target], dict[tuple[str, str], str]]:
    """Return what a run checks, and what it cannot, by stage and subject, with the reason.

    Raises
    ------
    UsageError
        If nothing is left to check of a dtype, or of what was asked for by name.
    """
    resolve_device(device)
    problem = declaration_problem(candidate)
    if problem:
        raise UsageError(problem)
    targets: list[Target] = []
    declined: dict[tuple[str, str], str] = {}
    for dtype in dtypes:
        resolve_dtype(dtype)
        before = len(targets)
        for name in resolve_stages(stage, candidate):
            offered = candidate.capabilities_of(name).kinds
            for variant in resolve_variants(layer, STAGES[name]):
                subject = STAGES[name].subject(variant)
                if variant and variant not in offered:
                    declined[name, subject] = f"{candidate.name} does not offer {variant} layers"
                    if layer != "all":
                        raise UsageError(
                            f"{declined[name, subject]}; it offers {', '.join(sorted(offered))}"
                        )
                    continue
                reason = unsupported(candidate, STAGES[name], dtype, device)
                if reason:
                    declined[name, f"{subject}-{dtype}"] = reason
                else:
                    targets.append(Target(candidate, STAGES[name], variant, dtype, device, profile, seed))
        if len(targets) == before:
            (name, _), reason = next(reversed(declined.items()))
            raise UsageError(f"{reason}; {_supported(candidate.capabilities_of(name))}")
    return targets, declined


def _supported(capabilities: Capabilities) -> str:
    """Say what can be asked for in place of what is not supported."""
    dtypes = [dtype for dtype in DTYPES if dtype in capabilities.dtypes]
    devices = [device for device in DEVICES if device in capabilities.devices]
    return f"it supports {', '.join(dtypes)} on {', '.join(devices)}"


@contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread: the tensors are tiny, and several workers may share the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
