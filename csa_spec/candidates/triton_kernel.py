"""The attention core in Triton: an online softmax over tiles of each query's index list.

On a CPU it runs in Triton's interpreter, if ``TRITON_INTERPRET=1`` was set before Triton was imported.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

TILE = 16
"""Heads of a program and keys of a step; the smallest tile that ``tl.dot`` takes."""


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _attend(  # type: ignore[no-untyped-def] # the compiler would look types up
    q, kv, indices, sinks, out, scale, queries, heads, dim, keys, picks,
    HEADS: tl.constexpr, DIM: tl.constexpr, KEYS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Answer one query in one tile of heads: the whole index list, a tile at a time."""
    query = tl.program_id(0).to(tl.int64)  # of all rows
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    channel = tl.arange(0, DIM)
    real = head < heads
    at = (query * heads + head)[:, None] * dim + channel[None, :]
    inside = real[:, None] & (channel < dim)[None, :]
    # All in float32: tl.dot of bfloat16 is wrong in the interpreter (Triton 3.9), float16 could overflow.
    q_tile = tl.load(q + at, mask=inside, other=0.0).to(tl.float32)
    own_keys = kv + (query // queries) * keys * dim

    # The sink is the first term of the softmax; its value is zero.
    peak = tl.load(sinks + head, mask=real, other=0.0).to(tl.float32)
    total = tl.where(peak == float("-inf"), 0.0, 1.0)
    weighted = tl.zeros((HEADS, DIM), tl.float32)
    for begin in range(0, picks, KEYS):
        pick = begin + tl.arange(0, KEYS)
        key = tl.load(indices + query * picks + pick, mask=pick < picks, other=-1)
        named = (key >= 0) & (key < keys)
        address = key[:, None] * dim + channel[None, :]
        inner = named[:, None] & (channel < dim)[None, :]
        tile = tl.load(own_keys + address, mask=inner, other=0.0).to(tl.float32)
        logits = scale * tl.dot(q_tile, tl.trans(tile), input_precision="ieee")
        logits = tl.where(named[None, :], logits, float("-inf"))
        higher = tl.maximum(peak, tl.max(logits, 1))
        # Until there is a key, or with a sink of -inf, the peak is -inf, and -inf - (-inf) would be NaN.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        rescale = tl.exp(peak - base)
        weights = tl.exp(logits - base[:, None])
        total = total * rescale + tl.sum(weights, 1)
        weighted = weighted * rescale[:, None] + tl.dot(weights, tile, input_precision="ieee")
        peak = higher
    weighted = weighted / tl.where(total == 0, 1.0, total)[:, None]
    tl.store(out + at, weighted, mask=inside)


def attend(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Attend from every query to the keys that it names, as :data:`csa_spec.candidates.batched.Attend`."""
    batch, queries, heads, dim = q.shape
    out = torch.zeros_like(q, dtype=torch.float32, memory_format=torch.contiguous_format)
    if q.numel() and kv.numel() and indices.numel():
        grid = (batch * queries, triton.cdiv(heads, TILE))
        tensors = (tensor.contiguous() for tensor in (q, kv, indices, sinks))
        _attend[grid](
            *tensors, out, scale, queries, heads, dim, kv.shape[1], indices.shape[2],
            HEADS=TILE, DIM=max(triton.next_power_of_2(dim), TILE), KEYS=TILE,
            enable_fp_fusion=True,  # the default so far; Triton 3.9 warns where it is left open
        )  # fmt: skip
    return out.to(q.dtype)


def is_interpreted() -> bool:
    """Return whether the kernel runs in Triton's interpreter."""
    return not isinstance(_attend, triton.runtime.JITFunction)
