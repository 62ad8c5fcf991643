"""The two oracles on the same numbers: what the tests of the specification share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import second_oracle
import torch
from torch import Tensor

from csa_spec.spec import Geometry, LayerKind, LayerWeights
from csa_spec.stages.layer.case import LayerCase, Row, Scores, Sinks, Values
from csa_spec.stages.layer.inputs import Inputs, make_inputs

Array: TypeAlias = npt.NDArray[np.float64]

VECTORS = Path(__file__).parent / "vectors" / "official"

TOLERANCE = 1e-12
"""Relative to the scale of what is compared. Both oracles compute in float64, in another order: a few hundred
roundings of 1.1e-16, which a logit of up to about 60 multiplies in the softmax, a position of about 1000 in the
angle of a rotation, and a norm wherever its vector nearly cancels (up to 1/sqrt(eps) = 1000, but then rarely).
The largest error among 12000 random cases was 3.5e-13, of a query; most are below 1e-15."""


def small_case(
    kind: str,
    *rows: str,
    values: Values = Values.GAUSSIAN,
    scores: Scores = Scores.FREE,
    sinks: Sinks = Sinks.DRAWN,
    seed: int = 0,
    **geometry: Any,
) -> LayerCase:
    """Return a case of a small layer without symmetries (no two of its sizes that could be mixed up are equal)."""
    sizes = {
        "compress_ratio": 3, "top_k": 2, "window": 4, "hidden": 7, "heads": 4, "head_dim": 8, "rope_dim": 4,
        "q_lora_rank": 5, "index_heads": 3, "index_head_dim": 6, "o_groups": 2, "o_lora_rank": 3,
    }  # fmt: skip
    return LayerCase.of(
        Geometry(kind=LayerKind(kind), **(sizes | geometry)),
        rows=tuple(map(Row.parse, rows)),
        values=values,
        scores=scores,
        sinks=sinks,
        seed=seed,
        dtype="float64",
    )


def small_inputs(kind: str, *rows: str, **changes: Any) -> tuple[Inputs, Geometry]:
    """Return the tensors of a small case, and its geometry."""
    case = small_case(kind, *rows, **changes)
    return make_inputs(case), case.geometry


def with_weights(weights: LayerWeights, **changes: Tensor) -> LayerWeights:
    """Return the weights with some replaced; a name has ``__`` for each dot, e.g. ``indexer__wq_b``."""
    return LayerWeights.from_named(
        weights.named() | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    )


def second_layer(
    hidden: Tensor,
    weights: LayerWeights,
    geometry: Geometry,
    start: int = 0,
    selection: list[list[int]] | None = None,
) -> second_oracle.Result:
    """Run the second oracle on one document."""
    return second_oracle.layer(
        hidden.numpy(), _arrays(weights), dataclasses.asdict(geometry), start, selection
    )


def second_batch(inputs: Inputs, geometry: Geometry) -> Array:
    """Run the second oracle on a batch."""
    return second_oracle.batch(
        inputs.hidden.numpy(),
        _arrays(inputs.weights),
        dataclasses.asdict(geometry),
        inputs.positions.numpy(),
        inputs.documents.numpy(),
    )


def error(ours: Tensor | Array, theirs: Tensor | Array, scale: float | None = None) -> float:
    """Return the largest difference relative to ``scale``, or to the largest figure of ``theirs``.

    Infinite where a figure is not finite, or where the scale is 0 and the figures differ.
    """
    a, b = np.asarray(ours), np.asarray(theirs)
    assert a.shape == b.shape
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return np.inf
    largest = float(np.abs(a - b).max(initial=0.0))
    if largest == 0.0:
        return 0.0
    scale = float(np.abs(b).max()) if scale is None else scale
    return largest / scale if scale else np.inf


def output_scale(core: Array, weights: LayerWeights) -> float:
    """Return how large the output could be if nothing cancelled in the output projection.

    Small integer weights do cancel to an exact zero, of which rounding leaves 1e-17: an error relative to the
    output itself would mean nothing.
    """
    norms = (float(torch.linalg.matrix_norm(matrix, torch.inf)) for matrix in (weights.wo_a, weights.wo_b))
    return float(np.abs(core).max()) * float(np.prod(list(norms)))


def score_scale(hidden: Tensor, weights: LayerWeights, geometry: Geometry, index_keys: Tensor) -> Array:
    """Return, per query, how large an index score could be if heads did not cancel and vectors were parallel."""
    assert weights.indexer is not None
    latent = hidden @ weights.wq_a.T
    latent = weights.q_norm * latent / (latent.square().mean(-1, keepdim=True) + geometry.norm_eps).sqrt()
    queries = (latent @ weights.indexer.wq_b.T).view(len(hidden), geometry.index_heads, -1).norm(dim=-1)
    heads = (hidden @ weights.indexer.weights_proj.T).abs() / (
        geometry.index_heads * geometry.index_head_dim
    ) ** 0.5
    largest_key = index_keys.norm(dim=-1).amax() if len(index_keys) else torch.zeros(())
    return np.asarray((heads * queries).sum(dim=-1) * largest_key, dtype=np.float64)


def _arrays(weights: LayerWeights) -> dict[str, Array]:
    return {name: tensor.numpy() for name, tensor in weights.named().items()}
