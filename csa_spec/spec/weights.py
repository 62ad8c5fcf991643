"""The weights of one layer, named as in the official ``inference/model.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from csa_spec.spec.geometry import Geometry, LayerKind

if TYPE_CHECKING:
    from csa_spec.spec.v41.geometry import StackGeometry


@dataclass(frozen=True, slots=True)
class CompressorWeights:
    """Weights of a compressor. ``C`` is 2d where blocks overlap (CSA) and d otherwise (HCA).

    With overlap, columns ``[:d]`` serve a token's *previous* role (pooled into the next block's entry) and
    columns ``[d:]`` its *current* role. The paper calls these b and a; transformers calls them Ca and Cb.
    """

    wkv: Tensor
    """``[C, hidden]``"""
    wgate: Tensor
    """``[C, hidden]``"""
    ape: Tensor
    """``[compress_ratio, C]``, added to the pooling logits by the token's place in its own block"""
    norm: Tensor
    """``[d]``"""


@dataclass(frozen=True, slots=True)
class IndexerWeights:
    """Weights of the lightning indexer (CSA only)."""

    wq_b: Tensor
    """``[index_heads * index_head_dim, q_lora_rank]``"""
    weights_proj: Tensor
    """``[index_heads, hidden]``"""
    compressor: CompressorWeights


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Weights of one attention layer. Linear maps are stored ``[out, in]``, as in ``torch.nn.Linear``."""

    wq_a: Tensor
    """``[q_lora_rank, hidden]``"""
    q_norm: Tensor
    """``[q_lora_rank]``"""
    wq_b: Tensor
    """``[heads * head_dim, q_lora_rank]``"""
    wkv: Tensor
    """``[head_dim, hidden]``"""
    kv_norm: Tensor
    """``[head_dim]``"""
    wo_a: Tensor
    """``[o_groups * o_lora_rank, heads * head_dim / o_groups]``"""
    wo_b: Tensor
    """``[hidden, o_groups * o_lora_rank]``"""
    attn_sink: Tensor
    """``[heads]``, logits"""
    compressor: CompressorWeights | None = None
    """CSA and HCA layers"""
    indexer: IndexerWeights | None = None
    """CSA layers"""

    def named(self) -> dict[str, Tensor]:
        """Return the tensors by their official names, e.g. ``indexer.compressor.wkv``."""
        return dict(_flatten(self, ""))

    @classmethod
    def from_named(cls, tensors: Mapping[str, Tensor]) -> LayerWeights:
        """Build the weights from official names; a missing name raises ``KeyError``."""
        compressor = indexer = None
        if "compressor.wkv" in tensors:
            compressor = _compressor(tensors, "compressor.")
        if "indexer.wq_b" in tensors:
            indexer = IndexerWeights(
                tensors["indexer.wq_b"],
                tensors["indexer.weights_proj"],
                _compressor(tensors, "indexer.compressor."),
            )
        own = {name: tensors[name] for name in OWN}
        return cls(**own, compressor=compressor, indexer=indexer)


OWN = ("wq_a", "q_norm", "wq_b", "wkv", "kv_norm", "wo_a", "wo_b", "attn_sink")
"""What every layer has, also in V4.1"""


def weight_shapes(geometry: Geometry) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of a layer by its official name."""
    g, shapes = geometry, own_shapes(geometry)
    if g.kind is not LayerKind.SLIDING:
        shapes |= compressor_shapes("compressor.", g, g.head_dim)
    if g.kind is LayerKind.CSA:
        shapes["indexer.wq_b"] = (g.index_heads * g.index_head_dim, g.q_lora_rank)
        shapes["indexer.weights_proj"] = (g.index_heads, g.hidden)
        shapes |= compressor_shapes("indexer.compressor.", g, g.index_head_dim)
    return shapes


def own_shapes(geometry: Geometry | StackGeometry) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights that every layer has, also in V4.1, by their official names."""
    g = geometry
    return {
        "wq_a": (g.q_lora_rank, g.hidden),
        "q_norm": (g.q_lora_rank,),
        "wq_b": (g.heads * g.head_dim, g.q_lora_rank),
        "wkv": (g.head_dim, g.hidden),
        "kv_norm": (g.head_dim,),
        "wo_a": (g.o_groups * g.o_lora_rank, g.heads * g.head_dim // g.o_groups),
        "wo_b": (g.hidden, g.o_groups * g.o_lora_rank),
        "attn_sink": (g.heads,),
    }


def compressor_shapes(prefix: str, geometry: Geometry, dim: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one compressor's weights, whose entries have ``dim`` channels."""
    columns = 2 * dim if geometry.overlap else dim
    return {
        prefix + "wkv": (columns, geometry.hidden),
        prefix + "wgate": (columns, geometry.hidden),
        prefix + "ape": (geometry.compress_ratio, columns),
        prefix + "norm": (dim,),
    }


def _compressor(tensors: Mapping[str, Tensor], prefix: str) -> CompressorWeights:
    return CompressorWeights(*(tensors[prefix + name] for name in ("wkv", "wgate", "ape", "norm")))


def _flatten(
    part: LayerWeights | IndexerWeights | CompressorWeights, prefix: str
) -> list[tuple[str, Tensor]]:
    flat: list[tuple[str, Tensor]] = []
    for name in part.__slots__:
        value = getattr(part, name)
        if isinstance(value, Tensor):
            flat.append((prefix + name, value))
        elif value is not None:
            flat += _flatten(value, f"{prefix}{name}.")
    return flat
