"""A kernel that takes and returns numpy's arrays. numpy has no bfloat16, so csa-spec refuses that dtype.

csa-spec check numpy_attend:attend --stage attend --dtype float32,float64
"""

import numpy as np

from csa_spec import Capabilities

# Kernel under test: put yours here.


def sparse_attention(q, kv, indices, sinks, scale):
    """Return [b, s, h, d]; q [b, s, h, d], kv [b, n, d], indices [b, s, k], -1 = none, sinks [h]."""
    out = np.zeros_like(q)
    for b, t in np.ndindex(q.shape[:2]):
        keys = kv[b, indices[b, t][indices[b, t] >= 0]]
        if len(keys):
            logits = scale * (q[b, t] @ keys.T)
            peak = np.maximum(logits.max(-1, keepdims=True), sinks[:, None])
            weights = np.exp(logits - peak)
            out[b, t] = weights / (weights.sum(-1, keepdims=True) + np.exp(sinks[:, None] - peak)) @ keys
    return out


# Adapter


def attend(q, kv, indices, sinks, scale):
    """Pass everything on."""
    return sparse_attention(q, kv, indices, sinks, scale)


attend.capabilities = Capabilities(arrays="numpy", dtypes={"float32", "float64"})
