"""Cases of a layer: its geometry, the rows of the batch, and how values are drawn."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Self

from csa_spec.engine.case import (
    LARGEST,
    PER_QUERY,
    Case,
    CaseError,
    coded,
    drawn,
    finite,
    require_memory,
    size,
    whole,
)
from csa_spec.engine.sizes import THRESHOLDS
from csa_spec.plug.capabilities import Capabilities
from csa_spec.plug.layouts import Layout
from csa_spec.plug.names import unknown
from csa_spec.plug.plain import plain_line, shown
from csa_spec.spec import PADDING, Geometry, GeometryError, LayerKind, Yarn, weight_shapes


class Feature(StrEnum):
    """What the rows of a batch can have beyond one document from position 0, each as long as the others."""

    LEFT_PADDING = "left padding"
    RIGHT_PADDING = "right padding"
    PACKING = "packed documents"
    SHIFTED_START = "positions that do not start at 0"
    INSIDE_A_BLOCK = "packed documents that start inside a block"
    """A later document of a row whose first column is no multiple of the compression ratio"""


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
    """One index head, so that ReLU sets about half of the scores to exactly 0; only written by hand, since
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
        if self.start > LARGEST:
            raise CaseError(f"row {self} starts at position {self.start:,}; positions go up to {LARGEST:,}")

    @property
    def width(self) -> int:
        """Columns from the first to the end of the last document."""
        return self.left_padding + sum(self.lengths)

    @property
    def begins(self) -> tuple[int, ...]:
        """Column of the first token of each document."""
        return tuple(self.left_padding + sum(self.lengths[:n]) for n in range(len(self.lengths)))

    def is_on_blocks(self, compress_ratio: int) -> bool:
        """Whether every document but the first begins at a multiple of the ratio."""
        return not any(begin % compress_ratio for begin in self.begins[1:])

    def on_blocks(self, compress_ratio: int) -> Row:
        """Return the row with every document but the first beginning at a multiple of the ratio."""
        lengths = list(self.lengths)
        for n in range(len(lengths) - 1):
            end = self.left_padding + sum(lengths[: n + 1])
            lengths[n] += -end % compress_ratio
        return replace(self, lengths=tuple(lengths))

    def widened(self, columns: int) -> Row:
        """Return the row cut, or its last document made longer, to so many columns."""
        padding = min(self.left_padding, columns - 1)
        room = columns - padding
        lengths: list[int] = []
        for length in self.lengths:
            if room > sum(lengths):
                lengths.append(min(length, room - sum(lengths)))
        lengths[-1] += room - sum(lengths)
        return Row(tuple(lengths), padding, self.start)

    def __str__(self) -> str:
        """Return e.g. ``2<3+4@8``: two pads, documents of 3 and 4 tokens, each starting at position 8."""
        text = f"{self.left_padding}<" if self.left_padding else ""
        text += "+".join(map(str, self.lengths))
        return text + (f"@{self.start}" if self.start else "")

    @classmethod
    def parse(cls, text: str) -> Row:
        """Read what ``str`` wrote."""
        match = re.fullmatch(r"(?:([0-9]+)<)?([0-9]+(?:\+[0-9]+)*)(?:@([0-9]+))?", text)
        if match is None:
            raise CaseError(
                f"{plain_line(text, 60)!r} is not a row; write e.g. 5, 3+4 (packed), 2<5 (left padding) or 5@8 (start)"
            )
        padding, lengths, start = match.groups()
        return cls(tuple(map(whole, lengths.split("+"))), whole(padding or "0"), whole(start or "0"))


def _digits(value: float) -> str:
    """Write a number in the shortest way that gives it back."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _read_yarn(text: str) -> Yarn:
    if text.count("/") != 3:
        raise CaseError(f"{shown(f'yarn={text}')} must have four numbers; write e.g. yarn=16/65536/32/1")
    factor, length, fast, slow = text.split("/")
    try:
        return Yarn(finite(factor), whole(length), finite(fast), finite(slow))
    except GeometryError as error:
        raise CaseError(str(error)) from None


def _write_yarn(yarn: Yarn | None) -> str:
    if yarn is None:
        return "none"
    numbers = (yarn.factor, yarn.original_max_position, yarn.beta_fast, yarn.beta_slow)
    return "/".join(map(_digits, numbers))


def _constant(text: str, value: float) -> Any:
    return coded(finite, _digits, default=value, text=text)


@dataclass(frozen=True, kw_only=True, repr=False)
class OfLayer(Case):
    """What cases of a layer and of a stream of calls share: the layer, and how its tensors are drawn.

    The defaults are the smallest legal layer.
    """

    kind: LayerKind = field(default=LayerKind.CSA, metadata={"head": True})
    compress_ratio: int = size("m", 1, "compression ratio", bucketed=False)
    top_k: int = size("k", 0, "top-k", default=1, bucketed=False)
    window: int = size("W", 1, "window", bucketed=False)
    hidden: int = size("E", 1, "hidden", default=2, bucketed=False)
    heads: int = size("H", 1, "heads", bucketed=False)
    head_dim: int = size("D", 2, "channels of a head", bucketed=False)
    rope_dim: int = size("R", 2, "rotated channels", bucketed=False, multiple=2)
    q_lora_rank: int = size("q_lora", 1, "rank of the queries", bucketed=False)
    index_heads: int = size("HI", 1, "index heads", bucketed=False)
    index_head_dim: int = size("DI", 2, "channels of an index head", bucketed=False)
    o_groups: int = size("groups", 1, "output groups", bucketed=False)
    o_lora_rank: int = size("o_lora", 1, "rank of an output group", bucketed=False)
    rope_theta: float = _constant("theta", 10_000.0)
    compress_rope_theta: float = _constant("compress_theta", 160_000.0)
    norm_eps: float = _constant("eps", 1e-6)
    yarn: Yarn | None = coded(_read_yarn, _write_yarn, default=None)
    values: Values = drawn(Values, Values.INTEGERS)
    scores: Scores = drawn(Scores)
    sinks: Sinks = drawn(Sinks)
    geometry: Geometry = field(init=False, compare=False, repr=False)

    def _complete(self) -> None:
        """Refuse what no layer can have."""
        if self.kind not in list(LayerKind):
            raise CaseError(unknown("layer kind", str(self.kind), LayerKind))
        try:
            geometry = Geometry(**{name: getattr(self, name) for name in _OF_GEOMETRY})
        except GeometryError as error:
            raise CaseError(str(error)) from None
        object.__setattr__(self, "geometry", geometry)
        object.__setattr__(self, "kind", geometry.kind)

    @classmethod
    def of(cls, geometry: Geometry, **more: Any) -> Self:
        """Return a case of a layer that is there as a geometry."""
        return cls(**{name: getattr(geometry, name) for name in _OF_GEOMETRY}, **more)

    @property
    def variant(self) -> str:
        """The layer kind."""
        return str(self.kind)

    @property
    def layer(self) -> dict[str, Any]:
        """Everything about the layer and its tensors, to make a case of another stage of it."""
        names = [field.name for field in fields(OfLayer) if field.init]
        return {name: getattr(self, name) for name in names}

    def _numbers_for(self, tokens: int) -> dict[str, int]:
        """Return how many numbers the layer takes for so many tokens, by what they are for."""
        heads = max(self.heads, self.index_heads if self.kind is LayerKind.CSA else 1)
        per_token = (
            self.hidden + _COPIES * self.heads * self.head_dim + self.index_heads * self.index_head_dim
        )
        return {
            "weights": sum(map(math.prod, weight_shapes(self.geometry).values())),
            "hidden states and queries": tokens * per_token,
            "the work on each query": tokens * heads * PER_QUERY,
        }

    @classmethod
    def _written(cls) -> list[Field[Any]]:
        return [field for field in super()._written() if not field.metadata.get("head")]

    def _rules_in_words(self) -> list[str]:
        """Return window, ratio and top-k in words, as far as the layer has them."""
        words = [f"window {self.window}"]
        if self.kind is not LayerKind.SLIDING:
            words.append(f"compression ratio {self.compress_ratio}")
        return words + ([f"top-k {self.top_k}"] if self.kind is LayerKind.CSA else [])

    @property
    def sizes(self) -> dict[str, int]:
        """Its sizes by their letters, those that its layer kind has."""
        return {letter: size for letter, size in super().sizes.items() if letter not in _UNUSED[self.kind]}

    def with_sizes(self, sizes: Mapping[str, int]) -> Self:
        """Return the case with other sizes; those not given change where there would be no such layer."""
        return super().with_sizes(_legal(self, dict(sizes)))


_COPIES = 32
"""Of a query's heads: what is computed from them one after another, and the variance of each"""
_OF_GEOMETRY = tuple(field.name for field in fields(Geometry))
_UNUSED = {
    LayerKind.CSA: (),
    LayerKind.HCA: ("k", "HI", "DI"),
    LayerKind.SLIDING: ("m", "k", "HI", "DI"),
}


def _legal(case: OfLayer, given: dict[str, int]) -> dict[str, int]:
    """Return sizes and what follows from them: R is even, at most D and DI; groups divide the heads."""
    whole = {**case.sizes, **given}
    for wide in ("D", "DI"):
        if whole.get(wide, whole["R"]) >= whole["R"]:
            continue
        if wide in given and "R" not in given:
            given["R"] = whole["R"] = whole[wide] // 2 * 2
        else:  # as many channels that are not rotated as before
            given[wide] = whole[wide] = whole["R"] + case.sizes[wide] - case.sizes["R"]
    if whole["H"] % whole["groups"]:
        if "groups" in given and "H" not in given:
            given["H"] = -(-whole["H"] // whole["groups"]) * whole["groups"]
        else:
            given["groups"] = max(n for n in range(1, whole["groups"] + 1) if whole["H"] % n == 0)
    return given


def _read_rows(text: str) -> tuple[Row, ...]:
    return tuple(map(Row.parse, text.split(",")))


def _write_rows(rows: Sequence[Row]) -> str:
    return ",".join(map(str, rows))


@dataclass(frozen=True, kw_only=True, repr=False)
class LayerCase(OfLayer):
    """One trial of a layer: the layer, the rows, how values are drawn, and where it runs."""

    stage = "layer"
    rows: tuple[Row, ...] = coded(_read_rows, _write_rows, default=(Row(),), always=True)
    judged: int = coded(whole, default=0)
    """How many queries of each document are judged; 0 for all"""

    def _complete(self) -> None:
        """Check that there is a row."""
        super()._complete()
        if not self.rows:
            raise CaseError("a case needs at least one row")
        if self.judged < 0:
            raise CaseError(f"judged={self.judged} must be a number of queries, or 0 for all")

    @property
    def numbers(self) -> Mapping[str, int]:
        """How many numbers it takes, by what they are for."""
        return self._numbers_for(len(self.rows) * self.columns)

    def _numbers_for(self, tokens: int) -> dict[str, int]:
        return super()._numbers_for(
            tokens if not self.judged else min(tokens, self.judged * len(self.rows))
        ) | {"hidden states and keys": tokens * (self.hidden + _COPIES * self.head_dim)}

    def judged_of(self, length: int) -> Sequence[int]:
        """Return which queries of a document are judged, in ascending order."""
        if not 0 < self.judged < length:
            return range(length)
        rng = random.Random(f"{self.seed} {length}")
        telling = sorted(self._telling(length) - {0, length - 1})
        some = rng.sample(telling, min(len(telling), 3 * self.judged // 4))
        chosen = dict.fromkeys((length - 1, 0, *some, *rng.sample(range(length), self.judged)))
        return sorted(list(chosen)[: self.judged])

    def _telling(self, length: int) -> set[int]:
        """Queries on either side of where something changes: windows, blocks, a first truncation, thresholds."""
        m, end = self.compress_ratio, length - length % self.compress_ratio
        borders = {self.window, m, m * (self.top_k + 1), length - self.window, end, end - m, *THRESHOLDS}
        return {t + near for t in borders for near in (-2, -1, 0, 1)} & set(range(length))

    @classmethod
    def first_words(cls) -> tuple[str, ...]:
        """Return the layer kinds."""
        return tuple(LayerKind)

    @classmethod
    def _read_head(cls, words: Sequence[str]) -> tuple[dict[str, Any], Sequence[str]]:
        return {"kind": words[0] if words else ""}, words[1:]

    def _head(self) -> list[str]:
        return [str(self.kind)]

    def in_words(self) -> str:
        """Return its sizes in words."""
        heads = f"{self.heads} head{'s' * (self.heads > 1)} of {self.head_dim}, hidden {self.hidden}"
        tokens = f"S={self.columns}" + (f" ({self.judged} queries judged)" if self.judged else "")
        parts = [f"B={len(self.rows)}", tokens, *self._rules_in_words(), heads]
        return ", ".join([*parts, self.dtype, self.device]) + (f", mode {self.mode!r}" if self.mode else "")

    @property
    def quick(self) -> bool:
        """Whether a diagnosis, which must not take long, may ask about it: about short rows only."""
        return self.columns * len(self.rows) <= _QUICK

    @property
    def columns(self) -> int:
        """S, the width of the batch: that of its longest row."""
        return max(row.width for row in self.rows)

    @property
    def features(self) -> frozenset[Feature]:
        """What the rows have beyond one document each, from position 0, all of one length."""
        blocks = self.kind is not LayerKind.SLIDING
        has = {
            Feature.LEFT_PADDING: lambda row: row.left_padding > 0,
            Feature.RIGHT_PADDING: lambda row: row.width < self.columns,
            Feature.PACKING: lambda row: len(row.lengths) > 1,
            Feature.SHIFTED_START: lambda row: row.start > 0,
            Feature.INSIDE_A_BLOCK: lambda row: blocks and not row.is_on_blocks(self.compress_ratio),
        }
        return frozenset(feature for feature in Feature if any(map(has[feature], self.rows)))

    def without(self, features: frozenset[Feature]) -> LayerCase:
        """Return the case with these features taken out of its rows."""
        rows = []
        for row in self.rows:
            lengths = (sum(row.lengths),) if Feature.PACKING in features else row.lengths
            padding = row.left_padding
            if Feature.LEFT_PADDING in features:  # tokens in its place: no row gets shorter than others
                lengths, padding = (lengths[0] + padding, *lengths[1:]), 0
            start = 0 if Feature.SHIFTED_START in features else row.start
            row = Row(lengths, padding, start)
            rows.append(row.on_blocks(self.compress_ratio) if Feature.INSIDE_A_BLOCK in features else row)
        if Feature.RIGHT_PADDING in features:
            columns = max(row.width for row in rows)
            rows = [row.widened(columns) for row in rows]
        return replace(self, rows=tuple(rows))

    @classmethod
    def may_lack(cls) -> dict[str, list[str]]:
        """Return the features of rows, for each layer kind."""
        return {str(kind): [str(feature) for feature in Feature] for kind in LayerKind}

    def without_lacks(self, capabilities: Capabilities) -> tuple[LayerCase, list[str]]:
        """Return the case without features of its rows that its layer kind does not support."""
        declined = frozenset(feature for feature in Feature if (self.kind, feature) in capabilities.lacks)
        lacking = [feature for feature in Feature if feature in declined & self.features]
        # All that is declined goes: taking one out may bring another.
        return (self.without(declined) if lacking else self), list(map(str, lacking))

    @classmethod
    def letters(cls) -> dict[str, int]:
        """Return the smallest legal value of every size; S and B are those of the batch."""
        return {"S": 1, "B": 1, **super().letters()}

    @property
    def sizes(self) -> dict[str, int]:
        """Its sizes by their letters."""
        return {"S": self.columns, "B": len(self.rows), **super().sizes}

    def with_sizes(self, sizes: Mapping[str, int]) -> Self:
        """Return the case with other sizes: rows are cut or made longer at the end, dropped or repeated."""
        rest = dict(sizes)
        columns, batch = rest.pop("S", self.columns), rest.pop("B", len(self.rows))
        require_memory(self._numbers_for(batch * columns))
        rows = [self.rows[b % len(self.rows)] for b in range(batch)]
        longest = max(row.width for row in rows)
        rows = [row.widened(columns) if row.width == longest or row.width > columns else row for row in rows]
        return replace(super().with_sizes(rest), rows=tuple(rows))

    @property
    def shape(self) -> tuple[int, ...]:
        """Orders cases by their shape: fewer tokens first, then rows, smaller rules, fewer heads.

        Packed documents, padding and a start other than 0 count as tokens. Of rules whose sum is the same, a
        smaller m comes first, then a smaller k.
        """
        odd = sum(len(row.lengths) - 1 + row.left_padding + min(row.start, 1) for row in self.rows)
        tokens = sum(row.width for row in self.rows)
        rules = (self.compress_ratio + self.top_k + self.window, self.heads, self.compress_ratio, self.top_k)
        return (tokens + odd, len(self.rows), *rules)

    @property
    def order(self) -> tuple[Any, ...]:
        """Orders cases as a person would: by shape, smaller tensors, simpler values, then seeds."""
        tensors = (self.head_dim, self.rope_dim, self.hidden, self.index_heads, self.index_head_dim)
        ranks = (self.q_lora_rank, self.o_groups, self.o_lora_rank)
        starts = sum(row.start for row in self.rows)
        return (*self.shape, sum(tensors), sum(ranks), self._oddities, starts, self.seed)

    @property
    def _oddities(self) -> int:
        """How much of how it is drawn and run is not at its simplest."""
        regime = ((Values, self.values), (Scores, self.scores), (Sinks, self.sinks))
        simple = sum(list(kind).index(name) for kind, name in regime)
        constants = sum(bool(getattr(self, name) != getattr(_SMALLEST, name)) for name in CONSTANTS)
        layout = list(Layout).index(self.layout)
        return int(self.yarn is not None) + constants + bool(self.mode) + bool(self.judged) + simple + layout

    def documents_of(self, row: int) -> list[int]:
        """Return the document of each column of a row, -1 at padding."""
        return self.positions_and_documents()[1][row]

    def positions_and_documents(self) -> tuple[list[list[int]], list[list[int]]]:
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


CONSTANTS = ("rope_theta", "compress_rope_theta", "norm_eps")
_SMALLEST = LayerCase()
_QUICK = 40
"""Tokens"""
