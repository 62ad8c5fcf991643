"""The lines of a script that hold what came back against what is right, or one run against another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from csa_spec.bundle.literals import Literals, number, shorten
from csa_spec.bundle.streams import all_answers
from csa_spec.engine.failures import Failure, Place, WrongShape
from csa_spec.engine.numbers import NumbersTrial
from csa_spec.engine.trial import Trial
from csa_spec.spec import SPEC
from csa_spec.stages.cache.trial import CacheTrial
from csa_spec.stages.layer.expected import ALTERNATIVES
from csa_spec.stages.layer.trial import LayerTrial
from csa_spec.stages.select.trial import SelectTrial


def right(trial: Trial, failure: Failure, literals: Literals) -> list[str]:
    """Return the lines that hold ``got`` against the specification."""
    if isinstance(trial, SelectTrial):
        return valid_picks(trial, literals)
    shape, dtypes, _ = trial.form(trial.arguments)
    several = False
    if isinstance(trial, LayerTrial):
        expected, allowed, several = _layer_numbers(trial, failure)
    elif isinstance(trial, CacheTrial):
        expected, allowed = all_answers(trial)
    else:
        assert isinstance(trial, NumbersTrial)
        expected, allowed = trial.expected
    at = None if isinstance(trial, CacheTrial) else failure.place
    lines = ['assert isinstance(got, torch.Tensor), f"got {type(got).__name__}"'] * isinstance(
        failure, WrongShape
    )
    return [*lines, *form(shape, dtypes), *within(expected, allowed, several, at, literals)]


def form(shape: Sequence[int | None], dtypes: Sequence[torch.dtype]) -> list[str]:
    """Return the lines that ask for shape and dtype of ``got``, and make it exact."""
    names = ", ".join(map(str, dtypes))
    test = f"got.dtype in ({names})" if len(dtypes) > 1 else f"got.dtype == {names}"
    return [
        f'assert got.shape == {tuple(shape)} and {test}, f"got {{got.dtype}} of shape {{tuple(got.shape)}}"',
        "got = got.detach().double()",
    ]


def within(
    expected: Tensor, allowed: Tensor, several: bool, at: Place | None, literals: Literals
) -> list[str]:
    """Return the lines that hold ``got`` against numbers.

    Parameters
    ----------
    expected, allowed
        Numbers and allowed errors.
    several
        Whether their first dimension is that of several selections, each of which is right.
    at
        What is printed, where the whole is large.
    literals
        Those of the script.
    """
    expected, allowed = shorten(expected, allowed)
    comment = "  # by valid selection, as scores tie" if several else ""
    lines = [f"expected = {literals.of('expected', expected)}{comment}"]
    several_right = "; inf: not compared (scores tie, or padding)" if allowed.isinf().any() else ""
    lines += [f"# The allowed error{several_right}:", f"allowed = {literals.of('allowed', allowed)}"]
    lines += ["wrong = ~((got - expected).abs() <= allowed) & (got != expected)"]
    if several:
        lines += [
            "best = wrong.any(-1).long().argmin(0)  # by query, the selection that explains the output"
        ]
        lines += [
            "expected, allowed, wrong = (",
            "    x.gather(0, best[None, ..., None].expand_as(x[:1]))[0] for x in (expected, allowed, wrong)",
            ")",
        ]
    index = _index(at, expected[0] if several else expected)
    return [
        *lines,
        f'print(f"expected {{expected{index}.tolist()}}\\ngot      {{got{index}.tolist()}}")',
        "shown = [values[wrong][:4].tolist() for values in (expected, got, allowed)]",
        'assert not wrong.any(), "expected {}, got {}, allowed error {}".format(*shown)',
    ]


def _index(place: Place | None, expected: Tensor) -> str:
    """Return an index of what is shown: the item that the failure is about, or everything where that is little."""
    if place is None or expected.numel() <= 12:
        return "" if expected.numel() <= 64 else ".flatten()[:8]"
    head = "" if place.head is None else f", {place.head}"
    return f"[{place.row}, {place.column}{head}]"


def _layer_numbers(trial: LayerTrial, failure: Failure) -> tuple[Tensor, Tensor, bool]:
    """Return outputs and allowed errors, ``[B, S, hidden]``, with a dimension for valid selections before, if needed.

    Only the query that the failure is about needs its several selections; others that have some may have any error,
    and so may padding.
    """
    place = failure.place
    at = None if place is None else (place.row, place.column)
    out = trial.expected.out.clone()
    allowed = torch.full_like(out, torch.inf)
    for document in trial.expected.documents:
        own = document.trace.context.document
        out[own.row, own.columns] = document.trace.out
        allowed[own.row, own.columns] = document.budgets.out
        for t, choice in enumerate(document.choices):
            if choice.ambiguous:
                allowed[own.row, own.begin + t] = torch.inf
    for document in trial.expected.documents:
        own = document.trace.context.document
        for t, choice in enumerate(document.choices):
            if not choice.ambiguous or choice.count > ALTERNATIVES or at != (own.row, own.begin + t):
                continue
            others = [trial.expected.reselect(document, {t: selection}) for selection in choice.selections()]
            out, allowed = (x.expand(len(others), *x.shape).clone() for x in (out, allowed))
            out[:, own.row, own.begin + t] = torch.stack([other.trace.queries[t].out for other in others])
            allowed[:, own.row, own.begin + t] = torch.stack([other.budgets.out[t] for other in others])
            return out, allowed, True
    return out, allowed, False


def valid_picks(trial: SelectTrial, literals: Literals) -> list[str]:
    """Return the rules of a selection in a few lines, since any choice among equal scores is right."""
    case, must = trial.case, []
    for b in range(case.rows):
        for t in range(case.queries):
            visible = trial.visible(b, t)
            scores = [
                x if x == x else -torch.inf for x in trial.arguments["scores"][b, t, :visible].tolist()
            ]
            picks = sorted(SPEC.select(range(visible), scores, case.top_k))
            must.append(picks + [-1] * (case.top_k - len(picks)))
    listed = torch.tensor(must, dtype=torch.long).view(case.rows, case.queries, case.top_k)
    tolerance, lowest = trial.capabilities.tie_tolerance, trial.capabilities.lowest_index_first
    slack = f" + {tolerance!r} * max(abs(least), abs(most))" if tolerance else ""
    lines = [
        f"right = {literals.of('right', listed)}  # among equal scores any choice is",
        f"for row, t in [(row, t) for row in range({case.rows}) for t in range({case.queries})]:",
        f"    visible = min({case.entries}, (int(positions[row, t]) + 1) // compress_ratio)",
        "    picks, seen = [s for s in got[row][t].tolist() if s != -1], scores[row, t].tolist()",
        '    print(f"row {row}, query {t}: right is {right[row, t].tolist()}, got {got[row][t].tolist()}")',
        '    assert all(0 <= s < visible for s in picks), f"query {t} may see entries below {visible}, got {picks}"',
        "    count = min(top_k, visible)",
        '    assert len(set(picks)) == len(picks) == count, f"expected {count} different entries, got {picks}"',
        "    rest = set(range(visible)) - set(picks)",
        "    least = min((seen[s] for s in picks if seen[s] == seen[s]), default=torch.inf)",
        "    most = max((seen[s] for s in rest if seen[s] == seen[s]), default=-torch.inf)",
        f'    assert not most > least{slack}, f"leaves out a score of {{most}} and selects one of {{least}}"',
    ]
    if lowest:
        lines += [
            "    later = max((s for s in picks if seen[s] == least), default=-1)",
            "    assert not any(seen[s] == least and s < later for s in rest), "
            'f"a tie is not broken towards the lowest entry: {picks}"',
        ]
    return lines


def agree(
    trial: LayerTrial,
    failure: Failure,
    literals: Literals,
    first: str,
    second: str,
    what: str,
    cut: int | None = None,
) -> list[str]:
    """Return the lines that hold two runs of a layer against each other, up to a column."""
    allowed = torch.full_like(trial.expected.out, torch.inf)
    for document in trial.expected.documents:
        place = document.trace.context.document
        for t in range(place.length):
            if not document.choices[t].ambiguous:
                allowed[place.row, place.begin + t] = 2 * document.budgets.out[t]
    part = "" if cut is None else f"[:, :{cut}]"
    return two_runs(failure, literals, first, second, allowed[:, :cut], trial.expected.dtype, what, part)


def two_runs(
    failure: Failure, literals: Literals, first: str, second: str, allowed: Tensor, dtype: torch.dtype, what: str,
    part: str, elementwise: bool = False,
) -> list[str]:  # fmt: skip
    """Hold two runs against each other: both may be off by an error, and what is large rounds more."""
    _, allowed = shorten(torch.zeros_like(allowed), allowed)
    size = "first.abs()" if elementwise else "first.abs().amax(-1, keepdim=True)"
    place = failure.place
    at = "" if place is None or allowed.numel() <= 12 else f"[{place.row}, {place.column}]"
    return [
        f"first = {first}",
        f"# The same with {what}:",
        f"second = {second}",
        f"first, second = (out.detach().double(){part} for out in (first, second))",
        "# The allowed difference; inf: not compared (scores tie, or padding):"
        if allowed.isinf().any()
        else "# The allowed difference:",
        f"allowed = {literals.of('allowed', allowed)}",
        f"allowed = allowed + {number(16 * torch.finfo(dtype).eps)} * {size}",
        "wrong = ~((second - first).abs() <= allowed) & ~(first.isnan() & second.isnan()) & (first != second)",
        f'print("one run  ", first{at}.tolist())',
        f'print("the other", second{at}.tolist())',
        "shown = [values[wrong][:4].tolist() for values in (first, second)]",
        'assert not wrong.any(), "one run has {}, the other {}".format(*shown)',
    ]
