"""The stage ``select``: which entries each query attends to, given their scores.

``select(scores [B,S,T], positions [B,S], compress_ratio, top_k) -> indices [B,S,<=k]``, -1 = none

A list is right iff its indices are in range and visible, without duplicates, exactly min(top_k, visible) of them, -1
elsewhere, and no visible entry that was left out scores higher than one that was taken. Any choice among equal
scores is right. A NaN has no rank (our convention): it may stand anywhere, the list must be right all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from csa_spec.engine.comparison import Tally
from csa_spec.engine.declared_limits import limits_check
from csa_spec.engine.failures import (
    BetterLeftOut,
    Failure,
    PickedTwice,
    PickNotVisible,
    PickOutOfRange,
    Place,
    TieBrokenOtherwise,
    WrongCount,
    query_name,
)
from csa_spec.engine.inputs import choice, generator, normal
from csa_spec.engine.recipe import Recipe, drawn, size
from csa_spec.engine.stage import MANNERS, ROWS, Check, Stage
from csa_spec.engine.trial import INTEGERS, Form, Trial, main_output
from csa_spec.plug.call import Answer
from csa_spec.plug.candidate import Capabilities
from csa_spec.spec import SPEC
from csa_spec.stages.numbers import dtype_of, equals_the_specification


class ScoreValues(StrEnum):
    """What the scores look like."""

    INTEGERS = "integers"
    """Small ones, so there are ties"""
    GAUSSIAN = "gaussian"
    EQUAL = "equal"
    """All scores of a query are the same"""
    LOW_BITS = "low-bits"
    """Neighbouring numbers of the dtype: a radix selection that looks at the high bits first sees one bucket"""
    NAN = "nan"
    """Some of those that the query sees are NaN"""
    MINUS_INF = "minus-inf"
    """Some of those that the query sees are -inf"""


class Invisible(StrEnum):
    """The scores of entries that a query must not see."""

    DRAWN = "plain-invisible"
    NAN = "nan-invisible"
    HUGE = "huge-invisible"
    """Infinity"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectCase(Recipe):
    """One trial of ``select``."""

    stage = "select"
    rows: int = size("B", 1, "rows")
    queries: int = size("S", 1, "queries")
    entries: int = size("T", 0, "entries")
    compress_ratio: int = size("m", 1, "tokens per entry")
    top_k: int = size("k", 0, "picks at most")
    start: int = size("start", 0, "first position")
    values: ScoreValues = drawn(ScoreValues)
    invisible: Invisible = drawn(Invisible)


class SelectTrial(Trial):
    """A candidate's ``select`` on one case."""

    stage = "select"
    batched = ("scores", "positions")
    case: SelectCase

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """scores, positions, compress_ratio, top_k."""
        return make_select_inputs(self.case)

    def form(self, arguments: Mapping[str, Any]) -> Form:
        """Any number of picks."""
        return Form((*arguments["scores"].shape[:2], None), INTEGERS, "[B, S, n]")

    @property
    def queries(self) -> int:
        """Queries of all rows."""
        return self.case.rows * self.case.queries

    def specified(self, arguments: Mapping[str, Any], noise: Any = None) -> Tensor:
        """There is nothing to differentiate: a selection is a constant."""
        raise TypeError("select has no gradient")

    def relevant(self, answer: Answer) -> Tensor:
        """Return the picks as ``[B, S, k]``: how many -1 stand at the end is left open."""
        out = main_output(answer)
        assert isinstance(out, Tensor)
        missing = max(0, self.case.top_k - out.shape[-1])
        return torch.nn.functional.pad(out.long(), (0, missing), value=-1)

    def visible(self, b: int, t: int) -> int:
        """How many entries a query sees; they are the first ones."""
        position = int(self.arguments["positions"][b, t])
        return min(self.case.entries, len(SPEC.visible_entries(position, self.case.compress_ratio)))

    def judge(self, answer: Answer) -> Tally:
        """Hold the picks of every query against the rules."""
        picks, tally = self.relevant(answer), Tally(queries=self.queries)
        for b in range(self.case.rows):
            for t in range(self.case.queries):
                visible = self.visible(b, t)
                wrong = self._wrong(picks[b, t], b, t, visible)
                if wrong is not None:
                    raise self._failure(*wrong, b, t, picks, visible)
                tally.ambiguous += self._tie(b, t, visible)
        return tally

    def _wrong(self, listed: Tensor, b: int, t: int, visible: int) -> tuple[type[Failure], str] | None:
        case, scores = self.case, self.arguments["scores"][b, t].double()
        picks = listed[listed != -1]
        where = f"query {query_name(t)} of row {b}"
        outside = picks[(picks < 0) | (picks >= case.entries)]
        if len(outside):
            return (
                PickOutOfRange,
                f"{where} has the index {int(outside[0])}, which is neither -1 nor one of {case.entries} entries",
            )
        hidden = picks[picks >= visible]
        if len(hidden):
            return PickNotVisible, f"{where} selects entry {int(hidden[0])}; it may see {_first(visible)}"
        counts = picks.bincount()
        if (counts > 1).any():
            return PickedTwice, f"{where} selects entry {int(counts.argmax())} {int(counts.max())} times"
        must = min(case.top_k, visible)
        if len(picks) != must:
            return (
                WrongCount,
                f"{where} selects {len(picks)} entries; min(k, visible) = min({case.top_k}, {visible}) = {must}",
            )
        taken = torch.zeros(case.entries, dtype=torch.bool)
        taken[picks] = True
        taken = taken[:visible]
        seen = scores[:visible]
        ranked = ~seen.isnan()
        inside, out = taken & ranked, ~taken & ranked
        if not inside.any() or not out.any():
            return None
        chosen, rest = inside.nonzero().flatten(), out.nonzero().flatten()
        low, high = int(chosen[seen[chosen].argmin()]), int(rest[seen[rest].argmax()])
        gap = float(seen[high] - seen[low]) if seen[high] > seen[low] else 0.0
        allowed = self.capabilities.tie_tolerance * max(abs(float(seen[high])), abs(float(seen[low])))
        if gap > 0 and not gap <= allowed:
            return BetterLeftOut, (
                f"{where} leaves out entry {high}, which scores {float(seen[high]):.9g}, and selects entry {low}, "
                f"which scores {float(seen[low]):.9g}"
            )
        if self.capabilities.lowest_index_first:
            boundary = float(seen[low])
            later = (inside & (seen == boundary)).nonzero()
            earlier = (out & (seen == boundary)).nonzero()
            if len(later) and len(earlier) and int(earlier[0]) < int(later[-1]):
                return TieBrokenOtherwise, (
                    f"{where} selects entry {int(later[-1])} and leaves out entry {int(earlier[0])}, "
                    "which scores the same"
                )
        return None

    def _tie(self, b: int, t: int, visible: int) -> bool:
        """Whether there is more than one right choice."""
        scores, k = self.arguments["scores"][b, t, :visible], self.case.top_k
        if not 0 < k < visible:
            return False
        ordered = scores.double().nan_to_num(torch.inf).sort(descending=True).values
        return bool(ordered[k - 1] == ordered[k]) or bool(scores.isnan().any())

    def _failure(
        self, kind: type[Failure], detail: str, b: int, t: int, answer: Tensor, visible: int
    ) -> Failure:
        picks, scores = answer[b, t].tolist(), self.arguments["scores"][b, t].tolist()
        position = int(self.arguments["positions"][b, t])
        must = SPEC.select(
            range(visible), [x if x == x else -torch.inf for x in scores[:visible]], self.case.top_k
        )
        return kind(
            detail,
            self.case,
            place=Place(b, t, t),
            expected=[float(s) for s in must],
            got=[float(s) for s in picks],
            answer=answer,
            context=(
                f"the query             position {position}, sees {_first(visible)}, selects {self.case.top_k} at most",
                f"scores                [{', '.join(f'{x:.7g}' for x in scores[:16])}"
                + (", ...]" if len(scores) > 16 else "]"),
            ),
        )


def _first(count: int) -> str:
    return "no entry" if count == 0 else "entry 0 only" if count == 1 else f"entries 0 to {count - 1}"


def make_select_inputs(case: SelectCase) -> dict[str, Any]:
    """Make the tensors of a case, on the CPU. Row b starts b positions later than row 0."""
    shape = (case.rows, case.queries, case.entries)
    dtype = dtype_of(case.dtype)
    positions = case.start + torch.arange(case.queries) + torch.arange(case.rows)[:, None]
    scores = _scores(case, shape, dtype)
    hidden = torch.arange(case.entries) >= ((positions + 1) // case.compress_ratio)[..., None]
    if case.values is ScoreValues.NAN:
        scores = scores.masked_fill(~hidden & (normal(case.seed, "special", shape) > 0.5), torch.nan)
    elif case.values is ScoreValues.MINUS_INF:
        scores = scores.masked_fill(~hidden & (normal(case.seed, "special", shape) > 0.0), -torch.inf)
    if case.invisible is not Invisible.DRAWN:
        scores = scores.masked_fill(hidden, torch.nan if case.invisible is Invisible.NAN else torch.inf)
    return {
        "scores": scores,
        "positions": positions,
        "compress_ratio": case.compress_ratio,
        "top_k": case.top_k,
    }


def _scores(case: SelectCase, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if case.values is ScoreValues.INTEGERS:
        return choice(case.seed, "scores", shape, (-1.0, 0.0, 1.0, 2.0)).to(dtype)
    if case.values is ScoreValues.EQUAL:
        return (
            choice(case.seed, "equal", shape[:2], (-1.0, 1.0, 2.0))
            .to(dtype)[..., None]
            .expand(shape)
            .clone()
        )
    if case.values is ScoreValues.LOW_BITS:
        steps = torch.randint(0, 256, shape, generator=generator(case.seed, "steps")).double()
        return (1 + steps * torch.finfo(dtype).eps).to(dtype)
    return normal(case.seed, "scores", shape).to(dtype)


def kinds_of(trial: SelectTrial) -> set[str]:
    """Return the kinds that a case belongs to."""
    case, found = trial.case, set(trial.case.regime)
    counts = [trial.visible(b, t) for b in range(case.rows) for t in range(case.queries)]
    if case.rows > 1:
        found.add("several rows")
    if case.queries > 1:
        found.add("several queries")
    if case.entries == 0:
        found.add("no entries")
    if case.top_k == 0:
        found.add("top_k of 0")
    if case.top_k > case.entries:
        found.add("top_k over the number of entries")
    if any(count == 0 < case.entries for count in counts):
        found.add("a query that sees nothing")
    if any(0 < case.top_k < count for count in counts):
        found.add("truncated top-k")
    if any(0 < count <= case.top_k for count in counts):
        found.add("everything visible selected")
    if any(0 < count < case.entries for count in counts):
        found.add("entries after the query")
    if any(trial._tie(b, t, trial.visible(b, t)) for b in range(case.rows) for t in range(case.queries)):
        found.add("tie across k")
    if case.entries > 65_536:
        found.add("more than 65536 entries")
    return found


REQUIRED = (
    *(str(one) for kind in (ScoreValues, Invisible) for one in kind),
    "several rows",
    "several queries",
    "no entries",
    "top_k of 0",
    "top_k over the number of entries",
    "a query that sees nothing",
    "truncated top-k",
    "everything visible selected",
    "entries after the query",
    "tie across k",
    "more than 65536 entries",
)


def required(_: object, capabilities: Capabilities) -> list[str]:
    """Return the kinds of case that a run must reach, given what the candidate supports."""
    kinds = [name for name in REQUIRED if ("select", name) not in capabilities.lacks]
    limits, without = capabilities.limits, set()
    if limits.get("T", 1 << 20) <= 65_536:
        without.add("more than 65536 entries")
    if limits.get("S", 2) < 2:
        without.add("several queries")
    if limits.get("B", 2) < 2:
        without.add("several rows")
    if {"T", "k"} & {*capabilities.multiples, *limits} or capabilities.max_top_k is not None:
        without |= {"no entries", "top_k of 0", "top_k over the number of entries"}
    return [name for name in kinds if name not in without]


SELECT = Stage(
    "select",
    SelectTrial,
    (
        Check("specification", "every selection is valid", equals_the_specification, False),
        ROWS,
        *MANNERS,
        Check(
            "limits", "what is declared away is refused or right", partial(limits_check, SelectTrial), True
        ),
    ),
    SelectCase.fit,
    kinds_of,
    required,
    SelectCase.parse,
    SelectCase,
)
