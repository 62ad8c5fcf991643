"""Which kinds of case a run has reached, and which it must reach to mean anything.

A suite that never truncates a top-k, or never completes an entry, passes nearly every bug there is. So each run
counts the kinds of case that it tried, and a run that misses a required one is inconclusive.
"""

from __future__ import annotations

from csa_spec.engine.running import CheckResult
from csa_spec.spec import LayerKind
from csa_spec.stages.layer.case import Feature, LayerCase, Scores, Sinks
from csa_spec.stages.layer.expected import Expected

_EVERY = (
    "one token",
    "several rows",
    "several heads",
    "window of one token",
    "window shorter than the sequence",
    "window longer than the sequence",
    "sink that is not zero",
    "extreme sink",
    "some channels not rotated",
    "YaRN",
)
_COMPRESSED = (
    *_EVERY,
    "shorter than one block",
    "partial tail",
    "entry completed at t",
    "several entries",
    "ratio of 1",
    "window shorter than the ratio",
)
REQUIRED: dict[LayerKind, tuple[str, ...]] = {
    LayerKind.SLIDING: _EVERY,
    LayerKind.HCA: _COMPRESSED,
    LayerKind.CSA: (
        *_COMPRESSED,
        "truncated top-k",
        "everything visible selected",
        "top_k of 0",
        "tie across k",
        "selection without a tie",
        "several index heads",
        "negative head weight",
    ),
}


AMBIGUOUS_SHARE = {"float32": 0.1, "float64": 0.1, "float16": 0.3, "bfloat16": 0.5}
"""Share of the queries without drawn ties that may be ambiguous all the same (ReLU gives exact zeros, coarse scores
coincide). Ambiguous queries are judged leniently, so a run with more of them has not seen enough."""
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


def required(kind: str) -> list[str]:
    """Return the kinds of case that a run over one layer kind must reach."""
    features = [one for one in Feature if kind != LayerKind.SLIDING or one is not Feature.INSIDE_A_BLOCK]
    return [*REQUIRED[LayerKind(kind)], *map(str, features)]


def kinds_of(case: LayerCase, expected: Expected) -> set[str]:
    """Return the kinds that a case belongs to."""
    geometry, found = case.geometry, {str(feature) for feature in case.features}
    lengths = [length for row in case.rows for length in row.lengths]
    if 1 in lengths:
        found.add("one token")
    if len(case.rows) > 1:
        found.add("several rows")
    if geometry.heads > 1:
        found.add("several heads")
    if geometry.window == 1 < max(lengths):
        found.add("window of one token")
    if geometry.window < max(lengths):
        found.add("window shorter than the sequence")
    if geometry.window > max(lengths):
        found.add("window longer than the sequence")
    if case.sinks is not Sinks.ZERO:
        found.add("extreme sink" if case.sinks is Sinks.EXTREME else "sink that is not zero")
    if geometry.rope_dim < geometry.head_dim:
        found.add("some channels not rotated")
    if geometry.yarn is not None:
        found.add("YaRN")
    if geometry.kind is not LayerKind.SLIDING:
        found |= _compressed_kinds(case, lengths)
    if geometry.kind is LayerKind.CSA:
        found |= _selection_kinds(case, expected)
    return found


def _compressed_kinds(case: LayerCase, lengths: list[int]) -> set[str]:
    geometry, m, found = case.geometry, case.geometry.compress_ratio, set()
    if any(length < m for length in lengths):
        found.add("shorter than one block")
    if any(length > m and length % m for length in lengths):
        found.add("partial tail")
    if m > 1 and any(length >= m for length in lengths):
        found.add("entry completed at t")
    if any(length >= 2 * m for length in lengths):
        found.add("several entries")
    if m == 1:
        found |= {"ratio of 1", "entry completed at t"}
    if geometry.window < m and max(lengths) >= m:
        found.add("window shorter than the ratio")
    return found


def _selection_kinds(case: LayerCase, expected: Expected) -> set[str]:
    geometry, found = case.geometry, set()
    if geometry.index_heads > 1 and case.scores not in (Scores.PLATEAU, Scores.TIED):
        found.add("several index heads")
    if geometry.top_k == 0:
        found.add("top_k of 0")
    for document in expected.documents:
        context = document.trace.context
        indexer = expected.weights.indexer
        if indexer is not None and (context.hidden @ indexer.weights_proj.T < 0).any():
            found.add("negative head weight")
        for query, choice in zip(document.trace.queries, document.choices, strict=True):
            if 0 < geometry.top_k < len(query.visible):
                found.add("truncated top-k")
                found.add("tie across k" if choice.ambiguous else "selection without a tie")
            elif query.visible and geometry.top_k:
                found.add("everything visible selected")
    return found
