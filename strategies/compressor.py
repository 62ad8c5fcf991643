"""Strategies and corner cases of the stage ``compressor``."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from hypothesis import strategies as st

from csa_spec.stages.compressor.case import Blocks, CompressorCase, Interpolation, TokenValues
from csa_spec.strategies.flat import SEEDS, any_of, draws
from csa_spec.strategies.sizes import Sweep


@cache
def compressor_cases() -> st.SearchStrategy[CompressorCase]:
    """Lengths on both sides of whole blocks."""
    return st.builds(
        CompressorCase,
        rows=st.sampled_from((1, 1, 2, 3)),
        blocks=st.sampled_from((0, 1, 2, 3, 5)),
        tail=st.sampled_from((0, 1, 2, 3, 7)),
        compress_ratio=st.sampled_from((1, 2, 3, 4, 4, 5, 6, 7, 8, 16)),
        hidden=st.integers(1, 12),
        head_dim=st.sampled_from((2, 4, 6, 8, 7)),
        rope_dim=st.sampled_from((2, 4, 6)),
        overlap=any_of(Blocks),
        values=any_of(TokenValues),
        interpolation=any_of(Interpolation),
        seed=SEEDS,
    )


PLAIN = CompressorCase.parse("compressor B=2 blocks=3 tail=1 m=4 E=6 D=8 R=6 overlap=csa values=gaussian")
BASES = (PLAIN, replace(PLAIN, rows=1, overlap=Blocks.HCA))
SPECIAL = (
    *(
        replace(PLAIN, blocks=blocks, tail=tail, overlap=overlap)
        for blocks, tail in ((0, 1), (0, 3), (1, 0), (1, 1), (2, 0), (2, 3), (6, 0))
        for overlap in Blocks
    ),
    replace(PLAIN, compress_ratio=1, tail=0),
    replace(PLAIN, compress_ratio=2, rope_dim=6, head_dim=6),
    replace(PLAIN, compress_ratio=16, blocks=2, tail=5, overlap=Blocks.HCA),
    replace(PLAIN, rows=1, compress_ratio=128, blocks=2, tail=1, overlap=Blocks.HCA),
)
_LARGE = replace(PLAIN, rows=1, tail=3, hidden=512, head_dim=512, rope_dim=64)
PRODUCTION = (
    replace(_LARGE, blocks=16, compress_ratio=4, overlap=Blocks.CSA),
    replace(_LARGE, blocks=2, compress_ratio=128, overlap=Blocks.HCA),
)


def _room(case: CompressorCase, letter: str) -> CompressorCase:
    """Return a case without large gates, and without sums that are 0 but for rounding.

    Of a hundred thousand such entries, some are off by more than a tolerance that few exceed.
    """
    return replace(case, values=TokenValues.GAUSSIAN)


SWEEP: Sweep[CompressorCase] = Sweep(
    {"B": 65536, "blocks": 65536, "tail": 256, "m": 512, "E": 4096, "D": 4096, "R": 512}, 32768, _room
)
DRAWS = draws(compressor_cases, BASES, SPECIAL, PRODUCTION, sweep=SWEEP)
