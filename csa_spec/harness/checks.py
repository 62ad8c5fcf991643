"""The checks: equality with the specification, and laws that need no specification.

A check takes a trial. It raises a :class:`~csa_spec.harness.failures.Failure`, or returns a tally of what it
covered, or None where the case gives it nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from csa_spec.harness.case import Case
from csa_spec.harness.comparison import Mismatch, Tally, compare, error_ratios, explain_stages
from csa_spec.harness.expected import Expected, ExpectedDocument, expect
from csa_spec.harness.failures import (
    BatchOrderMatters,
    Failure,
    FutureLeak,
    NotFinite,
    NotRepeatable,
    Place,
    PrefixDiffers,
    RowsInteract,
    SeesTooLittle,
    SeesTooMuch,
    WeightIgnored,
    WrongNumbers,
    query_name,
)
from csa_spec.harness.inputs import Inputs, fresh_tokens, fresh_weight
from csa_spec.harness.trial import Trial


@dataclass(frozen=True, slots=True)
class Check:
    """One property of a candidate."""

    name: str
    """As in ``--check`` and in reports"""
    sentence: str
    """The property"""
    run: Callable[[Trial], Tally | None]
    law: bool
    """Whether it needs no specification; a law is tried on fewer cases"""


def matches_specification(trial: Trial) -> Tally:
    """The output equals the specification's, within the error budget, for some valid selection."""
    tally, mismatch = compare(trial.expected, trial.output)
    if mismatch is not None:
        raise classify(trial, mismatch)
    return tally


def classify(trial: Trial, mismatch: Mismatch) -> Failure:
    """Say what kind of failure a mismatch is: not finite, sees too much, too little, or wrong numbers."""
    geometry, document = trial.case.geometry, mismatch.document
    dependence = trial.dependence(document)
    kind: type[Failure] = WrongNumbers
    findings = explain_stages(trial.output, document)
    stray = next((finding for finding in findings if finding.sees_too_much), None)
    t = mismatch.t
    where = f"query {query_name(t)}"
    detail = f"{mismatch.queries} of the queries differ from the specification, {where} the most"
    if not mismatch.got.isfinite().all() and mismatch.expected.isfinite().all():
        kind, detail = NotFinite, f"{where} has NaN or infinity where the specification has finite numbers"
    elif dependence is not None and dependence.too_much:
        kind, (t, token) = SeesTooMuch, dependence.too_much[0]
        detail = f"the output of query {query_name(t)} changes when token {token} changes; {_why(t, token)}"
    elif stray is not None:
        kind, t, detail = SeesTooMuch, stray.t, stray.sentence
    elif dependence is not None and dependence.too_little:
        kind, (t, token) = SeesTooLittle, dependence.too_little[0]
        detail = (
            f"the output of query {query_name(t)} does not change when token {token} changes, but it must: "
            f"{_role(document, t, token, geometry.compress_ratio)}"
        )
    expected, got, over = mismatch.expected, mismatch.got, mismatch.over_budget
    if t != mismatch.t:  # show the query that the sentence is about
        place = document.trace.context.document
        got = trial.output.out[place.row, place.begin + t]
        expected = document.trace.queries[t].out
        over = float(error_ratios(got, expected, document.budgets.out[t]).max())
    return kind(
        detail,
        trial.case,
        place=_place(document, t),
        expected=expected.tolist(),
        got=got.tolist(),
        over_budget=over,
        findings=tuple(finding.sentence for finding in findings),
        document=document.trace,
        dependence=dependence,
    )


def _why(t: int, token: int) -> str:
    if token > t:
        return f"token {token} comes after it, so it must not see it"
    return f"token {token} is neither in its window nor in an entry that it may see"


def _role(document: ExpectedDocument, t: int, token: int, compress_ratio: int) -> str:
    if token in document.trace.queries[t].window:
        return f"token {token} is in its window"
    return f"token {token} is part of an entry that it may see (entry {token // compress_ratio})"


def _place(document: ExpectedDocument, t: int) -> Place:
    place = document.trace.context.document
    return Place(place.row, place.begin + t, t)


def future_tokens_do_not_matter(trial: Trial) -> Tally | None:
    """Future tokens do not change earlier outputs."""
    cut = _cut(trial.case)
    if cut is None:
        return None
    fresh = fresh_tokens(trial.case, trial.inputs, "future")
    hidden = trial.inputs.hidden.clone()
    hidden[:, cut:] = fresh[:, cut:]
    inputs = trial.inputs
    changed = trial.run(Inputs(hidden, inputs.weights, inputs.positions, inputs.documents)).out
    return _agree(
        trial,
        changed,
        FutureLeak,
        lambda at: f"{at} changes when the tokens from column {cut} on change",
        cut,
    )


def rows_do_not_interact(trial: Trial) -> Tally | None:
    """Rows do not change each other: each row alone gives what it gives in the batch."""
    if len(trial.case.rows) < 2:
        return None
    alone = [trial.run(_take(trial.inputs, [row])).out for row in range(len(trial.case.rows))]
    return _agree(trial, torch.cat(alone), RowsInteract, lambda at: f"{at} differs when its row is run alone")


def prefix_is_enough(trial: Trial) -> Tally | None:
    """A prefix gives the same outputs as the whole."""
    cut = _cut(trial.case)
    if cut is None:
        return None
    inputs = trial.inputs
    shorter = Inputs(
        inputs.hidden[:, :cut].contiguous(),
        inputs.weights,
        inputs.positions[:, :cut].contiguous(),
        inputs.documents[:, :cut].contiguous(),
    )
    out = trial.run(shorter).out
    return _agree(trial, out, PrefixDiffers, lambda at: f"{at} differs when the batch ends at column {cut}", cut)


def batch_order_does_not_matter(trial: Trial) -> Tally | None:
    """Permuting the batch permutes the output."""
    rows = len(trial.case.rows)
    if rows < 2:
        return None
    order = [(row + 1) % rows for row in range(rows)]
    out = trial.run(_take(trial.inputs, order)).out
    back = [order.index(row) for row in range(rows)]
    return _agree(
        trial,
        out[back],
        BatchOrderMatters,
        lambda at: f"{at} differs when the rows come in the order {order}",
    )


def two_runs_agree(trial: Trial) -> Tally | None:
    """Two runs agree, bit for bit unless the candidate declares otherwise."""
    again = trial.run(trial.inputs).out
    if not trial.candidate.capabilities.deterministic:
        return _agree(trial, again, NotRepeatable, lambda at: f"{at} differs between two runs by more than rounding")
    for document in trial.expected.documents:
        place = document.trace.context.document
        first, second = trial.output.out[place.row, place.columns], again[place.row, place.columns]
        differs = ~((first == second) | (first.isnan() & second.isnan())).all(dim=1)
        if differs.any():
            t = int(differs.nonzero()[0])
            raise NotRepeatable(
                f"query {query_name(t)} differs; a candidate that is not bitwise repeatable must declare it",
                trial.case,
                place=_place(document, t),
                expected=first[t].tolist(),
                got=second[t].tolist(),
            )
    return Tally(queries=sum(d.trace.context.document.length for d in trial.expected.documents))


def inputs_are_not_changed(trial: Trial) -> Tally:
    """Inputs are not mutated."""
    trial.run(trial.inputs, watch_inputs=True)
    return Tally(queries=sum(sum(row.lengths) for row in trial.case.rows))


_CLEARLY = 3.0
"""A weight must matter where replacing it moves the specification by this many budgets, before and after together:
then a right candidate moves by more than one."""


def every_weight_matters(trial: Trial) -> Tally | None:
    """Every weight matters where it should: replacing it moves the output where it moves the specification's."""
    tally = Tally()
    for name in trial.inputs.weights.named():
        changed = fresh_weight(trial.case, trial.inputs, name)
        moved = expect(trial.case, changed, trial.candidate.capabilities.internal_dtype)
        target = _furthest(trial, moved)
        if target is None:
            continue
        tally.queries += 1
        document, t = target
        place = _place(document, t)
        before = trial.output.out[place.row, place.column]
        after = trial.run(changed).out[place.row, place.column]
        if not before.isfinite().all():  # another check's business; here it would look like a weight without effect
            continue
        if float(error_ratios(after, before, document.budgets.out[t]).max()) <= 1:
            raise WeightIgnored(
                name,
                f"replacing {name} does not move the output of query {query_name(t)}; the specification's moves",
                trial.case,
                place=place,
                expected=moved.out[place.row, place.column].tolist(),
                got=after.tolist(),
                document=document.trace,
            )
    return tally if tally.queries else None


def _furthest(trial: Trial, moved: Expected) -> tuple[ExpectedDocument, int] | None:
    """Return the query whose specified output moved most, if it moved clearly and had no choice either time."""
    best: tuple[ExpectedDocument, int] | None = None
    furthest = _CLEARLY
    for document, after in zip(trial.expected.documents, moved.documents, strict=True):
        budget = document.budgets.out + after.budgets.out
        ratios = error_ratios(after.trace.out, document.trace.out, budget).amax(1)
        for t, ratio in enumerate(ratios.tolist()):
            if ratio > furthest and not (document.choices[t].ambiguous or after.choices[t].ambiguous):
                best, furthest = (document, t), ratio
    return best


def _agree(
    trial: Trial,
    other: Tensor,
    failure: type[Failure],
    say: Callable[[str], str],
    columns: int | None = None,
) -> Tally | None:
    """Hold another output of the candidate, up to column ``columns``, against the one for the case as it is.

    Both may be off by a budget, so they may differ by two. Budgets hold for right answers; a little more, relative
    to the output, keeps the rounding of a wrong one from looking like a broken law. Ambiguous queries are left out:
    the candidate may choose differently each time.
    """
    tally = Tally()
    slack = 16 * torch.finfo(trial.expected.dtype).eps
    for document in trial.expected.documents:
        place = document.trace.context.document
        for t in range(place.length):
            column = place.begin + t
            if columns is not None and column >= columns:
                break
            tally.queries += 1
            if document.choices[t].ambiguous:
                tally.ambiguous += 1
                continue
            first, second = trial.output.out[place.row, column], other[place.row, column]
            allowed = 2 * document.budgets.out[t] + slack * first.abs().max()
            ratio = float(error_ratios(second, first, allowed).max())
            if ratio > 1 and not (first.isnan() & second.isnan()).any():
                raise failure(
                    say(f"the output of query {query_name(t)}"),
                    trial.case,
                    place=_place(document, t),
                    expected=first.tolist(),
                    got=second.tolist(),
                    over_budget=ratio,
                    document=document.trace,
                    dependence=trial.dependence(document),
                )
            tally.worst = max(tally.worst, ratio)
    return tally if tally.queries else None


def _cut(case: Case) -> int | None:
    """Return a column to cut the batch at; it moves with the seed.

    Something lies on either side, and every row has a token before it: a row of padding alone is no legal case.
    """
    least = 1 + max(row.left_padding for row in case.rows)
    return least + case.seed % (case.columns - least) if case.columns > least else None


def _take(inputs: Inputs, rows: list[int]) -> Inputs:
    return Inputs(inputs.hidden[rows], inputs.weights, inputs.positions[rows], inputs.documents[rows])


SPECIFICATION = Check("specification", "the output equals the specification's", matches_specification, False)
CHECKS = (
    SPECIFICATION,
    Check("future", "future tokens do not change earlier outputs", future_tokens_do_not_matter, True),
    Check("rows", "rows do not change each other", rows_do_not_interact, True),
    Check("prefix", "a prefix gives the same outputs as the whole", prefix_is_enough, True),
    Check("batch-order", "permuting the batch permutes the output", batch_order_does_not_matter, True),
    Check("repeat", "two runs agree", two_runs_agree, True),
    Check("inputs", "inputs are not mutated", inputs_are_not_changed, True),
    Check("weights", "every weight matters where it should", every_weight_matters, True),
)
