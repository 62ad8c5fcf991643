"""A whole sliding-window layer that takes a state dict and an attention mask.

csa-spec check layer:layer
"""

import torch
from torch.nn.functional import linear, rms_norm

from csa_spec import Capabilities, LayerKind

# Kernel under test: put yours here.


def rotate(x, angles):
    """Rotate the last channels of x [b, s, h, d] in neighbouring pairs; angles [b, s, 1, rope / 2]."""
    plain, turned = x[..., : -2 * angles.shape[-1]], x[..., -2 * angles.shape[-1] :]
    pairs = torch.complex(turned[..., ::2], turned[..., 1::2]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((plain, torch.view_as_real(pairs).flatten(-2)), -1)


def sliding_attention(x, state, mask, positions, config):
    """Return [b, s, e]; x [b, s, e], state by official names, mask [b, s, s], positions [b, s]."""
    dtype, x, w = x.dtype, x.float(), {name: tensor.float() for name, tensor in state.items()}
    h, d, rope, eps = config.heads, config.head_dim, config.rope_dim, config.norm_eps
    frequencies = config.rope_theta ** -(torch.arange(0, rope, 2).double() / rope)
    angles = (positions[..., None, None] * frequencies).float()
    latent = rms_norm(linear(x, w["wq_a"]), w["q_norm"].shape, w["q_norm"], eps)
    q = rotate(rms_norm(linear(latent, w["wq_b"]).unflatten(-1, (h, d)), (d,), None, eps), angles)
    kv = rotate(rms_norm(linear(x, w["wkv"]), (d,), w["kv_norm"], eps)[:, :, None], angles)[:, :, 0]
    logits = torch.einsum("bshd,btd->bhst", q, kv) / d**0.5
    logits = logits.masked_fill(~mask[:, None], -torch.inf)
    sink = w["attn_sink"][:, None, None].expand(*logits.shape[:3], 1)
    probabilities = torch.cat((logits, sink), -1).softmax(-1)[..., :-1]
    out = rotate(torch.einsum("bhst,btd->bshd", probabilities, kv), -angles)
    wo_a = w["wo_a"].unflatten(0, (config.o_groups, -1))
    out = torch.einsum("bsgd,grd->bsgr", out.reshape(*x.shape[:2], config.o_groups, -1), wo_a)
    return linear(out.flatten(2), w["wo_b"]).to(dtype)


# Adapter


def layer(hidden, weights, geometry, positions, documents):
    """Turn documents into a mask: a query sees its own document, its window, and nothing later."""
    ago = (columns := torch.arange(hidden.shape[1]))[:, None] - columns
    mask = (documents[:, :, None] == documents[:, None]) & (ago >= 0) & (ago < geometry.window)
    return sliding_attention(hidden, weights.named(), mask, positions, geometry)


_DTYPES = {"float32", "bfloat16", "float16"}
layer.capabilities = Capabilities(kinds={LayerKind.SLIDING}, dtypes=_DTYPES, batch_invariant=False)
