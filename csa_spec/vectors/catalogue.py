"""The cases that tell the known bugs apart, few of each stage and layer kind.

``catalogue.json`` is made by ``python -m tools.telling --write``, which also says which bugs no such case tells.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files


@cache
def telling(subject: str) -> Mapping[str, tuple[str, ...]]:
    """Return, by the case, the bugs of a stage or layer kind that give a wrong answer to it, in float32."""
    text = (files("csa_spec.vectors") / "catalogue.json").read_text(encoding="utf-8")
    return {case: tuple(bugs) for case, bugs in json.loads(text).get(subject, {}).items()}
