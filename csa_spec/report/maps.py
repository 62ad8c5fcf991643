"""Text maps: who may see whom, and what outputs really depend on."""

from __future__ import annotations

from csa_spec.engine.dependence import Dependence
from csa_spec.engine.failures import Failure
from csa_spec.spec import DocumentTrace

LARGEST = 24
"""Longer documents are not drawn."""


def maps(failure: Failure) -> list[list[str]]:
    """Return the maps of a failure that recorded enough for them, and is small enough."""
    sight = sight_map(failure.document) if failure.document else []
    depends = dependence_map(failure.dependence) if failure.dependence else []
    return [lines for lines in (sight, depends) if lines]


def sight_map(trace: DocumentTrace) -> list[str]:
    """Draw which tokens and entries each query attends to, may see, and must not see."""
    tokens, entries = len(trace.queries), len(trace.context.entries)
    if tokens > LARGEST:
        return []
    lines = ["who may see whom   # attends to it   o may see it, did not select it   . must not see it"]
    lines.append(_row("", [str(j) for j in range(tokens)], [f"e{s}" for s in range(entries)]))
    for query in trace.queries:
        window = ["#" if j in query.window else "." for j in range(tokens)]
        seen = ["#" if s in query.selection else "o" if s in query.visible else "." for s in range(entries)]
        best_first = " ".join(f"e{s}" for s in query.selection) or "no entry"
        lines.append(
            _row(f"t={query.t}", window, seen) + (f"   selects {best_first}" if query.scores.numel() else "")
        )
    return lines


def dependence_map(dependence: Dependence) -> list[str]:
    """Draw which outputs of the candidate depend on which tokens, and where that is wrong."""
    queries = len(dependence.observed)
    if queries > LARGEST:
        return []
    lines = ["what outputs depend on   # rightly   ! though it must not   ? not, though it must"]
    lines.append(_row("", [str(j) for j in range(queries)], []))
    wrong = dict.fromkeys(dependence.too_much, "!") | dict.fromkeys(dependence.too_little, "?")
    for t in range(queries):
        marks = [wrong.get((t, j), "#" if dependence.observed[t, j] else ".") for j in range(queries)]
        lines.append(_row(f"t={t}", marks, []))
    return lines


def _row(label: str, tokens: list[str], entries: list[str]) -> str:
    cells = "".join(f"{cell:>3}" for cell in tokens)
    return f"  {label:<7}{cells}" + ("  |" + "".join(f"{cell:>4}" for cell in entries) if entries else "")
