"""For this repository only: what its own test run checks when nobody says otherwise."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import settings

from csa_spec.plugin import setting
from csa_spec.profiles import PROFILES

_HERE = Path(__file__).parent
_TESTS = find_spec("distribution")
# The fixtures of what is built are shared by several modules. Where only the suite of an editable install is run,
# from another folder, the tests of this repository are not on the path.
pytest_plugins = (
    ["distribution"] if _TESTS and _TESTS.origin == str(_HERE / "tests" / "distribution.py") else []
)

# Hypothesis loads a profile of its own where CI is set; ours is the same everywhere.
settings.register_profile("csa-spec", deadline=None, derandomize=True, database=None)
settings.load_profile("csa-spec")

os.environ.pop("GITHUB_ACTIONS", None)  # what commands print there has a test of its own
torch.set_num_threads(1)  # the tensors are tiny, and xdist starts a worker per core


def pytest_configure(config: pytest.Config) -> None:
    """Hold transformers to the smoke profile."""
    if not setting(config, "candidate"):
        config.option.csa_candidate = ["transformers"]
        config.option.csa_profile = "smoke"


LONG = (
    "tests/test_faults.py",
    "tests/bugs/",
    "tests/conformance/",
    "tests/transformers_adapter/",
    "tests/engine/",
    "tests/bundle/",
)
"""Files that take minutes: begun last, one would keep a single process busy while the others wait"""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the long ones where several processes share the tests."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith(LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give all tests of a file to one process: it keeps what they share, such as the reference's answers."""
    if config.getvalue("dist") != "load" or config.rootpath != _HERE:
        return None  # another order was asked for, or these are not our tests
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_collection_finish() -> None:
    """Keep the garbage collector from walking through torch, transformers and thousands of tests again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(autouse=True, scope="session")
def unlimited_patience() -> Iterator[None]:
    """Make failures as small as they get, and tell them once, however busy the machine is."""
    patient = {name: replace(profile, patience=math.inf) for name, profile in PROFILES.items()}
    with patch.dict(PROFILES, patient), patch("csa_spec.engine.running.AT_ONCE", math.inf):
        yield
