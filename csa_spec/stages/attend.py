"""The stage ``attend``: the attention core on its own, as sparse attention kernels have it.

``attend(q [B,S,H,D], kv [B,N,D], indices [B,S,n], sinks [H], scale) -> [B,S,H,D]``

An index names a row of ``kv``, which is key and value at once; -1 names none. Indices come in any order, with -1
anywhere. A query without any key has an output of exactly zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from csa_spec.engine.budget import Arithmetic, core_budget
from csa_spec.engine.comparison import Tally
from csa_spec.engine.declared_limits import limits_check
from csa_spec.engine.failures import Failure, NotZero, OrderMatters, SeesTooLittle, SeesTooMuch
from csa_spec.engine.gradients import gradients_match
from csa_spec.engine.stage import MANNERS, ROWS, Check, Stage
from csa_spec.engine.trial import Form
from csa_spec.plug.candidate import Capabilities
from csa_spec.spec import SPEC
from csa_spec.stages.attend_cases import (
    AttendCase,
    CoreSinks,
    CoreValues,
    IndexLists,
    Scale,
    UnusedRows,
    make_attend_inputs,
)
from csa_spec.stages.numbers import NumbersTrial, equals_the_specification


class AttendTrial(NumbersTrial):
    """A candidate's ``attend`` on one case."""

    stage = "attend"
    batched = ("q", "kv", "indices")
    item = "query"
    case: AttendCase

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """q, kv, indices, sinks, scale."""
        return make_attend_inputs(self.case)

    def form(self, arguments: Mapping[str, Any]) -> Form:
        """As q."""
        q = arguments["q"]
        return Form(tuple(q.shape), (q.dtype,), "[B, S, H, D]")

    @cached_property
    def named(self) -> list[list[list[int]]]:
        """By row and query, the valid indices in their order."""
        keys = self.case.keys
        return [
            [[i for i in one if 0 <= i < keys] for one in row] for row in self.arguments["indices"].tolist()
        ]

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

    @cached_property
    def expected(self) -> tuple[Tensor, Tensor]:
        """The output ``[B, S, H, D]`` in float64 and its budget."""
        return attend_budget(self.arguments, self.named, self.capabilities.internal_dtype)

    def special(self, wrong: list[tuple[int, int]]) -> tuple[type[Failure], str, int, int] | None:
        """Name a query without keys whose output is not zero."""
        for b, t in wrong:
            if not self.named[b][t]:
                return NotZero, f"{self.name(b, t)} has no key, so its output must be exactly zero", b, t
        return None

    def context(self, b: int, i: int) -> tuple[str, ...]:
        """Show the query's index list."""
        listed = self.arguments["indices"][b, i].tolist()
        shown = ", ".join(map(str, listed[:24])) + (", ..." if len(listed) > 24 else "")
        sinks = ", ".join(f"{sink:.4g}" for sink in self.arguments["sinks"].tolist())
        return (
            f"indices of the query  [{shown}], of {self.case.keys} keys",
            f"sinks                 [{sinks}]",
        )

    def sight(self, b: int, i: int) -> tuple[type[Failure], str, int] | None:
        """Replace one key at a time and watch whether the query's output moves when it must, and only then."""
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
                sentence = f"the output of {self.name(b, i)} changes when key {j} changes, which its indices do not name"
                return SeesTooMuch, sentence, j
            if moved or j not in named:
                continue
            must = self._alone(changed, b, i) - expected[b, i]
            if bool((must.abs() > 8 * budget[b, i]).any()):
                return (
                    SeesTooLittle,
                    f"the output of {self.name(b, i)} does not change when key {j} changes, which its indices name",
                    j,
                )
        return None

    def _alone(self, arguments: Mapping[str, Any], b: int, i: int) -> Tensor:
        """Return what one query must give, in float64."""
        q, keys = arguments["q"][b, i].double(), arguments["kv"][b][self.named[b][i]].double()
        return SPEC.attend(q, keys, arguments["sinks"].double(), arguments["scale"])[0]


_MOST_PROBES = 128
_LEAST = 1e-150
"""Variances of smaller errors underflow in float64: a lone key with a logit of -375 has an output of 1e-163."""


def attend_budget(
    arguments: Mapping[str, Any], named: list[list[list[int]]], internal_dtype: str | None
) -> tuple[Tensor, Tensor]:
    r"""Return what ``attend`` must give, ``[B, S, H, D]`` in float64, and by how much each element may be off.

    Per query, with z = scale q . k, p the softmax with sink and o = sum p k: the derivation of
    :mod:`csa_spec.engine.budget`, with exact q and k, since the specification gets the rounded numbers:
    var(z) = u^2 (sum (q k)^2 + 2 z^2 + (z - max z)^2) + a^2 (sum \|q k\|)^2 and
    var(o) = sum p^2 (k - o)^2 var(z) + (3 u)^2 sum p^2 k^2 + g a^2 ((sum p \|k\|)^2 + o^2) + (a max(z) o)^2
    + (2 u o)^2,
    u the unit roundoff of the dtype, a that of float32 accumulators, g = max(1, n / 9) for n keys.
    """
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


def order_does_not_matter(trial: AttendTrial) -> Tally | None:
    """Reversing the index list, and adding -1 at both of its ends, changes nothing beyond rounding."""
    if trial.case.picks == 0:
        return None
    try:
        trial.judge(trial.answer)
    except Failure:
        return None  # the business of the equality with the specification
    lacks = trial.capabilities.lacks
    sized = {*trial.capabilities.limits, *trial.capabilities.multiples}
    ends = ("attend", IndexLists.LEADING) in lacks or "n" in sized
    reordered = trial.arguments["indices"].flip(-1)
    if ("attend", IndexLists.SHUFFLED) in lacks or ("attend", IndexLists.HOLES) in lacks:
        return None
    if not ends and not trial.capabilities.static_shapes:
        nothing = torch.full_like(reordered[..., :1], -1)
        reordered = torch.cat((nothing, reordered, nothing), dim=-1)
    try:
        return trial.judge(trial.ask({**trial.arguments, "indices": reordered.contiguous()}))
    except Failure as failure:
        raise OrderMatters(
            f"right, but not with the index list reversed and -1 at its ends: {failure.detail}",
            trial.case,
            place=failure.place,
            expected=failure.expected,
            got=failure.got,
            over_budget=failure.over_budget,
            context=failure.context,
        ) from None


def kinds_of(trial: AttendTrial) -> set[str]:
    """Return the kinds that a case belongs to."""
    case, found = trial.case, {f"{one}" for one in trial.case.regime}
    lists = [one for row in trial.named for one in row]
    if case.rows > 1:
        found.add("several rows")
    if case.queries > 1:
        found.add("several queries")
    if case.heads > 1:
        found.add("several heads")
    if case.picks > case.keys:
        found.add("more picks than keys")
    if case.picks == 0 or case.keys == 0:
        found.add("nothing to attend to")
    if any(not one for one in lists) and any(lists):
        found.add("a query without keys beside others")
    if any(len(set(range(case.keys)) - set(one)) for one in lists):
        found.add("keys that are not named")
    if case.picks > 64:
        found.add("wider than a tile")
    return found


REQUIRED = (
    *(str(one) for one in IndexLists if one is not IndexLists.OUTSIDE),
    *(str(one) for kind in (CoreValues, CoreSinks, UnusedRows, Scale) for one in kind),
    "several rows",
    "several queries",
    "several heads",
    "more picks than keys",
    "nothing to attend to",
    "a query without keys beside others",
    "keys that are not named",
    "wider than a tile",
)
_NEED = {
    "several rows": ("B", 2),
    "several queries": ("S", 2),
    "several heads": ("H", 2),
    "a query without keys beside others": ("S", 2),
    "wider than a tile": ("n", 65),
}


def required(_: object, capabilities: Capabilities) -> list[str]:
    """Return the kinds of case that a run must reach, given what the candidate supports."""
    kinds = [name for name in REQUIRED if ("attend", name) not in capabilities.lacks]
    kinds += [str(IndexLists.OUTSIDE)] if capabilities.invalid_indices else []
    small = {
        name for name, (letter, least) in _NEED.items() if capabilities.limits.get(letter, least) < least
    }
    if {"N", "n"} & {*capabilities.multiples, *capabilities.limits} or (
        "attend",
        "empty",
    ) in capabilities.lacks:
        small |= {"nothing to attend to", "more picks than keys", "a query without keys beside others"}
    return [name for name in kinds if name not in small]


ATTEND = Stage(
    "attend",
    AttendTrial,
    (
        Check("specification", "the output equals the specification's", equals_the_specification, False),
        ROWS,
        Check("order", "the order of the index list does not matter", order_does_not_matter, True),
        *MANNERS,
        Check("gradients", "gradients equal the specification's", gradients_match, True, costly=True),
        Check(
            "limits", "what is declared away is refused or right", partial(limits_check, AttendTrial), True
        ),
    ),
    AttendCase.fit,
    kinds_of,
    required,
    AttendCase.parse,
    AttendCase,
)
