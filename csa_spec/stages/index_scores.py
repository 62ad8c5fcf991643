"""The stage ``index_scores``: how much each query wants each entry.

``index_scores(index_q [B,S,HI,DI], index_k [B,T,DI], head_weights [B,S,HI]) -> scores [B,S,T]``

score[t, s] = sum over heads of w[t, h] * relu(q[t, h] . k[s]). Queries and keys are rotated already, constant factors
are part of the head weights. Every pair of query and entry is scored; visibility is the business of ``select``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from csa_spec.engine.budget import Arithmetic, index_score_budget
from csa_spec.engine.declared_limits import limits_check
from csa_spec.engine.inputs import choice, normal
from csa_spec.engine.recipe import Recipe, drawn, size
from csa_spec.engine.stage import MANNERS, ROWS, Check, Stage
from csa_spec.engine.trial import Form
from csa_spec.plug.candidate import Capabilities
from csa_spec.spec import SPEC
from csa_spec.stages.numbers import NumbersTrial, dtype_of, equals_the_specification


class ProductValues(StrEnum):
    """What the products q . k of the heads look like."""

    INTEGERS = "integers"
    GAUSSIAN = "gaussian"
    """About half of the products are negative, and half of the head weights"""
    LARGE = "large"
    """Products up to thousands"""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexScoresCase(Recipe):
    """One trial of ``index_scores``."""

    stage = "index_scores"
    rows: int = size("B", 1, "rows")
    queries: int = size("S", 1, "queries")
    entries: int = size("T", 0, "entries")
    index_heads: int = size("HI", 1, "index heads")
    index_head_dim: int = size("DI", 1, "channels")
    values: ProductValues = drawn(ProductValues)


class IndexScoresTrial(NumbersTrial):
    """A candidate's ``index_scores`` on one case."""

    stage = "index_scores"
    batched = ("index_q", "index_k", "head_weights")
    item = "query"
    case: IndexScoresCase

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """index_q, index_k, head_weights."""
        return make_index_scores_inputs(self.case)

    def form(self, arguments: Mapping[str, Any]) -> Form:
        """A score for every pair; float32 or the dtype of the queries."""
        q, k = arguments["index_q"], arguments["index_k"]
        shape, dtypes = (*q.shape[:2], k.shape[1]), (q.dtype, torch.float32)
        return Form(shape, tuple(dict.fromkeys(dtypes)), "[B, S, T]")

    def specified(self, arguments: Mapping[str, Any], noise: Any = None) -> Tensor:
        """Run the specification, one query and one entry at a time."""
        q, k, w = (arguments[name] for name in self.batched)
        scores = torch.zeros(*q.shape[:2], k.shape[1], dtype=torch.float64)
        for b in range(len(q)):
            for t in range(q.shape[1]):
                for s in range(k.shape[1]):
                    scores[b, t, s] = SPEC.index_score(q[b, t], w[b, t], k[b, s])
        return scores

    @cached_property
    def expected(self) -> tuple[Tensor, Tensor]:
        """Scores ``[B, S, T]`` in float64 and their budget."""
        exact = {name: tensor.double() for name, tensor in self.arguments.items()}
        arithmetic = Arithmetic.of(self.arguments["index_q"].dtype, self.capabilities.internal_dtype)
        q, k, w = (exact[name] for name in self.batched)
        rows = [index_score_budget(arithmetic, q[b], k[b], w[b]) for b in range(len(q))]
        return self.specified(exact), torch.stack(rows)

    def context(self, b: int, i: int) -> tuple[str, ...]:
        """Show the query's head weights."""
        weights = self.arguments["head_weights"][b, i].tolist()
        return (f"head weights          [{', '.join(f'{w:.4g}' for w in weights[:8])}]",)


def make_index_scores_inputs(case: IndexScoresCase) -> dict[str, Any]:
    """Make the tensors of a case, on the CPU."""
    seed, dtype = case.seed, dtype_of(case.dtype)
    shapes = {
        "index_q": (case.rows, case.queries, case.index_heads, case.index_head_dim),
        "index_k": (case.rows, case.entries, case.index_head_dim),
        "head_weights": (case.rows, case.queries, case.index_heads),
    }
    if case.values is ProductValues.INTEGERS:
        return {
            name: choice(seed, name, shape, (-2.0, -1.0, 1.0, 3.0)).to(dtype)
            for name, shape in shapes.items()
        }
    tensors = {name: normal(seed, name, shape) for name, shape in shapes.items()}
    if case.values is ProductValues.LARGE:
        tensors["index_q"], tensors["index_k"] = 16 * tensors["index_q"], 16 * tensors["index_k"]
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def kinds_of(trial: IndexScoresTrial) -> set[str]:
    """Return the kinds that a case belongs to."""
    case, found = trial.case, set(trial.case.regime)
    if case.rows > 1:
        found.add("several rows")
    if case.queries > 1:
        found.add("several queries")
    if case.index_heads > 1:
        found.add("several index heads")
    if case.entries == 0:
        found.add("no entries")
    if case.entries > 1:
        found.add("several entries")
    if (trial.arguments["head_weights"] < 0).any():
        found.add("negative head weight")
    q, k = trial.arguments["index_q"].double(), trial.arguments["index_k"].double()
    if (torch.einsum("bshd,btd->bsht", q, k) < 0).any():
        found.add("negative product")
    return found


REQUIRED = (
    *(str(one) for one in ProductValues),
    "several rows",
    "several queries",
    "several index heads",
    "no entries",
    "several entries",
    "negative head weight",
    "negative product",
)


def required(_: object, capabilities: Capabilities) -> list[str]:
    """Return the kinds of case that a run must reach, given what the candidate supports."""
    limits, without = capabilities.limits, set()
    for name, letter in (("several rows", "B"), ("several queries", "S"), ("several index heads", "HI")):
        if limits.get(letter, 2) < 2:
            without.add(name)
    if "T" in capabilities.multiples:
        without.add("no entries")
    return [
        name for name in REQUIRED if name not in without and ("index_scores", name) not in capabilities.lacks
    ]


INDEX_SCORES = Stage(
    "index_scores",
    IndexScoresTrial,
    (
        Check("specification", "the scores equal the specification's", equals_the_specification, False),
        ROWS,
        *MANNERS,
        Check(
            "limits",
            "what is declared away is refused or right",
            partial(limits_check, IndexScoresTrial),
            True,
        ),
    ),
    IndexScoresCase.fit,
    kinds_of,
    required,
    IndexScoresCase.parse,
    IndexScoresCase,
)
