"""How an answer of ``attend`` is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from csa_spec.engine.budget import Arithmetic, core_budget
from csa_spec.engine.failures import Failure, Found, NotZero, SeesTooLittle, SeesTooMuch
from csa_spec.engine.numbers import RIGHT_SET, NumbersTrial
from csa_spec.engine.trial import Form, Handed, of_case
from csa_spec.plug.capabilities import Capabilities
from csa_spec.spec import SPEC
from csa_spec.spec.each import each
from csa_spec.stages.attend.case import (
    LENGTHS,
    AttendCase,
    IndexDtype,
    UnusedRows,
    behind_lengths,
    make_attend_inputs,
    named_keys,
)
from csa_spec.stages.kinds import kinds_of
from csa_spec.stages.pages import TABLE, in_pages, required_pages


class AttendTrial(NumbersTrial[AttendCase]):
    """A candidate's ``attend`` on one case."""

    stage = "attend"
    batched = ("q", "kv", "indices")
    item = "query"

    @of_case
    def arguments(self) -> dict[str, Any]:
        """q, kv, indices, sinks, scale; where lists have lengths, these too, and -1 behind them."""
        return make_attend_inputs(self.case)

    @classmethod
    def extra(cls, capabilities: Capabilities) -> tuple[str, ...]:
        """Lengths of the lists, and the table of pages."""
        return (*[LENGTHS] * capabilities.lengths, *[TABLE] * bool(capabilities.paged))

    def handed(self, arguments: Mapping[str, Any]) -> Handed:
        """Return the lists with their lengths, and garbage behind those; keys in pages; indices in their dtype."""
        case, given = self.case.formed(self.capabilities), dict(arguments)
        indices, lengths = given["indices"], given.pop(LENGTHS, None)
        if self.capabilities.lengths:
            full = torch.full(indices.shape[:2], indices.shape[2])
            given[LENGTHS] = (full if lengths is None else lengths).int()
            given["indices"] = behind_lengths(case, indices, given[LENGTHS])
        if case.index_dtype is IndexDtype.INT32:
            given["indices"] = given["indices"].int()
        if case.page:
            used = None if case.unused is UnusedRows.DRAWN else named_keys(indices, case.keys)
            given["kv"], given[TABLE] = in_pages(case, given["kv"], used)
        batched = {*self.batched, LENGTHS, TABLE} - ({"kv"} if case.page else set())
        return Handed(given, tuple(filter(batched.__contains__, given)), self.extra(self.capabilities))

    def form(self, arguments: Mapping[str, Any]) -> Form:
        """As q."""
        q = arguments["q"]
        return Form(tuple(q.shape), (q.dtype,), "[B, S, H, D]")

    @property
    def lengths(self) -> Tensor:
        """How many places ``[B, S]`` of each list count."""
        shape = self.arguments["indices"].shape
        lengths: Tensor = self.arguments.get(LENGTHS, torch.full(shape[:2], shape[2]))
        return lengths

    def rows(self, rows: Sequence[int]) -> dict[str, Any]:
        """Return the arguments of some rows, with the lengths of their lists."""
        given = super().rows(rows)
        return {**given, LENGTHS: given[LENGTHS][list(rows)]} if LENGTHS in given else given

    @of_case
    def keys(self) -> tuple[Tensor, Tensor]:
        """The index lists with the valid ones first, in their order, and how many ``[B, S]`` are valid."""
        return valid_first(self.arguments["indices"], self.case.keys)

    def named(self, b: int, t: int) -> list[int]:
        """Return the valid indices of a query, in their order."""
        indices, counts = self.keys
        listed: list[int] = indices[b, t, : int(counts[b, t])].tolist()
        return listed

    def specified(self, arguments: Mapping[str, Any], noise: Any = None) -> Tensor:
        """Run the specification, one query at a time."""
        q, kv = arguments["q"], arguments["kv"]
        outs = [
            torch.stack(
                [
                    SPEC.attend(q[b, t], kv[b][self.named(b, t)], arguments["sinks"], arguments["scale"])[0]
                    for t in range(q.shape[1])
                ]
            )
            for b in range(len(q))
        ]
        return torch.stack(outs)

    @of_case
    def expected(self) -> tuple[Tensor, Tensor]:
        """The output ``[B, S, H, D]`` in float64 and its budget."""
        return attend_budget(self.arguments, self.capabilities.internal_dtype)

    def special(self, b: int, i: int) -> Found | None:
        """Name a query without keys, whose output is not zero."""
        return None if self.keys[1][b, i] else (NotZero, {})

    def context(self, b: int, i: int) -> tuple[str, ...]:
        """Show the query's index list."""
        listed = self.arguments["indices"][b, i].tolist()
        shown = ", ".join(map(str, listed[:24])) + (", ..." if len(listed) > 24 else "")
        sinks = ", ".join(f"{sink:.4g}" for sink in self.arguments["sinks"].tolist())
        lines = [f"indices of the query  [{shown}], of {self.case.keys} keys"]
        if LENGTHS in self.arguments:
            lines.append(f"places that count     {int(self.lengths[b, i])}, the others are garbage")
        return (*lines, f"sinks                 [{sinks}]")

    def sight(self, b: int, i: int) -> Found | None:
        """Replace each key in turn: the query's output must move if the key is listed, and only then."""
        keys, named = self.case.keys, self.named(b, i)
        if keys > _MOST_PROBES:
            return None
        (expected, budget), other = self.expected, self.sibling().arguments["kv"]
        for j in range(keys):
            kv = self.arguments["kv"].clone()
            kv[b, j] = other[b, j].nan_to_num(1.0, 1.0, 1.0).clamp(-100, 100)
            changed = {**self.arguments, "kv": kv}
            moved = self.moved(self.ask(changed), b, i)
            if moved and j not in named:
                return SeesTooMuch, {"what": "key", "number": j, "why": "not listed"}
            if moved or j not in named:
                continue
            must = self._alone(changed, b, i) - expected[b, i]
            if bool((must.abs() > 8 * budget[b, i]).any()):
                return SeesTooLittle, {"what": "key", "number": j, "why": "listed"}
        return None

    def depends_on(self, failure: Failure) -> str:
        """Say that the set is right, which judging found out."""
        if self.case.keys > _MOST_PROBES:
            return ""
        return f"The query depends on the keys that its indices name and on no other: {RIGHT_SET}"

    def kinds(self) -> set[str]:
        """Return the kinds that the case belongs to."""
        return kinds_of(self, KINDS | FORMS) | self.case.page_kinds(self.case.keys)

    def _alone(self, arguments: Mapping[str, Any], b: int, i: int) -> Tensor:
        """Return what one query must give, in float64."""
        q, keys = arguments["q"][b, i].double(), arguments["kv"][b][self.named(b, i)].double()
        return SPEC.attend(q, keys, arguments["sinks"].double(), arguments["scale"])[0]


KINDS: dict[str, Callable[[AttendTrial], bool]] = {
    "several rows": lambda trial: trial.case.rows > 1,
    "several queries": lambda trial: trial.case.queries > 1,
    "several heads": lambda trial: trial.case.heads > 1,
    "more picks than keys": lambda trial: trial.case.picks > trial.case.keys,
    "nothing to attend to": lambda trial: trial.case.picks == 0 or trial.case.keys == 0,
    "a query without keys beside others": lambda trial: bool(0 == trial.keys[1].min() < trial.keys[1].max()),
    "keys that are not named": lambda trial: bool((trial.keys[1] < trial.case.keys).any()),
    "wider than a tile": lambda trial: trial.case.picks > 64,
}
FORMS: dict[str, Callable[[AttendTrial], bool]] = {
    "indices in int32": lambda trial: trial.case.index_dtype is IndexDtype.INT32,
    "a length of 0 beside others": lambda trial: bool(0 == trial.lengths.min() < trial.lengths.max()),
    "a length within the list": lambda trial: bool((trial.lengths % max(1, trial.case.picks) > 0).any()),
}
"""Kinds that the form makes in which arguments are handed over"""


def required_forms(capabilities: Capabilities) -> list[str]:
    """Return the kinds of case that a run must reach, given the forms that a candidate declares."""
    in_32_bits, *of_lengths = FORMS
    dtypes = [in_32_bits] * (IndexDtype.INT32 in capabilities.index_dtypes)
    return [*dtypes, *(of_lengths * capabilities.lengths), *required_pages(capabilities)]


_MOST_PROBES = 128
_LEAST = 1e-150
"""Variances of smaller errors underflow in float64: a logit of -375 alone has an output of 1e-163."""


def valid_first(indices: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """Return index lists with the valid indices first, in their order, and how many ``[B, S]`` are valid."""
    valid = (indices >= 0) & (indices < keys)
    order = valid.int().sort(dim=-1, descending=True, stable=True).indices
    return indices.gather(-1, order), valid.sum(-1)


def attend_budget(arguments: Mapping[str, Any], internal_dtype: str | None) -> tuple[Tensor, Tensor]:
    """Return what ``attend`` must give, ``[B, S, H, D]`` in float64, and its error budget."""
    q, kv, sinks, scale = (arguments[name] for name in ("q", "kv", "sinks", "scale"))
    arithmetic, sinks = Arithmetic.of(q.dtype, internal_dtype), sinks.double()

    def one(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        out, p = SPEC.attend(queries, keys, sinks, scale)
        return out, core_budget(arithmetic, queries, keys, p, sinks, scale).clamp(min=_LEAST)

    out = torch.zeros(q.shape, dtype=torch.float64)
    budget = torch.zeros(q.shape, dtype=torch.float64)
    indices, counts = valid_first(arguments["indices"], kv.shape[1])
    for count in sorted(
        set(counts.flatten().tolist())
    ):  # many queries that have as many keys can be answered at once
        b, t = (counts == count).nonzero().T
        if count:
            keys = kv[b[:, None], indices[b, t, :count]]
            out[b, t], budget[b, t] = each(one, q[b, t].double(), keys.double())
    return out, budget
