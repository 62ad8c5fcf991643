"""Compare an output with the specification: element by element, within budgets, aware of ties."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from csa_spec.engine.failures import numbered
from csa_spec.engine.tally import Tally, error_ratios
from csa_spec.spec import QueryTrace
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

    An ambiguous query is right if its output is right for any valid selection. Where the candidate exposes
    its selection and that is valid, only that one counts.
    """
    tally, worst, wrong = Tally(), None, 0
    for specified in expected.documents:
        got = specified.outputs(output.out)
        exposed = _valid_exposed(output, specified)
        document = expected.reselect(specified, exposed) if exposed else specified
        ratios = error_ratios(got, document.trace.out, document.budgets.out).amax(dim=1)
        tally.queries += len(got)
        tally.ambiguous += len(document.ambiguous)
        for query, choice, own, ratio in zip(
            document.trace.queries, document.choices, got, ratios.tolist(), strict=True
        ):
            judged, t = document, query.t
            if ratio > 1 and choice.ambiguous and t not in exposed:
                if choice.count > ALTERNATIVES:
                    tally.unjudged += 1
                    continue
                judged, ratio = _nearest(expected, document, t, own)
            if ratio <= 1:
                tally.worst = max(tally.worst, ratio)
                continue
            wrong += 1
            if worst is None or ratio > worst.over_budget:
                worst = Mismatch(judged, t, judged.trace.query(t).out, own, ratio, 0)
    if worst is None:
        return tally, None
    return tally, replace(worst, queries=wrong)


_NEAREST = 8
"""So many valid selections of a query, whose outputs are nearest to the candidate's, get budgets."""


def _nearest(
    expected: Expected, document: ExpectedDocument, t: int, got: Tensor
) -> tuple[ExpectedDocument, float]:
    """Return the answer with the selection that explains ``got`` best, and its error/budget."""

    def distance(selection: list[int]) -> float:
        answer = expected.answer(document, t, selection)
        return float((answer.out - got).abs().max().nan_to_num(torch.inf))

    def ratio(judged: ExpectedDocument) -> float:
        return float(error_ratios(got, judged.trace.query(t).out, judged.budget(t)).max())

    nearest = sorted(document.choice(t).selections(), key=distance)[:_NEAREST]
    best = min((expected.reselect(document, {t: selection}) for selection in nearest), key=ratio)
    return best, ratio(best)


def _exposed(output: LayerOutput, document: ExpectedDocument) -> dict[int, list[int]]:
    """Return, by query, the entries that a candidate says it selected; nothing where it does not say so."""
    if output.selection is None or document.span.begin != 0 or not len(document.trace.context.index_keys):
        return {}
    shown = zip(document.trace.queries, document.outputs(output.selection).tolist(), strict=True)
    return {query.t: [s for s in picks if s >= 0] for query, picks in shown}


def _valid_exposed(output: LayerOutput, document: ExpectedDocument) -> dict[int, list[int]]:
    """Return the exposed selections of queries that had a choice, as far as they are valid."""
    exposed = _exposed(output, document)
    return {t: exposed[t] for t in document.ambiguous if exposed and document.choice(t).allows(exposed[t])}


def attention_with_own_selection(
    expected: Expected, output: LayerOutput, document: ExpectedDocument
) -> Finding | None:
    """Judge the attention by itself: run the specification with the selections that the candidate shows.

    None unless a selection that it shows is wrong, but can be used: of existing entries, none of them twice.
    """
    shown, entries = _exposed(output, document), len(document.trace.context.index_keys)
    if all(document.choice(t).allows(picks) for t, picks in shown.items()):
        return None
    if any(max(picks, default=0) >= entries or len(set(picks)) < len(picks) for picks in shown.values()):
        return None
    own = expected.reselect(document, shown)
    ratios = error_ratios(document.outputs(output.out), own.trace.out, own.budgets.out).amax(dim=1)
    worst = int(ratios.argmax())
    ratio, t = float(ratios[worst]), document.trace.queries[worst].t
    sentence = "attention: right for the selections that the candidate made"
    if ratio > 1:
        sentence = "attention: wrong even for the selections that the candidate made; "
        sentence += f"{document.place(t).name} is off by {ratio:.3g} budgets"
    return Finding(sentence, t)


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
    if document.span.begin != 0:  # exposed indices count from the row's first column
        return []
    findings = [stage(output, document) for stage in (_entries, _index_scores, wrong_selection, _attention)]
    return [finding for finding in findings if finding is not None]


def _entries(output: LayerOutput, document: ExpectedDocument) -> Finding | None:
    if output.entries is None:
        return None
    expected, got = document.trace.context.entries, output.entries[document.span.row]
    count = len(expected)
    if len(got) < count:
        return Finding(f"compressor: {len(got)} entries where there must be {count}", len(got))
    ratios = error_ratios(got[:count], expected, document.budgets.entries).flatten(1)
    wrong = [s for s in range(count) if float(ratios[s].max()) > 1]
    if not wrong:
        return None
    s = wrong[0]
    sentence = (
        f"compressor: entry {s} differs by {float(ratios[s].max()):.3g} budgets "
        f"(expected {_numbers(expected[s])}, got {_numbers(got[s])}); wrong entries: {wrong}"
    )
    return Finding(sentence, s)


def _index_scores(output: LayerOutput, document: ExpectedDocument) -> Finding | None:
    if output.index_scores is None:
        return None
    scores, budgets = output.index_scores[document.span.row], document.budgets.scores
    for query, allowed in zip(document.trace.queries, budgets, strict=True):
        t, visible = query.t, query.visible
        if not visible or scores.shape[1] < len(visible):
            continue
        got = scores[t, visible]
        ratio = float(error_ratios(got, query.scores, allowed[visible]).max())
        if ratio > 1:
            sentence = (
                f"index scores: {document.place(t).name} differs by {ratio:.3g} budgets "
                f"(expected {_numbers(query.scores)}, got {_numbers(got)})"
            )
            return Finding(sentence, t)
    return None


def wrong_selection(output: LayerOutput, document: ExpectedDocument) -> Finding | None:
    """Return the first selection shown for a document that its scores do not allow."""
    for t, picks in _exposed(output, document).items():
        query = document.trace.query(t)
        if document.choice(t).allows(picks):
            continue
        hidden = sorted(set(picks) - set(query.visible))
        name, may = document.place(t).name, f"it may see {_entry_list(query.visible)}"
        if hidden:
            sentence = f"selection: {name} selects {_entry_list(hidden)}, which it must not see"
            return Finding(f"{sentence} ({may})", t, sees_too_much=True)
        sentence = (
            f"selection: {name} selects {_entry_list(picks)} "
            f"where the scores say {_entry_list(sorted(query.selection))} ({may})"
        )
        return Finding(sentence, t)
    return None


def _attention(output: LayerOutput, document: ExpectedDocument) -> Finding | None:
    """Compare probabilities: of the row's tokens, padding behind the document included, then of entries."""
    if output.probabilities is None:
        return None
    exposed, entries = output.probabilities[document.span.row], len(document.trace.context.entries)
    columns, keys = exposed.shape[1:]
    missing = columns + entries - keys
    if keys < columns or (missing > 0 and any(query.selection for query in document.trace.queries)):
        sentence = f"attention: {keys} keys where there must be {columns} tokens and {entries} entries"
        return Finding(sentence, 0)
    exposed = pad(exposed, (0, max(0, missing)))  # entries that no query selects
    allowed = zip(document.trace.queries, document.choices, document.budgets.probabilities, strict=True)
    for query, choice, budgets in allowed:
        if choice.ambiguous:
            continue
        got = exposed[:, query.t]
        finding = _stray(document, query, got, columns)
        finding = finding or _wrong_probability(document, query, got, columns, budgets)
        if finding is not None:
            return finding
    return None


def _stray(document: ExpectedDocument, query: QueryTrace, got: Tensor, columns: int) -> Finding | None:
    """Find a key that a query attends to and must not."""
    stray = got.clone()
    stray[:, query.window + [columns + s for s in query.selection]] = 0
    if not stray.any():
        return None
    head, key = (stray != 0).nonzero()[0].tolist()
    sentence = (
        f"attention: {document.place(query.t).name}, head {head} attends to {_key_name(document, key, columns)} "
        f"with probability {float(got[head, key]):.3g}; it must not attend to it at all"
    )
    seen = set((got != 0).any(0).nonzero().flatten().tolist())
    may_see = {*query.window, *(columns + s for s in query.visible)}
    too_many = sum(key >= columns for key in seen) > len(query.selection)
    return Finding(sentence, query.t, sees_too_much=too_many or not may_see.issuperset(seen))


def _wrong_probability(
    document: ExpectedDocument, query: QueryTrace, got: Tensor, columns: int, budgets: Tensor
) -> Finding | None:
    """Find the key whose probability is furthest off."""
    keys = query.window + [columns + s for s in query.selection]
    ratios = error_ratios(got[:, keys], query.probabilities, budgets)
    if float(ratios.max()) <= 1:
        return None
    head, number = divmod(int(ratios.argmax()), len(keys))
    key = keys[number]
    sentence = (
        f"attention: {document.place(query.t).name}, head {head} attends to {_key_name(document, key, columns)} "
        f"with probability {float(got[head, key]):.6g} where it must be {float(query.probabilities[head, number]):.6g}"
    )
    return Finding(sentence, query.t)


def _key_name(document: ExpectedDocument, key: int, columns: int) -> str:
    """Name a token of the row, or an entry: of the document as long as it has so many, else of the row."""
    if key < columns:
        return document.layout.place(key).name
    more = document.layout.several and key - columns >= len(document.trace.context.entries)
    return f"entry {key - columns}" + (" of the row" if more else "")


def _entry_list(entries: list[int]) -> str:
    return numbered("entry", "entries", entries)


def _numbers(vector: Tensor) -> str:
    shown = ", ".join(f"{x:.4g}" for x in vector.tolist()[:6])
    return f"[{shown}{', ...' if len(vector) > 6 else ''}]"
