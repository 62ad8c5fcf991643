"""How the answers of a stream are judged: each is the specification's on what its row then holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from csa_spec.engine.agreement import Part
from csa_spec.engine.choices import Choice
from csa_spec.engine.failures import (
    READS_TOO_MUCH,
    Failure,
    NotFinite,
    Place,
    ReturnsZeros,
    StreamDiffers,
    counted,
)
from csa_spec.engine.numbers import moved_by
from csa_spec.engine.reference import Choices, Reference
from csa_spec.engine.tally import Tally
from csa_spec.engine.trial import Form, Trial, main_output, of_case
from csa_spec.plug.call import Answer
from csa_spec.spec import LayerKind
from csa_spec.stages.cache.case import CacheCase, Token, make_cache_inputs
from csa_spec.stages.cache.schedule import Schedule
from csa_spec.stages.cache.stream import Call, Op, drive
from csa_spec.stages.layer.comparison import Mismatch, compare
from csa_spec.stages.layer.expected import ALTERNATIVES, Expected, expect
from csa_spec.stages.layer.inputs import Inputs
from csa_spec.stages.layer.output import LayerOutput


@dataclass(frozen=True, slots=True)
class Judged:
    """One row of one ``extend``, and its answer."""

    call: int
    row: int
    tokens: tuple[Token, ...]
    """All that the row holds"""
    got: Tensor
    """``[n, hidden]``, at the last n of them"""

    @property
    def columns(self) -> slice:
        """Where they stand among all that the row holds."""
        return slice(len(self.tokens) - len(self.got), len(self.tokens))


class CacheTrial(Trial[CacheCase]):
    """A candidate's stream on one schedule."""

    stage = "cache"
    through = drive
    batched = ()

    @of_case
    def arguments(self) -> dict[str, Any]:
        """weights, geometry, batch, calls, and the tokens of each call."""
        return make_cache_inputs(self.case)

    def form(self, arguments: Mapping[str, Any]) -> Form:
        """All outputs, one after another."""
        dtype = self.arguments["weights"].wkv.dtype
        return Form((self.queries, self.case.geometry.hidden), (dtype,), "[tokens, hidden]")

    @property
    def queries(self) -> int:
        """Outputs of all calls."""
        return sum(sum(step.counts) for step in self.case.steps)

    def place(self, row: int, column: int) -> Place | None:
        """Outputs of calls have no common place."""
        return None

    def specified(self, arguments: Mapping[str, Any], noise: Any = None) -> Tensor:
        """Streams are for inference."""
        raise TypeError("cache has no gradient")

    def judged(self, answer: Answer) -> Iterator[Judged]:
        """Yield the answer of every row of every ``extend``."""
        out, begin = main_output(answer), 0
        assert isinstance(out, Tensor)
        for step in self.case.steps:
            for row, tokens, count in step.judged:
                yield Judged(step.call, row, tokens, out[begin : begin + count].double())
                begin += count

    @of_case
    def _expected(self) -> dict[tuple[Token, ...], Expected]:
        """The specification's answer for every history that is no beginning of a longer one."""
        asked = {tokens for step in self.case.steps for _, tokens, _ in step.judged}
        histories = sorted(asked, key=len, reverse=True)
        answers: dict[tuple[Token, ...], Expected] = {}
        for history in histories:
            if any(longer[: len(history)] == history for longer in answers):
                continue
            tokens = [self.arguments[f"tokens {call}"][row, place] for call, row, place in history]
            positions = torch.arange(len(history))[None]
            documents = torch.zeros_like(positions)
            inputs = Inputs(torch.stack(tokens)[None], self.arguments["weights"], positions, documents)
            whole = self.case.one_document(len(history))
            answers[history] = expect(whole, inputs, self.capabilities.internal_dtype)
        return answers

    def specified_on(self, tokens: tuple[Token, ...]) -> Expected:
        """Return what the specification says of a row that holds ``tokens``, or begins with them."""
        return next(answer for longer, answer in self._expected.items() if longer[: len(tokens)] == tokens)

    @property
    def reference(self) -> Reference:
        """All outputs, in the order in which the calls give them."""
        out: list[Tensor] = []
        tolerance: list[Tensor] = []
        choices: list[Choice | None] = []
        entries = 0
        for step in self.case.steps:
            for _, tokens, count in step.judged:
                document, new = (
                    self.specified_on(tokens).documents[0],
                    slice(len(tokens) - count, len(tokens)),
                )
                out.append(document.trace.out[new])
                tolerance.append(document.budgets.out[new])
                choices += document.choices[new]
                entries = max(entries, len(document.trace.context.entries))
        compared = torch.tensor([choice is None or choice.count <= ALTERNATIVES for choice in choices])
        return Reference(torch.cat(out), compared, torch.cat(tolerance), Choices.of(choices, entries))

    def judge(self, answer: Answer) -> Tally:
        """Every output is that of the specification on what its row then holds."""
        tally = Tally()
        for judged in self.judged(answer):
            expected = self.specified_on(judged.tokens)
            out = expected.out.clone()
            out[0, judged.columns] = judged.got
            own, mismatch = compare(expected, LayerOutput(out))
            if mismatch is not None:
                raise self._failure(answer, judged, mismatch)
            choices = expected.documents[0].choices[judged.columns]
            tally.queries += len(judged.got)
            tally.ambiguous += sum(choice.ambiguous for choice in choices)
            tally.unjudged += own.unjudged
            tally.worst = max(tally.worst, own.worst)
        return tally

    def kinds(self) -> set[str]:
        """Return the kinds that the case belongs to."""
        case = self.case
        m, window = case.compress_ratio, case.window
        near = {} if case.kind is LayerKind.SLIDING else {"m - 1": m - 1, "m": m, "m + 1": m + 1}
        near |= {"W - 1": window - 1, "W": window, "W + 1": window + 1}
        kinds = {f"a call after {call.op}" for call in case.calls[:-1] if call.op is not Op.EXTEND}
        for step in case.steps:
            before = set(step.before)
            later = max(before) > 0
            holds = {
                **{f"a call that begins at {name}": n > 0 and n in before for name, n in near.items()},
                "decoding a token": later and step.tokens == 1,
                "a block of 2 to m + 2 tokens": later and 2 <= step.tokens <= m + 2,
                "a later call longer than the window": later and step.tokens > window,
                "several rows": case.batch > 1,
                "rows of different lengths": len(before) > 1,
                LONG_FIRST: not later and step.tokens > 128,
                LONG_LATER: min(before) > 0 and step.tokens > 32,
                LATE: step.tokens == 1 and max(before) > 128,
            }
            kinds |= {kind for kind, reached in holds.items() if reached}
        return kinds

    def parts(self, *answers: Answer) -> Iterator[Part]:
        """Yield each row of each call, in their order."""
        for first, *others in zip(*(self.judged(answer) for answer in answers), strict=True):
            document = self.specified_on(first.tokens).documents[0]
            yield Part(
                tuple(judged.got for judged in (first, *others)),
                document.trace.out[first.columns],
                document.budgets.out[first.columns],
                torch.tensor([choice.ambiguous for choice in document.choices[first.columns]]),
            )

    def summary(self, failure: Failure, says: str) -> list[str]:
        """Add on which tokens a wrong output depends that its row does not hold."""
        if not self.can_probe or failure.place is None or "call" not in failure.facts:
            return [says]
        try:
            return [says, self._probe(failure.place, failure.facts["call"])]
        except Failure as again:  # it does not answer every time
            return [says, str(again)]

    def _probe(self, place: Place, call: int) -> str:
        """Say on which tokens of which calls a wrong output depends that its row does not hold."""
        other = self.sibling().arguments
        tokens = [
            (name, row, number)
            for name in self.arguments
            if name.startswith("tokens ")
            for row, number in product(*map(range, self.arguments[name].shape[:2]))
        ]
        if len(tokens) > _MOST:
            return ""
        answers = list(zip(self.judged(self.answer), self.parts(self.answer), strict=True))
        places = [(judged.call, judged.row) for judged, _ in answers]
        number = places.index((call, place.row))
        judged, part = answers[number]
        n = place.t - judged.columns.start
        at = sum(len(earlier.got) for earlier, _ in answers[:number]) + n
        held = {(f"tokens {call}", row, number) for call, row, number in judged.tokens[: place.t + 1]}
        stray = []
        for name, row, number in tokens:
            if (name, row, number) in held:
                continue
            changed = {**self.arguments, name: self.arguments[name].clone()}
            changed[name][row, number] = -other[name][row, number]
            out = main_output(self.ask(changed))
            assert isinstance(out, torch.Tensor)
            if moved_by(out[at].double(), judged.got[n], part.budget[n]).any():
                stray.append(f"token {number} of row {row} in call {int(name.split()[1]) + 1}")
        if stray:
            what = ", ".join(stray[:3])
            return f"{READS_TOO_MUCH}: it depends on {what}, which the row does not hold at that point"
        return "It depends on no token that the row does not hold: it misses some, or the numbers are wrong"

    def _failure(self, answer: Answer, judged: Judged, mismatch: Mismatch) -> Failure:
        *earlier, call = self.case.calls[: judged.call + 1]
        before = [
            op
            for op in (NAMED_AFTER.get(call.op, call.op) for call in (*earlier, call))
            if op is not Op.EXTEND
        ]
        kind: type[Failure] = StreamDiffers
        out = main_output(answer)
        assert isinstance(out, Tensor)
        if not mismatch.got.isfinite().all() and mismatch.expected.isfinite().all():
            kind = NotFinite
        elif ReturnsZeros.fits(out, mismatch.expected):
            kind = ReturnsZeros
        return kind(
            self.case,
            place=Place(judged.row, mismatch.t, mismatch.t),
            expected=mismatch.expected.tolist(),
            got=mismatch.got.tolist(),
            over_budget=mismatch.over_budget,
            document=mismatch.document.trace,
            context=tuple(self._program(judged.call)),
            after=f"after {before[-1] if before else Op.EXTEND}",
            call=judged.call,
            calls=len(self.case.calls),
            op=_said(call),
            row=judged.row,
            tokens=len(judged.tokens),
        )

    def _program(self, wrong: int) -> Iterator[str]:
        """Print the schedule as a short program."""
        opened = f"open(weights, geometry, batch={self.case.batch})"
        brought = {step.call: counted(step.tokens, "token") for step in self.case.steps}
        yield f"stream = {opened}"
        for number, line, tokens in Schedule(opened, "{stream}.extend({tokens})").steps(self.case.calls):
            remark = f"  # {brought[number]}" if tokens else ""
            yield line + remark + ("  <-- wrong" if tokens and number == wrong else "")


def _said(call: Call) -> str:
    return counted(call.numbers[0], "token") if call.op is Op.EXTEND else str(call)


NAMED_AFTER = {Op.EXTEND_ROWS: Op.EXTEND, Op.ROLLBACK_ROWS: Op.ROLLBACK, Op.ORIGINAL: Op.FORK}
"""Operations that a failure is named after in place of others, so that it may shrink to the plainer ones"""
LONG_FIRST, LONG_LATER = "a first call of more than 128 tokens", "a later call of more than 32 tokens"
LATE = "decoding a token after more than 128"
_MOST = 32
"""Probes at most."""
