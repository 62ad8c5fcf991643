"""A sliding-window layer with a cache, as a stream. It keeps all tokens, and lacks some operations.

csa-spec check stream:cache --stage cache
"""

import torch
from layer import sliding_attention

from csa_spec import Capabilities, LayerKind

# Kernel under test: put yours here.


class CachedAttention:
    """A layer that is called with new tokens only."""

    def __init__(self, state, config):
        self.state, self.config, self.past = state, config, None

    def forward(self, x):
        """Return the outputs [b, n, e] of new tokens x [b, n, e]."""
        self.past = x.clone() if self.past is None else torch.cat((self.past, x), 1)
        ago = (columns := torch.arange(self.past.shape[1]))[:, None] - columns
        mask = ((ago >= 0) & (ago < self.config.window)).expand(len(x), -1, -1)
        return sliding_attention(self.past, self.state, mask, columns.expand(len(x), -1), self.config)[
            :, -x.shape[1] :
        ]

    def crop(self, length):
        """Keep the first tokens."""
        self.past = self.past[:, :length]

    def reorder_cache(self, beams):
        """Continue with these sequences."""
        self.past = None if self.past is None else self.past[beams]


# Adapter


class Stream(CachedAttention):
    """Operations that are missing, or raise NotImplementedError, are skipped and counted."""

    extend, reorder = CachedAttention.forward, CachedAttention.reorder_cache

    def rollback(self, n):
        """Crop to the number of tokens that stay."""
        self.crop(self.past.shape[1] - n)


def cache(weights, geometry, batch):
    """Open a stream; the first call decides how many rows it has."""
    return Stream(weights.named(), geometry)


cache.capabilities = Capabilities(kinds={LayerKind.SLIDING}, dtypes={"float32", "bfloat16", "float16"})
