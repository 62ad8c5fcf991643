"""The shipped layouts pass every stage that they offer, and reproduce the official figures."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from oracles import VECTORS

import csa_spec
from csa_spec.candidates import SHIPPED, find_candidate
from csa_spec.vectors.figures import check_attend

LAYOUTS = ("gather", "flattened", "dense", "sdpa", "flex")
"""Triton runs in a process of its own: its interpreter is chosen when it is imported."""
LOW = "float32,bfloat16,float16"
SHARED = ("compressor", "index_scores", "select")
"""Stages that all layouts have from one module."""


def test_every_shipped_candidate_is_tested() -> None:
    """Here or, for transformers, in a folder of its own."""
    assert {*SHIPPED} == {*LAYOUTS, "transformers", "triton"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_attend_is_conformant_in_every_dtype(name: str) -> None:
    """And stays below half of its budget."""
    report = csa_spec.check(name, stage="attend", profile="smoke", dtype=LOW)
    assert str(report.verdict) == "conformant"
    first = [result for result in report.results if result.check == "specification"]
    assert [result.dtype for result in first] == LOW.split(",")
    assert all(result.cases > 100 and 0 < result.tally.worst < 0.5 for result in first)
    gradients = [result for result in report.results if result.check == "gradients"]
    assert bool(gradients) == (name != "flex")  # which has no backward on the CPU
    assert all(result.cases > 0 for result in gradients)


@pytest.mark.parametrize("stage", SHARED)
def test_shared_stages_are_conformant_in_every_dtype(stage: str) -> None:
    """In float64, too, as everything is."""
    report = csa_spec.check("gather", stage=stage, profile="smoke", dtype=f"{LOW},float64")
    assert str(report.verdict) == "conformant"
    assert all(result.tally.worst < 0.5 for result in report.results)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layers_are_conformant(name: str) -> None:
    """With padding, packed documents and shifted starts; one layout in low precision too."""
    report = csa_spec.check(
        name, stage="layer", profile="smoke", dtype=LOW if name == "gather" else "float32"
    )
    assert str(report.verdict) == "conformant"
    declined = {reason for result in report.results for reason in result.not_applicable}
    assert declined <= ({"S over 128"} if name == "flattened" else set())


@pytest.mark.parametrize("name", LAYOUTS)
def test_attend_reproduces_every_official_core(name: str) -> None:
    """The ``core.*`` tensors of all recorded cases."""
    results = list(check_attend(VECTORS, find_candidate(name).stages["attend"]))
    assert len(results) == 50
    assert [result for result in results if not result.agrees] == []


def test_triton_is_conformant_in_its_interpreter_and_reproduces_every_official_core() -> None:
    """On the CPU; float32, bfloat16 and float16."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    for arguments, ending in (
        (
            ["check", "triton", "--stage", "attend", "--profile", "smoke", "--dtype", LOW],
            "triton: CONFORMANT for attend",
        ),
        (["vectors", str(VECTORS), "--attend", "triton"], "50 of 50 cases agree within 2e-05"),
    ):
        command = [sys.executable, "-m", "csa_spec", *arguments]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1] == ending


def test_triton_says_how_it_can_run_here() -> None:
    """Without a GPU and without its interpreter it cannot, and one sentence says so."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [
        sys.executable,
        "-m",
        "csa_spec",
        "check",
        "triton",
        "--stage",
        "attend",
        "--profile",
        "smoke",
    ]
    done = subprocess.run(
        command, env={**environment, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "set TRITON_INTERPRET=1" in done.stderr
