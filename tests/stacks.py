"""Stacks of V4.1 layers on drawn numbers, for both oracles: what the tests of the specification share."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import second_oracle_v41
import torch
from torch import Tensor

from csa_spec.engine.tensors import choice, gaussian_weight, normal
from csa_spec.spec import Document, Yarn
from csa_spec.spec.v41 import (
    STACK_SPEC,
    StackGeometry,
    StackSpec,
    StackTrace,
    attend_stack,
    attend_stack_document,
)
from csa_spec.spec.v41.weights import stack_weight_shapes, stack_weights

Array: TypeAlias = npt.NDArray[np.float64]

VECTORS = Path(__file__).parent / "vectors" / "official-v41"

SIZES: dict[str, Any] = {
    "hidden": 7, "heads": 4, "head_dim": 8, "rope_dim": 4, "q_lora_rank": 5, "index_heads": 3,
    "index_head_dim": 6, "o_groups": 2, "o_lora_rank": 3,
}  # fmt: skip
"""A small layer without symmetries: no two sizes that could be mixed up are equal"""


class Scores(StrEnum):
    """What index scores look like."""

    FREE = "free"
    NEGATIVE = "negative"
    """All of them at most 0"""
    PLATEAU = "plateau"
    """One index head, so that many are exactly 0"""
    TIED = "tied"
    """All exactly 0: entries and blocks are taken in their order"""


@dataclass(frozen=True, slots=True)
class DrawnStack:
    """A stack and its inputs; ``hidden`` is ``[L, B, S, E]``, the other inputs ``[B, S]``."""

    geometry: StackGeometry
    hidden: Tensor
    positions: Tensor
    documents: Tensor
    named: list[dict[str, Tensor]]
    scores: Scores

    def run(self, spec: StackSpec = STACK_SPEC) -> StackTrace:
        """Run the specification."""
        weights = stack_weights(self.geometry, self.named)
        return attend_stack(self.hidden, weights, self.geometry, self.positions, self.documents, spec)

    def decode(self, *chunks: int, spec: StackSpec = STACK_SPEC) -> Tensor:
        """Run the specification on row 0 alone, in calls with so many tokens and then one by one."""
        past, outs, begin = None, [], 0
        weights, length = stack_weights(self.geometry, self.named), self.hidden.shape[2]
        document = Document(0, 0, length, int(self.positions[0, 0]))
        for count in (*chunks, *[1] * (length - sum(chunks))):
            tokens = self.hidden[:, 0, begin : begin + count]
            past = attend_stack_document(tokens, document, weights, self.geometry, spec, past)
            outs.append(past.out)
            begin += count
        return torch.cat(outs, dim=1)

    def arrays(self) -> list[dict[str, Array]]:
        """Return the weights for the second oracle."""
        return [{name: tensor.numpy() for name, tensor in named.items()} for named in self.named]

    def second(self) -> Array:
        """Run the second oracle."""
        geometry = dataclasses.asdict(self.geometry)
        arrays = self.hidden.numpy(), self.arrays(), geometry, self.positions.numpy(), self.documents.numpy()
        return second_oracle_v41.stack_batch(*arrays)


def make_stack(
    *rows: str,
    seed: int = 0,
    scores: Scores = Scores.FREE,
    scale: float = 1.0,
    whole_numbers: bool = False,
    **geometry: Any,
) -> DrawnStack:
    """Make a stack; a row is ``padding<length+length@start``, as ``2<5+6@4``, of which parts may be missing."""
    shape = StackGeometry(**(SIZES | geometry))
    positions, documents = rows_of(rows)
    hidden = normal(seed, "hidden", (shape.layers, *positions.shape, shape.hidden))
    if whole_numbers:
        hidden = choice(seed, "hidden", tuple(hidden.shape), (-2.0, -1.0, 1.0, 2.0))
    if scores is Scores.NEGATIVE:
        hidden = hidden.abs()
    named = []
    for layer in range(shape.layers):
        weights = {}
        for name, size in stack_weight_shapes(shape, layer).items():
            weights[name] = _weight(seed, f"{layer} {name}", name, size, whole_numbers)
        if "indexer.weights_proj" in weights:
            proj = weights["indexer.weights_proj"]
            if scores is Scores.NEGATIVE:
                proj = -proj.abs()
            elif scores is Scores.PLATEAU:
                proj[1:] = 0
            elif scores is Scores.TIED:
                proj = torch.zeros_like(proj)
            weights["indexer.weights_proj"] = proj
        named.append(weights)
    return DrawnStack(shape, hidden * scale, positions, documents, named, scores)


def _weight(seed: int, key: str, name: str, shape: tuple[int, ...], whole_numbers: bool) -> Tensor:
    role = name.rpartition(".")[2]
    if role == "k_norm" or (whole_numbers and "norm" in role):
        return (
            torch.ones(shape, dtype=torch.float64) if whole_numbers else 1 + 0.3 * normal(seed, key, shape)
        )
    if whole_numbers:
        return choice(seed, key, shape, (-1.0, 1.0, 2.0))
    return gaussian_weight(seed, key, name, shape)


def rows_of(rows: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Return positions and documents ``[B, S]`` of some rows, padded on the right to equal lengths."""
    positions, documents = [], []
    for row in rows:
        text, _, start = row.partition("@")
        left, _, lengths = text.rpartition("<")
        place, ids = [0] * int(left or 0), [-1] * int(left or 0)
        for number, length in enumerate(map(int, lengths.split("+"))):
            place += range(int(start or 0), int(start or 0) + length)
            ids += [number] * length
        positions.append(place)
        documents.append(ids)
    columns = max(map(len, positions))
    padded = [
        [row + [fill] * (columns - len(row)) for row in batch]
        for batch, fill in ((positions, 0), (documents, -1))
    ]
    return torch.tensor(padded[0]), torch.tensor(padded[1])


def draw_stack(seed: int) -> DrawnStack:
    """Draw a stack of 1 to 6 layers, and rows for it."""
    rng = random.Random(seed)
    ratios, owners, sources = _draw_layers(rng)
    size, top_k = rng.choice((1, 2, 2, 3)), rng.choice((0, 1, 2, 2, 3, 3, 5, 40))
    candidates: dict[str, Any] = {}
    of_last_owner = [layer for layer in sources if layer >= max(owners, default=0)]
    if of_last_owner and rng.random() < 0.7:
        candidates = {
            "candidate_source_layer": rng.choice((of_last_owner[0], *of_last_owner)),
            "candidate_blocks": max(1, -(-(top_k - 1) // size) + 1) + rng.choice((0, 0, 0, 1)),
            "candidate_block_size": size,
        }
    index_heads = rng.choice((1, 2, 3))
    return make_stack(
        *(_draw_row(rng) for _ in range(rng.choice((1, 1, 1, 2)))),
        seed=seed,
        scores=rng.choice((Scores.FREE, Scores.FREE, Scores.FREE, *Scores)),
        scale=rng.choice((1.0, 1.0, 1e-3, 4.0)),
        whole_numbers=rng.random() < 0.2,
        compress_ratios=ratios,
        kv_source_layers=owners,
        index_source_layers=sources,
        top_k=top_k,
        window=rng.choice((1, 2, 3, 5, 20)),
        yarn=rng.choice((None, Yarn(4.0, 16), Yarn(16.0, 64))),
        norm_eps=rng.choice((1e-20, 1e-20, 1e-6, 1e-2)),
        index_heads=index_heads,
        **candidates,
    )


def _draw_layers(rng: random.Random) -> tuple[list[int], list[int], list[int]]:
    ratios: list[int] = []
    owners: list[int] = []
    sources: list[int] = []
    for layer in range(rng.randint(1, 6)):
        roles = ["sliding"] + ["owner"] * 3 + ["reindex", "reuse"] * 3 * bool(owners)
        role = rng.choice(roles)
        if role == "owner":
            ratios.append(rng.choice((1, 2, 2, 3)))
            owners.append(layer)
        else:
            ratios.append(0 if role == "sliding" else ratios[owners[-1]])
        if role in ("owner", "reindex"):
            sources.append(layer)
    return ratios, owners, sources


def _draw_row(rng: random.Random) -> str:
    lengths = [rng.randint(1, 17)]
    if rng.random() < 0.3:
        lengths = [rng.randint(1, 8) for _ in range(rng.randint(2, 3))]
    padding = f"{rng.randint(1, 3)}<" if rng.random() < 0.2 else ""
    start = f"@{rng.choice((1, 4, 1000))}" if rng.random() < 0.3 else ""
    return padding + "+".join(map(str, lengths)) + start


def with_weight(stack: DrawnStack, layer: int, name: str, tensor: Tensor) -> DrawnStack:
    """Return the stack with one weight replaced."""
    named = [dict(weights) for weights in stack.named]
    named[layer][name] = tensor
    return replace(stack, named=named)
