"""A stack that there cannot be is refused with a sentence; so is what the official code takes for granted."""
# ruff: noqa: D103

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from csa_spec.spec import GeometryError
from csa_spec.spec.v41 import StackGeometry

GOOD: dict[str, Any] = {
    "compress_ratios": [0, 2, 2, 1, 1, 1],
    "kv_source_layers": [1, 3],
    "index_source_layers": [1, 3, 4],
    "candidate_source_layer": 3,
    "candidate_blocks": 2,
    "candidate_block_size": 3,
    "top_k": 4,
}

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"compress_ratios": []}, "compress_ratios must name at least one layer"),
    ({"compress_ratios": [0, -1]}, "layer 1 has the ratio -1, which must be an integer of at least 0"),
    ({"compress_ratios": [2.0]}, "layer 0 has the ratio 2.0, which must be an integer of at least 0"),
    ({"compress_ratios": [True]}, "layer 0 has the ratio True, which must be an integer of at least 0"),
    ({"kv_source_layers": [3, 1]}, "kv_source_layers [3, 1] must ascend without repetition"),
    ({"index_source_layers": [1, 3, 3]}, "index_source_layers [1, 3, 3] must ascend without repetition"),
    ({"index_source_layers": [1, 3, 6]}, "index_source_layers names layer 6 of a stack of 6 layers"),
    ({"kv_source_layers": [-1, 1, 3]}, "kv_source_layers names layer -1 of a stack of 6 layers"),
    ({"kv_source_layers": [0, 1, 3]}, "kv_source_layers names layer 0, which is a sliding layer"),
    ({"index_source_layers": [0, 1, 3]}, "index_source_layers names layer 0, which is a sliding layer"),
    (
        {"index_source_layers": [3, 4]},
        "layer 1 owns entries but is no index source, so that nobody would make its index keys",
    ),
    ({"kv_source_layers": [3]}, "layer 1 has the ratio 2 but no owner at or before it"),
    (
        {"compress_ratios": [0, 2, 1, 1, 1, 1]},
        "layer 2 has the ratio 1 but would read the entries of layer 1, whose ratio is 2",
    ),
    (
        {"kv_source_layers": [1], "index_source_layers": [1, 3]},
        "layer 3 has the ratio 1 but would read the entries of layer 1, whose ratio is 2",
    ),
    ({"candidate_source_layer": 5}, "candidate_source_layer 5 is no index source, so that it has no scores"),
    ({"candidate_source_layer": 9}, "candidate_source_layer 9 is no index source, so that it has no scores"),
    (
        {"candidate_source_layer": 1},
        "layer 3 would be restricted to candidates that layer 1 chose among the entries of another owner",
    ),
    (
        {"kv_source_layers": [1, 3, 4]},
        "layer 4 would be restricted to candidates that layer 3 chose among the entries of another owner",
    ),
    ({"candidate_blocks": 0}, "candidate_blocks 0 must be at least 1 where a layer chooses candidates"),
    (
        {"candidate_block_size": 0},
        "candidate_block_size 0 must be at least 1 where a layer chooses candidates",
    ),
    (
        {"top_k": 5},
        "2 blocks of 3 entries may leave 4 candidates, fewer than top_k 5: the official code would fill up with "
        "entries that are none",
    ),
    ({"window": 0}, "window 0 must be an integer of at least 1"),
    ({"candidate_source_layer": -2}, "candidate_source_layer -2 must be an integer of at least -1"),
    ({"heads": 3, "o_groups": 2}, "o_groups 2 must divide heads 3"),
    ({"rope_dim": 4}, "rope_dim 4 must be even and at most head_dim 2 and index_head_dim 2"),
    ({"rope_theta": 1.0}, "rope_theta and compress_rope_theta must be greater than 1"),
    ({"norm_eps": 0.0}, "norm_eps 0.0 must be positive"),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_what_the_official_code_takes_for_granted_is_checked(changes: dict[str, Any], sentence: str) -> None:
    assert StackGeometry(**GOOD).layers == 6
    with pytest.raises(GeometryError, match=f"^{re.escape(sentence)}$"):
        StackGeometry(**GOOD | changes)


def test_the_smallest_stack_is_one_sliding_layer() -> None:
    assert StackGeometry().compress_ratios == (0,)


def test_candidates_always_leave_top_k_entries_where_a_geometry_is_accepted() -> None:
    # The pinned block may hold one visible entry, every other kept block is full.
    geometry = StackGeometry(**GOOD)
    assert (geometry.candidate_blocks - 1) * geometry.candidate_block_size + 1 == geometry.top_k


def test_without_a_candidate_source_the_size_of_blocks_does_not_matter() -> None:
    none = replace(
        StackGeometry(**GOOD), candidate_source_layer=-1, candidate_blocks=0, candidate_block_size=0
    )
    assert replace(none, top_k=100).top_k == 100


def test_a_stack_does_not_change() -> None:
    geometry = StackGeometry(**GOOD)
    assert hash(geometry) == hash(StackGeometry(**GOOD))
    with pytest.raises(FrozenInstanceError):
        geometry.window = 2  # type: ignore[misc]
