"""Hold an output against the specification: element by element, within budgets, aware of ties."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from csa_spec.engine.tally import Tally, error_ratios
from csa_spec.spec import Document, answer_query
from csa_spec.stages.layer.expected import ALTERNATIVES, Expected, ExpectedDocument
from csa_spec.stages.layer.output import LayerOutput


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The query that is furthest over its budget."""

    document: ExpectedDocument
    t: int
    expected: Tensor
    """``[hidden]``"""
    got: Tensor
    """``[hidden]``"""
    over_budget: float
    """Largest error/budget of its elements; infinite for NaN"""
    queries: int
    """Queries of the batch that are wrong"""


def compare(expected: Expected, output: LayerOutput) -> tuple[Tally, Mismatch | None]:
    """Compare an output with what the specification says.

    An ambiguous query is right if its output is right for any valid selection, or, where the candidate exposes
    its selection and that is valid, for that one.
    """
    tally, worst, wrong = Tally(), None, 0
    for specified in expected.documents:
        place = specified.trace.context.document
        got = output.out[place.row, place.columns]
        exposed = _valid_exposed(output, specified)
        document = expected.reselect(specified, exposed) if exposed else specified
        ratios = error_ratios(got, document.trace.out, document.budgets.out).amax(dim=1)
        tally.queries += place.length
        tally.ambiguous += len(document.ambiguous)
        for t in range(place.length):
            judged, ratio = document, float(ratios[t])
            if ratio > 1 and document.choices[t].ambiguous and t not in exposed:
                if document.choices[t].count > ALTERNATIVES:
                    tally.unjudged += 1
                    continue
                judged, ratio = _nearest(expected, document, t, got[t])
            if ratio <= 1:
                tally.worst = max(tally.worst, ratio)
                continue
            wrong += 1
            if worst is None or ratio > worst.over_budget:
                worst = Mismatch(judged, t, judged.trace.queries[t].out, got[t], ratio, 0)
    if worst is None:
        return tally, None
    return tally, replace(worst, queries=wrong)


_NEAREST = 8
"""Of the valid selections of a query, those whose outputs are nearest to the candidate's get budgets of their own."""


def _nearest(
    expected: Expected, document: ExpectedDocument, t: int, got: Tensor
) -> tuple[ExpectedDocument, float]:
    """Return the answer with the selection that explains ``got`` best, and its error/budget."""
    answers = [
        (
            answer_query(
                t, document.trace.context, expected.weights, expected.geometry, selection=selection
            ),
            selection,
        )
        for selection in document.choices[t].selections()
    ]
    answers.sort(key=lambda answer: float((answer[0].out - got).abs().max().nan_to_num(torch.inf)))
    judged = [expected.reselect(document, {t: selection}) for _, selection in answers[:_NEAREST]]
    ratios = [float(error_ratios(got, one.trace.queries[t].out, one.budgets.out[t]).max()) for one in judged]
    best = min(range(len(judged)), key=ratios.__getitem__)
    return judged[best], ratios[best]


def _valid_exposed(output: LayerOutput, document: ExpectedDocument) -> dict[int, list[int]]:
    """Return, by query, the selections that the candidate exposes where it had a choice, as far as they are valid."""
    place = document.trace.context.document
    if output.selection is None or place.begin != 0:
        return {}
    found = {}
    for t in document.ambiguous:
        selection = _picks(output.selection, place.row, t)
        if document.choices[t].allows(selection):
            found[t] = selection
    return found


def _picks(selection: Tensor, row: int, t: int) -> list[int]:
    """Return the entries that a candidate says a query selected, without the -1 that stand for none."""
    picks = selection[row, t]
    return [int(s) for s in picks[picks >= 0]]


def attention_with_own_selection(
    expected: Expected, output: LayerOutput, document: ExpectedDocument
) -> Finding | None:
    """Judge the attention by itself: run the specification with the selections that the candidate shows.

    None unless a selection that it shows is wrong, but usable: of entries that there are, none of them twice.
    """
    place, entries = document.trace.context.document, len(document.trace.context.index_keys)
    if output.selection is None or place.begin != 0 or not entries:
        return None
    shown = {t: _picks(output.selection, place.row, t) for t in range(place.length)}
    if all(choice.allows(shown[t]) for t, choice in enumerate(document.choices)):
        return None
    if any(max(picks, default=0) >= entries or len(set(picks)) < len(picks) for picks in shown.values()):
        return None
    own = expected.reselect(document, shown)
    got = output.out[place.row, place.columns]
    ratios = error_ratios(got, own.trace.out, own.budgets.out).amax(dim=1)
    t = int(ratios.argmax())
    if float(ratios[t]) <= 1:
        return Finding("attention: right for the selections that the candidate made", t)
    return Finding(
        f"attention: wrong even for the selections that the candidate made; query {t} is off by "
        f"{float(ratios[t]):.3g} budgets",
        t,
    )


def wrong_selection(output: LayerOutput, document: ExpectedDocument) -> Finding | None:
    """Return the first selection shown for a document that its scores do not allow."""
    place = document.trace.context.document
    return None if place.begin != 0 else _selection(output, document, place)


@dataclass(frozen=True, slots=True)
class Finding:
    """How one stage that a candidate exposes differs from the specification's."""

    sentence: str
    t: int
    """The first query, or entry, that shows it"""
    sees_too_much: bool = False
    """Whether a query selects or attends to what it must not see"""


def explain_stages(output: LayerOutput, document: ExpectedDocument) -> list[Finding]:
    """Compare the stages that a candidate exposes with the specification's, in the order of the data.

    Returns one finding per stage that differs, the first stage first.
    """
    place = document.trace.context.document
    if place.begin != 0:  # exposed indices count from the row's first column
        return []
    stages = (_entries, _index_scores, _selection, _probabilities)
    found = (stage(output, document, place) for stage in stages)
    return [finding for finding in found if finding is not None]


def _entries(output: LayerOutput, document: ExpectedDocument, place: Document) -> Finding | None:
    ours = document.trace.context.entries
    theirs = output.entries
    if theirs is None:
        return None
    theirs = theirs[place.row]
    if len(theirs) < len(ours):
        return Finding(f"compressor: {len(theirs)} entries where there must be {len(ours)}", len(theirs))
    ratios = error_ratios(theirs[: len(ours)], ours, document.budgets.entries).flatten(1)
    wrong = [s for s in range(len(ours)) if float(ratios[s].max()) > 1]
    if not wrong:
        return None
    s = wrong[0]
    sentence = (
        f"compressor: entry {s} differs by {float(ratios[s].max()):.3g} budgets "
        f"(expected {_numbers(ours[s])}, got {_numbers(theirs[s])}); wrong entries: {wrong}"
    )
    return Finding(sentence, s)


def _index_scores(output: LayerOutput, document: ExpectedDocument, place: Document) -> Finding | None:
    theirs = output.index_scores
    if theirs is None:
        return None
    for query in document.trace.queries:
        if not query.visible or theirs.shape[2] < len(query.visible):
            continue
        got = theirs[place.row, query.t, query.visible]
        ratio = float(error_ratios(got, query.scores, document.budgets.scores[query.t, query.visible]).max())
        if ratio > 1:
            sentence = (
                f"index scores: query {query.t} differs by {ratio:.3g} budgets "
                f"(expected {_numbers(query.scores)}, got {_numbers(got)})"
            )
            return Finding(sentence, query.t)
    return None


def _selection(output: LayerOutput, document: ExpectedDocument, place: Document) -> Finding | None:
    if output.selection is None or not document.trace.context.index_keys.shape[0]:
        return None
    for query, choice in zip(document.trace.queries, document.choices, strict=True):
        chosen = _picks(output.selection, place.row, query.t)
        if choice.allows(chosen):
            continue
        hidden = sorted(set(chosen) - set(query.visible))
        may = f"it may see {_entry_list(query.visible)}"
        if hidden:
            sentence = f"selection: query {query.t} selects {_entry_list(hidden)}, which it must not see"
            return Finding(f"{sentence} ({may})", query.t, sees_too_much=True)
        sentence = (
            f"selection: query {query.t} selects {_entry_list(chosen)} "
            f"where the scores say {_entry_list(sorted(query.selection))} ({may})"
        )
        return Finding(sentence, query.t)
    return None


def _probabilities(output: LayerOutput, document: ExpectedDocument, place: Document) -> Finding | None:
    if output.probabilities is None:
        return None
    theirs, own_budgets = output.probabilities[place.row], document.budgets.probabilities
    entries = len(document.trace.context.entries)
    heads, columns, keys = (
        theirs.shape
    )  # the row's tokens, padding after this document included, then entries
    if keys < columns + entries:
        if keys < columns or any(query.selection for query in document.trace.queries):
            return Finding(
                f"attention: {keys} keys where there must be {columns} tokens and {entries} entries", 0
            )
        theirs = torch.nn.functional.pad(
            theirs, (0, columns + entries - keys)
        )  # entries that no query selects
        keys = columns + entries
    for query, choice in zip(document.trace.queries, document.choices, strict=True):
        if choice.ambiguous:
            continue
        attended = query.window + [columns + s for s in query.selection]
        ours = torch.zeros(heads, keys, dtype=torch.float64)
        ours[:, attended] = query.probabilities
        budgets = torch.zeros_like(ours)
        budgets[:, : place.length] = own_budgets[query.t, :, : place.length]
        budgets[:, columns : columns + entries] = own_budgets[query.t, :, place.length :]
        got = theirs[:, query.t]
        stray = got.clone()
        stray[:, attended] = 0
        if stray.any():
            head, key = (stray != 0).nonzero()[0].tolist()
            sentence = (
                f"attention: query {query.t}, head {head} attends to {_key_name(key, columns)} "
                f"with probability {float(got[head, key]):.3g}; it must not attend to it at all"
            )
            seen = set((got != 0).any(0).nonzero().flatten().tolist())
            may_see = {*query.window, *(columns + s for s in query.visible)}
            too_many = sum(key >= columns for key in seen) > len(query.selection)
            return Finding(sentence, query.t, sees_too_much=too_many or not may_see.issuperset(seen))
        ratios = error_ratios(got, ours, budgets)
        if float(ratios.max()) > 1:
            head, key = divmod(int(ratios.argmax()), keys)
            sentence = (
                f"attention: query {query.t}, head {head} attends to {_key_name(key, columns)} "
                f"with probability {float(got[head, key]):.6g} where it must be {float(ours[head, key]):.6g}"
            )
            return Finding(sentence, query.t)
    return None


def _key_name(key: int, length: int) -> str:
    return f"token {key}" if key < length else f"entry {key - length}"


def _entry_list(entries: list[int]) -> str:
    if not entries:
        return "no entry"
    return ("entry " if len(entries) == 1 else "entries ") + ", ".join(map(str, entries))


def _numbers(vector: Tensor) -> str:
    shown = ", ".join(f"{x:.4g}" for x in vector.tolist()[:6])
    return f"[{shown}{', ...' if len(vector) > 6 else ''}]"
