"""What the words of a user stand for: candidates, stages, layer kinds, profiles, devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from csa_spec.candidates import SHIPPED, find_candidate
from csa_spec.candidates.declarations import declaration_problem
from csa_spec.candidates.recognise import as_candidate, failed
from csa_spec.engine.known_issues import with_known_issues
from csa_spec.engine.trial import main_output
from csa_spec.plug.call import Request
from csa_spec.plug.candidate import Candidate, CandidateError
from csa_spec.plug.capabilities import DEVICES, DTYPES, unknown_device
from csa_spec.plug.names import unknown
from csa_spec.plug.plain import shown
from csa_spec.plug.position import stops_the_run
from csa_spec.plug.worker import WorkerCaller
from csa_spec.profiles import PROFILES, Profile
from csa_spec.spec import LayerKind
from csa_spec.stages import STAGES, AnyStage


class UsageError(Exception):
    """The run cannot be done as asked; the message is one clear sentence."""


def require_texts(**options: object) -> None:
    """Refuse options that are not text."""
    for name, value in options.items():
        if not isinstance(value, str):
            raise UsageError(f"{name} must be text, not {shown(value, 60)}")


def require_seed(seed: object) -> None:
    """Refuse a seed that is no whole number, or larger than any that a case may have."""
    if not isinstance(seed, int) or isinstance(seed, bool) or abs(seed) >= 10**18:
        raise UsageError(f"seed must be a whole number of at most 18 digits, not {shown(seed, 60)}")


def require_time_limit(limit: object) -> None:
    """Refuse a time limit that is no number of seconds."""
    if not (isinstance(limit, (int, float)) and 0 < limit < math.inf):
        raise UsageError(f"the time limit must be more than 0 seconds, not {limit!r}; give e.g. 30")


def require_stages(single: Mapping[str, Any], function: Callable[..., Any]) -> None:
    """Refuse keywords that are no stages: what they may be meant to be are stages and options of a function."""
    options = [
        name for name, kind in signature(function).parameters.items() if kind.kind is kind.KEYWORD_ONLY
    ]
    for name in single:
        if name not in STAGES:
            raise UsageError(unknown("stage or option", name, [*STAGES, *options]))


def choices() -> dict[str, str]:
    """Return what can be chosen from, by what it is called in the plural: for help texts."""
    checks = dict.fromkeys(check.name for stage in STAGES.values() for check in stage.checks)
    names: dict[str, Iterable[str]] = {
        "candidates": SHIPPED,
        "stages": STAGES,
        "layers": LayerKind,
        "profiles": PROFILES,
        "dtypes": DTYPES,
        "devices": DEVICES,
        "checks": checks,
    }
    return {what: ", ".join(listed) for what, listed in names.items()}


def resolve_candidate(candidate: Any, stage: str | None = None) -> Candidate:
    """Return the candidate that a name, a function or an object stands for; a bare function is ``stage``."""
    wanted = None if stage in (None, "all") else stage
    if wanted is not None:
        _require_stage(wanted)
    if isinstance(candidate, str):
        return find_candidate(candidate, wanted)
    if isinstance(candidate, Candidate):
        return as_candidate(candidate, candidate.name, wanted)
    named = candidate if hasattr(candidate, "__qualname__") else type(candidate)
    name = getattr(candidate, "__name__", "") if type(candidate).__name__ == "module" else ""
    return as_candidate(candidate, name or f"{named.__module__}:{named.__qualname__}", wanted)


def stage_function(name: str, stage: str) -> Callable[..., Any]:
    """Return the function of a candidate's stage, called as the checks call it."""
    candidate = resolve_candidate(name, stage)
    resolve_stages(stage, candidate)
    extra = STAGES[stage].trial.extra(candidate.capabilities_of(stage))
    if extra:
        raise CandidateError(f"{name} takes {', '.join(extra)} too, so it cannot be called here")
    names = STAGES[stage].arguments

    def function(*arguments: Any) -> Any:
        try:
            out = main_output(candidate.ask(Request(stage, dict(zip(names, arguments, strict=True)))))
        except BaseException as error:
            if stops_the_run(error):
                raise
            raise failed(f"{name} failed", error) from error
        if not isinstance(out, torch.Tensor):
            raise CandidateError(f"{name} must return one tensor, not {type(out).__name__}")
        return out

    return function


def resolve_single(single: Mapping[str, Any]) -> Candidate:
    """Return the candidate that has these functions (or names of functions) for its stages."""
    for name in single:
        if name not in STAGES:
            raise UsageError(unknown("stage", name, STAGES))
    parts = {name: resolve_candidate(function, name) for name, function in single.items()}
    for name, part in parts.items():
        if name not in part.offers:
            raise UsageError(
                f"{part.name} is not a function and has no {name}; it offers {', '.join(part.offers)}"
            )
    return Candidate(
        ", ".join(part.name for part in parts.values()),
        {name: part.functions(name) for name, part in parts.items()},
        environment={key: value for part in parts.values() for key, value in part.environment.items()},
        own={name: part.capabilities_of(name) for name, part in parts.items()},
    )


def with_known_file(candidate: Candidate, path: str | PathLike[str]) -> Candidate:
    """Add the known issues of a file (see :mod:`csa_spec.engine.known_issues`) to what a candidate declares.

    Raises
    ------
    UsageError, CandidateError
        If the file cannot be used, or names what the candidate's stages do not have.
    """
    if not isinstance(path, (str, PathLike)):
        raise UsageError(f"known must be the path of a file, not {type(path).__name__}")
    path = Path(path)
    added = with_known_issues(candidate, path)
    if not declaration_problem(candidate) and (problem := declaration_problem(added)):
        raise UsageError(f"{path}: {problem}")
    return added


def isolated(candidate: Candidate, source: Any, stage: str, time_limit: float) -> Candidate:
    """Return a candidate whose calls are made in a process of its own.

    Parameters
    ----------
    candidate
        In this process.
    source
        What it was made of: its name, or what only this process has.
    stage
        As it was asked for.
    time_limit
        Seconds for one call.

    Raises
    ------
    UsageError
        If the candidate cannot be imported there by its name.
    """
    require_time_limit(time_limit)
    if not isinstance(source, str):
        name = candidate.name
        if name.startswith("__main__:"):
            raise UsageError(
                f"an isolated candidate is imported by name in another process; move {name} to a module"
            )
        try:
            same = find_candidate(name, None if stage == "all" else stage)
        except CandidateError:
            same = None
        if same is None or same.offers != candidate.offers:
            raise UsageError(
                f"an isolated candidate is imported by name in another process, and {name} cannot be; "
                "put it at the top level of a module"
            )
        source = name
    loader = partial(resolve_candidate, source, None if stage == "all" else stage)
    return replace(candidate, caller=WorkerCaller(loader, time_limit))


def resolve_stages(stage: str, candidate: Candidate) -> list[str]:
    """Return the stages of a candidate that ``--stage`` stands for."""
    if stage == "all":
        return list(candidate.offers)
    _require_stage(stage)
    if stage not in candidate.offers:
        raise UsageError(
            f"{candidate.name} does not offer the stage {stage}; it offers {', '.join(candidate.offers)}"
        )
    return [stage]


def _require_stage(stage: str) -> None:
    if stage not in STAGES:
        raise UsageError(unknown("stage", stage, [*STAGES, "all"]))


def known_stage(name: str) -> AnyStage:
    """Return a stage by its name."""
    _require_stage(name)
    return STAGES[name]


def resolve_kinds(layer: str) -> list[LayerKind]:
    """Return the layer kinds that ``--layer`` stands for."""
    if layer == "all":
        return list(LayerKind)
    if layer not in list(LayerKind):
        raise UsageError(unknown("layer", layer, [*LayerKind, "all"]))
    return [LayerKind(layer)]


def resolve_variants(layer: str, stage: AnyStage) -> list[str]:
    """Return what of a stage is checked one by one: the layer kinds asked for, or the stage as a whole."""
    kinds = resolve_kinds(layer)
    return [variant for variant in stage.variants if not variant or variant in kinds]


def resolve_profile(profile: str) -> Profile:
    """Return a profile by its name."""
    if profile not in PROFILES:
        raise UsageError(unknown("profile", profile, PROFILES))
    return PROFILES[profile]


def listed(names: str) -> tuple[str, ...]:
    """Return the names of a list with commas, each once; whether they are known is asked of each."""
    return tuple(dict.fromkeys(name.strip() for name in names.split(",")))


def resolve_dtype(dtype: str) -> None:
    """Refuse a dtype that is not known."""
    if dtype not in DTYPES:
        raise UsageError(unknown("dtype", dtype, DTYPES))


def resolve_device(device: str) -> None:
    """Refuse a device that is not known, or not there."""
    if device not in DEVICES:
        raise UsageError(unknown_device(device))
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda was asked for, but torch finds no CUDA device here; use cpu")


def unsupported(candidate: Candidate, stage: AnyStage, dtype: str, device: str) -> str:
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
