"""Layers whose indexer scores entries wrongly, or whose top-k picks the wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from csa_spec.bugs.bug import CSA, Asked, layer_bug
from csa_spec.bugs.layer_rotary import selecting_by
from csa_spec.spec import SPEC, Document, Geometry, Spec
from csa_spec.spec.indexer import index_score
from csa_spec.spec.selection import select

# SCORES

layer_bug(
    "leaves_the_relu_out_of_the_scores",
    "Products of heads are added up with their signs, or heads are folded into one query, which is right without ReLU.",
    "https://github.com/huggingface/transformers/pull/44364",
    "https://github.com/huggingface/transformers/pull/44398",
    "https://github.com/1CatAI/1Cat-vLLM/pull/250",
    "https://github.com/sgl-project/sglang/issues/33246",
    "https://github.com/sgl-project/sglang/pull/33271",
    index_score=lambda q, weights, key: (weights * (q @ key)).sum(),
)
layer_bug(
    "applies_the_relu_to_the_sum_of_heads",
    "The ReLU comes after the weighted sum over heads in place of before.",
    index_score=lambda q, weights, key: torch.relu((weights * (q @ key)).sum()),
)
layer_bug(
    "passes_head_weights_through_a_sigmoid",
    "Head weights are squashed to between 0 and 1 and heads averaged, so that none counts against an entry.",
    "https://github.com/ml-explore/mlx-lm/pull/1189",
    index_score=lambda q, weights, key: index_score(q, weights.sigmoid(), key) / len(weights),
)
layer_bug(
    "passes_head_weights_through_a_softmax",
    "Head weights are normalised as the gate of experts is.",
    index_score=lambda q, weights, key: index_score(q, weights.softmax(0), key),
)
layer_bug(
    "ignores_the_sign_of_head_weights",
    "Head weights count by their size, so that none counts against an entry.",
    index_score=lambda q, weights, key: index_score(q, weights.abs(), key),
)
layer_bug(
    "scores_by_the_best_index_head",
    "The largest weighted product takes the place of the sum over heads.",
    index_score=lambda q, weights, key: (weights * torch.relu(q @ key)).amax(),
)
layer_bug(
    "scores_by_the_first_index_head_only",
    "The sum over index heads stops after the first.",
    index_score=lambda q, weights, key: index_score(q[:1], weights[:1], key),
)
layer_bug(
    "normalises_index_queries",
    "Index queries have a norm per head, as the queries of the attention have.",
    index_score=lambda q, weights, key: index_score(
        q / q.norm(dim=-1, keepdim=True).clamp(min=1e-12), weights, key
    ),
)


def hadamard(vectors: Tensor) -> Tensor:
    """Mix the leading channels, as many as are a power of two, by an orthonormal Hadamard matrix."""
    matrix = vectors.new_ones(1, 1)
    while 2 * len(matrix) <= vectors.shape[-1]:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1))) / 2**0.5
    width = len(matrix)
    return torch.cat((vectors[..., :width] @ matrix, vectors[..., width:]), -1)


layer_bug(
    "mixes_index_queries_by_a_hadamard_matrix_but_not_keys",
    "The Hadamard rotation is stored as an option that the fused compressor never reads, so that keys lack it.",
    "https://github.com/ROCm/ATOM/issues/1507",
    index_score=lambda q, weights, key: index_score(hadamard(q), weights, key),
)
layer_bug(
    "mixes_both_sides_of_the_scores_by_a_hadamard_matrix",
    "Index queries and index keys are both mixed by a Hadamard matrix, or both are not.",
    "https://github.com/vllm-project/vllm/pull/55459",
    equivalent="The matrix is orthonormal, so without quantisation all products stay as they are.",
    index_score=lambda q, weights, key: index_score(hadamard(q), weights, hadamard(key)),
)
layer_bug(
    "scales_the_index_scores",
    "The constant scale of the scores is forgotten, or applied twice.",
    equivalent="A positive constant changes no order, and nothing but the order of scores matters.",
    index_score=lambda q, weights, key: 3 * index_score(q, weights, key),
)


def _misread(asked: Asked, read: Callable[[Tensor], Tensor]) -> Tensor:
    """Select by index keys that were read wrongly."""
    context = asked.context()
    misread = replace(context, index_keys=read(context.index_keys))
    selections = [asked.query(t, misread).selection for t in range(asked.document.length)]
    return asked.out(context, selections=selections)


layer_bug(
    "ranks_by_index_keys_of_another_layout",
    "The key cache is written channel by channel and read token by token, so that only its first elements are right.",
    "https://github.com/1CatAI/1Cat-vLLM/pull/250",
    "https://github.com/vllm-project/vllm/pull/40991",
    "https://github.com/vllm-project/vllm/issues/52109",
    "https://github.com/HYGON-AI/vllm-plugin-das/pull/89",
    "https://github.com/ROCm/aiter/pull/4028",
    kinds=CSA,
    answer=lambda asked: _misread(asked, lambda keys: keys.T.reshape(keys.shape)),
)
layer_bug(
    "rounds_index_keys_to_four_bits",
    "Index keys are stored in fp4 without it being declared, so that close scores change places.",
    kinds=CSA,
    answer=lambda asked: _misread(
        asked, lambda keys: (keys / keys.abs().amax(-1, keepdim=True).clamp(min=1e-12) * 3).round() / 3
    ),
)
layer_bug(
    "does_not_overlap_index_blocks",
    "Only the indexer's compressor pools one block where two overlap.",
    kinds=CSA,
    answer=selecting_by(replace(SPEC, pooled_tokens=lambda s, m, overlap: SPEC.pooled_tokens(s, m, False))),
)
layer_bug(
    "ranks_entries_by_the_products_of_the_attention",
    "The indexer's own keys are not used; entries are ranked by how much the attention likes them.",
    kinds=CSA,
    answer=lambda asked: asked.out(
        asked.context(),
        selections=[
            select(
                query.visible,
                (query.q @ trace.context.entries[query.visible].T).sum(0).tolist(),
                asked.geometry.top_k,
            )
            for trace in [asked.trace()]
            for query in trace.queries
        ],
    ),
)

# TOP-K

selects_everything = layer_bug(
    "selects_everything",
    "A placeholder that takes every visible entry stands in place of the top-k.",
    "https://github.com/hw-native-sys/pypto-lib/pull/593",
    "https://github.com/ml-explore/mlx-lm/pull/1201",
    select=lambda visible, scores, top_k: list(visible),
)
selects_the_lowest = layer_bug(
    "selects_the_lowest_scores",
    "The order of the sort is turned round.",
    select=lambda visible, scores, top_k: select(visible, [-score for score in scores], top_k),
)
selects_the_oldest = layer_bug(
    "selects_the_oldest_entries",
    "The branch for short contexts, which takes entries in their order, is taken for long ones too.",
    "https://github.com/local-inference-lab/vllm/pull/429",
    select=lambda visible, scores, top_k: list(visible)[:top_k],
)
layer_bug(
    "selects_the_newest_entries",
    "A window over entries stands in place of the top-k.",
    select=lambda visible, scores, top_k: list(visible)[max(0, len(visible) - top_k) :],
)
layer_bug(
    "selects_one_entry_fewer",
    "The top-k stops one short.",
    select=lambda visible, scores, top_k: select(visible, scores, max(0, top_k - 1)),
)
layer_bug(
    "selects_one_entry_more",
    "The top-k goes on for one more.",
    select=lambda visible, scores, top_k: select(visible, scores, top_k + 1),
)
layer_bug(
    "never_selects_all_that_is_visible",
    "The top-k is clamped to one less than there are entries, so that the lowest score is never selected.",
    select=lambda visible, scores, top_k: select(visible, scores, min(top_k, max(0, len(visible) - 1))),
)
layer_bug(
    "takes_a_top_k_of_zero_for_none_given",
    "`top_k or len(visible)` selects everything where top_k is 0.",
    select=lambda visible, scores, top_k: select(visible, scores, top_k or len(visible)),
)
layer_bug(
    "selects_positive_scores_only",
    "A score of 0 or less is taken for a masked one.",
    select=lambda visible, scores, top_k: [
        entry for entry in select(visible, scores, top_k) if scores[visible.index(entry)] > 0
    ],
)


def _last_of_a_tie(visible: Sequence[int], scores: Sequence[float], top_k: int) -> list[int]:
    ranked = sorted(zip(scores, visible, strict=True), reverse=True)
    return [entry for _, entry in ranked[:top_k]]


layer_bug(
    "selects_the_last_of_a_tie",
    "Among equal scores the highest entry comes first.",
    equivalent="The sources leave ties open, so that any choice among equal scores is right.",
    select=_last_of_a_tie,
)


def _above_the_threshold(visible: Sequence[int], scores: Sequence[float], top_k: int) -> list[int]:
    ranked = sorted(scores, reverse=True)
    if not 0 < top_k < len(ranked):
        return select(visible, scores, top_k)
    return [entry for entry, score in zip(visible, scores, strict=True) if score > ranked[top_k]]


layer_bug(
    "drops_entries_that_tie_at_the_threshold",
    "More scores equal the threshold than there is room for, and none of them is selected.",
    "https://github.com/sgl-project/sglang/pull/30645",
    select=_above_the_threshold,
)
layer_bug(
    "selects_every_entry_that_reaches_the_threshold",
    "Entries are compared with the k-th score, so that ties give more than k.",
    select=lambda visible, scores, top_k: [
        entry
        for entry, score in zip(visible, scores, strict=True)
        if top_k and score >= sorted(scores, reverse=True)[min(top_k, len(scores)) - 1]
    ],
)
layer_bug(
    "compares_scores_by_their_high_bits",
    "The first pass of a radix select decides by the high bits alone, so that of close scores the wrong one is taken.",
    "https://github.com/sgl-project/sglang/issues/36807",
    "https://github.com/vllm-project/vllm/pull/52149",
    "https://github.com/yhfgyyf/vllm-deepseek-v4-sm89/pull/97",
    select=lambda visible, scores, top_k: select(
        visible, torch.tensor(scores, dtype=torch.float64).bfloat16().tolist(), top_k
    ),
)
layer_bug(
    "takes_the_first_pick_for_entry_zero",
    "The first pick is not read but taken for entry 0, as it is wherever a test lists entries in their order.",
    "https://github.com/hw-native-sys/pypto-lib/pull/158",
    select=lambda visible, scores, top_k: (
        [0, *select(visible, scores, top_k)[1:]] if visible and top_k else []
    ),
)


def _by_the_last(asked: Asked) -> Tensor:
    trace, m = asked.trace(), asked.geometry.compress_ratio
    picks = trace.queries[-1].selection
    selections = [[entry for entry in picks if entry < (query.t + 1) // m] for query in trace.queries]
    return asked.out(trace.context, selections=selections)


layer_bug(
    "selects_once_for_all_queries",
    "The picks of the last query hold for all, as far as these may see them.",
    "https://github.com/ml-explore/mlx-lm/pull/1189",
    kinds=CSA,
    answer=_by_the_last,
)


def _lists(make: Callable[[list[int], int, int, int], list[int]]) -> Callable[[Asked], Tensor]:
    """Return a layer that lists ``make(picks, visible, T, k)`` in place of the picks of each query."""

    def answer(asked: Asked) -> Tensor:
        trace, count = asked.trace(), asked.count
        most = min(asked.geometry.top_k, count)
        selections = [make(query.selection, len(query.visible), count, most) for query in trace.queries]
        return asked.out(trace.context, selections=selections if trace.context.index_keys.numel() else None)

    return answer


layer_bug(
    "lets_missing_picks_overwrite_entry_zero",
    "A missing pick, -1, is clamped to 0 before a scatter, so that it switches entry 0 off again.",
    "https://github.com/NVIDIA-NeMo/Automodel/issues/2144",
    "https://github.com/NVIDIA-NeMo/Automodel/pull/2152",
    kinds=CSA,
    answer=_lists(lambda picks, visible, count, most: [e for e in picks if e or len(picks) == most]),
)
layer_bug(
    "reads_entry_zero_for_missing_picks",
    "A missing pick, -1, is clamped to 0 and gathered like any other.",
    "https://github.com/hw-native-sys/pypto-lib/pull/615",
    kinds=CSA,
    answer=_lists(lambda picks, visible, count, most: picks + [0] * (most - len(picks))),
)
layer_bug(
    "fills_missing_picks_with_hidden_entries",
    "The top-k over scores of -inf goes on with entries that are masked, and nobody replaces them by -1.",
    "https://github.com/flashinfer-ai/flashinfer/pull/4123",
    "https://github.com/vllm-project/vllm-ascend/pull/16584",
    kinds=CSA,
    answer=_lists(
        lambda picks, visible, count, most: picks + list(range(visible, visible + most - len(picks)))
    ),
)


def _with_blank_columns(document: Document, geometry: Geometry) -> Spec:
    """Let columns of scores behind the visible ones hold 0 in place of -inf; what they win is dropped later."""

    def chosen(visible: Sequence[int], scores: Sequence[float], top_k: int) -> list[int]:
        blank = list(range(len(visible), geometry.entry_count(document.length)))
        picks = select([*visible, *blank], [*scores, *[0.0] * len(blank)], top_k)
        return [entry for entry in picks if entry < len(visible)]

    return replace(SPEC, select=chosen)


layer_bug(
    "lets_blank_columns_of_scores_compete",
    "Columns behind the visible entries hold 0 in place of -inf, which beats every negative score.",
    "https://github.com/sgl-project/sglang/pull/35429",
    "https://github.com/vllm-project/vllm/pull/33568",
    "https://github.com/NVIDIA/TensorRT-LLM/pull/16789",
    "https://github.com/vllm-project/vllm/pull/50008",
    "https://github.com/NVIDIA/Megatron-LM/pull/5011",
    kinds=CSA,
    rules=_with_blank_columns,
)
