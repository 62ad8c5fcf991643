"""Weights go by their official names, and every layer kind has exactly those that it uses."""
# ruff: noqa: D103

from __future__ import annotations

import pytest
import torch
from oracles import VECTORS, small_inputs
from safetensors.torch import load_file

from csa_spec.spec import Geometry, LayerKind, LayerWeights, weight_shapes


@pytest.mark.parametrize("kind", list(LayerKind))
def test_names_and_tensors_survive_the_way_there_and_back(kind: LayerKind) -> None:
    named = small_inputs(kind, "1")[0].weights.named()
    again = LayerWeights.from_named(named).named()
    assert list(again) == list(named)
    assert all(again[name] is named[name] for name in named)


@pytest.mark.parametrize("kind", list(LayerKind))
def test_every_weight_has_its_listed_shape(kind: LayerKind) -> None:
    inputs, geometry = small_inputs(kind, "1")
    assert {name: tuple(tensor.shape) for name, tensor in inputs.weights.named().items()} == weight_shapes(
        geometry
    )


@pytest.mark.parametrize(
    ("kind", "parts"), [("csa", {"compressor", "indexer"}), ("hca", {"compressor"}), ("sliding", set())]
)
def test_layers_have_the_parts_of_their_kind_only(kind: str, parts: set[str]) -> None:
    weights = small_inputs(kind, "1")[0].weights
    assert {part for part in ("compressor", "indexer") if getattr(weights, part) is not None} == parts


@pytest.mark.parametrize("kind", list(LayerKind))
def test_a_missing_weight_is_refused_by_its_name(kind: LayerKind) -> None:
    named = small_inputs(kind, "1")[0].weights.named()
    switches = {"compressor.wkv", "indexer.wq_b"}  # without these the layer has no such part
    for name in named.keys() - switches:
        with pytest.raises(KeyError, match=name.replace(".", r"\.")):
            LayerWeights.from_named({other: tensor for other, tensor in named.items() if other != name})


@pytest.mark.parametrize(
    ("file", "kind", "ratio"),
    [("csa_window8_top3", "csa", 4), ("hca_ratio8", "hca", 8), ("sliding_window8", "sliding", 1)],
)
def test_names_and_shapes_are_those_of_the_official_code(file: str, kind: str, ratio: int) -> None:
    geometry = Geometry(
        kind=LayerKind(kind), compress_ratio=ratio, window=8, top_k=3, hidden=24, heads=4, head_dim=16, rope_dim=8,
        q_lora_rank=12, index_heads=8, index_head_dim=16, o_groups=2, o_lora_rank=6,
    )  # fmt: skip
    official = {
        name.removeprefix("weights.").removesuffix(".weight"): tuple(tensor.shape)
        for name, tensor in load_file(VECTORS / f"{file}.safetensors").items()
        if name.startswith("weights.")
    }
    assert weight_shapes(geometry) == official


def test_the_columns_of_a_compressor_are_doubled_where_blocks_overlap() -> None:
    shapes = {kind: weight_shapes(small_inputs(kind, "1")[1]) for kind in ("csa", "hca")}
    assert shapes["csa"]["compressor.wkv"] == (16, 7)
    assert shapes["csa"]["indexer.compressor.ape"] == (3, 12)
    assert shapes["hca"]["compressor.wkv"] == (8, 7)
    assert torch.Size(shapes["hca"]["compressor.norm"]) == torch.Size([8])
