"""Rotary position embedding: its algebra, its table, and YaRN."""
# ruff: noqa: D103

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import second_oracle
import torch
from oracles import TOLERANCE, error
from torch import Tensor

from csa_spec.spec import Geometry, LayerKind, Yarn
from csa_spec.spec.rope import layer_frequencies, rope_frequencies, rotate

FREQUENCIES = rope_frequencies(6, 100.0, None)


@pytest.fixture
def vectors() -> Tensor:
    return torch.randn(5, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_one_pair_turns_by_its_angle_counterclockwise() -> None:
    quarter = torch.tensor([torch.pi / 2], dtype=torch.float64)
    turned = rotate(torch.tensor([7.0, 1.0, 0.0], dtype=torch.float64), 1, quarter)
    assert error(turned, np.array([7.0, 0.0, 1.0])) <= TOLERANCE


def test_neighbouring_channels_form_a_pair() -> None:
    # One unit vector per trailing channel: a rotation reaches the channel itself and its neighbour, no other.
    reached = rotate(torch.eye(9, dtype=torch.float64), 1, FREQUENCIES) != 0
    pairs = [{0}, {1}, {2}, {3, 4}, {3, 4}, {5, 6}, {5, 6}, {7, 8}, {7, 8}]
    assert [set(row.nonzero().flatten().tolist()) for row in reached] == pairs


def test_leading_channels_are_left_as_they_are(vectors: Tensor) -> None:
    assert torch.equal(rotate(vectors, 12, FREQUENCIES)[:, :3], vectors[:, :3])


def test_a_vector_without_leading_channels_is_rotated_whole(vectors: Tensor) -> None:
    whole = vectors[:, 3:]
    assert torch.equal(rotate(whole, 12, FREQUENCIES), rotate(vectors, 12, FREQUENCIES)[:, 3:])


def test_position_0_changes_nothing(vectors: Tensor) -> None:
    assert torch.equal(rotate(vectors, 0, FREQUENCIES), vectors)


def test_a_negative_position_rotates_back(vectors: Tensor) -> None:
    assert error(rotate(rotate(vectors, 9, FREQUENCIES), -9, FREQUENCIES), vectors) <= TOLERANCE


def test_products_depend_on_the_difference_of_positions_only(vectors: Tensor) -> None:
    near = rotate(vectors, 3, FREQUENCIES) @ rotate(vectors, 1, FREQUENCIES).T
    far = rotate(vectors, 12, FREQUENCIES) @ rotate(vectors, 10, FREQUENCIES).T
    assert error(far, near) <= TOLERANCE
    assert error(rotate(vectors, 12, FREQUENCIES) @ rotate(vectors, 11, FREQUENCIES).T, near) > 1e-3


def test_yarn_of_the_released_layers_leaves_16_pairs_alone_and_slows_7_down_by_16() -> None:
    plain = rope_frequencies(64, 160_000.0, None)
    ratio = (plain / rope_frequencies(64, 160_000.0, Yarn())).tolist()
    assert ratio[:16] == [1.0] * 16
    assert ratio[25:] == pytest.approx([16.0] * 7, rel=TOLERANCE)
    assert all(1 < slower < faster < 16 for slower, faster in itertools.pairwise(ratio[16:25]))


@pytest.mark.parametrize("rope_dim", [2, 4, 8, 64])
@pytest.mark.parametrize("theta", [1.5, 100.0, 10_000.0, 160_000.0])
def test_both_oracles_blend_frequencies_alike_even_where_the_ramp_is_empty_or_reversed(
    rope_dim: int, theta: float
) -> None:
    for factor, length, fast, slow in itertools.product(
        (2.0, 16.0), (1, 4, 64, 65536), (32.0, 4.0, 1.5), (1.0, 0.25)
    ):
        yarn = Yarn(factor, length, fast, slow)
        theirs = second_oracle.rope_frequencies(rope_dim, theta, dataclasses.asdict(yarn))
        assert error(rope_frequencies(rope_dim, theta, yarn), theirs) <= TOLERANCE, yarn


@pytest.mark.parametrize("kind", list(LayerKind))
def test_only_sliding_layers_use_the_base_theta_and_never_yarn(kind: LayerKind) -> None:
    geometry = Geometry(kind=kind, head_dim=8, rope_dim=8, index_head_dim=8, yarn=Yarn(4.0, 64))
    if kind is LayerKind.SLIDING:
        expected = rope_frequencies(8, 10_000.0, None)
    else:
        expected = rope_frequencies(8, 160_000.0, Yarn(4.0, 64))
        assert not torch.equal(expected, rope_frequencies(8, 160_000.0, None))
    assert torch.equal(layer_frequencies(geometry), expected)
