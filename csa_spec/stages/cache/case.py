"""Cases of the stage ``cache``: a layer, and a schedule of calls.

A schedule is text: ``4,1,reorder:1.0,2`` extends every row by 4 tokens, then by 1, lets row 0 go on as row 1
and row 1 as row 0, and extends by 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Self

from csa_spec.engine.case import CaseError, coded, size
from csa_spec.engine.tensors import dtype_of
from csa_spec.plug.capabilities import Capabilities, SizeRule
from csa_spec.spec import LayerKind
from csa_spec.stages.cache.stream import ANSWERED, PER_ROW, Call, Op
from csa_spec.stages.layer.case import LayerCase, OfLayer, Row
from csa_spec.stages.layer.inputs import draw_tokens, make_inputs

Token = tuple[int, int, int]
"""A token of a schedule: number of the call that brought it, row of that call, place in it."""

NARROW, EMPTIED = "window of one token", "select or repeat of emptied rows"
"""What a candidate may lack beside operations."""
_LONG = 32
"""Tokens of a row from which on a case is slow"""
_ROUNDS = 4
"""Calls that are split may be too many, and those that are left of another size."""


@dataclass(frozen=True, slots=True)
class Step:
    """What the model of a stream says about one ``extend``: which tokens each row holds after it.

    A fork counts as one of the original, a turn of another stream as one of that.
    """

    call: int
    rows: tuple[tuple[Token, ...], ...]
    counts: tuple[int, ...]
    """How many of each row's tokens, the last ones, this call brought"""

    @property
    def tokens(self) -> int:
        """Tokens that the longest row got: the width of the call."""
        return max(self.counts)

    @property
    def before(self) -> tuple[int, ...]:
        """How many tokens each row held before."""
        return tuple(len(row) - count for row, count in zip(self.rows, self.counts, strict=True))

    @property
    def judged(self) -> Iterator[tuple[int, tuple[Token, ...], int]]:
        """Every row that got tokens: its number, all its tokens, and how many are new."""
        rows = zip(self.rows, self.counts, strict=True)
        return ((row, tokens, count) for row, (tokens, count) in enumerate(rows) if count)


def _read_calls(text: str) -> tuple[Call, ...]:
    return tuple(map(Call.parse, text.split(",")))


def _write_calls(calls: Sequence[Call]) -> str:
    return ",".join(map(str, calls))


@dataclass(frozen=True, kw_only=True, repr=False)
class CacheCase(OfLayer):
    """One trial of ``cache``."""

    stage = "cache"
    batch: int = size("B", 1, "rows", rank=0)
    calls: tuple[Call, ...] = coded(_read_calls, _write_calls, default=(Call(Op.EXTEND, (1,)),), rank=0)
    turn: int = size("turn", 1, "tokens of a turn", default=2)
    """Tokens that the original of a fork, or another stream, takes at each turn."""

    def _complete(self) -> None:
        super()._complete()
        if not {Op.FORK, Op.OTHER} & {call.op for call in self.calls}:
            object.__setattr__(self, "turn", 2)

    def __post_init__(self) -> None:
        """Refuse schedules that ask for rows or tokens that are not there."""
        super().__post_init__()
        if not self.steps:
            raise CaseError("a schedule that never extends has no answer to judge")

    @classmethod
    def _read_head(cls, words: Sequence[str]) -> tuple[dict[str, Any], Sequence[str]]:
        return {"kind": words[1] if len(words) > 1 else ""}, words[2:]

    def _head(self) -> list[str]:
        return [self.stage, str(self.kind)]

    def in_words(self) -> str:
        """Return its sizes in words."""
        many = f"{len(self.calls)} call{'s' * (len(self.calls) > 1)}"
        rows = f"{self.batch} row{'s' * (self.batch > 1)}"
        return ", ".join([many, rows, *self._rules_in_words(), self.dtype, self.device])

    @property
    def total(self) -> int:
        """Tokens of all calls, per row."""
        return total_tokens(self.calls)

    @property
    def numbers(self) -> Mapping[str, int]:
        """How many numbers it takes, by what they are for."""
        return self._numbers_for(_most_tokens(self.batch, self.calls, self.turn))

    @property
    def order(self) -> tuple[Any, ...]:
        """Orders cases as a person would: fewer calls, fewer tokens, fewer rows, a smaller layer.

        Long documents come after all others: what fails without them is made small in a fraction of the time.
        """
        numbers = sum(sum(call.numbers) for call in self.calls)
        ops = sum(list(Op).index(call.op) for call in self.calls)
        first = (self.total > _LONG, len(self.calls), self.total, self.batch, self.turn, ops, numbers)
        return (*first, *self.one_document(1).order)

    def one_document(self, length: int) -> LayerCase:
        """Return the case of the layer on one row of ``length`` tokens."""
        return LayerCase(**self.layer, rows=(Row((length,)),))

    @cached_property
    def steps(self) -> list[Step]:
        """What each ``extend`` must answer."""
        return list(_model(self.batch, self.calls, self.turn))

    # What a candidate supports.

    @classmethod
    def may_lack(cls) -> dict[str, list[str]]:
        """Return the operations that a stream need not have, of every layer kind or of one."""
        names = [*(str(op) for op in Op if op is not Op.EXTEND), NARROW, EMPTIED]
        return {cls.stage: names, **{f"{cls.stage} {kind}": names for kind in LayerKind}}

    def without_lacks(self, capabilities: Capabilities) -> tuple[CacheCase, list[str]]:
        """Return the case without calls that the candidate does not support, and their names."""

        def lacks(name: str) -> bool:
            return any(
                (place, name) in capabilities.lacks for place in (self.stage, f"{self.stage} {self.kind}")
            )

        lacking = list(dict.fromkeys(call.op for call in self.calls if lacks(call.op)))
        names = [str(op) for op in lacking]
        case = self
        if self.window == 1 and lacks(NARROW):
            names.append(NARROW)
            case = replace(case, window=2)
        if lacking:
            case = case.with_calls([call for call in self.calls if call.op not in lacking])
        if lacks(EMPTIED) and any(case._moves_emptied_rows(number) for number in range(len(case.calls))):
            names.append(EMPTIED)
            moves = [call for n, call in enumerate(case.calls) if not case._moves_emptied_rows(n)]
            case = case.with_calls(moves)
        return case, names

    def _moves_emptied_rows(self, number: int) -> bool:
        """Whether a call selects or repeats rows that all had tokens and have none any more."""
        if self.calls[number].op not in (Op.SELECT, Op.REPEAT):
            return False
        next_call = [*self.calls[:number], Call(Op.EXTEND, (1,))]
        *earlier, step = _model(self.batch, next_call, self.turn)
        return bool(earlier) and not any(step.before)

    @classmethod
    def letters(cls) -> dict[str, int]:
        """Return the smallest legal value of every size; some are those of the schedule."""
        return {**super().letters(), "first": 1, "step": 1, "calls": 1, "total": 1}

    @property
    def sizes(self) -> dict[str, int]:
        """Its sizes by their letters; of first and of later calls those of the longest."""
        first, later = self._first_and_later
        sizes = {**super().sizes, "calls": len(self.calls), "total": self.total}
        sizes |= {"first": max(first)} if first else {}
        return sizes | ({"step": max(later)} if later else {})

    @property
    def size_kinds(self) -> set[str]:
        """Return none: which calls are long is among the kinds of the schedule."""
        return set()

    @property
    def _first_and_later(self) -> tuple[list[int], list[int]]:
        """Return the tokens of calls on empty rows, and of the others."""
        later = [any(step.before) for step in self.steps]
        first, others = (
            [step.tokens for step, is_later in zip(self.steps, later, strict=True) if is_later is wanted]
            for wanted in (False, True)
        )
        return first, others

    def with_sizes(self, sizes: Mapping[str, int]) -> Self:
        """Return the case with other sizes; all first calls get as many tokens, and so do all later ones."""
        rest = dict(sizes)
        first, step = rest.pop("first", None), rest.pop("step", None)
        count, total = rest.pop("calls", len(self.calls)), rest.pop("total", None)
        rest |= {} if step is None else {"turn": step}
        case = super().with_sizes(rest)
        calls = list(_resized(case.calls, lambda n: [first or n], lambda n: [step or n]))[:count]
        if step is not None and not case.with_calls(calls)._first_and_later[1]:
            calls.append(Call(Op.EXTEND, (step,)))  # there is no later call that could have other tokens
        while total is not None and len(calls) > 1 and total_tokens(calls) > total:
            calls.pop()
        return case.with_calls(calls)

    def _fitted_sizes(self) -> dict[str, int]:
        return {letter: value for letter, value in self.sizes.items() if letter not in ("first", "step")}

    def fit(self, capabilities: Capabilities) -> tuple[Self, list[str]]:
        """Return the nearest schedule that a candidate supports; longer calls are split."""
        rules = tuple(capabilities.rule(letter, self.variant) for letter in ("first", "step"))
        case, lacking = super().fit(capabilities)
        for _ in range(_ROUNDS):
            reasons = case._misfitting_calls(*rules)
            if not reasons:
                return case, lacking
            lacking += [reason for reason in reasons if reason not in lacking]
            case = super(CacheCase, case._with_split_calls(*rules)).fit(capabilities)[0]
        raise CaseError(f"the declared sizes leave no {self.stage} case near {self}")

    def _misfitting_calls(self, first: SizeRule, step: SizeRule) -> list[str]:
        """Say why calls are not supported, each reason once."""
        begin, later = self._first_and_later
        reasons = [first.reason(tokens, "first") for tokens in begin]
        reasons += [step.reason(tokens, "step") for tokens in later]
        return [reason for reason in dict.fromkeys(reasons) if reason]

    def _with_split_calls(self, first: SizeRule, step: SizeRule) -> Self:
        """Return the case with calls of supported sizes, as far as there are any."""
        case = replace(self, turn=step.nearest(self.turn) or self.turn)
        case = case.with_calls(list(_resized(case.calls, partial(_split, first), partial(_split, step))))
        if case._misfitting_calls(first, step):
            # Turns of another stream begin with as many tokens as they go on with.
            turns = (Op.OTHER, Op.FORK, Op.ORIGINAL)
            case = case.with_calls([call for call in case.calls if call.op not in turns])
        return case

    def with_calls(self, calls: Sequence[Call]) -> Self:
        """Return the case with other calls, without those that ask for rows or tokens that are not there."""
        kept: list[Call] = []
        for call in calls:
            try:
                list(_model(self.batch, [*kept, call], self.turn))
            except CaseError:
                continue
            kept.append(call)
        if not any(call.op in ANSWERED for call in kept):
            kept = [Call(Op.EXTEND, (1,))]
        return replace(self, calls=tuple(kept))


def total_tokens(calls: Sequence[Call]) -> int:
    """Return the tokens of all calls, per row."""
    return sum(max(call.numbers) for call in calls if call.op in (Op.EXTEND, Op.EXTEND_ROWS))


def _split(rule: SizeRule, tokens: int) -> list[int]:
    """Return the sizes of supported calls that bring so many tokens, or some more."""
    nearest = rule.nearest(tokens) or tokens
    return [nearest] * max(1, -(-tokens // nearest))


def _resized(
    calls: Sequence[Call], first: Callable[[int], list[int]], later: Callable[[int], list[int]]
) -> Iterator[Call]:
    """Yield calls with other numbers of tokens: of those on empty rows, and of the others."""
    empty = True
    for call in calls:
        if call.op is Op.EXTEND_ROWS:
            longest = max(call.numbers)
            width = (first if empty else later)(longest)[0]
            yield Call(call.op, tuple(width if n == longest else min(n, width) for n in call.numbers))
            empty = False
            continue
        if call.op is not Op.EXTEND:
            empty = empty or call.op is Op.RESET
            yield call
            continue
        tokens = call.numbers[0]
        if empty:
            head = first(tokens)[0]
            yield Call(Op.EXTEND, (head,))
            tokens, empty = tokens - head, False
            if tokens <= 0:
                continue
        yield from (Call(Op.EXTEND, (some,)) for some in later(tokens))


def _most_tokens(batch: int, calls: Sequence[Call], turn: int) -> int:
    """Return how many tokens all answers together are about, or some more: counted, none of them made."""
    rows, length, other, original, total = batch, 0, 0, (0, 0), 0
    saved = (rows, length)
    for call in calls:
        if call.op in (Op.EXTEND, Op.EXTEND_ROWS):
            length += max(call.numbers)
            total += rows * length
        elif call.op in (Op.FORK, Op.ORIGINAL):
            many, tokens = (rows, length) if call.op is Op.FORK else original
            original = many, tokens + turn
            total += many * (tokens + turn)
        elif call.op is Op.OTHER:
            other += turn
            total += batch * other
        elif call.op is Op.ROLLBACK:
            length = max(0, length - call.numbers[0])
        elif call.op is Op.RESET:
            length = 0
        elif call.op is Op.SELECT:
            rows = len(call.numbers)
        elif call.op is Op.REPEAT:
            rows *= call.numbers[0]
        elif call.op is Op.SAVE:
            saved = rows, length
        elif call.op is Op.RESTORE:
            rows, length = saved
        total += rows  # rows without tokens take some memory, too
    return total


def _model(batch: int, calls: Sequence[Call], turn: int) -> Iterator[Step]:
    """Run the model of the stream: a list of tokens per row."""
    rows: list[tuple[Token, ...]] = [()] * batch
    other: list[tuple[Token, ...]] = [()] * batch
    original: list[tuple[Token, ...]] | None = None
    saved: list[tuple[Token, ...]] | None = None
    for number, call in enumerate(calls):
        op, numbers, name = call.op, call.numbers, f"call {number + 1} ({call})"
        if op in (Op.REORDER, Op.SELECT, Op.CLEAR) and max(numbers) >= len(rows):
            raise CaseError(f"{name} names row {max(numbers)}, but there are {len(rows)} rows")
        if op in (Op.REORDER, *PER_ROW) and len(numbers) != len(rows):
            must = "have a number for each of" if op in PER_ROW else "name"
            raise CaseError(f"{name} must {must} {len(rows)} rows")
        if op is Op.EXTEND:
            if numbers[0] < 1:
                raise CaseError(f"{name} extends by no token")
            step = _extended(rows, number, numbers * len(rows))
            rows = list(step.rows)
            yield step
        elif op is Op.EXTEND_ROWS:
            if not any(numbers):
                raise CaseError(f"{name} extends by no token")
            step = _extended(rows, number, numbers)
            rows = list(step.rows)
            yield step
        elif op in (Op.FORK, Op.ORIGINAL):
            original = rows if op is Op.FORK else original
            if original is None:
                raise CaseError(
                    f"{name} goes on with the original of a fork, but there is no fork before it"
                )
            step = _extended(original, number, [turn] * len(original))
            original = list(step.rows)
            yield step
        elif op is Op.OTHER:
            step = _extended(other, number, [turn] * len(other))
            other = list(step.rows)
            yield step
        elif op in (Op.ROLLBACK, Op.ROLLBACK_ROWS):
            counts = numbers * len(rows) if op is Op.ROLLBACK else numbers
            if not any(counts):
                raise CaseError(f"{name} rolls back no token")
            for row, count in zip(rows, counts, strict=True):
                if len(row) < count:
                    raise CaseError(f"{name} rolls back {count} tokens; a row has {len(row)}")
            rows = [row[: len(row) - count] for row, count in zip(rows, counts, strict=True)]
        elif op is Op.RESET:
            rows = [()] * len(rows)
        elif op in (Op.REORDER, Op.SELECT):
            rows = [rows[b] for b in numbers]
        elif op is Op.REPEAT:
            if numbers[0] < 1:
                raise CaseError(f"{name} repeats rows no time")
            rows = [row for row in rows for _ in range(numbers[0])]
        elif op is Op.CLEAR:
            rows = [() if b in numbers else row for b, row in enumerate(rows)]
        elif op is Op.SAVE:
            saved = list(rows)
        elif op is Op.RESTORE:
            if saved is None:
                raise CaseError(f"{name} restores what was never saved")
            rows = list(saved)


def _extended(rows: Sequence[tuple[Token, ...]], call: int, counts: Sequence[int]) -> Step:
    longer = ((*row, *((call, b, i) for i in range(counts[b]))) for b, row in enumerate(rows))
    return Step(call, tuple(longer), tuple(counts))


def make_cache_inputs(case: CacheCase) -> dict[str, Any]:
    """Make weights, geometry, batch, schedule, and for each call that takes tokens ``[rows, n, hidden]``."""
    weights = make_inputs(case.one_document(1)).weights
    arguments = {"weights": weights, "geometry": case.geometry, "batch": case.batch, "calls": case.calls}
    for step in case.steps:
        name, shape = f"tokens {step.call}", (len(step.rows), step.tokens, case.hidden)
        arguments[name] = draw_tokens(case, name, shape).to(dtype_of(case.dtype))
    return arguments
