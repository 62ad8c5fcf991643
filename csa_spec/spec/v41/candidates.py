"""Candidates: the blocks of entries that later index sources may pick from.

One layer, ``candidate_source_layer``, chooses them for each query, by its own index scores. It picks freely
itself. Blocks are counted from the document's entry 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from csa_spec.spec.v41.geometry import StackGeometry
    from csa_spec.spec.v41.rules import StackSpec


@dataclass(frozen=True, slots=True)
class Blocks:
    """How a query chose candidates."""

    scores: list[float]
    """Of each block that has a visible entry; +inf for the pinned one"""
    kept: list[int]
    """Ascending"""
    candidates: list[int]
    """All entries of the kept blocks, visible or not yet, ascending"""


def block_members(visible: Sequence[int], size: int, count: int) -> dict[int, list[int]]:
    """Return the blocks that are scored, and by which of their entries: those that the query may see.

    ``count`` is how many entries there are; invisible ones neither score a block nor make one.
    """
    members: dict[int, list[int]] = {}
    for s in visible:
        members.setdefault(s // size, []).append(s)
    return members


def block_score(scores: Sequence[float]) -> float:
    """Return the score of a block: the largest of its visible entries' scores, which may be negative.

    Source: official ``Indexer.forward`` (``amax`` over the block).
    """
    return max(scores)


def pinned_block(visible: Sequence[int], size: int) -> int | None:
    """Return the block that is kept whatever its score: that of the last visible entry; None without any."""
    return (len(visible) - 1) // size if visible else None


def block_quota(candidate_blocks: int, pinned: int | None) -> int:
    """Return how many blocks are kept at most: ``candidate_blocks``, of which the pinned block is one."""
    return candidate_blocks


def candidate_entries(kept: Sequence[int], size: int, count: int) -> list[int]:
    """Return all entries of the kept blocks, of ``count`` entries that there are.

    Those of the pinned block that are not visible yet are harmless: nobody may pick them.
    """
    return [s for s in range(count) if s // size in kept]


def restrict(visible: Sequence[int], candidates: Sequence[int]) -> list[int]:
    """Return the entries that a restricted query may pick from: candidates that it may see.

    A source that is restricted scores as ever; entries that are no candidates get -inf and are never picked.
    The official code would pick them where there are fewer candidates than top_k; such geometries are refused.
    """
    allowed = set(candidates)
    return [s for s in visible if s in allowed]


def choose_candidates(
    visible: Sequence[int],
    score_of: Callable[[int], float],
    geometry: StackGeometry,
    count: int,
    spec: StackSpec,
) -> Blocks:
    """Choose the candidates of one query, by the rules above.

    Parameters
    ----------
    visible
        The entries that the query may see.
    score_of
        Its index score of an entry.
    geometry
        Says how many blocks there are to keep, and how large they are.
    count
        Entries of the document so far.
    spec
        The rules. Among equal block scores the lowest block comes first, as among entries.
    """
    size = geometry.candidate_block_size
    pinned = spec.pinned_block(visible, size)
    numbers, scores = [], []
    for block, members in spec.block_members(visible, size, count).items():
        score = spec.block_score([score_of(s) for s in members])
        numbers.append(block)
        scores.append(math.inf if block == pinned else score)
    kept = sorted(spec.select(numbers, scores, spec.block_quota(geometry.candidate_blocks, pinned)))
    return Blocks(scores, kept, spec.candidate_entries(kept, size, count))
