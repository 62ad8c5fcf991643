"""A layer with a cache, as a stream. This one keeps all tokens, of sliding-window layers; the rest it does not offer.

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
        self.past = x if self.past is None else torch.cat((self.past, x), 1)
        ago = (columns := torch.arange(self.past.shape[1]))[:, None] - columns
        mask = ((ago >= 0) & (ago < self.config.window)).expand(len(x), -1, -1)
        return sliding_attention(self.past, self.state, mask, columns.expand(len(x), -1), self.config)[
            :, -x.shape[1] :
        ]

    def crop(self, length):
        """Keep the first tokens."""
        self.past = self.past[:, :length]

    def reorder_cache(self, beams):
        """Go on with these sequences."""
        self.past = None if self.past is None else self.past[beams]


# Adapter


class Stream(CachedAttention):
    """What is missing, and what raises NotImplementedError, counts as not applicable."""

    extend, reorder = CachedAttention.forward, CachedAttention.reorder_cache

    def rollback(self, n):
        """Say how many tokens stay."""
        self.crop(self.past.shape[1] - n)


def cache(weights, geometry, batch):
    """Open a stream; rows are those of the first call."""
    return Stream(weights.named(), geometry)


cache.capabilities = Capabilities(kinds={LayerKind.SLIDING}, dtypes={"float32", "bfloat16", "float16"})
