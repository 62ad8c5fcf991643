"""Answers that were recorded: by another program, or before somebody asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from csa_spec.plug.arrays import from_library, map_tensors, named_arrays, named_tensors
from csa_spec.plug.call import Answer, LocalCaller, NotOffered, Request
from csa_spec.plug.candidate import Candidate
from csa_spec.plug.capabilities import Capabilities


def fingerprint(arguments: Mapping[str, Any]) -> str:
    """Return a text that the same arguments have, to the bit, and no others."""
    digest = hashlib.sha256()
    for name, tensor in named_tensors(arguments).items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for name, value in arguments.items():
        if not named_arrays({name: value}):
            digest.update(f"{name} {value!r}".encode())
    return digest.hexdigest()


def recorded(
    name: str, stage: str, answers: Mapping[str, Any], capabilities: Capabilities | None = None
) -> Candidate:
    """Return a candidate that gives recorded answers.

    Parameters
    ----------
    name
        Of whoever gave them.
    stage
        The stage that they are of.
    answers
        By the :func:`fingerprint` of the arguments: arrays of torch or of another library, or dataclasses of them.
    capabilities
        What the implementation declares.
    """
    return Candidate(
        name,
        {stage: _not_called},
        capabilities or Capabilities(),
        caller=_Recorded({key: _on_the_cpu(answer) for key, answer in answers.items()}),
        recorded=True,
    )


class _Recorded:
    """Gives recorded answers to the arguments for which there are some, and refuses others."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self._answers = answers

    def __call__(self, function: Callable[..., Any], request: Request, arrays: str = "torch") -> Answer:
        """Return what was recorded, checked and settled as if the call were made now."""
        answer = self._answers.get(fingerprint(request.arguments), _NOTHING)
        if answer is _NOTHING:
            raise NotOffered("its answers were recorded, and none for these arguments")
        once = replace(request, through=None, unusual=False, overwrite=False, reuse=False)
        return LocalCaller()(lambda *arguments, **named: answer, once, "torch")


_NOTHING = object()


def _not_called(*arguments: Any, **named: Any) -> Any:
    raise NotOffered("its answers were recorded")


def _on_the_cpu(answer: Any) -> Any:
    """Return an answer with plain tensors in place of arrays; anything else stays as it is, to be told of."""
    if hasattr(answer, "__dlpack__") or hasattr(answer, "__array__"):
        answer = from_library(answer)
    return map_tensors(lambda _, tensor: _plain(tensor), {"answer": answer})["answer"]


def _plain(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else tensor.detach().cpu()  # that one has no numbers: it is told of
