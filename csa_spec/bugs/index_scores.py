"""Wrong index scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from csa_spec.bugs.calls import IndexScoresCall, hadamard, index_scores_bug
from csa_spec.candidates.batched import wide


def _without_relu(call: IndexScoresCall) -> Tensor:
    factors = (x.to(wide(x)) for x in (call.head_weights, call.index_q, call.index_k))
    return torch.einsum("bsh,bshd,btd->bst", *factors).to(call.index_q.dtype)


index_scores_bug(
    "has_no_relu",
    "Products of queries and keys are summed over heads without a ReLU.",
    "https://github.com/huggingface/transformers/pull/44364",
    "https://github.com/huggingface/transformers/pull/44398",
    "https://github.com/1CatAI/1Cat-vLLM/pull/250",
    answer=_without_relu,
)
index_scores_bug(
    "folds_heads_into_one_query",
    "The weighted queries of all heads are summed into one query, and the ReLU is applied to its product.",
    "https://github.com/sgl-project/sglang/issues/33246",
    "https://github.com/sgl-project/sglang/pull/33271",
    answer=lambda call: _without_relu(call).relu(),
)


@index_scores_bug.function()
def applies_the_relu_after_the_head_weights(call: IndexScoresCall) -> Tensor:
    """The ReLU is applied to w q . k, so that a negative weight times a positive product is lost."""
    terms = torch.einsum("bsh,bshd,btd->bsht", call.head_weights, call.index_q, call.index_k).relu()
    return terms.to(wide(terms)).sum(2).to(call.index_q.dtype)


@index_scores_bug.function()
def takes_absolute_values_instead_of_a_relu(call: IndexScoresCall) -> Tensor:
    """The products are |q . k| instead of ReLU(q . k)."""
    products = torch.einsum("bshd,btd->bsht", call.index_q, call.index_k).abs()
    return torch.einsum("bsh,bsht->bst", call.head_weights, products)


index_scores_bug(
    "applies_a_sigmoid_to_the_head_weights",
    "Head weights go through a sigmoid, so that none is negative.",
    "https://github.com/ml-explore/mlx-lm/pull/1189",
    head_weights=lambda call: call.head_weights.sigmoid(),
)
index_scores_bug(
    "averages_over_heads",
    "Scores are the mean over heads instead of the sum.",
    "https://github.com/ml-explore/mlx-lm/pull/1189",
    head_weights=lambda call: call.head_weights / call.head_weights.shape[-1],
)
index_scores_bug(
    "scales_scores_by_the_head_dim",
    "Scores are divided by the root of the head dimension, which the head weights contain already.",
    head_weights=lambda call: call.head_weights * call.index_q.shape[-1] ** -0.5,
)


@index_scores_bug.function("https://github.com/hw-native-sys/pypto-lib/pull/910")
def scores_whole_tiles_only(call: IndexScoresCall) -> Tensor:
    """Entries after the last whole tile of 4 keep a score of 0."""
    width = len(call.entries)
    done = width if width < 4 else width // 4 * 4
    return call.right().masked_fill(call.entries >= done, 0)


index_scores_bug(
    "leaves_minus_infinity_in_columns_behind_the_chunk",
    "Scores of entries whose number is at least the number of queries stay -inf.",
    "https://github.com/hw-native-sys/pypto-lib/issues/592",
    "https://github.com/hw-native-sys/pypto-lib/pull/593",
    answer=lambda call: call.right().masked_fill(call.entries >= call.index_q.shape[1], -math.inf),
)


@index_scores_bug.function("https://github.com/hw-native-sys/pypto-lib/pull/306")
def fails_without_index_keys(call: IndexScoresCall) -> Tensor:
    """Scores are scaled by the largest of them, which raises an error where there are none."""
    scores = call.right()
    scores.amax(-1)
    return scores


index_scores_bug(
    "uses_the_head_weights_of_the_next_query",
    "The head weights are off by one query.",
    head_weights=lambda call: call.head_weights.roll(-1, 1),
)
index_scores_bug(
    "uses_the_index_keys_of_the_next_row",
    "The offset of a batch row is added twice.",
    "https://github.com/vllm-project/vllm/pull/41834",
    index_k=lambda call: call.index_k.roll(-1, 0),
)


@index_scores_bug.function()
def gives_every_query_the_scores_of_the_last(call: IndexScoresCall) -> Tensor:
    """The scores of the last query are used for all queries."""
    scores = call.right()
    return scores[:, -1:].expand_as(scores).contiguous()


@index_scores_bug.function()
def scores_in_bfloat16(call: IndexScoresCall) -> Tensor:
    """Queries, keys and weights are rounded to bfloat16 first, and this is not declared."""
    rounded = IndexScoresCall(*(x.bfloat16() for x in (call.index_q, call.index_k, call.head_weights)))
    return rounded.right().to(call.index_q.dtype)


index_scores_bug(
    "uses_only_the_first_head",
    "Only head 0 is scored.",
    index_q=lambda call: call.index_q[:, :, :1],
    head_weights=lambda call: call.head_weights[:, :, :1],
)
index_scores_bug(
    "applies_a_hadamard_matrix_to_queries_but_not_to_keys",
    "Queries are multiplied by a Hadamard matrix, and keys are not.",
    "https://github.com/ROCm/ATOM/issues/1507",
    index_q=lambda call: hadamard(call.index_q),
)


@index_scores_bug.function()
def replaces_scores_of_zero_by_minus_infinity(call: IndexScoresCall) -> Tensor:
    """A score of exactly 0 is taken for one that no kernel wrote, and becomes -inf."""
    scores = call.right()
    return scores.masked_fill(scores == 0, -math.inf)


@index_scores_bug.function()
def sums_heads_in_an_order_that_depends_on_the_batch(call: IndexScoresCall) -> Tensor:
    """The rounding of a row's scores depends on the number of rows, far within the tolerance."""
    scores = call.right()
    return scores * (1 + torch.finfo(scores.dtype).eps) if len(scores) > 1 else scores


@index_scores_bug.function()
def saturates_products_at_448(call: IndexScoresCall) -> Tensor:
    """Products are stored in fp8, whose largest number is 448."""
    products = call.products.clamp(0, 448)
    return torch.einsum("bsh,bsht->bst", call.head_weights.to(products), products).to(call.index_q.dtype)


@index_scores_bug.function()
def sums_heads_in_bfloat16(call: IndexScoresCall) -> Tensor:
    """The terms of the heads are rounded to bfloat16 before they are summed."""
    products = call.products.relu()
    return (call.head_weights.to(products)[..., None] * products).bfloat16().sum(2).to(call.index_q.dtype)


@index_scores_bug.function(
    "https://github.com/vllm-project/vllm/pull/55459",
    equivalent="an orthogonal matrix on both sides leaves every product as it is, without quantization",
)
def applies_a_hadamard_matrix_to_both_sides_or_to_neither(call: IndexScoresCall) -> Tensor:
    """The option for the Hadamard matrix is never read: queries and keys both have it, or neither has."""
    turned = hadamard(call.index_q.double()), hadamard(call.index_k.double())  # rounding is another matter
    return IndexScoresCall(*turned, call.head_weights.double()).right().to(call.index_q.dtype)
