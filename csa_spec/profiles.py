"""Profiles: how many cases a run tries."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Profile:
    """How many cases are drawn per stage and layer kind, beside the corner cases."""

    name: str
    light: int
    """For the specification check of stages whose cases cost little: single kernels"""
    medium: int
    """The same for whole layers"""
    heavy: int
    """The same for sequences of calls"""
    law: int
    """For each law"""
    costly: int
    """For costly laws: every weight matters (a case replaces each weight in turn), gradients agree"""
    shrinks: bool = True
    """Whether the failing case of a known issue is shrunk"""
    sizes: bool = False
    """Whether sizes cross those at which implementations switch, and schedules are long"""
    production: bool = False
    """Whether stages are tried at the sizes of the released models, too"""
    patience: float = 60.0
    """Seconds for making failures small and naming them, beside half of what the cases of the run take"""


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("smoke", light=60, medium=25, heavy=12, law=4, costly=1, shrinks=False),
        Profile("default", light=400, medium=200, heavy=60, law=16, costly=5, sizes=True),
        Profile("gpu", light=400, medium=200, heavy=60, law=16, costly=5, sizes=True, production=True),
        Profile(
            "thorough",
            light=10_000,
            medium=6700,
            heavy=1500,
            law=300,
            costly=40,
            sizes=True,
            patience=math.inf,
        ),
    )
}
