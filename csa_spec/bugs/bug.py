"""A known bug: what the wrong code would have computed, as a small variant of the specification.

To add one to a layer, write the rules that it breaks, its cause and its URL::

    layer_bug(
        "sees_its_own_unfinished_block",
        "The bound is p // m instead of (p + 1) // m, so that a query sees an incomplete block.",
        "https://github.com/vllm-project/tpu-inference/issues/3536",
        visible_entries=lambda t, m: list(range(t // m + 1)),
    )

Where rules do not suffice, write how one document is answered. The function's name is the bug's, the first
paragraph of its docstring the cause::

    @layer_bug.function("https://github.com/...", kinds=CSA)
    def selects_nothing(call: DocumentCall) -> Tensor:
        \"\"\"No query selects an entry.\"\"\"
        return call.out(selections=[[]] * call.document.length)

Bugs of one stage are in :mod:`csa_spec.bugs.calls`, those of caches in :mod:`csa_spec.bugs.stream`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from csa_spec.candidates.recognise import as_candidate
from csa_spec.plug.candidate import Candidate
from csa_spec.plug.capabilities import Capabilities
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

EVERY = (LayerKind.CSA, LayerKind.HCA, LayerKind.SLIDING)
COMPRESSED = (LayerKind.CSA, LayerKind.HCA)
CSA = (LayerKind.CSA,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug:
    """One mistake, and an implementation that makes it."""

    name: str
    """What such an implementation does, in words joined by underscores: ``drops_the_sink``"""
    wording: str = ""
    """The same in plain words, where the name needs punctuation"""
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
    changed: tuple[str, ...] = ()
    """The arguments of its stage that it changes, where that is all it does"""
    equivalent: str = ""
    """Why no check can tell it from a right implementation, where that is so"""

    @property
    def title(self) -> str:
        """The name in words."""
        return self.wording or self.name.replace("_", " ")

    @property
    def replaces(self) -> set[str]:
        """What it replaces by something wrong, where that is known: rules and arguments."""
        return {*self.broken, *self.changed}

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
GRADIENTS = Capabilities(gradients=True)
"""What a bug declares whose gradients are wrong"""


def register(
    function: Function,
    stage: str,
    *urls: str,
    name: str = "",
    cause: str = "",
    declares: Capabilities | None = None,
    **more: Any,
) -> Function:
    """Register a wrong stage and return it.

    Parameters
    ----------
    function
        Called with the arguments of its stage, by position.
    stage, urls, more
        As in :class:`Bug`.
    name, cause
        As in :class:`Bug`; where they are not given, the function's name and the first paragraph of its
        docstring.
    declares
        What the function declares, where it declares anything.
    """
    name = name or function.__name__
    first, *_ = (cause or function.__doc__ or "").strip().split("\n\n")
    cause = " ".join(first.split())
    wrong: Any = function
    wrong.__name__ = wrong.__qualname__ = name
    wrong.__module__ = "csa_spec.bugs"  # where it is found by its name, in a worker's process too
    wrong.__doc__ = cause
    wrong.stage = stage
    if declares is not None:
        wrong.capabilities = declares
    REGISTERED.append(Bug(name=name, cause=cause, urls=urls, stage=stage, function=wrong, **more))
    return function


_OF_COMPRESSED = ("pooled_tokens", "half_columns", "pool_logit", "pool", "entry_position", "visible_entries")


def _kinds_of(broken: Collection[str]) -> tuple[LayerKind, ...]:
    if broken and set(broken) <= {"index_score", "select"}:
        return CSA
    return COMPRESSED if broken and set(broken) <= {"index_score", "select", *_OF_COMPRESSED} else EVERY


@dataclass(frozen=True, slots=True)
class DocumentCall:
    """One document of a call of a layer, and all that lies around it; numbers are float64."""

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
    def own_row(self) -> list[Document]:
        """Documents of the same row."""
        return [document for document in self.documents if document.row == self.document.row]

    @property
    def before(self) -> list[Document]:
        """Documents of the same row before it."""
        return [document for document in self.own_row if document.begin < self.document.begin]

    @property
    def origin(self) -> int:
        """Column of the row's first token that is not padding."""
        return min(document.begin for document in self.own_row)

    def stream(self, begin: int) -> Document:
        """Return its row from a column to its own end as one document, at matching positions."""
        document = self.document
        early = document.begin - begin
        return document._replace(begin=begin, length=document.length + early, start=document.start - early)

    def context(self, spec: Spec = SPEC, document: Document | None = None) -> Context:
        """Return the keys of the document, or of another."""
        place = document or self.document
        tokens = self.hidden[place.row, place.columns]
        return document_context(tokens, place, self.weights, self.geometry, spec)

    def out(
        self,
        context: Context | None = None,
        spec: Spec | Callable[[int], Spec] = SPEC,
        selections: list[list[int]] | None = None,
    ) -> Tensor:
        """Answer every query ``[S, hidden]``.

        Parameters
        ----------
        context
            Keys; None: those of the document.
        spec
            Rules, or those of each query.
        selections
            The entries that each query attends to; None: those that the rules select.
        """
        keys = context or self.context()
        rules = spec if not isinstance(spec, Spec) else lambda t: spec
        return torch.stack(
            [
                self.query(t, keys, rules(t), None if selections is None else selections[t]).out
                for t in range(self.document.length)
            ]
        )

    def out_with_entries_of(
        self, other: Context, spec: Spec = SPEC, selections: list[list[int]] | None = None
    ) -> Tensor:
        """Answer every query by its own tokens, and by the entries and index keys of another context."""
        context = replace(self.context(), entries=other.entries, index_keys=other.index_keys)
        return self.out(context, spec, selections)

    def query(
        self, t: int, context: Context, spec: Spec = SPEC, selection: list[int] | None = None
    ) -> QueryTrace:
        """Answer one query from some keys."""
        rules = _existing(spec, len(context.window_keys), len(context.entries))
        return answer_query(t, context, self.weights, self.geometry, rules, selection)

    def selections(self, context: Context, spec: Spec = SPEC) -> list[list[int]]:
        """Return what every query selects from some keys."""
        return [self.query(t, context, spec).selection for t in range(self.document.length)]

    def trace(self, spec: Spec = SPEC) -> DocumentTrace:
        """Run the document by some rules."""
        tokens = self.hidden[self.document.row, self.document.columns]
        return run_document(tokens, self.document, self.weights, self.geometry, spec)

    def follow(self, **broken: Callable[..., Any]) -> Tensor:
        """Answer every query by the rules of the specification except for some."""
        return self.trace(replace(SPEC, **broken)).out


Answer = Callable[[DocumentCall], Tensor]
"""Returns the output ``[S, hidden]`` of one document."""


class LayerBugs:
    """Registers bugs of layers."""

    def __call__(
        self,
        name: str,
        cause: str,
        *urls: str,
        kinds: tuple[LayerKind, ...] = (),
        answer: Answer | None = None,
        indexer: Spec | None = None,
        selections: Callable[[DocumentCall], list[list[int]]] | None = None,
        weights: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
        geometry: Callable[[Geometry], Geometry] | None = None,
        **more: Any,
    ) -> LayerStage:
        """Register a layer that follows the specification except for some rules, and return it.

        Give one of ``answer``, ``indexer``, ``selections`` and broken rules, or change the arguments.

        Parameters
        ----------
        name, cause, urls
            As in :class:`Bug`.
        kinds
            Layer kinds in which it shows; where they are not given, those that the broken rules are about.
        answer
            The output of one document.
        indexer
            Rules that only the indexer follows.
        selections
            The entries that each query attends to.
        weights
            Replaces weights, of which only the names that there are keep their place.
        geometry
            Replaces the geometry.
        more
            Rules of :class:`csa_spec.spec.Spec` and what takes their place; other fields of :class:`Bug`.
        """
        broken = {rule.name: more.pop(rule.name) for rule in fields(Spec) if rule.name in more}
        if indexer is not None:
            answer = selecting_by(indexer)
        elif selections is not None:
            answer = attending_to(selections)
        if not kinds:
            kinds = CSA if indexer or selections else _kinds_of(broken)
        layer = by_document(answer or _following(replace(SPEC, **broken)), weights, geometry)
        return register(layer, "layer", *urls, name=name, cause=cause, kinds=kinds, broken=broken, **more)

    def function(
        self, *urls: str, kinds: tuple[LayerKind, ...] = EVERY, **more: Any
    ) -> Callable[[Answer], LayerStage]:
        """Register the decorated function, which answers one document."""

        def decorate(answer: Answer) -> LayerStage:
            cause = inspect.getdoc(answer) or ""
            return self(answer.__name__, cause, *urls, kinds=kinds, answer=answer, **more)

        return decorate


layer_bug = LayerBugs()


def selecting_by(spec: Spec) -> Answer:
    """Return a layer of which only the indexer follows these rules."""
    return attending_to(lambda call: [query.selection for query in call.trace(spec).queries])


def attending_to(selections: Callable[[DocumentCall], list[list[int]]]) -> Answer:
    """Return a layer whose queries attend to given entries."""
    return lambda call: call.out(selections=selections(call))


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
        exact = LayerWeights.from_named(named if change_weights is None else change_weights(named))
        used = geometry if change_geometry is None else change_geometry(geometry)
        of_the_call = split_documents(positions, documents)
        out = torch.zeros_like(hidden, dtype=torch.float64)
        for document in of_the_call:
            call = DocumentCall(hidden.double(), of_the_call, document, exact, used)
            out[document.row, document.columns] = answer(call)
        return out.to(hidden.dtype)

    return layer


def following(spec: Spec) -> LayerStage:
    """Return a layer that follows some rules in float64, document by document, and rounds once."""
    return by_document(_following(spec))


def _following(spec: Spec) -> Answer:
    return lambda call: call.trace(spec).out


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
