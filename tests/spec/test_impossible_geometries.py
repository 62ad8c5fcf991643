"""A geometry that no layer can have is refused with a sentence that names field, value and rule."""
# ruff: noqa: D103

from __future__ import annotations

import math
import re
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from csa_spec.spec import Geometry, GeometryError, LayerKind, Yarn

LEAST: dict[str, Any] = {
    "compress_ratio": 1, "top_k": 0, "window": 1, "hidden": 1, "heads": 1, "head_dim": 2, "rope_dim": 2,
    "q_lora_rank": 1, "index_heads": 1, "index_head_dim": 2, "o_groups": 1, "o_lora_rank": 1,
}  # fmt: skip


def says(sentence: str) -> str:
    return f"^{re.escape(sentence)}$"


@pytest.mark.parametrize(("name", "least"), LEAST.items())
def test_a_size_below_its_least_is_refused(name: str, least: int) -> None:
    for value in (least - 1, -5):
        sizes: dict[str, Any] = {name: value}
        with pytest.raises(
            GeometryError, match=says(f"{name} {value} must be an integer of at least {least}")
        ):
            Geometry(**sizes)


@pytest.mark.parametrize("name", LEAST)
@pytest.mark.parametrize("value", [4.0, True, "4", None])
def test_a_size_that_is_no_integer_is_refused(name: str, value: Any) -> None:
    sentence = f"{name} {value!r} must be an integer of at least {LEAST[name]}"
    with pytest.raises(GeometryError, match=says(sentence)):
        Geometry(**{name: value})


def test_every_size_may_be_its_least() -> None:
    for kind in LayerKind:
        geometry = Geometry(kind=kind, **LEAST)
        assert {name: getattr(geometry, name) for name in LEAST} == LEAST


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"rope_dim": 3, "head_dim": 4}, "rope_dim 3 must be even and at most head_dim 4"),
        ({"rope_dim": 6, "head_dim": 5}, "rope_dim 6 must be even and at most head_dim 5"),
        ({"rope_dim": 4, "head_dim": 4}, "rope_dim 4 must be at most index_head_dim 2"),
        ({"heads": 4, "o_groups": 3}, "o_groups 3 must divide heads 4"),
        ({"heads": 2, "o_groups": 4}, "o_groups 4 must divide heads 2"),
        ({"rope_theta": 1.0}, "rope_theta and compress_rope_theta must be greater than 1"),
        ({"compress_rope_theta": 0.5}, "rope_theta and compress_rope_theta must be greater than 1"),
        ({"rope_theta": math.nan}, "rope_theta and compress_rope_theta must be greater than 1"),
        ({"norm_eps": 0.0}, "norm_eps 0.0 must be positive"),
        ({"norm_eps": -1e-6}, "norm_eps -1e-06 must be positive"),
        ({"norm_eps": math.nan}, "norm_eps nan must be positive"),
        ({"kind": "gqa"}, "layer kind 'gqa' is none of csa, hca, sliding"),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_refused(sizes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(GeometryError, match=says(sentence)):
        Geometry(**sizes)


@pytest.mark.parametrize("kind", [LayerKind.HCA, LayerKind.SLIDING])
def test_only_layers_with_an_indexer_need_index_heads_as_wide_as_the_rotation(kind: LayerKind) -> None:
    assert Geometry(kind=kind, rope_dim=4, head_dim=4, index_head_dim=2).rope_dim == 4


def test_the_rotation_may_take_whole_heads() -> None:
    assert Geometry(rope_dim=6, head_dim=6, index_head_dim=6).rope_dim == 6


@pytest.mark.parametrize("factor", [0.0, -2.0])
def test_yarn_without_a_positive_factor_is_refused(factor: float) -> None:
    sentence = f"YaRN needs a positive factor and original_max_position, not {factor} and 64"
    with pytest.raises(GeometryError, match=says(sentence)):
        Yarn(factor, 64)


def test_yarn_without_an_original_context_is_refused() -> None:
    sentence = "YaRN needs a positive factor and original_max_position, not 4.0 and 0"
    with pytest.raises(GeometryError, match=says(sentence)):
        Yarn(4.0, 0)


@pytest.mark.parametrize(
    ("fast", "slow"), [(1.0, 1.0), (1.0, 32.0), (32.0, 0.0), (-1.0, -2.0), (math.nan, 1.0)]
)
def test_yarn_with_betas_out_of_order_is_refused(fast: float, slow: float) -> None:
    with pytest.raises(
        GeometryError, match=says(f"YaRN needs beta_fast > beta_slow > 0, not {fast} and {slow}")
    ):
        Yarn(4.0, 64, fast, slow)


def test_a_refusal_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="window"):
        Geometry(window=0)


def test_a_kind_may_be_given_by_name() -> None:
    assert [Geometry(kind=kind).kind for kind in ("csa", "hca", "sliding")] == list(LayerKind)  # type: ignore[arg-type]
    assert Geometry(kind="csa").kind is LayerKind.CSA  # type: ignore[arg-type]


def test_a_geometry_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Geometry().window = 2  # type: ignore[misc]


def test_the_softmax_scale_is_that_of_the_whole_head() -> None:
    assert Geometry(head_dim=16, yarn=Yarn()).scale == 0.25


def test_only_csa_layers_overlap() -> None:
    assert [Geometry(kind=kind).overlap for kind in LayerKind] == [True, False, False]


@pytest.mark.parametrize("kind", [LayerKind.CSA, LayerKind.HCA])
def test_a_partial_block_gives_no_entry(kind: LayerKind) -> None:
    geometry = Geometry(kind=kind, compress_ratio=4)
    assert [geometry.entry_count(length) for length in range(13)] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3]
