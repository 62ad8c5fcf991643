"""A kernel that takes and returns JAX's arrays, compiled anew for every shape.

    csa-spec check jax_attend:attend --stage attend --dtype float32,bfloat16

JAX turns float64 into float32 and int64 into int32 unless it is told otherwise, so float64 is not declared.
"""

import jax
import jax.numpy as jnp

from csa_spec import Capabilities

# Kernel under test: put yours here.


@jax.jit
def sparse_attention(q, kv, indices, sinks, scale):
    """Return [b, s, h, d]; q [b, s, h, d], kv [b, n, d], indices [b, s, k] int32, -1 = none, sinks [h]."""
    kv = jnp.pad(kv, ((0, 0), (0, 1), (0, 0))).astype(jnp.float32)  # a row of zeros, for -1
    keys = jax.vmap(lambda rows, named: rows[named])(kv, indices)
    logits = scale * jnp.einsum("bshd,bskd->bshk", q.astype(jnp.float32), keys, precision="highest")
    logits = jnp.where((indices < 0)[:, :, None], -jnp.inf, logits)
    sink = jnp.broadcast_to(sinks.astype(jnp.float32)[:, None], (*logits.shape[:3], 1))
    logits = jnp.concatenate((logits, sink), -1)
    weights = jnp.exp(logits - jnp.maximum(logits.max(-1, keepdims=True), -1e30))
    weights = weights[..., :-1] / jnp.maximum(weights.sum(-1, keepdims=True), 1)
    return jnp.einsum("bshk,bskd->bshd", weights, keys, precision="highest").astype(q.dtype)


# Adapter


def attend(q, kv, indices, sinks, scale):
    """Pass everything on."""
    return sparse_attention(q, kv, indices, sinks, scale)


attend.capabilities = Capabilities(
    arrays="jax.numpy", dtypes={"float32", "bfloat16", "float16"}, static_shapes=True, batch_invariant=False
)
