"""How a script opens a stream and makes the calls of a schedule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from csa_spec.stages.cache.stream import ANSWERED, Call, Op

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
    Op.ROLLBACK_ROWS: "{stream}.rollback_rows([{numbers}])",
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
    extend_rows: str = "{stream}.extend_rows({tokens}, [{numbers}])"
    """As ``extend``, with numbers of tokens"""

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
            elif call.op in self.ops:
                yield number, self._filled(self.ops[call.op], call), ""
            if call.op in ANSWERED:
                extend = self.extend_rows if call.op is Op.EXTEND_ROWS else self.extend
                names = {"stream": _ASIDE.get(call.op, self.stream), "tokens": tokens_name(number)}
                yield number, self._filled(extend, call, **names), names["tokens"]

    def _filled(self, template: str, call: Call, **names: str) -> str:
        known = {"stream": self.stream, "device": self.device, "numbers": ", ".join(map(str, call.numbers))}
        return template.format(**known | names)


_ASIDE = {Op.FORK: "original", Op.ORIGINAL: "original", Op.OTHER: "other"}
"""The stream that takes the tokens, where that is not the one that goes on"""


def tokens_name(call: int) -> str:
    """Return the variable that holds the tokens of a call."""
    return f"tokens_{call}"
