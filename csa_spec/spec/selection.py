"""Which entries a query may see, and which of them it selects."""

from __future__ import annotations

from collections.abc import Sequence


def visible_entries(t: int, compress_ratio: int) -> list[int]:
    """Return the entries that query ``t`` may see: those whose block ends at or before ``t``.

    Entry s covers tokens ``[s*m, (s+1)*m)``, so it is visible iff ``s < floor((t + 1) / m)``; the last token
    of a block sees that block. ``t`` counts from the document's first token. Source: official
    ``get_compress_topk_idxs`` and ``Indexer.forward``. The paper writes ``s < floor(t / m)``, which is the
    same for a 1-based t; read 0-based it would hide a block from its own last token.
    """
    return list(range((t + 1) // compress_ratio))


def select(visible: Sequence[int], scores: Sequence[float], top_k: int) -> list[int]:
    """Return the ``top_k`` highest-scoring visible entries, best first; all of them where there are fewer.

    Negative scores count like any other. Among equal scores the lowest entry index comes first: that is our
    convention, the sources leave ties open. Source: official ``Indexer.forward``; paper eq. 17.
    """
    ranked = sorted(zip(visible, scores, strict=True), key=lambda pair: (-pair[1], pair[0]))
    return [entry for entry, _ in ranked[:top_k]]


def selection_margin(scores: Sequence[float], top_k: int) -> float | None:
    """Return the gap between the last selected and the first rejected score; None unless there are both.

    A gap of 0 is an exact tie: any choice among the tied entries is valid.
    """
    if not 0 < top_k < len(scores):
        return None
    ranked = sorted(scores, reverse=True)
    return ranked[top_k - 1] - ranked[top_k]
