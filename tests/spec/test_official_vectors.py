"""Both oracles reproduce what DeepSeek's official code computed."""
# ruff: noqa: D103

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
import second_oracle
from oracles import VECTORS, Array
from safetensors.numpy import load_file

from csa_spec.vectors.figures import TOLERANCE, VectorResult, check_vectors

CASES = {
    "csa_all_visible.safetensors": 8,
    "csa_window16_top1.safetensors": 8,
    "csa_window4_top2.safetensors": 8,
    "csa_window8_top3.safetensors": 8,
    "hca_ratio16_window4.safetensors": 6,
    "hca_ratio8.safetensors": 6,
    "sliding_window8.safetensors": 6,
}

INDEX: list[dict[str, Any]] = json.loads((VECTORS / "index.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def results() -> list[VectorResult]:
    return list(check_vectors(VECTORS))


def test_every_recorded_case_is_checked(results: list[VectorResult]) -> None:
    assert Counter(result.file for result in results) == CASES
    assert sorted(path.name for path in VECTORS.glob("*.safetensors")) == sorted(CASES)
    assert len(results) == 50


def test_the_specification_reproduces_every_official_figure(results: list[VectorResult]) -> None:
    wrong = {f"{result.file} case {result.case}": result.errors for result in results if not result.agrees}
    assert wrong == {}


def test_every_case_holds_output_and_core_and_most_hold_decoding(results: list[VectorResult]) -> None:
    assert all({"output", "core q", "core kv", "core"} <= result.errors.keys() for result in results)
    recorded = sum(case["prefill"] is not None for entry in INDEX for case in entry["cases"])
    assert sum("decode" in result.errors for result in results) == recorded == 36


@pytest.mark.parametrize("entry", INDEX, ids=lambda entry: entry["file"])
def test_the_second_oracle_reproduces_every_official_figure(entry: dict[str, Any]) -> None:
    tensors = load_file(VECTORS / entry["file"])
    weights = {
        name.removeprefix("weights.").removesuffix(".weight"): array
        for name, array in tensors.items()
        if name.startswith("weights.")
    }
    geometry = entry["geometry"] | {
        "top_k": entry["geometry"]["topk"],
        "rope_theta": entry["geometry"]["theta"],
        "compress_rope_theta": entry["geometry"]["theta"],
    }
    for case in entry["cases"]:
        recorded = {
            name.partition(".")[2]: array for name, array in tensors.items() if _belongs(name, case["case"])
        }
        for row, x in enumerate(recorded["x"].astype(np.float64)):
            result = second_oracle.layer(x, weights, geometry)
            figures = [(result.out, "y"), (result.q, "core.q"), (result.core_out, "core.o")]
            figures.append((np.concatenate([result.window_kv, result.entries]), "core.kv"))
            if "y_prefill_then_decode" in recorded:
                figures.append((result.out, "y_prefill_then_decode"))
            for ours, name in figures:
                assert _distance(ours, recorded[name][row]) <= TOLERANCE, (case, name)
            for t, indices in enumerate(recorded["core.idx"][row]):
                attended = set(np.flatnonzero(result.probabilities[t].any(axis=0)).tolist())
                assert attended == set(indices[indices >= 0].tolist()), (case, t)


@pytest.mark.parametrize("entry", INDEX, ids=lambda entry: entry["file"])
def test_no_recorded_case_is_near_a_tie(entry: dict[str, Any]) -> None:
    # Then a right implementation has no choice, and a disagreement is never the fault of the vectors.
    margins = [case["min_topk_margin"] for case in entry["cases"] if case["min_topk_margin"] is not None]
    assert all(margin > 1e-3 for margin in margins)
    truncates = entry["geometry"]["kind"] == "csa" and entry["geometry"]["topk"] < 10
    assert bool(margins) == truncates


def _belongs(name: str, case: int) -> bool:
    return name.startswith(f"case{case}.")


def _distance(ours: Array, recorded: Array) -> float:
    return float(np.abs(ours - recorded).max(initial=0.0))
