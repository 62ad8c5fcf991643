"""Layers that rotate by another base, at another position, or other channels."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from csa_spec.bugs.bug import COMPRESSED, EVERY, DocumentCall, layer_bug
from csa_spec.bugs.rules import half_split, last_token, leading_channels, unrotated
from csa_spec.spec import SPEC, Geometry, LayerKind, Spec, Yarn
from csa_spec.spec.rope import layer_frequencies, rope_frequencies, rotate

SLIDING = (LayerKind.SLIDING,)

# BASE AND YARN


def _frequencies(geometry: Geometry, theta: float, *, yarn: bool) -> Tensor:
    return rope_frequencies(geometry.rope_dim, theta, geometry.yarn if yarn else None)


def _main_theta(geometry: Geometry) -> Tensor:
    return _frequencies(geometry, geometry.rope_theta, yarn=False)


def _sliding(geometry: Geometry) -> bool:
    return geometry.kind is LayerKind.SLIDING


@layer_bug.function(
    "https://github.com/huggingface/transformers/issues/45910",
    "https://github.com/ml-explore/mlx-lm/pull/1189",
    "https://github.com/Avarok-Cybersecurity/atlas/pull/276",
    "https://github.com/AI-Hypercomputer/maxtext/pull/4153",
    kinds=COMPRESSED,
)
def rotates_queries_by_one_base_and_entries_by_another(call: DocumentCall) -> Tensor:
    """Queries and window keys use rope_theta, while entries use compress_rope_theta."""
    main = replace(SPEC, layer_frequencies=_main_theta)
    right = call.context()
    return call.out(replace(call.context(main), entries=right.entries, index_keys=right.index_keys), main)


uses_one_theta = layer_bug(
    "uses_the_main_base_in_every_layer",
    "Compressed layers use rope_theta without YaRN, because their own base is not configured.",
    "https://github.com/modelscope/ms-swift/issues/9501",
    "https://github.com/Avarok-Cybersecurity/atlas/pull/276",
    kinds=COMPRESSED,
    layer_frequencies=_main_theta,
)
layer_bug(
    "keeps_yarn_with_the_main_base",
    "Every layer uses rope_theta, and compressed layers use it with YaRN.",
    kinds=COMPRESSED,
    layer_frequencies=lambda g: _frequencies(g, g.rope_theta, yarn=not _sliding(g)),
)
layer_bug(
    "treats_a_ratio_of_zero_as_a_ratio_of_one",
    "A ratio of 0 is clamped to 1, so that sliding layers use compress_rope_theta like compressed ones.",
    "https://github.com/AMD-AGI/Primus/pull/1148",
    kinds=SLIDING,
    layer_frequencies=lambda g: _frequencies(g, g.compress_rope_theta, yarn=not _sliding(g)),
)
layer_bug(
    "ignores_yarn_in_compressed_layers",
    "The frequencies of compressed layers are those without YaRN.",
    "https://github.com/NVIDIA-NeMo/Automodel/pull/2103",
    kinds=COMPRESSED,
    layer_frequencies=lambda g: layer_frequencies(replace(g, yarn=None)),
)
layer_bug(
    "leaves_yarn_on_in_sliding_layers",
    "YaRN is part of the table that sliding layers use too.",
    "https://github.com/1CatAI/1Cat-vLLM/pull/251",
    "https://github.com/sgl-project/sglang/pull/34788",
    kinds=SLIDING,
    layer_frequencies=lambda g: _frequencies(
        g, g.rope_theta if _sliding(g) else g.compress_rope_theta, yarn=True
    ),
)
layer_bug(
    "divides_every_frequency_by_the_yarn_factor",
    "YaRN is computed as linear interpolation, which slows the fast pairs down as well.",
    kinds=COMPRESSED,
    layer_frequencies=lambda g: (
        layer_frequencies(replace(g, yarn=None)) / (1 if g.yarn is None or _sliding(g) else g.yarn.factor)
    ),
)
layer_bug(
    "hard_codes_a_base_of_40000",
    "The base of compressed layers is a quarter of what it should be.",
    "https://github.com/AMD-AGI/Primus/pull/928",
    "https://github.com/huggingface/transformers/issues/45910",
    "https://github.com/NVIDIA/Megatron-LM/pull/4458",
    kinds=COMPRESSED,
    layer_frequencies=lambda g: layer_frequencies(replace(g, compress_rope_theta=g.compress_rope_theta / 4)),
)


def amplitude(yarn: Yarn) -> float:
    """Return the factor on cos and sin that YaRN has in other models."""
    return 1.0 if yarn.factor <= 1 else 0.1 * math.log(yarn.factor) + 1


def _amplitude_of_layer(geometry: Geometry) -> float:
    return 1.0 if geometry.yarn is None or _sliding(geometry) else amplitude(geometry.yarn)


def louder(factor: float) -> Spec:
    """Return the rules with a factor on cos and sin."""

    def turn(vectors: Tensor, position: int, frequencies: Tensor) -> Tensor:
        turned = rotate(vectors, position, frequencies)
        width = 2 * len(frequencies)
        return torch.cat((turned[..., :-width], factor * turned[..., -width:]), dim=-1)

    return replace(SPEC, rotate=turn)


layer_bug(
    "scales_cos_and_sin_by_the_amplitude_of_yarn",
    "cos and sin are multiplied by 0.1 ln(factor) + 1, as in other models with YaRN.",
    "https://github.com/Avarok-Cybersecurity/atlas/pull/342",
    "https://github.com/raullenchai/Rapid-MLX/pull/1225",
    kinds=COMPRESSED,
    answer=lambda call: call.trace(louder(_amplitude_of_layer(call.geometry))).out,
)
layer_bug(
    "hard_codes_the_amplitude_of_a_yarn_factor_of_16",
    "Every rotation scales the channels that it turns by 0.1 ln(16) + 1, in layers without YaRN too.",
    rotate=louder(0.1 * math.log(16) + 1).rotate,
)
layer_bug(
    "corrects_the_softmax_scale_for_yarn",
    "The softmax scale is multiplied by the square of YaRN's amplitude, as in earlier DeepSeek models.",
    "https://github.com/AMD-AGI/Primus/pull/928",
    "https://github.com/Avarok-Cybersecurity/atlas/pull/342",
    kinds=COMPRESSED,
    softmax_scale=lambda g: g.scale * _amplitude_of_layer(g) ** 2,
)

# CHANNELS

layer_bug(
    "rotates_half_split_pairs_instead_of_interleaved_ones",
    "A pair is one channel of each half of the rotated channels instead of two neighbours.",
    "https://github.com/hw-native-sys/pypto-lib/pull/244",
    "https://github.com/hw-native-sys/pypto-lib/pull/186",
    rotate=half_split,
)
layer_bug(
    "rotates_the_leading_channels",
    "The first channels of a head are rotated instead of the last.",
    rotate=leading_channels,
)
layer_bug(
    "rotates_in_the_opposite_direction",
    "The sine has the wrong sign everywhere, in the rotation of the output too.",
    rotate=lambda vectors, position, frequencies: rotate(vectors, -position, frequencies),
)
layer_bug(
    "rotates_everything_at_position_zero",
    "The table of cos and sin is always read at position 0, so that nothing is rotated.",
    "https://github.com/hw-native-sys/pypto-lib/pull/442",
    rotate=unrotated,
)
layer_bug(
    "rotates_half_split_pairs_in_the_indexer",
    "The indexer rotates half-split pairs, and so ranks entries by other scores than trained for.",
    "https://github.com/vllm-project/vllm/pull/28968",
    "https://github.com/sgl-project/sglang/pull/13495",
    "https://github.com/vllm-project/vllm-ascend/pull/4641",
    "https://github.com/vllm-project/vllm-ascend/pull/7859",
    "https://github.com/xLLM-AI/xllm/pull/853",
    "https://github.com/ml-explore/mlx-lm/pull/1431",
    "https://github.com/1bit-MONSTER/1bit-MONSTER/issues/2418",
    indexer=replace(SPEC, rotate=half_split),
)
layer_bug(
    "does_not_rotate_in_the_indexer",
    "Neither index queries nor index keys are rotated.",
    "https://github.com/d9d-project/d9d/pull/38",
    indexer=replace(SPEC, rotate=unrotated),
)
layer_bug(
    "does_not_rotate_index_queries",
    "Index keys are rotated to their positions, index queries are not rotated.",
    selections=lambda call: call.selections(call.context(), replace(SPEC, rotate=unrotated)),
)

# POSITIONS

layer_bug(
    "leaves_the_output_rotated",
    "The output is not rotated back, so that it depends on where the sequence starts.",
    "https://github.com/AMD-AGI/Primus/pull/928",
    "https://github.com/vllm-project/vllm/pull/57451",
    output_position=lambda position: 0,
)
layer_bug(
    "rotates_the_output_forwards",
    "The output is rotated once more instead of back.",
    output_position=lambda position: position,
)
layer_bug(
    "rotates_the_output_back_by_one_position_too_many",
    "The output is rotated back by the number of tokens instead of the position of the last.",
    output_position=lambda position: -position - 1,
)
layer_bug(
    "places_entries_at_their_last_token",
    "An entry is rotated to the position of its block's last token instead of the first.",
    entry_position=last_token,
)
layer_bug(
    "places_entries_in_the_middle_of_their_block",
    "An entry is rotated to the position of its block's middle token instead of the first.",
    entry_position=lambda s, m: s * m + m // 2,
)
layer_bug(
    "places_entries_at_the_previous_block",
    "An entry is rotated to the first token that it pools, which is one of the previous block.",
    entry_position=lambda s, m: (s - 1) * m,
)
layer_bug(
    "places_entries_at_their_number",
    "An entry is rotated by its number among the entries instead of the position of its first token.",
    entry_position=lambda s, m: s,
)
layer_bug(
    "places_index_keys_at_their_last_token",
    "Only the indexer's compressor rotates to the position of a block's last token.",
    indexer=replace(SPEC, entry_position=last_token),
)


def _with_entries_from(call: DocumentCall, start: int) -> Tensor:
    """Rotate entries as if the document began at another position."""
    return call.out_with_entries_of(call.context(document=call.document._replace(start=start)))


layer_bug(
    "places_entries_as_if_the_document_started_at_zero",
    "Entry s is rotated to position s * m, whatever the position of the first token is.",
    kinds=COMPRESSED,
    answer=lambda call: _with_entries_from(call, 0),
)
layer_bug(
    "places_entries_of_all_rows_as_in_the_first_row",
    "The positions of entries are computed once, from the first row of the batch.",
    kinds=COMPRESSED,
    answer=lambda call: _with_entries_from(call, call.documents[0].start),
)
layer_bug(
    "starts_every_document_at_position_zero",
    "The given positions are ignored and counted from 0.",
    kinds=EVERY,
    answer=lambda call: call.out(call.context(document=call.document._replace(start=0))),
    equivalent="Only differences of positions matter: queries, keys and the output's rotation shift alike.",
)
