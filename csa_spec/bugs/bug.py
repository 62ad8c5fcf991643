"""A known bug: what the wrong code would have computed, as a small variant of the specification.

To add one, write the function as the wrong code has it, or the rules that it breaks, its cause and its URL::

    layer_bug(
        "sees_the_block_that_it_stands_in",
        "The bound is p // m in place of (p + 1) // m, so that a query sees a block that is not complete yet.",
        "https://github.com/vllm-project/tpu-inference/issues/3536",
        visible_entries=lambda t, m: list(range(t // m + 1)),
    )
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from csa_spec.harness.candidate import LAYER, Candidate, LayerStage, as_candidate
from csa_spec.spec import (
    SPEC,
    Document,
    DocumentTrace,
    Geometry,
    LayerKind,
    LayerWeights,
    Spec,
    attend_document,
    split_documents,
)

Function = TypeVar("Function", bound=Callable[..., Any])
Rules = Callable[[Document, Geometry], Spec]
"""Rules that depend on the document: its row, length and start."""

EVERY = (LayerKind.CSA, LayerKind.HCA, LayerKind.SLIDING)
COMPRESSED = (LayerKind.CSA, LayerKind.HCA)
CSA = (LayerKind.CSA,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug:
    """One mistake, and an implementation that makes it."""

    name: str
    """What such an implementation does, in words joined by underscores: ``drops_the_sink``"""
    cause: str
    """One sentence"""
    urls: tuple[str, ...]
    """Where somebody reported it; none for a plausible mistake that nobody did"""
    stage: str
    function: Callable[..., Any]
    """The wrong stage, with the signature of its stage"""
    kinds: tuple[LayerKind, ...] = ()
    """Layer kinds in which it shows, the plainest first; none for stages that have no layer kind"""
    broken: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """The rules of :class:`csa_spec.spec.Spec` that it replaces, where that is all it does"""
    equivalent: str = ""
    """Why no check can tell it from a right implementation, where that is so"""

    @property
    def title(self) -> str:
        """The name in words."""
        return self.name.replace("_", " ")

    @property
    def seeded(self) -> bool:
        """Whether nobody reported it."""
        return not self.urls

    @property
    def sources(self) -> list[str]:
        """Its URLs in short, e.g. ``transformers #45758``."""
        return [source(url) for url in self.urls]

    @property
    def candidate(self) -> Candidate:
        """The implementation, plugged in like anyone's."""
        return as_candidate(self.function, f"csa_spec.bugs:{self.name}", self.stage)

    def __str__(self) -> str:
        """Return what it does and where it was reported."""
        return f"{self.title} ({', '.join(self.sources) or 'seeded'})"


def source(url: str) -> str:
    """Return a URL of GitHub in short: ``transformers #45758``."""
    match = re.fullmatch(r"https://github\.com/[^/]+/([^/]+)/(?:issues|pull)/(\d+)", url)
    return f"{match[1]} #{match[2]}" if match else url


REGISTERED: list[Bug] = []
"""In the order in which the modules of this folder are read."""


def bug(stage: str, *urls: str, kinds: tuple[LayerKind, ...] = (), **more: Any) -> Callable[[Function], Function]:
    """Register the decorated function: its name is the bug's, the first paragraph of its docstring the cause."""

    def register(function: Function) -> Function:
        cause = " ".join((function.__doc__ or "").strip().split("\n\n")[0].split())
        function.stage = stage  # type: ignore[attr-defined]
        REGISTERED.append(
            Bug(name=function.__name__, cause=cause, urls=urls, stage=stage, function=function, kinds=kinds, **more)
        )
        return function

    return register


def layer_bug(
    name: str,
    cause: str,
    *urls: str,
    kinds: tuple[LayerKind, ...] = (),
    rules: Rules | None = None,
    equivalent: str = "",
    **broken: Callable[..., Any],
) -> LayerStage:
    """Register a layer that follows the specification but for some rules, and return it.

    Parameters
    ----------
    name, cause, urls, equivalent
        As in :class:`Bug`.
    kinds
        Layer kinds in which it shows; where it is not said, those that the broken rules are about.
    rules
        Where the rules depend on the document.
    broken
        Rules of :class:`csa_spec.spec.Spec` and what takes their place.
    """
    layer = following(rules or replace(SPEC, **broken))
    layer.__name__ = layer.__qualname__ = name  # type: ignore[attr-defined]
    layer.__doc__ = cause
    bug(LAYER, *urls, kinds=kinds or _kinds_of(broken), broken=broken, equivalent=equivalent)(layer)
    return layer


_OF_COMPRESSED = ("pooled_tokens", "half_columns", "pool_logit", "pool", "entry_position", "visible_entries")


def _kinds_of(broken: dict[str, Any]) -> tuple[LayerKind, ...]:
    if broken and set(broken) <= {"index_score", "select"}:
        return CSA
    return COMPRESSED if broken and set(broken) <= {"index_score", "select", *_OF_COMPRESSED} else EVERY


def following(rules: Spec | Rules) -> LayerStage:
    """Return a layer that follows some rules in float64, document by document, and rounds once."""

    def layer(
        hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor, /
    ) -> Tensor:
        out = torch.zeros_like(hidden, dtype=torch.float64)
        for document in split_documents(positions, documents):
            tokens = hidden[document.row, document.columns]
            spec = rules if isinstance(rules, Spec) else rules(document, geometry)
            out[document.row, document.columns] = run_document(tokens, document, weights, geometry, spec).out
        return out.to(hidden.dtype)

    return layer


def run_document(
    hidden: Tensor,
    document: Document,
    weights: LayerWeights,
    geometry: Geometry,
    spec: Spec,
    selections: list[list[int]] | None = None,
) -> DocumentTrace:
    """Run one document ``[S, hidden]`` in float64; rules may name tokens and entries that there are not."""
    count = geometry.entry_count(len(hidden))
    existing = replace(
        spec,
        visible_entries=lambda t, m: [s for s in spec.visible_entries(t, m) if 0 <= s < count],
        window_tokens=lambda t, window: [j for j in spec.window_tokens(t, window) if 0 <= j < len(hidden)],
    )
    exact = LayerWeights.from_named({name: tensor.double() for name, tensor in weights.named().items()})
    return attend_document(hidden.double(), document, exact, geometry, existing, selections)
