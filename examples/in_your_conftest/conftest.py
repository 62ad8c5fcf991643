"""Names for candidates in your own test suite. They need not be importable from outside of it.

pytest --pyargs csa_spec.conformance --csa-candidate mine
"""

import torch


def select(scores, positions, compress_ratio, top_k):
    """Sort: the first min(top_k, visible) entries of each query, -1 behind them."""
    visible = ((positions + 1) // compress_ratio)[..., None]
    entries = torch.arange(scores.shape[2])
    ranked = scores.masked_fill((entries >= visible) | scores.isnan(), -torch.inf)
    picks = ranked.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
    return picks.masked_fill(picks >= visible, -1)


# Adapter


def pytest_csa_candidates(config):
    """Return candidates by the names that ``--csa-candidate`` understands."""
    return {"mine": {"select": select}}
