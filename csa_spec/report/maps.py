"""Text maps: who may see whom, and what outputs really depend on."""

from __future__ import annotations

from csa_spec.engine.dependence import Dependence
from csa_spec.spec import DocumentTrace, QueryTrace

LARGEST = 24
"""Longer documents are not drawn."""


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
        lines.append(_row(_label(query.t), window, seen) + _picks(query))
    return lines


def dependence_map(dependence: Dependence) -> list[str]:
    """Draw which outputs of the candidate depend on which tokens, and where that is wrong."""
    queries = len(dependence.observed)
    if queries > LARGEST:
        return []
    lines = [
        "what outputs depend on   # token, rightly   ! token, though it must not   ? not, though it must"
    ]
    lines.append(_row("", [str(j) for j in range(queries)], []))
    wrong = dict.fromkeys(dependence.too_much, "!") | dict.fromkeys(dependence.too_little, "?")
    for t in range(queries):
        marks = [wrong.get((t, j), "#" if dependence.observed[t, j] else ".") for j in range(queries)]
        lines.append(_row(_label(t), marks, []))
    return lines


def _label(t: int) -> str:
    return f"t={t}"


def _row(label: str, tokens: list[str], entries: list[str]) -> str:
    cells = "".join(f"{cell:>3}" for cell in tokens)
    return f"  {label:<7}{cells}" + ("  |" + "".join(f"{cell:>4}" for cell in entries) if entries else "")


def _picks(query: QueryTrace) -> str:
    """Name what a query selected, the best first."""
    return "   selects " + " ".join(f"e{s}" for s in query.selection) if query.scores.numel() else ""
