"""Scripts of the stage ``cache``: call by call up to the one that answers wrongly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from csa_spec.engine.failures import Place
from csa_spec.engine.stage import SPECIFICATION
from csa_spec.scripting.comparing import form, has_wrong_form, within
from csa_spec.scripting.stage_script import Law, StageScript, Task
from csa_spec.scripting.subject import Callee, Subject
from csa_spec.stages.cache.case import Step
from csa_spec.stages.cache.schedule import Schedule, tokens_name
from csa_spec.stages.cache.stream import Op
from csa_spec.stages.cache.trial import CacheTrial
from csa_spec.stages.layer.script import allowed_errors, by_selection


class CacheScript(StageScript):
    """A stream: its calls one after another."""

    shows_calls = True

    def arguments(self, trial: Any) -> dict[str, Any]:
        """Return weights, geometry and tokens; the schedule and the batch are lines of the script."""
        arguments = trial.arguments
        tokens = {tokens_name(step.call): arguments[f"tokens {step.call}"] for step in trial.case.steps}
        return {"weights": arguments["weights"], "geometry": arguments["geometry"], **tokens}

    def write_call(self, subject: Subject, trial: Any, callee: Callee) -> None:
        """Open a stream and extend it."""
        extend = "{stream}.extend({tokens})"
        if callee.converts or callee.hand_over != "{}":
            call = extend.format(stream="stream", tokens=callee.hand_over.format("tokens"))
            subject.define("extend", ("stream", "tokens"), [f"out = {call}", *callee.returns()])
            extend = "extend({stream}, {tokens})"
        opened = f"{callee.expression}(weights, geometry, {trial.case.batch})"
        subject.schedule = Schedule(opened, extend, **self._extend_rows(subject, trial, callee))

    def _extend_rows(self, subject: Subject, trial: Any, callee: Callee) -> dict[str, Any]:
        """Say how rows are extended by different numbers of tokens, where tokens must be converted for that."""
        used = any(call.op is Op.EXTEND_ROWS for call in trial.case.calls)
        if not used or not (callee.converts or callee.hand_over != "{}"):
            return {}
        call = f"stream.extend_rows({callee.hand_over.format('tokens')}, lengths)"
        subject.define("extend_rows", ("stream", "tokens", "lengths"), [f"out = {call}", *callee.returns()])
        return {"extend_rows": "extend_rows({stream}, {tokens}, [{numbers}])"}

    def laws(self) -> dict[str, Law]:
        """Return the only one: others need all answers at once."""
        return {SPECIFICATION: self.specification}

    def specification(self, task: Task) -> list[str] | None:
        """Make the calls, and compare the wrong answer, or the last one, with the specification."""
        schedule, trial, place = task.subject.schedule, task.trial, task.failure.place
        if schedule is None:
            return None
        wrong = task.failure.facts.get("call")
        step = next(step for step in trial.case.steps[::-1] if wrong in (None, step.call))
        expected, allowed, several = _answers(trial, step, place)
        last = len(trial.case.calls) - 1 if wrong is None else wrong
        checked = "check_form({out}, {tokens})" if has_wrong_form(task.failure) else "{out}"
        at = None if place is None else Place(place.row, _column(step, place), place.t)
        dtypes = (trial.arguments["weights"].wkv.dtype,)
        return [
            *(_form_of_answers(dtypes[0]) if has_wrong_form(task.failure) else []),
            *schedule.program(trial.case.calls, step.call, last, checked),
            *form(expected.shape[-3:], dtypes, task.failure),
            "# What one call with all tokens that each row then holds answers at the last of them:",
            *within(expected, allowed, several, at, task.literals),
        ]


def _form_of_answers(dtype: torch.dtype) -> list[str]:
    """Return a function that checks the form of each answer: it is not known which one is wrong."""
    return [
        "def check_form(out, tokens):",
        '    assert isinstance(out, torch.Tensor), f"got {type(out).__name__}"',
        '    said = f"{tuple(tokens.shape)} tokens get {out.dtype} of shape {tuple(out.shape)}"',
        f"    assert out.shape == tokens.shape and out.dtype == {dtype}, said",
        "    return out",
        "",
        "",
    ]


def _column(step: Step, place: Place) -> int:
    """Return the column in the answer of a call that a token of its row has."""
    return place.t - step.before[place.row]


def _answers(trial: CacheTrial, step: Step, place: Place | None) -> tuple[Tensor, Tensor, bool]:
    """Return outputs and allowed errors of one call, ``[B, n, hidden]``, as :func:`by_selection` does."""
    out = torch.zeros(len(step.rows), step.tokens, trial.case.hidden, dtype=torch.float64)
    allowed = torch.full_like(out, torch.inf)  # what comes back at padding means nothing
    for row, tokens, count in step.judged:
        expected, last = trial.specified_on(tokens), slice(len(tokens) - count, len(tokens))
        out[row, :count] = expected.documents[0].trace.out[last]
        allowed[row, :count] = allowed_errors(expected)[0, last]
    if place is None:
        return out, allowed, False
    expected = trial.specified_on(step.rows[place.row])
    at = (place.row, _column(step, place))
    return by_selection(expected, expected.documents[0], place.t, at, out, allowed)
