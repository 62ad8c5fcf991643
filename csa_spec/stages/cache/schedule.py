"""How a script opens a stream and makes the calls of a schedule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from csa_spec.stages.cache.stream import Call, Op

STREAM_OPS = {
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


@dataclass(frozen=True)
class Schedule:
    """How a script opens a stream and asks it for something."""

    opened: str
    """An expression: a new stream"""
    extend: str
    """An expression with ``{stream}`` and ``{tokens}``: their outputs"""
    ops: Mapping[Op, str] = field(default_factory=lambda: STREAM_OPS)
    stream: str = "stream"
    device: str = ""

    def program(self, calls: Sequence[Call], got: int, last: int, checked: str = "{out}") -> list[str]:
        """Return the lines of some calls one after another.

        Parameters
        ----------
        calls
            All calls of a case.
        got
            Number of the call whose answer is kept as ``got``.
        last
            Number of the last call that is made.
        checked
            What is done to each answer; an expression with ``{out}`` and ``{tokens}``.
        """
        lines = [f"{self.stream} = {self.opened}"]
        for number, line, tokens in self.steps(calls[: last + 1]):
            if tokens:
                line = checked.format(out=line, tokens=tokens)
            lines.append(f"got = {line}" if tokens and number == got else line)
        return lines

    def steps(self, calls: Sequence[Call]) -> Iterator[tuple[int, str, str]]:
        """Yield the number of a call, an expression or statement of it, and the tokens that it extends by."""
        for number, call in enumerate(calls):
            if call.op is Op.OTHER and call.op not in {earlier.op for earlier in calls[:number]}:
                yield number, f"other = {self.opened}", ""
            elif call.op not in (Op.EXTEND, Op.OTHER):
                yield number, self._op(call), ""
            stream = {Op.EXTEND: self.stream, Op.FORK: "original", Op.OTHER: "other"}.get(call.op)
            if stream is not None:
                tokens = tokens_name(number)
                yield number, self.extend.format(stream=stream, tokens=tokens), tokens

    def _op(self, call: Call) -> str:
        numbers = ", ".join(map(str, call.numbers))
        return self.ops[call.op].format(stream=self.stream, numbers=numbers, device=self.device)


def tokens_name(call: int) -> str:
    """Return the variable that holds the tokens of a call."""
    return f"tokens_{call}"
