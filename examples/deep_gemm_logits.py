"""A kernel with the signature of DeepGEMM's ``fp8_mqa_logits``, without FP8. It has no batch dimension.

csa-spec check deep_gemm_logits:index_scores --stage index_scores
"""

import torch

from csa_spec import Capabilities

# Kernel under test: put yours here.


def mqa_logits(q, kv, weights, ks, ke, clean_logits=True):
    """Return [s, t] float32; q [s, h, d], kv ([t, d], scales [t]), weights [s, h], ks, ke [s] int32."""
    keys, scales = kv
    products = torch.einsum("shd,td->sht", q.float(), keys.float() * scales[:, None]).relu()
    logits = torch.einsum("sh,sht->st", weights, products)
    entries = torch.arange(len(keys))
    outside = (entries < ks[:, None]) | (entries >= ke[:, None])
    return logits.masked_fill(outside, -torch.inf) if clean_logits else logits


# Adapter


def index_scores(index_q, index_k, head_weights):
    """Run each row alone, over all of its entries; ``select`` decides which of them a query may see."""
    queries, entries = index_q.shape[1], index_k.shape[1]
    ks, ke = torch.zeros(queries).int(), torch.full((queries,), entries).int()
    rows = zip(index_q, index_k, head_weights.float(), strict=True)
    return torch.stack([mqa_logits(q, (k, torch.ones(entries)), w, ks, ke) for q, k, w in rows])


index_scores.capabilities = Capabilities(dtypes={"float32", "bfloat16", "float16"})
