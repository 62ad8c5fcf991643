"""Streams: one that keeps all tokens, and what the suite must say about the wrong ones of the catalogue."""

from __future__ import annotations

import re
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from csa_spec.bugs import find_bug
from csa_spec.bugs.stream import Cache
from csa_spec.spec import Document, Geometry, LayerWeights, answer_query, document_context


class Tokens:
    """A right stream that keeps all tokens of every row, and runs the specification on them."""

    def __init__(self, weights: LayerWeights, geometry: Geometry, batch: int) -> None:
        exact = LayerWeights.from_named({name: tensor.double() for name, tensor in weights.named().items()})
        self.layer = exact, geometry
        self.rows: list[list[Tensor]] = [[] for _ in range(batch)]

    def extend(self, hidden: Tensor) -> Tensor:
        """Run the new tokens of every row, on keys that are made anew."""
        kept = hidden.clone()  # the caller may write to its own
        self.rows = [[*row, *tokens] for row, tokens in zip(self.rows, kept, strict=True)]
        outs = []
        for row in self.rows:
            tokens, new = torch.stack(row).double(), range(len(row) - hidden.shape[1], len(row))
            context = document_context(tokens, Document(0, 0, len(row), 0), *self.layer)
            outs.append(torch.stack([answer_query(t, context, *self.layer).out for t in new]))
        return torch.stack(outs).to(hidden.dtype)

    def extend_rows(self, hidden: Tensor, lengths: list[int]) -> Tensor:
        """Run every row with new tokens alone; at padding there is NaN, which nobody may read."""
        out, rows = torch.full_like(hidden, torch.nan), list(self.rows)
        for row, length in enumerate(lengths):
            if length:
                self.rows = [rows[row]]
                out[row, :length] = Tokens.extend(self, hidden[row : row + 1, :length])[0]
                (rows[row],) = self.rows
        self.rows = rows
        return out

    def rollback_rows(self, counts: list[int]) -> None:
        """Drop as many as each row's count says."""
        self.rows = [row[: len(row) - n] for row, n in zip(self.rows, counts, strict=True)]

    def rollback(self, n: int) -> None:
        """Drop the last n."""
        self.rows = [row[: len(row) - n] for row in self.rows]

    def reset(self) -> None:
        """Drop all."""
        self.rows = [[] for _ in self.rows]

    def clear(self, rows: list[int]) -> None:
        """Drop all of some rows."""
        self.rows = [[] if b in rows else row for b, row in enumerate(self.rows)]

    def reorder(self, rows: list[int]) -> None:
        """Take rows; lists are never changed in place."""
        self.rows = [self.rows[b] for b in rows]

    select = reorder

    def repeat(self, times: int) -> None:
        """Take every row that many times."""
        self.rows = [row for row in self.rows for _ in range(times)]

    def fork(self) -> Tokens:
        """Return another with the same rows."""
        return copy(self)

    def save(self) -> list[list[Tensor]]:
        """Return the rows."""
        return self.rows

    def restore(self, state: list[list[Tensor]]) -> None:
        """Take them back."""
        self.rows = state


def candidate_of(stream: type[Any], **operations: Any) -> Any:
    """Return a candidate that opens such streams."""

    def cache(weights: LayerWeights, geometry: Geometry, batch: int) -> Any:
        return stream(weights, geometry, batch)

    cache.__name__ = cache.__qualname__ = stream.__name__
    return cache


@dataclass(frozen=True, slots=True)
class Wrong:
    """A wrong stream, and what must be said of it."""

    stream: type[Cache]
    after: str
    """The operation that the failure must name"""
    layer: str = "csa"
    calls: int = 3
    """Calls of the smallest schedule"""


def _table(after: str, *rows: str | tuple[str, dict[str, Any]]) -> dict[str, Wrong]:
    named = [(row, {}) if isinstance(row, str) else row for row in rows]
    return {name: Wrong(_stream(name), after, **more) for name, more in named}


def _stream(name: str) -> type[Cache]:
    bug = find_bug(re.sub(r"(?<!^)(?=[A-Z0-9])", "_", name).lower())
    stream: type[Cache] = vars(bug.function)["stream"]
    return stream


SLIDING: dict[str, Any] = {"layer": "sliding"}
HCA: dict[str, Any] = {"layer": "hca"}
FOUR: dict[str, Any] = {"calls": 4}
"""Something must be there to be saved, it must be saved, restored, and asked for."""

WRONG = {
    **_table(
        "extend",
        "LosesTheUnfinishedBlock",
        "LosesThePreviousBlockBetweenCalls",
        "KeepsTheBlockBeforeThePreviousOne",
        "OverwritesThePreviousBlockWithTheUnfinishedOne",
        "KeepsTheWrongHalfOfThePreviousBlock",
        ("WritesTheUnfinishedBlockToEntry0", HCA),
        ("CountsVisibleEntriesOncePerCall", HCA),
        ("CountsVisibleEntriesAfterTheUpdate", HCA),
        "SelectsOnlyEntriesOfTheCurrentCall",
        "KeepsIndexKeysForOneCallOnly",
        ("DoesNotSeeKeysOfEarlierCalls", SLIDING),
        ("KeepsOneKeyTooFew", SLIDING),
        ("OverwritesKeysThatALongCallNeeds", SLIDING),
        ("CountsEntryPositionsFromTheCall", HCA),
        ("CountsQueryPositionsFromTheCall", SLIDING),
        ("SharesOneStateBetweenRows", SLIDING),
        ("ExtendRowsTakesTheLongestLengthForAllRows", SLIDING),
    ),
    **_table(
        "reset",
        ("ResetKeepsTheCount", HCA),
        ("ResetKeepsTheEntries", HCA),
        ("ResetKeepsTheUnfinishedBlock", HCA),
        "ResetKeepsThePreviousBlock",
        # Only a first call of less than a block does not clear it, so another call must finish the block.
        ("ResetKeepsThePreviousBlockBeforeAShortRequest", FOUR),
        ("ResetKeepsTheKeys", SLIDING),
    ),
    **_table(
        "reorder",
        ("ReorderDoesNotMoveTheEntries", HCA),
        "ReorderDoesNotMoveTheIndexKeys",
        ("ReorderDoesNotMoveTheKeys", SLIDING),
        "ReorderDoesNotMoveUnfinishedBlocks",
        "ReorderDoesNotMovePreviousBlocks",
        ("ReorderInvertsThePermutation", SLIDING),
        ("ReorderOverwritesRowsBeforeItReadsThem", SLIDING),
        ("ReorderSharesStateBetweenRows", SLIDING),
    ),
    **_table("select", ("SelectKeepsTheFirstRows", SLIDING), ("SelectKeepsTheOrder", SLIDING)),
    **_table("repeat", ("RepeatTilesTheBatch", SLIDING), ("RepeatSharesState", SLIDING)),
    **_table(
        "clear",
        ("ClearKeepsTheUnfinishedBlock", HCA),
        "ClearDropsThePreviousBlocksOfOtherRows",
        ("ClearKeepsOneLengthForAllRows", SLIDING),
    ),
    **_table(
        "rollback",
        "RollbackDoesNotRestoreTheCompressors",
        "RollbackKeepsThePreviousBlock",
        ("RollbackDoesNotRestoreOverwrittenKeys", SLIDING),
        ("RollbackHandlesAtMostFourTokens", HCA),
        ("RollbackIsRightForTheFirstRowOnly", SLIDING),
        ("DecodesOverTheWholePool", HCA),
        ("RollbackRowsTakesTheLeastNumberForAllRows", SLIDING),
    ),
    **_table(
        "fork",
        ("ForkSharesAllState", SLIDING),
        "ForkSharesUnfinishedBlocks",
        ("ForkEmptiesTheOriginal", SLIDING),
        ("ForkCopiesTheListOfFreePages", FOUR),
    ),
    **_table("other", ("SharesStateBetweenStreams", SLIDING)),
    **_table(
        "restore",
        ("SaveReturnsAReference", SLIDING | FOUR),
        (
            "RestoreDoesNotCopy",
            SLIDING | {"calls": 5},
        ),  # the second time it restores what the first went on with
        ("SaveOmitsTheKeys", SLIDING | FOUR),
        ("SaveOmitsUnfinishedBlocks", HCA | FOUR),
    ),
}
"""Wrong streams by name."""
