"""Drawing tensors: deterministic, on the CPU, in float64, one generator per tensor."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

from csa_spec.engine.case import Case
from csa_spec.plug.layouts import Layout

NORMS = ("norm", "q_norm", "kv_norm")
"""Roles of weights that are gains of a norm"""


def generator(seed: int, name: str) -> torch.Generator:
    """One generator per tensor, so that a change of one shape leaves the other tensors as they are."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))


def normal(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """Draw a tensor from the standard normal distribution, in float64."""
    return torch.randn(shape, generator=generator(seed, name), dtype=torch.float64)


def choice(seed: int, name: str, shape: tuple[int, ...], options: tuple[float, ...]) -> Tensor:
    """Draw each element of a tensor out of a few numbers, in float64."""
    indices = torch.randint(len(options), shape, generator=generator(seed, name))
    return torch.tensor(options, dtype=torch.float64)[indices]


def gaussian_weight(seed: int, key: str, name: str, shape: tuple[int, ...]) -> Tensor:
    """Draw a weight by its role, the last part of its name; ``key`` names the draw."""
    role = name.rpartition(".")[2]
    drawn = normal(seed, key, shape)
    if role in NORMS:
        return 1 + 0.3 * drawn
    if role in ("ape", "attn_sink"):
        return drawn
    return drawn / math.sqrt(shape[-1])


def with_shared_rows(case: Case, **tensors: Tensor) -> list[Tensor]:
    """Return tensors ``[B, ...]``, of which some have their first row in every row if rows are to be expanded.

    Which ones, the seed says; one at least.
    """
    chosen = case.seed % (2 ** len(tensors) - 1) + 1 if case.layout is Layout.EXPANDED else 0
    return [
        tensor[:1].expand_as(tensor).clone() if chosen >> number & 1 else tensor
        for number, tensor in enumerate(tensors.values())
    ]


def dtype_of(name: str) -> torch.dtype:
    """Return a dtype by its name."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype
