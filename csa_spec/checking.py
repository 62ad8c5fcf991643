"""Check a candidate: the whole suite, or one case."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from csa_spec.candidates import find_candidate
from csa_spec.harness.candidate import Candidate, as_candidate
from csa_spec.harness.case import DEVICES, DTYPES, Case
from csa_spec.harness.checks import CHECKS, SPECIFICATION, Check
from csa_spec.harness.coverage import AMBIGUOUS_SHARE, WITHOUT_DRAWN_TIES, required
from csa_spec.harness.engine import CheckResult, run_check
from csa_spec.harness.failures import Failure
from csa_spec.harness.results import Report
from csa_spec.harness.trial import Trial
from csa_spec.profiles import PROFILES, Profile
from csa_spec.report.text import describe
from csa_spec.spec import LayerKind
from csa_spec.strategies import cases, corner_cases


class UsageError(Exception):
    """The run cannot be done as asked; the message is one clear sentence."""


Progress = Callable[[CheckResult], None]


def check(
    candidate: Any,
    *,
    layer: str = "all",
    profile: str = "default",
    dtype: str = "float32",
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = lambda result: None,
) -> Report:
    """Hold a candidate against the specification and the laws.

    Parameters
    ----------
    candidate
        A shipped name (``"transformers"``), ``"package.module:object"``, a layer function, or an object with a
        ``layer`` (see :class:`csa_spec.harness.candidate.LayerStage`).
    layer
        ``csa``, ``hca``, ``sliding`` or ``all``.
    profile
        ``smoke``, ``default`` or ``thorough``.
    dtype
        One dtype, or several separated by commas.
    device
        ``cpu`` or ``cuda``.
    seed
        Of the drawn cases; the same seed gives the same cases.
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
    found = resolve_candidate(candidate)
    dtypes = tuple(dtype.split(","))
    amount = resolve_profile(profile)
    results, missing, declined = [], {}, {}
    for kind in resolve_kinds(layer):
        if kind not in found.capabilities.kinds:
            declined[kind] = f"{found.name} does not offer {kind} layers"
            if layer != "all":
                raise UsageError(declined[kind])
    kinds = [kind for kind in resolve_kinds(layer) if kind not in declined]
    for target in [Target(found, kind, one, device, amount, seed) for one in dtypes for kind in kinds]:
        for each in CHECKS:
            result = target.run(each, progress)
            results.append(result)
            if each is SPECIFICATION:
                missing[target.dtype, target.kind] = target.missing(result)
    environment = {"csa-spec": version("csa-spec"), "torch": torch.__version__, **found.environment}
    return Report(
        found.name, environment, profile, dtypes, device, seed, results, missing, declined,
        time.perf_counter() - begin,
    )  # fmt: skip


def check_case(candidate: Any, case: str | Case, check: str = "specification") -> None:
    """Try one case, as a failure report prints it; say nothing if the candidate is right.

    Parameters
    ----------
    candidate
        As for :func:`check`.
    case
        A case, or its one line.
    check
        Name of the check: ``specification``, or that of a law.

    Raises
    ------
    Failure
        If the candidate is wrong; the explanation is attached as a note.
    """
    found = resolve_candidate(candidate)
    names = {one.name: one for one in CHECKS}
    if check not in names:
        raise UsageError(f"unknown check {check!r}: it is none of {', '.join(names)}")
    parsed = Case.parse(case) if isinstance(case, str) else case
    if parsed.mode not in found.layers:
        raise UsageError(
            f"{found.name} has no mode {parsed.mode!r}: it is none of {', '.join(map(repr, found.layers))}"
        )
    resolve_device(parsed.device)
    with _one_thread():
        try:
            if names[check].run(Trial(found, parsed)) is None:
                raise UsageError(f"this case gives the check {check!r} nothing to do")
        except Failure as failure:
            failure.add_note("\n" + describe(failure, found.name, check))
            raise


@dataclass(frozen=True, slots=True)
class Target:
    """One candidate, layer kind, dtype and device, and how much to try."""

    candidate: Candidate
    kind: LayerKind
    dtype: str
    device: str
    profile: Profile
    seed: int

    def __post_init__(self) -> None:
        """Refuse a dtype or device that is not known, not there, or not supported."""
        capabilities = self.candidate.capabilities
        if self.dtype not in DTYPES:
            raise UsageError(f"unknown dtype {self.dtype!r}: it is none of {', '.join(DTYPES)}")
        if self.dtype not in capabilities.dtypes:
            raise UsageError(f"{self.candidate.name} does not support {self.dtype}")
        resolve_device(self.device)
        if self.device not in capabilities.devices:
            raise UsageError(f"{self.candidate.name} does not run on {self.device}")

    def run(self, check: Check, progress: Progress = lambda result: None) -> CheckResult:
        """Run one check. Corner cases go to the equality with the specification; laws only draw."""
        options = {
            "ratios": self.candidate.capabilities.compress_ratios,
            "modes": tuple(self.candidate.layers),
            "dtype": self.dtype,
            "device": self.device,
        }
        corners = [] if check.law else corner_cases(self.kind, **options)  # type: ignore[arg-type]
        amount = self.profile.specification
        if check.law:
            amount = self.profile.weights if check.name == "weights" else self.profile.law
        drawn = cases(self.kind, **options)  # type: ignore[arg-type]
        with _one_thread():
            # Each check draws other cases, so that together they see more of them.
            own_seed = self.seed + zlib.crc32(check.name.encode())
            result = run_check(check, self.candidate, self.kind, corners, drawn, amount, own_seed, progress)
        result.dtype = self.dtype
        return result

    def missing(self, result: CheckResult) -> list[str]:
        """Return what a result of the specification check never reached of what it must reach to mean anything."""
        names = [name for name in required(self.kind, self.candidate.capabilities) if not result.reached[name]]
        share, most = result.ambiguous_share(WITHOUT_DRAWN_TIES), AMBIGUOUS_SHARE[self.dtype]
        if share > most:
            names.append(
                f"enough queries without ties ({share:.0%} are ambiguous where no tie was drawn, over {most:.0%})"
            )
        return names


def resolve_candidate(candidate: Any) -> Candidate:
    """Return the candidate that a name, a function or an object stands for."""
    if isinstance(candidate, str):
        return find_candidate(candidate)
    named = candidate if hasattr(candidate, "__qualname__") else type(candidate)
    return as_candidate(candidate, f"{named.__module__}:{named.__qualname__}")


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
