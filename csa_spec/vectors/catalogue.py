"""The cases that tell the known bugs of single kernels apart, few of each stage.

``catalogue.json`` is made by ``python -m tools.telling --write``, which also says which bugs no such case tells.
``ready`` has their tensors, but for the largest cases; ``python -m tools.telling --ready`` makes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

READY = Path(str(files("csa_spec.vectors"))) / "ready"
"""Folder of vectors that is installed: these cases, but for the largest"""
READY_BYTES = 200_000
"""Of one case there, at most"""


@cache
def telling(subject: str) -> Mapping[str, tuple[str, ...]]:
    """Return, by the case, bugs of a stage or layer kind that it tells, in float32; each bug at least once."""
    text = (files("csa_spec.vectors") / "catalogue.json").read_text(encoding="utf-8")
    return {case: tuple(bugs) for case, bugs in json.loads(text).get(subject, {}).items()}
