"""A case: everything that decides one trial, in one line of text."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Protocol
from urllib.parse import quote, unquote

from csa_spec.spec import PADDING, Geometry, GeometryError, LayerKind, Yarn


class CaseError(ValueError):
    """A case that cannot be read; the message says why."""


class AnyCase(Protocol):
    """What every case has, of whatever stage: one line of text that ``csa_spec.stages.parse_case`` reads back."""

    @property
    def seed(self) -> int:
        """Seed of its tensors."""

    @property
    def dtype(self) -> str:
        """Name of the dtype."""

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""

    @property
    def mode(self) -> str:
        """One of the candidate's ways to run a layer; empty elsewhere."""

    @property
    def id(self) -> str:
        """A stable hash."""

    @property
    def regime(self) -> tuple[str, ...]:
        """How its values are drawn; reports count by it."""

    def in_words(self) -> str:
        """Return its sizes in words."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON data."""


class Feature(StrEnum):
    """What the rows of a batch can have beyond one document from position 0, each as long as the others."""

    LEFT_PADDING = "left padding"
    RIGHT_PADDING = "right padding"
    PACKING = "packed documents"
    SHIFTED_START = "positions that do not start at 0"


class Values(StrEnum):
    """How hidden states and weights are drawn. The simplest comes first; shrinking goes there."""

    UNITS = "units"
    """Zeros and ones; only shrinking makes such cases"""
    INTEGERS = "integers"
    """Small integers that a person can follow"""
    GAUSSIAN = "gaussian"
    LARGE_LOGITS = "large-logits"
    """Gaussian, with keys 4 to 16 times as long: the softmax is nearly one-hot"""


class Scores(StrEnum):
    """What the index scores look like. Only CSA layers have any."""

    FREE = "free"
    """Whatever the drawn weights give"""
    SEPARATED = "separated"
    """The widest margin between selected and rejected out of a few draws; only written by hand"""
    TIED = "tied"
    """All scores of a query are exactly 0; only written by hand, since small integers tie often enough"""
    PLATEAU = "plateau"
    """One index head only, so that ReLU sets about half of the scores to exactly 0; only written by hand, since
    layers with a single index head are drawn"""
    NEAR_TIED = "near-tied"
    """Blocks repeat but for a small perturbation, and so do the index keys"""


DRAWN_VALUES = (Values.INTEGERS, Values.GAUSSIAN, Values.LARGE_LOGITS)
DRAWN_SCORES = (Scores.FREE, Scores.NEAR_TIED)
"""What strategies draw: no known bug is found by the others alone"""


class Sinks(StrEnum):
    """Sink logits."""

    ZERO = "zero"
    DRAWN = "drawn"
    """About as large as the logits"""
    EXTREME = "extreme"
    """-inf, or far above or below the logits, in some of the heads"""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a batch: padding, then documents one after another, then padding up to the longest row."""

    lengths: tuple[int, ...] = (1,)
    """Tokens of each document packed into the row"""
    left_padding: int = 0
    start: int = 0
    """Position of the first token of each document"""

    def __post_init__(self) -> None:
        """Refuse empty rows and negative numbers."""
        if not self.lengths or min(self.lengths) < 1 or self.left_padding < 0 or self.start < 0:
            raise CaseError(f"row {self} needs documents of at least one token, and nothing negative")

    @property
    def width(self) -> int:
        """Columns from the first to the end of the last document."""
        return self.left_padding + sum(self.lengths)

    def __str__(self) -> str:
        """Return e.g. ``2<3+4@8``: two pads, documents of 3 and 4 tokens, each starting at position 8."""
        text = f"{self.left_padding}<" if self.left_padding else ""
        text += "+".join(map(str, self.lengths))
        return text + (f"@{self.start}" if self.start else "")

    @classmethod
    def parse(cls, text: str) -> Row:
        """Read what ``str`` wrote."""
        match = re.fullmatch(r"(?:(\d+)<)?(\d+(?:\+\d+)*)(?:@(\d+))?", text)
        if match is None:
            raise CaseError(
                f"{text!r} is not a row; write e.g. 5, 3+4 (packed), 2<5 (left padding) or 5@8 (start)"
            )
        padding, lengths, start = match.groups()
        return cls(tuple(map(int, lengths.split("+"))), int(padding or 0), int(start or 0))


DTYPES = ("float32", "float64", "bfloat16", "float16")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, slots=True)
class Case:
    """One trial: the layer, the rows, how values are drawn, and where it runs.

    ``str(case)`` is one line that leaves out defaults; ``Case.parse`` reads it back.
    """

    geometry: Geometry = field(default_factory=Geometry)
    rows: tuple[Row, ...] = (Row(),)
    values: Values = Values.INTEGERS
    scores: Scores = Scores.FREE
    sinks: Sinks = Sinks.ZERO
    seed: int = 0
    mode: str = ""
    """One of the candidate's ways to run; empty where it has only one"""
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check names and that there is a row."""
        for name, kind in (("values", Values), ("scores", Scores), ("sinks", Sinks)):
            try:
                object.__setattr__(self, name, kind(getattr(self, name)))
            except ValueError:
                raise CaseError(f"{name} {getattr(self, name)!r} is none of {', '.join(kind)}") from None
        for name, known in (("dtype", DTYPES), ("device", DEVICES)):
            if getattr(self, name) not in known:
                raise CaseError(f"{name} {getattr(self, name)!r} is none of {', '.join(known)}")
        if not self.rows:
            raise CaseError("a case needs at least one row")

    @property
    def regime(self) -> tuple[str, ...]:
        """How values, scores and sinks are drawn."""
        return (self.values, self.scores, self.sinks)

    def in_words(self) -> str:
        """Return its sizes in words."""
        g = self.geometry
        parts = [f"B={len(self.rows)}", f"S={self.columns}", f"window {g.window}"]
        if g.kind is not LayerKind.SLIDING:
            parts.append(f"compression ratio {g.compress_ratio}")
        if g.kind is LayerKind.CSA:
            parts.append(f"top-k {g.top_k}")
        parts += [f"{g.heads} heads of {g.head_dim}", f"hidden {g.hidden}", self.dtype, self.device]
        return ", ".join(parts) + (f", mode {self.mode!r}" if self.mode else "")

    @property
    def columns(self) -> int:
        """S, the width of the batch: that of its longest row."""
        return max(row.width for row in self.rows)

    @property
    def features(self) -> frozenset[Feature]:
        """What the rows have beyond one document each, from position 0, all of one length."""
        found = set()
        for row in self.rows:
            if row.left_padding:
                found.add(Feature.LEFT_PADDING)
            if row.width < self.columns:
                found.add(Feature.RIGHT_PADDING)
            if len(row.lengths) > 1:
                found.add(Feature.PACKING)
            if row.start:
                found.add(Feature.SHIFTED_START)
        return frozenset(found)

    def without(self, features: frozenset[Feature]) -> Case:
        """Return the case with these features taken out of its rows."""
        rows = []
        for row in self.rows:
            lengths = (sum(row.lengths),) if Feature.PACKING in features else row.lengths
            padding = row.left_padding
            if (
                Feature.LEFT_PADDING in features
            ):  # real tokens in its place: the row must not get shorter than others
                lengths, padding = (lengths[0] + padding, *lengths[1:]), 0
            start = 0 if Feature.SHIFTED_START in features else row.start
            rows.append(Row(lengths, padding, start))
        if Feature.RIGHT_PADDING in features:
            columns = max(row.width for row in rows)
            rows = [
                replace(row, lengths=(*row.lengths[:-1], row.lengths[-1] + columns - row.width))
                for row in rows
            ]
        return replace(self, rows=tuple(rows))

    def layout(self) -> tuple[list[list[int]], list[list[int]]]:
        """Return positions and document ids, both ``[B][S]``; padding has position 0 and id -1."""
        positions, documents = [], []
        for row in self.rows:
            columns = [0] * row.left_padding
            ids = [PADDING] * row.left_padding
            for number, length in enumerate(row.lengths):
                columns += range(row.start, row.start + length)
                ids += [number] * length
            rest = self.columns - row.width
            positions.append(columns + [0] * rest)
            documents.append(ids + [PADDING] * rest)
        return positions, documents

    @property
    def id(self) -> str:
        """A stable hash of the case, 12 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]

    def __str__(self) -> str:
        """Return the case as one line."""
        words = [str(self.geometry.kind)]
        for name, value in _numbers(self.geometry).items():
            if value != getattr(_SMALLEST, name):
                words.append(f"{_SHORT[name]}={_digits(value)}")
        if self.geometry.yarn is not None:
            y = self.geometry.yarn
            numbers = (y.factor, y.original_max_position, y.beta_fast, y.beta_slow)
            words.append("yarn=" + "/".join(map(_digits, numbers)))
        words.append("rows=" + ",".join(map(str, self.rows)))
        for name in _PLAIN:
            if getattr(self, name) != getattr(_DEFAULT, name):
                words.append(f"{name}={quote(str(getattr(self, name)))}")
        return " ".join(words)

    @classmethod
    def parse(cls, text: str) -> Case:
        """Read the one line that ``str`` wrote.

        Raises
        ------
        CaseError
            If a word is not known, or the geometry is impossible.
        """
        kind, *words = text.split() or [""]
        geometry: dict[str, Any] = {"kind": kind}
        plain: dict[str, Any] = {}
        seen: set[str] = set()
        for word in words:
            name, _, value = word.partition("=")
            if name in seen:
                raise CaseError(f"{word!r} is the second {name}")
            seen.add(name)
            try:
                if name in _LONG:
                    kind_of = type(getattr(_SMALLEST, _LONG[name]))
                    geometry[_LONG[name]] = kind_of(value)
                elif name == "yarn":
                    factor, length, fast, slow = value.split("/")
                    geometry["yarn"] = Yarn(float(factor), int(length), float(fast), float(slow))
                elif name == "rows":
                    plain["rows"] = tuple(map(Row.parse, value.split(",")))
                elif name in _PLAIN:
                    plain[name] = int(value) if name == "seed" else unquote(value)
                else:
                    raise CaseError(f"{word!r} is not part of a case")
            except GeometryError as error:
                raise CaseError(str(error)) from None
            except CaseError:
                raise
            except ValueError:
                raise CaseError(f"{word!r} has no value that can be read") from None
        try:
            return cls(Geometry(**geometry), **plain)
        except GeometryError as error:
            raise CaseError(str(error)) from None

    def to_json(self) -> dict[str, Any]:
        """Return the case as plain JSON data."""
        yarn = self.geometry.yarn
        geometry = {"kind": str(self.geometry.kind), **_numbers(self.geometry)}
        geometry["yarn"] = None if yarn is None else {f.name: getattr(yarn, f.name) for f in fields(yarn)}
        return {"geometry": geometry, "rows": [str(row) for row in self.rows]} | {
            name: getattr(self, name) if name == "seed" else str(getattr(self, name)) for name in _PLAIN
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Case:
        """Read what ``to_json`` wrote."""
        try:
            geometry = dict(data["geometry"])
            yarn = geometry.pop("yarn")
            return cls(
                Geometry(**geometry, yarn=None if yarn is None else Yarn(**yarn)),
                tuple(map(Row.parse, data["rows"])),
                **{name: data[name] for name in _PLAIN},
            )
        except (KeyError, TypeError, GeometryError) as error:
            raise CaseError(f"this is not a case: {error!r}") from None


_SHORT = {
    "compress_ratio": "m", "top_k": "k", "window": "W", "hidden": "E", "heads": "H", "head_dim": "D",
    "rope_dim": "R", "q_lora_rank": "q_lora", "index_heads": "HI", "index_head_dim": "DI", "o_groups": "groups",
    "o_lora_rank": "o_lora", "rope_theta": "theta", "compress_rope_theta": "compress_theta", "norm_eps": "eps",
}  # fmt: skip
_LONG = {short: name for name, short in _SHORT.items()}
_PLAIN = ("values", "scores", "sinks", "seed", "mode", "dtype", "device")
_SMALLEST = Geometry()
_DEFAULT = Case()


def _digits(value: float) -> str:
    """Write a number in the shortest way that gives it back."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _numbers(geometry: Geometry) -> dict[str, Any]:
    return {name: getattr(geometry, name) for name in _SHORT}
