"""What one run checks: a candidate's stage or layer kind, in a dtype, on a device, and on which cases."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from csa_spec.diagnosis import diagnose
from csa_spec.engine.coverage import AMBIGUOUS_SHARE, WITHOUT_DRAWN_TIES
from csa_spec.engine.known_issues import Limitation, probe
from csa_spec.engine.running import ENOUGH, CheckResult, draw_cases, run_check, subject_of
from csa_spec.engine.stage import Check, Stage
from csa_spec.plug.candidate import CACHE, LAYER, Candidate, Capabilities
from csa_spec.profiles import Profile
from csa_spec.resolving import (
    UsageError,
    resolve_device,
    resolve_dtype,
    resolve_kinds,
    resolve_stages,
    unsupported,
)
from csa_spec.spec import LayerKind
from csa_spec.stages import STAGES, declaration_problem
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

Progress = Callable[[CheckResult], None]


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
        resolve_dtype(self.dtype)
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
            return bool(
                declared.limits or declared.least or declared.multiples or declared.max_top_k is not None
            )
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
        with one_thread():
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
        with one_thread():
            return [
                probe(
                    self.candidate,
                    self.stage,
                    self.subject,
                    str(where),
                    str(name),
                    written,
                    self.profile.shrinks,
                )
                for where, name in self.capabilities.lacks
                if where in places
            ]

    def missing(self, result: CheckResult) -> list[str]:
        """Return what a result of the specification check never reached of what it must reach to mean anything."""
        names = [
            name for name in self.stage.required(self.kind, self.capabilities) if not result.reached[name]
        ]
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
        resolve_dtype(dtype)
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


@contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread: the tensors are tiny, and several workers may share the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
