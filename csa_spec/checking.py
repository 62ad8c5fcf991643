"""Check a candidate: the whole suite, or one case."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from os import PathLike
from typing import Any

import torch

from csa_spec.diagnosis import diagnose
from csa_spec.engine.allowance import Allowance
from csa_spec.engine.case import CaseError
from csa_spec.engine.failures import Failure
from csa_spec.engine.known_issues import KnownIssue
from csa_spec.engine.results import Report
from csa_spec.engine.running import CheckResult, OnFailure
from csa_spec.engine.stage import SPECIFICATION
from csa_spec.jobs import side_by_side
from csa_spec.plug.call import NotOffered
from csa_spec.plug.candidate import Candidate
from csa_spec.plug.names import unknown
from csa_spec.plug.origin import libraries, locations
from csa_spec.plug.plain import shown
from csa_spec.plug.position import HERE
from csa_spec.plug.worker import TIME_LIMIT, WorkerCaller
from csa_spec.profiles import Profile
from csa_spec.report.text import describe
from csa_spec.resolving import (
    UsageError,
    isolated,
    listed,
    require_seed,
    require_stages,
    require_texts,
    require_time_limit,
    resolve_candidate,
    resolve_device,
    resolve_kinds,
    resolve_profile,
    resolve_single,
    resolve_stages,
    unsupported,
    with_known_file,
)
from csa_spec.stages import AnyStage, parse_case, stage_of
from csa_spec.supervising import CALL_LIMIT
from csa_spec.target import Effort, Progress, Target, make_targets, one_thread

FIRST_FAILURE = "it stopped at the first failure, as it was told to"


def check(
    candidate: Any = None,
    *,
    stage: str = "all",
    layer: str = "all",
    profile: str = "default",
    dtype: str = "float32",
    device: str = "cpu",
    seed: int = 0,
    isolate: bool = False,
    time_limit: float | None = None,
    known: str | PathLike[str] | None = None,
    progress: Progress = lambda result: None,
    begun: Callable[[Report], None] = lambda report: None,
    found: OnFailure | None = None,
    fail_fast: bool = False,
    patience: float | None = None,
    jobs: int = 1,
    **stages: Any,
) -> Report:
    """Compare a candidate with the specification, and check what must hold without it.

    Parameters
    ----------
    candidate
        A shipped name (``"transformers"``), a name of the entry point group ``csa_spec.candidates``,
        ``"package.module:object"``, a function, or an object or module with stages as attributes (see
        ``docs/stages.md``).
    stage
        Which of the candidate's stages, or ``all`` that it offers. A bare function is this stage; with
        ``all`` it is the stage that it is named after, else a layer.
    layer
        Layer kinds, for stages that have some: ``csa``, ``hca``, ``sliding`` or ``all``.
    profile
        ``smoke``, ``default``, ``gpu`` or ``thorough``.
    dtype
        One dtype, or several separated by commas.
    device
        ``cpu`` or ``cuda``.
    seed
        Of the drawn cases; the same seed gives the same cases.
    isolate
        Run the candidate in a process of its own, so that a hang or a crash is a failure like any other.
    time_limit
        Seconds for one call of an isolated candidate, 30 if not given; with ``jobs``, of any candidate.
    known
        A TOML file of known issues (see :mod:`csa_spec.engine.known_issues`), beside those that the
        candidate declares itself.
    progress
        Called after each case.
    begun
        Called once there is something to check, with a report that grows while the run goes on.
    found
        Called with each failure and the result of its check: as soon as it is found, and again once it is made
        smaller or named, where that takes more than a few seconds.
    fail_fast
        Stop after the first failure.
    patience
        Seconds for making failures small and naming them, beside half of what cases take; None: as the
        profile says.
    jobs
        Processes that check subjects side by side; the candidate must be given by name.
    stages
        Single stages by name, such as ``attend=function`` or ``select="package.module:object"``, in place of
        a candidate. The names are those of :data:`csa_spec.stages.STAGES`.

    Raises
    ------
    UsageError
        If an argument is not known, or the candidate does not support what is asked for.
    csa_spec.plug.candidate.CandidateError
        If the candidate cannot be used.
    """
    begin = time.perf_counter()
    require_texts(stage=stage, layer=layer, profile=profile, dtype=dtype, device=device)
    require_seed(seed)
    require_stages(stages, check)
    dtypes = listed(dtype)
    amounts = resolve_profile(profile)
    if time_limit is not None:
        require_time_limit(time_limit)
    if jobs < 1:
        raise UsageError(f"jobs must be at least 1, not {jobs}")
    if jobs > 1 and not isinstance(candidate, str):
        raise UsageError("several jobs import the candidate by name; give its name, or leave jobs out")
    limit = TIME_LIMIT if time_limit is None else time_limit
    call_limit = CALL_LIMIT if isolate or time_limit is None else time_limit
    prepare = partial(
        prepared, candidate, stages, stage, layer, known, limit if isolate else None,
        dtypes, device, amounts, seed,
    )  # fmt: skip
    resolved, targets, declined = prepare()
    used = libraries(resolved)
    versions = {"csa-spec": version("csa-spec"), "torch": torch.__version__, **resolved.environment}
    report = Report(
        candidate=resolved.name,
        environment=versions
        | {of.name: of.version for of in used if of.version and of.name not in versions},
        profile=profile,
        dtypes=dtypes,
        device=device,
        seed=seed,
        results=[],
        missing={},
        left_out={},
        declined={subject: reason for (_, subject), reason in declined.items()},
        seconds=0.0,
        known_issues=[],
        stopped="the run goes on, or its process was ended",
        sources={of.name: of.source for of in used if of.source},
        functions=locations(resolved),
    )
    begun(report)
    listener = _Growing(report, progress, found)
    effort = Effort(
        Allowance(amounts.patience if patience is None else patience),
        fail_fast,
        found is not None,
        dtypes[0],
    )
    try:
        if jobs > 1 and len(targets) > 1:
            make = partial(_targets, prepare)
            stopped = side_by_side(make, len(targets), jobs, effort, listener, call_limit)
        else:
            stopped = any(target.run_all(listener, effort) and fail_fast for target in targets)
    finally:
        if isinstance(resolved.caller, WorkerCaller):
            resolved.caller.close()
    return replace(report, seconds=time.perf_counter() - begin, stopped=FIRST_FAILURE if stopped else "")


def prepared(
    candidate: Any,
    stages: dict[str, Any],
    stage: str,
    layer: str,
    known: str | PathLike[str] | None,
    time_limit: float | None,
    dtypes: tuple[str, ...],
    device: str,
    amounts: Profile,
    seed: int,
) -> tuple[Candidate, list[Target], dict[tuple[str, str], str]]:
    """Return the candidate, what is checked of it, and what cannot be, with the reason."""
    resolved = _resolve(candidate, stages, stage)
    resolve_stages(stage, resolved)
    resolve_kinds(layer)
    if known is not None:
        resolved = with_known_file(resolved, known)
    if time_limit is not None:
        resolved = isolated(resolved, candidate, stage, time_limit)
    return resolved, *make_targets(resolved, stage, layer, dtypes, device, amounts, seed)


def _targets(prepare: Callable[[], Any]) -> list[Target]:
    targets: list[Target] = prepare()[1]
    return targets


class _Growing:
    """Adds to a report what happens, and passes it on."""

    def __init__(self, report: Report, progress: Progress, found: OnFailure | None) -> None:
        self._report = report
        self.progress = progress
        self.found = found or (lambda failure, result: None)

    def ended(self, result: CheckResult, missing: list[str], left_out: list[str]) -> None:
        self._report.results.append(result)
        if result.check == SPECIFICATION:
            self._report.missing[result.dtype, result.subject] = missing
            self._report.left_out[result.dtype, result.subject] = left_out

    def tried(self, issues: list[KnownIssue]) -> None:
        self._report.known_issues.extend(issues)


def check_case(candidate: Any, case: Any, check: str = "specification") -> str:
    """Run one case, as a failure report prints it; return if the candidate passes.

    A case that the candidate declares not to support is run all the same. That it is declared is returned,
    one sentence, or stands at the head of the failure; otherwise the text returned is empty.

    Parameters
    ----------
    candidate
        As for :func:`check`; a bare function is the stage that the case is of.
    case
        A case, or its one line.
    check
        Name of the check, one of those of the case's stage.

    Raises
    ------
    Failure
        If the candidate is wrong; the explanation is attached as a note.
    UsageError
        If the case or the check is not known, or the candidate refuses the case.
    """
    require_texts(check=check)
    parsed = parse_case(case) if isinstance(case, str) else case
    stage = stage_of(parsed)
    resolved = resolve_candidate(candidate, stage.name)
    resolve_stages(stage.name, resolved)
    names = {known.name: known for known in stage.checks}
    if check not in names:
        raise UsageError(unknown("check", check, names, stage.name))
    modes = resolved.modes(stage.name)
    if parsed.mode not in modes:
        known = " or ".join(["leave mode= out", *(f"choose {mode}" for mode in modes if mode)])
        raise UsageError(f"{resolved.name} has no mode {shown(parsed.mode)}; {known}")
    resolve_device(parsed.device)
    reason = unsupported(resolved, stage, parsed.dtype, parsed.device)
    if reason:
        raise UsageError(reason)
    parsed = parsed.formed(resolved.capabilities_of(stage.name))
    declared = declared_unsupported(resolved, stage, parsed)
    HERE.check, HERE.subject, HERE.case = check, stage.subject(parsed.variant), parsed
    with one_thread():
        try:
            if names[check].run(stage.trial(resolved, parsed)) is None:
                raise UsageError(
                    f"check {check!r} does not apply to this case; choose another check or another case"
                )
        except NotOffered as refusal:
            refused = f"{resolved.name} cannot run this case ({refusal}); choose another case"
            raise UsageError(" ".join(filter(None, (declared, refused)))) from None
        except Failure as failure:
            failure.declared = declared
            failure.diagnosis = diagnose(resolved, names[check], failure)
            failure.add_note("\n" + describe(failure, resolved.name, check))
            raise
    return declared


def declared_unsupported(candidate: Candidate, stage: AnyStage, case: Any) -> str:
    """Say that a candidate declares not to support a case, and why; nothing where it supports the case."""
    capabilities = candidate.capabilities_of(stage.name)
    places = (case.variant, stage.name, stage.subject(case.variant))
    reasons = {str(name): reason for (place, name), reason in capabilities.lacks.items() if place in places}
    try:
        lacking = case.fit(capabilities)[1]
    except CaseError:  # nothing near it is supported either
        lacking = ["such cases"]
    told = [] if case.variant in ("", *capabilities.kinds) else [f"{case.variant} layers"]
    for what in lacking:  # e.g. "packed documents", or "indices empty" where "empty" is declared
        reason = reasons.get(what) or reasons.get(what.rpartition(" ")[2])
        told.append(f"{what}: {reason}" if reason else what)
    who = " ".join(filter(None, (candidate.name, candidate.environment.get(candidate.name))))
    return (
        f"{who} declares that it does not support {', and '.join(told)}; run all the same:" if told else ""
    )


def _resolve(candidate: Any, single: dict[str, Any], stage: str) -> Candidate:
    if (candidate is None) == (not single):
        raise UsageError("give either one candidate, or single stages such as attend=function")
    if candidate is not None:
        return resolve_candidate(candidate, stage)
    return resolve_single(single)
