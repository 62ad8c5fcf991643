"""How much a run tries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Profile:
    """Cases drawn per stage and layer kind, beside the corner cases."""

    name: str
    specification: int
    """For the equality of a layer with the specification"""
    stage: int
    """For the equality of another stage, whose cases are much cheaper"""
    law: int
    """For each law"""
    costly: int
    """For costly laws: that every weight matters (one case replaces every weight in turn), that gradients agree"""
    cache: int = 0
    """Schedules of calls, per layer kind"""
    shrinks: bool = True
    """Whether known limitations are shown with the smallest case found"""
    production: bool = False
    """Whether stages are tried at the sizes of the released models too"""


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("smoke", specification=25, stage=60, cache=12, law=4, costly=1, shrinks=False),
        Profile("default", specification=200, stage=400, cache=60, law=25, costly=5),
        Profile("gpu", specification=200, stage=400, cache=60, law=25, costly=5, production=True),
        Profile("thorough", specification=6700, stage=10_000, cache=1500, law=300, costly=40),
    )
}
