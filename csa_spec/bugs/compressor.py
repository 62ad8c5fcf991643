"""Wrong compressors: wrong rules, wrong arguments, and what is wrong around them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from csa_spec.bugs.calls import CompressorCall, compressor_bug
from csa_spec.bugs.rules import (
    ALONE,
    half_split,
    last_token,
    leading_channels,
    mean,
    no_bias,
    one_weight_per_token,
    own_block,
    reversed_bias,
    softmax_over_channels,
    swapped_halves,
    with_a_block_of_zeros,
)
from csa_spec.spec import SPEC, CompressorWeights, Yarn
from csa_spec.spec.compressor import PooledToken
from csa_spec.spec.rope import rope_frequencies


def rules_bug(name: str, cause: str, *urls: str, **broken: Callable[..., Any]) -> None:
    """Register a compressor that follows the specification except for some rules."""
    spec = replace(SPEC, **broken)
    compressor_bug(name, cause, *urls, answer=lambda call: call.follow(spec), broken=broken)


# RULES


def _two_back(s: int, m: int, overlap: bool) -> list[PooledToken]:
    own = own_block(s, m, overlap)
    previous = SPEC.pooled_tokens(s, m, overlap)[:-m]
    return [token._replace(token=token.token - m if s > 1 else token.token) for token in previous] + own


def _unsafe(values: Tensor, logits: Tensor) -> Tensor:
    weights = torch.exp(logits.float())
    return (weights / weights.sum(dim=0) * values).sum(dim=0)


rules_bug(
    "swaps_the_halves",
    "The previous block reads the second half of the columns, which belongs to the current one.",
    half_columns=swapped_halves,
)
rules_bug(
    "does_not_overlap",
    "An entry pools its own block only.",
    "https://github.com/NVIDIA-NeMo/Automodel/pull/2039",
    "https://github.com/huggingface/transformers/pull/45616",
    pooled_tokens=own_block,
)
rules_bug(
    "pools_its_own_block_twice",
    "The tokens of the own block take the place of those of the previous one.",
    pooled_tokens=lambda s, m, overlap: [
        token._replace(token=s * m + token.place) for token in SPEC.pooled_tokens(s, m, overlap)
    ],
)
rules_bug(
    "reads_two_blocks_back",
    "The previous block is taken from the state of the block before it.",
    "https://github.com/GDzhu01/vllm-ascend-deepseekv4/pull/132",
    pooled_tokens=_two_back,
)
rules_bug(
    "reverses_the_bias",
    "The rows of the position bias are in reverse order.",
    pooled_tokens=reversed_bias,
)
rules_bug(
    "starts_blocks_one_token_early",
    "Every block begins one token early.",
    pooled_tokens=lambda s, m, overlap: [
        token._replace(token=max(0, token.token - 1)) for token in SPEC.pooled_tokens(s, m, overlap)
    ],
)
rules_bug("drops_the_bias", "There is no position bias.", pool_logit=no_bias)
rules_bug(
    "takes_the_softmax_over_channels",
    "The softmax of the gate runs over channels instead of tokens.",
    pool=softmax_over_channels,
)
rules_bug(
    "shares_weights_across_channels",
    "A token has one weight for all channels, as in plain attention pooling.",
    pool=one_weight_per_token,
)
rules_bug(
    "overflows_with_large_gates",
    "The exponential is computed in float32 without subtracting the maximum.",
    pool=_unsafe,
)
rules_bug(
    "rotates_at_the_last_token",
    "An entry is rotated to the position of its block's last token instead of the first.",
    entry_position=last_token,
)
rules_bug(
    "rotates_by_the_number_of_the_entry",
    "An entry is rotated by its number instead of the position of its first token.",
    entry_position=lambda s, m: s,
)
rules_bug(
    "rotates_at_position_zero",
    "Every entry is rotated to position 0.",
    "https://github.com/hw-native-sys/pypto-lib/pull/442",
    entry_position=lambda s, m: 0,
)
rules_bug(
    "rotates_half_split_pairs",
    "Pairs of channels are half-split instead of interleaved.",
    "https://github.com/hw-native-sys/pypto-lib/pull/244",
    rotate=half_split,
)
rules_bug(
    "rotates_leading_channels",
    "The first channels are rotated instead of the last.",
    rotate=leading_channels,
)
rules_bug(
    "ignores_yarn",
    "The frequencies are those without YaRN.",
    "https://github.com/NVIDIA-NeMo/Automodel/pull/2103",
    layer_frequencies=lambda geometry: rope_frequencies(
        geometry.rope_dim, geometry.compress_rope_theta, None
    ),
)
rules_bug(
    "rotates_with_the_main_theta",
    "The base is rope_theta, that of sliding layers, instead of compress_rope_theta.",
    "https://github.com/huggingface/transformers/issues/45910",
    "https://github.com/ml-explore/mlx-lm/pull/1189",
    "https://github.com/Avarok-Cybersecurity/atlas/pull/276",
    "https://github.com/AI-Hypercomputer/maxtext/pull/4153",
    layer_frequencies=lambda geometry: rope_frequencies(
        geometry.rope_dim, geometry.rope_theta, geometry.yarn
    ),
)
rules_bug(
    "starts_every_shard_without_a_previous_block",
    "Shards of two blocks are pooled on their own, so that the first block of a shard has no previous one.",
    "https://github.com/PrimeIntellect-ai/prime-rl/pull/3508",
    "https://github.com/tenstorrent/tt-metal/pull/57192",
    "https://github.com/baidu-baige/LoongForge/pull/141",
    "https://github.com/NVIDIA/Megatron-LM/pull/5087",
    pooled_tokens=lambda s, m, overlap: SPEC.pooled_tokens(s, m, overlap)[-m if s % 2 == 0 else 0 :],
)


# AROUND THE RULES


compressor_bug(
    "counts_zeros_as_the_block_before_the_first",
    "The block before the first has logits of 0 instead of -inf, so that its zeros have weight.",
    "https://github.com/hw-native-sys/pypto-lib/pull/1013",
    answer=lambda call: call.follow(with_a_block_of_zeros(call.geometry, 0.0)),
)
compressor_bug(
    "masks_the_block_before_the_first_with_a_finite_number",
    "The block before the first has logits of -1e4 instead of -inf.",
    "https://github.com/AI-Hypercomputer/maxtext/pull/3810",
    answer=lambda call: call.follow(with_a_block_of_zeros(call.geometry, -1e4)),
)


def _without_norm_weight(call: CompressorCall) -> CompressorWeights:
    return replace(call.weights, norm=torch.ones_like(call.weights.norm))


@compressor_bug.function()
def forgets_the_norm(call: CompressorCall) -> Tensor:
    """Entries are multiplied by the weight of the norm and not normalized."""
    scaled = replace(call.geometry, norm_eps=1e30)  # the root mean square is lost in it
    return (call.follow(hidden=call.hidden.double(), geometry=scaled) * 1e15).to(call.hidden.dtype)


compressor_bug(
    "ignores_the_norm_weight",
    "The weight of the norm is ignored, which is right for a fresh checkpoint, where it is 1.",
    weights=_without_norm_weight,
)
compressor_bug(
    "norms_after_the_rotation",
    "The norm comes after the rotation, so that its weight multiplies other channels.",
    answer=lambda call: call.right(weights=_without_norm_weight(call)) * call.weights.norm,
)
compressor_bug(
    "pools_the_tail",
    "An incomplete block gets an entry too.",
    hidden=lambda call: pad(call.hidden, (0, 0, 0, -call.length % call.geometry.compress_ratio)),
)


@compressor_bug.function()
def overlaps_with_the_row_before(call: CompressorCall) -> Tensor:
    """The blocks of all rows are one sequence, so that a row's first block overlaps the row before."""
    m, count = call.geometry.compress_ratio, call.geometry.entry_count(call.length)
    entries = call.right()
    if count and len(call.hidden) > 1:
        one_block_later = replace(SPEC, entry_position=lambda s, m: (s - 1) * m)
        earlier = call.hidden[:-1, (count - 1) * m : count * m]
        joined = torch.cat((earlier, call.hidden[1:]), dim=1)
        entries[1:] = call.follow(one_block_later, hidden=joined)[:, 1 : count + 1]
    return entries


@compressor_bug.function("https://github.com/hw-native-sys/pypto-lib/pull/306")
def fails_without_a_complete_block(call: CompressorCall) -> Tensor:
    """Stacking the tokens of no block raises an error."""
    count = call.geometry.entry_count(call.length)
    torch.stack([call.hidden[:, s * call.geometry.compress_ratio] for s in range(count)], dim=1)
    return call.right()


compressor_bug(
    "aligns_blocks_to_the_end",
    "Blocks are counted from the end of the sequence, so that its first S % m tokens are left over.",
    hidden=lambda call: call.hidden[:, call.length % call.geometry.compress_ratio :],
)


@compressor_bug.function()
def finishes_a_block_with_the_next_token(call: CompressorCall) -> Tensor:
    """The last block is taken for incomplete unless a token follows it: there are (S - 1) // m entries."""
    count = max(1, (call.length - 1) // call.geometry.compress_ratio)
    entries = call.right()
    return entries.masked_fill(torch.arange(entries.shape[1])[:, None] >= count, 0)


@compressor_bug.function()
def takes_a_ratio_of_one_for_no_pooling(call: CompressorCall) -> Tensor:
    """Pooling requires a ratio > 1: with a ratio of 1 an entry holds its own token only."""
    return call.follow(ALONE) if call.geometry.compress_ratio == 1 else call.right()


@compressor_bug.function()
def clamps_gates_before_the_exponential(call: CompressorCall) -> Tensor:
    """Logits are clamped to 80, whose exponential is finite in float32."""
    return call.follow(replace(SPEC, pool=lambda values, logits: SPEC.pool(values, logits.clamp(max=80))))


compressor_bug(
    "returns_the_previous_entry",
    "Entries are written one place late.",
    answer=lambda call: call.right().roll(1, 1),
)


@compressor_bug.function()
def pools_in_bfloat16(call: CompressorCall) -> Tensor:
    """Everything is computed in bfloat16, and this is not declared."""
    w = call.weights
    rounded = CompressorWeights(*(x.bfloat16() for x in (w.wkv, w.wgate, w.ape, w.norm)))
    return call.right(hidden=call.hidden.bfloat16(), weights=rounded).to(call.hidden.dtype)


@compressor_bug.function("https://github.com/hw-native-sys/pypto-lib/pull/910")
def projects_whole_tiles_only(call: CompressorCall) -> Tensor:
    """Tokens after the last whole tile of 8 count as zeros, except in a sequence of less than one tile."""
    done = call.length if call.length < 8 else call.length // 8 * 8
    return call.right(hidden=pad(call.hidden[:, :done], (0, 0, 0, call.length - done)))


@compressor_bug.function()
def reuses_entries_of_equal_blocks(call: CompressorCall) -> Tensor:
    """Entries are cached by their tokens, as prefixes are, but not by their position."""
    entries, m = call.right(), call.geometry.compress_ratio
    known: dict[bytes, Tensor] = {}
    for b, row in enumerate(call.hidden.detach().float().numpy()):
        for s in range(entries.shape[1]):
            tokens = row[max(0, s - 1 if call.geometry.overlap else s) * m : (s + 1) * m].tobytes()
            entries[b, s] = known.setdefault(tokens, entries[b, s].clone())
    return entries


@compressor_bug.function()
def averages_without_overlap(call: CompressorCall) -> Tensor:
    """Blocks that do not overlap are averaged without the gate."""
    return call.follow(SPEC if call.geometry.overlap else replace(SPEC, pool=mean))


compressor_bug(
    "applies_yarn_where_the_layer_has_none",
    "YaRN stays on in a layer that has none.",
    "https://github.com/1CatAI/1Cat-vLLM/pull/251",
    "https://github.com/sgl-project/sglang/pull/34788",
    geometry=lambda call: replace(
        call.geometry, yarn=call.geometry.yarn or Yarn(factor=4.0, original_max_position=64)
    ),
)


@compressor_bug.function(
    "https://github.com/Avarok-Cybersecurity/atlas/pull/342",
    "https://github.com/AMD-AGI/Primus/pull/928",
    "https://github.com/raullenchai/Rapid-MLX/pull/1225",
)
def scales_rotations_by_the_yarn_amplitude(call: CompressorCall) -> Tensor:
    """Cosines and sines are multiplied by 0.1 ln(factor) + 1."""
    yarn, entries = call.geometry.yarn, call.right()
    amplitude = 1.0 if yarn is None else 0.1 * math.log(yarn.factor) + 1
    plain = call.geometry.head_dim - call.geometry.rope_dim
    return torch.cat((entries[..., :plain], entries[..., plain:] * amplitude), -1)
