"""How a script calls the implementation under test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from csa_spec.engine.stream import Call, Op

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


@dataclass(frozen=True, slots=True)
class Imported:
    """A function, and how a script gets it."""

    line: str
    """The import"""
    expression: str
    function: Any
    module: ModuleType


@dataclass(frozen=True, slots=True)
class Callee:
    """An implementation under test, as an expression."""

    expression: str
    hand_over: str = "{}"
    """What is done to each tensor that it gets, e.g. ``{}.numpy()``"""
    take_back: str = "{}"
    """What is done to each array that it returns"""

    @property
    def converts(self) -> bool:
        """Whether it returns anything but a tensor on the CPU."""
        return self.take_back != "{}"

    def returns(self) -> list[str]:
        """Return the lines that end a function around a call whose result is ``out``."""
        kind = 'assert hasattr(out, "shape"), f"got {type(out).__name__}"'
        return [*[kind] * self.converts, f"return {self.take_back.format('out')}"]


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
        for number, call in enumerate(calls[: last + 1]):
            if call.op is Op.OTHER and call.op not in {one.op for one in calls[:number]}:
                lines.append(f"other = {self.opened}")
            elif call.op not in (Op.EXTEND, Op.OTHER):
                lines.append(self._op(call))
            stream = {Op.EXTEND: self.stream, Op.FORK: "original", Op.OTHER: "other"}.get(call.op)
            if stream is not None:
                tokens = tokens_name(number)
                out = self.extend.format(stream=stream, tokens=tokens)
                line = checked.format(out=out, tokens=tokens)
                lines.append(f"got = {line}" if number == got else line)
        return lines

    def _op(self, call: Call) -> str:
        numbers = ", ".join(map(str, call.numbers))
        return self.ops[call.op].format(stream=self.stream, numbers=numbers, device=self.device)


def tokens_name(call: int) -> str:
    """Return the variable that holds the tokens of a call."""
    return f"tokens_{call}"


@dataclass
class Subject:
    """The part of a script that comes before its assertions."""

    imports: list[str]
    setup: list[str]
    """Lines that make tensors, and whatever the call needs"""
    names: tuple[str, ...] = ()
    """Variables that the implementation is called with, in order"""
    batched: tuple[str, ...] = ()
    """Those of them whose first dimension is the rows of the batch"""
    function: str = ""
    keywords: tuple[str, ...] = ()
    """Those of them that are passed by name"""
    schedule: Schedule | None = None
    """How the calls of a stream are written, where it is one"""
    plain_call: str = ""
    """A call whose result is what the implementation returns; empty where there is none"""
    own_module: bool = True
    """Whether the script imports the user's module, which must be on the path"""

    tensors: frozenset[str] = frozenset()
    """Those variables that hold tensors"""

    def define(self, name: str, parameters: tuple[str, ...], body: list[str]) -> None:
        """Add a function to the script."""
        lines = [f"def {name}({', '.join(parameters)}):", *(f"    {line}" for line in body)]
        self.setup += ["", "", *lines, "", ""]

    def call(self, **changes: str) -> str:
        """Return a call, with other expressions for some variables."""
        given = ((name, changes.get(name, name)) for name in self.names)
        words = (f"{name}={word}" if name in self.keywords else word for name, word in given)
        return f"{self.function}({', '.join(words)})"

    def each(self, form: str) -> dict[str, str]:
        """Return an expression for every batched variable, e.g. of ``{}[:1]``."""
        return {name: form.format(name) for name in self.batched}
