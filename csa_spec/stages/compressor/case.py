"""Cases of the stage ``compressor``, and their tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from csa_spec.engine.case import PER_QUERY, Case, drawn, size
from csa_spec.engine.tensors import choice, dtype_of, gaussian_weight, normal, with_shared_rows
from csa_spec.spec import CompressorWeights, Geometry, LayerKind, Yarn, compressor_shapes


class Blocks(StrEnum):
    """Whether an entry also pools the block before its own."""

    HCA = "hca"
    CSA = "csa"


class TokenValues(StrEnum):
    """How hidden states and weights are drawn."""

    INTEGERS = "integers"
    GAUSSIAN = "gaussian"
    LARGE_GATES = "large-gates"
    """Pooling logits up to hundreds: exp overflows without a running maximum"""
    FAR_GATES = "far-gates"
    """All pooling logits near -20000: -1e4 in the place of -inf is no mask any more"""


class Interpolation(StrEnum):
    """The rotary frequencies."""

    PLAIN = "no-yarn"
    YARN = "yarn"


@dataclass(frozen=True, kw_only=True, repr=False)
class CompressorCase(Case):
    """One trial of ``compressor``."""

    stage = "compressor"
    products = (("B", "blocks"), ("blocks", "m"), ("B", "m"), ("m", "D"), ("E", "D"))
    rows: int = size("B", 1, "rows")
    blocks: int = size("blocks", 0, "complete blocks")
    tail: int = size("tail", 0, "tokens after them")
    compress_ratio: int = size("m", 1, "tokens per entry", bucketed=False)
    hidden: int = size("E", 1, "hidden")
    head_dim: int = size("D", 2, "channels")
    rope_dim: int = size("R", 2, "rotated channels", multiple=2)
    """Odd ones, and more than there are channels, are rounded down"""
    overlap: Blocks = drawn(Blocks)
    values: TokenValues = drawn(TokenValues)
    interpolation: Interpolation = drawn(Interpolation)

    def _complete(self) -> None:
        """Rotate pairs of channels that there are."""
        object.__setattr__(self, "rope_dim", min(self.rope_dim, self.head_dim) // 2 * 2)

    @classmethod
    def parse(cls, text: str) -> CompressorCase:
        """Read a case; ``pairs=2`` of release 0.1.0 is ``R=4``."""
        words = text.split()
        pairs = [word.removeprefix("pairs=") for word in words if word.startswith("pairs=")]
        if pairs and pairs[0].isdecimal():
            words = [f"R={2 * int(pairs[0])}" if word == f"pairs={pairs[0]}" else word for word in words]
        return super().parse(" ".join(words))

    def with_sizes(self, sizes: Mapping[str, int]) -> CompressorCase:
        """Return the case with other sizes; there are as many channels as are rotated."""
        channels = max(sizes.get("R", 2), sizes.get("D", self.head_dim))
        return super().with_sizes({**sizes, "D": channels} if "R" in sizes else sizes)

    @property
    def numbers(self) -> Mapping[str, int]:
        """How many numbers it takes, by what they are for."""
        tokens, shapes = self.rows * self.tokens, compressor_shapes("", self.geometry, self.head_dim)
        return {
            "hidden states": tokens * (self.hidden + 4 * self.head_dim),
            "weights": sum(map(math.prod, shapes.values())),
            "the work on each entry": self.rows * self.blocks * (self.head_dim + PER_QUERY),
        }

    @property
    def tokens(self) -> int:
        """S, at least 1."""
        return max(1, self.blocks * self.compress_ratio + min(self.tail, self.compress_ratio - 1))

    @property
    def geometry(self) -> Geometry:
        """The layer that the compressor belongs to."""
        yarn = self.interpolation is Interpolation.YARN
        return Geometry(
            kind=LayerKind(str(self.overlap)),
            compress_ratio=self.compress_ratio,
            hidden=self.hidden,
            head_dim=self.head_dim,
            rope_dim=self.rope_dim,
            index_head_dim=self.head_dim,
            yarn=Yarn(factor=4.0, original_max_position=64) if yarn else None,
        )


def make_compressor_inputs(case: CompressorCase) -> dict[str, Any]:
    """Make the tensors of a case, on the CPU."""
    geometry, seed, dtype = case.geometry, case.seed, dtype_of(case.dtype)
    shape = (case.rows, case.tokens, case.hidden)
    shapes = compressor_shapes("", geometry, case.head_dim)
    if case.values is TokenValues.INTEGERS:
        hidden = choice(seed, "hidden", shape, (-2.0, -1.0, 1.0, 2.0))
        numbers = {
            "norm": (1.0,),
            "ape": (-1.0, 0.0, 1.0),
            "wkv": (-1.0, 1.0, 2.0),
            "wgate": (-1.0, 1.0, 2.0),
        }
        weights = {name: choice(seed, name, shapes[name], numbers[name]) for name in shapes}
    else:
        hidden = normal(seed, "hidden", shape)
        weights = {name: gaussian_weight(seed, name, name, shapes[name]) for name in shapes}
    if case.values is TokenValues.LARGE_GATES:
        weights["wgate"], weights["ape"] = 100 * weights["wgate"], 100 * weights["ape"]
    elif case.values is TokenValues.FAR_GATES:
        weights["ape"] = weights["ape"] - 20_000
    (hidden,) = with_shared_rows(case, hidden=hidden)
    return {
        "hidden": hidden.to(dtype),
        "weights": CompressorWeights(**{name: tensor.to(dtype) for name, tensor in weights.items()}),
        "geometry": geometry,
    }
