"""How a script calls the implementation under test."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any


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
    schedule: Any = None
    """How several calls are written, for a stage that takes some"""
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
