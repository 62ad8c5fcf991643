"""How an answer of ``select`` is judged: by rules, since among equal scores any choice is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from csa_spec.engine.budget import Arithmetic
from csa_spec.engine.choices import Choice, valid_choice
from csa_spec.engine.failures import (
    Failure,
    Found,
    MissedHigherScore,
    PickedTwice,
    PickNotVisible,
    PickOutOfRange,
    Place,
    TieNotLowestFirst,
    WrongCount,
    first_entries,
)
from csa_spec.engine.reference import Choices, Reference
from csa_spec.engine.tally import Tally
from csa_spec.engine.tensors import dtype_of
from csa_spec.engine.trial import INTEGERS, Form, Trial, main_output, of_case
from csa_spec.plug.call import Answer
from csa_spec.spec import SPEC
from csa_spec.stages.kinds import kinds_of
from csa_spec.stages.select.case import SelectCase, make_select_inputs


class SelectTrial(Trial[SelectCase]):
    """A candidate's ``select`` on one case."""

    stage = "select"
    batched = ("scores", "positions")

    @of_case
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
        return self.visibles[b][t]

    @of_case
    def visibles(self) -> list[list[int]]:
        """How many entries each query sees, by row."""
        rows, m, entries = self.arguments["positions"].tolist(), self.case.compress_ratio, self.case.entries
        # All that there are once the last of them is complete: no list of millions for a late query.
        return [[len(SPEC.visible_entries(min(p, m * entries), m)[:entries]) for p in row] for row in rows]

    @property
    def places(self) -> list[tuple[int, int]]:
        """Row and number of every query."""
        return [(b, t) for b in range(self.case.rows) for t in range(self.case.queries)]

    @property
    def counts(self) -> list[int]:
        """How many entries each query sees."""
        return [visible for row in self.visibles for visible in row]

    def judge(self, answer: Answer) -> Tally:
        """Compare the picks of every query with the rules."""
        picks, tally = self.relevant(answer), Tally(queries=self.queries)
        for b, t in (~self._clearly_right(picks)).nonzero().tolist():
            visible = self.visible(b, t)
            wrong = self._wrong(picks[b, t], b, t, visible)
            if wrong is not None:
                raise self._failure(wrong, b, t, picks, visible)
        tally.ambiguous = int(self.ties.sum())
        return tally

    @of_case
    def ranking(self) -> tuple[Tensor, Tensor]:
        """The visible scores ``[B, S, T]`` in float64, best first, and their entries; -inf for hidden and NaN."""
        scores = self.arguments["scores"].double()
        hidden = torch.arange(self.case.entries) >= self._seen[..., None]
        ranked, entries = scores.masked_fill(hidden | scores.isnan(), -torch.inf).sort(
            dim=-1, descending=True, stable=True
        )
        return ranked, entries

    @property
    def _seen(self) -> Tensor:
        return torch.tensor(self.visibles).view(self.case.rows, self.case.queries)

    def _clearly_right(self, picks: Tensor) -> Tensor:
        """Return ``[B, S]``: which lists name the best entries, each once; the rules say what others lack.

        Where the lowest of equal entries come first, these are the first ones of the ranking; else, any of
        the same scores.
        """
        case, scores = self.case, self.arguments["scores"].double()
        if not picks.numel() or not case.entries:
            return torch.zeros(picks.shape[:2], dtype=torch.bool)
        (ranked, entries), seen = self.ranking, self._seen[..., None]
        slots, wanted = torch.arange(picks.shape[-1]), seen.clamp(max=case.top_k)
        picks = picks.sort(-1, descending=True).values  # -1 last
        named, new = slots < wanted, torch.nn.functional.pad(picks.diff(dim=-1) < 0, (1, 0), value=True)
        fine = torch.where(named, new & (picks >= 0) & (picks < seen), picks == -1)
        taken = scores.gather(-1, picks.clamp(0, case.entries - 1)).masked_fill(~named, torch.nan)
        compared = slots < (~taken.isnan()).sum(-1, keepdim=True)  # a NaN has no rank
        lowest, more = self.capabilities.lowest_index_first, max(0, len(slots) - case.entries)
        chosen, best, nothing = (picks, entries, -1) if lowest else (taken, ranked, -torch.inf)
        chosen = chosen.masked_fill(taken.isnan(), nothing).sort(-1, descending=True).values
        best = torch.nn.functional.pad(best, (0, more))[..., : len(slots)].masked_fill(~compared, nothing)
        return fine.all(-1) & (chosen == best.sort(-1, descending=True).values).all(-1)

    def same(self, first: Answer, second: Answer) -> bool:
        """Whether two answers select the same, entries with equal scores being the same."""
        return self._ranks(first) == self._ranks(second)

    def same_and_wrong(self, got: Answer, wrong: Answer) -> bool:
        """Whether an answer is a wrong one that somebody else gave."""
        return self.same(got, wrong) and self.is_wrong(wrong)

    def _ranks(self, answer: Answer) -> list[list[tuple[float, float]]]:
        """Return what each query selects, in no order, by scores where they have one."""
        picks = self.relevant(answer)
        return [sorted(self._rank(s, b, t) for s in picks[b, t].tolist() if s != -1) for b, t in self.places]

    def _rank(self, s: int, b: int, t: int) -> tuple[float, float]:
        if not 0 <= s < self.visible(b, t):
            return (1.0, float(s))
        score = float(self.arguments["scores"][b, t, s])
        return (0.0, score) if score == score else (2.0, 0.0)  # a NaN has no rank

    def kinds(self) -> set[str]:
        """Return the kinds that the case belongs to."""
        return kinds_of(self, KINDS)

    def _wrong(self, listed: Tensor, b: int, t: int, visible: int) -> Found | None:
        """Return which rule a query's list breaks."""
        case, picks = self.case, listed[listed != -1]
        outside = picks[(picks < 0) | (picks >= case.entries)]
        if len(outside):
            return PickOutOfRange, {"index": int(outside[0]), "entries": case.entries}
        hidden = picks[picks >= visible]
        if len(hidden):
            return PickNotVisible, {"entry": int(hidden[0]), "visible": visible}
        counts = picks.bincount()
        if (counts > 1).any():
            return PickedTwice, {"entry": int(counts.argmax()), "times": int(counts.max())}
        wanted = min(case.top_k, visible)
        if len(picks) != wanted:
            facts = {"count": len(picks), "top_k": case.top_k, "visible": visible, "wanted": wanted}
            return WrongCount, facts
        taken = torch.zeros(case.entries, dtype=torch.bool)
        taken[picks] = True
        return self._wrong_by_score(taken[:visible], self.arguments["scores"][b, t, :visible].double())

    def _wrong_by_score(self, taken: Tensor, scores: Tensor) -> Found | None:
        """Compare the lowest score that was taken with the highest that was left out; a NaN has no rank."""
        ranked = ~scores.isnan()
        inside, out = taken & ranked, ~taken & ranked
        if not inside.any() or not out.any():
            return None
        chosen, rest = inside.nonzero().flatten(), out.nonzero().flatten()
        low, high = int(chosen[scores[chosen].argmin()]), int(rest[scores[rest].argmax()])
        lower, higher = float(scores[low]), float(scores[high])
        # What is below the smallest normal number may be flushed to zero, and then it ties.
        smallest = Arithmetic(dtype_of(self.case.dtype)).underflow
        flushed = smallest if max(abs(higher), abs(lower)) < smallest else 0.0
        allowed = max(flushed, self.capabilities.tie_tolerance * max(abs(higher), abs(lower)))
        if higher > lower and not higher - lower <= allowed:
            return MissedHigherScore, {"left_out": high, "higher": higher, "selected": low, "lower": lower}
        if self.capabilities.lowest_index_first:
            later = (inside & (scores == lower)).nonzero()
            earlier = (out & (scores == lower)).nonzero()
            if len(later) and len(earlier) and int(earlier[0]) < int(later[-1]):
                return TieNotLowestFirst, {"selected": int(later[-1]), "left_out": int(earlier[0])}
        return None

    @property
    def reference(self) -> Reference:
        """The best entries, the lowest first among equal ones, and -1 behind them."""
        case, shape = self.case, (self.case.rows, self.case.queries)
        best = torch.full((*shape, case.top_k), -1)
        best[..., : case.entries] = self.ranking[1][..., : case.top_k]
        best = best.masked_fill(torch.arange(case.top_k) >= self._seen[..., None], -1)
        choices = Choices.of([self._choice(*place) for place in self.places], case.entries).shaped(*shape)
        return Reference(best, torch.ones(shape, dtype=torch.bool), choices=choices)

    def _choice(self, b: int, t: int) -> Choice | None:
        """Return the valid selections of a query; None where it sees a NaN."""
        visible = self.visible(b, t)
        scores = self.arguments["scores"][b, t, :visible].double()
        if bool(scores.isnan().any()):
            return None
        smallest = Arithmetic(dtype_of(self.case.dtype)).underflow  # what is below it may be flushed to zero
        flushed = torch.where(scores.abs() < smallest, 0.0, scores).tolist()
        tolerances = [self.capabilities.tie_tolerance / 2 * abs(score) for score in flushed]
        return valid_choice(list(range(visible)), flushed, tolerances, self.case.top_k)

    @of_case
    def ties(self) -> Tensor:
        """Which queries ``[B, S]`` have more than one right choice."""
        (ranked, _), k = self.ranking, self.case.top_k
        if not 0 < k < self.case.entries:
            return torch.zeros(ranked.shape[:2], dtype=torch.bool)
        scores, entries = self.arguments["scores"], torch.arange(self.case.entries)
        sees_nan = (scores.isnan() & (entries < self._seen[..., None])).any(-1)
        ties: Tensor = (k < self._seen) & (sees_nan | (ranked[..., k - 1] == ranked[..., k]))
        return ties

    def _failure(self, found: Found, b: int, t: int, answer: Tensor, visible: int) -> Failure:
        kind, facts = found
        picks, scores = answer[b, t].tolist(), self.arguments["scores"][b, t].tolist()
        position, top_k = int(self.arguments["positions"][b, t]), self.case.top_k
        ranked = [x if x == x else -torch.inf for x in scores[:visible]]
        shown = ", ".join(f"{x:.7g}" for x in scores[:16]) + (", ..." if len(scores) > 16 else "")
        return kind(
            self.case,
            place=Place(b, t, t),
            expected=[float(s) for s in SPEC.select(range(visible), ranked, top_k)],
            got=[float(s) for s in picks],
            answer=answer,
            context=(
                f"the query             position {position}, sees {first_entries(visible)}, "
                f"selects {top_k} at most",
                f"scores                [{shown}]",
            ),
            **facts,
        )


KINDS: dict[str, Callable[[SelectTrial], bool]] = {
    "several rows": lambda trial: trial.case.rows > 1,
    "several queries": lambda trial: trial.case.queries > 1,
    "no entries": lambda trial: trial.case.entries == 0,
    "top_k of 0": lambda trial: trial.case.top_k == 0,
    "top_k over the number of entries": lambda trial: trial.case.top_k > trial.case.entries,
    "a query that sees nothing": lambda trial: any(n == 0 < trial.case.entries for n in trial.counts),
    "truncated top-k": lambda trial: any(0 < trial.case.top_k < n for n in trial.counts),
    "everything visible selected": lambda trial: any(0 < n <= trial.case.top_k for n in trial.counts),
    "entries after the query": lambda trial: any(0 < n < trial.case.entries for n in trial.counts),
    "tie across k": lambda trial: bool(trial.ties.any()),
    "more than 65536 entries": lambda trial: trial.case.entries > 65_536,
}
