"""A digest of the tensors that a case makes, so that a reader can tell whether its torch makes the same."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from csa_spec.engine.stage import Stage
from csa_spec.plug.arrays import named_tensors
from csa_spec.plug.candidate import Candidate


def digest_of(stage: Stage, case: Any) -> str:
    """Return the SHA-256 of a case's tensors: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in named_tensors(stage.trial(Candidate("nobody"), case).arguments).items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(
            tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        )
    return digest.hexdigest()
