"""Check a candidate: the whole suite, or one case."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from csa_spec.candidates import find_candidate
from csa_spec.diagnosis import diagnose
from csa_spec.harness.candidate import CACHE, LAYER, Candidate, CandidateError, Capabilities, as_candidate
from csa_spec.harness.case import DEVICES, DTYPES
from csa_spec.harness.coverage import AMBIGUOUS_SHARE, WITHOUT_DRAWN_TIES
from csa_spec.harness.engine import ENOUGH, CheckResult, draw_cases, run_check, subject_of
from csa_spec.harness.failures import Failure
from csa_spec.harness.limitations import Limitation, probe, with_known_limitations
from csa_spec.harness.results import Report
from csa_spec.harness.stage import Check, Stage
from csa_spec.harness.worker import TIME_LIMIT, WorkerCaller
from csa_spec.profiles import PROFILES, Profile
from csa_spec.report.text import describe
from csa_spec.spec import LayerKind
from csa_spec.stages import STAGES, declaration_problem, parse_case, stage_of
from csa_spec.strategies import (
    cache_cases,
    cache_corners,
    cases,
    corner_cases,
    gradient_corners,
    law_corners,
    production_cases,
    stage_cases,
    stage_corners,
)


class UsageError(Exception):
    """The run cannot be done as asked; the message is one clear sentence."""


Progress = Callable[[CheckResult], None]


def check(
    candidate: Any = None,
    *,
    compressor: Any = None,
    index_scores: Any = None,
    select: Any = None,
    attend: Any = None,
    stage: str = "all",
    layer: str = "all",
    profile: str = "default",
    dtype: str = "float32",
    device: str = "cpu",
    seed: int = 0,
    isolate: bool = False,
    time_limit: float = TIME_LIMIT,
    known: Path | None = None,
    progress: Progress = lambda result: None,
) -> Report:
    """Hold a candidate against the specification and the laws.

    Parameters
    ----------
    candidate
        A shipped name (``"transformers"``), a name of the entry point group ``csa_spec.candidates``,
        ``"package.module:object"``, a function, or an object or module with stages as attributes (see
        ``docs/stages.md``).
    compressor, index_scores, select, attend
        Single stages, functions or ``"package.module:object"``, in place of a candidate.
    stage
        Which of the candidate's stages: ``compressor``, ``index_scores``, ``select``, ``attend``, ``layer``, or
        ``all`` that it offers. A bare function is this stage; a layer, where nothing is said.
    layer
        Kinds of the stage ``layer``: ``csa``, ``hca``, ``sliding`` or ``all``.
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
        Seconds for one call of an isolated candidate.
    known
        A TOML file of known limitations (see :mod:`csa_spec.harness.limitations`), beside those that the candidate
        declares itself.
    progress
        Called after each case.

    Raises
    ------
    UsageError
        If an argument is not known, or the candidate does not support what is asked for.
    csa_spec.harness.candidate.CandidateError
        If the candidate cannot be used.
    """
    begin = time.perf_counter()
    amounts = resolve_profile(profile)
    single = {"compressor": compressor, "index_scores": index_scores, "select": select, "attend": attend}
    found = _resolve(candidate, {name: one for name, one in single.items() if one is not None}, stage)
    resolve_stages(stage, found)
    resolve_kinds(layer)
    if known is not None:
        found = with_known_limitations(found, known)
    if isolate:
        found = isolated(found, candidate, stage, time_limit)
    dtypes = tuple(dtype.split(","))
    results, missing, limitations = [], {}, []
    try:
        targets, declined = make_targets(found, stage, layer, dtypes, device, amounts, seed)
        for target in targets:
            failed = False
            for each in target.stage.checks:
                # What falls together with the equality has the same cause.
                result = target.run(each, progress, naming=not failed)
                failed |= bool(result.failures)
                if each.law and not result.cases and not result.failures and not target.offers(each):
                    continue
                results.append(result)
                if each is target.stage.checks[0]:
                    missing[target.dtype, target.subject] = target.missing(result)
            if target.dtype == dtypes[0]:
                limitations += target.limitations()
    finally:
        if isinstance(found.caller, WorkerCaller):
            found.caller.close()
    environment = {"csa-spec": version("csa-spec"), "torch": torch.__version__, **found.environment}
    return Report(
        found.name, environment, profile, dtypes, device, seed, results, missing,
        {subject: reason for (_, subject), reason in declined.items()},
        time.perf_counter() - begin, limitations,
    )  # fmt: skip


def check_case(candidate: Any, case: Any, check: str = "specification") -> None:
    """Try one case, as a failure report prints it; say nothing if the candidate is right.

    Parameters
    ----------
    candidate
        As for :func:`check`; a bare function is the stage that the case is of.
    case
        A case, or its one line.
    check
        Name of the check: ``specification``, or that of a law.

    Raises
    ------
    Failure
        If the candidate is wrong; the explanation is attached as a note.
    """
    parsed = parse_case(case) if isinstance(case, str) else case
    stage = stage_of(parsed)
    found = resolve_candidate(candidate, stage.name)
    resolve_stages(stage.name, found)
    names = {one.name: one for one in stage.checks}
    if check not in names:
        raise UsageError(f"unknown check {check!r} of {stage.name}: it is none of {', '.join(names)}")
    if stage.name == LAYER and parsed.mode not in found.layers:
        raise UsageError(
            f"{found.name} has no mode {parsed.mode!r}: it is none of {', '.join(map(repr, found.layers))}"
        )
    resolve_device(parsed.device)
    reason = unsupported(found, stage, parsed.dtype, parsed.device)
    if reason:
        raise UsageError(reason)
    with _one_thread():
        try:
            if names[check].run(stage.trial(found, parsed)) is None:
                raise UsageError(f"this case gives the check {check!r} nothing to do")
        except Failure as failure:
            failure.diagnosis = diagnose(found, names[check], failure)
            failure.add_note("\n" + describe(failure, found.name, check))
            raise


@dataclass(frozen=True, slots=True)
class Target:
    """One candidate, stage (and layer kind), dtype and device, and how much to try."""

    candidate: Candidate
    stage: Stage
    kind: LayerKind | None
    """Of the stage ``layer``; None for other stages"""
    dtype: str
    device: str
    profile: Profile
    seed: int

    def __post_init__(self) -> None:
        """Refuse a dtype or device that is not known, not there, or not supported."""
        if self.dtype not in DTYPES:
            raise UsageError(f"unknown dtype {self.dtype!r}: it is none of {', '.join(DTYPES)}")
        resolve_device(self.device)
        reason = unsupported(self.candidate, self.stage, self.dtype, self.device)
        if reason:
            raise UsageError(reason)

    @property
    def subject(self) -> str:
        """What is checked: the layer kind, or the stage."""
        return subject_of(self.stage.name, self.kind)

    @property
    def capabilities(self) -> Capabilities:
        """Of the stage."""
        return self.candidate.capabilities_of(self.stage.name)

    def offers(self, check: Check) -> bool:
        """Whether the candidate declares what a check needs."""
        if check.name == "gradients":
            return self.capabilities.gradients
        if check.name == "limits":
            declared = self.capabilities
            return bool(declared.limits or declared.least or declared.multiples or declared.max_top_k is not None)
        return True

    def run(
        self,
        check: Check,
        progress: Progress = lambda result: None,
        enough: int = ENOUGH,
        shrinking: bool = True,
        naming: bool = True,
    ) -> CheckResult:
        """Run one check, up to ``enough`` failing cases; each kind is made small if ``shrinking``, then diagnosed."""
        with _one_thread():
            result = run_check(
                check,
                self.candidate,
                self.stage,
                self.kind,
                self._tried(check),
                progress,
                self.dtype,
                enough,
                shrinking,
            )
            for failure in result.failures if shrinking and naming else ():
                failure.diagnosis = diagnose(self.candidate, check, failure)
        return result

    def cases(self, check: Check) -> tuple[Any, ...]:
        """Return what a check tries: corner cases, of which laws get only a few, and drawn ones."""
        return tuple(self._tried(check))

    def _tried(self, check: Check) -> Iterator[Any]:
        amount = self.profile.stage if self.kind is None else self.profile.specification
        if self.stage.name == CACHE:
            amount = self.profile.cache
        if check.law:
            amount = self.profile.costly if check.costly else self.profile.law
        if not self.offers(check):
            return
        # Each check draws other cases, so that together they see more of them.
        seed = self.seed + zlib.crc32(check.name.encode())
        if not check.costly or self.kind is None:
            yield from self._corners(check)
        yield from _drawn(self.stage.name, self.kind, self._place(), amount, seed)

    def _place(self) -> tuple[tuple[str, Any], ...]:
        """Return what decides, beside stage and layer kind, which cases suit the candidate."""
        place: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
        if self.stage.name == LAYER:
            ratios = self.capabilities.compress_ratios
            place["ratios"] = None if ratios is None else frozenset(ratios)
            place["modes"] = tuple(self.candidate.layers)
        return tuple(place.items())

    def _corners(self, check: Check) -> list[Any]:
        law, place = check.law, dict(self._place())
        if self.stage.name == LAYER:
            assert self.kind is not None
            return law_corners(self.kind, **place) if law else corner_cases(self.kind, **place)
        if law:
            return gradient_corners(self.stage.name, **place) if check.name == "gradients" else []
        if self.stage.name == CACHE:
            assert self.kind is not None
            return list(cache_corners(self.kind, **place))
        production = production_cases(self.stage.name, **place) if self.profile.production else []
        return [*stage_corners(self.stage.name, **place), *production]

    def limitations(self) -> list[Limitation]:
        """Try what the candidate is known not to support; in the smoke profile without making cases small."""
        if self.capabilities is not self.candidate.capabilities:
            return []
        places = (self.kind,) if self.stage.name == LAYER else (self.stage.name, self.subject)
        written = self._corners(self.stage.checks[0])
        if self.stage.name == LAYER:  # corner cases take turns with the candidate's modes
            written = [replace(case, mode=mode) for case in written for mode in self.candidate.layers]
        with _one_thread():
            return [
                probe(self.candidate, self.stage, self.subject, str(where), str(name), written, self.profile.shrinks)
                for where, name in self.capabilities.lacks
                if where in places
            ]

    def missing(self, result: CheckResult) -> list[str]:
        """Return what a result of the specification check never reached of what it must reach to mean anything."""
        names = [name for name in self.stage.required(self.kind, self.capabilities) if not result.reached[name]]
        if self.stage.name != LAYER:
            return names
        share, most = result.ambiguous_share(WITHOUT_DRAWN_TIES), AMBIGUOUS_SHARE[self.dtype]
        if share > most:
            names.append(
                f"enough queries without ties ({share:.0%} are ambiguous where no tie was drawn, over {most:.0%})"
            )
        return names


@lru_cache(maxsize=512)
def _drawn(
    stage: str, kind: LayerKind | None, place: tuple[tuple[str, Any], ...], amount: int, seed: int
) -> tuple[Any, ...]:
    """Draw cases; whoever is checked next with the same ones need not wait for them."""
    options: dict[str, Any] = dict(place)
    strategy: Any
    if stage == LAYER:
        assert kind is not None
        strategy = cases(kind, **options)
    elif stage == CACHE:
        assert kind is not None
        strategy = cache_cases(kind, **options)
    else:
        strategy = stage_cases(stage, **options)
    return tuple(draw_cases(strategy, amount, seed))


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
        if dtype not in DTYPES:
            raise UsageError(f"unknown dtype {dtype!r}: it is none of {', '.join(DTYPES)}")
        before = len(targets)
        for name in resolve_stages(stage, candidate):
            kinds = resolve_kinds(layer) if name in (LAYER, CACHE) else [None]
            for kind in kinds:
                reason = unsupported(candidate, STAGES[name], dtype, device)
                subject = subject_of(name, kind)
                if kind is not None and kind not in candidate.capabilities_of(name).kinds:
                    reason = f"{candidate.name} does not offer {kind} layers"
                    if layer != "all":
                        raise UsageError(reason)
                if reason:
                    declined[name, subject if reason.endswith("layers") else f"{subject}-{dtype}"] = reason
                else:
                    targets.append(Target(candidate, STAGES[name], kind, dtype, device, profile, seed))
        if len(targets) == before:
            raise UsageError(next(iter(reversed(declined.values()))))
    return targets, declined


def unsupported(candidate: Candidate, stage: Stage, dtype: str, device: str) -> str:
    """Say why a candidate's stage cannot run in a dtype on a device; nothing if it can."""
    capabilities = candidate.capabilities_of(stage.name)
    name = candidate.name if candidate.offers == (stage.name,) else f"{stage.name} of {candidate.name}"
    if dtype not in capabilities.dtypes:
        return f"{name} does not support {dtype}"
    if device not in capabilities.devices:
        return f"{name} does not run on {device}"
    if capabilities.arrays == "numpy" and dtype == "bfloat16":
        return f"{name} takes numpy's arrays, and numpy has no bfloat16"
    if capabilities.arrays == "numpy" and device != "cpu":
        return f"{name} takes numpy's arrays, which lie on the CPU"
    return ""


def resolve_candidate(candidate: Any, stage: str | None = None) -> Candidate:
    """Return the candidate that a name, a function or an object stands for; a bare function is ``stage``."""
    wanted = None if stage in (None, "all") else stage
    if wanted is not None:
        _hold_stage(wanted)
    if isinstance(candidate, str):
        return find_candidate(candidate, wanted)
    named = candidate if hasattr(candidate, "__qualname__") else type(candidate)
    name = getattr(candidate, "__name__", "") if type(candidate).__name__ == "module" else ""
    return as_candidate(candidate, name or f"{named.__module__}:{named.__qualname__}", wanted)


def _resolve(candidate: Any, single: dict[str, Any], stage: str) -> Candidate:
    if (candidate is None) == (not single):
        raise UsageError("give one candidate, or single stages such as attend=function, not both and not neither")
    if candidate is not None:
        return resolve_candidate(candidate, stage)
    return resolve_single(single)


def resolve_single(single: Mapping[str, Any]) -> Candidate:
    """Return the candidate that has these functions (or names of functions) for its stages."""
    unknown = [name for name in single if name not in STAGES or name == LAYER]
    if unknown:
        raise UsageError(
            f"unknown stage {unknown[0]!r}: it is none of {', '.join(one for one in STAGES if one != LAYER)}"
        )
    parts = {name: resolve_candidate(one, name) for name, one in single.items()}
    for name, part in parts.items():
        if name not in part.offers:
            raise UsageError(f"{part.name} is not a function and has no {name}; it offers {', '.join(part.offers)}")
    functions = {name: _with_capabilities(part, name) for name, part in parts.items()}
    environment = {key: value for part in parts.values() for key, value in part.environment.items()}
    return Candidate(", ".join(part.name for part in parts.values()), {}, environment=environment, stages=functions)


def _with_capabilities(part: Candidate, stage: str) -> Callable[..., Any]:
    """Return a stage's function with its own capabilities, which in company of others the candidate's cannot give."""

    def function(*arguments: Any) -> Any:
        return part.stages[stage](*arguments)

    function.capabilities = part.capabilities_of(stage)  # type: ignore[attr-defined]
    return function


def isolated(found: Candidate, candidate: Any, stage: str, time_limit: float) -> Candidate:
    """Return a candidate whose calls are made in a process of its own.

    Raises
    ------
    UsageError
        If the candidate cannot be imported there by its name.
    """
    if not isinstance(candidate, str):
        name = found.name
        if name.startswith("__main__:"):
            raise UsageError(f"an isolated candidate is imported by name in another process; move {name} to a module")
        try:
            same = find_candidate(name, None if stage == "all" else stage)
        except CandidateError:
            same = None
        if same is None or same.offers != found.offers:
            raise UsageError(f"an isolated candidate is imported by name in another process; {name} cannot be")
        candidate = name
    loader = partial(resolve_candidate, candidate, None if stage == "all" else stage)
    return replace(found, caller=WorkerCaller(loader, time_limit))


def resolve_stages(stage: str, candidate: Candidate) -> list[str]:
    """Return the stages of a candidate that ``--stage`` stands for."""
    if stage == "all":
        return list(candidate.offers)
    _hold_stage(stage)
    if stage not in candidate.offers:
        raise UsageError(f"{candidate.name} does not offer the stage {stage}; it offers {', '.join(candidate.offers)}")
    return [stage]


def _hold_stage(stage: str) -> None:
    if stage not in STAGES:
        raise UsageError(f"unknown stage {stage!r}: it is none of {', '.join(STAGES)}, all")


def resolve_kinds(layer: str) -> list[LayerKind]:
    """Return the layer kinds that ``--layer`` stands for."""
    if layer == "all":
        return list(LayerKind)
    if layer not in list(LayerKind):
        raise UsageError(f"unknown layer {layer!r}: it is none of {', '.join(LayerKind)}, all")
    return [LayerKind(layer)]


def resolve_profile(profile: str) -> Profile:
    """Return a profile by its name."""
    if profile not in PROFILES:
        raise UsageError(f"unknown profile {profile!r}: it is none of {', '.join(PROFILES)}")
    return PROFILES[profile]


def resolve_device(device: str) -> None:
    """Refuse a device that is not known, or not there."""
    if device not in DEVICES:
        raise UsageError(f"unknown device {device!r}: it is none of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda was asked for, but torch finds no CUDA device here")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run on one thread: the tensors are tiny, and several workers may share the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
