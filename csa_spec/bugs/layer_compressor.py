"""Layers that pool tokens wrongly, or norm what they make: compressor and norms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from csa_spec.bugs.bug import COMPRESSED, CSA, Asked, layer_bug
from csa_spec.spec import SPEC, Document, Geometry, LayerKind, Spec
from csa_spec.spec.attention import attend
from csa_spec.spec.compressor import Half, PooledToken, half_columns, pool, pooled_tokens

HCA_FIRST = (LayerKind.HCA, LayerKind.CSA)

# COMPRESSOR

layer_bug(
    "pools_one_block_where_two_overlap",
    "The compressor has no overlap, so that an entry pools its own block alone.",
    "https://github.com/NVIDIA-NeMo/Automodel/pull/2039",
    kinds=CSA,
    pooled_tokens=lambda s, m, overlap: pooled_tokens(s, m, False),
)


def _wrapping_around(s: int, m: int, overlap: bool) -> list[PooledToken]:
    previous = [PooledToken((s - 1) * m + p, p, Half.PREVIOUS) for p in range(m)]
    return previous + pooled_tokens(s, m, False) if overlap else pooled_tokens(s, m, False)


layer_bug(
    "pools_the_last_tokens_before_the_first_block",
    "A roll in place of a shift: before the first block it finds the last tokens of the sequence.",
    kinds=CSA,
    pooled_tokens=_wrapping_around,
)
layer_bug(
    "shifts_the_bias_of_the_block_before",
    "The rows of the position bias are one off in the half of the block before.",
    kinds=CSA,
    pooled_tokens=lambda s, m, overlap: [
        token._replace(place=(token.place + 1) % m) if token.half is Half.PREVIOUS else token
        for token in pooled_tokens(s, m, overlap)
    ],
)
layer_bug(
    "reverses_the_rows_of_the_bias",
    "The position bias is counted from the newest token of a block in place of the oldest.",
    pooled_tokens=lambda s, m, overlap: [
        token._replace(place=m - 1 - token.place) for token in pooled_tokens(s, m, overlap)
    ],
)
layer_bug(
    "swaps_the_halves_of_the_columns",
    "The half of the columns that belongs to the block before is read for the own block, and the other way round.",
    kinds=CSA,
    half_columns=lambda half, dim, overlap: half_columns(
        Half.CURRENT if half is Half.PREVIOUS else Half.PREVIOUS, dim, overlap
    ),
)
layer_bug(
    "reads_the_first_half_of_the_columns_only",
    "Both roles of a token read the columns of the block before.",
    kinds=CSA,
    half_columns=lambda half, dim, overlap: slice(0, dim),
)
ignores_the_bias = layer_bug(
    "leaves_the_position_bias_out",
    "The gate is used without the bias of a token's place in its block.",
    pool_logit=lambda gate, bias: gate,
)
layer_bug(
    "subtracts_the_position_bias",
    "The position bias has the wrong sign.",
    pool_logit=lambda gate, bias: gate - bias,
)
layer_bug(
    "pools_by_the_mean",
    "Every token of a block has the same weight.",
    pool=lambda values, logits: values.mean(dim=0),
)
layer_bug(
    "pools_by_the_sum_of_sigmoids",
    "The gate is a sigmoid of its own for every token, so that weights do not add up to 1.",
    pool=lambda values, logits: (logits.sigmoid() * values).sum(0),
    kinds=COMPRESSED,
)
layer_bug(
    "pools_all_channels_by_one_softmax",
    "The logits of a token are averaged over channels, so that all channels are pooled alike.",
    pool=lambda values, logits: pool(values, logits.mean(dim=1, keepdim=True)),
)
layer_bug(
    "normalises_the_pooling_weights_over_channels",
    "The softmax of the gate runs over the channels of a token in place of the tokens of a channel.",
    pool=lambda values, logits: (torch.softmax(logits, dim=1) * values).sum(dim=0),
)
layer_bug(
    "scales_the_pooling_logits",
    "The gate is divided by the root of the dimension, as the logits of an attention are.",
    pool=lambda values, logits: pool(values, logits * values.shape[1] ** -0.5),
)


def _with_a_block_of(logit: float) -> Callable[[Document, Geometry], Spec]:
    """Return the rules with a block of zeros, and a logit for it, before the first."""

    def rules(document: Document, geometry: Geometry) -> Spec:
        m = geometry.compress_ratio

        def pooled(values: Tensor, logits: Tensor) -> Tensor:
            if geometry.overlap and len(values) == m:
                values, logits = pad(values, (0, 0, m, 0)), pad(logits, (0, 0, m, 0), value=logit)
            return pool(values, logits)

        return replace(SPEC, pool=pooled)

    return rules


layer_bug(
    "counts_a_block_of_zeros_before_the_first",
    "The state before the first block has a gate of 0 in place of -inf, so that tokens that are not there have weight.",
    "https://github.com/hw-native-sys/pypto-lib/pull/1013",
    kinds=CSA,
    rules=_with_a_block_of(0.0),
)
layer_bug(
    "gates_the_missing_block_by_minus_ten_thousand",
    "The gate of the block before the first is -1e4 in place of -inf.",
    "https://github.com/AI-Hypercomputer/maxtext/pull/3810",
    kinds=CSA,
    equivalent="exp(-1e4) is exactly 0 in float64; only gates near -1e4 of all tokens of a block would show it.",
    rules=_with_a_block_of(-1e4),
)
layer_bug(
    "returns_nan_once_a_block_is_complete",
    "The first block that is complete is copied across the end of a row, and its entry becomes NaN.",
    "https://github.com/GDzhu01/vllm-ascend-deepseekv4/issues/76",
    "https://github.com/GDzhu01/vllm-ascend-deepseekv4/pull/77",
    "https://github.com/GDzhu01/vllm-ascend-deepseekv4/pull/83",
    pool=lambda values, logits: torch.full_like(values[0], torch.nan),
)

TILE = 16


def _whole_tiles(asked: Asked) -> Tensor:
    place = asked.document
    blank = asked.hidden.clone()
    blank[place.row, place.begin + place.length // TILE * TILE : place.begin + place.length] = 0
    context = replace(asked, hidden=blank).context()
    return asked.out(replace(asked.context(), entries=context.entries, index_keys=context.index_keys))


layer_bug(
    "compresses_whole_tiles_of_tokens_only",
    "The number of tiles is rounded down, so that the last tokens are never projected for the compressor.",
    "https://github.com/hw-native-sys/pypto-lib/pull/910",
    kinds=COMPRESSED,
    answer=_whole_tiles,
)
layer_bug(
    "pools_only_what_the_window_holds",
    "The compressor reads the ring of the window, in which the first tokens of a long block are overwritten already.",
    kinds=HCA_FIRST,
    rules=lambda document, geometry: replace(
        SPEC,
        pooled_tokens=lambda s, m, overlap: [
            token
            for token in pooled_tokens(s, m, overlap)
            if token.token > (s + 1) * m - 1 - geometry.window
        ],
    ),
)
layer_bug(
    "gates_without_a_running_maximum",
    "The gate's exponentials are made in half precision without subtracting the largest, and overflow at 65504.",
    pool=lambda values, logits: (
        torch.where(logits.exp() > 65504, torch.inf, logits.exp()) / logits.exp().sum(0) * values
    ).sum(0),
    kinds=COMPRESSED,
)

# NORMS


def _changing(
    name: str, change: Callable[[Tensor], Tensor]
) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Return a change of one weight, where there is one of that name."""
    return lambda named: {key: change(each) if key == name else each for key, each in named.items()}


ignores_kv_norm = layer_bug(
    "ignores_the_weight_of_the_kv_norm",
    "Window keys are normalised without the weight, which is right for a fresh checkpoint, where it is 1.",
    weights=_changing("kv_norm", torch.ones_like),
)
layer_bug(
    "ignores_the_weight_of_the_query_norm",
    "The low-rank query is normalised without the weight.",
    weights=_changing("q_norm", torch.ones_like),
)
layer_bug(
    "ignores_the_weight_of_the_entry_norm",
    "Entries are normalised without the weight.",
    kinds=COMPRESSED,
    weights=_changing("compressor.norm", torch.ones_like),
)
ignores_the_index_bias = layer_bug(
    "leaves_the_position_bias_out_of_the_indexer",
    "Only the indexer's compressor lacks its position bias, which shows where a top-k truncates and nowhere else.",
    kinds=CSA,
    weights=_changing("indexer.compressor.ape", torch.zeros_like),
)
layer_bug(
    "subtracts_the_mean_of_window_keys",
    "Window keys have a LayerNorm in place of an RMSNorm.",
    weights=_changing("wkv", lambda weight: weight - weight.mean(0)),
)
layer_bug(
    "wires_in_an_eps_of_1e_6",
    "The eps of the norms is that of the released layers, whatever the configuration says.",
    geometry=lambda geometry: replace(geometry, norm_eps=1e-6),
)
layer_bug(
    "norms_entries_after_their_rotation",
    "The rotation comes before the norm, so that its weight meets other channels.",
    kinds=COMPRESSED,
    answer=lambda asked: _normed_after_rotation(asked),
)


def _normed_after_rotation(asked: Asked) -> Tensor:
    compressor = asked.weights.compressor
    if compressor is None:
        return asked.trace().out
    bare = replace(asked.weights, compressor=replace(compressor, norm=torch.ones_like(compressor.norm)))
    entries = replace(asked, weights=bare).context().entries * compressor.norm
    return asked.out(replace(asked.context(), entries=entries))


def _without_query_norm(asked: Asked) -> Tensor:
    g, w, place = asked.geometry, asked.weights, asked.document
    latent = asked.hidden[place.row, place.columns] @ w.wq_a.T
    latent = w.q_norm * latent * torch.rsqrt(latent.square().mean(-1, keepdim=True) + g.norm_eps)
    raw = (latent @ w.wq_b.T).view(len(latent), g.heads, -1)
    length = (raw.square().mean(-1, keepdim=True) + g.norm_eps).sqrt()
    return asked.out(
        asked.context(),
        lambda t: replace(
            SPEC, attend=lambda q, keys, sink, scale: attend(q * length[t], keys, sink, scale)
        ),
    )


layer_bug(
    "does_not_norm_queries_per_head",
    "Queries have the norm of their low-rank form alone, and none per head.",
    "https://github.com/NVIDIA-NeMo/Automodel/pull/2039",
    answer=_without_query_norm,
)
