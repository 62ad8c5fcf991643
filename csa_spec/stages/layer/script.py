"""Scripts of the stage ``layer``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from csa_spec.engine.failures import WrongSelection
from csa_spec.scripting.comparing import two_runs
from csa_spec.scripting.stage_script import Law, StageScript, Task, alone
from csa_spec.spec import LayerKind
from csa_spec.stages.layer.checks import cut_column
from csa_spec.stages.layer.expected import ALTERNATIVES, Expected, ExpectedDocument
from csa_spec.stages.layer.inputs import fresh_tokens

_FEW = 8
"""Valid selections of a query that a script lists at most."""


class LayerScript(StageScript):
    """Outputs by token, for some valid selection; padding means nothing."""

    def legend(self, case: Any) -> str:
        """Say what an entry is."""
        if case.kind is LayerKind.SLIDING:
            return ""
        ratio = case.compress_ratio
        return (
            f"Entries are the compressed keys, one for every {'token' if ratio == 1 else f'{ratio} tokens'}."
        )

    def output_of_result(self) -> list[str]:
        """Take the output of a ``LayerOutput``."""
        return ['out = getattr(out, "out", out)  # a layer may show more than its output']

    def laws(self) -> Mapping[str, Law]:
        """Return those of layers."""
        more = {"future": self.future, "prefix": self.prefix, "batch-order": self.batch_order}
        return {**super().laws(), **more}

    def specification(self, task: Task) -> list[str] | None:
        """Compare the output, or the selection shown with it, with the specification."""
        if isinstance(task.failure, WrongSelection):
            return _selection(task)
        return super().specification(task)

    def numbers(self, task: Task) -> tuple[Tensor, Tensor, bool]:
        """Return outputs and allowed errors, ``[B, S, hidden]``; any error where nothing is compared.

        That is padding, and queries with several valid selections but for the one that the failure names.
        """
        expected, place = task.trial.expected, task.failure.place
        out, allowed = expected.out.clone(), allowed_errors(expected)
        for document in expected.documents:
            document.outputs(out)[:] = document.trace.out
        document = None if place is None else expected.document_at(place.row, place.column)
        if place is None or document is None:
            return out, allowed, False
        return by_selection(expected, document, place.t, (place.row, place.column), out, allowed)

    def rows(self, task: Task) -> list[str] | None:
        """Call with each row alone."""
        return alone(task) + _agree(task, task.subject.call(), "got", "rows alone")

    def future(self, task: Task) -> list[str] | None:
        """Call with other tokens from a column on."""
        trial, subject = task.trial, task.subject
        cut = cut_column(trial.case)
        if cut is None:
            return None
        later = fresh_tokens(trial.case, trial.inputs, "future")[:, cut:]
        lines = ["changed = hidden.clone()", f"changed[:, {cut}:] = {task.literals.of('later', later)}"]
        other = subject.call(hidden="changed")
        return lines + _agree(task, subject.call(), other, f"other tokens from column {cut} on", cut)

    def prefix(self, task: Task) -> list[str] | None:
        """Call with the first columns only."""
        subject, cut = task.subject, cut_column(task.trial.case)
        if cut is None or not task.trial.allows("S", cut):
            return None
        lines = [f"{name}_start = {name}[:, :{cut}].contiguous()" for name in subject.batched]
        other = subject.call(**subject.each("{}_start"))
        return lines + _agree(task, subject.call(), other, f"only the first {cut} columns", cut)

    def batch_order(self, task: Task) -> list[str] | None:
        """Call with the rows in another order."""
        subject = task.subject
        other = f"{subject.call(**subject.each('{}.roll(-1, 0)'))}.roll(1, 0)"
        return _agree(task, subject.call(), other, "the first row last")


def _agree(task: Task, first: str, second: str, what: str, cut: int | None = None) -> list[str]:
    """Return the lines that compare two runs up to a column."""
    expected = task.trial.expected
    allowed = 2 * allowed_errors(expected)[:, :cut]
    part = "" if cut is None else f"[:, :{cut}]"
    at = task.failure.place
    return two_runs(first, second, what, allowed, expected.arithmetic.dtype, task.literals, at=at, part=part)


def _selection(task: Task) -> list[str] | None:
    """Compare the selection that a layer shows with those that its scores allow."""
    place, plain_call = task.failure.place, task.subject.plain_call
    document = None if place is None else task.trial.expected.document_at(place.row, place.column)
    if place is None or document is None or not plain_call or document.choice(place.t).count > _FEW:
        return None
    valid = sorted(map(sorted, document.choice(place.t).selections()))
    return [
        f"shown = {plain_call}.selection[{place.row}, {place.column}].tolist()",
        "picks = sorted(entry for entry in shown if entry != -1)",
        f"valid = {valid}",
        'print(f"valid {valid}, got {picks}")',
        'assert picks in valid, f"the selection {picks} is none of {valid}"',
    ]


def allowed_errors(expected: Expected) -> Tensor:
    """Return allowed errors, ``[B, S, hidden]``: any at padding and where several selections are valid.

    And of queries that are not judged.
    """
    allowed = torch.full_like(expected.out, torch.inf)
    for document in expected.documents:
        for query, choice, budget in zip(
            document.trace.queries, document.choices, document.budgets.out, strict=True
        ):
            if not choice.ambiguous:
                place = document.place(query.t)
                allowed[place.row, place.column] = budget
    return allowed


def by_selection(
    expected: Expected,
    document: ExpectedDocument,
    t: int,
    at: tuple[int, int],
    out: Tensor,
    allowed: Tensor,
) -> tuple[Tensor, Tensor, bool]:
    """Give outputs and allowed errors a dimension in front, of the valid selections of query ``t``.

    Its row and column are ``at``. Only if it has several; the third value is whether it has.
    """
    choice, (row, column) = document.choice(t), at
    if not choice.ambiguous or choice.count > ALTERNATIVES:
        return out, allowed, False
    others = [expected.reselect(document, {t: selection}) for selection in choice.selections()]
    out, allowed = (numbers.expand(len(others), *numbers.shape).clone() for numbers in (out, allowed))
    out[:, row, column] = torch.stack([other.trace.query(t).out for other in others])
    allowed[:, row, column] = torch.stack([other.budget(t) for other in others])
    return out, allowed, True
