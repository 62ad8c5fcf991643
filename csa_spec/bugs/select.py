"""Wrong selections: entry s is visible to the query at position p if s < (p + 1) // m."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from csa_spec.bugs.calls import SelectCall, select_bug

select_bug(
    "sees_the_unfinished_block",
    "Entry s is visible if s <= p // m, so that a query sees its own block before it is complete.",
    "https://github.com/vllm-project/tpu-inference/issues/3536",
    "https://github.com/sgl-project/sglang-jax/pull/1607",
    answer=lambda call: call.best(call.entries >= (call.positions // call.compress_ratio + 1)[..., None]),
)
select_bug(
    "hides_a_block_from_its_last_token",
    "Entry s is visible if s < p // m: the paper counts positions from 1, and p is counted from 0.",
    answer=lambda call: call.best(call.entries >= (call.positions // call.compress_ratio)[..., None]),
)
select_bug(
    "sees_everything",
    "There is no causal mask.",
    "https://github.com/huggingface/transformers/issues/45820",
    answer=lambda call: call.best(torch.zeros_like(call.hidden)),
)


@select_bug.function()
def masks_after_the_top_k(call: SelectCall) -> Tensor:
    """Hidden entries are dropped after the top-k, so that they take the places of visible ones."""
    picks = call.best(torch.zeros_like(call.hidden))
    return torch.where(picks >= call.visible, -1, picks)


@select_bug.function()
def leaves_hidden_entries_in_the_list(call: SelectCall) -> Tensor:
    """Picks whose score is -inf are not replaced by -1."""
    ranked = call.scores.nan_to_num(0.0).masked_fill(call.hidden, -math.inf)
    return ranked.topk(min(call.top_k, call.width), dim=-1).indices


@select_bug.function()
def fills_the_list_with_the_best_entry(call: SelectCall) -> Tensor:
    """Where fewer than k entries are visible, the best one is repeated."""
    picks = call.right()
    return torch.where(picks < 0, picks[..., :1], picks)


@select_bug.function()
def maps_equal_scores_to_the_same_entry(call: SelectCall) -> Tensor:
    """Each of the k best scores is looked up, which finds equal ones all at the first of them."""
    picks = call.right()
    values = call.values_of(picks)
    places = values[..., None] == call.scores[..., None, :]
    first = places.int().argmax(-1) if places.numel() else picks
    return torch.where((picks < 0) | values.isnan(), picks, first)


select_bug(
    "selects_every_visible_entry",
    "There is no top-k.",
    "https://github.com/hw-native-sys/pypto-lib/pull/593",
    "https://github.com/ml-explore/mlx-lm/pull/1201",
    answer=lambda call: call.best(call.hidden, call.width),
)
select_bug(
    "selects_one_entry_too_few",
    "The top-k selects k - 1 entries.",
    top_k=lambda call: max(0, call.top_k - 1),
)


@select_bug.function()
def selects_every_entry_tied_at_the_threshold(call: SelectCall) -> Tensor:
    """All entries whose score is at or above the k-th are selected, which may be more than k."""
    if not 0 < call.top_k < call.width:
        return call.right()
    ranked = call.ranked(call.hidden)
    kth = ranked.topk(call.top_k, dim=-1).values[..., -1:]
    return torch.where((ranked >= kth) & ~call.hidden, call.entries, -1)


@select_bug.function("https://github.com/sgl-project/sglang/pull/30645")
def drops_entries_tied_at_the_threshold(call: SelectCall) -> Tensor:
    """Where several entries tie at the k-th score, their slots are left at -1."""
    picks = call.right()
    values = call.values_of(picks)
    tied = (values == values[..., -1:]) & ~(values == values[..., :1])
    crowded = tied.sum(-1, keepdim=True) > 1
    return torch.where(tied & crowded, -1, picks)


@select_bug.function()
def ranks_by_sign_and_exponent_only(call: SelectCall) -> Tensor:
    """A radix selection makes one pass, over sign and exponent, and no second pass over the mantissa."""
    mantissa, exponent = torch.frexp(call.scores)
    coarse = torch.ldexp(torch.where(mantissa == 0, 0.0, mantissa.sign() / 2), exponent)
    return call.right(scores=torch.where(call.scores.isfinite(), coarse.to(call.scores.dtype), call.scores))


select_bug(
    "ranks_in_bfloat16",
    "Scores are rounded to bfloat16 before they are compared, and this is not declared.",
    scores=lambda call: call.scores.bfloat16(),
)


@select_bug.function(
    "https://github.com/sgl-project/sglang/issues/36807",
    "https://github.com/vllm-project/vllm/pull/52149",
    "https://github.com/yhfgyyf/vllm-deepseek-v4-sm89/pull/97",
)
def keeps_at_most_4096_candidates(call: SelectCall) -> Tensor:
    """Of the candidates that share the high bits of the k-th score only the first 4096 are kept."""
    if call.top_k >= call.width or call.top_k == 0:
        return call.right()
    coarse = call.scores.bfloat16().double().masked_fill(call.hidden, -math.inf)
    bucket = coarse == coarse.nan_to_num().topk(call.top_k, dim=-1).values[..., -1:]
    lost = bucket & (bucket.cumsum(-1) > 4096)
    return call.right(scores=call.scores.masked_fill(lost, -math.inf))


@select_bug.function("https://github.com/vllm-project/vllm/issues/49896")
def leaves_the_slots_of_nan_scores_unwritten(call: SelectCall) -> Tensor:
    """Entries are ranked by counting, which leaves the slots of NaN scores unwritten."""
    picks = call.right()
    unwritten = call.values_of(picks).isnan() & (picks >= 0) & (call.visible > 0)
    return torch.where(unwritten, 2**31 - 1, picks)


@select_bug.function(
    "https://github.com/sgl-project/sglang/pull/35429",
    "https://github.com/vllm-project/vllm/pull/33568",
    "https://github.com/NVIDIA/TensorRT-LLM/pull/16789",
    "https://github.com/vllm-project/vllm/pull/50008",
)
def scores_hidden_entries_as_zero(call: SelectCall) -> Tensor:
    """Hidden scores are set to 0 instead of -inf, which beats a negative score."""
    scores = call.scores.nan_to_num().masked_fill(call.hidden, 0)
    picks = scores.topk(min(call.top_k, call.width), dim=-1).indices
    return torch.where(picks >= call.visible, -1, picks)


@select_bug.function("https://github.com/ml-explore/mlx-lm/pull/1189")
def gives_every_query_the_selection_of_the_last(call: SelectCall) -> Tensor:
    """The selection of the last query is used for all queries."""
    picks = call.right()
    return picks[:, -1:].expand_as(picks).contiguous()


select_bug(
    "ranks_by_the_scores_of_the_first_query",
    "The scores of query 0 rank the entries for all queries; each still has its own mask.",
    scores=lambda call: call.scores[:, :1].expand_as(call.scores),
)
select_bug(
    "assumes_positions_start_at_zero",
    "Positions are counted from 0, which is right for a prefill and wrong for every later call.",
    positions=lambda call: torch.arange(call.scores.shape[1]).expand_as(call.positions),
)
select_bug(
    "uses_the_position_of_the_first_query_for_all",
    "All queries of a call see what its first query sees.",
    positions=lambda call: call.positions[:, :1].expand_as(call.positions),
)
select_bug(
    "uses_the_positions_of_the_first_row",
    "The positions of row 0 are broadcast to all rows.",
    positions=lambda call: call.positions[:1].expand_as(call.positions),
)
select_bug(
    "selects_the_lowest_scoring_entries",
    "The sort is ascending instead of descending.",
    scores=lambda call: -call.scores,
)
select_bug(
    "drops_entries_that_score_zero_or_less",
    "A score of 0 or less is taken to mean a hidden entry.",
    answer=lambda call: call.without(lambda values: values <= 0),
)
select_bug(
    "drops_entries_that_score_zero",
    "A score of exactly 0 is taken for one that no kernel wrote.",
    answer=lambda call: call.without(lambda values: values == 0),
)


@select_bug.function(
    "https://github.com/hw-native-sys/pypto-lib/pull/234",
    "https://github.com/hw-native-sys/pypto-lib/pull/328",
)
def selects_entry_0_where_nothing_is_visible(call: SelectCall) -> Tensor:
    """Where all scores are -inf, the first entry is taken for the best one."""
    picks = call.right()
    nothing = (call.positions + 1 < call.compress_ratio)[..., None] & (torch.arange(picks.shape[-1]) == 0)
    return torch.where(nothing, 0, picks)


select_bug(
    "reads_a_top_k_of_zero_as_all",
    "`top_k or T` selects all T entries where top_k is 0.",
    top_k=lambda call: call.top_k or call.width,
)


@select_bug.function()
def pads_the_list_with_the_number_of_entries(call: SelectCall) -> Tensor:
    """Empty slots hold T, the extra column of a mask, instead of -1."""
    picks = call.right()
    return torch.where(picks < 0, call.width, picks)


select_bug(
    "hides_every_entry",
    "Entries are masked out for every query.",
    "https://github.com/ml-explore/mlx-lm/pull/1189",
    answer=lambda call: torch.full_like(call.right(), -1),
)
select_bug(
    "inverts_the_mask",
    "A mask of 0 and -inf is read as a boolean one, so that exactly the hidden entries are selected.",
    "https://github.com/AI-Hypercomputer/maxtext/pull/4488",
    answer=lambda call: call.best(~call.hidden),
)


@select_bug.function()
def masks_by_adding_minus_infinity(call: SelectCall) -> Tensor:
    """The mask is added: infinity or NaN in memory that no kernel wrote becomes NaN, which ranks first."""
    return call.descending(call.scores + torch.zeros(call.scores.shape).masked_fill(call.hidden, -math.inf))


@select_bug.function()
def masks_by_taking_the_minimum(call: SelectCall) -> Tensor:
    """The mask is min(score, -inf), which is NaN where the score is NaN."""
    mask = torch.full_like(call.scores, math.inf).masked_fill(call.hidden, -math.inf)
    return call.descending(torch.minimum(call.scores, mask))


@select_bug.function()
def masks_with_a_finite_penalty(call: SelectCall) -> Tensor:
    """1e30 is subtracted from hidden scores: infinity in memory that no kernel wrote stays infinity."""
    return call.descending(call.scores.float().nan_to_num(-1e29, math.inf, -1e29) - 1e30 * call.hidden)


select_bug(
    "drops_visible_entries_that_score_minus_infinity",
    "A visible entry that scores -inf is taken for a hidden one.",
    "https://github.com/flashinfer-ai/flashinfer/pull/4123",
    "https://github.com/vllm-project/vllm-ascend/pull/16584",
    answer=lambda call: call.without(lambda values: values == -math.inf),
)


@select_bug.function()
def scales_scores_to_the_unit_interval(call: SelectCall) -> Tensor:
    """Scores are scaled to 0...1 before the threshold: equal ones are 0 / 0, and none is selected."""
    picks, scores = call.right(), call.scores
    if not picks.numel():
        return picks
    seen = ~call.hidden & scores.isfinite()
    low = scores.masked_fill(~seen, math.inf).amin(-1, keepdim=True)
    high = scores.masked_fill(~seen, -math.inf).amax(-1, keepdim=True)
    scaled = ((scores - low) / (high - low)).gather(-1, picks.clamp(min=0))
    everything = seen.sum(-1, keepdim=True) <= call.top_k  # needs no scores
    return torch.where(everything | (scaled >= scaled[..., -1:]), picks, -1)


@select_bug.function()
def truncates_indices_to_16_bits(call: SelectCall) -> Tensor:
    """Indices are packed into 16 bits."""
    picks = call.right()
    return torch.where(picks < 0, picks, picks % 2**16)


@select_bug.function("https://github.com/vllm-project/vllm/pull/41834")
def adds_the_offset_of_the_row(call: SelectCall) -> Tensor:
    """Indices into a row are turned into indices into the batch, which the caller does once more."""
    picks = call.right()
    return torch.where(picks < 0, picks, picks + call.width * torch.arange(len(picks))[:, None, None])


select_bug(
    "selects_the_first_entries",
    "The branch for short contexts, which needs no scores, is taken for long ones too.",
    "https://github.com/local-inference-lab/vllm/pull/429",
    scores=lambda call: torch.zeros_like(call.scores),
)
select_bug(
    "selects_the_latest_entries",
    "The most recent entries are selected, whatever they score.",
    scores=lambda call: call.entries.float().expand_as(call.scores),
)


@select_bug.function("https://github.com/hw-native-sys/pypto-lib/pull/306")
def fails_without_entries(call: SelectCall) -> Tensor:
    """A top-k over no entries raises an error."""
    call.scores.amax(-1)
    return call.right()


@select_bug.function("https://github.com/modelscope/twinkle/pull/250")
def fails_with_fewer_entries_than_k(call: SelectCall) -> Tensor:
    """The number k is not limited to that of the entries, and the top-k raises an error."""
    call.scores.topk(call.top_k, dim=-1)
    return call.right()


def _highest_first(call: SelectCall) -> Tensor:
    """Select, the highest of equal entries first."""
    lowest = torch.finfo(call.scores.dtype).min
    ranked = call.scores.nan_to_num(lowest, neginf=lowest).masked_fill(call.hidden, -math.inf).flip(-1)
    return call.listed(call.width - 1 - ranked.sort(dim=-1, descending=True, stable=True).indices)


_calls = itertools.count()

select_bug(
    "breaks_ties_differently_each_time",
    "Which of equal scores come first depends on the order in which threads finish.",
    "https://github.com/flashinfer-ai/flashinfer/issues/2584",
    "https://github.com/flashinfer-ai/flashinfer/pull/3095",
    answer=lambda call: call.right() if next(_calls) % 2 else _highest_first(call),
)
select_bug(
    "selects_the_highest_entry_of_a_tie",
    "Among equal scores the latest entries come first.",
    equivalent="any choice among equal scores is right where lowest_index_first is not declared",
    answer=_highest_first,
)
select_bug(
    "lists_entries_in_ascending_order",
    "The selected entries are sorted, so that -1 comes first.",
    equivalent="a selection is a set: attention sums over it",
    answer=lambda call: call.right().sort(-1).values,
)
