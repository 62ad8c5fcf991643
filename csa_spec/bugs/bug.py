"""A known bug: what the wrong code would have computed, as a small variant of the specification.

To add one, write the function as the wrong code has it, or the rules that it breaks, its cause and its URL::

    layer_bug(
        "sees_the_block_that_it_stands_in",
        "The bound is p // m in place of (p + 1) // m, so that a query sees a block that is not complete yet.",
        "https://github.com/vllm-project/tpu-inference/issues/3536",
        visible_entries=lambda t, m: list(range(t // m + 1)),
    )

Where rules do not suffice, write how one document is answered::

    layer_bug(..., answer=lambda asked: asked.out(asked.context(), selections=[...]))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from csa_spec.candidates.recognise import as_candidate
from csa_spec.plug.candidate import Candidate
from csa_spec.spec import (
    SPEC,
    Context,
    Document,
    DocumentTrace,
    Geometry,
    LayerKind,
    LayerWeights,
    QueryTrace,
    Spec,
    answer_query,
    attend_document,
    document_context,
    split_documents,
)
from csa_spec.stages.layer.output import LayerStage

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


def bug(
    stage: str, *urls: str, kinds: tuple[LayerKind, ...] = (), **more: Any
) -> Callable[[Function], Function]:
    """Register the decorated function: its name is the bug's, the first paragraph of its docstring the cause."""

    def register(function: Function) -> Function:
        cause = " ".join((function.__doc__ or "").strip().split("\n\n")[0].split())
        function.stage = stage  # type: ignore[attr-defined]
        REGISTERED.append(
            Bug(
                name=function.__name__,
                cause=cause,
                urls=urls,
                stage=stage,
                function=function,
                kinds=kinds,
                **more,
            )
        )
        return function

    return register


def layer_bug(
    name: str,
    cause: str,
    *urls: str,
    kinds: tuple[LayerKind, ...] = (),
    rules: Rules | None = None,
    answer: Answer | None = None,
    weights: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    geometry: Callable[[Geometry], Geometry] | None = None,
    equivalent: str = "",
    **broken: Callable[..., Any],
) -> LayerStage:
    """Register a layer that follows the specification but for some rules, and return it.

    Say one of ``rules``, ``answer`` and ``broken``, or change what the layer is given.

    Parameters
    ----------
    name, cause, urls, equivalent
        As in :class:`Bug`.
    kinds
        Layer kinds in which it shows; where it is not said, those that the broken rules are about.
    rules
        Where the rules depend on the document.
    answer
        Where more than rules is wrong: the output of one document.
    weights
        Replaces weights, of which only the names that there are keep their place.
    geometry
        Replaces the geometry.
    broken
        Rules of :class:`csa_spec.spec.Spec` and what takes their place.
    """
    layer = by_document(answer or _following(rules or replace(SPEC, **broken)), weights, geometry)
    layer.__name__ = layer.__qualname__ = name  # type: ignore[attr-defined]
    layer.__doc__ = cause
    bug("layer", *urls, kinds=kinds or _kinds_of(broken), broken=broken, equivalent=equivalent)(layer)
    return layer


_OF_COMPRESSED = ("pooled_tokens", "half_columns", "pool_logit", "pool", "entry_position", "visible_entries")


def _kinds_of(broken: dict[str, Any]) -> tuple[LayerKind, ...]:
    if broken and set(broken) <= {"index_score", "select"}:
        return CSA
    return COMPRESSED if broken and set(broken) <= {"index_score", "select", *_OF_COMPRESSED} else EVERY


@dataclass(frozen=True, slots=True)
class Asked:
    """One document of a call, and all that lies around it; numbers are float64."""

    hidden: Tensor
    """``[B, S, hidden]``, all of the call"""
    documents: list[Document]
    """All of the call, row by row"""
    document: Document
    """The one to answer"""
    weights: LayerWeights
    geometry: Geometry

    @property
    def count(self) -> int:
        """How many entries the document has."""
        return self.geometry.entry_count(self.document.length)

    @property
    def before(self) -> list[Document]:
        """Documents of the same row before it."""
        return [
            one for one in self.documents if one.row == self.document.row and one.begin < self.document.begin
        ]

    @property
    def origin(self) -> int:
        """Column of the row's first token that is not padding."""
        return min(one.begin for one in self.documents if one.row == self.document.row)

    def stream(self, begin: int) -> Document:
        """Return its row from a column to its own end as one document, at positions that agree with its own."""
        document = self.document
        early = document.begin - begin
        return document._replace(begin=begin, length=document.length + early, start=document.start - early)

    def context(self, spec: Spec = SPEC, document: Document | None = None) -> Context:
        """Return the keys of the document, or of another."""
        place = document or self.document
        return document_context(
            self.hidden[place.row, place.columns], place, self.weights, self.geometry, spec
        )

    def out(
        self,
        context: Context,
        spec: Spec | Callable[[int], Spec] = SPEC,
        selections: list[list[int]] | None = None,
    ) -> Tensor:
        """Answer every query ``[S, hidden]`` from some keys, by rules that may be of each query."""
        return torch.stack(
            [
                self.query(
                    t,
                    context,
                    spec if isinstance(spec, Spec) else spec(t),
                    None if selections is None else selections[t],
                ).out
                for t in range(self.document.length)
            ]
        )

    def query(
        self, t: int, context: Context, spec: Spec = SPEC, selection: list[int] | None = None
    ) -> QueryTrace:
        """Answer one query from some keys."""
        rules = _existing(spec, len(context.window_keys), len(context.entries))
        return answer_query(t, context, self.weights, self.geometry, rules, selection)

    def trace(self, spec: Spec = SPEC) -> DocumentTrace:
        """Run the document by some rules."""
        tokens = self.hidden[self.document.row, self.document.columns]
        return run_document(tokens, self.document, self.weights, self.geometry, spec)


Answer = Callable[[Asked], Tensor]
"""Returns the output ``[S, hidden]`` of one document."""


def by_document(
    answer: Answer,
    change_weights: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    change_geometry: Callable[[Geometry], Geometry] | None = None,
) -> LayerStage:
    """Return a layer that answers document by document in float64 and rounds once."""

    def layer(
        hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor, /
    ) -> Tensor:
        named = {name: tensor.double() for name, tensor in weights.named().items()}
        if change_weights is not None:
            named = change_weights(named)
        exact, used = (
            LayerWeights.from_named(named),
            geometry if change_geometry is None else change_geometry(geometry),
        )
        found, out = split_documents(positions, documents), torch.zeros_like(hidden, dtype=torch.float64)
        for document in found:
            asked = Asked(hidden.double(), found, document, exact, used)
            out[document.row, document.columns] = answer(asked)
        return out.to(hidden.dtype)

    return layer


def following(rules: Spec | Rules) -> LayerStage:
    """Return a layer that follows some rules in float64, document by document, and rounds once."""
    return by_document(_following(rules))


def _following(rules: Spec | Rules) -> Answer:
    return lambda asked: (
        asked.trace(rules if isinstance(rules, Spec) else rules(asked.document, asked.geometry)).out
    )


def _existing(spec: Spec, tokens: int, entries: int) -> Spec:
    """Return rules that name only the tokens and entries that there are."""
    return replace(
        spec,
        visible_entries=lambda t, m: [s for s in spec.visible_entries(t, m) if 0 <= s < entries],
        window_tokens=lambda t, window: [j for j in spec.window_tokens(t, window) if 0 <= j < tokens],
    )


def run_document(
    hidden: Tensor,
    document: Document,
    weights: LayerWeights,
    geometry: Geometry,
    spec: Spec,
    selections: list[list[int]] | None = None,
) -> DocumentTrace:
    """Run one document ``[S, hidden]`` in float64; rules may name tokens and entries that there are not."""
    existing = _existing(spec, len(hidden), geometry.entry_count(len(hidden)))
    exact = LayerWeights.from_named({name: tensor.double() for name, tensor in weights.named().items()})
    return attend_document(hidden.double(), document, exact, geometry, existing, selections)
