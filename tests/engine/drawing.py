"""Draw many examples from a strategy at once, to count and to reuse them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis.strategies import SearchStrategy

from csa_spec.engine.running import draw_cases
from csa_spec.engine.stage import Check, Setting
from csa_spec.stages import STAGES, parse_case
from csa_spec.target import Target


def draw(strategy: SearchStrategy[Any], examples: int, run_seed: int = 0) -> list[Any]:
    """Return ``examples`` draws; the same seed gives the same ones."""
    return draw_cases(strategy, examples, run_seed)


def stage_corners(stage: str, dtype: str = "float32") -> list[Any]:
    """Return the corner cases of a stage that has no layer kinds."""
    return list(STAGES[stage].draws.corners("", Setting(dtype)))


def case_of_json(data: Mapping[str, Any]) -> Any:
    """Return the case that plain JSON data are of: what they hold are the words of its line."""
    head = [data["stage"]] * (data["stage"] != "layer") + ([data["kind"]] if "kind" in data else [])
    rest = {name: value for name, value in data.items() if name not in ("stage", "kind")}
    empty = {"mode": "", "yarn": "none"}
    words = [f"{name}={value}" for name, value in rest.items() if value != empty.get(name)]
    return parse_case(" ".join([*head, *words]))


def leave_out_corners(
    monkeypatch: pytest.MonkeyPatch, out: Callable[[Any], bool] = lambda case: True
) -> None:
    """Have runs try their corner cases without some of them, or without any."""
    tried = Target._tried

    def rest(self: Target, check: Check[Any]) -> Iterator[Any]:
        corners = set(self._corners(check))
        return (case for case in tried(self, check) if case not in corners or not out(case))

    monkeypatch.setattr(Target, "_tried", rest)


def try_only(monkeypatch: pytest.MonkeyPatch, wanted: Callable[[Any], bool]) -> None:
    """Have runs try some of their cases only, such as small ones."""
    tried = Target._tried
    monkeypatch.setattr(
        Target, "_tried", lambda self, check: (case for case in tried(self, check) if wanted(case))
    )
