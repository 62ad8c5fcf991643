"""The stage ``cache``: a layer whose tokens come in several calls.

``open(weights, geometry, batch) -> stream`` and ``stream.extend(hidden [B,n,E]) -> out [B,n,E]``, any number of times,
with any n. Where it is offered a stream also has ``rollback(n)``, ``reset()``, ``reorder(rows)``, ``select(rows)``,
``repeat(times)``, ``clear(rows)``, ``fork() -> stream``, ``save() -> state`` and ``restore(state)``.

The answer after any schedule is the specification on the tokens that are then in each row, and nothing else. An
operation that a stream does not have, or that raises ``NotImplementedError``, counts as refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import combinations, islice, product
from typing import Any, Self

import torch
from torch import Tensor

from csa_spec.engine.case import Case, Row
from csa_spec.engine.comparison import Mismatch, Tally, compare
from csa_spec.engine.expected import Expected, expect
from csa_spec.engine.failures import (
    CandidateRaised,
    Failure,
    NotFinite,
    Place,
    ReturnsZeros,
    StreamDiffers,
    WrongShape,
)
from csa_spec.engine.inputs import Inputs
from csa_spec.engine.shrink import DATA, LAYER_SHRINKING, SHAPES
from csa_spec.engine.stage import MANNERS, Check, Shrinking, Stage
from csa_spec.engine.stream import Call, MisshapenAnswer, Op
from csa_spec.engine.trial import Form, Trial, main_output
from csa_spec.plug.call import Answer
from csa_spec.plug.candidate import CACHE, Capabilities, LayerOutput
from csa_spec.spec import GeometryError, LayerKind
from csa_spec.stages.cache_cases import FORKED, CacheCase, Token, make_cache_inputs
from csa_spec.stages.numbers import equals_the_specification


@dataclass(frozen=True, slots=True)
class Judged:
    """One row of one ``extend``, and its answer."""

    call: int
    row: int
    tokens: tuple[Token, ...]
    """All that the row holds"""
    got: Tensor
    """``[n, hidden]``, at the last n of them"""


class CacheTrial(Trial):
    """A candidate's stream on one schedule."""

    stage = CACHE
    batched = ()
    case: CacheCase

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """weights, geometry, batch, calls, and the tokens of each call."""
        return make_cache_inputs(self.case)

    def ask(self, arguments: Mapping[str, Any], **options: Any) -> Answer:
        """Call the candidate; one call of the wrong shape is a wrong shape."""
        try:
            return super().ask(arguments, **options)
        except CandidateRaised as raised:
            if (
                type(raised.error).__name__ == MisshapenAnswer.__name__
            ):  # a worker's has only the name in common
                raise WrongShape(str(raised.error), self.case) from None
            raise

    def form(self, arguments: Mapping[str, Any]) -> Form:
        """All outputs, one after another."""
        extends = {f"tokens {step.call}" for step in self.case.steps}
        rows = sum(x.shape[0] * x.shape[1] for name, x in arguments.items() if name in extends)  # forks too
        dtype = self.arguments["weights"].wkv.dtype
        return Form((rows, self.case.layer.geometry.hidden), (dtype,), "[tokens, hidden]")

    @property
    def queries(self) -> int:
        """Outputs of all calls."""
        return sum(step.tokens * len(step.rows) for step in self.case.steps)

    def place(self, row: int, column: int) -> Place | None:
        """Outputs of calls have no common place."""
        return None

    def specified(self, arguments: Mapping[str, Any], noise: Any = None) -> Tensor:
        """Streams are for inference."""
        raise TypeError("cache has no gradient")

    def sibling(self) -> Self:
        """Return a trial of the same schedule with other values."""
        other = replace(self.case, layer=replace(self.case.layer, seed=self.case.seed + 1))
        return type(self)(self.candidate, other)

    def judged(self, answer: Answer) -> Iterator[Judged]:
        """Yield the answer of every row of every ``extend``."""
        out, begin = main_output(answer), 0
        assert isinstance(out, Tensor)
        for step in self.case.steps:
            for row, tokens in enumerate(step.rows):
                yield Judged(step.call, row, tokens, out[begin : begin + step.tokens].double())
                begin += step.tokens

    @cached_property
    def _expected(self) -> dict[tuple[Token, ...], Expected]:
        """The specification's answer for every history that is no beginning of a longer one."""
        histories = sorted({row for step in self.case.steps for row in step.rows}, key=len, reverse=True)
        found: dict[tuple[Token, ...], Expected] = {}
        for history in histories:
            if any(longer[: len(history)] == history for longer in found):
                continue
            hidden = torch.stack(
                [self.arguments[f"tokens {call}"][row, place] for call, row, place in history]
            )
            length = len(history)
            inputs = Inputs(
                hidden[None],
                self.arguments["weights"],
                torch.arange(length)[None],
                torch.zeros(1, length).long(),
            )
            whole = replace(self.case.layer, rows=(Row((length,)),))
            found[history] = expect(whole, inputs, self.capabilities.internal_dtype)
        return found

    def specified_on(self, tokens: tuple[Token, ...]) -> Expected:
        """Return what the specification says of a row that holds ``tokens``, or begins with them."""
        return next(found for longer, found in self._expected.items() if longer[: len(tokens)] == tokens)

    def judge(self, answer: Answer) -> Tally:
        """Every output is that of the specification on what its row then holds."""
        tally = Tally()
        for one in self.judged(answer):
            expected = self.specified_on(one.tokens)
            out = expected.out.clone()
            end = len(one.tokens)
            out[0, end - len(one.got) : end] = one.got
            own, mismatch = compare(expected, LayerOutput(out))
            if mismatch is not None:
                raise self._failure(answer, one, mismatch)
            tally.queries += len(one.got)
            tally.ambiguous += sum(
                choice.ambiguous for choice in expected.documents[0].choices[end - len(one.got) : end]
            )
            tally.unjudged += own.unjudged
            tally.worst = max(tally.worst, own.worst)
        return tally

    def _failure(self, answer: Answer, one: Judged, mismatch: Mismatch) -> Failure:
        before = [call.op for call in self.case.calls[: one.call + 1] if call.op is not Op.EXTEND]
        detail = (
            f"call {one.call + 1} of {len(self.case.calls)} ({_said(self.case.calls[one.call])}) answers row {one.row} "
            f"otherwise than the specification on the {len(one.tokens)} tokens that the row then holds"
        )
        details: dict[str, Any] = {
            "place": Place(one.row, mismatch.t, mismatch.t),
            "expected": mismatch.expected.tolist(),
            "got": mismatch.got.tolist(),
            "over_budget": mismatch.over_budget,
            "document": mismatch.document.trace,
            "context": tuple(self._program(one.call)),
        }
        out = main_output(answer)
        assert isinstance(out, Tensor)
        if not mismatch.got.isfinite().all() and mismatch.expected.isfinite().all():
            return NotFinite(detail, self.case, **details)
        if not out.any():
            return ReturnsZeros("every element is zero", self.case, **details)
        return StreamDiffers(before[-1] if before else Op.EXTEND, detail, self.case, **details)

    def _program(self, wrong: int) -> Iterator[str]:
        """Print the schedule as a short program."""
        yield f"stream = open(weights, geometry, batch={self.case.batch})"
        first_other = next(
            (number for number, call in enumerate(self.case.calls) if call.op is Op.OTHER), None
        )
        for number, call in enumerate(self.case.calls):
            tokens = f"tokens_{number}" if call.op is Op.EXTEND else ", ".join(map(str, call.numbers))
            if call.op in (Op.REORDER, Op.SELECT, Op.CLEAR):
                tokens = f"[{tokens}]"
            remark = f"  # {_said(call)}" if call.op is Op.EXTEND else ""
            prefix = {Op.FORK: "original, stream = stream, ", Op.SAVE: "state = "}.get(call.op, "")
            tokens = "state" if call.op is Op.RESTORE else tokens
            line = f"{prefix}stream.{call.op}({tokens}){remark}"
            if call.op is Op.FORK:
                yield line
                line = f"original.extend(tokens_{number})  # {FORKED} tokens"
            if call.op is Op.OTHER:
                if number == first_other:
                    yield f"other = open(weights, geometry, batch={self.case.batch})"
                line = f"other.extend(tokens_{number})  # {FORKED} tokens"
            yield line + ("  <-- wrong" if number == wrong else "")


def _said(call: Call) -> str:
    return f"{call.numbers[0]} token{'s' * (call.numbers[0] > 1)}" if call.op is Op.EXTEND else str(call)


def kinds_of(trial: CacheTrial) -> set[str]:
    """Return the kinds that a case belongs to."""
    case, geometry, found = trial.case, trial.case.layer.geometry, set()
    m, window = geometry.compress_ratio, geometry.window
    near = {} if geometry.kind is LayerKind.SLIDING else {"m - 1": m - 1, "m": m, "m + 1": m + 1}
    near |= {"W - 1": window - 1, "W": window, "W + 1": window + 1}
    for step in case.steps:
        before = {len(row) - step.tokens for row in step.rows}
        found |= {
            f"a call that begins at {name}"
            for name, length in near.items()
            if length > 0 and length in before
        }
        if step.tokens == 1 and max(before) > 0:
            found.add("decoding a token")
        if 2 <= step.tokens <= m + 2 and max(before) > 0:
            found.add("a block of 2 to m + 2 tokens")
        if step.tokens > window and max(before) > 0:
            found.add("a later call longer than the window")
        if len({len(row) for row in step.rows}) > 1:
            found.add("rows of different lengths")
    if case.batch > 1:
        found.add("several rows")
    return found | {f"a call after {call.op}" for call in case.calls[:-1] if call.op is not Op.EXTEND}


_LENGTHS = ("W - 1", "W", "W + 1")
_BLOCKS = ("m - 1", "m", "m + 1")


def required(kind: LayerKind | None, capabilities: Capabilities) -> list[str]:
    """Return the kinds of case that a run must reach."""
    lengths = _LENGTHS if kind is LayerKind.SLIDING else (*_BLOCKS, *_LENGTHS)
    names = [f"a call that begins at {name}" for name in lengths]
    names += [
        "decoding a token",
        "a block of 2 to m + 2 tokens",
        "a later call longer than the window",
        "several rows",
    ]
    return names


NARROW = "window of one token"
"""What a candidate may lack beside operations."""


def fit(case: CacheCase, capabilities: Capabilities) -> tuple[CacheCase, list[str]]:
    """Return the case without calls that the candidate does not support, and their names."""

    def lacks(name: str) -> bool:
        return any((place, name) in capabilities.lacks for place in (CACHE, f"{CACHE} {case.kind}"))

    lacking = [call.op for call in case.calls if lacks(call.op)]
    ratios, names = capabilities.compress_ratios, [str(op) for op in dict.fromkeys(lacking)]
    fitting = case
    if case.layer.geometry.window == 1 and lacks(NARROW):
        wider = replace(case.layer, geometry=replace(case.layer.geometry, window=2))
        names.append(NARROW)
        fitting = case = replace(case, layer=wider)
    if lacking:
        fitting = _legal(
            replace_calls(case, tuple(call for call in case.calls if call.op not in lacking))
        ) or CacheCase(case.layer, case.batch)
    geometry = fitting.layer.geometry
    if (
        geometry.kind is not LayerKind.SLIDING
        and ratios is not None
        and geometry.compress_ratio not in ratios
    ):
        nearest = min(ratios, key=lambda one: (abs(one - geometry.compress_ratio), one))
        names.append(f"m={geometry.compress_ratio}")
        layer = replace(fitting.layer, geometry=replace(geometry, compress_ratio=nearest))
        fitting = replace(fitting, layer=layer)
    return fitting, names


def replace_calls(
    case: CacheCase, calls: Sequence[Call], batch: int | None = None
) -> tuple[CacheCase, tuple[Call, ...]]:
    """Pair a case with other calls, which may not be legal."""
    return (case if batch is None else CacheCase(case.layer, batch)), tuple(calls)


def _legal(changed: tuple[CacheCase, tuple[Call, ...]]) -> CacheCase | None:
    case, calls = changed
    try:
        return CacheCase(case.layer, case.batch, calls)
    except ValueError:
        return None


def cache_size(case: CacheCase) -> tuple[int, ...]:
    """Order cases as a person would: fewer calls, fewer tokens, fewer rows, a smaller layer."""
    numbers = sum(sum(call.numbers) for call in case.calls)
    ops = sum(list(Op).index(call.op) for call in case.calls)
    return (len(case.calls), case.total, case.batch, ops, numbers, *LAYER_SHRINKING.size(case.layer))


_SEEDS = 5
_MANY_SEEDS = 30
_SHORTER = 16
"""Schedules with shorter calls that are tried with each set of smaller rules"""


def _simpler_schedules(case: CacheCase) -> Iterator[CacheCase]:
    calls = case.calls
    for batch in range(1, case.batch):
        yield from _seeds(_legal(replace_calls(case, calls, batch)))
    for number, call in enumerate(calls):
        rest = (*calls[:number], *calls[number + 1 :])
        yield from _seeds(_legal(replace_calls(case, rest)))
        if number + 1 < len(calls) and call.op is calls[number + 1].op is Op.EXTEND:
            joined = Call(Op.EXTEND, (call.numbers[0] + calls[number + 1].numbers[0],))
            yield from _seeds(_legal(replace_calls(case, (*calls[:number], joined, *calls[number + 2 :]))))
        for smaller in _smaller_calls(call):
            yield from _seeds(_legal(replace_calls(case, (*calls[:number], smaller, *calls[number + 1 :]))))
        for before in range(number):
            if (
                call.op is Op.ROLLBACK and calls[before].op is Op.EXTEND
            ):  # the same tokens stay if both are shorter
                pair = (
                    Call(Op.EXTEND, (calls[before].numbers[0] - 1,)),
                    Call(Op.ROLLBACK, (call.numbers[0] - 1,)),
                )
                shorter = (
                    *calls[:before],
                    pair[0],
                    *calls[before + 1 : number],
                    pair[1],
                    *calls[number + 1 :],
                )
                yield from _seeds(_legal(replace_calls(case, shorter)))


def _shorter_calls(case: CacheCase) -> Iterator[CacheCase]:
    """One call shorter, with many seeds: some mistakes rarely change what is selected."""
    for number, call in enumerate(case.calls):
        for smaller in _smaller_calls(call):
            shorter = _legal(replace_calls(case, (*case.calls[:number], smaller, *case.calls[number + 1 :])))
            yield from _seeds(shorter, _MANY_SEEDS)


def _everything_a_little_smaller(case: CacheCase) -> Iterator[CacheCase]:
    """Smaller rules with shorter calls: where a block is shorter, so is what comes before its end."""
    rules = [
        name for name in ("compress_ratio", "window", "top_k") if getattr(case.layer.geometry, name) > 1
    ]
    for names in [some for count in range(1, len(rules) + 1) for some in combinations(rules, count)]:
        sizes = {name: getattr(case.layer.geometry, name) - 1 for name in names}
        smaller = replace(case, layer=replace(case.layer, geometry=replace(case.layer.geometry, **sizes)))
        for calls in islice(product(*(_no_longer(call) for call in case.calls)), _SHORTER):
            yield from _seeds(_legal(replace_calls(smaller, calls)))


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
    elif len(call.numbers) > 1:
        for place in range(len(call.numbers)):
            yield Call(call.op, (*call.numbers[:place], *call.numbers[place + 1 :]))


def _seeds(case: CacheCase | None, count: int = _SEEDS) -> Iterator[CacheCase]:
    if case is not None:
        for seed in dict.fromkeys((case.seed, *range(count))):
            yield replace(case, layer=replace(case.layer, seed=seed))


def _layers(passes: Iterable[Callable[[Case], Iterator[Case]]], case: CacheCase) -> Iterator[CacheCase]:
    """Yield schedules on smaller layers."""
    for pass_ in passes:
        for layer in pass_(case.layer):
            try:
                yield replace(case, layer=layer)
            except GeometryError:
                continue


_SCHEDULES = (_simpler_schedules, _shorter_calls)
_PASSES = (
    *_SCHEDULES,
    partial(_layers, SHAPES),
    *_SCHEDULES,
    partial(_layers, DATA),
    _everything_a_little_smaller,
)
"""Schedules once more after the rules: smaller ones need fewer tokens, and show more often before data are simple"""


CACHE_STAGE = Stage(
    CACHE,
    CacheTrial,
    (
        Check(
            "specification",
            "any schedule of calls gives what one call gives",
            equals_the_specification,
            False,
        ),
        *MANNERS,
    ),
    fit,
    kinds_of,
    required,
    CacheCase.parse,
    shrinking=Shrinking(cache_size, _PASSES),
)
