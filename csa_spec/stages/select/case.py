"""Cases of the stage ``select``, and their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from csa_spec.engine.case import PER_QUERY, Case, drawn, size
from csa_spec.engine.tensors import choice, dtype_of, generator, normal, with_shared_rows


class ScoreValues(StrEnum):
    """What the scores look like."""

    INTEGERS = "integers"
    """Small ones, so there are ties"""
    GAUSSIAN = "gaussian"
    EQUAL = "equal"
    """All scores of a query are the same"""
    LOW_BITS = "low-bits"
    """Neighbouring numbers of the dtype: all in one bucket of a radix selection by the high bits"""
    NAN = "nan"
    """Some of those that the query sees are NaN"""
    MINUS_INF = "minus-inf"
    """Some of those that the query sees are -inf"""


class Invisible(StrEnum):
    """The scores of entries that a query must not see."""

    DRAWN = "plain-invisible"
    NAN = "nan-invisible"
    HUGE = "huge-invisible"
    """Infinity"""


@dataclass(frozen=True, kw_only=True)
class SelectCase(Case):
    """One trial of ``select``."""

    stage = "select"
    rows: int = size("B", 1, "rows")
    queries: int = size("S", 1, "queries")
    entries: int = size("T", 0, "entries")
    compress_ratio: int = size("m", 1, "tokens per entry", bucketed=False)
    top_k: int = size("k", 0, "picks at most")
    start: int = size("start", 0, "first position", bucketed=False)
    values: ScoreValues = drawn(ScoreValues)
    invisible: Invisible = drawn(Invisible)

    @property
    def numbers(self) -> Mapping[str, int]:
        """How many numbers it takes, by what they are for."""
        queries = self.rows * self.queries
        return {"scores": queries * self.entries, "the work on each query": queries * PER_QUERY}


def make_select_inputs(case: SelectCase) -> dict[str, Any]:
    """Make the tensors of a case, on the CPU. Row b starts b positions later than row 0."""
    shape = (case.rows, case.queries, case.entries)
    dtype = dtype_of(case.dtype)
    positions = case.start + torch.arange(case.queries) + torch.arange(case.rows)[:, None]
    scores, positions = with_shared_rows(case, scores=_scores(case, shape, dtype), positions=positions)
    hidden = torch.arange(case.entries) >= ((positions + 1) // case.compress_ratio)[..., None]
    if case.values is ScoreValues.NAN:
        scores = scores.masked_fill(~hidden & (normal(case.seed, "special", shape) > 0.5), torch.nan)
    elif case.values is ScoreValues.MINUS_INF:
        scores = scores.masked_fill(~hidden & (normal(case.seed, "special", shape) > 0.0), -torch.inf)
    if case.invisible is not Invisible.DRAWN:
        scores = scores.masked_fill(hidden, torch.nan if case.invisible is Invisible.NAN else torch.inf)
    return {
        "scores": scores,
        "positions": positions,
        "compress_ratio": case.compress_ratio,
        "top_k": case.top_k,
    }


def _scores(case: SelectCase, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if case.values is ScoreValues.INTEGERS:
        return choice(case.seed, "scores", shape, (-1.0, 0.0, 1.0, 2.0)).to(dtype)
    if case.values is ScoreValues.EQUAL:
        equal = choice(case.seed, "equal", shape[:2], (-1.0, 1.0, 2.0)).to(dtype)
        return equal[..., None].expand(shape).clone()
    if case.values is ScoreValues.LOW_BITS:
        steps = torch.randint(0, 256, shape, generator=generator(case.seed, "steps")).double()
        return (1 + steps * torch.finfo(dtype).eps).to(dtype)
    return normal(case.seed, "scores", shape).to(dtype)
