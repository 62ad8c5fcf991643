"""How an answer of ``index_scores`` is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from csa_spec.engine.budget import Arithmetic, index_score_budget
from csa_spec.engine.failures import READS_TOO_LITTLE, READS_TOO_MUCH, Failure, Place, counted
from csa_spec.engine.numbers import NumbersTrial, moved_by
from csa_spec.engine.tally import error_ratios
from csa_spec.engine.trial import Form, Handed, of_case
from csa_spec.plug.call import Answer
from csa_spec.plug.capabilities import Capabilities
from csa_spec.spec import SPEC
from csa_spec.spec.each import each
from csa_spec.stages.index_scores.case import IndexScoresCase, make_index_scores_inputs
from csa_spec.stages.kinds import kinds_of
from csa_spec.stages.pages import TABLE, in_pages


class IndexScoresTrial(NumbersTrial[IndexScoresCase]):
    """A candidate's ``index_scores`` on one case."""

    stage = "index_scores"
    batched = ("index_q", "index_k", "head_weights")
    item = "query"

    @of_case
    def arguments(self) -> dict[str, Any]:
        """index_q, index_k, head_weights."""
        return make_index_scores_inputs(self.case)

    @classmethod
    def extra(cls, capabilities: Capabilities) -> tuple[str, ...]:
        """The table of pages."""
        return (TABLE,) if capabilities.paged else ()

    def handed(self, arguments: Mapping[str, Any]) -> Handed:
        """Return the keys in pages."""
        case = self.case.formed(self.capabilities)
        if not case.page:
            return super().handed(arguments)
        pages, table = in_pages(case, arguments["index_k"])
        given = {**arguments, "index_k": pages, TABLE: table}
        return Handed(given, ("index_q", "head_weights", TABLE), (TABLE,))

    def form(self, arguments: Mapping[str, Any]) -> Form:
        """A score for every pair, and for every place of pages; float32 or the dtype of the queries."""
        q, keys = arguments["index_q"], arguments["index_k"].shape[1]
        case = self.case.formed(self.capabilities)
        letters = "[B, S, pages of a row * page size]" if case.page else "[B, S, T]"
        dtypes = tuple(dict.fromkeys((q.dtype, torch.float32)))
        return Form((*q.shape[:2], case.places(keys)), dtypes, letters)

    def relevant(self, answer: Answer) -> Tensor:
        """Return the scores of entries, without those of places behind them."""
        return super().relevant(answer)[..., : self.case.entries]

    def specified(self, arguments: Mapping[str, Any], noise: Any = None) -> Tensor:
        """Run the specification, one query and one entry at a time."""
        q, k, w = (arguments[name] for name in self.batched)
        scores = torch.zeros(*q.shape[:2], k.shape[1], dtype=torch.float64)
        for b in range(len(q)):
            for t in range(q.shape[1]):
                for s in range(k.shape[1]):
                    scores[b, t, s] = SPEC.index_score(q[b, t], w[b, t], k[b, s])
        return scores

    @of_case
    def expected(self) -> tuple[Tensor, Tensor]:
        """Scores ``[B, S, T]`` in float64 and their budget."""
        exact = {name: tensor.double() for name, tensor in self.arguments.items()}
        arithmetic = Arithmetic.of(self.arguments["index_q"].dtype, self.capabilities.internal_dtype)
        return each(lambda *row: (scores_of(*row), index_score_budget(arithmetic, *row)), *exact.values())

    def context(self, b: int, i: int) -> tuple[str, ...]:
        """Show the query's head weights."""
        weights = self.arguments["head_weights"][b, i].tolist()
        return (f"head weights          [{', '.join(f'{w:.4g}' for w in weights[:8])}]",)

    def kinds(self) -> set[str]:
        """Return the kinds that the case belongs to."""
        return kinds_of(self, KINDS) | self.case.page_kinds(self.case.entries)

    def products(self) -> Tensor:
        """Return q . k of every head, ``[B, S, HI, T]``."""
        q, k = self.arguments["index_q"].double(), self.arguments["index_k"].double()
        return torch.einsum("bshd,btd->bsht", q, k)

    def depends_on(self, failure: Failure) -> str:
        """Say which scores of a query are wrong, and whether each depends on its own entry alone."""
        if failure.place is None:
            return ""
        try:
            return self._probe(failure.place, failure.item)
        except Failure as again:  # it does not answer every time
            return str(again)

    def _probe(self, place: Place, item: str) -> str:
        b, i, keys = place.row, place.column, self.arguments["index_k"]
        got = self.relevant(self.answer).double()[b, i]
        expected, budget = (numbers[b, i] for numbers in self.expected)
        wrong = (error_ratios(got, expected, budget) > 1).nonzero().flatten().tolist()
        many = counted(len(wrong), "wrong score")
        where = f"{item} has {many} of {len(got)}, the first of entry {wrong[0]}"
        for s in wrong[:_MOST]:
            changed = {**self.arguments, "index_k": keys.clone()}
            changed["index_k"][b, s] = -self.sibling().arguments["index_k"][b, s]
            moved = moved_by(self.relevant(self.ask(changed)).double()[b, i], got, budget)
            q, w = (changed[name][b, i].double() for name in ("index_q", "head_weights"))
            score = SPEC.index_score(q, w, changed["index_k"][b, s].double())
            must = (score - expected[s]).abs() > _CLEARLY * budget[s]
            if bool(moved.any()) and moved.nonzero().flatten().tolist() != [s]:
                return f"{READS_TOO_MUCH}: {where}; other scores change with the key of entry {s}"
            if bool(must) and not moved[s]:
                return f"{READS_TOO_LITTLE}: {where}; the score of entry {s} does not change with its key"
        return f"Each score depends on its own entry, the numbers are wrong: {where}"


def scores_of(queries: Tensor, keys: Tensor, weights: Tensor) -> Tensor:
    """Return the scores ``[S, T]`` of one row by the specification, many at once where there are many."""
    if not len(keys):
        return queries.new_zeros(len(queries), 0)
    return each(lambda q, w: each(lambda key: SPEC.index_score(q, w, key), keys), queries, weights)


KINDS: dict[str, Callable[[IndexScoresTrial], bool]] = {
    "several rows": lambda trial: trial.case.rows > 1,
    "several queries": lambda trial: trial.case.queries > 1,
    "several index heads": lambda trial: trial.case.index_heads > 1,
    "no entries": lambda trial: trial.case.entries == 0,
    "several entries": lambda trial: trial.case.entries > 1,
    "negative head weight": lambda trial: bool((trial.arguments["head_weights"] < 0).any()),
    "negative product": lambda trial: bool((trial.products() < 0).any()),
}
_MOST = 32
"""Probes at most."""
_CLEARLY = 8
"""What moves the specification by this many budgets must move a right answer too."""
