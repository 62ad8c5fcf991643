"""Layers whose queries see what they must not, or miss what they must see: window and entries."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from csa_spec.bugs.bug import COMPRESSED, CSA, DocumentCall, layer_bug
from csa_spec.bugs.layer_rotary import amplitude, louder
from csa_spec.spec import SPEC, Geometry, LayerKind, Spec
from csa_spec.spec.attention import attend
from csa_spec.spec.rope import rope_frequencies
from csa_spec.spec.selection import visible_entries

# ENTRIES AND CAUSALITY


@layer_bug.function(
    "https://github.com/huggingface/transformers/issues/45758",
    "https://github.com/huggingface/transformers/pull/45892",
    "https://github.com/huggingface/transformers/pull/45837",
    "https://github.com/huggingface/transformers/pull/45928",
    kinds=CSA,
    wording="every query attends to every query's top-k",
)
def every_query_attends_to_every_querys_top_k(call: DocumentCall) -> Tensor:
    """The top-k of all queries is flattened into one list of S * k keys, to which every query attends.

    Entries of its future and repetitions are included.
    """
    trace = call.trace()
    picks = [entry for query in trace.queries for entry in query.selection]
    return call.out(trace.context, selections=[picks] * call.document.length)


def _table(geometry: Geometry, theta: float) -> Tensor:
    return rope_frequencies(geometry.rope_dim, theta, geometry.yarn)


def _all(t: int, m: int) -> list[int]:
    return list(range(2**10))


@layer_bug.function(
    "https://github.com/huggingface/transformers/issues/45758",
    "https://github.com/huggingface/transformers/issues/45820",
    "https://github.com/huggingface/transformers/issues/45910",
    wording="has the bugs of transformers 5.8.0",
)
def has_the_bugs_of_transformers_5_8_0(call: DocumentCall) -> Tensor:
    """The top-k ranks future entries too, every query attends to it, and rotations are wrong.

    Queries and window rotate by rope_theta, and every rotation is scaled by the amplitude of YaRN.
    """
    geometry = call.geometry
    loud = louder(1.0 if geometry.yarn is None else amplitude(geometry.yarn))
    main = replace(loud, visible_entries=_all, layer_frequencies=lambda g: _table(g, g.rope_theta))
    if geometry.kind is LayerKind.SLIDING:
        return call.trace(main).out
    spec = replace(main, layer_frequencies=lambda g: _table(g, g.compress_rope_theta))
    compressed = call.context(spec, call.document._replace(start=0))
    context = replace(call.context(main), entries=compressed.entries)
    if geometry.kind is LayerKind.HCA:
        return call.out(context, main)
    ranked = call.selections(replace(compressed, document=call.document), spec)
    picks = [entry for selection in ranked for entry in selection]
    return call.out(context, main, [picks] * call.document.length)


sees_every_entry = layer_bug(
    "sees_every_entry",
    "Entries have no causal mask, so that a query selects and attends to entries of its future.",
    "https://github.com/huggingface/transformers/issues/45820",
    visible_entries=_all,
)
layer_bug(
    "masks_the_future_after_the_top_k",
    "The causal mask comes after the top-k, in which future entries take the places of others.",
    "https://github.com/huggingface/transformers/issues/45820",
    selections=lambda call: [
        [entry for entry in query.selection if entry < (query.t + 1) // call.geometry.compress_ratio]
        for query in call.trace(replace(SPEC, visible_entries=_all)).queries
    ],
)
leaks_the_future = layer_bug(
    "sees_its_own_unfinished_block",
    "Entry s is visible if s <= p // m instead of s < (p + 1) // m, before its block is complete.",
    "https://github.com/vllm-project/tpu-inference/issues/3536",
    "https://github.com/sgl-project/sglang-jax/pull/1607",
    visible_entries=lambda t, m: list(range(t // m + 1)),
)
hides_the_newest_entry = layer_bug(
    "hides_a_block_from_the_token_that_completes_it",
    "The paper's bound floor(t / m) counts t from 1 and is used with t counted from 0.",
    visible_entries=lambda t, m: list(range(t // m)),
)
layer_bug(
    "always_hides_the_newest_entry",
    "The last entry is dropped as an incomplete one, although the list holds only complete ones.",
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
    "An additive mask (0 and -inf) is read as a boolean one, so that exactly the wrong entries are visible.",
    "https://github.com/AI-Hypercomputer/maxtext/pull/4488",
    visible_entries=lambda t, m: _all(t, m)[(t + 1) // m :],
)
layer_bug(
    "attends_to_every_second_entry",
    "Heavily compressed attention attends to every second entry instead of all.",
    kinds=COMPRESSED,
    visible_entries=lambda t, m: visible_entries(t, m)[::2],
)


@layer_bug.function(kinds=COMPRESSED)
def drops_entries_that_overlap_the_window(call: DocumentCall) -> Tensor:
    """Entries with tokens of the window are dropped, as if each token had to be seen only once."""
    return call.follow(
        visible_entries=lambda t, m: [
            s for s in visible_entries(t, m) if (s + 1) * m - 1 < t - call.geometry.window + 1
        ]
    )


layer_bug(
    "counts_visible_entries_from_the_absolute_position",
    "Visible entries are counted from the absolute position, entries from the first token.",
    kinds=COMPRESSED,
    answer=lambda call: call.follow(
        visible_entries=lambda t, m: visible_entries(call.document.start + t, m)
    ),
)
layer_bug(
    "attends_to_entry_0_where_it_sees_none",
    "The running softmax of a query that sees no entry is seeded with entry 0.",
    "https://github.com/hw-native-sys/pypto-lib/pull/234",
    "https://github.com/hw-native-sys/pypto-lib/pull/328",
    kinds=COMPRESSED,
    answer=lambda call: call.out(
        spec=replace(SPEC, visible_entries=lambda t, m: visible_entries(t, m) or [0])
    ),
)


@layer_bug.function(
    "https://github.com/hw-native-sys/pypto-lib/pull/306",
    "https://github.com/modelscope/twinkle/pull/250",
    kinds=COMPRESSED,
)
def fails_before_the_first_block_is_complete(call: DocumentCall) -> Tensor:
    """A prompt shorter than one block has no entries, over which the top-k raises an error."""
    if call.geometry.kind is not LayerKind.SLIDING and not call.count:
        raise RuntimeError("top-k over a dimension of size 0")
    return call.trace().out


layer_bug(
    "treats_a_ratio_of_one_as_no_compression",
    "Compression requires a ratio > 1, so that a layer of ratio 1 has a window and nothing else.",
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
    "treats_a_window_of_one_as_no_window",
    "The window is passed as the W - 1 tokens before the query, and 0 means that there is no window.",
    window_tokens=lambda t, window: SPEC.window_tokens(t, window) if window > 1 else list(range(t + 1)),
)
misses_the_oldest_token = layer_bug(
    "misses_the_oldest_token_of_the_window",
    "The window is one token too short: the query's own token is counted twice.",
    window_tokens=lambda t, window: list(range(max(0, t - window + 2), t + 1)),
)
sees_one_token_more = layer_bug(
    "sees_one_token_before_the_window",
    "The window is one token too long: the query's own token is not counted.",
    window_tokens=lambda t, window: list(range(max(0, t - window), t + 1)),
)
layer_bug(
    "does_not_see_its_own_token",
    "Keys are written to the window after the attention, so that a query does not see its own token.",
    window_tokens=lambda t, window: list(range(max(0, t - window), t)),
)
layer_bug(
    "sees_the_next_token",
    "The window ends one token after the query, so that it sees a token of its future.",
    "https://github.com/vllm-project/vllm/pull/57152",
    window_tokens=lambda t, window: list(range(max(0, t - window + 1), t + 2)),
)
layer_bug(
    "sees_the_window_on_both_sides",
    "The distance to the query is taken without its sign, as in attention that is not causal.",
    window_tokens=lambda t, window: list(range(max(0, t - window + 1), t + window)),
)
layer_bug(
    "attends_within_fixed_blocks_instead_of_a_window",
    "A query sees its own block of W tokens instead of a window that slides.",
    window_tokens=lambda t, window: list(range(t // window * window, t + 1)),
)
layer_bug(
    "widens_the_window_to_a_block",
    "A window shorter than a block is widened to m tokens, to hold the block that is being compressed.",
    kinds=COMPRESSED,
    answer=lambda call: call.follow(
        window_tokens=lambda t, window: SPEC.window_tokens(t, max(window, call.geometry.compress_ratio))
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
    "counts_unfilled_window_slots_as_zero_keys",
    "Window slots that hold no token yet are read as keys of zero, which have a share of the softmax.",
    "https://github.com/hw-native-sys/pypto-lib/pull/1014",
    answer=lambda call: call.out(spec=lambda t: with_zeros(max(0, call.geometry.window - t - 1))),
)
layer_bug(
    "pads_a_short_sequence_with_zero_keys",
    "A sequence shorter than the window is padded to its size with keys of zero, which are not masked.",
    answer=lambda call: call.out(spec=with_zeros(max(0, call.geometry.window - call.hidden.shape[1]))),
)


@layer_bug.function()
def treats_a_single_token_as_a_decoding_step(call: DocumentCall) -> Tensor:
    """A call of one token attends only to what the cache holds, which is nothing yet."""
    return call.follow(window_tokens=lambda t, window: []) if call.hidden.shape[1] == 1 else call.follow()


layer_bug(
    "treats_a_compressed_layer_as_a_sliding_one",
    "The ratio is read with the index of another layer, so that the layer has a window and nothing else.",
    "https://github.com/GDzhu01/vllm-ascend-deepseekv4/issues/58",
    "https://github.com/NVIDIA/Megatron-LM/pull/5042",
    "https://github.com/sgl-project/sglang-jax/pull/1604",
    "https://github.com/AI-Hypercomputer/maxtext/pull/4153",
    "https://github.com/antirez/ds4/pull/411",
    kinds=COMPRESSED,
    weights=lambda named: {name: weight for name, weight in named.items() if "." not in name},
    geometry=lambda geometry: replace(geometry, kind=LayerKind.SLIDING),
)
