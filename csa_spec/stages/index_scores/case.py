"""Cases of the stage ``index_scores``, and their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch

from csa_spec.engine.case import PER_QUERY, drawn, size
from csa_spec.engine.tensors import choice, dtype_of, normal, with_shared_rows
from csa_spec.stages.pages import PagedCase


class ProductValues(StrEnum):
    """What the products q . k of the heads look like."""

    INTEGERS = "integers"
    GAUSSIAN = "gaussian"
    """About half of the products are negative, and half of the head weights"""
    LARGE = "large"
    """Products up to thousands"""
    ZERO_WEIGHTS = "zero-weights"
    """About half of the head weights are 0.0 or -0.0"""


@dataclass(frozen=True, kw_only=True, repr=False)
class IndexScoresCase(PagedCase):
    """One trial of ``index_scores``."""

    stage = "index_scores"
    products = (("B", "S"), ("S", "T"), ("S", "HI"), ("HI", "DI"), ("T", "DI"), ("B", "T"))
    rows: int = size("B", 1, "rows")
    queries: int = size("S", 1, "queries")
    entries: int = size("T", 0, "entries")
    index_heads: int = size("HI", 1, "index heads")
    index_head_dim: int = size("DI", 1, "channels")
    values: ProductValues = drawn(ProductValues)
    forms = frozenset({"paged"})

    @property
    def numbers(self) -> Mapping[str, int]:
        """How many numbers it takes, by what they are for."""
        queries = self.rows * self.queries
        return {
            "index_q": queries * self.index_heads * self.index_head_dim,
            "index_k": self.rows * self.entries * self.index_head_dim,
            "pages": self.pages(self.rows, self.entries) * self.page * self.index_head_dim,
            "scores": queries * self.entries,
            "the work on each query": queries * self.index_heads * PER_QUERY,
        }


def make_index_scores_inputs(case: IndexScoresCase) -> dict[str, Any]:
    """Make the tensors of a case, on the CPU."""
    seed, dtype = case.seed, dtype_of(case.dtype)
    shapes = {
        "index_q": (case.rows, case.queries, case.index_heads, case.index_head_dim),
        "index_k": (case.rows, case.entries, case.index_head_dim),
        "head_weights": (case.rows, case.queries, case.index_heads),
    }
    if case.values is ProductValues.INTEGERS:
        tensors = {name: choice(seed, name, shape, (-2.0, -1.0, 1.0, 3.0)) for name, shape in shapes.items()}
    else:
        tensors = {name: normal(seed, name, shape) for name, shape in shapes.items()}
    if case.values is ProductValues.LARGE:
        tensors["index_q"], tensors["index_k"] = 16 * tensors["index_q"], 16 * tensors["index_k"]
    if case.values is ProductValues.ZERO_WEIGHTS:
        weights = tensors["head_weights"]
        tensors["head_weights"] = torch.where(weights.abs() < 0.7, 0 * weights, weights)  # of either sign
    shared = dict(zip(tensors, with_shared_rows(case, **tensors), strict=True))
    return {name: tensor.to(dtype) for name, tensor in shared.items()}
