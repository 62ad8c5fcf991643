"""Layers that rotate by another base, at another position, or other channels."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from csa_spec.bugs.bug import COMPRESSED, CSA, EVERY, Answer, Asked, layer_bug
from csa_spec.spec import SPEC, Geometry, LayerKind, Spec, Yarn
from csa_spec.spec.rope import layer_frequencies, rope_frequencies, rotate

SLIDING = (LayerKind.SLIDING,)


def in_parts(
    *, window: Spec = SPEC, entries: Spec = SPEC, index_keys: Spec = SPEC, queries: Spec = SPEC
) -> Answer:
    """Return a layer whose parts follow rules of their own; frequencies of the queries turn the output back too."""

    def answer(asked: Asked) -> Tensor:
        context = replace(
            asked.context(queries),
            window_keys=asked.context(window).window_keys,
            entries=asked.context(entries).entries,
            index_keys=asked.context(index_keys).index_keys,
        )
        return asked.out(context, queries)

    return answer


def selecting_by(spec: Spec) -> Answer:
    """Return a layer of which only the indexer follows these rules."""
    return lambda asked: asked.out(
        asked.context(), selections=[query.selection for query in asked.trace(spec).queries]
    )


# BASE AND YARN


def _main_theta(geometry: Geometry) -> Tensor:
    return rope_frequencies(geometry.rope_dim, geometry.rope_theta, None)


MAIN = replace(SPEC, layer_frequencies=_main_theta)

layer_bug(
    "rotates_queries_by_one_base_and_entries_by_another",
    "Queries and window use rope_theta while entries use compress_rope_theta, so that their products mean nothing.",
    "https://github.com/huggingface/transformers/issues/45910",
    "https://github.com/ml-explore/mlx-lm/pull/1189",
    "https://github.com/Avarok-Cybersecurity/atlas/pull/276",
    "https://github.com/AI-Hypercomputer/maxtext/pull/4153",
    kinds=COMPRESSED,
    answer=in_parts(window=MAIN, queries=MAIN),
)
uses_one_theta = layer_bug(
    "uses_the_main_base_in_every_layer",
    "Compressed layers use rope_theta without YaRN, because the configuration of their own base is not read.",
    "https://github.com/modelscope/ms-swift/issues/9501",
    "https://github.com/Avarok-Cybersecurity/atlas/pull/276",
    kinds=COMPRESSED,
    layer_frequencies=_main_theta,
)
layer_bug(
    "keeps_yarn_with_the_main_base",
    "Every layer uses rope_theta, and compressed layers use it with YaRN.",
    kinds=COMPRESSED,
    layer_frequencies=lambda geometry: rope_frequencies(
        geometry.rope_dim, geometry.rope_theta, None if geometry.kind is LayerKind.SLIDING else geometry.yarn
    ),
)
layer_bug(
    "takes_ratio_zero_for_a_ratio_of_one",
    "A ratio of 0 is clamped to 1, so that sliding layers use compress_rope_theta like compressed ones.",
    "https://github.com/AMD-AGI/Primus/pull/1148",
    kinds=SLIDING,
    layer_frequencies=lambda geometry: rope_frequencies(
        geometry.rope_dim,
        geometry.compress_rope_theta,
        None if geometry.kind is LayerKind.SLIDING else geometry.yarn,
    ),
)
layer_bug(
    "ignores_yarn_in_compressed_layers",
    "The frequencies of compressed layers are not slowed down.",
    "https://github.com/NVIDIA-NeMo/Automodel/pull/2103",
    kinds=COMPRESSED,
    layer_frequencies=lambda geometry: layer_frequencies(replace(geometry, yarn=None)),
)
layer_bug(
    "leaves_yarn_on_in_sliding_layers",
    "YaRN is part of the table that sliding layers use too.",
    "https://github.com/1CatAI/1Cat-vLLM/pull/251",
    "https://github.com/sgl-project/sglang/pull/34788",
    kinds=SLIDING,
    layer_frequencies=lambda geometry: rope_frequencies(
        geometry.rope_dim,
        geometry.rope_theta if geometry.kind is LayerKind.SLIDING else geometry.compress_rope_theta,
        geometry.yarn,
    ),
)
layer_bug(
    "divides_every_frequency_by_the_factor",
    "YaRN is taken for linear interpolation, which slows the fast pairs down as well.",
    kinds=COMPRESSED,
    layer_frequencies=lambda geometry: (
        layer_frequencies(replace(geometry, yarn=None))
        / (1 if geometry.yarn is None or geometry.kind is LayerKind.SLIDING else geometry.yarn.factor)
    ),
)
layer_bug(
    "wires_in_a_base_of_40000",
    "The base of compressed layers is taken for a quarter of what it is.",
    "https://github.com/AMD-AGI/Primus/pull/928",
    "https://github.com/huggingface/transformers/issues/45910",
    "https://github.com/NVIDIA/Megatron-LM/pull/4458",
    kinds=COMPRESSED,
    layer_frequencies=lambda geometry: layer_frequencies(
        replace(geometry, compress_rope_theta=geometry.compress_rope_theta / 4)
    ),
)


def amplitude(yarn: Yarn) -> float:
    """Return the factor on cos and sin that YaRN has in other models."""
    return 1.0 if yarn.factor <= 1 else 0.1 * math.log(yarn.factor) + 1


def _amplitude_of_layer(geometry: Geometry) -> float:
    return 1.0 if geometry.yarn is None or geometry.kind is LayerKind.SLIDING else amplitude(geometry.yarn)


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
    rules=lambda document, geometry: louder(_amplitude_of_layer(geometry)),
)
layer_bug(
    "wires_in_the_amplitude_of_a_factor_of_16",
    "Every rotation scales the channels that it turns by 0.1 ln(16) + 1, in layers without YaRN too.",
    rotate=louder(0.1 * math.log(16) + 1).rotate,
)
layer_bug(
    "corrects_the_softmax_scale_for_yarn",
    "The softmax scale is multiplied by the square of YaRN's amplitude, as in earlier DeepSeek models.",
    "https://github.com/AMD-AGI/Primus/pull/928",
    "https://github.com/Avarok-Cybersecurity/atlas/pull/342",
    kinds=COMPRESSED,
    softmax_scale=lambda geometry: geometry.scale * _amplitude_of_layer(geometry) ** 2,
)

# CHANNELS


def half_split(vectors: Tensor, position: int, frequencies: Tensor) -> Tensor:
    """Rotate pairs of channels that lie half of the rotated channels apart."""
    width = 2 * len(frequencies)
    a, b = vectors[..., -width:].chunk(2, dim=-1)
    turned = rotate(torch.stack((a, b), dim=-1).flatten(-2), position, frequencies)
    return torch.cat((vectors[..., :-width], turned[..., 0::2], turned[..., 1::2]), dim=-1)


def _leading(vectors: Tensor, position: int, frequencies: Tensor) -> Tensor:
    width = 2 * len(frequencies)
    return torch.cat((rotate(vectors[..., :width], position, frequencies), vectors[..., width:]), dim=-1)


def _unrotated(vectors: Tensor, position: int, frequencies: Tensor) -> Tensor:
    return vectors


layer_bug(
    "pairs_channels_half_a_head_apart",
    "Pairs are taken from the two halves of the rotated channels in place of neighbours.",
    "https://github.com/hw-native-sys/pypto-lib/pull/244",
    "https://github.com/hw-native-sys/pypto-lib/pull/186",
    rotate=half_split,
)
layer_bug(
    "rotates_the_leading_channels",
    "The first channels of a head are rotated in place of the last.",
    rotate=_leading,
)
layer_bug(
    "turns_the_other_way_round",
    "The sine has the wrong sign everywhere, the output's rotation included.",
    rotate=lambda vectors, position, frequencies: rotate(vectors, -position, frequencies),
)
layer_bug(
    "rotates_everything_at_position_zero",
    "The table of cos and sin is always read at position 0, which leaves everything as it is.",
    "https://github.com/hw-native-sys/pypto-lib/pull/442",
    rotate=_unrotated,
)
layer_bug(
    "pairs_index_channels_half_a_head_apart",
    "The indexer rotates pairs of the other layout, so that it ranks entries by other scores than it was trained for.",
    "https://github.com/vllm-project/vllm/pull/28968",
    "https://github.com/sgl-project/sglang/pull/13495",
    "https://github.com/vllm-project/vllm-ascend/pull/4641",
    "https://github.com/vllm-project/vllm-ascend/pull/7859",
    "https://github.com/xLLM-AI/xllm/pull/853",
    "https://github.com/ml-explore/mlx-lm/pull/1431",
    "https://github.com/1bit-MONSTER/1bit-MONSTER/issues/2418",
    kinds=CSA,
    answer=selecting_by(replace(SPEC, rotate=half_split)),
)
layer_bug(
    "does_not_rotate_in_the_indexer",
    "Neither index queries nor index keys are rotated.",
    "https://github.com/d9d-project/d9d/pull/38",
    kinds=CSA,
    answer=selecting_by(replace(SPEC, rotate=_unrotated)),
)


def _unrotated_index_queries(asked: Asked) -> Tensor:
    context, spec = asked.context(), replace(SPEC, rotate=_unrotated)
    selections = [asked.query(t, context, spec).selection for t in range(asked.document.length)]
    return asked.out(context, selections=selections)


layer_bug(
    "does_not_rotate_index_queries",
    "Index keys are rotated where they stand, index queries are not.",
    kinds=CSA,
    answer=_unrotated_index_queries,
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
    "The output is rotated once more in place of back.",
    output_position=lambda position: position,
)
layer_bug(
    "rotates_the_output_back_by_one_token_too_many",
    "The output is rotated back by the number of tokens in place of the position of the last.",
    output_position=lambda position: -position - 1,
)
layer_bug(
    "places_entries_at_their_last_token",
    "An entry is rotated at the last token of its block in place of the first.",
    entry_position=lambda s, m: s * m + m - 1,
)
layer_bug(
    "places_entries_in_the_middle_of_their_block",
    "An entry is rotated at the middle token of its block in place of the first.",
    entry_position=lambda s, m: s * m + m // 2,
)
layer_bug(
    "places_entries_at_the_block_before",
    "An entry is rotated at the first token that it pools, which is one of the block before.",
    entry_position=lambda s, m: (s - 1) * m,
)
layer_bug(
    "places_entries_at_their_number",
    "An entry is rotated at its place among the entries in place of that of its tokens.",
    entry_position=lambda s, m: s,
)
layer_bug(
    "places_index_keys_at_their_last_token",
    "Only the indexer's compressor rotates at the last token of a block.",
    kinds=CSA,
    answer=selecting_by(replace(SPEC, entry_position=lambda s, m: s * m + m - 1)),
)


def _counted_from_zero(asked: Asked) -> Tensor:
    zero = asked.context(document=asked.document._replace(start=0))
    return asked.out(replace(asked.context(), entries=zero.entries, index_keys=zero.index_keys))


layer_bug(
    "places_entries_as_if_the_first_position_were_zero",
    "Entries are rotated at s * m, whatever the position of the first token is.",
    kinds=COMPRESSED,
    answer=_counted_from_zero,
)


def _as_in_the_first_row(asked: Asked) -> Tensor:
    first = asked.context(document=asked.document._replace(start=asked.documents[0].start))
    return asked.out(replace(asked.context(), entries=first.entries, index_keys=first.index_keys))


layer_bug(
    "places_entries_of_all_rows_as_in_the_first_row",
    "The positions of entries are made once, from the first row of the batch.",
    kinds=COMPRESSED,
    answer=_as_in_the_first_row,
)
layer_bug(
    "starts_every_document_at_position_zero",
    "The given positions are ignored and counted from 0.",
    kinds=EVERY,
    answer=lambda asked: asked.out(asked.context(document=asked.document._replace(start=0))),
    equivalent="Only differences of positions matter: queries, keys and the output's rotation shift together.",
)
