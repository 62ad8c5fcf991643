"""What stands in the columns of a row of the batch: padding, and documents one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from csa_spec.engine.case import Case
from csa_spec.engine.failures import Place
from csa_spec.spec import PADDING, DocumentTrace


@dataclass(frozen=True, slots=True)
class RowLayout:
    """One row: which document each of its columns belongs to."""

    row: int
    documents: Sequence[int]
    """Of each column; -1 at padding"""

    @property
    def plain(self) -> bool:
        """Whether the row is one document and nothing else, so that columns are what its tokens count."""
        return len({*self.documents}) == 1

    @property
    def several(self) -> bool:
        """Whether there is more than one document."""
        return len({*self.documents} - {PADDING}) > 1

    def place(self, column: int) -> Place:
        """Return the place of a token; padding is counted from the row's first column."""
        document = self.documents[column]
        if document == PADDING:
            return Place(self.row, column, column, item="padding")
        number = document if self.several else None
        return Place(
            self.row, column, column - self.documents.index(document), item="token", document=number
        )

    def label(self, column: int) -> str:
        """Name a query in front of its line: ``t=2``, in a packed row ``document 1, t=2 (column 7)``."""
        place = self.place(column)
        label = f"t={place.t}" if place.document is None else f"document {place.document}, t={place.t}"
        return label if self.plain else f"{label} (column {column})"

    def held(self, columns: Sequence[int], ratio: int) -> dict[str, list[str]]:
        """Say what columns hold, in cells: their document, t, and the entry whose block they are in.

        A ``ratio`` of 0 tokens per block means that there are no blocks.
        """
        places = [self.place(column) for column in columns]
        tokens = [place.item == "token" for place in places]
        cells = {
            "document": [
                "-" if self.documents[column] == PADDING else str(self.documents[column])
                for column in columns
            ],
            "t": [str(place.t) if token else "-" for place, token in zip(places, tokens, strict=True)],
        }
        if ratio:
            cells["block"] = [
                "-" if (s := self.block(column, ratio)) is None else f"e{s}" for column in columns
            ]
        return cells

    def block(self, column: int, ratio: int) -> int | None:
        """Return the entry that pools a token as part of its own, complete block; None where none does."""
        document = self.documents[column]
        s = self.place(column).t // ratio
        complete = document != PADDING and (s + 1) * ratio <= self.documents.count(document)
        return s if complete else None


def layout_of(case: Case, trace: DocumentTrace) -> RowLayout:
    """Return the row of a document."""
    row, length = trace.context.document.row, trace.context.document.length
    return RowLayout(row, case.documents_of(row) or [0] * length)
