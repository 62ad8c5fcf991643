"""The compressor of an owner: one latent for every complete group of ``ratio`` tokens.

An entry is the latent, rotated. An index key is made from the same latent: V4.1 has no second compressor.
"""

from __future__ import annotations

from torch import Tensor


def entry_count(length: int, ratio: int) -> int:
    """Return how many entries ``length`` tokens have; the tokens of an incomplete group give none."""
    return length // ratio


def pooled_tokens(s: int, ratio: int) -> list[int]:
    """Return the tokens that entry ``s`` pools: its own group. Groups do not overlap, unlike CSA's in V4.

    Source: official ``Compressor.forward``.
    """
    return list(range(s * ratio, (s + 1) * ratio))


def pool_logit(gate: Tensor, place: int) -> Tensor:
    """Return a token's pooling logit ``[d]``: its gate alone. V4 adds a bias by the ``place`` in the group."""
    return gate


def single_value(content: Tensor) -> Tensor:
    """Return the latent before its norm where a group is one token: what ``wkv`` makes of it, ``[d]``.

    Layers of ratio 1 have no gate. They do have entries: one for each token, beside the token's window key.
    """
    return content


def index_key_input(latent: Tensor, entry: Tensor) -> Tensor:
    """Return what ``wk`` is applied to: the normed latent ``[d]`` before its rotation, not the entry.

    Source: official ``Indexer.forward``.
    """
    return latent
