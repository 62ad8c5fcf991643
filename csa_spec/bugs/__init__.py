"""Known bugs as small variants of the specification, each with its cause and where it was reported.

``bugs()`` is the catalogue. Each is an implementation that can be plugged in by its name:
``csa-spec check csa_spec.bugs:drops_the_sink``. How to add one: :mod:`csa_spec.bugs.bug` for layers,
:mod:`csa_spec.bugs.calls` for stages, :mod:`csa_spec.bugs.stream` for caches.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

from csa_spec.bugs.bug import REGISTERED, Bug

__all__ = ["Bug", "bugs", "find_bug"]

_MODULES = (
    "layer_sight",
    "layer_rows",
    "layer_selection",
    "layer_compressor",
    "layer_rotary",
    "layer_numbers",
    "layer_side_effects",
    "attend_softmax",
    "attend",
    "attend_side_effects",
    "select",
    "index_scores",
    "compressor",
    "sizes",
    "gradients",
    "cache_calls",
    "cache_operations",
    "cache_servers",
    "cache_side_effects",
    "memory",
    "blind",
    "forms",
)
"""The modules of this folder that hold bugs, in the order of the data."""


@cache
def bugs() -> tuple[Bug, ...]:
    """Return the catalogue."""
    for module in _MODULES:
        importlib.import_module(f"csa_spec.bugs.{module}")
    return tuple(REGISTERED)


def find_bug(name: str) -> Bug:
    """Return a bug by its name; an unknown name raises ``KeyError``."""
    return {bug.name: bug for bug in bugs()}[name]


def __getattr__(name: str) -> Callable[..., Any]:
    if name.startswith("_"):
        raise AttributeError(name)
    try:
        return find_bug(name).function
    except KeyError:
        raise AttributeError(f"there is no bug {name!r}") from None
