"""Whether two answers to one case are the same within what rounding allows, and whether one is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from csa_spec.engine.comparison import error_ratios
from csa_spec.engine.failures import Failure
from csa_spec.engine.trial import Trial, main_output
from csa_spec.plug.call import Answer
from csa_spec.plug.candidate import Candidate
from csa_spec.stages.cache import CacheTrial
from csa_spec.stages.layer_trial import LayerTrial
from csa_spec.stages.numbers import NumbersTrial, dtype_of
from csa_spec.stages.select import SelectTrial

SHARED = ("inputs", "arguments", "expected", "_expected", "named")
"""What trials compute of a case alone."""


def same_case(known: Trial, candidate: Candidate) -> Trial:
    """Return a trial of another candidate on the same case; what the case alone decides is not computed again."""
    trial = type(known)(candidate, known.case)
    for name in SHARED:
        if name in vars(known):
            vars(trial)[name] = vars(known)[name]
    return trial


class Part(NamedTuple):
    """Some items of an answer, and what the specification says of them."""

    found: tuple[Tensor, ...]
    """The items of each answer, ``[n, width]`` in float64"""
    expected: Tensor
    budget: Tensor
    ambiguous: Tensor
    """``[n]``: whether the item may rightly be another, because of ties"""


def agree(known: Trial, got: Answer, wrong: Answer) -> bool:
    """Whether a candidate's answer is a wrong one that somebody else gave.

    Budgets are those of the case, two of them, since both answers are rounded. Where the wrong answer is hardly
    further from the specification's than that, the candidate's must be nearer to the wrong one.
    """
    if isinstance(known, SelectTrial):
        return _picks(known, got) == _picks(known, wrong) and is_wrong(known, wrong)
    off = apart = 0.0
    for part in _parts(known, got, wrong):
        first, second = part.found
        same = _same(known, part)
        if not bool((same | part.ambiguous).all()):
            return False
        ratios = torch.where(same, error_ratios(second, part.expected, part.budget).amax(1), 0.0)
        between = torch.where(_alike(first, second), 0.0, (first - second).abs() / part.budget).amax(1)
        off = max(off, float(ratios.max()))
        apart = max(apart, float(torch.where(ratios > 1, between, 0.0).max()))
    return off > 1 and 2 * apart < off


def same_answer(known: Trial, first: Answer, second: Answer) -> bool:
    """Whether two answers are the same, where no tie leaves a choice."""
    if isinstance(known, SelectTrial):
        return _picks(known, first) == _picks(known, second)
    return all(bool((_same(known, part) | part.ambiguous).all()) for part in _parts(known, first, second))


def is_wrong(known: Trial, answer: Answer) -> bool:
    """Whether the specification gives another answer, whichever way ties are broken."""
    if isinstance(known, NumbersTrial):  # its judge would probe what each wrong item depends on
        parts = _parts(known, answer)
        return any(
            float(error_ratios(part.found[0], part.expected, part.budget).max()) > 1 for part in parts
        )
    try:
        known.judge(answer)
    except Failure:
        return True
    return False


def roughly(first: Any, second: Any) -> bool:
    """Whether two tensors that have no budget are about the same: gradients, or answers to changed arguments."""
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return (first is None) == (second is None)
    if first.shape != second.shape:
        return False
    if not first.is_floating_point():
        return torch.equal(first.sort(-1).values, second.sort(-1).values)
    share = {torch.float64: 1e-7, torch.float32: 1e-3}.get(first.dtype, 0.05)
    one, other = first.double(), second.double()
    allowed = share * one.nan_to_num(0.0, 0.0, 0.0).abs().max() if one.numel() else 0.0
    return bool((((one - other).abs() <= allowed) | _alike(one, other)).all())


def _same(known: Trial, part: Part) -> Tensor:
    """Return ``[n]``: which items are the same in two answers.

    Budgets hold for right answers; a little more, relative to the item, allows for the rounding of a wrong one.
    """
    first, second = part.found
    slack = min(16 * torch.finfo(dtype_of(known.case.dtype)).eps, 2.0**-6)
    largest = first.nan_to_num(0.0, 0.0, 0.0).abs().amax(1, keepdim=True)
    close = (first - second).abs() <= 2 * part.budget + slack * largest
    return (close | _alike(first, second)).all(1)


def _alike(first: Tensor, second: Tensor) -> Tensor:
    return (first == second) | (first.isnan() & second.isnan())


def _parts(known: Trial, *answers: Answer) -> Iterator[Part]:
    """Yield the items of answers with what the specification says of them; no part is empty."""
    if isinstance(known, LayerTrial):
        outs = [_out(answer) for answer in answers]
        for document in known.expected.documents:
            place = document.trace.context.document
            yield Part(
                tuple(out[place.row, place.columns] for out in outs),
                document.trace.out,
                document.budgets.out,
                torch.tensor([choice.ambiguous for choice in document.choices]),
            )
    elif isinstance(known, CacheTrial):
        yield from parts_of_calls(known, *answers)
    elif isinstance(known, NumbersTrial):
        expected, budget = (_rows_of(one) for one in known.expected)
        if expected.numel():
            found = tuple(_rows_of(known.relevant(answer).double()) for answer in answers)
            yield Part(found, expected, budget, torch.zeros(len(budget), dtype=torch.bool))


def _rows_of(items: Tensor) -> Tensor:
    """Return ``[B, items, ...]`` as ``[B * items, width]``."""
    return items.flatten(2).flatten(0, 1)


def parts_of_calls(known: CacheTrial, *answers: Answer) -> Iterator[Part]:
    """Yield each row of each call, in their order."""
    for judged in zip(*(known.judged(answer) for answer in answers), strict=True):
        tokens = judged[0].tokens
        expected = known.specified_on(tokens)
        document = expected.documents[0]
        begin = len(tokens) - len(judged[0].got)
        yield Part(
            tuple(one.got for one in judged),
            document.trace.out[begin : len(tokens)],
            document.budgets.out[begin : len(tokens)],
            torch.tensor([choice.ambiguous for choice in document.choices[begin : len(tokens)]]),
        )


def _out(answer: Answer) -> Tensor:
    out = main_output(answer)
    assert isinstance(out, Tensor)
    return out.double()


def _picks(known: SelectTrial, answer: Answer) -> list[list[tuple[float, float]]]:
    """Return what each query selects, in no order: entries with equal scores are the same."""
    picks, scores, found = known.relevant(answer), known.arguments["scores"], []
    for b in range(picks.shape[0]):
        for t in range(picks.shape[1]):
            visible, ranks = known.visible(b, t), []
            for s in picks[b, t].tolist():
                if 0 <= s < visible:
                    score = float(scores[b, t, s])
                    ranks.append((0.0, score) if score == score else (2.0, 0.0))  # a NaN has no rank
                elif s != -1:
                    ranks.append((1.0, float(s)))
            found.append(sorted(ranks))
    return found
