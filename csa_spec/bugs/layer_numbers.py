"""Layers whose queries see the right keys, but compute wrong numbers: sink, softmax, output."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from csa_spec.bugs.bug import COMPRESSED, EVERY, DocumentCall, layer_bug
from csa_spec.bugs.layer_selection import hadamard
from csa_spec.spec import SPEC, LayerKind
from csa_spec.spec.attention import attend
from csa_spec.spec.output import project_output

Attend = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]

# SINK


def with_sink(change: Callable[[Tensor], Tensor]) -> Attend:
    """Return the attention with changed sinks."""
    return lambda q, keys, sink, scale: attend(q, keys, change(sink), scale)


def _no(sink: Tensor) -> Tensor:
    return torch.full_like(sink, -torch.inf)


leaves_the_sink_out = layer_bug(
    "leaves_the_sink_out_of_the_softmax",
    "A backend without support for sinks computes a plain softmax.",
    "https://github.com/vllm-project/vllm/pull/54568",
    "https://github.com/tenstorrent/tt-metal/pull/55327",
    attend=with_sink(_no),
)
layer_bug(
    "reads_every_sink_as_zero",
    "The sinks are not loaded, so that every denominator has an additional 1.",
    attend=with_sink(torch.zeros_like),
)
layer_bug(
    "leaves_out_sinks_that_are_all_zero",
    "A layer is taken to have no sinks if all of them are 0, as they are in a fresh checkpoint.",
    attend=with_sink(lambda sink: sink if sink.any() else _no(sink)),
)
layer_bug(
    "scales_the_sinks_like_logits",
    "The sink joins the products before they are scaled.",
    attend=lambda q, keys, sink, scale: attend(q, keys, sink * scale, scale),
)
layer_bug(
    "uses_the_sink_of_the_first_head_for_all",
    "The sinks are broadcast along the wrong dimension.",
    attend=with_sink(lambda sink: sink[:1].expand_as(sink)),
)
layer_bug(
    "reads_the_sinks_as_bfloat16",
    "Sinks are stored in float32 and read as bfloat16, so that every other one is the rest of a mantissa.",
    "https://github.com/Avarok-Cybersecurity/atlas/pull/341",
    attend=with_sink(lambda sink: sink.float().view(torch.bfloat16)[: len(sink)].to(sink.dtype)),
)
layer_bug(
    "limits_the_sinks_to_10",
    "Sinks are clamped so that their exponentials stay in the range of half precision.",
    attend=with_sink(lambda sink: sink.clamp(-10, 10)),
)
layer_bug(
    "masks_the_sinks_by_a_product",
    "The column of the sink is masked by a product with 0 instead of a choice, and 0 times -inf is NaN.",
    attend=with_sink(lambda sink: sink + (sink[:, None] * sink.new_zeros(1, 2)).sum(1)),
)


@layer_bug.function(kinds=COMPRESSED)
def counts_the_sink_once_per_branch(call: DocumentCall) -> Tensor:
    """Window and entries have a softmax each, both with the sink, and are joined by their sums."""

    def doubled(t: int) -> float:
        return math.log(2) if t + 1 >= call.geometry.compress_ratio else 0.0

    return call.out(spec=lambda t: replace(SPEC, attend=with_sink(lambda sink: sink + doubled(t))))


# SOFTMAX


def _with_logits(change: Callable[[Tensor], Tensor]) -> Attend:
    """Return the attention with changed logits."""

    def changed(q: Tensor, keys: Tensor, sink: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        logits = torch.cat((change(scale * (q @ keys.T)), sink[:, None]), 1)
        probabilities = logits.softmax(1)[:, :-1]
        return probabilities @ keys, probabilities

    return changed


def _overflowing(q: Tensor, keys: Tensor, sink: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    exponentials = torch.cat((scale * (q @ keys.T), sink[:, None]), 1).exp()
    exponentials = torch.where(exponentials > 65504, torch.inf, exponentials)
    probabilities = (exponentials / exponentials.sum(1, keepdim=True))[:, :-1]
    return probabilities @ keys, probabilities


scales_by_the_dimension = layer_bug(
    "scales_logits_by_the_dimension",
    "Logits are divided by the head dimension instead of its root.",
    softmax_scale=lambda geometry: 1 / geometry.head_dim,
)
layer_bug(
    "computes_the_softmax_scale_from_the_rotated_channels",
    "The softmax scale is 1 / sqrt(rope_dim) instead of 1 / sqrt(head_dim).",
    softmax_scale=lambda geometry: geometry.rope_dim**-0.5,
)
layer_bug(
    "does_not_scale_logits",
    "Logits are not divided by the root of the head dimension.",
    softmax_scale=lambda geometry: 1.0,
)
layer_bug(
    "clamps_logits_to_10",
    "Logits are clamped before the exponential, as a guard against overflow.",
    attend=_with_logits(lambda logits: logits.clamp(max=10.0)),
)
layer_bug(
    "masks_tokens_whose_logit_is_zero",
    "A logit of 0 marks padding, but a key of zeros and a key orthogonal to the query give 0 as well.",
    attend=_with_logits(lambda logits: logits.masked_fill(logits == 0, -torch.inf)),
)
layer_bug(
    "applies_a_soft_cap_of_50_to_logits",
    "Logits pass through 50 tanh(x / 50), as in models with a soft cap.",
    attend=_with_logits(lambda logits: 50 * (logits / 50).tanh()),
)
layer_bug(
    "exponentiates_logits_without_their_maximum",
    "The softmax in half precision does not subtract the maximum of the logits, and overflows at 65504.",
    attend=_overflowing,
)


@layer_bug.function(
    "https://github.com/vllm-project/vllm/issues/48364",
    "https://github.com/AMD-AGI/Primus-Turbo/pull/417",
    "https://github.com/ikawrakow/ik_llama.cpp/issues/2344",
    kinds=(LayerKind.HCA, LayerKind.CSA),
)
def returns_nan_for_queries_without_entries(call: DocumentCall) -> Tensor:
    """A softmax whose first tile is masked completely subtracts -inf from -inf, which is NaN."""
    out = call.trace().out
    if call.geometry.kind is not LayerKind.SLIDING:
        out[: call.geometry.compress_ratio - 1] = torch.nan
    return out


nan_without_entries = returns_nan_for_queries_without_entries
layer_bug(
    "returns_values_in_the_hadamard_basis",
    "Keys are multiplied by a Hadamard matrix, and values, the same memory, are not turned back.",
    "https://github.com/ggml-org/llama.cpp/issues/25382",
    "https://github.com/ggml-org/llama.cpp/pull/25391",
    attend=lambda q, keys, sink, scale: attend(hadamard(q), hadamard(keys), sink, scale),
)
layer_bug(
    "normalizes_over_heads",
    "The softmax runs over the heads of a key instead of the keys of a head.",
    attend=lambda q, keys, sink, scale: (
        (scale * (q @ keys.T)).softmax(0) @ keys,
        (scale * (q @ keys.T)).softmax(0),
    ),
)

# OUTPUT


def _interleaved(heads_out: Tensor, wo_a: Tensor, wo_b: Tensor, groups: int) -> Tensor:
    regrouped = heads_out.reshape(-1, groups, heads_out.shape[1]).transpose(0, 1).flatten(0, 1)
    return project_output(regrouped, wo_a, wo_b, groups)


layer_bug(
    "groups_heads_that_are_not_neighbours",
    "Group g of the output projection holds every groups-th head instead of neighbouring ones.",
    project_output=_interleaved,
)
layer_bug(
    "mixes_up_heads_and_channels_of_the_output",
    "The output is reshaped without transposing heads and channels back.",
    project_output=lambda heads_out, wo_a, wo_b, groups: project_output(
        heads_out.T.reshape(heads_out.shape), wo_a, wo_b, groups
    ),
)
layer_bug(
    "projects_all_groups_by_the_first_matrix",
    "Every group of heads is projected by the matrix of the first group.",
    project_output=lambda heads_out, wo_a, wo_b, groups: project_output(
        heads_out, wo_a[: len(wo_a) // groups].repeat(groups, 1), wo_b, groups
    ),
)
layer_bug(
    "rounds_keys_to_bfloat16",
    "Keys and values are kept in bfloat16 where the layer has a wider dtype.",
    kinds=EVERY,
    attend=lambda q, keys, sink, scale: attend(q, keys.bfloat16().to(keys.dtype), sink, scale),
)
