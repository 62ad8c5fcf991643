"""The specification of stacks reproduces what DeepSeek's official V4.1 code computed."""
# ruff: noqa: D103

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from stack_rules import RULES
from stacks import VECTORS
from torch import Tensor

from csa_spec.candidates import dense
from csa_spec.spec import Document
from csa_spec.spec.v41 import STACK_SPEC, StackSpec
from csa_spec.vectors.figures import TOLERANCE, VectorResult, VectorsError, check_attend, check_vectors
from csa_spec.vectors.stack_figures import StackFigures, decode, recorded_weights, stack_geometry

CASES = {
    "ratio1_candidates.safetensors": 4,
    "ratio1_owner_reindex_reuse.safetensors": 4,
    "ratio2_owner_and_reader.safetensors": 7,
    "ratio2_two_owners_no_yarn.safetensors": 3,
    "sliding_only.safetensors": 4,
    "whole_stack.safetensors": 4,
}
INDEX: list[dict[str, Any]] = json.loads((VECTORS / "index.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def results() -> list[VectorResult]:
    return list(check_vectors(VECTORS))


def figures_of(file: str) -> list[StackFigures]:
    (entry,) = [entry for entry in INDEX if entry["file"] == file]
    tensors, geometry = load_file(VECTORS / file), stack_geometry(entry["geometry"])
    weights = recorded_weights(tensors, geometry)
    return [
        StackFigures(tensors, case["case"], geometry, weights, case["prefill"]) for case in entry["cases"]
    ]


def test_every_recorded_case_is_checked(results: list[VectorResult]) -> None:
    assert Counter(result.file for result in results) == CASES
    assert sorted(path.name for path in VECTORS.glob("*.safetensors")) == sorted(CASES)


def test_the_specification_reproduces_every_official_figure(results: list[VectorResult]) -> None:
    wrong = {f"{result.file} case {result.case}": result.errors for result in results if not result.agrees}
    assert wrong == {}


def test_every_recorded_tensor_is_compared(results: list[VectorResult]) -> None:
    # Under a name that nothing is compared with, a figure would agree with anything.
    for result in results:
        names = {
            name.partition(".")[2].partition(".")[2]
            for name in load_file(VECTORS / result.file)
            if name.startswith(f"case{result.case}.")
        }
        names -= {"x", "y_official_decode_defect"}
        decoded = "y_prefill_then_decode" in names
        assert set(result.errors) == names - {"y_prefill_then_decode"} | ({"decode"} if decoded else set())


@pytest.mark.parametrize("file", ["ratio2_two_owners_no_yarn.safetensors", "whole_stack.safetensors"])
def test_the_defect_of_the_official_decode_is_one_rule(file: str) -> None:
    wrong = replace(STACK_SPEC, **RULES["keys of whoever published last"])
    compared = 0
    for figures in figures_of(file):
        if figures.prefill is None or figures.layer(0, "y_prefill_then_decode") is None:
            continue
        recorded = [
            figures.layer(layer, "y_official_decode_defect") for layer in range(figures.geometry.layers)
        ]
        if all(layer is None for layer in recorded):
            continue
        compared += 1
        for row in range(figures.stacked("x").shape[1]):
            assert _distance(figures, recorded, row, wrong) <= TOLERANCE
            assert _distance(figures, recorded, row, STACK_SPEC) > 0.1
    assert compared == 2


def _distance(
    figures: StackFigures, recorded: list[torch.Tensor | None], row: int, spec: StackSpec
) -> float:
    hidden = figures.stacked("x")[:, row]
    out = decode(hidden, Document(row, 0, hidden.shape[1], 0), figures, spec)
    differences: list[float] = [
        (ours - theirs[row].double()).abs().max().item()
        for ours, theirs in zip(out, recorded, strict=True)
        if theirs is not None
    ]
    return max(differences)


def test_an_attention_core_is_compared_in_every_layer() -> None:
    attend = dense.attend
    results = list(check_attend(VECTORS, attend))
    assert Counter(result.file for result in results) == CASES
    assert all(result.agrees for result in results)
    wrong = list(
        check_attend(VECTORS, lambda q, kv, indices, sinks, scale: attend(q, kv, indices, sinks, 1.0))
    )
    assert not any(result.agrees for result in wrong if result.case == 2)


def test_no_recorded_case_is_near_a_tie() -> None:
    for entry in INDEX:
        for case in entry["cases"]:
            for margin in (case["min_topk_margin"], case["min_candidate_margin"]):
                assert margin is None or margin > 1e-3 * case["x_scale"]


@pytest.mark.parametrize("name", ["y", "core.idx", "window_kv", "x"])
def test_a_missing_figure_is_refused(tmp_path: Path, name: str) -> None:
    _copy_without(tmp_path, f"case0.layer1.{name}")
    with pytest.raises(VectorsError, match=f"case0.layer1.{name}"):
        list(check_vectors(tmp_path))


def test_a_missing_weight_is_refused(tmp_path: Path) -> None:
    _copy_without(tmp_path, "weights.layer1.wkv")
    with pytest.raises(VectorsError, match=r"layer 1: wkv is missing, the geometry says \[16, 24\]"):
        list(check_vectors(tmp_path))


def test_an_impossible_stack_is_refused(tmp_path: Path) -> None:
    shutil.copytree(VECTORS, tmp_path, dirs_exist_ok=True, copy_function=shutil.copyfile)
    index = json.loads(json.dumps(INDEX))
    index[1]["geometry"]["kv_source_layers"] = []
    (tmp_path / "index.json").write_text(json.dumps(index[1:]), encoding="utf-8")
    with pytest.raises(VectorsError, match="impossible geometry: layer 1 has the ratio 2 but no owner"):
        list(check_vectors(tmp_path))


INDEX_OF_CANDIDATES = next(entry for entry in INDEX if entry["file"] == "ratio1_candidates.safetensors")
NUMBERS = [f"geometry {name}" for name in INDEX_OF_CANDIDATES["geometry"]] + [
    f"yarn {name}" for name in INDEX_OF_CANDIDATES["geometry"]["yarn"]
]


@pytest.mark.parametrize("damaged", [10**400, 10**30, -1, math.nan, "abc", [None], {}], ids=str)
@pytest.mark.parametrize("field", NUMBERS)
def test_a_damaged_geometry_is_refused_or_another_one(tmp_path: Path, field: str, damaged: object) -> None:
    """Whatever it holds, no other exception comes out."""
    entry = json.loads(json.dumps({**INDEX_OF_CANDIDATES, "cases": INDEX_OF_CANDIDATES["cases"][:1]}))
    place, name = field.split()
    (entry["geometry"] if place == "geometry" else entry["geometry"]["yarn"])[name] = damaged
    (tmp_path / "index.json").write_text(json.dumps([entry]), encoding="utf-8")
    shutil.copyfile(VECTORS / entry["file"], tmp_path / entry["file"])
    with suppress(VectorsError):
        next(check_vectors(tmp_path))


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "no numbers": lambda tensor: tensor.to(torch.complex64),
    "a row fewer": lambda tensor: tensor[:0],
    "no dimensions": lambda tensor: tensor.flatten(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_damaged_tensors_are_refused(tmp_path: Path, change: str) -> None:
    """Those that every layer has, and those that some have."""
    entry = {**INDEX_OF_CANDIDATES, "cases": INDEX_OF_CANDIDATES["cases"][:1]}
    (tmp_path / "index.json").write_text(json.dumps([entry]), encoding="utf-8")
    tensors = load_file(VECTORS / entry["file"])
    names = {name.split(".", 2)[-1]: name for name in tensors if name.startswith("case0.")}
    assert {"x", "y", "core.idx", "entries", "scores", "block_scores", "candidates", "picks"} <= set(names)
    for name in names.values():
        save_file({**tensors, name: CHANGES[change](tensors[name]).contiguous()}, tmp_path / entry["file"])
        with pytest.raises(VectorsError, match=name):
            list(check_vectors(tmp_path))


def _copy_without(folder: Path, name: str) -> None:
    (folder / "index.json").write_text(json.dumps(INDEX[:1]), encoding="utf-8")
    tensors = load_file(VECTORS / INDEX[0]["file"])
    del tensors[name]
    save_file(tensors, folder / INDEX[0]["file"])
