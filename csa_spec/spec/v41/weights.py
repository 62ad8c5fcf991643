"""The weights of one layer of a stack, named as in the official ``inference/model.py`` of V4.1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from csa_spec.spec.v41.geometry import StackGeometry
from csa_spec.spec.v41.roles import LayerRole, layer_role
from csa_spec.spec.weights import OWN, own_shapes


@dataclass(frozen=True, slots=True)
class StackCompressorWeights:
    """Weights of an owner's compressor: no bias, and as many columns as an entry has channels."""

    wkv: Tensor
    """``[head_dim, hidden]``"""
    norm: Tensor
    """``[head_dim]``"""
    wgate: Tensor | None = None
    """``[head_dim, hidden]``; only where the ratio is above 1"""


@dataclass(frozen=True, slots=True)
class StackIndexerWeights:
    """Weights of an index source. Owners alone make index keys."""

    wq_b: Tensor
    """``[index_heads * index_head_dim, q_lora_rank]``"""
    weights_proj: Tensor
    """``[index_heads, hidden]``"""
    wk: Tensor | None = None
    """``[index_head_dim, head_dim]``, of the latent; owners only"""
    k_norm: Tensor | None = None
    """``[index_head_dim]``; owners only"""


@dataclass(frozen=True, slots=True)
class StackLayerWeights:
    """Weights of one layer. Linear maps are stored ``[out, in]``. What every layer has is as in V4."""

    wq_a: Tensor
    """``[q_lora_rank, hidden]``"""
    q_norm: Tensor
    """``[q_lora_rank]``"""
    wq_b: Tensor
    """``[heads * head_dim, q_lora_rank]``"""
    wkv: Tensor
    """``[head_dim, hidden]``, of the window"""
    kv_norm: Tensor
    """``[head_dim]``"""
    wo_a: Tensor
    """``[o_groups * o_lora_rank, heads * head_dim / o_groups]``"""
    wo_b: Tensor
    """``[hidden, o_groups * o_lora_rank]``"""
    attn_sink: Tensor
    """``[heads]``, logits"""
    compressor: StackCompressorWeights | None = None
    """Owners"""
    indexer: StackIndexerWeights | None = None
    """Index sources"""

    @classmethod
    def from_named(cls, tensors: Mapping[str, Tensor]) -> StackLayerWeights:
        """Build the weights from their official names in the layer, e.g. ``indexer.wk``.

        A missing name raises ``KeyError``; names that the layer does not have are left alone.
        """
        compressor = indexer = None
        if "compressor.wkv" in tensors:
            compressor = StackCompressorWeights(
                tensors["compressor.wkv"], tensors["compressor.norm"], tensors.get("compressor.wgate")
            )
        if "indexer.wq_b" in tensors:
            indexer = StackIndexerWeights(
                tensors["indexer.wq_b"],
                tensors["indexer.weights_proj"],
                tensors.get("indexer.wk"),
                tensors.get("indexer.k_norm"),
            )
        own = {name: tensors[name] for name in OWN}
        return cls(**own, compressor=compressor, indexer=indexer)


def stack_weights(
    geometry: StackGeometry, tensors: Sequence[Mapping[str, Tensor]]
) -> list[StackLayerWeights]:
    """Build the weights of all layers from their official names, exactly those that each layer has.

    Raises
    ------
    ValueError
        If a layer lacks a weight, has one that it does not use, or one of another shape.
    """
    if len(tensors) != geometry.layers:
        raise ValueError(f"weights of {len(tensors)} layers were given for a stack of {geometry.layers}")
    for layer, named in enumerate(tensors):
        got = {name: tuple(tensor.shape) for name, tensor in named.items()}
        expected = stack_weight_shapes(geometry, layer)
        for name in sorted(got.keys() | expected.keys()):
            if got.get(name) != expected.get(name):
                raise ValueError(
                    f"layer {layer}: {name} is {_shown(got.get(name))}, the geometry says "
                    f"{_shown(expected.get(name))}"
                )
    return [StackLayerWeights.from_named(named) for named in tensors]


def stack_weight_shapes(geometry: StackGeometry, layer: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of a layer by its official name."""
    g, role, shapes = geometry, layer_role(geometry, layer), own_shapes(geometry)
    if role is LayerRole.OWNER:
        shapes |= {"compressor.wkv": (g.head_dim, g.hidden), "compressor.norm": (g.head_dim,)}
        shapes |= {"indexer.wk": (g.index_head_dim, g.head_dim), "indexer.k_norm": (g.index_head_dim,)}
        if g.compress_ratios[layer] > 1:
            shapes["compressor.wgate"] = (g.head_dim, g.hidden)
    if role in (LayerRole.OWNER, LayerRole.REINDEX):
        shapes["indexer.wq_b"] = (g.index_heads * g.index_head_dim, g.q_lora_rank)
        shapes["indexer.weights_proj"] = (g.index_heads, g.hidden)
    return shapes


def _shown(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))
