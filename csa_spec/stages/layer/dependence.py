"""Which output of a layer may depend on which token, and how that is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set

import torch
from torch import Tensor

from csa_spec.spec import SPEC, DocumentTrace, Geometry

LONGEST = 48
"""Documents with more tokens are not probed: a probe runs the candidate once per token."""


def allowed_tokens(trace: DocumentTrace, geometry: Geometry) -> Tensor:
    """Return ``[queries, tokens]``: the window, and every token that a visible entry pools.

    Entries that are visible but not selected count: their scores decide the selection.
    """
    length = trace.context.document.length
    allowed = torch.zeros(length, length, dtype=torch.bool)
    for query in trace.queries:
        allowed[query.t, query.window] = True
        for s in query.visible:
            pooled = SPEC.pooled_tokens(s, geometry.compress_ratio, geometry.overlap)
            allowed[query.t, [token.token for token in pooled]] = True
    return allowed


def probe(length: int, run: Callable[[int | None, int], Tensor], threshold: Tensor) -> Tensor:
    """Return ``[queries, tokens]``: whose output moves by more than ``threshold`` when a token is replaced.

    Parameters
    ----------
    length
        Tokens in the document.
    run
        Called with a token and a sign; returns the document's output ``[S, hidden]`` with that token
        replaced by a fresh one times the sign, or with none replaced. Two signs, because a norm over very
        few channels lets little more than the sign of a token through.
    threshold
        ``[S, hidden]``.
    """
    base = run(None, 1)
    moved = [
        moved_queries(base, [run(token, sign) for sign in (1, -1)], threshold) for token in range(length)
    ]
    return torch.stack(moved, dim=1)


def moved_queries(base: Tensor, runs: Sequence[Tensor], threshold: Tensor) -> Tensor:
    """Return the queries ``[S]`` whose output, ``[S, hidden]``, moves in one of some runs."""
    return ((torch.stack(list(runs)) - base).abs() > threshold).any(dim=2).any(dim=0)


Places = list[tuple[int, int]]
"""Rows and columns of a batch."""


def probe_outside(places: Places, moved: Callable[[Places], Tensor]) -> Iterator[tuple[int, int, int]]:
    """Yield each query of a document that depends on what is outside of it, with its row and column.

    Parameters
    ----------
    places
        All places outside of the document.
    moved
        Which queries move when some places get other hidden states. A right candidate is asked once per row:
        places are replaced one by one only where all those of their row together move something.
    """
    if not places or not moved(places).any():
        return
    for row in sorted({row for row, _ in places}):
        own = [place for place in places if place[0] == row]
        for place in own if moved(own).any() else []:
            yield from ((t, *place) for t in moved([place]).nonzero().flatten().tolist())


def blocks_read(read: Set[int], window: Set[int], ratio: int, origins: Iterable[int]) -> int | None:
    """Return the column from which blocks are counted, if a query reads whole blocks beside its window.

    All are columns of the row. None if no origin explains what it reads.
    """
    for origin in origins:
        blocks = {(column - origin) // ratio for column in read - window}
        whole = {origin + s * ratio + place for s in blocks for place in range(ratio)}
        if min(whole, default=-1) >= origin and whole - window == read - window:
            return origin
    return None
