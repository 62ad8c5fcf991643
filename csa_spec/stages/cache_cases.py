"""Cases of the stage ``cache``: a layer, and a schedule of calls.

A schedule is text: ``4,1,reorder:1.0,2`` extends every row by 4 tokens, then by 1, lets row 0 go on as row 1 and row 1
as row 0, and extends by 2.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from csa_spec.engine.case import Case, CaseError, Row
from csa_spec.engine.inputs import draw_tokens, make_inputs
from csa_spec.engine.stream import Call, Op
from csa_spec.spec import LayerKind

Token = tuple[int, int, int]
"""A token of a schedule: number of the call that brought it, row of that call, place in it."""


FORKED = 2
"""Tokens that the original takes after a fork, and another stream at each turn."""


@dataclass(frozen=True, slots=True)
class Step:
    """What the model of a stream says about one ``extend``: which tokens each row holds after it.

    A fork counts as one of the original, a turn of another stream as one of that.
    """

    call: int
    rows: tuple[tuple[Token, ...], ...]
    tokens: int
    """How many of them, the last ones, this call brought"""


@dataclass(frozen=True)
class CacheCase:
    """One trial of ``cache``."""

    layer: Case = field(default_factory=Case)
    """Geometry, values, seed, dtype and device; its rows say nothing"""
    batch: int = 1
    calls: tuple[Call, ...] = (Call(Op.EXTEND, (1,)),)

    def __post_init__(self) -> None:
        """Refuse schedules that ask for rows or tokens that are not there."""
        object.__setattr__(self, "layer", replace(self.layer, rows=(Row((1,)),)))
        if self.batch < 1:
            raise CaseError("B must be at least 1")
        if not list(self._steps()):
            raise CaseError("a schedule that never extends has no answer to judge")

    @cached_property
    def steps(self) -> list[Step]:
        """What each ``extend`` must answer."""
        return list(self._steps())

    def _steps(self) -> Iterator[Step]:
        """Run the model of the stream: a list of tokens per row."""
        rows: list[tuple[Token, ...]] = [()] * self.batch
        other: list[tuple[Token, ...]] = [()] * self.batch
        saved: list[tuple[Token, ...]] | None = None
        for number, call in enumerate(self.calls):
            op, numbers, name = call.op, call.numbers, f"call {number + 1} ({call})"
            if op in (Op.REORDER, Op.SELECT, Op.CLEAR) and max(numbers) >= len(rows):
                raise CaseError(f"{name} names row {max(numbers)}, but there are {len(rows)} rows")
            if op is Op.EXTEND:
                if numbers[0] < 1:
                    raise CaseError(f"{name} extends by no token")
                rows = _longer(rows, number, numbers[0])
                yield Step(number, tuple(rows), numbers[0])
            elif op is Op.FORK:
                yield Step(number, tuple(_longer(rows, number, FORKED)), FORKED)
            elif op is Op.OTHER:
                other = _longer(other, number, FORKED)
                yield Step(number, tuple(other), FORKED)
            elif op is Op.ROLLBACK:
                if min(map(len, rows)) < numbers[0]:
                    raise CaseError(
                        f"{name} rolls back {numbers[0]} tokens; a row has {min(map(len, rows))}"
                    )
                rows = [row[: len(row) - numbers[0]] for row in rows]
            elif op is Op.RESET:
                rows = [()] * len(rows)
            elif op is Op.REORDER:
                if len(numbers) != len(rows):
                    raise CaseError(f"{name} must name {len(rows)} rows")
                rows = [rows[b] for b in numbers]
            elif op is Op.SELECT:
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

    @property
    def kind(self) -> LayerKind:
        """Kind of the layer."""
        return self.layer.geometry.kind

    @property
    def stage(self) -> str:
        """Name of the stage."""
        return "cache"

    @property
    def seed(self) -> int:
        """Seed of its tensors."""
        return self.layer.seed

    @property
    def dtype(self) -> str:
        """Name of the dtype."""
        return self.layer.dtype

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""
        return self.layer.device

    @property
    def mode(self) -> str:
        """Streams have one way to run."""
        return ""

    @property
    def regime(self) -> tuple[str, ...]:
        """How values, scores and sinks are drawn."""
        return self.layer.regime

    @property
    def total(self) -> int:
        """Tokens of all calls, per row."""
        return sum(call.numbers[0] for call in self.calls if call.op is Op.EXTEND)

    def in_words(self) -> str:
        """Return its sizes in words."""
        g = self.layer.geometry
        words = [f"{len(self.calls)} calls", f"{self.batch} rows", f"window {g.window}"]
        words += [f"compression ratio {g.compress_ratio}"] if g.kind is not LayerKind.SLIDING else []
        words += [f"top-k {g.top_k}"] if g.kind is LayerKind.CSA else []
        return ", ".join([*words, self.dtype, self.device])

    @property
    def id(self) -> str:
        """A stable hash of the case, 12 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]

    def __str__(self) -> str:
        """Return the case as one line."""
        schedule = ",".join(map(str, self.calls))
        words = [word for word in str(self.layer).split() if not word.startswith("rows=")]
        return " ".join(
            [
                "cache",
                words[0],
                *([f"B={self.batch}"] if self.batch > 1 else []),
                f"calls={schedule}",
                *words[1:],
            ]
        )

    @classmethod
    def parse(cls, text: str) -> CacheCase:
        """Read the one line that ``str`` wrote."""
        words: list[str] = []
        own: dict[str, str] = {}
        for word in text.split()[1:]:
            name, _, value = word.partition("=")
            if name in own:
                raise CaseError(f"{word!r} is the second {name}")
            if name in ("B", "calls"):
                own[name] = value
            else:
                words.append(word)
        if not own.get("B", "1").isdigit():
            raise CaseError(f"B={own['B']} has no value that can be read")
        calls = tuple(map(Call.parse, own.get("calls", "1").split(",")))
        return cls(Case.parse(" ".join(words)), int(own.get("B", "1")), calls)

    def to_json(self) -> dict[str, Any]:
        """Return the case as plain JSON data."""
        layer = {name: value for name, value in self.layer.to_json().items() if name != "rows"}
        return {"stage": "cache", "batch": self.batch, "calls": [str(call) for call in self.calls], **layer}


def _longer(rows: Sequence[tuple[Token, ...]], call: int, tokens: int) -> list[tuple[Token, ...]]:
    return [(*row, *((call, b, i) for i in range(tokens))) for b, row in enumerate(rows)]


def make_cache_inputs(case: CacheCase) -> dict[str, Any]:
    """Make weights, geometry, batch, schedule, and the tokens ``[rows, n, hidden]`` of each call that takes some."""
    inputs, geometry = make_inputs(case.layer), case.layer.geometry
    arguments: dict[str, Any] = {
        "weights": inputs.weights, "geometry": geometry, "batch": case.batch, "calls": case.calls,
    }  # fmt: skip
    rows, saved = case.batch, case.batch
    for number, call in enumerate(case.calls):
        if call.op is Op.SELECT:
            rows = len(call.numbers)
        elif call.op is Op.REPEAT:
            rows *= call.numbers[0]
        elif call.op is Op.SAVE:
            saved = rows
        elif call.op is Op.RESTORE:
            rows = saved
        elif call.op in (Op.EXTEND, Op.FORK):
            tokens = call.numbers[0] if call.op is Op.EXTEND else FORKED
            arguments[f"tokens {number}"] = _tokens(case, number, (rows, tokens, geometry.hidden))
        elif call.op is Op.OTHER:
            arguments[f"tokens {number}"] = _tokens(case, number, (case.batch, FORKED, geometry.hidden))
    return arguments


def _tokens(case: CacheCase, number: int, shape: tuple[int, ...]) -> Tensor:
    dtype: torch.dtype = getattr(torch, case.dtype)
    return draw_tokens(case.layer, f"tokens {number}", shape).to(dtype)
