"""Which kinds of case a run has reached, and which it must reach to mean anything.

A suite that never truncates a top-k, or never completes an entry, passes nearly every bug there is. So each
run counts the kinds of case that it tried, and a run that misses a required one is inconclusive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from csa_spec.engine.choices import Choice
from csa_spec.engine.running import CheckResult
from csa_spec.spec import LayerKind, QueryTrace
from csa_spec.stages.layer.case import Feature, LayerCase, Scores, Sinks
from csa_spec.stages.layer.expected import Expected

Holds = Callable[[LayerCase, Expected], bool]

AMBIGUOUS_SHARE = {"float32": 0.1, "float64": 0.1, "float16": 0.3, "bfloat16": 0.5}
"""Share of the queries without drawn ties that may be ambiguous all the same: ReLU gives exact zeros, coarse
scores coincide. Ambiguous queries are judged leniently, so a run with more of them has not seen enough."""
WITHOUT_DRAWN_TIES = (Scores.FREE, Scores.SEPARATED)


def too_ambiguous(result: CheckResult, dtype: str) -> list[str]:
    """Say that a run has seen too few queries without ties, if so."""
    tallies = [
        count.tally for regime, count in result.regimes.items() if set(regime) & set(WITHOUT_DRAWN_TIES)
    ]
    share = sum(tally.ambiguous for tally in tallies) / max(1, sum(tally.queries for tally in tallies))
    most = AMBIGUOUS_SHARE[dtype]
    if share <= most:
        return []
    return [
        f"enough queries without ties ({share:.0%} are ambiguous where no tie was drawn, over {most:.0%})"
    ]


def _lengths(case: LayerCase) -> list[int]:
    return [length for row in case.rows for length in row.lengths]


def _longest(case: LayerCase) -> int:
    return max(_lengths(case))


def _choices(expected: Expected) -> Iterator[tuple[QueryTrace, Choice]]:
    for document in expected.documents:
        yield from zip(document.trace.queries, document.choices, strict=True)


def _truncated(case: LayerCase, expected: Expected) -> list[Choice]:
    """Return the choices of queries that see more entries than they select."""
    choices = _choices(expected)
    return [choice for query, choice in choices if 0 < case.top_k < len(query.visible)]


def _several_index_heads(case: LayerCase, expected: Expected) -> bool:
    return case.index_heads > 1 and case.scores not in (Scores.PLATEAU, Scores.TIED)


def _everything_selected(case: LayerCase, expected: Expected) -> bool:
    return any(0 < len(query.visible) <= case.top_k for query, _ in _choices(expected))


def _negative_head_weight(case: LayerCase, expected: Expected) -> bool:
    indexer = expected.weights.indexer
    return indexer is not None and any(
        bool((document.trace.context.hidden @ indexer.weights_proj.T < 0).any())
        for document in expected.documents
    )


_EVERY: dict[str, Holds] = {
    "one token": lambda case, expected: 1 in _lengths(case),
    "several rows": lambda case, expected: len(case.rows) > 1,
    "several heads": lambda case, expected: case.heads > 1,
    "window of one token": lambda case, expected: case.window == 1 < _longest(case),
    "window shorter than the sequence": lambda case, expected: case.window < _longest(case),
    "window longer than the sequence": lambda case, expected: case.window > _longest(case),
    "sink that is not zero": lambda case, expected: case.sinks is Sinks.DRAWN,
    "extreme sink": lambda case, expected: case.sinks is Sinks.EXTREME,
    "some channels not rotated": lambda case, expected: case.rope_dim < case.head_dim,
    "YaRN": lambda case, expected: case.yarn is not None,
}
_COMPRESSED: dict[str, Holds] = {
    "shorter than one block": lambda case, expected: any(n < case.compress_ratio for n in _lengths(case)),
    "partial tail": lambda case, expected: any(
        n > case.compress_ratio and n % case.compress_ratio for n in _lengths(case)
    ),
    "entry completed at t": lambda case, expected: _longest(case) >= case.compress_ratio,
    "several entries": lambda case, expected: _longest(case) >= 2 * case.compress_ratio,
    "ratio of 1": lambda case, expected: case.compress_ratio == 1,
    "window shorter than the ratio": lambda case, expected: (
        case.window < case.compress_ratio <= _longest(case)
    ),
}
_SELECTION: dict[str, Holds] = {
    "truncated top-k": lambda case, expected: bool(_truncated(case, expected)),
    "everything visible selected": _everything_selected,
    "top_k of 0": lambda case, expected: case.top_k == 0,
    "tie across k": lambda case, expected: any(choice.ambiguous for choice in _truncated(case, expected)),
    "selection without a tie": lambda case, expected: any(
        not choice.ambiguous for choice in _truncated(case, expected)
    ),
    "several index heads": _several_index_heads,
    "negative head weight": _negative_head_weight,
}
REQUIRED: dict[LayerKind, dict[str, Holds]] = {
    LayerKind.SLIDING: _EVERY,
    LayerKind.HCA: {**_EVERY, **_COMPRESSED},
    LayerKind.CSA: {**_EVERY, **_COMPRESSED, **_SELECTION},
}
"""The kinds of case that a run must reach beside the features, and the rule for what belongs to each."""


def required(kind: str) -> list[str]:
    """Return the kinds of case that a run over one layer kind must reach."""
    features = [name for name in Feature if kind != LayerKind.SLIDING or name != Feature.INSIDE_A_BLOCK]
    return [*REQUIRED[LayerKind(kind)], *map(str, features)]


def kinds_of(case: LayerCase, expected: Expected) -> set[str]:
    """Return the kinds that a case belongs to."""
    kinds = {name for name, holds in REQUIRED[case.kind].items() if holds(case, expected)}
    return kinds | {str(feature) for feature in case.features}
