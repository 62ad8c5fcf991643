"""Layers whose queries see what they must not, or miss what they must see: window, causality, which entries."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from csa_spec.bugs.bug import COMPRESSED, CSA, EVERY, Asked, layer_bug
from csa_spec.bugs.layer_rotary import amplitude, louder
from csa_spec.spec import SPEC, Geometry, LayerKind, Spec
from csa_spec.spec.attention import attend
from csa_spec.spec.rope import rope_frequencies
from csa_spec.spec.selection import visible_entries

# ENTRIES AND CAUSALITY


def _shared(asked: Asked) -> Tensor:
    """Let every query attend to the picks of all queries, as often as they were picked."""
    trace = asked.trace()
    picks = [entry for query in trace.queries for entry in query.selection]
    return asked.out(trace.context, selections=[picks] * asked.document.length)


layer_bug(
    "lets_all_queries_share_their_selections",
    "The picks [B, S, k] of all queries are flattened into one list of S * k keys that every query attends to, future "
    "entries and repetitions included.",
    "https://github.com/huggingface/transformers/issues/45758",
    "https://github.com/huggingface/transformers/pull/45892",
    "https://github.com/huggingface/transformers/pull/45837",
    "https://github.com/huggingface/transformers/pull/45928",
    kinds=CSA,
    answer=_shared,
)


def _as_transformers_5_8_0(asked: Asked) -> Tensor:
    """Besides, queries and window use rope_theta, YaRN is everywhere and loud, and entries begin at position 0."""
    geometry = asked.geometry
    loud = louder(1.0 if geometry.yarn is None else amplitude(geometry.yarn))
    main = replace(loud, visible_entries=_all, layer_frequencies=lambda g: _table(g, g.rope_theta))
    if geometry.kind is LayerKind.SLIDING:
        return asked.trace(main).out
    spec = replace(main, layer_frequencies=lambda g: _table(g, g.compress_rope_theta))
    compressed = asked.context(spec, asked.document._replace(start=0))
    context = replace(asked.context(main), entries=compressed.entries)
    if geometry.kind is LayerKind.HCA:
        return asked.out(context, main)
    ranking = replace(compressed, document=asked.document)
    queries = [asked.query(t, ranking, spec) for t in range(asked.document.length)]
    picks = [entry for query in queries for entry in query.selection]
    return asked.out(context, main, [picks] * asked.document.length)


def _table(geometry: Geometry, theta: float) -> Tensor:
    return rope_frequencies(geometry.rope_dim, theta, geometry.yarn)


def _all(t: int, m: int) -> list[int]:
    return list(range(2**10))


layer_bug(
    "lets_all_queries_share_picks_from_all_entries",
    "The top-k ranks future entries too, every query attends to the picks of all queries, and entries are not masked; "
    "besides, queries and window rotate by rope_theta, and every rotation is scaled by the amplitude of YaRN.",
    "https://github.com/huggingface/transformers/issues/45758",
    "https://github.com/huggingface/transformers/issues/45820",
    "https://github.com/huggingface/transformers/issues/45910",
    kinds=EVERY,
    answer=_as_transformers_5_8_0,
)
sees_every_entry = layer_bug(
    "sees_every_entry",
    "Entries have no causal mask, so that a query selects and attends to entries of its future.",
    "https://github.com/huggingface/transformers/issues/45820",
    visible_entries=_all,
)
layer_bug(
    "masks_the_future_after_the_top_k",
    "The causal mask comes after the top-k: future entries are not attended to, but they take the place of others.",
    "https://github.com/huggingface/transformers/issues/45820",
    kinds=CSA,
    answer=lambda asked: asked.out(
        asked.context(),
        selections=[
            [entry for entry in query.selection if entry < (query.t + 1) // asked.geometry.compress_ratio]
            for query in asked.trace(replace(SPEC, visible_entries=_all)).queries
        ],
    ),
)
leaks_the_future = layer_bug(
    "sees_the_block_that_it_stands_in",
    "The bound is p // m in place of (p + 1) // m - 1, so that a query sees a block that is not complete yet.",
    "https://github.com/vllm-project/tpu-inference/issues/3536",
    "https://github.com/sgl-project/sglang-jax/pull/1607",
    visible_entries=lambda t, m: list(range(t // m + 1)),
)
hides_the_newest_entry = layer_bug(
    "hides_a_block_from_the_token_that_completes_it",
    "The paper's bound floor(t / m) is read with t counted from 0, so that the last token of a block does not see it.",
    visible_entries=lambda t, m: list(range(t // m)),
)
layer_bug(
    "always_hides_the_newest_entry",
    "The entry that is still open is taken off a list that holds only complete ones.",
    visible_entries=lambda t, m: visible_entries(t, m)[:-1],
)
sees_no_entry = layer_bug(
    "sees_no_entry",
    "The mask of the window is padded with -inf for the entries, so that no query sees any.",
    "https://github.com/ml-explore/mlx-lm/pull/1189",
    visible_entries=lambda t, m: [],
)
layer_bug(
    "inverts_the_mask_of_entries",
    "A mask that is additive (0 and -inf) is read as boolean, so that exactly the wrong entries are visible.",
    "https://github.com/AI-Hypercomputer/maxtext/pull/4488",
    visible_entries=lambda t, m: _all(t, m)[(t + 1) // m :],
)
layer_bug(
    "samples_entries_at_equal_distances",
    "Heavily compressed attention is taken for one that attends to every other entry in place of all.",
    kinds=COMPRESSED,
    visible_entries=lambda t, m: visible_entries(t, m)[::2],
)
layer_bug(
    "forgets_entries_that_overlap_the_window",
    "Entries whose tokens the window shows as well are dropped, as if keys had to be unique.",
    kinds=COMPRESSED,
    rules=lambda document, geometry: replace(
        SPEC,
        visible_entries=lambda t, m: [
            s for s in visible_entries(t, m) if (s + 1) * m - 1 < t - geometry.window + 1
        ],
    ),
)
layer_bug(
    "sees_entries_up_to_its_absolute_position",
    "The number of visible entries is taken from the absolute position where entries are counted from the first token.",
    kinds=COMPRESSED,
    rules=lambda document, geometry: replace(
        SPEC, visible_entries=lambda t, m: visible_entries(document.start + t, m)
    ),
)


def _seeded_by_entry_zero(asked: Asked) -> Tensor:
    m = asked.geometry.compress_ratio
    none = [t for t in range(asked.document.length) if t + 1 < m]
    spec = replace(SPEC, visible_entries=lambda t, m: [0] if t in none else visible_entries(t, m))
    return asked.out(asked.context(), spec)


layer_bug(
    "starts_an_empty_row_from_entry_zero",
    "The running softmax of a query that sees no entry is seeded with the first row of the pool.",
    "https://github.com/hw-native-sys/pypto-lib/pull/234",
    "https://github.com/hw-native-sys/pypto-lib/pull/328",
    kinds=COMPRESSED,
    answer=_seeded_by_entry_zero,
)


def _fails_without_entries(asked: Asked) -> Tensor:
    if asked.geometry.kind is not LayerKind.SLIDING and not asked.count:
        raise RuntimeError("top-k over a dimension of size 0")
    return asked.trace().out


layer_bug(
    "fails_before_the_first_block_is_complete",
    "An empty pool of entries is not expected, so that prompts shorter than one block fail.",
    "https://github.com/hw-native-sys/pypto-lib/pull/306",
    "https://github.com/modelscope/twinkle/pull/250",
    kinds=COMPRESSED,
    answer=_fails_without_entries,
)
layer_bug(
    "takes_a_ratio_of_one_for_no_compression",
    "Compression is switched on by ratio > 1, so that a layer of ratio 1 has a window and nothing else.",
    visible_entries=lambda t, m: visible_entries(t, m) if m > 1 else [],
)

# WINDOW

layer_bug(
    "ignores_the_window",
    "The window is never applied, so that queries see every token before them.",
    "https://github.com/onnxruntime/mobius/pull/596",
    window_tokens=lambda t, window: list(range(t + 1)),
)
layer_bug(
    "takes_a_window_of_one_for_none",
    "The window is given as W - 1 tokens before the query, and 0 of them says that there is no window.",
    window_tokens=lambda t, window: SPEC.window_tokens(t, window) if window > 1 else list(range(t + 1)),
)
misses_the_oldest_token = layer_bug(
    "misses_the_oldest_token_of_the_window",
    "The window is one token short: its own token is counted twice.",
    window_tokens=lambda t, window: list(range(max(0, t - window + 2), t + 1)),
)
sees_one_token_more = layer_bug(
    "sees_one_token_before_the_window",
    "The window is one token long: its own token is not counted.",
    window_tokens=lambda t, window: list(range(max(0, t - window), t + 1)),
)
layer_bug(
    "does_not_see_its_own_token",
    "Keys are written to the window after the attention, so that a query does not see its own token.",
    window_tokens=lambda t, window: list(range(max(0, t - window), t)),
)
layer_bug(
    "sees_the_next_token",
    "The end of the window is widened past the query, so that it sees a token of its future.",
    "https://github.com/vllm-project/vllm/pull/57152",
    window_tokens=lambda t, window: list(range(max(0, t - window + 1), t + 2)),
)
layer_bug(
    "sees_the_window_on_both_sides",
    "The distance to the query is taken without its sign, as in attention that is not causal.",
    window_tokens=lambda t, window: list(range(max(0, t - window + 1), t + window)),
)
layer_bug(
    "cuts_windows_at_fixed_blocks",
    "Local attention in blocks of the window's size takes the place of a window that slides.",
    window_tokens=lambda t, window: list(range(t // window * window, t + 1)),
)
layer_bug(
    "widens_the_window_to_a_block",
    "The window is rounded up to hold the block that is being compressed, so that it is longer where it was shorter.",
    kinds=COMPRESSED,
    rules=lambda document, geometry: replace(
        SPEC,
        window_tokens=lambda t, window: SPEC.window_tokens(t, max(window, geometry.compress_ratio)),
    ),
)


def with_zeros(count: int) -> Spec:
    """Return the rules with some keys of zero beside the right ones."""
    return replace(
        SPEC,
        attend=lambda q, keys, sink, scale: attend(
            q, torch.cat((keys, keys.new_zeros(count, keys.shape[1]))), sink, scale
        ),
    )


layer_bug(
    "counts_unfilled_window_slots_as_zeros",
    "Slots of the window that hold no token yet are read as keys of zero, which have a share of the softmax.",
    "https://github.com/hw-native-sys/pypto-lib/pull/1014",
    answer=lambda asked: asked.out(
        asked.context(), lambda t: with_zeros(max(0, asked.geometry.window - t - 1))
    ),
)
layer_bug(
    "pads_a_short_sequence_to_the_window",
    "A sequence shorter than the window is padded to its size with keys of zero, and the mask is padded with 0.",
    answer=lambda asked: asked.out(
        asked.context(), with_zeros(max(0, asked.geometry.window - asked.hidden.shape[1]))
    ),
)


def _decodes_from_nothing(asked: Asked) -> Tensor:
    spec = replace(SPEC, window_tokens=lambda t, window: []) if asked.hidden.shape[1] == 1 else SPEC
    return asked.trace(spec).out


layer_bug(
    "takes_a_single_token_for_a_step_of_decoding",
    "A call of one token attends to what is in the cache alone, where nothing is yet.",
    kinds=EVERY,
    answer=_decodes_from_nothing,
)


layer_bug(
    "takes_a_compressed_layer_for_a_sliding_one",
    "The ratio is read with the index of another layer, so that the layer has a window and nothing else.",
    "https://github.com/GDzhu01/vllm-ascend-deepseekv4/issues/58",
    "https://github.com/NVIDIA/Megatron-LM/pull/5042",
    "https://github.com/sgl-project/sglang-jax/pull/1604",
    "https://github.com/AI-Hypercomputer/maxtext/pull/4153",
    "https://github.com/antirez/ds4/pull/411",
    kinds=COMPRESSED,
    weights=lambda named: {name: each for name, each in named.items() if "." not in name},
    geometry=lambda geometry: replace(geometry, kind=LayerKind.SLIDING),
)
