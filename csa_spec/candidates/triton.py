"""The kernel of :mod:`csa_spec.candidates.triton_kernel` as a candidate, where it can run."""

from __future__ import annotations

import importlib
from dataclasses import replace

import torch

from csa_spec.candidates.batched import make_candidate
from csa_spec.plug.candidate import Candidate, CandidateError, one_line


def load() -> Candidate:
    """Return the candidate: on CUDA, or in Triton's interpreter.

    Raises
    ------
    CandidateError
        If Triton is not installed, cannot be imported, or has nothing to run on.
    """
    try:
        version = importlib.import_module("triton").__version__
        kernel = importlib.import_module("csa_spec.candidates.triton_kernel")
    except ModuleNotFoundError as error:
        if error.name == "triton":
            raise CandidateError("triton is not installed; `pip install triton`") from None
        raise CandidateError(f"importing triton failed: {error}") from error
    except Exception as error:
        raise CandidateError(
            f"importing triton failed: {type(error).__name__}: {one_line(error)}"
        ) from error
    interpreted = kernel.is_interpreted()
    if not interpreted and not torch.cuda.is_available():
        raise CandidateError(
            "triton finds no CUDA device here; set TRITON_INTERPRET=1 to run it in its interpreter"
        )
    candidate = make_candidate(
        "triton",
        kernel.attend,
        dtypes=frozenset({"float32", "bfloat16", "float16"}),
        devices=frozenset({"cpu"} if interpreted else {"cuda"}),
    )
    return replace(candidate, environment={**candidate.environment, "triton": version})
