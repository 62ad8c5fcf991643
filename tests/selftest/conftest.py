"""What tests of the self-test and of the maintainers' tools share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import csa_spec.bugs
from csa_spec.bugs import Bug, bugs
from csa_spec.bugs.bug import REGISTERED, layer_bug


@pytest.fixture
def extra() -> Iterator[Callable[..., Bug]]:
    """Register layer bugs for one test."""
    before = len(bugs()), list(REGISTERED)

    def add(name: str, **rules: Any) -> Bug:
        layer_bug(name, "It does something.", **rules)
        csa_spec.bugs.bugs.cache_clear()
        return bugs()[-1]

    yield add
    REGISTERED[:] = before[1]
    csa_spec.bugs.bugs.cache_clear()
    assert len(bugs()) == before[0]
