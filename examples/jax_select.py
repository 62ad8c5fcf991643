"""A selection with ``jax.lax.top_k``. It declares that among equal scores it takes the lowest entries.

csa-spec check jax_select:select --stage select --dtype float32,bfloat16
"""

from functools import partial

import jax
import jax.numpy as jnp

from csa_spec import Capabilities

# Kernel under test: put yours here.


@partial(jax.jit, static_argnums=2)
def top_k_visible(scores, visible, k):
    """Return [b, s, min(k, t)] int32, -1 = none, out of the first visible [b, s] of scores [b, s, t]."""
    hidden = jnp.arange(scores.shape[2]) >= visible[..., None]
    # Equal scores keep their order, so a visible -inf still comes before the hidden entries behind it.
    # -0.0 is as high as 0.0, but jax.lax.top_k ranks it lower; and XLA takes the smallest numbers for 0.
    ranked = jnp.where(hidden | jnp.isnan(scores), -jnp.inf, jnp.where(scores == 0, 0.0, scores))
    picks = jax.lax.top_k(ranked, min(k, scores.shape[2]))[1]
    return jnp.where(picks < visible[..., None], picks, -1)


# Adapter


def select(scores, positions, compress_ratio, top_k):
    """An entry is visible once its last token is there."""
    return top_k_visible(scores, (positions + 1) // compress_ratio, top_k)


select.capabilities = Capabilities(
    arrays="jax.numpy",
    dtypes={"float32", "bfloat16", "float16"},
    static_shapes=True,
    lowest_index_first=True,
)
