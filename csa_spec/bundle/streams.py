"""Schedules of calls on a stream, as the lines of a script."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from csa_spec.engine.failures import Failure, Place, WrongShape
from csa_spec.stages.cache.case import CacheCase, Step, Token
from csa_spec.stages.cache.stream import Call, Op
from csa_spec.stages.cache.trial import CacheTrial
from csa_spec.stages.layer.expected import ALTERNATIVES, Expected

OWN = {
    Op.ROLLBACK: "{stream}.rollback({numbers})",
    Op.RESET: "{stream}.reset()",
    Op.REORDER: "{stream}.reorder([{numbers}])",
    Op.SELECT: "{stream}.select([{numbers}])",
    Op.REPEAT: "{stream}.repeat({numbers})",
    Op.CLEAR: "{stream}.clear([{numbers}])",
    Op.FORK: "original, {stream} = {stream}, {stream}.fork()",
    Op.SAVE: "state = {stream}.save()",
    Op.RESTORE: "{stream}.restore(state)",
}
"""How a script asks a plugged-in stream for something."""

TRANSFORMERS = {
    Op.ROLLBACK: "{stream}.crop(-{numbers})",
    Op.RESET: "{stream}.reset()",
    Op.REORDER: "{stream}.reorder_cache(torch.tensor([{numbers}]{device}))",
    Op.SELECT: "{stream}.batch_select_indices(torch.tensor([{numbers}]{device}))",
    Op.REPEAT: "{stream}.batch_repeat_interleave({numbers})",
    Op.FORK: "original, {stream} = {stream}, copy.deepcopy({stream})",
    Op.SAVE: "state = copy.deepcopy({stream})",
    Op.RESTORE: "{stream} = copy.deepcopy(state)",
}
"""The same for a cache of transformers."""


def tokens_name(call: int) -> str:
    """Return the variable that holds the tokens of a call."""
    return f"tokens_{call}"


@dataclass(frozen=True)
class Schedule:
    """How a script opens a stream and asks it for something."""

    opened: str
    """An expression: a new stream"""
    extend: str
    """An expression with ``{stream}`` and ``{tokens}``: their outputs"""
    ops: Mapping[Op, str]
    stream: str = "stream"
    device: str = ""

    def program(self, case: CacheCase, wrong: int, to_the_end: bool) -> list[str]:
        """Return the calls of a case one after another; the answer of one of them is ``got``."""
        lines = [f"{self.stream} = {self.opened}"]
        for number, line in self._lines(case):
            lines.append(f"got = {line}" if number == wrong else line)
            if number == wrong and not to_the_end:
                break
        return lines

    def function(self, name: str, given: tuple[str, ...], case: CacheCase, failure: Failure) -> list[str]:
        """Return a function that makes the calls and returns all their answers, as ``[tokens, hidden]``."""
        body = ["outs = []", f"{self.stream} = {self.opened}"]
        body += [line if number is None else f"outs.append({line})" for number, line in self._lines(case)]
        if isinstance(failure, WrongShape):
            tokens = ", ".join(tokens_name(step.call) for step in case.steps)
            body += [
                f"for tokens, out in zip(({tokens},), outs):",
                '    assert out.shape == tokens.shape, f"{tuple(tokens.shape)} gives {tuple(out.shape)}"',
            ]
        body += ["return torch.cat([out.flatten(0, 1) for out in outs])"]
        return ["", "", f"def {name}({', '.join(given)}):", *(f"    {line}" for line in body), "", ""]

    def _lines(self, case: CacheCase) -> Iterator[tuple[int | None, str]]:
        """Yield the number of an ``extend`` and its expression, or None and a statement."""
        opened = False
        for number, call in enumerate(case.calls):
            stream = self.stream
            if call.op is Op.OTHER:
                if not opened:
                    yield None, f"other = {self.opened}"
                stream, opened = "other", True
            elif call.op is not Op.EXTEND:
                yield None, self._op(call)
                stream = "original"
            if call.op in (Op.EXTEND, Op.FORK, Op.OTHER):
                yield number, self.extend.format(stream=stream, tokens=tokens_name(number))

    def _op(self, call: Call) -> str:
        numbers = ", ".join(map(str, call.numbers))
        return self.ops[call.op].format(stream=self.stream, numbers=numbers, device=self.device)


def wrong_call(failure: Failure) -> int | None:
    """Return the number of the call that a failure is about; None where it names none."""
    marked = next((line for line in failure.context if line.endswith("<-- wrong")), "")
    found = re.search(r"\(tokens_(\d+)\)", marked)
    return int(found[1]) if found else None


def answers_of(trial: CacheTrial, step: Step, place: Place | None = None) -> tuple[Tensor, Tensor, bool]:
    """Return outputs and allowed errors of one call, ``[B, n, hidden]``.

    Queries that may select this or that may have any error, but the one at ``place``: where it may, both get a
    dimension before, of its valid selections, and the third value is true.
    """
    rows, budgets = [], []
    for row in step.rows:
        document = _specified(trial, row).documents[0]
        allowed = document.budgets.out.clone()
        allowed[[t for t, choice in enumerate(document.choices) if choice.ambiguous]] = torch.inf
        rows.append(document.trace.out[len(row) - step.tokens : len(row)])
        budgets.append(allowed[len(row) - step.tokens : len(row)])
    out, allowed = torch.stack(rows), torch.stack(budgets)
    if place is None:
        return out, allowed, False
    found = _specified(trial, step.rows[place.row])
    document, t = found.documents[0], place.t
    choice, column = document.choices[t], place.t - len(step.rows[place.row]) + step.tokens
    if not choice.ambiguous or choice.count > ALTERNATIVES:
        return out, allowed, False
    others = [found.reselect(document, {t: selection}) for selection in choice.selections()]
    out, allowed = (x.expand(len(others), *x.shape).clone() for x in (out, allowed))
    out[:, place.row, column] = torch.stack([other.trace.queries[t].out for other in others])
    allowed[:, place.row, column] = torch.stack([other.budgets.out[t] for other in others])
    return out, allowed, True


def all_answers(trial: CacheTrial) -> tuple[Tensor, Tensor]:
    """Return outputs and allowed errors of all calls, as ``[tokens, hidden]``."""
    found = [answers_of(trial, step)[:2] for step in trial.case.steps]
    out, allowed = (torch.cat([one.flatten(0, 1) for one in many]) for many in zip(*found, strict=True))
    return out, allowed


def _specified(trial: CacheTrial, tokens: tuple[Token, ...]) -> Expected:
    """Return what the specification says on tokens, or on more that begin with them."""
    return trial.specified_on(tokens)
