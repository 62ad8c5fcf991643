"""Wrong index scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from csa_spec.bugs.bug import bug
from csa_spec.bugs.kernels import hadamard
from csa_spec.candidates.batched import index_scores, wide


@bug(
    "index_scores",
    "https://github.com/huggingface/transformers/pull/44364",
    "https://github.com/huggingface/transformers/pull/44398",
    "https://github.com/1CatAI/1Cat-vLLM/pull/250",
)
def has_no_relu(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """Products as they are."""
    return torch.einsum("bsh,bshd,btd->bst", *(x.to(wide(x)) for x in (head_weights, index_q, index_k))).to(
        index_q.dtype
    )


@bug(
    "index_scores",
    "https://github.com/sgl-project/sglang/issues/33246",
    "https://github.com/sgl-project/sglang/pull/33271",
)
def folds_heads(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """One query of all heads, then ReLU."""
    return has_no_relu(index_q, index_k, head_weights).relu()


@bug("index_scores")
def applies_relu_to_the_terms(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """relu(w q . k): a negative weight times a positive product is lost."""
    terms = torch.einsum("bsh,bshd,btd->bsht", head_weights, index_q, index_k).relu()
    return terms.to(wide(terms)).sum(2).to(index_q.dtype)


@bug("index_scores")
def takes_magnitudes(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """|q . k| in place of ReLU."""
    products = torch.einsum("bshd,btd->bsht", index_q, index_k).abs()
    return torch.einsum("bsh,bsht->bst", head_weights, products)


@bug("index_scores", "https://github.com/ml-explore/mlx-lm/pull/1189")
def squashes_weights(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """Sigmoid of the head weights."""
    return index_scores(index_q, index_k, head_weights.sigmoid())


@bug("index_scores", "https://github.com/ml-explore/mlx-lm/pull/1189")
def takes_the_mean_over_heads(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """Mean in place of sum."""
    return index_scores(index_q, index_k, head_weights / head_weights.shape[-1])


@bug("index_scores")
def scales_by_the_head_dim(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """The constant that the weights hold already."""
    return index_scores(index_q, index_k, head_weights * index_q.shape[-1] ** -0.5)


@bug("index_scores", "https://github.com/hw-native-sys/pypto-lib/pull/910")
def scores_whole_tiles_only(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """Entries after the last whole tile of 4 keep 0."""
    scores = index_scores(index_q, index_k, head_weights)
    done = scores.shape[-1] if scores.shape[-1] < 4 else scores.shape[-1] // 4 * 4
    return scores.masked_fill(torch.arange(scores.shape[-1]) >= done, 0)


@bug(
    "index_scores",
    "https://github.com/hw-native-sys/pypto-lib/issues/592",
    "https://github.com/hw-native-sys/pypto-lib/pull/593",
)
def leaves_minus_infinity(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """Scores past the length of the chunk stay -inf."""
    scores = index_scores(index_q, index_k, head_weights)
    return scores.masked_fill(torch.arange(scores.shape[-1]) >= index_q.shape[1], -math.inf)


@bug("index_scores", "https://github.com/hw-native-sys/pypto-lib/pull/306")
def fails_without_index_keys(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """The largest score of no scores, to scale them by."""
    scores = index_scores(index_q, index_k, head_weights)
    scores.amax(-1)
    return scores


@bug("index_scores")
def takes_weights_of_the_next_query(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """Off by one in the head weights."""
    return index_scores(index_q, index_k, head_weights.roll(-1, 1))


@bug("index_scores", "https://github.com/vllm-project/vllm/pull/41834")
def takes_entries_of_the_next_row(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """The offset of a batch row is added twice."""
    return index_scores(index_q, index_k.roll(-1, 0), head_weights)


@bug("index_scores")
def scores_for_the_last_query(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """One list of scores for all queries."""
    scores = index_scores(index_q, index_k, head_weights)
    return scores[:, -1:].expand_as(scores).contiguous()


@bug("index_scores")
def scores_in_bfloat16(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """Queries and keys are rounded first, without declaring it."""
    return index_scores(index_q.bfloat16(), index_k.bfloat16(), head_weights.bfloat16()).to(index_q.dtype)


@bug("index_scores")
def uses_one_head(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """Head 0 only."""
    return index_scores(index_q[:, :, :1], index_k, head_weights[:, :, :1])


@bug("index_scores", "https://github.com/ROCm/ATOM/issues/1507")
def turns_queries_but_not_keys(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """Queries are turned by a Hadamard matrix, keys are not."""
    return index_scores(hadamard(index_q), index_k, head_weights)


@bug("index_scores")
def takes_a_score_of_zero_for_none(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """A score of exactly 0 is one that no program wrote, and becomes -inf."""
    scores = index_scores(index_q, index_k, head_weights)
    return scores.masked_fill(scores == 0, -math.inf)


@bug("index_scores")
def sums_heads_in_another_order_with_more_rows(
    index_q: Tensor, index_k: Tensor, head_weights: Tensor
) -> Tensor:
    """What a row's scores are rounded to depends on how many rows there are; far within the budget."""
    scores = index_scores(index_q, index_k, head_weights)
    return scores * (1 + torch.finfo(scores.dtype).eps) if len(scores) > 1 else scores


@bug("index_scores")
def saturates_products(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """Products are held in fp8, which ends at 448."""
    products = torch.einsum("bshd,btd->bsht", index_q.to(wide(index_q)), index_k.to(wide(index_q))).clamp(
        0, 448
    )
    return torch.einsum("bsh,bsht->bst", head_weights.to(products), products).to(index_q.dtype)


@bug("index_scores")
def sums_heads_in_bfloat16(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """The terms of the heads are rounded before they are added."""
    products = torch.einsum("bshd,btd->bsht", index_q.to(wide(index_q)), index_k.to(wide(index_q))).relu()
    return (head_weights.to(products)[..., None] * products).bfloat16().sum(2).to(index_q.dtype)


@bug(
    "index_scores",
    "https://github.com/vllm-project/vllm/pull/55459",
    equivalent="an orthogonal matrix on both sides leaves every product as it is, without quantization",
)
def turns_neither_side_or_both(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """Both are turned by a Hadamard matrix, or neither is: the parameter that says so is never read."""
    turned = hadamard(index_q.double()), hadamard(index_k.double())  # rounding is another matter
    return index_scores(*turned, head_weights.double()).to(index_q.dtype)
