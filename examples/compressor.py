"""A compressor that takes a table of rotations, as a module of a serving engine does.

csa-spec check compressor:compressor --stage compressor
"""

import math

import torch

from csa_spec import Capabilities

# Kernel under test: put yours here.


def rotations(positions, rope, theta, yarn):
    """Return e^(i angle) [t, rope / 2] of positions [t], with YaRN unless it is None."""
    frequencies = theta ** -(torch.arange(0, rope, 2).double() / rope)
    if yarn is not None:
        span = yarn.original_max_position / (2 * math.pi)
        low, high = (rope * math.log(span / turns, theta) / 2 for turns in (yarn.beta_fast, yarn.beta_slow))
        low, high = max(math.floor(low), 0), min(math.ceil(high), rope - 1)
        slowed = ((torch.arange(rope // 2) - low) / (high - low or 0.001)).clamp(0, 1)
        frequencies = frequencies * (1 - slowed + slowed / yarn.factor)
    angles = torch.outer(positions, frequencies)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def compress(x, wkv, wgate, ape, norm, freqs_cis, overlap, eps):
    """Return [b, t, d]; x [b, s, e], wkv, wgate [c, e], ape [m, c], norm [d], freqs_cis [t, rope / 2]."""
    (m, _), d, t = ape.shape, len(norm), len(freqs_cis)
    blocks = x[:, : t * m].float().unflatten(1, (t, m))
    kv, gate = blocks @ wkv.float().T, blocks @ wgate.float().T + ape.float()
    if overlap:  # an entry pools the block before with the first d columns, its own with the last d
        kv = torch.cat((torch.zeros_like(kv[:, :1, :, :d]), kv[:, :, :, :d]), 1)[:, :-1], kv[..., d:]
        gate = (
            torch.cat((torch.full_like(gate[:, :1, :, :d], -torch.inf), gate[:, :, :, :d]), 1)[:, :-1],
            gate[..., d:],
        )
        kv, gate = torch.cat(kv, 2), torch.cat(gate, 2)
    pooled = (gate.softmax(2) * kv).sum(2)
    pooled = pooled * (pooled.square().mean(-1, keepdim=True) + eps).rsqrt() * norm.float()
    rope = 2 * freqs_cis.shape[1]
    turned = pooled[..., -rope:]
    pairs = torch.complex(turned[..., ::2], turned[..., 1::2]) * freqs_cis
    return torch.cat((pooled[..., :-rope], torch.view_as_real(pairs).flatten(-2)), -1).to(x.dtype)


# Adapter


def compressor(hidden, weights, geometry):
    """Make the table of rotations: entry s is rotated to the first token of its block, s * m."""
    w, g = weights, geometry
    positions = g.compress_ratio * torch.arange(g.entry_count(hidden.shape[1]))
    freqs_cis = rotations(positions, g.rope_dim, g.compress_rope_theta, g.yarn)
    return compress(hidden, w.wkv, w.wgate, w.ape, w.norm, freqs_cis, g.overlap, g.norm_eps)


compressor.capabilities = Capabilities(dtypes={"float32", "bfloat16", "float16"}, batch_invariant=False)
