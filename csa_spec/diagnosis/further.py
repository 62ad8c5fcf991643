"""Further cases, on which bugs that look alike on the failing one may differ."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

from csa_spec.engine.running import draw_cases
from csa_spec.engine.stage import Setting
from csa_spec.plug.candidate import Candidate
from csa_spec.stages import STAGES, AnyStage

DRAWN = 24
SEED = 20_26
"""Of the drawn cases; any number, but always the same, so that a diagnosis can be repeated."""


def further_cases(case: Any, candidate: Candidate, stage: AnyStage) -> list[Any]:
    """Return other cases of the same setting; a candidate may not support them as they are."""
    ratios = stage.setting(candidate, case.variant, case.dtype, case.device).ratios
    others = _cases(stage.name, case.variant, Setting(case.dtype, case.device, (case.mode,), ratios))
    # In memory as here: what comes with another layout is another mistake.
    return [replace(other, layout=case.layout) for other in others]


@cache
def _cases(stage: str, variant: str, setting: Setting) -> list[Any]:
    draws = STAGES[stage].draws
    drawn = draw_cases(draws.cases(variant, setting), DRAWN, SEED)
    cases = [draws.telling(case) for case in (*draws.corners(variant, setting), *drawn)]
    return Random(SEED).sample(cases, len(cases))  # the first ones are as different as any
