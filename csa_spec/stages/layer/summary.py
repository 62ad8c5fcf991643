"""Which queries of a layer are wrong, and what is wrong with what they depend on: up to three sentences."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch

from csa_spec.engine.dependence import Dependence
from csa_spec.engine.failures import Failure
from csa_spec.engine.tally import error_ratios
from csa_spec.spec import SPEC, Geometry
from csa_spec.stages.layer.expected import ExpectedDocument

if TYPE_CHECKING:
    from csa_spec.stages.layer.trial import LayerTrial

_SHOWN = 3
"""Queries that a sentence names."""
_MOST_ENTRIES = 6
"""Where there are no more entries, every set of them is tried as what a query attended to."""


def summary(trial: LayerTrial, failure: Failure) -> list[str]:
    """Return the sentences; none where the failure is not about a query.

    A failure without matrices of dependence is given them.
    """
    place = failure.place
    document = None if place is None else trial.expected.document_at(place.row, place.column)
    return [] if document is None else _of_document(trial, failure, document)


def _of_document(trial: LayerTrial, failure: Failure, document: ExpectedDocument) -> list[str]:
    try:
        output = trial.output.out
        if failure.dependence is None:
            failure.dependence = trial.dependence(document)
    except Failure as again:  # it does not answer every time
        return [str(again)]
    got = document.outputs(output)
    ratios = error_ratios(got, document.trace.out, document.budgets.out).amax(1)
    wrong = [t for t, ratio in enumerate(ratios.tolist()) if ratio > 1 and not document.choices[t].ambiguous]
    if not wrong:
        return [f"{failure.title[0].upper()}{failure.title[1:]}: {failure.detail}"]
    told = failure.place.t if failure.place is not None and failure.place.t in wrong else wrong[0]
    right = len(got) - len(wrong)
    where = f"{_queries(wrong)} of row {document.span.row} {'is' if len(wrong) == 1 else 'are'} wrong"
    if right:
        where += ", the other is right" if right == 1 else f", the other {right} are right"
    other = _other_selection(trial, document, told, got)
    query = document.trace.queries[told]
    if trial.expected.geometry.kind != "sliding":
        where += f"; query {told} must attend to {_entries(sorted(query.selection))}"
        where += f" (of {len(document.trace.context.entries)}) and to {_tokens(query.window)} in its window"
    if other is not None:
        where += f"; its output is that of attending to {_entries(other)}"
    sight = _sight(failure.dependence, trial.case.geometry, document)
    if sight:
        return [where, *sight]
    if failure.dependence is None:
        return [where, "The document is too long to probe what each query depends on"]
    # An entry or the window may be missed whose tokens are read in another entry: the set may be wrong all
    # the same.
    wrong_is = "what it makes of them" if other is None else "which entries it attends to"
    right_is = "Every query depends on each token that it must, and on none that is hidden from it"
    return [where, f"{right_is}: {wrong_is} is wrong"]


def _other_selection(
    trial: LayerTrial, document: ExpectedDocument, t: int, got: torch.Tensor
) -> list[int] | None:
    """Return the only set of entries that would explain the candidate's answer; None if there are others."""
    count = len(document.trace.context.entries)
    if not 0 < count <= _MOST_ENTRIES:
        return None
    explaining = []
    right = sorted(document.trace.queries[t].selection)
    for size in range(count + 1):
        for chosen in map(list, itertools.combinations(range(count), size)):
            if chosen == right:
                continue
            out = trial.expected.answer(document, t, chosen).out
            if float(error_ratios(got[t], out, 2 * document.budgets.out[t]).max()) <= 1:
                explaining.append(chosen)
    return explaining[0] if len(explaining) == 1 else None


def _sight(dependence: Dependence | None, geometry: Geometry, document: ExpectedDocument) -> list[str]:
    """Say what depends on what it must not, or does not on what it must."""
    if dependence is None:
        return []
    sentences = []
    for pairs, says, verb in (
        (dependence.too_much, "It sees too much", "depends on"),
        (dependence.too_little, "It sees too little", "does not depend on"),
    ):
        by_query: dict[int, list[int]] = {}
        for t, token in pairs:
            by_query.setdefault(t, []).append(token)
        told = [
            f"query {t} {verb} {_tokens(tokens)}{_of_entries(tokens, t, geometry, document)}"
            for t, tokens in list(by_query.items())[:_SHOWN]
        ]
        if told:
            more = f", and so for {len(by_query) - _SHOWN} more" if len(by_query) > _SHOWN else ""
            sentences.append(f"{says}: {', '.join(told)}{more}")
    return sentences


def _of_entries(tokens: list[int], t: int, geometry: Geometry, document: ExpectedDocument) -> str:
    """Name the entries that tokens are part of, unless the query sees the tokens in its window."""
    outside = {token for token in tokens if token not in document.trace.queries[t].window}
    entries = []
    for s in range(len(document.trace.context.entries)):
        pooled = SPEC.pooled_tokens(s, geometry.compress_ratio, geometry.overlap)
        if any(token.token in outside for token in pooled):
            entries.append(s)
    return f" (of {_entries(entries)})" if entries else ""


def _queries(ts: list[int]) -> str:
    names = ", ".join(map(str, ts[:_SHOWN])) + (", ..." if len(ts) > _SHOWN else "")
    return f"Query {names}" if len(ts) == 1 else f"{len(ts)} queries ({names})"


def _entries(entries: list[int]) -> str:
    return _named("entry", "entries", entries)


def _tokens(tokens: list[int]) -> str:
    return _named("token", "tokens", tokens)


def _named(noun: str, many: str, numbers: list[int]) -> str:
    """Return e.g. ``entry 0``, ``tokens 2 to 5`` or ``no entry``."""
    if not numbers:
        return f"no {noun}"
    if len(numbers) == 1:
        return f"{noun} {numbers[0]}"
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{many} {numbers[0]} to {numbers[-1]}"
    return f"{many} {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
