"""Layers whose indexer scores entries wrongly, or whose top-k selects the wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from csa_spec.bugs.bug import CSA, DocumentCall, layer_bug
from csa_spec.bugs.rules import last_of_a_tie, own_block
from csa_spec.spec import SPEC
from csa_spec.spec.indexer import index_score
from csa_spec.spec.selection import select

# SCORES

layer_bug(
    "leaves_the_relu_out_of_the_scores",
    "Products are summed over heads without a ReLU, or heads are folded into one query, which is the same.",
    "https://github.com/huggingface/transformers/pull/44364",
    "https://github.com/huggingface/transformers/pull/44398",
    "https://github.com/1CatAI/1Cat-vLLM/pull/250",
    "https://github.com/sgl-project/sglang/issues/33246",
    "https://github.com/sgl-project/sglang/pull/33271",
    index_score=lambda q, weights, key: (weights * (q @ key)).sum(),
)
layer_bug(
    "applies_the_relu_to_the_sum_over_heads",
    "The ReLU comes after the weighted sum over heads instead of before.",
    index_score=lambda q, weights, key: torch.relu((weights * (q @ key)).sum()),
)
layer_bug(
    "passes_head_weights_through_a_sigmoid",
    "Head weights go through a sigmoid and heads are averaged, so that no head counts against an entry.",
    "https://github.com/ml-explore/mlx-lm/pull/1189",
    index_score=lambda q, weights, key: index_score(q, weights.sigmoid(), key) / len(weights),
)
layer_bug(
    "passes_head_weights_through_a_softmax",
    "Head weights are normalized like the gate of a mixture of experts.",
    index_score=lambda q, weights, key: index_score(q, weights.softmax(0), key),
)
layer_bug(
    "ignores_the_sign_of_head_weights",
    "The absolute value of head weights is used, so that no head counts against an entry.",
    index_score=lambda q, weights, key: index_score(q, weights.abs(), key),
)
layer_bug(
    "scores_by_the_best_index_head",
    "The score is the largest weighted product instead of the sum over heads.",
    index_score=lambda q, weights, key: (weights * torch.relu(q @ key)).amax(),
)
layer_bug(
    "scores_by_the_first_index_head_only",
    "The sum over index heads stops after the first.",
    index_score=lambda q, weights, key: index_score(q[:1], weights[:1], key),
)
layer_bug(
    "normalizes_index_queries",
    "Index queries are normalized per head, as the queries of the attention are.",
    index_score=lambda q, weights, key: index_score(
        q / q.norm(dim=-1, keepdim=True).clamp(min=1e-12), weights, key
    ),
)


def hadamard(vectors: Tensor) -> Tensor:
    """Multiply the leading channels, as many as are a power of two, by an orthonormal Hadamard matrix."""
    matrix = vectors.new_ones(1, 1)
    while 2 * len(matrix) <= vectors.shape[-1]:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1))) / 2**0.5
    width = len(matrix)
    return torch.cat((vectors[..., :width] @ matrix, vectors[..., width:]), -1)


layer_bug(
    "multiplies_index_queries_by_a_hadamard_matrix_but_not_keys",
    "The Hadamard rotation is an option that the fused compressor never reads, so that keys lack it.",
    "https://github.com/ROCm/ATOM/issues/1507",
    index_score=lambda q, weights, key: index_score(hadamard(q), weights, key),
)
layer_bug(
    "multiplies_index_queries_and_keys_by_a_hadamard_matrix",
    "Index queries and index keys are both multiplied by a Hadamard matrix, or neither is.",
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


def _by_keys_read_as(read: Callable[[Tensor], Tensor]) -> Callable[[DocumentCall], list[list[int]]]:
    """Select by index keys that were read wrongly."""

    def selections(call: DocumentCall) -> list[list[int]]:
        context = call.context()
        return call.selections(replace(context, index_keys=read(context.index_keys)))

    return selections


layer_bug(
    "ranks_by_index_keys_in_another_layout",
    "Index keys are written channel by channel and read token by token.",
    "https://github.com/1CatAI/1Cat-vLLM/pull/250",
    "https://github.com/vllm-project/vllm/pull/40991",
    "https://github.com/vllm-project/vllm/issues/52109",
    "https://github.com/HYGON-AI/vllm-plugin-das/pull/89",
    "https://github.com/ROCm/aiter/pull/4028",
    selections=_by_keys_read_as(lambda keys: keys.T.reshape(keys.shape)),
)
layer_bug(
    "rounds_index_keys_to_four_bits",
    "Index keys are stored in fp4 without declaring it, so that close scores change places.",
    selections=_by_keys_read_as(
        lambda keys: (keys / keys.abs().amax(-1, keepdim=True).clamp(min=1e-12) * 3).round() / 3
    ),
)
layer_bug(
    "does_not_overlap_index_blocks",
    "Only the indexer's compressor pools one block instead of two that overlap.",
    indexer=replace(SPEC, pooled_tokens=own_block),
)


def _by_attention(call: DocumentCall) -> list[list[int]]:
    trace = call.trace()
    scores = [(query.q @ trace.context.entries[query.visible].T).sum(0).tolist() for query in trace.queries]
    top_k = call.geometry.top_k
    return [select(query.visible, each, top_k) for query, each in zip(trace.queries, scores, strict=True)]


layer_bug(
    "ranks_entries_by_the_logits_of_the_attention",
    "The indexer's own keys are not used: entries are ranked by the products of the attention.",
    selections=_by_attention,
)

# TOP-K

selects_everything = layer_bug(
    "selects_everything",
    "A placeholder that selects every visible entry stands in for the top-k.",
    "https://github.com/hw-native-sys/pypto-lib/pull/593",
    "https://github.com/ml-explore/mlx-lm/pull/1201",
    select=lambda visible, scores, top_k: list(visible),
)
selects_the_lowest = layer_bug(
    "selects_the_lowest_scores",
    "The sort is ascending instead of descending.",
    select=lambda visible, scores, top_k: select(visible, [-score for score in scores], top_k),
)
selects_the_oldest = layer_bug(
    "selects_the_oldest_entries",
    "The branch for short contexts, which takes entries in order, is taken for long ones too.",
    "https://github.com/local-inference-lab/vllm/pull/429",
    select=lambda visible, scores, top_k: list(visible)[:top_k],
)
layer_bug(
    "selects_the_newest_entries",
    "A window over entries stands in for the top-k.",
    select=lambda visible, scores, top_k: list(visible)[max(0, len(visible) - top_k) :],
)
layer_bug(
    "selects_one_entry_fewer",
    "The top-k selects k - 1 entries.",
    select=lambda visible, scores, top_k: select(visible, scores, max(0, top_k - 1)),
)
layer_bug(
    "selects_one_entry_more",
    "The top-k selects k + 1 entries.",
    select=lambda visible, scores, top_k: select(visible, scores, top_k + 1),
)
layer_bug(
    "never_selects_all_visible_entries",
    "The top-k is clamped to one less than there are entries, so that the lowest score is never selected.",
    select=lambda visible, scores, top_k: select(visible, scores, min(top_k, max(0, len(visible) - 1))),
)
layer_bug(
    "reads_a_top_k_of_zero_as_unset",
    "`top_k or len(visible)` selects everything where top_k is 0.",
    select=lambda visible, scores, top_k: select(visible, scores, top_k or len(visible)),
)
layer_bug(
    "selects_positive_scores_only",
    "A score of 0 or less is taken to mean a masked entry.",
    select=lambda visible, scores, top_k: [
        entry for entry in select(visible, scores, top_k) if scores[visible.index(entry)] > 0
    ],
)


layer_bug(
    "selects_the_last_of_a_tie",
    "Among equal scores the highest entry comes first.",
    equivalent="The sources leave ties open, so that any choice among equal scores is right.",
    select=last_of_a_tie,
)


def _above_the_threshold(visible: Sequence[int], scores: Sequence[float], top_k: int) -> list[int]:
    ranked = sorted(scores, reverse=True)
    if not 0 < top_k < len(ranked):
        return select(visible, scores, top_k)
    return [entry for entry, score in zip(visible, scores, strict=True) if score > ranked[top_k]]


layer_bug(
    "drops_entries_that_tie_at_the_threshold",
    "More scores equal the threshold than there are places left, and none of them is selected.",
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
    "Only the high bits of scores are compared, in the first pass of a radix select that has no second one.",
    "https://github.com/sgl-project/sglang/issues/36807",
    "https://github.com/vllm-project/vllm/pull/52149",
    "https://github.com/yhfgyyf/vllm-deepseek-v4-sm89/pull/97",
    select=lambda visible, scores, top_k: select(
        visible, torch.tensor(scores, dtype=torch.float64).bfloat16().tolist(), top_k
    ),
)
layer_bug(
    "reads_entry_0_for_the_first_selected_entry",
    "The first selected entry is taken to be entry 0, as it is in tests that list entries in order.",
    "https://github.com/hw-native-sys/pypto-lib/pull/158",
    select=lambda visible, scores, top_k: (
        [0, *select(visible, scores, top_k)[1:]] if visible and top_k else []
    ),
)


def _as_the_last_query(call: DocumentCall) -> list[list[int]]:
    trace, m = call.trace(), call.geometry.compress_ratio
    picks = trace.queries[-1].selection
    return [[entry for entry in picks if entry < (query.t + 1) // m] for query in trace.queries]


layer_bug(
    "selects_once_for_all_queries",
    "The selection of the last query is used for all queries, as far as they may see its entries.",
    "https://github.com/ml-explore/mlx-lm/pull/1189",
    selections=_as_the_last_query,
)


def _lists(make: Callable[[list[int], int, int], list[int]]) -> Callable[[DocumentCall], Tensor]:
    """Return a layer that lists ``make(picks, visible, places)`` instead of the picks of each query."""

    def answer(call: DocumentCall) -> Tensor:
        trace, places = call.trace(), min(call.geometry.top_k, call.count)
        selections = [make(query.selection, len(query.visible), places) for query in trace.queries]
        return call.out(trace.context, selections=selections if trace.context.index_keys.numel() else None)

    return answer


layer_bug(
    "drops_entry_0_where_the_list_has_a_minus_one",
    "An empty slot, -1, is clamped to 0 before a scatter, which switches entry 0 off.",
    "https://github.com/NVIDIA-NeMo/Automodel/issues/2144",
    "https://github.com/NVIDIA-NeMo/Automodel/pull/2152",
    kinds=CSA,
    answer=_lists(lambda picks, visible, places: [e for e in picks if e or len(picks) == places]),
)
layer_bug(
    "reads_minus_one_as_entry_0",
    "An empty slot, -1, is clamped to 0 and gathered like any other.",
    "https://github.com/hw-native-sys/pypto-lib/pull/615",
    kinds=CSA,
    answer=_lists(lambda picks, visible, places: picks + [0] * (places - len(picks))),
)
layer_bug(
    "fills_empty_slots_with_hidden_entries",
    "The top-k over scores of -inf goes on with hidden entries, which are not replaced by -1.",
    "https://github.com/flashinfer-ai/flashinfer/pull/4123",
    "https://github.com/vllm-project/vllm-ascend/pull/16584",
    kinds=CSA,
    answer=_lists(
        lambda picks, visible, places: picks + list(range(visible, visible + places - len(picks)))
    ),
)


@layer_bug.function(
    "https://github.com/sgl-project/sglang/pull/35429",
    "https://github.com/vllm-project/vllm/pull/33568",
    "https://github.com/NVIDIA/TensorRT-LLM/pull/16789",
    "https://github.com/vllm-project/vllm/pull/50008",
    "https://github.com/NVIDIA/Megatron-LM/pull/5011",
    kinds=CSA,
)
def scores_unused_columns_as_zero(call: DocumentCall) -> Tensor:
    """Columns behind the visible entries hold 0 instead of -inf, which beats every negative score."""

    def chosen(visible: Sequence[int], scores: Sequence[float], top_k: int) -> list[int]:
        unused = list(range(len(visible), call.count))
        picks = select([*visible, *unused], [*scores, *[0.0] * len(unused)], top_k)
        return [entry for entry in picks if entry < len(visible)]  # what they win is dropped later

    return call.follow(select=chosen)
