"""Layers whose queries see the right things, but with the wrong numbers: sink, softmax, output projection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from csa_spec.bugs.bug import COMPRESSED, EVERY, Asked, layer_bug
from csa_spec.bugs.layer_selection import hadamard
from csa_spec.spec import SPEC, LayerKind
from csa_spec.spec.attention import attend
from csa_spec.spec.output import project_output

# SINK


leaves_the_sink_out = layer_bug(
    "leaves_the_sink_out_of_the_softmax",
    "A backend without support for sinks runs a plain softmax.",
    "https://github.com/vllm-project/vllm/pull/54568",
    "https://github.com/tenstorrent/tt-metal/pull/55327",
    attend=lambda q, keys, sink, scale: attend(q, keys, torch.full_like(sink, -torch.inf), scale),
)
layer_bug(
    "takes_every_sink_for_zero",
    "The sinks are not loaded: 1 is added to every denominator.",
    attend=lambda q, keys, sink, scale: attend(q, keys, torch.zeros_like(sink), scale),
)
layer_bug(
    "leaves_sinks_out_that_are_all_zero",
    "Whether a layer has sinks is asked of their values, and zeros, as a fresh checkpoint has them, say no.",
    attend=lambda q, keys, sink, scale: attend(
        q, keys, sink if sink.any() else torch.full_like(sink, -torch.inf), scale
    ),
)
layer_bug(
    "scales_the_sinks_like_logits",
    "The sink is joined to the products before these are scaled.",
    attend=lambda q, keys, sink, scale: attend(q, keys, sink * scale, scale),
)
layer_bug(
    "uses_the_sink_of_the_first_head_for_all",
    "The sinks are broadcast along the wrong dimension.",
    attend=lambda q, keys, sink, scale: attend(q, keys, sink[:1].expand_as(sink), scale),
)
layer_bug(
    "takes_the_bytes_of_the_sinks_for_bfloat16",
    "Sinks are stored in float32 and read as bfloat16, so that every other one is what is left of a mantissa.",
    "https://github.com/Avarok-Cybersecurity/atlas/pull/341",
    attend=lambda q, keys, sink, scale: attend(
        q, keys, sink.float().view(torch.bfloat16)[: len(sink)].to(sink.dtype), scale
    ),
)
layer_bug(
    "limits_the_sinks_to_10",
    "Sinks are clamped so that their exponentials stay in the range of half precision.",
    attend=lambda q, keys, sink, scale: attend(q, keys, sink.clamp(-10, 10), scale),
)
layer_bug(
    "multiplies_the_sinks_by_a_mask",
    "The sink's column is masked by a product with 0 in place of a choice, and 0 times -inf is NaN.",
    attend=lambda q, keys, sink, scale: attend(
        q, keys, sink + (sink[:, None] * q.new_zeros(1, 2)).sum(1), scale
    ),
)
layer_bug(
    "counts_the_sink_once_per_branch",
    "Window and entries have a softmax each, both with the sink, and are joined by their sums.",
    kinds=COMPRESSED,
    answer=lambda asked: asked.out(
        asked.context(),
        lambda t: replace(
            SPEC,
            attend=lambda q, keys, sink, scale: attend(
                q,
                keys,
                sink + (0.6931471805599453 if t + 1 >= asked.geometry.compress_ratio else 0.0),
                scale,
            ),
        ),
    ),
)

# SOFTMAX


def _limited(
    q: Tensor, keys: Tensor, sink: Tensor, scale: float, change: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Attend with logits that were changed."""
    logits = torch.cat((change(scale * (q @ keys.T)), sink[:, None]), 1)
    probabilities = logits.softmax(1)[:, :-1]
    return probabilities @ keys, probabilities


def _overflowing(q: Tensor, keys: Tensor, sink: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    exponentials = torch.cat((scale * (q @ keys.T), sink[:, None]), 1).exp()
    exponentials = torch.where(exponentials > 65504, torch.inf, exponentials)
    probabilities = (exponentials / exponentials.sum(1, keepdim=True))[:, :-1]
    return probabilities @ keys, probabilities


scales_by_the_dimension = layer_bug(
    "scales_logits_by_the_dimension",
    "Logits are divided by the dimension in place of its root.",
    softmax_scale=lambda geometry: 1 / geometry.head_dim,
)
layer_bug(
    "takes_the_softmax_scale_from_the_rotated_channels",
    "The scale is that of rope_dim in place of head_dim.",
    softmax_scale=lambda geometry: geometry.rope_dim**-0.5,
)
layer_bug(
    "does_not_scale_logits",
    "Logits are not divided by the root of the dimension.",
    softmax_scale=lambda geometry: 1.0,
)
layer_bug(
    "caps_logits_at_10",
    "Logits are clamped before the exponential, as a guard against overflow.",
    attend=lambda q, keys, sink, scale: _limited(
        q, keys, sink, scale, lambda logits: logits.clamp(max=10.0)
    ),
)
layer_bug(
    "takes_a_logit_of_zero_for_padding",
    "Padding is told by its logit, which is 0 for a key of zeros, and for a token whose key is zero or orthogonal.",
    attend=lambda q, keys, sink, scale: _limited(
        q, keys, sink, scale, lambda logits: logits.masked_fill(logits == 0, -torch.inf)
    ),
)
layer_bug(
    "softens_logits_by_a_cap_of_50",
    "Logits pass through 50 tanh(x / 50), as in models with a soft cap.",
    attend=lambda q, keys, sink, scale: _limited(
        q, keys, sink, scale, lambda logits: 50 * (logits / 50).tanh()
    ),
)
layer_bug(
    "exponentiates_logits_without_their_maximum",
    "The softmax in half precision does not subtract its running maximum, and overflows at 65504.",
    attend=_overflowing,
)


def _nan_without_entries(asked: Asked) -> Tensor:
    out = asked.trace().out
    if asked.geometry.kind is not LayerKind.SLIDING:
        out[: asked.geometry.compress_ratio - 1] = torch.nan
    return out


nan_without_entries = layer_bug(
    "returns_nan_for_queries_without_entries",
    "A softmax whose first tile is masked completely subtracts -inf from -inf, and NaN stays in all that follows.",
    "https://github.com/vllm-project/vllm/issues/48364",
    "https://github.com/AMD-AGI/Primus-Turbo/pull/417",
    "https://github.com/ikawrakow/ik_llama.cpp/issues/2344",
    kinds=(LayerKind.HCA, LayerKind.CSA),
    answer=_nan_without_entries,
)
layer_bug(
    "returns_values_in_a_rotated_basis",
    "Keys are mixed by a Hadamard matrix for their quantisation, and values, the same memory, are not mixed back.",
    "https://github.com/ggml-org/llama.cpp/issues/25382",
    "https://github.com/ggml-org/llama.cpp/pull/25391",
    attend=lambda q, keys, sink, scale: attend(hadamard(q), hadamard(keys), sink, scale),
)
layer_bug(
    "normalises_over_heads",
    "The softmax runs over the heads of a key in place of the keys of a head.",
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
    "Group g of the output projection holds every groups-th head in place of neighbouring ones.",
    project_output=_interleaved,
)
layer_bug(
    "gathers_heads_channel_by_channel",
    "The output is reshaped without transposing heads and channels back.",
    project_output=lambda heads_out, wo_a, wo_b, groups: project_output(
        heads_out.T.reshape(heads_out.shape), wo_a, wo_b, groups
    ),
)
layer_bug(
    "projects_all_groups_by_the_first",
    "Every group of heads is projected by the matrix of the first group.",
    project_output=lambda heads_out, wo_a, wo_b, groups: project_output(
        heads_out, wo_a[: len(wo_a) // groups].repeat(groups, 1), wo_b, groups
    ),
)
layer_bug(
    "rounds_to_bfloat16_inside",
    "Keys and values are kept in bfloat16 where the layer has a wider dtype.",
    kinds=EVERY,
    attend=lambda q, keys, sink, scale: attend(q, keys.bfloat16().to(keys.dtype), sink, scale),
)
