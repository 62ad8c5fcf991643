"""Checks of a layer: against the specification, and laws that need no specification.

A check takes a trial. It raises a :class:`~csa_spec.engine.failures.Failure`, or returns a tally of what it
covered, or None where the case gives it nothing to do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from csa_spec.engine.dependence import Dependence
from csa_spec.engine.failures import (
    BatchOrderMatters,
    ExposesTooMuch,
    Failure,
    Found,
    FutureLeak,
    NotFinite,
    PrefixDiffers,
    ReturnsZeros,
    RowsInteract,
    SeesTooLittle,
    SeesTooMuch,
    WeightIgnored,
    WrongNumbers,
    WrongSelection,
)
from csa_spec.engine.gradients import gradients_match
from csa_spec.engine.layout import RowLayout
from csa_spec.engine.side_effects import check_bits
from csa_spec.engine.tally import Tally, error_ratios
from csa_spec.spec import PADDING, LayerKind
from csa_spec.stages.layer.case import LayerCase
from csa_spec.stages.layer.comparison import (
    Finding,
    Mismatch,
    attention_with_own_selection,
    compare,
    explain_stages,
    wrong_selection,
)
from csa_spec.stages.layer.dependence import blocks_read
from csa_spec.stages.layer.expected import Expected, ExpectedDocument, expect
from csa_spec.stages.layer.inputs import fresh_tokens, fresh_weight
from csa_spec.stages.layer.trial import LayerTrial


def matches_specification(trial: LayerTrial) -> Tally:
    """The output equals the specification's, within the error budget, for some valid selection."""
    tally, mismatch = compare(trial.expected, trial.output)
    if mismatch is not None:
        raise classify(trial, mismatch)
    for document in trial.expected.documents:
        finding = wrong_selection(trial.output, document)
        if finding is not None:  # the output is right, so another selection was used than the one shown
            place = document.place(finding.t)
            raise WrongSelection(trial.case, place=place, document=document.trace, finding=finding.sentence)
    return tally


def classify(trial: LayerTrial, mismatch: Mismatch) -> Failure:
    """Say what kind of failure a mismatch is: not finite, reads too much, too little, or wrong numbers."""
    document = mismatch.document
    dependence = trial.dependence(document)
    findings = explain_stages(trial.output, document)
    (kind, facts), t = _named(trial, mismatch, dependence, findings)
    own = attention_with_own_selection(trial.expected, trial.output, document)
    if own is not None:
        findings.append(own)
    expected, got, over = mismatch.expected, mismatch.got, mismatch.over_budget
    outputs, number = document.outputs(trial.output.out), document.trace.number
    errors = error_ratios(outputs, document.trace.out, document.budgets.out).amax(1)
    # What the other ambiguous queries must give depends on their choice.
    errors[[number(i) for i in document.ambiguous if i != mismatch.t]] = torch.nan
    if t != mismatch.t:  # show the query that the sentence is about
        got, expected = outputs[number(t)], document.trace.query(t).out
        over = float(error_ratios(got, expected, document.budget(t)).max())
    failure = kind(
        trial.case,
        place=document.place(t),
        expected=expected.tolist(),
        got=got.tolist(),
        over_budget=over,
        findings=tuple(finding.sentence for finding in findings),
        document=document.trace,
        dependence=dependence,
        errors=errors,
        **facts,
    )
    failure.vague = kind is WrongNumbers and dependence is None
    return failure


def _named(
    trial: LayerTrial, mismatch: Mismatch, dependence: Dependence | None, findings: list[Finding]
) -> tuple[Found, int]:
    """Return what kind of failure it is, and the query that shows it."""
    t = mismatch.t
    stray = next((finding for finding in findings if finding.sees_too_much), None)
    if not mismatch.got.isfinite().all() and mismatch.expected.isfinite().all():
        return (NotFinite, {}), t
    if ReturnsZeros.fits(trial.output.out, trial.expected.out):
        return (ReturnsZeros, {}), t
    if dependence is not None and dependence.outside:  # says more than a token that it must not see
        outside = dependence.outside[0]
        return (SeesTooMuch, _outside(trial, mismatch.document, dependence, *outside)), outside[0]
    if dependence is not None and dependence.too_much:
        t, token = dependence.too_much[0]
        why = "later" if token > t else "outside"
        return (SeesTooMuch, {"what": "token", "number": token, "why": why}), t
    if stray is not None:
        return (ExposesTooMuch, {"finding": stray.sentence}), stray.t
    if dependence is not None and dependence.too_little:
        t, token = dependence.too_little[0]
        why = "window" if token in mismatch.document.trace.query(t).window else "entry"
        entry = token // trial.case.compress_ratio
        return (SeesTooLittle, {"what": "token", "number": token, "why": why, "entry": entry}), t
    return (WrongNumbers, {"wrong": mismatch.queries, "total": trial.queries, "items": "queries"}), t


def _outside(
    trial: LayerTrial, document: ExpectedDocument, dependence: Dependence, t: int, row: int, column: int
) -> dict[str, Any]:
    """Say on what outside of its document a query depends, and through which entry where that is clear."""
    span, case = document.span, trial.case
    place = RowLayout(row, case.documents_of(row)).place(column)
    facts: dict[str, Any] = {"what": place.item, "number": place.t}
    facts["elsewhere"] = (row, column, place.document)
    facts["why"] = "row" if row != span.row else "padding" if place.item == "padding" else "document"
    if row != span.row:
        return facts
    query = span.begin + t
    window = set(range(query - case.window + 1, query + 1))
    if column in window:
        return facts | {"window": case.window}
    if case.kind == LayerKind.SLIDING:
        return facts
    read = {other for number, other_row, other in dependence.outside if (number, other_row) == (t, row)}
    read |= {span.begin + j for j in dependence.observed[t].nonzero().flatten().tolist()}
    origins = (0, case.rows[row].left_padding, span.begin)
    origin = blocks_read(read, window, case.compress_ratio, origins)
    if origin is not None:
        facts |= {"entry": (column - origin) // case.compress_ratio, "blocks_from": origin}
    return facts


def future_tokens_do_not_matter(trial: LayerTrial) -> Tally | None:
    """Future tokens do not change earlier outputs."""
    cut = cut_column(trial.case)
    if cut is None:
        return None
    fresh = fresh_tokens(trial.case, trial.inputs, "future")
    hidden = torch.cat((trial.inputs.hidden[:, :cut], fresh[:, cut:]), 1)
    changed = trial.run(replace(trial.inputs, hidden=hidden)).out
    return _agree(trial, changed, FutureLeak, cut, column=cut)


def rows_do_not_interact(trial: LayerTrial) -> Tally | None:
    """Rows do not change each other: each row alone gives what it gives in the batch."""
    if len(trial.case.rows) < 2 or not trial.allows("B", 1):
        return None
    alone = torch.cat([trial.run(trial.inputs.rows([row])).out for row in range(len(trial.case.rows))])
    tally = _agree(trial, alone, RowsInteract)
    real = trial.inputs.documents != PADDING
    check_bits(trial, alone[real], trial.output.out[real])
    return tally


def prefix_is_enough(trial: LayerTrial) -> Tally | None:
    """A prefix gives the same outputs as the whole."""
    cut, padding = cut_column(trial.case), max(row.left_padding for row in trial.case.rows)
    while cut and not (trial.allows("S", cut) and padding < cut):
        cut -= 1  # the prefix must be a case that the candidate supports
    if not cut:
        return None
    out = trial.run(trial.inputs.prefix(cut)).out
    return _agree(trial, out, PrefixDiffers, cut, column=cut)


def batch_order_does_not_matter(trial: LayerTrial) -> Tally | None:
    """Permuting the batch permutes the output."""
    rows = len(trial.case.rows)
    if rows < 2:
        return None
    order = [(row + 1) % rows for row in range(rows)]
    out = trial.run(trial.inputs.rows(order)).out
    return _agree(trial, out.roll(1, 0), BatchOrderMatters, order=order)


_CLEARLY = 3.0
"""A weight must matter where replacing it moves the specification by this many budgets, those of before and
after added up: then a right candidate moves by more than one."""


def every_weight_matters(trial: LayerTrial) -> Tally | None:
    """Every weight matters: replacing it moves the output where it moves the specification's."""
    tally = Tally()
    for name in trial.inputs.weights.named():
        changed = fresh_weight(trial.case, trial.inputs, name)
        moved = expect(trial.case, changed, trial.capabilities.internal_dtype)
        target = _furthest(trial, moved)
        if target is None:
            continue
        tally.queries += 1
        document, t = target
        place = document.place(t)
        before = trial.output.out[place.row, place.column]
        after = trial.run(changed).out[place.row, place.column]
        if not before.isfinite().all():  # it would look like a weight without effect
            continue
        if float(error_ratios(after, before, document.budget(t)).max()) <= 1:
            raise WeightIgnored(
                trial.case,
                weight=name,
                place=place,
                expected=moved.out[place.row, place.column].tolist(),
                got=after.tolist(),
                document=document.trace,
            )
    return tally if tally.queries else None


def _furthest(trial: LayerTrial, moved: Expected) -> tuple[ExpectedDocument, int] | None:
    """Return the query whose specified output moved most, and clearly; one without a choice either time."""
    best: tuple[ExpectedDocument, int] | None = None
    furthest = _CLEARLY
    for document, after in zip(trial.expected.documents, moved.documents, strict=True):
        budget = document.budgets.out + after.budgets.out
        ratios = error_ratios(after.trace.out, document.trace.out, budget).amax(1)
        for query, ratio in zip(document.trace.queries, ratios.tolist(), strict=True):
            t = query.t
            if ratio > furthest and not (document.choice(t).ambiguous or after.choice(t).ambiguous):
                best, furthest = (document, t), ratio
    return best


def gradients_of_a_layer_match(trial: LayerTrial) -> Tally | None:
    """Gradients equal the specification's; a case in which a query could choose is left out."""
    if any(document.ambiguous for document in trial.expected.documents):
        return None
    return gradients_match(trial)


def _agree(
    trial: LayerTrial, other: Tensor, failure: type[Failure], columns: int | None = None, **facts: Any
) -> Tally | None:
    """Compare another output of the candidate, up to column ``columns``, with the one for the case as it is.

    Both may be off by a budget, so they may differ by two. Budgets hold for right answers; a little more,
    relative to the output, keeps the rounding of a wrong one from looking like a broken law. Ambiguous
    queries are left out: the candidate may choose differently each time.
    """
    tally = Tally()
    slack = 16 * torch.finfo(trial.expected.arithmetic.dtype).eps
    for document in trial.expected.documents:
        for t in (query.t for query in document.trace.queries):
            place = document.place(t)
            if columns is not None and place.column >= columns:
                break
            tally.queries += 1
            if document.choice(t).ambiguous:
                tally.ambiguous += 1
                continue
            first, second = (out[place.row, place.column] for out in (trial.output.out, other))
            allowed = 2 * document.budget(t) + slack * first.abs().max()
            ratio = float(error_ratios(second, first, allowed).max())
            if ratio > 1 and not (first.isnan() & second.isnan()).any():
                raise failure(
                    trial.case,
                    place=place,
                    expected=first.tolist(),
                    got=second.tolist(),
                    over_budget=ratio,
                    document=document.trace,
                    dependence=trial.dependence(document),
                    **facts,
                )
            tally.worst = max(tally.worst, ratio)
    return tally if tally.queries else None


def cut_column(case: LayerCase) -> int | None:
    """Return a column to cut the batch at; it moves with the seed.

    Something lies on either side, and every row has a token before it: a row of padding alone is not legal.
    """
    least = 1 + max(row.left_padding for row in case.rows)
    return least + case.seed % (case.columns - least) if case.columns > least else None
