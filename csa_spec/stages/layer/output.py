"""What a layer takes and returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from csa_spec.spec import Geometry, LayerWeights


@dataclass(frozen=True, slots=True)
class LayerOutput:
    """What a layer returns if it also shows how it got there. Everything but ``out`` is optional.

    What is exposed is used to name the first stage that differs, and to judge ambiguous queries strictly.
    Entry and key indices are those of rows that hold one document from their first column on.
    """

    out: Tensor
    """``[B, S, hidden]``"""
    entries: Tensor | None = None
    """``[B, T, head_dim]``, normed and rotated"""
    index_scores: Tensor | None = None
    """``[B, S, T]``; scores of invisible entries are ignored"""
    selection: Tensor | None = None
    """``[B, S, n]``, entry indices, -1 = none"""
    probabilities: Tensor | None = None
    """``[B, heads, S, S + T]``: tokens, then entries; the sink is not a column"""


class LayerStage(Protocol):
    """A whole attention layer, batched."""

    def __call__(
        self,
        hidden: Tensor,
        weights: LayerWeights,
        geometry: Geometry,
        positions: Tensor,
        documents: Tensor,
        /,
    ) -> Tensor | LayerOutput:
        """Return the layer's output for a batch.

        Parameters
        ----------
        hidden
            ``[B, S, hidden]``, after the layer's input norm. Padding, which is on the left or right of a row,
            holds numbers like those of tokens; no output may depend on them.
        weights, geometry
            The layer; weights have the dtype and device of ``hidden``.
        positions
            ``[B, S]`` int64, absolute and 0-based; always 0 at padding, which must not be taken for a token
            at the beginning.
        documents
            ``[B, S]`` int64, the document in its row that each token belongs to, from 0 on; -1 at padding.
        """
