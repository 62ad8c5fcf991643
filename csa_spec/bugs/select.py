"""Wrong selections."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from csa_spec.bugs.bug import bug
from csa_spec.candidates.batched import select


def _hidden(scores: Tensor, positions: Tensor, compress_ratio: int) -> Tensor:
    return _hidden_from(scores, (positions + 1) // compress_ratio)


def _listed(picks: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Return the first ``top_k`` of ranked entries, -1 for those that are hidden."""
    first = picks[..., :top_k]
    return torch.where(first >= ((positions + 1) // compress_ratio)[..., None], -1, first)


def _highest_first(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Select, the highest of equal entries first."""
    hidden = _hidden(scores, positions, compress_ratio)
    lowest = torch.finfo(scores.dtype).min
    ranked = scores.nan_to_num(lowest, neginf=lowest).masked_fill(hidden, -math.inf).flip(-1)
    picks = scores.shape[-1] - 1 - ranked.sort(dim=-1, descending=True, stable=True).indices
    return _listed(picks, positions, compress_ratio, top_k)


def _best(scores: Tensor, hidden: Tensor, top_k: int) -> Tensor:
    """Return the best entries of those that are not hidden, -1 for none."""
    ranked = scores.double().nan_to_num(-1e300, 1e300, -1e300).masked_fill(hidden, -math.inf)
    best, picks = ranked.topk(min(top_k, scores.shape[-1]), dim=-1)
    return torch.where(best == -math.inf, -1, picks)


def _hidden_from(scores: Tensor, visible: Tensor) -> Tensor:
    return torch.arange(scores.shape[-1]) >= visible[..., None]


@bug(
    "select",
    "https://github.com/vllm-project/tpu-inference/issues/3536",
    "https://github.com/sgl-project/sglang-jax/pull/1607",
)
def sees_the_unfinished_block(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """S <= p // m."""
    return _best(scores, _hidden_from(scores, positions // compress_ratio + 1), top_k)


@bug("select")
def hides_a_block_from_its_last_token(
    scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int
) -> Tensor:
    """S < p // m: the paper's formula, which counts from 1, read from 0."""
    return _best(scores, _hidden_from(scores, positions // compress_ratio), top_k)


@bug("select", "https://github.com/huggingface/transformers/issues/45820")
def sees_everything(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """No mask at all."""
    return _best(scores, torch.zeros_like(scores, dtype=torch.bool), top_k)


@bug("select")
def masks_after_the_top_k(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Hidden entries are dropped from the list, and their places are lost."""
    picks = _best(scores, torch.zeros_like(scores, dtype=torch.bool), top_k)
    return torch.where(picks >= ((positions + 1) // compress_ratio)[..., None], -1, picks)


@bug("select")
def leaves_hidden_picks_in_the_list(
    scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int
) -> Tensor:
    """Indices of -inf are not replaced by -1."""
    ranked = scores.nan_to_num(0.0).masked_fill(_hidden(scores, positions, compress_ratio), -math.inf)
    return ranked.topk(min(top_k, scores.shape[-1]), dim=-1).indices


@bug("select")
def fills_up_with_the_best(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Where fewer entries than k are visible, the best one is repeated."""
    picks = select(scores, positions, compress_ratio, top_k)
    return torch.where(picks < 0, picks[..., :1], picks)


@bug("select")
def finds_equal_scores_at_the_same_place(
    scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int
) -> Tensor:
    """Looks each of the k best values up: equal ones are all found at the first of them."""
    picks = select(scores, positions, compress_ratio, top_k)
    values = scores.gather(-1, picks.clamp(min=0)) if picks.numel() else scores[..., :0]
    rows = values[..., None] == scores[..., None, :]
    first = rows.int().argmax(-1) if rows.numel() else picks
    return torch.where((picks < 0) | values.isnan(), picks, first)


@bug(
    "select",
    "https://github.com/hw-native-sys/pypto-lib/pull/593",
    "https://github.com/ml-explore/mlx-lm/pull/1201",
)
def takes_everything_visible(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """No top-k."""
    return _best(scores, _hidden(scores, positions, compress_ratio), scores.shape[-1])


@bug("select")
def takes_one_too_few(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Off by one in k."""
    return select(scores, positions, compress_ratio, max(0, top_k - 1))


@bug("select")
def takes_every_tie(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Everything at or above the k-th score."""
    hidden = _hidden(scores, positions, compress_ratio)
    ranked = scores.double().nan_to_num(-1e300, 1e300, -1e300).masked_fill(hidden, -math.inf)
    if not 0 < top_k < scores.shape[-1]:
        return select(scores, positions, compress_ratio, top_k)
    kth = ranked.topk(top_k, dim=-1).values[..., -1:]
    return torch.where((ranked >= kth) & ~hidden, torch.arange(scores.shape[-1]), -1)


@bug("select", "https://github.com/sgl-project/sglang/pull/30645")
def drops_ties(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Many ties at the k-th score emit -1 among required slots."""
    picks = select(scores, positions, compress_ratio, top_k)
    values = scores.gather(-1, picks.clamp(min=0)) if picks.numel() else scores[..., :0]
    tied = (values == values[..., -1:]) & (values == values[..., :1].roll(0)).logical_not()
    crowded = tied.sum(-1, keepdim=True) > 1
    return torch.where(tied & crowded, -1, picks)


@bug("select")
def ranks_by_the_high_bits(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """One pass of a radix selection: sign and exponent, and no second pass."""
    mantissa, exponent = torch.frexp(scores)
    coarse = torch.ldexp(torch.where(mantissa == 0, 0.0, mantissa.sign() / 2), exponent)
    return select(
        torch.where(scores.isfinite(), coarse.to(scores.dtype), scores), positions, compress_ratio, top_k
    )


@bug("select")
def ranks_in_bfloat16(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Scores are rounded before they are compared, without declaring it."""
    return select(scores.bfloat16(), positions, compress_ratio, top_k)


@bug(
    "select",
    "https://github.com/sgl-project/sglang/issues/36807",
    "https://github.com/vllm-project/vllm/pull/52149",
    "https://github.com/yhfgyyf/vllm-deepseek-v4-sm89/pull/97",
)
def buffers_4096_candidates(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Candidates that share the high bits of the k-th are cut at 4096."""
    coarse = scores.bfloat16().double().masked_fill(_hidden(scores, positions, compress_ratio), -math.inf)
    if top_k >= scores.shape[-1] or top_k == 0:
        return select(scores, positions, compress_ratio, top_k)
    bucket = coarse == coarse.nan_to_num().topk(top_k, dim=-1).values[..., -1:]
    lost = bucket & (bucket.cumsum(-1) > 4096)
    return select(scores.masked_fill(lost, -math.inf), positions, compress_ratio, top_k)


@bug("select", "https://github.com/vllm-project/vllm/issues/49896")
def writes_nan_nowhere(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Ranks by counting; NaN leaves slots unwritten."""
    visible = ((positions + 1) // compress_ratio)[..., None]
    picks = select(scores, positions, compress_ratio, top_k)
    values = scores.gather(-1, picks.clamp(min=0)) if picks.numel() else scores[..., :0]
    return torch.where(values.isnan() & (picks >= 0) & (visible > 0), 2**31 - 1, picks)


@bug(
    "select",
    "https://github.com/sgl-project/sglang/pull/35429",
    "https://github.com/vllm-project/vllm/pull/33568",
    "https://github.com/NVIDIA/TensorRT-LLM/pull/16789",
    "https://github.com/vllm-project/vllm/pull/50008",
)
def pads_with_zeros(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Hidden scores become 0, which beats a negative one."""
    hidden = _hidden(scores, positions, compress_ratio)
    picks = scores.nan_to_num().masked_fill(hidden, 0).topk(min(top_k, scores.shape[-1]), dim=-1).indices
    return torch.where(picks >= ((positions + 1) // compress_ratio)[..., None], -1, picks)


@bug("select", "https://github.com/ml-explore/mlx-lm/pull/1189")
def selects_for_the_last_query(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """One selection for all queries."""
    picks = select(scores, positions, compress_ratio, top_k)
    return picks[:, -1:].expand_as(picks).contiguous()


@bug("select")
def selects_by_the_first_query(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Scores of query 0 decide for all; each still has its own mask."""
    return select(scores[:, :1].expand_as(scores), positions, compress_ratio, top_k)


@bug("select")
def assumes_positions_from_zero(
    scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int
) -> Tensor:
    """Right for a prefill, and for nothing after it."""
    return select(scores, torch.arange(scores.shape[1]).expand_as(positions), compress_ratio, top_k)


@bug("select")
def has_one_position_for_a_call(
    scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int
) -> Tensor:
    """All queries of a call see what its first one sees."""
    return select(scores, positions[:, :1].expand_as(positions), compress_ratio, top_k)


@bug("select")
def takes_positions_of_the_first_row(
    scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int
) -> Tensor:
    """Positions are broadcast from row 0."""
    return select(scores, positions[:1].expand_as(positions), compress_ratio, top_k)


@bug("select")
def takes_the_worst(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Ascending order."""
    return select(-scores, positions, compress_ratio, top_k)


@bug("select")
def takes_positive_scores_only(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """A score of 0 or less is taken for none."""
    picks = select(scores, positions, compress_ratio, top_k)
    values = scores.gather(-1, picks.clamp(min=0)) if picks.numel() else scores[..., :0]
    return torch.where(values <= 0, -1, picks)


@bug("select")
def takes_entries_that_score_zero_for_none(
    scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int
) -> Tensor:
    """A score of exactly 0 is one that no kernel wrote."""
    picks = select(scores, positions, compress_ratio, top_k)
    values = scores.gather(-1, picks.clamp(min=0)) if picks.numel() else scores[..., :0]
    return torch.where(values == 0, -1, picks)


@bug(
    "select",
    "https://github.com/hw-native-sys/pypto-lib/pull/234",
    "https://github.com/hw-native-sys/pypto-lib/pull/328",
)
def takes_entry_zero_where_it_sees_nothing(
    scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int
) -> Tensor:
    """The best of scores that are all -inf is the first."""
    picks = select(scores, positions, compress_ratio, top_k)
    nothing = (positions + 1 < compress_ratio)[..., None] & (torch.arange(picks.shape[-1]) == 0)
    return torch.where(nothing, 0, picks)


@bug("select")
def takes_a_top_k_of_zero_for_all(
    scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int
) -> Tensor:
    """``top_k or T`` is T where k is 0."""
    return select(scores, positions, compress_ratio, top_k or scores.shape[-1])


@bug("select")
def points_behind_the_entries(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """None is T, the column that a mask has for it, in place of -1."""
    picks = select(scores, positions, compress_ratio, top_k)
    return torch.where(picks < 0, scores.shape[-1], picks)


@bug("select", "https://github.com/ml-explore/mlx-lm/pull/1189")
def masks_the_pool_off(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Entries are masked out for every query."""
    return torch.full_like(select(scores, positions, compress_ratio, top_k), -1)


@bug("select", "https://github.com/AI-Hypercomputer/maxtext/pull/4488")
def inverts_the_mask(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """What is hidden is selected, what is visible is not: a mask of 0 and -inf is read as one of true and false."""
    return _best(scores, ~_hidden(scores, positions, compress_ratio), top_k)


@bug("select")
def masks_by_adding_minus_infinity(
    scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int
) -> Tensor:
    """The mask is added: infinity, or NaN, in memory that no kernel wrote becomes NaN, which ranks first."""
    mask = torch.zeros(scores.shape).masked_fill(_hidden(scores, positions, compress_ratio), -math.inf)
    return _listed(
        (scores + mask).sort(dim=-1, descending=True, stable=True).indices, positions, compress_ratio, top_k
    )


@bug("select")
def masks_with_a_minimum(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """The mask is min(score, -inf), which is NaN where the score is."""
    mask = torch.full(scores.shape, math.inf, dtype=scores.dtype)
    mask = mask.masked_fill(_hidden(scores, positions, compress_ratio), -math.inf)
    ranked = torch.minimum(scores, mask).sort(dim=-1, descending=True, stable=True).indices
    return _listed(ranked, positions, compress_ratio, top_k)


@bug("select")
def masks_with_a_finite_penalty(
    scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int
) -> Tensor:
    """1e30 is subtracted from hidden scores: infinity in memory that no kernel wrote stays infinity."""
    hidden = _hidden(scores, positions, compress_ratio)
    ranked = scores.float().nan_to_num(-1e29, math.inf, -1e29) - 1e30 * hidden
    picks = ranked.sort(dim=-1, descending=True, stable=True).indices
    return _listed(picks, positions, compress_ratio, top_k)


@bug(
    "select",
    "https://github.com/flashinfer-ai/flashinfer/pull/4123",
    "https://github.com/vllm-project/vllm-ascend/pull/16584",
)
def takes_minus_infinity_for_none(
    scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int
) -> Tensor:
    """A visible entry that scores -inf is not told from a hidden one."""
    picks = select(scores, positions, compress_ratio, top_k)
    values = scores.gather(-1, picks.clamp(min=0)) if picks.numel() else scores[..., :0]
    return torch.where(values == -math.inf, -1, picks)


@bug("select")
def scales_scores_to_the_unit_interval(
    scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int
) -> Tensor:
    """Picks are those at or above the k-th scaled score: equal scores are 0 / 0, which is above nothing."""
    picks = select(scores, positions, compress_ratio, top_k)
    if not picks.numel():
        return picks
    seen = ~_hidden(scores, positions, compress_ratio) & scores.isfinite()
    low = scores.masked_fill(~seen, math.inf).amin(-1, keepdim=True)
    high = scores.masked_fill(~seen, -math.inf).amax(-1, keepdim=True)
    scaled = ((scores - low) / (high - low)).gather(-1, picks.clamp(min=0))
    everything = seen.sum(-1, keepdim=True) <= top_k  # needs no scores
    return torch.where(everything | (scaled >= scaled[..., -1:]), picks, -1)


@bug("select")
def returns_indices_of_16_bits(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Indices are packed into 16 bits."""
    picks = select(scores, positions, compress_ratio, top_k)
    return torch.where(picks < 0, picks, picks % 2**16)


@bug("select", "https://github.com/vllm-project/vllm/pull/41834")
def adds_the_offset_of_the_row(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Indices into a row become indices into the batch, which the caller makes of them again."""
    picks = select(scores, positions, compress_ratio, top_k)
    return torch.where(picks < 0, picks, picks + scores.shape[-1] * torch.arange(len(scores))[:, None, None])


@bug("select", "https://github.com/local-inference-lab/vllm/pull/429")
def takes_the_first_entries(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """The branch for short contexts, which needs no scores, is taken for long ones too."""
    return select(torch.zeros_like(scores), positions, compress_ratio, top_k)


@bug("select")
def takes_the_latest_entries(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """The most recent entries, whatever they score."""
    return select(torch.arange(scores.shape[-1]).float().expand_as(scores), positions, compress_ratio, top_k)


@bug("select", "https://github.com/hw-native-sys/pypto-lib/pull/306")
def fails_without_entries(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """A top-k of width 0."""
    scores.amax(-1)
    return select(scores, positions, compress_ratio, top_k)


@bug("select", "https://github.com/modelscope/twinkle/pull/250")
def fails_with_fewer_entries_than_k(
    scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int
) -> Tensor:
    """K is not bounded by the number of entries."""
    scores.topk(top_k, dim=-1)
    return select(scores, positions, compress_ratio, top_k)


_calls = itertools.count()


@bug(
    "select",
    "https://github.com/flashinfer-ai/flashinfer/issues/2584",
    "https://github.com/flashinfer-ai/flashinfer/pull/3095",
)
def breaks_ties_differently_each_time(
    scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int
) -> Tensor:
    """Which of equal scores come first depends on the order in which threads finish."""
    first = select(scores, positions, compress_ratio, top_k)
    return first if next(_calls) % 2 else _highest_first(scores, positions, compress_ratio, top_k)


@bug("select", equivalent="any choice among equal scores is right where lowest_index_first is not declared")
def breaks_ties_to_the_highest_entry(
    scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int
) -> Tensor:
    """Among equal scores the latest entries come first."""
    return _highest_first(scores, positions, compress_ratio, top_k)


@bug("select", equivalent="a selection is a set: attention sums over it")
def returns_picks_in_ascending_order(
    scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int
) -> Tensor:
    """Picks are sorted by entry, so that -1 comes first."""
    return select(scores, positions, compress_ratio, top_k).sort(-1).values
