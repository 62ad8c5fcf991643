"""The sliding window: which tokens a query sees directly."""

from __future__ import annotations


def window_tokens(t: int, window: int) -> list[int]:
    """Return the tokens that query ``t`` sees through the window: the last ``window``, its own included.

    ``t`` counts from the document's first token. Tokens that are also part of a selected entry stay: nothing
    is de-duplicated. Source: official ``get_window_topk_idxs``.
    """
    return list(range(max(0, t - window + 1), t + 1))
