"""Which queries of a layer are wrong, and what is wrong with what they depend on: up to three sentences."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch

from csa_spec.engine.failures import READS_TOO_LITTLE, READS_TOO_MUCH, Failure, numbered
from csa_spec.engine.layout import RowLayout
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
    answers = zip(document.trace.queries, document.choices, ratios.tolist(), strict=True)
    wrong = [query.t for query, choice, ratio in answers if ratio > 1 and not choice.ambiguous]
    if not wrong:
        return [f"{failure.title[0].upper()}{failure.title[1:]}: {failure.detail}"]
    told = failure.place.t if failure.place is not None and failure.place.t in wrong else wrong[0]
    right, judged = len(got) - len(wrong), "" if document.trace.whole else " that were judged"
    where = f"{_queries(wrong)} of {_whose(document)} {'is' if len(wrong) == 1 else 'are'} wrong"
    if right:
        where += f", the other{judged} is right" if right == 1 else f", the other {right}{judged} are right"
    other = _other_selection(trial, document, told, got[document.trace.number(told)])
    query = document.trace.query(told)
    if trial.expected.geometry.kind != "sliding":
        where += f"; query {told} must attend to {_entries(sorted(query.selection))}"
        where += f" (of {len(document.trace.context.entries)}) and to {_tokens(query.window)} in its window"
    if other is not None:
        where += f"; its output is that of attending to {_entries(other)}"
    sight = _sight(failure, trial.case.geometry, document)
    if sight:
        return [where, *sight]
    if failure.dependence is None:
        why = "The document is too long to probe what each query depends on"
        return [where, why if trial.can_probe else "What each query depends on was not probed"]
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
    right = sorted(document.trace.query(t).selection)
    for size in range(count + 1):
        for chosen in map(list, itertools.combinations(range(count), size)):
            if chosen == right:
                continue
            out = trial.expected.answer(document, t, chosen).out
            if float(error_ratios(got, out, 2 * document.budget(t)).max()) <= 1:
                explaining.append(chosen)
    return explaining[0] if len(explaining) == 1 else None


def _own(document: ExpectedDocument) -> str:
    """Return e.g. `` of document 1`` where the row has several."""
    layout = document.layout
    return f" of document {layout.documents[document.span.begin]}" if layout.several else ""


def _whose(document: ExpectedDocument) -> str:
    """Name a document, and where it begins, so that it is clear from where tokens are counted."""
    begin = document.span.begin
    name = f"{_own(document)} of row {document.span.row}".removeprefix(" of ")
    return name + (f" (its first token is in column {begin})" if begin or _own(document) else "")


def _sight(failure: Failure, geometry: Geometry, document: ExpectedDocument) -> list[str]:
    """Say what depends on what it must not, or does not on what it must."""
    dependence = failure.dependence
    if dependence is None:
        return []
    own = _own(document)
    told = []
    for says, verb, pairs, outside in (
        (READS_TOO_MUCH, "depends on", dependence.too_much, dependence.outside),
        (READS_TOO_LITTLE, "does not depend on", dependence.too_little, ()),
    ):
        wrong = sorted({t for t, *_ in (*pairs, *outside)})
        queries = []
        for t in wrong[:_SHOWN]:
            tokens = [token for query, token in pairs if query == t]
            names = [_tokens(tokens) + own + _of_entries(tokens, t, geometry, document)] if tokens else []
            names += _elsewhere(
                [place for query, *place in outside if query == t], failure, document.span.row
            )
            queries.append(f"query {t} {verb} {' and '.join(names)}")
        more = f", and so for {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        told += [f"{says}: {', '.join(queries)}{more}"] if wrong else []
    return told


def _elsewhere(places: list[list[int]], failure: Failure, own_row: int) -> list[str]:
    """Name rows and columns outside of a document: padding, and tokens of other documents or rows."""
    grouped: dict[tuple[str, str], list[int]] = {}
    for row, column in places:
        place = RowLayout(row, failure.case.documents_of(row)).place(column)
        whose = "" if place.document is None else f" of document {place.document}"
        whose += f" of row {row}" if row != own_row else ""
        grouped.setdefault((place.item, whose), []).append(place.t)
    return [
        (f"the padding in {numbered('column', 'columns', ts)}" if item == "padding" else _tokens(ts)) + whose
        for (item, whose), ts in grouped.items()
    ]


def _of_entries(tokens: list[int], t: int, geometry: Geometry, document: ExpectedDocument) -> str:
    """Name the entries that tokens are part of, unless the query sees the tokens in its window."""
    outside = {token for token in tokens if token not in document.trace.query(t).window}
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
    return numbered("entry", "entries", entries)


def _tokens(tokens: list[int]) -> str:
    return numbered("token", "tokens", tokens)
