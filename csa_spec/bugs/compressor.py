"""Wrong compressors: small variants of the rules, and what is wrong around them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from csa_spec.bugs.bug import bug
from csa_spec.candidates.batched import compressor
from csa_spec.spec import SPEC, CompressorWeights, Geometry, Spec, Yarn, compress
from csa_spec.spec.compressor import Half, PooledToken
from csa_spec.spec.rope import rope_frequencies

Compressor = Callable[[Tensor, CompressorWeights, Geometry], Tensor]


def following(spec: Spec) -> Compressor:
    """Return a compressor that follows some rules in float64, entry by entry, and rounds once."""

    def compressor(hidden: Tensor, weights: CompressorWeights, geometry: Geometry, /) -> Tensor:
        exact = CompressorWeights(
            *(x.double() for x in (weights.wkv, weights.wgate, weights.ape, weights.norm))
        )
        frequencies = spec.layer_frequencies(geometry)
        rows = [compress(row.double(), 0, exact, geometry, frequencies, spec) for row in hidden]
        return torch.stack(rows).to(hidden.dtype)

    return compressor


def compressor_bug(name: str, cause: str, *urls: str, **broken: Callable[..., Any]) -> None:
    """Register a compressor that follows the specification but for some rules."""
    wrong = following(replace(SPEC, **broken))
    wrong.__name__ = wrong.__qualname__ = name
    wrong.__module__ = "csa_spec.bugs"  # where it is found by its name, in a worker's process too
    wrong.__doc__ = cause
    bug("compressor", *urls, broken=broken)(wrong)


# RULES


def _swapped(half: Half, dim: int, overlap: bool) -> slice:
    return slice(dim, 2 * dim) if overlap and half is Half.PREVIOUS else slice(0, dim)


def _own_block(s: int, compress_ratio: int, overlap: bool) -> list[PooledToken]:
    return SPEC.pooled_tokens(0 if s == 0 else s, compress_ratio, overlap)[-compress_ratio:]


def _twice(s: int, compress_ratio: int, overlap: bool) -> list[PooledToken]:
    pooled = SPEC.pooled_tokens(s, compress_ratio, overlap)
    return [one._replace(token=s * compress_ratio + one.place) for one in pooled]


def _two_back(s: int, compress_ratio: int, overlap: bool) -> list[PooledToken]:
    pooled = SPEC.pooled_tokens(s, compress_ratio, overlap)
    return [one._replace(token=one.token - compress_ratio) if one.half is Half.PREVIOUS and s > 1 else one
            for one in pooled]  # fmt: skip


def _reversed(s: int, compress_ratio: int, overlap: bool) -> list[PooledToken]:
    pooled = SPEC.pooled_tokens(s, compress_ratio, overlap)
    return [one._replace(place=compress_ratio - 1 - one.place) for one in pooled]


def _one_late(s: int, compress_ratio: int, overlap: bool) -> list[PooledToken]:
    pooled = SPEC.pooled_tokens(s, compress_ratio, overlap)
    return [one._replace(token=max(0, one.token - 1)) for one in pooled]


def _across_channels(values: Tensor, logits: Tensor) -> Tensor:
    return (torch.softmax(logits, dim=1) * values).sum(dim=0)


def _shared(values: Tensor, logits: Tensor) -> Tensor:
    return (torch.softmax(logits.mean(dim=1, keepdim=True), dim=0) * values).sum(dim=0)


def _unsafe(values: Tensor, logits: Tensor) -> Tensor:
    weights = torch.exp(logits.float())
    return (weights / weights.sum(dim=0) * values).sum(dim=0)


def _half_split(vectors: Tensor, position: int, frequencies: Tensor) -> Tensor:
    width = 2 * len(frequencies)
    plain, turned = vectors[..., :-width], vectors[..., -width:]
    a, b = turned.chunk(2, dim=-1)
    cos, sin = torch.cos(position * frequencies), torch.sin(position * frequencies)
    return torch.cat((plain, a * cos - b * sin, a * sin + b * cos), dim=-1)


def _leading(vectors: Tensor, position: int, frequencies: Tensor) -> Tensor:
    width = 2 * len(frequencies)
    return torch.cat(
        (SPEC.rotate(vectors[..., :width], position, frequencies), vectors[..., width:]), dim=-1
    )


def _in_shards(s: int, compress_ratio: int, overlap: bool) -> list[PooledToken]:
    return SPEC.pooled_tokens(s, compress_ratio, overlap)[-compress_ratio if s % 2 == 0 else 0 :]


compressor_bug(
    "swaps_the_halves",
    "Previous reads the second half: transformers calls them Ca and Cb, the paper b and a.",
    half_columns=_swapped,
)
compressor_bug(
    "does_not_overlap",
    "Pools its own block only.",
    "https://github.com/NVIDIA-NeMo/Automodel/pull/2039",
    "https://github.com/huggingface/transformers/pull/45616",
    pooled_tokens=_own_block,
)
compressor_bug(
    "pools_its_own_block_twice",
    "The previous role is filled from the same block.",
    pooled_tokens=_twice,
)
compressor_bug(
    "reads_two_blocks_back",
    "The overlap state is that of the block before.",
    "https://github.com/GDzhu01/vllm-ascend-deepseekv4/pull/132",
    pooled_tokens=_two_back,
)
compressor_bug(
    "reverses_the_bias",
    "Rows of the bias in the order of a ring buffer.",
    pooled_tokens=_reversed,
)
compressor_bug(
    "pools_one_token_late",
    "Blocks begin one token early.",
    pooled_tokens=_one_late,
)
compressor_bug(
    "drops_the_bias",
    "No position bias.",
    pool_logit=lambda gate, bias: gate,
)
compressor_bug(
    "has_one_softmax_over_channels",
    "Softmax over the channels in place of the tokens.",
    pool=_across_channels,
)
compressor_bug(
    "shares_weights_between_channels",
    "One weight per token, as in a plain attention pooling.",
    pool=_shared,
)
compressor_bug(
    "overflows_with_large_gates",
    "exp without the maximum, in float32.",
    pool=_unsafe,
)
compressor_bug(
    "rotates_at_the_last_token",
    "The position of the block's last token.",
    entry_position=lambda s, m: s * m + m - 1,
)
compressor_bug(
    "rotates_at_the_entry",
    "The entry's index in place of its first token's position.",
    entry_position=lambda s, m: s,
)
compressor_bug(
    "rotates_at_zero",
    "Cosines and sines of position 0.",
    "https://github.com/hw-native-sys/pypto-lib/pull/442",
    entry_position=lambda s, m: 0,
)
compressor_bug(
    "rotates_halves",
    "Half-split pairs in place of neighbours.",
    "https://github.com/hw-native-sys/pypto-lib/pull/244",
    rotate=_half_split,
)
compressor_bug(
    "rotates_leading_channels",
    "The first channels in place of the last.",
    rotate=_leading,
)
compressor_bug(
    "ignores_yarn",
    "Plain frequencies.",
    "https://github.com/NVIDIA-NeMo/Automodel/pull/2103",
    layer_frequencies=lambda geometry: rope_frequencies(
        geometry.rope_dim, geometry.compress_rope_theta, None
    ),
)
compressor_bug(
    "rotates_with_the_main_theta",
    "The base of the sliding layers.",
    "https://github.com/huggingface/transformers/issues/45910",
    "https://github.com/ml-explore/mlx-lm/pull/1189",
    "https://github.com/Avarok-Cybersecurity/atlas/pull/276",
    "https://github.com/AI-Hypercomputer/maxtext/pull/4153",
    layer_frequencies=lambda geometry: rope_frequencies(
        geometry.rope_dim, geometry.rope_theta, geometry.yarn
    ),
)
compressor_bug(
    "starts_every_shard_without_a_block_before",
    "Shards of two blocks are pooled on their own: the first block of a shard does not overlap with the last.",
    "https://github.com/PrimeIntellect-ai/prime-rl/pull/3508",
    "https://github.com/tenstorrent/tt-metal/pull/57192",
    "https://github.com/baidu-baige/LoongForge/pull/141",
    "https://github.com/NVIDIA/Megatron-LM/pull/5087",
    pooled_tokens=_in_shards,
)


# AROUND THE RULES


def _with_a_block_before(
    hidden: Tensor, weights: CompressorWeights, geometry: Geometry, logit: float
) -> Tensor:
    """Pool a block of zeros, with a logit of its own, before the first."""
    m = geometry.compress_ratio

    def pooled(values: Tensor, logits: Tensor) -> Tensor:
        if geometry.overlap and len(values) == m:
            values, logits = pad(values, (0, 0, m, 0)), pad(logits, (0, 0, m, 0), value=logit)
        return SPEC.pool(values, logits)

    return following(replace(SPEC, pool=pooled))(hidden, weights, geometry)


@bug("compressor", "https://github.com/hw-native-sys/pypto-lib/pull/1013")
def starts_from_zero_logits(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """The block before the first has logits of 0 in place of -inf."""
    return _with_a_block_before(hidden, weights, geometry, 0.0)


@bug("compressor", "https://github.com/AI-Hypercomputer/maxtext/pull/3810")
def starts_from_minus_ten_thousand(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """-1e4 in place of -inf."""
    return _with_a_block_before(hidden, weights, geometry, -1e4)


@bug("compressor")
def forgets_the_norm(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """The weight of the norm without the norm."""
    scaled = replace(geometry, norm_eps=1e30)  # the root mean square is lost in it
    return (following(SPEC)(hidden.double(), weights, scaled) * 1e15).to(hidden.dtype)


@bug("compressor")
def ignores_the_norm_weight(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """Right for a fresh checkpoint, where it is one."""
    return compressor(hidden, replace(weights, norm=torch.ones_like(weights.norm)), geometry)


@bug("compressor")
def norms_after_the_rotation(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """The root mean square is the same; the weight meets other channels."""
    plain = compressor(hidden, replace(weights, norm=torch.ones_like(weights.norm)), geometry)
    return plain * weights.norm


@bug("compressor")
def pools_the_tail(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """A block that is not complete gets an entry too."""
    missing = -hidden.shape[1] % geometry.compress_ratio
    return compressor(pad(hidden, (0, 0, 0, missing)), weights, geometry)


@bug("compressor")
def overlaps_with_the_row_before(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """Blocks of all rows in one sequence: the first of a row pools the last of the row before."""
    m, count = geometry.compress_ratio, geometry.entry_count(hidden.shape[1])
    one_block_later = following(replace(SPEC, entry_position=lambda s, m: (s - 1) * m))
    entries = compressor(hidden, weights, geometry)
    if count and len(hidden) > 1:
        earlier = hidden[:-1, (count - 1) * m : count * m]
        joined = torch.cat((earlier, hidden[1:]), dim=1)
        entries[1:] = one_block_later(joined, weights, geometry)[:, 1 : count + 1]
    return entries


@bug("compressor", "https://github.com/hw-native-sys/pypto-lib/pull/306")
def fails_without_a_complete_block(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """The tokens of no block cannot be stacked."""
    count = geometry.entry_count(hidden.shape[1])
    torch.stack([hidden[:, s * geometry.compress_ratio] for s in range(count)], dim=1)
    return compressor(hidden, weights, geometry)


@bug("compressor")
def aligns_blocks_to_the_end(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """The last S - S % m tokens are cut into blocks, in place of the first."""
    return compressor(hidden[:, hidden.shape[1] % geometry.compress_ratio :], weights, geometry)


@bug("compressor")
def finishes_a_block_with_the_next_token(
    hidden: Tensor, weights: CompressorWeights, geometry: Geometry
) -> Tensor:
    """The last block is taken for one that is not complete, unless a token follows it: (S - 1) // m entries."""
    count = max(1, (hidden.shape[1] - 1) // geometry.compress_ratio)
    entries = compressor(hidden, weights, geometry)
    return entries.masked_fill(torch.arange(entries.shape[1])[:, None] >= count, 0)


@bug("compressor")
def takes_a_ratio_of_one_for_no_pooling(
    hidden: Tensor, weights: CompressorWeights, geometry: Geometry
) -> Tensor:
    """Pooling is switched on by ratio > 1: with a ratio of one an entry has the content of its own token alone."""
    alone = following(replace(SPEC, pooled_tokens=_own_block))
    return (alone if geometry.compress_ratio == 1 else compressor)(hidden, weights, geometry)


@bug("compressor")
def clamps_gates_before_the_exponential(
    hidden: Tensor, weights: CompressorWeights, geometry: Geometry
) -> Tensor:
    """Logits are limited to 80, whose exponential is still a number in float32."""
    limited = replace(SPEC, pool=lambda values, logits: SPEC.pool(values, logits.clamp(max=80)))
    return following(limited)(hidden, weights, geometry)


@bug("compressor")
def answers_for_the_block_before(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """Entries are written one place late."""
    return compressor(hidden, weights, geometry).roll(1, 1)


@bug("compressor")
def pools_in_bfloat16(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """Everything in bfloat16, without declaring it."""
    rounded = CompressorWeights(
        *(x.bfloat16() for x in (weights.wkv, weights.wgate, weights.ape, weights.norm))
    )
    return compressor(hidden.bfloat16(), rounded, geometry).to(hidden.dtype)


@bug("compressor", "https://github.com/hw-native-sys/pypto-lib/pull/910")
def projects_whole_tiles_only(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """The number of tiles of 8 tokens is rounded down, but for the first: later tokens are zeros."""
    length = hidden.shape[1]
    done = length if length < 8 else length // 8 * 8
    return compressor(pad(hidden[:, :done], (0, 0, 0, length - done)), weights, geometry)


@bug("compressor")
def shares_entries_of_equal_blocks(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """Entries are found again by their tokens, as prefixes are, though not by their position."""
    entries, m = compressor(hidden, weights, geometry), geometry.compress_ratio
    known: dict[bytes, Tensor] = {}
    for b, row in enumerate(hidden.detach().float().numpy()):
        for s in range(entries.shape[1]):
            tokens = row[max(0, s - 1 if geometry.overlap else s) * m : (s + 1) * m].tobytes()
            entries[b, s] = known.setdefault(tokens, entries[b, s].clone())
    return entries


@bug("compressor")
def averages_without_overlap(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """Blocks that do not overlap are averaged, without the gate."""
    averaging = replace(SPEC, pool=lambda values, logits: values.mean(dim=0))
    return following(SPEC if geometry.overlap else averaging)(hidden, weights, geometry)


@bug(
    "compressor",
    "https://github.com/1CatAI/1Cat-vLLM/pull/251",
    "https://github.com/sgl-project/sglang/pull/34788",
)
def interpolates_unasked(hidden: Tensor, weights: CompressorWeights, geometry: Geometry) -> Tensor:
    """YaRN stays on where the layer has none."""
    yarn = geometry.yarn or Yarn(factor=4.0, original_max_position=64)
    return compressor(hidden, weights, replace(geometry, yarn=yarn))


@bug(
    "compressor",
    "https://github.com/Avarok-Cybersecurity/atlas/pull/342",
    "https://github.com/AMD-AGI/Primus/pull/928",
    "https://github.com/raullenchai/Rapid-MLX/pull/1225",
)
def scales_rotations_by_the_yarn_amplitude(
    hidden: Tensor, weights: CompressorWeights, geometry: Geometry
) -> Tensor:
    """Cosines and sines are multiplied by 0.1 ln(factor) + 1."""
    amplitude = 1.0 if geometry.yarn is None else 0.1 * math.log(geometry.yarn.factor) + 1
    entries = compressor(hidden, weights, geometry)
    plain = geometry.head_dim - geometry.rope_dim
    return torch.cat((entries[..., :plain], entries[..., plain:] * amplitude), -1)
