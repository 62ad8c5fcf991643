"""Picks: the entries that a query attends to, by the scores of its own layer or of an earlier one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def no_query_norm(q: Tensor, eps: float) -> Tensor:
    """Return the queries ``[heads, head_dim]`` as they are. V4 norms each head here, without a weight."""
    return q


def index_queries(queries: Tensor, eps: float) -> Tensor:
    """Return the index queries ``[index_heads, index_head_dim]`` as they are: no norm, as in V4."""
    return queries


def scored_keys(own: Tensor, last: Tensor) -> Tensor:
    """Return the index keys that an index source scores against: its owner's, in every step of decoding.

    ``last`` are those that any layer published last, in this call or an earlier one. The official decode
    takes these, whoever made them, in each step in which the owner completes no group; its prefill does not.
    """
    return own


def reuse(picks: Sequence[int], visible: Sequence[int]) -> list[int]:
    """Return what a layer that is no index source attends to: the newest picks, unchanged.

    They are numbers of its own owner's entries, whichever layer picked them. Source: official
    ``Attention.forward``.
    """
    return list(picks)
