"""Further cases, on which bugs that look alike on the failing one may differ."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from csa_spec.engine.running import draw_cases
from csa_spec.engine.stage import Stage
from csa_spec.plug.candidate import CACHE, LAYER, Candidate
from csa_spec.spec import LayerKind
from csa_spec.strategies import cache_cases, cache_corners, cases, corner_cases, stage_cases, stage_corners

DRAWN = 24
SEED = 20_26
"""Of the drawn cases; any number, but always the same, so that a diagnosis can be repeated."""
MOST_TOKENS = 40
"""Layers are asked about short rows only: a diagnosis must not take long."""


def kind_of(case: Any) -> LayerKind | None:
    """Return the layer kind of a case of a layer or a cache; None for other stages."""
    if getattr(case, "stage", LAYER) == CACHE:
        return LayerKind(case.kind)
    return case.geometry.kind if not hasattr(case, "stage") else None


def further_cases(case: Any, candidate: Candidate, stage: Stage) -> Iterator[Any]:
    """Yield other cases of the same stage, kind, mode, dtype and device that a candidate supports, each once."""
    capabilities = candidate.capabilities_of(stage.name)
    ratios = None if capabilities.compress_ratios is None else frozenset(capabilities.compress_ratios)
    seen = {case}
    for other in _cases(stage.name, kind_of(case), case.dtype, case.device, ratios, case.mode):
        fitting, _ = stage.fit(other, capabilities)
        if fitting not in seen:
            seen.add(fitting)
            yield fitting


@cache
def _cases(
    stage: str, kind: LayerKind | None, dtype: str, device: str, ratios: frozenset[int] | None, mode: str
) -> list[Any]:
    if stage == CACHE and kind is not None:
        written: list[Any] = cache_corners(kind, dtype=dtype, device=device)
        return written + draw_cases(cache_cases(kind, dtype=dtype, device=device), DRAWN, SEED)
    if kind is None:
        written = stage_corners(stage, dtype, device)
        return written + draw_cases(stage_cases(stage, dtype, device), DRAWN, SEED)
    options: dict[str, Any] = {"ratios": ratios, "modes": (mode,), "dtype": dtype, "device": device}
    both = corner_cases(kind, **options) + draw_cases(cases(kind, **options), DRAWN, SEED)
    return [one for one in both if one.columns * len(one.rows) <= MOST_TOKENS]
