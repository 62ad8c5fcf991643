"""Compare the specification of stacks (DeepSeek-V4.1) with recorded figures.

A file has the weights of all layers by their official names and, per case and layer, input, output and stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from csa_spec.plug.plain import shown
from csa_spec.spec import Document, GeometryError, Yarn
from csa_spec.spec.v41 import (
    STACK_SPEC,
    LayerTrace,
    StackDocumentTrace,
    StackGeometry,
    StackLayerWeights,
    StackSpec,
    attend_stack_document,
    stack_weights,
)
from csa_spec.spec.v41.roles import entry_source

DECODED = "y_prefill_then_decode"
"""Tensor of a case that need not be there: its output, where it was made step by step."""
INTEGERS = (torch.int64, torch.int32, torch.int16)


def real(what: str, value: object) -> float:
    """Return a number of an index.

    Raises
    ------
    TypeError
        If it is none, or larger than any float64.
    """
    if not isinstance(value, (int, float)):
        raise TypeError(f"{what} is {shown(value)}, not a number")
    try:
        return float(value)
    except OverflowError:
        raise TypeError(f"{what} is larger than any float64") from None


def recorded_yarn(recorded: object) -> Yarn | None:
    """Return YaRN's constants from an index.

    Raises
    ------
    TypeError, GeometryError
        If they are no constants, or impossible ones.
    """
    if recorded is None:
        return None
    if not isinstance(recorded, Mapping):
        raise TypeError(f"yarn is {shown(recorded)}, not an object")
    numbers: dict[str, Any] = {name: real(f"yarn.{name}", value) for name, value in recorded.items()}
    if "original_max_position" in numbers:
        numbers["original_max_position"] = _whole(numbers["original_max_position"])
    return Yarn(**numbers)


def _whole(number: float) -> int:
    if not math.isfinite(number):
        raise TypeError(f"yarn.original_max_position is {number}, not a whole number")
    return int(number)


def stack_geometry(recorded: Mapping[str, Any]) -> StackGeometry:
    """Return the geometry of a stack from an index of figures.

    Raises
    ------
    KeyError, TypeError, GeometryError
        If a field is missing or unknown, or the stack impossible.
    """
    fields = dict(recorded)
    constants = {"rope_theta": "theta", "compress_rope_theta": "compress_theta", "norm_eps": "norm_eps"}
    numbers: dict[str, Any] = {ours: real(theirs, fields.pop(theirs)) for ours, theirs in constants.items()}
    yarn = recorded_yarn(fields.pop("yarn"))
    return StackGeometry(top_k=fields.pop("topk"), yarn=yarn, **numbers, **fields)


def recorded_weights(tensors: Mapping[str, Tensor], geometry: StackGeometry) -> list[StackLayerWeights]:
    """Return the weights of a file of figures, in float64.

    Raises
    ------
    ValueError
        If they are not those of the geometry.
    """
    named = [dict[str, Tensor]() for _ in range(geometry.layers)]
    for key, tensor in tensors.items():
        if key.startswith("weights."):
            layer, _, name = key.removeprefix("weights.layer").partition(".")
            if not layer.isdecimal() or int(layer) >= geometry.layers:
                raise GeometryError(f"{key} is no weight of a stack of {geometry.layers} layers")
            if not tensor.is_floating_point():
                raise GeometryError(f"{key} has no real numbers")
            named[int(layer)][name] = tensor.double()
    return stack_weights(geometry, named)


@dataclass(frozen=True, slots=True)
class StackFigures:
    """The figures of one case. ``layer(0, "x")`` is one of them."""

    tensors: Mapping[str, Tensor]
    case: int
    geometry: StackGeometry
    weights: list[StackLayerWeights]
    prefill: int | None
    """Tokens of the first call of the second run; None where there was none"""

    def layer(self, layer: int, name: str) -> Tensor | None:
        """Return a tensor, None where it was not recorded."""
        return self.tensors.get(f"case{self.case}.layer{layer}.{name}")

    def stacked(self, name: str) -> Tensor:
        """Return what every layer has, ``[layers, ...]`` in float64."""
        return torch.stack(
            [
                self.tensors[f"case{self.case}.layer{layer}.{name}"].double()
                for layer in range(self.geometry.layers)
            ]
        )


def require_figures(figures: StackFigures) -> None:
    """Raise ``ValueError`` if a case lacks what every layer has, or has it in another shape."""
    g = figures.geometry
    first = figures.layer(0, "x")
    if first is None or first.dim() != 3 or 0 in first.shape:
        raise ValueError(f"case{figures.case}.layer0.x is not there or not [B, S, hidden]")
    rows, length, _ = first.shape
    heads = (rows, length, g.heads, g.head_dim)
    shapes = {
        "x": (rows, length, g.hidden),
        "y": (rows, length, g.hidden),
        "window_kv": (rows, length, g.head_dim),
        "core.q": heads,
        "core.o": heads,
    }
    for layer in range(g.layers):
        optional = _optional_shapes(g, rows, length, _entries(g, layer, length))
        for name, shape in (shapes | optional).items():
            where, recorded = f"case{figures.case}.layer{layer}.{name}", figures.layer(layer, name)
            if recorded is None and name in optional:
                continue
            if recorded is None or recorded.shape != shape:
                found = "missing" if recorded is None else list(recorded.shape)
                raise ValueError(f"{where} is {found}, not {list(shape)}")
            if not (recorded.is_floating_point() or (name == "candidates" and not recorded.is_complex())):
                raise ValueError(f"{where} has no real numbers")
        for name in ("core.idx", "picks"):
            where, recorded = f"case{figures.case}.layer{layer}.{name}", figures.layer(layer, name)
            if recorded is None and name == "picks":
                continue
            integers = recorded is not None and recorded.dtype in INTEGERS and recorded.dim() == 3
            if recorded is None or not integers or recorded.shape[:2] != (rows, length):
                raise ValueError(f"{where} is not [B, S, n] of integers")
    if figures.prefill is not None and not 0 < figures.prefill <= length:
        raise ValueError(f"case {figures.case} has a prefill of {figures.prefill} of {length} tokens")


def _optional_shapes(
    geometry: StackGeometry, rows: int, length: int, entries: int
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what some layers have."""
    g = geometry
    return {
        "latent": (rows, entries, g.head_dim),
        "entries": (rows, entries, g.head_dim),
        "index_keys": (rows, entries, g.index_head_dim),
        "index_q": (rows, length, g.index_heads, g.index_head_dim),
        "scores": (rows, length, entries),
        "block_scores": (rows, length, _blocks(g, entries)),
        "candidates": (rows, length, entries),
        DECODED: (rows, length, g.hidden),
    }


def _entries(geometry: StackGeometry, layer: int, length: int) -> int:
    """Return how many entries a layer reads at the end of a document."""
    ratio = geometry.compress_ratios[layer]
    return length // ratio if ratio else 0


def _blocks(geometry: StackGeometry, entries: int) -> int:
    size = geometry.candidate_block_size
    return -(-entries // size) if size else 0


def check_stack_core(figures: StackFigures, attend: Callable[..., Tensor]) -> float:
    """Return how far an ``attend`` is from the recorded core of any layer of a case, in float32."""
    worst = 0.0
    for layer, weights in enumerate(figures.weights):
        owner = entry_source(figures.geometry, layer) if figures.geometry.compress_ratios[layer] else None
        q, indices, expected, window = (
            figures.tensors[f"case{figures.case}.layer{layer}.{name}"]
            for name in ("core.q", "core.idx", "core.o", "window_kv")
        )
        entries = None if owner is None else figures.layer(owner, "entries")  # none in a short document
        kv = window if entries is None else torch.cat((window, entries), dim=1)
        got = attend(
            q.float(), kv.float(), indices.long(), weights.attn_sink.float(), figures.geometry.scale
        )
        worst = _worse(worst, _distance(got.double(), expected))
    return worst


def check_stack(figures: StackFigures, spec: StackSpec = STACK_SPEC) -> dict[str, float]:
    """Return the largest absolute error by what was compared; infinite where picks or candidates differ."""
    hidden = figures.stacked("x")
    errors: dict[str, float] = {}
    for row in range(hidden.shape[1]):
        tokens, document = hidden[:, row], Document(row, 0, hidden.shape[2], 0)
        trace = attend_stack_document(tokens, document, figures.weights, figures.geometry, spec)
        for layer, of_layer in enumerate(trace.layers):
            for name, ours, recorded in _stages(of_layer, figures, layer, row):
                errors[name] = _worse(errors.get(name, 0.0), _distance(ours, recorded))
        if figures.prefill is not None:
            decoded = decode(tokens, document, figures, spec)
            for name, ours, recorded in _decoded(decoded, figures, row):
                errors[name] = _worse(errors.get(name, 0.0), _distance(ours, recorded))
    return errors


def decode(
    hidden: Tensor, document: Document, figures: StackFigures, spec: StackSpec = STACK_SPEC
) -> Tensor:
    """Return the outputs ``[layers, S, hidden]`` of a prefill and then one token per call."""
    assert figures.prefill is not None
    past: StackDocumentTrace | None = None
    outs, begin = [], 0
    for end in range(figures.prefill, hidden.shape[1] + 1):
        chunk = hidden[:, begin:end]
        past = attend_stack_document(chunk, document, figures.weights, figures.geometry, spec, past)
        outs.append(past.out)
        begin = end
    return torch.cat(outs, dim=1)


def _stages(
    trace: LayerTrace, figures: StackFigures, layer: int, row: int
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield name, ours and the recorded figure of each stage that was recorded of a layer."""
    context, queries = trace.context, trace.queries
    length, entries = len(queries), _entries(figures.geometry, layer, len(queries))
    nothing = context.hidden.new_zeros(0)
    ours = {
        "y": trace.out,
        "window_kv": context.window_keys,
        "latent": context.latents,
        "entries": context.entries,
        "index_keys": context.index_keys,
        "index_q": torch.stack([query.index_q for query in queries]),
        "scores": _rows(
            [dict(zip(query.visible, query.scores, strict=False)) for query in queries], entries, -math.inf
        ),
        "block_scores": _block_scores(trace, figures, entries),
        "candidates": _rows(
            [dict.fromkeys(query.blocks.candidates if query.blocks else [], 1.0) for query in queries],
            entries,
            0.0,
        ),
        "core.q": torch.stack([query.q for query in queries]),
        "core.o": torch.stack([query.core for query in queries]),
    }
    for name, tensor in ours.items():
        recorded = figures.layer(layer, name)
        if recorded is not None:
            yield name, tensor if tensor.numel() else nothing, recorded[row]
    exact = {
        "picks": [query.selection for query in queries],
        "core.idx": [query.window + [length + s for s in query.selection] for query in queries],
    }
    for name, lists in exact.items():
        recorded = figures.layer(layer, name)
        if recorded is not None:
            theirs = [sorted(number for number in row if number >= 0) for row in recorded[row].tolist()]
            same = [sorted(numbers) for numbers in lists] == theirs
            yield name, nothing.new_tensor([0.0 if same else math.inf]), nothing.new_zeros(1)


def _decoded(out: Tensor, figures: StackFigures, row: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    for layer in range(figures.geometry.layers):
        recorded = figures.layer(layer, DECODED)
        if recorded is not None:
            yield "decode", out[layer], recorded[row]


def _rows(rows: list[dict[int, Any]], columns: int, fill: float) -> Tensor:
    """Return ``[rows, columns]`` with the numbers of each row in their columns."""
    out = torch.full((len(rows), columns), fill, dtype=torch.float64)
    for row, numbers in zip(out, rows, strict=True):
        for column, number in numbers.items():
            row[column] = number
    return out


def _block_scores(trace: LayerTrace, figures: StackFigures, entries: int) -> Tensor:
    scores = [dict(enumerate(query.blocks.scores if query.blocks else [])) for query in trace.queries]
    return _rows(scores, _blocks(figures.geometry, entries), -math.inf)


def _distance(ours: Tensor, recorded: Tensor) -> float:
    """Return the largest difference; infinite where shapes differ or one is infinite and the other is not."""
    recorded = recorded.double()
    if ours.shape != recorded.shape:
        return math.inf
    same = ours == recorded  # infinities, too
    return torch.where(same, 0.0, (ours - recorded).abs()).max().item() if ours.numel() else 0.0


def _worse(a: float, b: float) -> float:
    return b if math.isnan(b) else max(a, b)
