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
    ASCENDING = "ascending"
    """The best come last: a selection that merges chunks must keep all of the last ones"""
    DESCENDING = "descending"
    CLUSTERED = "clustered"
    """The best are one run of entries somewhere, all others score far lower"""
    SIGNED_ZEROS = "signed-zeros"
    """Many are 0.0 or -0.0, which are equal"""
    DENORMAL = "denormal"
    """All are below the smallest normal number of the dtype"""


class Invisible(StrEnum):
    """The scores of entries that a query must not see."""

    DRAWN = "plain-invisible"
    NAN = "nan-invisible"
    HUGE = "huge-invisible"
    """Infinity"""


class Positions(StrEnum):
    """The positions of the queries of a row. Row b starts b positions later than row 0."""

    CONSECUTIVE = "consecutive"
    GAPS = "gaps"
    """Ascending, with gaps of several blocks"""
    SCATTERED = "scattered"
    """In any order, each from 0 or from the start on, over all blocks of the entries"""


@dataclass(frozen=True, kw_only=True, repr=False)
class SelectCase(Case):
    """One trial of ``select``."""

    stage = "select"
    products = (("B", "S"), ("S", "T"), ("B", "T"), ("S", "k"))
    rows: int = size("B", 1, "rows")
    queries: int = size("S", 1, "queries")
    entries: int = size("T", 0, "entries")
    compress_ratio: int = size("m", 1, "tokens per entry", bucketed=False)
    top_k: int = size("k", 0, "picks at most")
    start: int = size("start", 0, "first position", bucketed=False)
    values: ScoreValues = drawn(ScoreValues)
    invisible: Invisible = drawn(Invisible)
    positions: Positions = drawn(Positions)

    @property
    def numbers(self) -> Mapping[str, int]:
        """How many numbers it takes, by what they are for."""
        queries = self.rows * self.queries
        return {"scores": queries * self.entries, "the work on each query": queries * PER_QUERY}


def make_select_inputs(case: SelectCase) -> dict[str, Any]:
    """Make the tensors of a case, on the CPU."""
    shape = (case.rows, case.queries, case.entries)
    dtype = dtype_of(case.dtype)
    positions = case.start + _steps(case) + torch.arange(case.rows)[:, None]
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


def _steps(case: SelectCase) -> Tensor:
    """Return by how much each query is later than the first position of its row."""
    if case.positions is Positions.CONSECUTIVE:
        return torch.arange(case.queries)
    shape, rng = (case.rows, case.queries), generator(case.seed, "positions")
    if case.positions is Positions.GAPS:
        return torch.randint(2 * case.compress_ratio + 1, shape, generator=rng).cumsum(1)
    steps = torch.randint(case.compress_ratio * (case.entries + 1) + 1, shape, generator=rng)
    return torch.where(torch.rand(shape, generator=rng) < 0.5, steps, steps - case.start)


def _scores(case: SelectCase, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if case.values is ScoreValues.INTEGERS:
        return choice(case.seed, "scores", shape, (-1.0, 0.0, 1.0, 2.0)).to(dtype)
    if case.values is ScoreValues.EQUAL:
        equal = choice(case.seed, "equal", shape[:2], (-1.0, 1.0, 2.0)).to(dtype)
        return equal[..., None].expand(shape).clone()
    if case.values is ScoreValues.LOW_BITS:
        steps = torch.randint(0, 256, shape, generator=generator(case.seed, "steps")).double()
        return (1 + steps * torch.finfo(dtype).eps).to(dtype)
    if case.values is ScoreValues.SIGNED_ZEROS:
        return choice(case.seed, "scores", shape, (-1.0, -0.0, 0.0, -0.0, 0.0, 1.0)).to(dtype)
    if case.values is ScoreValues.DENORMAL:
        steps = torch.randint(-255, 256, shape, generator=generator(case.seed, "steps")).double()
        return (steps * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps).to(dtype)
    return _arranged(case, normal(case.seed, "scores", shape)).to(dtype)


def _arranged(case: SelectCase, scores: Tensor) -> Tensor:
    """Return scores in the order that the case says."""
    if case.values in (ScoreValues.ASCENDING, ScoreValues.DESCENDING):
        return scores.sort(-1, descending=case.values is ScoreValues.DESCENDING).values
    if case.values is ScoreValues.CLUSTERED:
        rng, entries = generator(case.seed, "run"), torch.arange(case.entries)
        first, second = torch.randint(max(1, case.entries), (2, *scores.shape[:2], 1), generator=rng)
        inside = (entries >= torch.minimum(first, second)) & (entries <= torch.maximum(first, second))
        return torch.where(inside, scores, scores - 20)
    return scores
