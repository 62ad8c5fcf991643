"""What an output depends on, for stages whose checks do not look: one argument at a time is replaced."""

from __future__ import annotations

import torch

from csa_spec.diagnosis.agreement import parts_of_calls
from csa_spec.engine.comparison import error_ratios
from csa_spec.engine.failures import Place, query_name
from csa_spec.engine.trial import main_output
from csa_spec.spec import SPEC
from csa_spec.stages.cache import CacheTrial
from csa_spec.stages.index_scores import IndexScoresTrial

_MOST = 32
"""Probes at most."""
_CLEARLY = 8
"""What moves the specification by this many budgets must move a right answer too."""


def sight_of_scores(trial: IndexScoresTrial, place: Place) -> str:
    """Say which scores of a query are wrong, and whether each depends on its own entry alone."""
    b, i, keys = place.row, place.column, trial.arguments["index_k"]
    got = trial.relevant(trial.answer).double()[b, i]
    expected, budget = (one[b, i] for one in trial.expected)
    wrong = (error_ratios(got, expected, budget) > 1).nonzero().flatten().tolist()
    where = f"of query {query_name(i)} the scores of {len(wrong)} of {len(got)} entries are wrong, first entry {wrong[0]}"
    for s in wrong[:_MOST]:
        changed = {**trial.arguments, "index_k": keys.clone()}
        changed["index_k"][b, s] = -trial.sibling().arguments["index_k"][b, s]
        moved = _moved(trial.relevant(trial.ask(changed)).double()[b, i], got, budget)
        q, w = (changed[name][b, i].double() for name in ("index_q", "head_weights"))
        must = (
            SPEC.index_score(q, w, changed["index_k"][b, s].double()) - expected[s]
        ).abs() > _CLEARLY * budget[s]
        if bool(moved.any()) and moved.nonzero().flatten().tolist() != [s]:
            return f"It sees too much: {where}; other scores change with the key of entry {s}"
        if bool(must) and not moved[s]:
            return f"It sees too little: {where}; the score of entry {s} does not change with its key"
    return f"Each score depends on its own entry, the numbers are wrong: {where}"


def _moved(second: torch.Tensor, first: torch.Tensor, budget: torch.Tensor) -> torch.Tensor:
    return (second.nan_to_num() - first.nan_to_num()).abs() > 2 * budget


def sight_of_a_stream(trial: CacheTrial, place: Place) -> str:
    """Say on which tokens of which calls a wrong output depends that its row does not hold, or the other way round."""
    base, other, begin = main_output(trial.answer), trial.sibling().arguments, 0
    assert isinstance(base, torch.Tensor)
    names = [name for name in trial.arguments if name.startswith("tokens ")]
    tokens = [(name, row, n) for name in names for row, n in _places(trial.arguments[name])]
    if len(tokens) > _MOST:
        return ""
    for judged, part in zip(trial.judged(trial.answer), parts_of_calls(trial, trial.answer), strict=True):
        n = place.t - (len(judged.tokens) - len(judged.got))
        if judged.row == place.row and 0 <= n < len(judged.got):
            ratios = error_ratios(part.found[0][n], part.expected[n], part.budget[n])
            if float(ratios.max()) > 1:
                break
        begin += len(judged.got)
    else:
        return ""
    held = {(f"tokens {call}", row, number) for call, row, number in judged.tokens[: place.t + 1]}
    at, budget = begin + n, part.budget[n]
    stray = []
    for name, row, number in tokens:
        changed = {**trial.arguments, name: trial.arguments[name].clone()}
        changed[name][row, number] = -other[name][row, number]
        out = main_output(trial.ask(changed))
        assert isinstance(out, torch.Tensor)
        if (name, row, number) not in held and bool(
            _moved(out[at].double(), base[at].double(), budget).any()
        ):
            stray.append(f"token {number} of row {row} in call {int(name.split()[1]) + 1}")
    if stray:
        return f"It sees too much: it depends on {', '.join(stray[:3])}, which the row does not hold at that point"
    return "It depends on no token that the row does not hold: it misses some, or the numbers are wrong"


def _places(tokens: torch.Tensor) -> list[tuple[int, int]]:
    return [(row, n) for row in range(tokens.shape[0]) for n in range(tokens.shape[1])]
