"""Layers that pool tokens wrongly, or norm what they make: compressor and norms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from csa_spec.bugs.bug import COMPRESSED, CSA, DocumentCall, layer_bug
from csa_spec.bugs.rules import (
    mean,
    no_bias,
    one_weight_per_token,
    own_block,
    reversed_bias,
    softmax_over_channels,
    swapped_halves,
    with_a_block_of_zeros,
)
from csa_spec.spec import SPEC, LayerKind
from csa_spec.spec.attention import attend
from csa_spec.spec.compressor import Half, PooledToken, pool, pooled_tokens

# COMPRESSOR

layer_bug(
    "pools_one_block_where_two_overlap",
    "The compressor has no overlap, so that an entry pools its own block alone.",
    "https://github.com/NVIDIA-NeMo/Automodel/pull/2039",
    kinds=CSA,
    pooled_tokens=own_block,
)


def _wrapping_around(s: int, m: int, overlap: bool) -> list[PooledToken]:
    previous = [PooledToken((s - 1) * m + p, p, Half.PREVIOUS) for p in range(m)]
    return (previous if overlap else []) + pooled_tokens(s, m, False)


layer_bug(
    "pools_the_last_tokens_before_the_first_block",
    "A roll instead of a shift puts the last tokens of the sequence before the first block.",
    kinds=CSA,
    pooled_tokens=_wrapping_around,
)
layer_bug(
    "shifts_the_bias_of_the_previous_block",
    "The rows of the position bias are off by one in the half of the previous block.",
    kinds=CSA,
    pooled_tokens=lambda s, m, overlap: [
        token._replace(place=(token.place + 1) % m) if token.half is Half.PREVIOUS else token
        for token in pooled_tokens(s, m, overlap)
    ],
)
layer_bug(
    "reverses_the_rows_of_the_bias",
    "The position bias is counted from the newest token of a block instead of the oldest.",
    pooled_tokens=reversed_bias,
)
layer_bug(
    "swaps_the_halves_of_the_columns",
    "The current block reads the columns of the previous one, and the other way round.",
    kinds=CSA,
    half_columns=swapped_halves,
)
layer_bug(
    "reads_the_first_half_of_the_columns_only",
    "Both roles of a token read the columns of the previous block.",
    kinds=CSA,
    half_columns=lambda half, dim, overlap: slice(0, dim),
)
ignores_the_bias = layer_bug(
    "leaves_the_position_bias_out",
    "The gate is used without the bias of a token's place in its block.",
    pool_logit=no_bias,
)
layer_bug(
    "subtracts_the_position_bias",
    "The position bias has the wrong sign.",
    pool_logit=lambda gate, bias: gate - bias,
)
layer_bug("pools_by_the_mean", "Every token of a block has the same weight.", pool=mean)
layer_bug(
    "pools_by_the_sum_of_sigmoids",
    "The gate of every token is a sigmoid of its own, so that weights do not add up to 1.",
    pool=lambda values, logits: (logits.sigmoid() * values).sum(0),
)
layer_bug(
    "pools_all_channels_by_one_softmax",
    "The logits of a token are averaged over channels, so that all channels are pooled alike.",
    pool=one_weight_per_token,
)
layer_bug(
    "normalizes_the_pooling_weights_over_channels",
    "The softmax of the gate runs over the channels of a token instead of the tokens of a channel.",
    pool=softmax_over_channels,
)
layer_bug(
    "scales_the_pooling_logits",
    "The gate is divided by the root of the dimension, as the logits of attention are.",
    pool=lambda values, logits: pool(values, logits * values.shape[1] ** -0.5),
)
layer_bug(
    "counts_a_block_of_zeros_before_the_first",
    "The state before the first block has a gate of 0 instead of -inf, so that missing tokens have weight.",
    "https://github.com/hw-native-sys/pypto-lib/pull/1013",
    kinds=CSA,
    answer=lambda call: call.trace(with_a_block_of_zeros(call.geometry, 0.0)).out,
)
layer_bug(
    "gates_the_missing_block_by_minus_ten_thousand",
    "The gate of the block before the first is -1e4 instead of -inf.",
    "https://github.com/AI-Hypercomputer/maxtext/pull/3810",
    kinds=CSA,
    equivalent="exp(-1e4) is exactly 0 in float64; only a block with all gates near -1e4 would show it.",
    answer=lambda call: call.trace(with_a_block_of_zeros(call.geometry, -1e4)).out,
)
layer_bug(
    "returns_nan_once_a_block_is_complete",
    "The first complete block is copied across the end of a row, and its entry becomes NaN.",
    "https://github.com/GDzhu01/vllm-ascend-deepseekv4/issues/76",
    "https://github.com/GDzhu01/vllm-ascend-deepseekv4/pull/77",
    "https://github.com/GDzhu01/vllm-ascend-deepseekv4/pull/83",
    pool=lambda values, logits: torch.full_like(values[0], torch.nan),
)

TILE = 16


@layer_bug.function("https://github.com/hw-native-sys/pypto-lib/pull/910", kinds=COMPRESSED)
def compresses_whole_tiles_of_tokens_only(call: DocumentCall) -> Tensor:
    """The number of tiles is rounded down, so that the compressor never projects the last tokens."""
    place = call.document
    blank = call.hidden.clone()
    blank[place.row, place.begin + place.length // TILE * TILE : place.begin + place.length] = 0
    return call.out_with_entries_of(replace(call, hidden=blank).context())


@layer_bug.function(kinds=(LayerKind.HCA, LayerKind.CSA))
def pools_only_what_the_window_holds(call: DocumentCall) -> Tensor:
    """The compressor reads the ring of the window, which has lost the first tokens of a long block."""

    def kept(s: int, m: int, overlap: bool) -> list[PooledToken]:
        first = (s + 1) * m - call.geometry.window
        return [token for token in pooled_tokens(s, m, overlap) if token.token >= first]

    return call.follow(pooled_tokens=kept)


layer_bug(
    "gates_without_a_running_maximum",
    "The gate is exponentiated in half precision without subtracting the maximum, and overflows at 65504.",
    pool=lambda values, logits: (
        torch.where(logits.exp() > 65504, torch.inf, logits.exp()) / logits.exp().sum(0) * values
    ).sum(0),
)

# NORMS


def _changing(
    name: str, change: Callable[[Tensor], Tensor]
) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Return a change of one weight, where there is one of that name."""
    return lambda named: {key: change(weight) if key == name else weight for key, weight in named.items()}


ignores_kv_norm = layer_bug(
    "ignores_the_weight_of_the_kv_norm",
    "Window keys are normalized without the weight, which is right for a fresh checkpoint, where it is 1.",
    weights=_changing("kv_norm", torch.ones_like),
)
layer_bug(
    "ignores_the_weight_of_the_query_norm",
    "The low-rank query is normalized without the weight.",
    weights=_changing("q_norm", torch.ones_like),
)
layer_bug(
    "ignores_the_weight_of_the_entry_norm",
    "Entries are normalized without the weight.",
    kinds=COMPRESSED,
    weights=_changing("compressor.norm", torch.ones_like),
)
ignores_the_index_bias = layer_bug(
    "leaves_the_position_bias_out_of_the_indexer",
    "The indexer's compressor lacks its position bias, which shows where there are more than k entries.",
    kinds=CSA,
    weights=_changing("indexer.compressor.ape", torch.zeros_like),
)
layer_bug(
    "subtracts_the_mean_of_window_keys",
    "Window keys have a LayerNorm instead of an RMSNorm.",
    weights=_changing("wkv", lambda weight: weight - weight.mean(0)),
)
layer_bug(
    "hard_codes_an_eps_of_1e_6",
    "The eps of the norms is that of the released layers, whatever the configuration says.",
    geometry=lambda geometry: replace(geometry, norm_eps=1e-6),
)


@layer_bug.function(kinds=COMPRESSED)
def norms_entries_after_their_rotation(call: DocumentCall) -> Tensor:
    """The norm comes after the rotation, so that its weight meets other channels."""
    compressor = call.weights.compressor
    if compressor is None:
        return call.trace().out
    bare = replace(call.weights, compressor=replace(compressor, norm=torch.ones_like(compressor.norm)))
    entries = replace(call, weights=bare).context().entries * compressor.norm
    return call.out(replace(call.context(), entries=entries))


@layer_bug.function("https://github.com/NVIDIA-NeMo/Automodel/pull/2039")
def does_not_norm_queries_per_head(call: DocumentCall) -> Tensor:
    """Queries are normalized in their low-rank form only, and not per head."""
    g, w, place = call.geometry, call.weights, call.document
    latent = call.hidden[place.row, place.columns] @ w.wq_a.T
    latent = w.q_norm * latent * torch.rsqrt(latent.square().mean(-1, keepdim=True) + g.norm_eps)
    raw = (latent @ w.wq_b.T).view(len(latent), g.heads, -1)
    length = (raw.square().mean(-1, keepdim=True) + g.norm_eps).sqrt()
    return call.out(
        spec=lambda t: replace(
            SPEC, attend=lambda q, keys, sink, scale: attend(q * length[t], keys, sink, scale)
        )
    )
