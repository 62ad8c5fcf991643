"""Text maps: who may see whom, and what outputs really depend on."""

from __future__ import annotations

from csa_spec.engine.dependence import Dependence
from csa_spec.engine.failures import Failure
from csa_spec.engine.layout import RowLayout, layout_of
from csa_spec.spec import DocumentTrace

LARGEST = 24
"""Longer documents are not drawn."""


def maps(failure: Failure) -> list[list[str]]:
    """Return the maps of a failure that recorded enough for them, and is small enough."""
    trace, dependence = failure.document, failure.dependence
    if trace is None or not trace.whole or len(trace.queries) > LARGEST:
        return []
    frame = _Frame(trace, layout_of(failure.case, trace), failure.case.sizes.get("m", 0))
    return [frame.sight(), *([] if dependence is None else [frame.dependence(dependence)])]


class _Frame:
    """What the maps of a failure share: the columns, their names, and those of the queries.

    The columns are those of the row, or of the document alone where the row is too wide.
    """

    def __init__(self, trace: DocumentTrace, layout: RowLayout, ratio: int) -> None:
        self._trace, self._layout, self._ratio = trace, layout, ratio
        document, width = trace.context.document, len(layout.documents)
        self._begin = document.begin
        self._columns = range(width) if width <= LARGEST else range(width)[document.columns]
        self._cell = max(3, 1 + len(str(self._columns[-1])))
        self._labels = [layout.label(document.begin + t) for t in range(document.length)]
        self._label_width = max(7, *(len(label) + 1 for label in self._labels))

    def sight(self) -> list[str]:
        """Draw which tokens and entries each query attends to, may see, and must not see."""
        lines = ["who may see whom   # attends to it   o may see it, did not select it   . must not see it"]
        entries = range(len(self._trace.context.entries))
        lines += self._header([f"e{s}" for s in entries])
        for query, label in zip(self._trace.queries, self._labels, strict=True):
            window = {self._begin + j for j in query.window}
            tokens = ["#" if column in window else "." for column in self._columns]
            seen = ["#" if s in query.selection else "o" if s in query.visible else "." for s in entries]
            best_first = " ".join(f"e{s}" for s in query.selection) or "no entry"
            selects = f"   selects {best_first}" if query.scores.numel() else ""
            lines.append(self._row(label, tokens, seen) + selects)
        return lines

    def dependence(self, dependence: Dependence) -> list[str]:
        """Draw which outputs of the candidate depend on which tokens, and where that is wrong."""
        lines = ["what outputs depend on   # rightly   ! though it must not   ? not, though it must"]
        lines += self._header([])
        marks = {(t, self._begin + j): "#" for t, j in dependence.observed.nonzero().tolist()}
        marks |= {(t, self._begin + j): "!" for t, j in dependence.too_much}
        marks |= {(t, self._begin + j): "?" for t, j in dependence.too_little}
        marks |= {(t, column): "!" for t, row, column in dependence.outside if row == self._layout.row}
        for t, label in enumerate(self._labels):
            lines.append(self._row(label, [marks.get((t, column), ".") for column in self._columns]))
        return lines

    def _header(self, entries: list[str]) -> list[str]:
        """Name the columns: what each holds, in a row that is more than one document."""
        if self._layout.plain:
            return [self._row("", list(map(str, self._columns)), entries)]
        held = {"column": list(map(str, self._columns)), **self._layout.held(self._columns, self._ratio)}
        *lines, last = (self._row(name, cells) for name, cells in held.items())
        whose = f"   entries of document {self._layout.documents[self._begin]}"
        last += self._row("", [], entries)[2 + self._label_width :]
        return [*lines, last + (whose if entries and self._layout.several else "")]

    def _row(self, label: str, tokens: list[str], entries: list[str] | None = None) -> str:
        cells = "".join(f"{cell:>{self._cell}}" for cell in tokens)
        beyond = "  |" + "".join(f"{cell:>4}" for cell in entries) if entries else ""
        return f"  {label:<{self._label_width}}{cells}" + beyond
