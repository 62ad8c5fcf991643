"""How much a run tries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Profile:
    """Cases drawn per stage and layer kind, beside the corner cases."""

    name: str
    specification: int
    """For the equality with the specification"""
    law: int
    """For each law"""
    weights: int
    """For costly laws: that every weight matters (one case replaces every weight in turn), that gradients agree"""
    production: bool = False
    """Whether stages are tried at the sizes of the released models too"""


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("smoke", specification=25, law=4, weights=1),
        Profile("default", specification=200, law=25, weights=5),
        Profile("gpu", specification=200, law=25, weights=5, production=True),
        Profile("thorough", specification=6700, law=300, weights=40),
    )
}
