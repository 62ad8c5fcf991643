"""What the specification records while it runs: everything a picture or an explanation needs."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Document(NamedTuple):
    """A run of tokens that is attended alone: a whole row, or one of the documents packed into it."""

    row: int
    begin: int
    """Column of its first token in the batch"""
    length: int
    start: int
    """Absolute position of its first token"""

    @property
    def columns(self) -> slice:
        """The columns of the batch that it occupies."""
        return slice(self.begin, self.begin + self.length)


@dataclass(frozen=True, slots=True)
class Context:
    """What all queries of one document share: S tokens, T entries."""

    document: Document
    hidden: Tensor
    """``[S, hidden]``, the layer's input"""
    frequencies: Tensor
    """``[rope_dim / 2]``, the rotary frequencies of the layer"""
    window_keys: Tensor
    """``[S, head_dim]``, normed and rotated"""
    entries: Tensor
    """``[T, head_dim]``, normed and rotated"""
    index_keys: Tensor
    """``[T, index_head_dim]``, normed and rotated; empty where there is no indexer"""


@dataclass(frozen=True, slots=True)
class QueryTrace:
    """How one query came to its output. ``t`` and all tokens count from the document's first token."""

    t: int
    window: list[int]
    """Tokens seen through the sliding window"""
    visible: list[int]
    """Entries that it may see"""
    scores: Tensor
    """``[len(visible)]``, index scores; empty where there is no indexer"""
    selection: list[int]
    """Entries that it attends to; best first in CSA layers"""
    margin: float | None
    """Gap between the last selected and the first rejected score; None unless there are both"""
    q: Tensor
    """``[heads, head_dim]``, normed and rotated"""
    probabilities: Tensor
    """``[heads, len(window) + len(selection)]``, in that order; the sink has the rest"""
    core: Tensor
    """``[heads, head_dim]``, the attention output before the inverse rotation"""
    out: Tensor
    """``[hidden]``"""


@dataclass(frozen=True, slots=True)
class DocumentTrace:
    """One document: what its queries share, and a trace for every query that was asked about."""

    context: Context
    queries: list[QueryTrace]
    """In their order; of a long document perhaps only some"""

    @property
    def out(self) -> Tensor:
        """``[queries, hidden]``."""
        return torch.stack([query.out for query in self.queries])

    @property
    def whole(self) -> bool:
        """Whether every query was asked about."""
        return len(self.queries) == self.context.document.length

    def query(self, t: int) -> QueryTrace:
        """Return the trace of query ``t``."""
        return self.queries[self.number(t)]

    def number(self, t: int) -> int:
        """Return which of the queries is query ``t``."""
        return t if self.whole else bisect_left(self.queries, t, key=lambda query: query.t)


@dataclass(frozen=True, slots=True)
class BatchTrace:
    """All documents of a batch, and the layer's output."""

    out: Tensor
    """``[B, S, hidden]``, zero at padding and where nothing was asked"""
    documents: list[DocumentTrace]
