"""What a stack records while it runs; above all what each layer publishes, and whose it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from csa_spec.spec.trace import Document, QueryTrace
from csa_spec.spec.v41.candidates import Blocks
from csa_spec.spec.v41.roles import LayerRole
from csa_spec.spec.v41.rope import Rotated


@dataclass(frozen=True, slots=True)
class Published:
    """What a layer has published of a document of S tokens so far, for later layers to read."""

    entries: Tensor | None = None
    """``[T, head_dim]``, normed and rotated; owners"""
    index_keys: Tensor | None = None
    """``[T, index_head_dim]``, normed and rotated; owners"""
    picks: Mapping[int, list[int]] | None = None
    """By query, ascending numbers of entries of the layer's owner; index sources"""
    candidates: Mapping[int, list[int]] | None = None
    """By query, ascending numbers of entries; the layer that chooses candidates"""


@dataclass(frozen=True, slots=True)
class Sources:
    """The layers whose publications a layer reads, its own number included; None where it reads none."""

    entries: int | None = None
    index_keys: int | None = None
    picks: int | None = None
    candidates: int | None = None


@dataclass(frozen=True, slots=True)
class LayerContext:
    """What all queries of one layer share: S tokens, of which T groups are complete.

    It is also what the layer keeps between calls. Of ``hidden`` only an incomplete group is needed then, of
    ``window_keys`` the last ``window - 1``.
    """

    layer: int
    role: LayerRole
    document: Document
    hidden: Tensor
    """``[S, hidden]``, the layer's input"""
    frequencies: Mapping[Rotated, Tensor]
    """``[rope_dim / 2]`` each, all the same"""
    window_keys: Tensor
    """``[S, head_dim]``, normed and rotated"""
    latents: Tensor
    """``[T, head_dim]``, normed, not rotated; T = 0 where the layer is no owner"""
    entries: Tensor
    """``[T, head_dim]``, normed and rotated; likewise"""
    index_keys: Tensor
    """``[T, index_head_dim]``, normed and rotated; likewise"""


@dataclass(frozen=True, slots=True)
class StackQueryTrace(QueryTrace):
    """How one query of one layer came to its output. ``selection`` ascends, and may be another layer's."""

    index_q: Tensor
    """``[index_heads, index_head_dim]``, rotated; empty where the layer scores nothing"""
    allowed: list[int]
    """Visible entries that it may pick from: fewer where it is restricted to candidates"""
    blocks: Blocks | None
    """How it chose candidates; None where the layer chooses none"""


@dataclass(frozen=True, slots=True)
class LayerTrace:
    """One layer on one document: what its queries share, read, did and published."""

    context: LayerContext
    sources: Sources
    queries: list[StackQueryTrace]
    """Those of this call, in their order"""
    published: Published
    """By this layer; of earlier calls, too"""
    last_keys: Tensor
    """The index keys that were published last, by this or any other layer. Right rules read them nowhere: they
    are here for a variant that does"""

    @property
    def out(self) -> Tensor:
        """``[queries, hidden]``."""
        return torch.stack([query.out for query in self.queries])


@dataclass(frozen=True, slots=True)
class StackDocumentTrace:
    """One document through all layers."""

    layers: list[LayerTrace]

    @property
    def document(self) -> Document:
        """Where it stands in its batch."""
        return self.layers[0].context.document

    @property
    def out(self) -> Tensor:
        """``[layers, queries, hidden]``."""
        return torch.stack([layer.out for layer in self.layers])


@dataclass(frozen=True, slots=True)
class StackTrace:
    """All documents of a batch, and the outputs of all layers."""

    out: Tensor
    """``[layers, B, S, hidden]``, zero at padding"""
    documents: list[StackDocumentTrace]
