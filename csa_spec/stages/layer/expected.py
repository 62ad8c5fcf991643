"""What the specification says about a case, how far a candidate may be from it, and which ties are open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from csa_spec.engine.budget import Arithmetic, Budgets, document_budgets
from csa_spec.engine.choices import Choice, valid_choice
from csa_spec.engine.failures import Place
from csa_spec.engine.layout import RowLayout
from csa_spec.engine.tensors import dtype_of
from csa_spec.spec import (
    Document,
    DocumentTrace,
    Geometry,
    LayerKind,
    LayerWeights,
    QueryTrace,
    answer_query,
    attend_batch,
)
from csa_spec.stages.layer.case import LayerCase
from csa_spec.stages.layer.inputs import Inputs

ALTERNATIVES = 128
"""Valid selections of one query that are tried at most; a query with more is left unjudged, and counted."""


@dataclass(frozen=True, slots=True)
class ExpectedDocument:
    """The specification's answer for one document."""

    trace: DocumentTrace
    budgets: Budgets
    choices: list[Choice]
    """Of each query that was asked about"""
    layout: RowLayout
    """The row that it is in"""

    @property
    def ambiguous(self) -> list[int]:
        """Queries with more than one valid selection."""
        both = zip(self.trace.queries, self.choices, strict=True)
        return [query.t for query, choice in both if choice.ambiguous]

    def choice(self, t: int) -> Choice:
        """Return the valid selections of a query."""
        return self.choices[self.trace.number(t)]

    def budget(self, t: int) -> Tensor:
        """Return how far the output ``[hidden]`` of a query may be off."""
        return self.budgets.out[self.trace.number(t)]

    @property
    def span(self) -> Document:
        """Its row and columns in the batch."""
        return self.trace.context.document

    def place(self, t: int) -> Place:
        """Return the place of a query in the batch."""
        return self.layout.place(self.span.begin).other(t, "query")

    def outputs(self, out: Tensor) -> Tensor:
        """Return, of the outputs of a batch, those ``[queries, hidden]`` of its queries asked about."""
        own = out[self.span.row, self.span.columns]
        return own if self.trace.whole else own[[query.t for query in self.trace.queries]]


@dataclass(frozen=True, slots=True)
class Expected:
    """The specification's answer for a case."""

    geometry: Geometry
    weights: LayerWeights
    """In float64"""
    out: Tensor
    """``[B, S, hidden]``, float64, zero at padding"""
    documents: list[ExpectedDocument]
    arithmetic: Arithmetic
    """Of the candidate"""

    def document_at(self, row: int, column: int) -> ExpectedDocument | None:
        """Return the document that a token is of; None at padding."""
        for document in self.documents:
            if document.span.row == row and 0 <= column - document.span.begin < document.span.length:
                return document
        return None

    def answer(self, document: ExpectedDocument, t: int, selection: list[int]) -> QueryTrace:
        """Return the answer of a query that selects given entries."""
        return answer_query(t, document.trace.context, self.weights, self.geometry, selection=selection)

    def reselect(self, document: ExpectedDocument, selections: Mapping[int, list[int]]) -> ExpectedDocument:
        """Return a document's answer, and its budgets, if some queries select other entries."""
        queries = list(document.trace.queries)
        for t, selection in selections.items():
            queries[document.trace.number(t)] = self.answer(document, t, selection)
        trace, keys = DocumentTrace(document.trace.context, queries), document.budgets.keys
        budgets = document_budgets(trace, self.weights, self.geometry, self.arithmetic, keys)
        return replace(document, trace=trace, budgets=budgets)


def expect(case: LayerCase, inputs: Inputs, internal_dtype: str | None = None) -> Expected:
    """Run the specification on the numbers that the candidate gets, in float64.

    Parameters
    ----------
    case
        The case.
    inputs
        Its tensors, rounded to the case's dtype.
    internal_dtype
        The candidate's own precision, where that is lower than the case's.
    """
    exact = inputs.double()
    with torch.no_grad():
        trace = attend_batch(
            exact.hidden,
            exact.weights,
            case.geometry,
            exact.positions,
            exact.documents,
            queries=case.judged_of,
        )
    arithmetic = Arithmetic.of(dtype_of(case.dtype), internal_dtype)
    documents = []
    for document in trace.documents:
        budgets = document_budgets(document, exact.weights, case.geometry, arithmetic)
        both = zip(document.queries, budgets.scores, strict=True)
        choices = [_choice(case.geometry, query, tolerances) for query, tolerances in both]
        row = document.context.document.row
        layout = RowLayout(row, inputs.documents[row].tolist())
        documents.append(ExpectedDocument(document, budgets, choices, layout))
    return Expected(case.geometry, exact.weights, trace.out, documents, arithmetic)


def _choice(geometry: Geometry, query: QueryTrace, tolerances: Tensor) -> Choice:
    if geometry.kind is not LayerKind.CSA:
        return Choice(frozenset(query.visible), frozenset(), 0)
    few = tolerances[: len(query.visible)].tolist()
    return valid_choice(query.visible, query.scores.tolist(), few, geometry.top_k)
