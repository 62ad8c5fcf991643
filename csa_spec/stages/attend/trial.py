"""How an answer of ``attend`` is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from csa_spec.engine.budget import Arithmetic, core_budget
from csa_spec.engine.failures import Failure, Found, NotZero, SeesTooLittle, SeesTooMuch
from csa_spec.engine.numbers import RIGHT_SET, NumbersTrial
from csa_spec.engine.trial import Form, of_case
from csa_spec.spec import SPEC
from csa_spec.stages.attend.case import AttendCase, make_attend_inputs
from csa_spec.stages.kinds import kinds_of


class AttendTrial(NumbersTrial[AttendCase]):
    """A candidate's ``attend`` on one case."""

    stage = "attend"
    batched = ("q", "kv", "indices")
    item = "query"

    @of_case
    def arguments(self) -> dict[str, Any]:
        """q, kv, indices, sinks, scale."""
        return make_attend_inputs(self.case)

    def form(self, arguments: Mapping[str, Any]) -> Form:
        """As q."""
        q = arguments["q"]
        return Form(tuple(q.shape), (q.dtype,), "[B, S, H, D]")

    @of_case
    def named(self) -> list[list[list[int]]]:
        """By row and query, the valid indices in their order."""
        rows, keys = self.arguments["indices"].tolist(), range(self.case.keys)
        return [[[index for index in listed if index in keys] for listed in row] for row in rows]

    @property
    def lists(self) -> list[list[int]]:
        """The valid indices of the queries of all rows."""
        return [listed for row in self.named for listed in row]

    def specified(self, arguments: Mapping[str, Any], noise: Any = None) -> Tensor:
        """Run the specification, one query at a time."""
        q, kv = arguments["q"], arguments["kv"]
        outs = [
            torch.stack(
                [
                    SPEC.attend(q[b, t], kv[b][self.named[b][t]], arguments["sinks"], arguments["scale"])[0]
                    for t in range(q.shape[1])
                ]
            )
            for b in range(len(q))
        ]
        return torch.stack(outs)

    @of_case
    def expected(self) -> tuple[Tensor, Tensor]:
        """The output ``[B, S, H, D]`` in float64 and its budget."""
        return attend_budget(self.arguments, self.named, self.capabilities.internal_dtype)

    def special(self, b: int, i: int) -> Found | None:
        """Name a query without keys, whose output is not zero."""
        return None if self.named[b][i] else (NotZero, {})

    def context(self, b: int, i: int) -> tuple[str, ...]:
        """Show the query's index list."""
        listed = self.arguments["indices"][b, i].tolist()
        shown = ", ".join(map(str, listed[:24])) + (", ..." if len(listed) > 24 else "")
        sinks = ", ".join(f"{sink:.4g}" for sink in self.arguments["sinks"].tolist())
        return (
            f"indices of the query  [{shown}], of {self.case.keys} keys",
            f"sinks                 [{sinks}]",
        )

    def sight(self, b: int, i: int) -> Found | None:
        """Replace each key in turn: the query's output must move if the key is listed, and only then."""
        keys, named = self.case.keys, self.named[b][i]
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
        return kinds_of(self, KINDS)

    def _alone(self, arguments: Mapping[str, Any], b: int, i: int) -> Tensor:
        """Return what one query must give, in float64."""
        q, keys = arguments["q"][b, i].double(), arguments["kv"][b][self.named[b][i]].double()
        return SPEC.attend(q, keys, arguments["sinks"].double(), arguments["scale"])[0]


KINDS: dict[str, Callable[[AttendTrial], bool]] = {
    "several rows": lambda trial: trial.case.rows > 1,
    "several queries": lambda trial: trial.case.queries > 1,
    "several heads": lambda trial: trial.case.heads > 1,
    "more picks than keys": lambda trial: trial.case.picks > trial.case.keys,
    "nothing to attend to": lambda trial: trial.case.picks == 0 or trial.case.keys == 0,
    "a query without keys beside others": lambda trial: any(trial.lists) and not all(trial.lists),
    "keys that are not named": lambda trial: any(len(set(keys)) < trial.case.keys for keys in trial.lists),
    "wider than a tile": lambda trial: trial.case.picks > 64,
}
_MOST_PROBES = 128
_LEAST = 1e-150
"""Variances of smaller errors underflow in float64: a logit of -375 alone has an output of 1e-163."""


def attend_budget(
    arguments: Mapping[str, Any], named: list[list[list[int]]], internal_dtype: str | None
) -> tuple[Tensor, Tensor]:
    """Return what ``attend`` must give, ``[B, S, H, D]`` in float64, and its error budget."""
    q, kv, sinks, scale = (arguments[name] for name in ("q", "kv", "sinks", "scale"))
    arithmetic = Arithmetic.of(q.dtype, internal_dtype)
    out = torch.zeros(q.shape, dtype=torch.float64)
    budget = torch.zeros(q.shape, dtype=torch.float64)
    for b, row in enumerate(named):
        for t, indices in enumerate(row):
            if not indices:
                continue
            queries, keys = q[b, t].double(), kv[b][indices].double()
            out[b, t], p = SPEC.attend(queries, keys, sinks.double(), scale)
            budget[b, t] = core_budget(arithmetic, queries, keys, p, sinks.double(), scale).clamp(min=_LEAST)
    return out, budget
