"""How a failing schedule gets small: fewer calls, rows and tokens first, then the layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations, islice, product
from typing import Any

from csa_spec.engine.case import CaseError
from csa_spec.stages.cache.case import CacheCase, total_tokens
from csa_spec.stages.cache.stream import PER_ROW, Call, Op
from csa_spec.stages.layer.case import LayerCase
from csa_spec.stages.layer.shrinking import DATA, SHAPES

_SEEDS = 5
_MANY_SEEDS = 30
_SHORTER = 16
"""Schedules with shorter calls that are tried with each set of smaller rules"""


def _simpler_schedules(case: CacheCase) -> Iterator[CacheCase]:
    calls = case.calls
    for many in (len(calls) // 2, len(calls) // 4, len(calls) // 8):
        for fewer in _many_fewer(calls, many) if many > 1 else ():
            yield from _seeds(_with(case, fewer))
    for batch in range(1, case.batch):
        yield from _seeds(_with(case, calls, batch))
        for rows in (slice(batch), slice(-batch, None)):
            yield from _seeds(_with(case, [_of_rows(call, rows) for call in calls], batch))
    if case.turn > 1:
        yield from _seeds(replace(case, turn=case.turn - 1))
    for number, call in enumerate(calls):
        rest = (*calls[:number], *calls[number + 1 :])
        yield from _seeds(_with(case, rest))
        if number + 1 < len(calls) and call.op is calls[number + 1].op is Op.EXTEND:
            joined = Call(Op.EXTEND, (call.numbers[0] + calls[number + 1].numbers[0],))
            yield from _seeds(_with(case, (*calls[:number], joined, *calls[number + 2 :])))
        for smaller in _smaller_calls(call):
            yield from _seeds(_with(case, (*calls[:number], smaller, *calls[number + 1 :])))
        for before in range(number):
            if call.op is Op.ROLLBACK and calls[before].op is Op.EXTEND:
                yield from _seeds(_both_shorter(case, before, number))


def _many_fewer(calls: Sequence[Call], many: int) -> Iterator[Sequence[Call]]:
    """Yield schedules without their last calls, without their first, and with one extend for those."""
    yield calls[:-many]
    yield calls[many:]
    if all(call.op is Op.EXTEND for call in calls[:many]):
        yield (Call(Op.EXTEND, (total_tokens(calls[:many]),)), *calls[many:])


def _of_rows(call: Call, rows: slice) -> Call:
    """Return the call without the numbers of other rows, if it has one for each."""
    return Call(call.op, call.numbers[rows]) if call.op in PER_ROW else call


def _both_shorter(case: CacheCase, extend: int, rollback: int) -> CacheCase | None:
    """Return the case with an extend and a rollback one token shorter: the same tokens stay."""
    calls = list(case.calls)
    for number in (extend, rollback):
        calls[number] = Call(calls[number].op, (calls[number].numbers[0] - 1,))
    return _with(case, calls)


def _shorter_calls(case: CacheCase) -> Iterator[CacheCase]:
    """One call shorter, with many seeds: some mistakes rarely change what is selected."""
    for number, call in enumerate(case.calls):
        for smaller in _smaller_calls(call):
            shorter = _with(case, (*case.calls[:number], smaller, *case.calls[number + 1 :]))
            yield from _seeds(shorter, _MANY_SEEDS)


def _everything_a_little_smaller(case: CacheCase) -> Iterator[CacheCase]:
    """Smaller rules with shorter calls: where a block is shorter, so is what comes before its end."""
    rules = [name for name in ("compress_ratio", "window", "top_k") if getattr(case, name) > 1]
    for names in [some for count in range(1, len(rules) + 1) for some in combinations(rules, count)]:
        sizes: dict[str, Any] = {name: getattr(case, name) - 1 for name in names}
        smaller = replace(case, **sizes)
        for calls in islice(product(*(_no_longer(call) for call in case.calls)), _SHORTER):
            yield from _seeds(_with(smaller, calls))


def _with(case: CacheCase, calls: Sequence[Call], batch: int | None = None) -> CacheCase | None:
    """Return the case with other calls; None where they ask for rows or tokens that are not there."""
    try:
        return replace(case, calls=tuple(calls), batch=batch or case.batch)
    except CaseError:
        return None


def _no_longer(call: Call) -> list[Call]:
    if call.op in (Op.EXTEND, Op.ROLLBACK) and call.numbers[0] > 1:
        return [Call(call.op, (call.numbers[0] - 1,)), call]
    return [call]


def _smaller_calls(call: Call) -> Iterator[Call]:
    if call.op in (Op.EXTEND, Op.ROLLBACK, Op.REPEAT):
        (number,) = call.numbers
        for smaller in dict.fromkeys((1, number // 2, number - 2, number - 1)):
            if 1 <= smaller < number:
                yield Call(call.op, (smaller,))
    elif call.op in PER_ROW:
        yield Call(Op.EXTEND if call.op is Op.EXTEND_ROWS else Op.ROLLBACK, (max(call.numbers),))
        for row, number in enumerate(call.numbers):
            for smaller in dict.fromkeys((0, 1, number // 2, number - 1)):
                if 0 <= smaller < number:
                    yield Call(call.op, (*call.numbers[:row], smaller, *call.numbers[row + 1 :]))
    elif len(call.numbers) > 1:
        for place in range(len(call.numbers)):
            yield Call(call.op, (*call.numbers[:place], *call.numbers[place + 1 :]))


def _seeds(case: CacheCase | None, count: int = _SEEDS) -> Iterator[CacheCase]:
    if case is not None:
        yield from (replace(case, seed=seed) for seed in dict.fromkeys((case.seed, *range(count))))


def _layers(
    passes: Iterable[Callable[[LayerCase], Iterator[LayerCase]]], case: CacheCase
) -> Iterator[CacheCase]:
    """Yield schedules on smaller layers."""
    for pass_ in passes:
        for smaller in pass_(case.one_document(1)):
            yield replace(case, **smaller.layer)


_SCHEDULES = (_simpler_schedules, _shorter_calls)
PASSES = (
    *_SCHEDULES,
    partial(_layers, SHAPES),
    *_SCHEDULES,
    partial(_layers, DATA),
    _everything_a_little_smaller,
)
"""Schedules come again after the rules: smaller ones need fewer tokens, and show more while data are rich"""
