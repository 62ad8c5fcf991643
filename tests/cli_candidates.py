"""Cheap candidates, right and wrong, that tests name on a command line: ``cli_candidates:right``."""

from __future__ import annotations

import ctypes
import itertools
import time
from dataclasses import replace

import torch
from torch import Tensor

from csa_spec import Candidate, Capabilities, Geometry, LayerKind, LayerWeights
from csa_spec.spec import SPEC, attend_batch, attend_document, split_documents


def _exact(weights: LayerWeights) -> LayerWeights:
    return LayerWeights.from_named({name: tensor.double() for name, tensor in weights.named().items()})


def right(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor, /
) -> Tensor:
    """Follow the specification, and round once."""
    return attend_batch(hidden.double(), _exact(weights), geometry, positions, documents).out.to(
        hidden.dtype
    )


def leaky(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor, /
) -> Tensor:
    """Show each entry to the token before the last one of its block, too."""
    out = torch.zeros_like(hidden)
    for document in split_documents(positions, documents):
        entries = geometry.entry_count(document.length)
        leaking = replace(SPEC, visible_entries=lambda t, m, n=entries: list(range(min((t + 2) // m, n))))
        tokens = hidden[document.row, document.columns].double()
        trace = attend_document(tokens, document, _exact(weights), geometry, leaking)
        out[document.row, document.columns] = trace.out.to(hidden.dtype)
    return out


def raises(*arguments: object) -> Tensor:
    """Refuse everything, in two lines."""
    raise RuntimeError("no kernel for this machine\nsee the log")


def sleeps(*arguments: object) -> Tensor:
    """Never answer."""
    while True:
        time.sleep(0.1)


def exits(*arguments: object) -> Tensor:
    """End the process as if all were well."""
    raise SystemExit(0)


def not_finite(hidden: Tensor, *arguments: object) -> Tensor:
    """Return NaN."""
    return torch.full_like(hidden, float("nan"))


class Layer:
    """A right layer as an object."""

    def __init__(self, capabilities: object = None) -> None:
        self.capabilities = capabilities

    def layer(self, *arguments: object) -> Tensor:
        """Do as ``right`` does."""
        return right(*arguments)  # type: ignore[arg-type]


class Lazy:
    """An object whose layer cannot be looked at."""

    @property
    def layer(self) -> object:
        """Fail as a lazy import does."""
        raise RuntimeError("lazy import failed")


def attend(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Follow the specification query by query, and round once."""
    out = torch.zeros_like(q)
    for b, t in itertools.product(range(q.shape[0]), range(q.shape[1])):
        keys = kv[b, indices[b, t][indices[b, t] >= 0]]
        out[b, t] = SPEC.attend(q[b, t].double(), keys.double(), sinks.double(), scale)[0].to(q.dtype)
    return out


def select(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Sort stably, what is not visible last."""
    visible = ((positions + 1) // compress_ratio)[..., None]
    ranked = scores.masked_fill((torch.arange(scores.shape[2]) >= visible) | scores.isnan(), -torch.inf)
    picks = ranked.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
    return picks.masked_fill(picks >= visible, -1)


def selects_the_lowest(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Sort the wrong way round."""
    return select(-scores, positions, compress_ratio, top_k)


def refuses_float64(q: Tensor, *others: object) -> Tensor:
    """Attend in what it declares."""
    assert q.dtype != torch.float64
    return attend(q, *others)  # type: ignore[arg-type]


refuses_float64.capabilities = Capabilities(dtypes=frozenset({"float32"}))  # type: ignore[attr-defined]


class Kernels:
    """Two stages, one of which knows only one dtype."""

    attend = staticmethod(refuses_float64)
    select = staticmethod(select)


class Mixed(Kernels):
    """A right attention and a wrong selection."""

    select = staticmethod(selects_the_lowest)


kernels = Kernels()
mixed = Mixed()
layer_object = Layer()
number = 3
lazy = Lazy()
undeclared = Layer({"kinds": ["csa"]})
sliding_only = Layer(Capabilities(kinds=frozenset({LayerKind.SLIDING})))
cuda_only = Layer(Capabilities(devices=frozenset({"cuda"})))
float32_only = Layer(Capabilities(dtypes=frozenset({"float32"})))
no_kinds = Layer(Capabilities(kinds=frozenset()))
no_ratios = Layer(Capabilities(compress_ratios=frozenset()))
no_modes = Candidate("no modes", {})
named = Candidate("my kernel", {"layer": leaky})


def changes_inputs(hidden: Tensor, *arguments: object) -> Tensor:
    """Answer right, and leave zeros where the hidden states were."""
    out = right(hidden, *arguments)  # type: ignore[arg-type]
    hidden.zero_()
    return out


def leaves(*arguments: object) -> Tensor:
    """End the process at once, as if all were well."""
    ctypes.CDLL(None)._exit(0)
