"""Strategies for the rows of a batch: lengths, padding, packed documents, starts.

They are cached: building a strategy costs more than drawing from it.
"""

from __future__ import annotations

from functools import cache

from hypothesis import strategies as st

from csa_spec.stages.layer.case import Row


@cache
def lengths(compress_ratio: int) -> st.SearchStrategy[int]:
    """Lengths on both sides of whole blocks: shorter than one, exactly some, one more, one less, a tail."""
    most_blocks = 4 if compress_ratio <= 8 else 2
    blocks = st.integers(0, most_blocks)
    tails = st.sampled_from((1, 0, -1)) | st.integers(0, min(compress_ratio - 1, 20))
    return st.builds(lambda count, tail: max(1, count * compress_ratio + tail), blocks, tails)


@cache
def starts(compress_ratio: int) -> st.SearchStrategy[int]:
    """Positions of a first token: 0 mostly, on and off the grid of blocks, and far away."""
    return st.sampled_from((0, 0, 0, 0, 0, compress_ratio, 1, 3 * compress_ratio + 1, 1000))


@cache
def rows(compress_ratio: int) -> st.SearchStrategy[Row]:
    """One row: mostly one document from position 0; now and then packed, padded on the left, or shifted."""
    single = st.builds(lambda length: (length,), lengths(compress_ratio))
    packed = st.lists(lengths(compress_ratio), min_size=2, max_size=3).map(tuple)
    documents = st.one_of(single, single, single, single, packed)
    paddings = st.sampled_from((0, 0, 0, 0, 1, compress_ratio - 1, compress_ratio, compress_ratio + 1))
    return st.builds(Row, documents, paddings, starts(compress_ratio))


@cache
def batches(compress_ratio: int) -> st.SearchStrategy[tuple[Row, ...]]:
    """Up to three rows. Rows of different lengths are padded on the right."""
    most = 3 if compress_ratio <= 8 else 2
    row = rows(compress_ratio)
    # One row in half of the batches; a few batches of equal rows, which is what most callers have.
    several = st.lists(row, min_size=2, max_size=most).map(tuple)
    equal = st.builds(lambda each, count: (each,) * count, row, st.integers(2, most))
    alone = row.map(lambda single: (single,))
    return st.one_of(alone, several, alone, equal)
