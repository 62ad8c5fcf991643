"""Compare the specification, or a candidate's ``attend``, with recorded figures: ``csa-spec vectors DIR``.

The folder has an ``index.json`` (files, geometries, cases) and one safetensors file per layer, or per stack of
layers (DeepSeek-V4.1). A file has the weights by their official names and, per case, the layer's input and
output and the tensors of the attention core.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csa_spec.plug.plain import plain_line, shown
from csa_spec.plug.reading import Unreadable, is_file_name, is_folder, is_there, read_as
from csa_spec.spec import (
    SPEC,
    Geometry,
    GeometryError,
    LayerKind,
    LayerWeights,
    Spec,
    attend_batch,
    weight_shapes,
)
from csa_spec.spec.v41 import STACK_SPEC, StackSpec
from csa_spec.vectors.files import INDEX, VectorsError, read_tensors
from csa_spec.vectors.stack_figures import (
    DECODED,
    INTEGERS,
    StackFigures,
    check_stack,
    check_stack_core,
    real,
    recorded_weights,
    recorded_yarn,
    require_figures,
    stack_geometry,
)

TOLERANCE = 2e-5
"""Absolute. The figures are float32 runs of the official code; a float64 evaluation of the same formulas is
closer to them than this."""


STAGE = "attend"
"""The stage of candidates that can be compared with the figures."""


@dataclass(frozen=True, slots=True)
class VectorResult:
    """How far the specification is from one recorded case."""

    file: str
    case: int
    errors: dict[str, float]
    """Largest absolute error by what was compared: ``output``, ``decode`` (where recorded), ``core``"""

    @property
    def agrees(self) -> bool:
        """Whether every error is within the tolerance (a NaN is not)."""
        return all(error <= TOLERANCE for error in self.errors.values())


def summarise_figures(results: Sequence[VectorResult]) -> str:
    """Return a line for each file: how many cases agree, and the largest errors."""
    lines = []
    for name in dict.fromkeys(result.file for result in results):
        of_file = [result for result in results if result.file == name]
        errors = {
            key: max(
                (result.errors.get(key, 0.0) for result in of_file),
                key=lambda error: (error != error, error),
            )
            for key in dict.fromkeys(key for result in of_file for key in result.errors)
        }
        worst = ", ".join(f"{key} {error:.1e}" for key, error in sorted(errors.items()))
        wrong = [result.case for result in of_file if not result.agrees]
        state = f"cases {wrong} DISAGREE" if wrong else "agree"
        lines.append(f"{name:<36} {len(of_file):>3} cases {state}; largest error: {worst}")
    return "\n".join(lines)


def check_vectors(
    folder: Path, spec: Spec = SPEC, stack_spec: StackSpec = STACK_SPEC
) -> Iterator[VectorResult]:
    """Yield how far the specification is from every case of every file that the folder's index lists.

    ``spec`` has the rules of layers, ``stack_spec`` those of stacks.

    Raises
    ------
    VectorsError
        If the folder cannot be used as it is.
    """
    for entry in _read_index(folder):
        if _is_stack(entry):
            for name, figures in _stack_cases(folder, entry):
                yield VectorResult(name, figures.case, check_stack(figures, stack_spec))
            continue
        for name, case, tensors, weights, geometry in _cases(folder, entry):
            yield _check_case(name, case, tensors, weights, geometry, spec)


def check_attend(folder: Path, attend: Callable[..., Tensor]) -> Iterator[VectorResult]:
    """Yield how far an ``attend`` is from the recorded attention core of every case, in float32.

    Parameters
    ----------
    folder
        With an ``index.json``.
    attend
        ``attend(q [B,S,H,D], kv [B,N,D], indices [B,S,n], sinks [H], scale) -> [B,S,H,D]``.

    Raises
    ------
    VectorsError
        If the folder cannot be used as it is.
    """
    for entry in _read_index(folder):
        if _is_stack(entry):
            for name, figures in _stack_cases(folder, entry):
                yield VectorResult(name, figures.case, {"core": check_stack_core(figures, attend)})
            continue
        for name, case, tensors, weights, geometry in _cases(folder, entry):
            q, kv, indices, expected = (tensors[f"case{case}.core.{key}"] for key in ("q", "kv", "idx", "o"))
            got = attend(q.float(), kv.float(), indices.long(), weights.attn_sink.float(), geometry.scale)
            _require_shape(got, tuple(expected.shape), f"{name}: what attend returns for case {case}")
            yield VectorResult(name, case, {"core": _distance(got.double(), expected)})


def _is_stack(entry: Any) -> bool:
    """Whether an entry of the index is about a stack of layers; any other is about one."""
    geometry = entry.get("geometry") if isinstance(entry, dict) else None
    return isinstance(geometry, dict) and "compress_ratios" in geometry


def _load(folder: Path, name: str) -> dict[str, Tensor]:
    if not is_file_name(name):
        raise VectorsError(
            f"{folder / INDEX} lists {shown(name)}, which is not the name of a file in its folder"
        )
    if not is_there(folder / name):
        raise VectorsError(f"{folder} lists {name} but does not hold it")
    return read_tensors(folder / name)


def _stack_cases(folder: Path, entry: Any) -> Iterator[tuple[str, StackFigures]]:
    """Yield file and figures of every case of a file of stacks."""
    name = _field(entry, "file", str, INDEX)
    tensors = _load(folder, name)
    recorded = _field(entry, "geometry", dict, name)
    cases = _field(entry, "cases", list, name)
    if not cases:
        raise VectorsError(f"{folder / INDEX} lists no case for {name}")
    try:
        geometry = stack_geometry(recorded)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _impossible(name, error) from None
    try:
        weights = recorded_weights(tensors, geometry)
    except ValueError as error:
        raise VectorsError(f"{folder / name}: {error}") from None
    for case in cases:
        number = _field(case, "case", int, name)
        prefill = case.get("prefill")
        if prefill is not None and not isinstance(prefill, int):
            raise VectorsError(f"{name} is broken or of another version: prefill is {prefill!r}")
        figures = StackFigures(tensors, number, geometry, weights, prefill)
        try:
            require_figures(figures)
        except ValueError as error:
            raise VectorsError(f"{folder / name}: {error}") from None
        yield name, figures


def _cases(folder: Path, entry: Any) -> Iterator[tuple[str, int, dict[str, Tensor], LayerWeights, Geometry]]:
    """Yield file, number, tensors, weights and geometry of every case of a file of layers."""
    name = _field(entry, "file", str, INDEX)
    tensors = _load(folder, name)
    geometry = _geometry(_field(entry, "geometry", dict, name), name)
    try:
        weights = LayerWeights.from_named(
            {
                key.removeprefix("weights.").removesuffix(".weight"): _double(tensor)
                for key, tensor in tensors.items()
                if key.startswith("weights.")
            }
        )
        for key, shape in weight_shapes(geometry).items():
            _require_numbers(weights.named()[key], shape, f"{folder / name}: {key}")
        cases = _field(entry, "cases", list, name)
        if not cases:
            raise VectorsError(f"{folder / INDEX} lists no case for {name}")
        for case in cases:
            number = _field(case, "case", int, name)
            _require_case(name, number, tensors, geometry)
            yield name, number, tensors, weights, geometry
    except KeyError as error:
        raise VectorsError(f"{folder / name} has no tensor {error}") from None


def _require_case(name: str, case: int, tensors: dict[str, Tensor], geometry: Geometry) -> None:
    """Refuse a case that lacks a tensor (KeyError), or has one of another shape."""

    def recorded(key: str) -> Tensor:
        return tensors[f"case{case}.{key}"]

    x, g = recorded("x"), geometry
    if x.dim() != 3 or 0 in x.shape:
        raise VectorsError(f"{name}: case{case}.x has the shape {list(x.shape)}, not [B, S, {g.hidden}]")
    rows, length, _ = x.shape
    keys_there = length + g.entry_count(length)
    shapes = {
        "x": (rows, length, g.hidden),
        "y": (rows, length, g.hidden),
        "core.q": (rows, length, g.heads, g.head_dim),
        "core.o": (rows, length, g.heads, g.head_dim),
        "core.kv": (rows, keys_there, g.head_dim),
    }
    if f"case{case}.{DECODED}" in tensors:
        shapes[DECODED] = shapes["y"]
    for key, shape in shapes.items():
        _require_numbers(recorded(key), shape, f"{name}: case{case}.{key}")
    recorded_indices = recorded("core.idx")
    if (
        recorded_indices.dtype not in INTEGERS
        or recorded_indices.dim() != 3
        or recorded_indices.shape[:2] != (rows, length)
    ):
        raise VectorsError(f"{name}: case{case}.core.idx is not [B, S, n] of integers")
    if recorded_indices.numel() and recorded_indices.max() >= keys_there:
        raise VectorsError(f"{name}: case{case}.core.idx points past the {keys_there} keys")


def _check_case(
    name: str, case: int, tensors: dict[str, Tensor], weights: LayerWeights, geometry: Geometry, spec: Spec
) -> VectorResult:
    def recorded(key: str) -> Tensor:
        return tensors[f"case{case}.{key}"]

    x = recorded("x").double()
    rows, length, _ = x.shape
    positions = torch.arange(length).expand(rows, length)
    trace = attend_batch(x, weights, geometry, positions, torch.zeros(rows, length, dtype=torch.long), spec)
    errors = {"output": _distance(trace.out, recorded("y"))}
    if f"case{case}.{DECODED}" in tensors:
        errors["decode"] = _distance(trace.out, recorded(DECODED))
    q, kv, core = [], [], []
    for row, document in enumerate(trace.documents):
        kv.append(torch.cat((document.context.window_keys, document.context.entries)))
        for t, query in enumerate(document.queries):
            indices = recorded("core.idx")[row, t]
            keys = recorded("core.kv")[row, indices[indices >= 0]].double()
            q.append(query.q)
            core.append(
                spec.attend(
                    recorded("core.q")[row, t].double(),
                    keys,
                    weights.attn_sink,
                    spec.softmax_scale(geometry),
                )[0]
            )
            attended = query.window + [length + s for s in query.selection]
            if set(attended) != set(indices[indices >= 0].tolist()):
                errors["core keys"] = float("inf")
    errors["core q"] = _distance(torch.stack(q).view_as(recorded("core.q")), recorded("core.q"))
    errors["core kv"] = _distance(torch.stack(kv), recorded("core.kv"))
    errors["core"] = _distance(torch.stack(core).view_as(recorded("core.o")), recorded("core.o"))
    return VectorResult(name, case, errors)


def _require_shape(tensor: Tensor, shape: tuple[int, ...], where: str) -> None:
    if tuple(tensor.shape) != shape:
        raise VectorsError(f"{where} has the shape {list(tensor.shape)}, the geometry says {list(shape)}")


def _require_numbers(tensor: Tensor, shape: tuple[int, ...], where: str) -> None:
    _require_shape(tensor, shape, where)
    if not tensor.is_floating_point():
        raise VectorsError(
            f"{where} has the dtype {str(tensor.dtype).removeprefix('torch.')}; write real numbers"
        )


def _double(tensor: Tensor) -> Tensor:
    """Return weights in float64; what are no numbers stay as they are, and are refused."""
    return tensor.double() if tensor.is_floating_point() else tensor


def _distance(ours: Tensor, recorded: Tensor) -> float:
    return (ours - recorded.double()).abs().max().item() if ours.numel() else 0.0


def _read_index(folder: Path) -> list[Any]:
    if not is_folder(folder):
        raise VectorsError(f"{folder} is not a folder; name one with an index.json")
    if not is_there(folder / INDEX):
        raise VectorsError(f"{folder} has no {INDEX}; name a folder of recorded figures")
    try:
        index = read_as("JSON", json.loads, folder / INDEX)
    except Unreadable as error:
        raise VectorsError(f"{folder / INDEX} {error}") from None
    if isinstance(index, dict) and "files" in index:
        raise VectorsError(
            f"{folder} has vectors that `csa-spec vectors --write` wrote; use `csa-spec judge`"
        )
    if not isinstance(index, list) or not index:
        raise VectorsError(
            f"{folder / INDEX} is of another version: expected a list of files, "
            f"found {'an empty list' if index == [] else type(index).__name__}"
        )
    return index


def _field(mapping: Any, key: str, kind: type, where: str) -> Any:
    value = mapping.get(key) if isinstance(mapping, dict) else None
    if not isinstance(value, kind):
        raise VectorsError(f"{where} is broken or of another version: it lacks {key!r} ({kind.__name__})")
    return value


def _impossible(where: str, error: Exception) -> VectorsError:
    """Return the sentence about a geometry that cannot be read, or that cannot be."""
    reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
    if isinstance(error, GeometryError):
        return VectorsError(f"{where} has an impossible geometry: {plain_line(reason, 400)}")
    return VectorsError(f"{where} is broken or of another version: geometry: {plain_line(reason, 200)}")


def _geometry(recorded: dict[str, Any], where: str) -> Geometry:
    fields = dict(recorded)
    try:
        kind = LayerKind(fields.pop("kind"))
        theta = real("theta", fields.pop("theta"))
        fields["rope_theta" if kind is LayerKind.SLIDING else "compress_rope_theta"] = theta
        if "norm_eps" in fields:
            fields["norm_eps"] = real("norm_eps", fields["norm_eps"])
        if kind is LayerKind.SLIDING:
            fields["compress_ratio"] = 1
        yarn = recorded_yarn(fields.pop("yarn"))
        return Geometry(kind=kind, top_k=fields.pop("topk"), yarn=yarn, **fields)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _impossible(where, error) from None
