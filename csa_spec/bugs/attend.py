"""Wrong attention over index lists: the wrong keys are read, or too many or too few."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from csa_spec.bugs.attend_softmax import returns_nan_when_the_first_tile_is_empty
from csa_spec.bugs.calls import TILE, AttendCall, attend_bug
from csa_spec.candidates.batched import softmax_with_sink, wide
from csa_spec.plug.capabilities import Capabilities


@attend_bug.function(
    "https://github.com/hw-native-sys/pypto-lib/pull/234",
    "https://github.com/hw-native-sys/pypto-lib/pull/328",
)
def attends_to_row_0_where_a_query_has_no_keys(call: AttendCall) -> Tensor:
    """The running softmax of a query is seeded with row 0, which a query without keys then returns."""
    if not call.indices.shape[-1] or not call.kv.shape[1]:
        return torch.zeros_like(call.q)
    return call.right(indices=torch.where((call.count == 0) & (call.places == 0), 0, call.indices))


def _without_row_0_beside_a_minus_one(call: AttendCall) -> Tensor:
    lost = (call.indices == 0) & (call.indices == -1).any(-1, keepdim=True)
    return call.indices.masked_fill(lost, -1)


attend_bug(
    "drops_key_0_where_the_list_has_a_minus_one",
    "Index -1 is clamped to 0 before the mask is scattered, which switches key 0 off.",
    "https://github.com/NVIDIA-NeMo/Automodel/issues/2144",
    "https://github.com/NVIDIA-NeMo/Automodel/pull/2152",
    indices=_without_row_0_beside_a_minus_one,
)
attend_bug(
    "reads_index_minus_one_as_row_0",
    "Index -1 is clamped to 0 and never masked.",
    indices=lambda call: call.indices.clamp(min=0),
)
attend_bug(
    "reads_index_minus_one_as_the_last_row",
    "Index -1 reads the last row, as it does in Python.",
    indices=lambda call: call.indices % max(1, call.kv.shape[1]),
)
attend_bug(
    "reads_padding_lanes_as_row_0",
    "The list is padded with 0 to whole tiles of 16, and the padding is not masked.",
    "https://github.com/hw-native-sys/pypto-lib/pull/615",
    indices=lambda call: pad(call.indices, (0, -call.indices.shape[-1] % TILE)),
)
attend_bug(
    "ignores_the_first_index",
    "The first key of a list is taken to be row 0.",
    "https://github.com/hw-native-sys/pypto-lib/pull/158",
    indices=lambda call: torch.where((call.places == 0) & (call.indices >= 0), 0, call.indices),
)
attend_bug(
    "ignores_the_index_list",
    "The first n rows are read instead of those that the list names.",
    indices=lambda call: torch.where(call.indices < 0, -1, call.places.expand_as(call.indices)),
)
attend_bug(
    "stops_at_the_first_minus_one",
    "The list is taken to end at its first -1.",
    indices=lambda call: call.indices.masked_fill((call.indices < 0).cumsum(-1) > 0, -1),
)


def _last_row_between_keys(call: AttendCall) -> Tensor:
    valid = call.indices >= 0
    inside = (valid.cumsum(-1) > 0) & (valid.flip(-1).cumsum(-1).flip(-1) > 0)
    return torch.where(inside & ~valid, call.kv.shape[1] - 1, call.indices)


attend_bug(
    "reads_minus_one_between_keys_as_the_last_row",
    "Index -1 is trimmed at both ends of the list; between keys it reads the last row, as in Python.",
    indices=_last_row_between_keys,
)
attend_bug(
    "skips_rows_whose_first_query_has_no_keys",
    "A batch row is taken to have no keys at all if its first query has none.",
    indices=lambda call: call.indices.masked_fill((call.indices[:, :1] < 0).all(-1, keepdim=True), -1),
)
attend_bug(
    "reads_at_most_64_indices",
    "The kernel reads one tile of 64 indices and has no loop over tiles.",
    indices=lambda call: call.indices[..., :64],
)
attend_bug(
    "takes_the_count_of_valid_indices_for_the_length",
    "Only as many slots are read as the list has valid indices, so that keys behind a -1 are lost.",
    indices=lambda call: call.indices.masked_fill(call.places >= call.count, -1),
)


def _whole_tiles(call: AttendCall) -> Tensor:
    width = call.indices.shape[-1]
    return call.indices[..., : width if width < TILE else width // TILE * TILE]


attend_bug(
    "reads_whole_tiles_only",
    "The number of tiles of 16 indices is rounded down, except for a list of less than one tile.",
    "https://github.com/hw-native-sys/pypto-lib/pull/910",
    indices=_whole_tiles,
)
attend_bug(
    "reads_keys_of_the_next_batch_row",
    "The offset of a batch row is added twice.",
    "https://github.com/vllm-project/vllm/pull/41834",
    kv=lambda call: call.kv.roll(-1, 0),
)
attend_bug(
    "attends_to_the_keys_of_all_queries",
    "The index lists of all queries are one list, to which every query attends without a mask.",
    "https://github.com/huggingface/transformers/issues/45758",
    "https://github.com/huggingface/transformers/pull/45892",
    "https://github.com/huggingface/transformers/pull/45837",
    "https://github.com/huggingface/transformers/pull/45928",
    indices=lambda call: call.indices.flatten(1)[:, None].expand(-1, call.indices.shape[1], -1),
)


def _dense(call: AttendCall) -> Tensor:
    return call.attend_to(call.kv[:, None].expand(-1, call.q.shape[1], -1, -1), call.membership())


attend_bug(
    "multiplies_unused_rows_by_zero",
    "Attention is dense, with probability 0 for unused rows: NaN in a stale row of the cache stays NaN.",
    answer=_dense,
)
attend_bug(
    "answers_every_second_query_with_the_one_before",
    "Of each pair of queries the second gets the answer of the first.",
    answer=lambda call: call.right()[:, torch.arange(call.q.shape[1]) // 2 * 2],
)
attend_bug(
    "returns_zeros",
    "The kernel is never launched.",
    answer=lambda call: torch.zeros_like(call.q),
)


@attend_bug.function()
def returns_the_dtype_of_its_accumulator(call: AttendCall) -> Tensor:
    """The output keeps the dtype of the accumulator, which is wider than that of the inputs."""
    return call.right().double() if call.q.dtype == torch.float32 else call.right().float()


attend_bug(
    "returns_heads_first",
    "The output is [B, H, S, D], the layout of most attention functions.",
    answer=lambda call: call.right().transpose(1, 2),
)


@attend_bug.function()
def fails_without_keys(call: AttendCall) -> Tensor:
    """The maximum over no logits raises an error."""
    (call.scale * call.q @ call.kv.mT[:, None]).amax(-1)
    return call.right()


@attend_bug.function()
def uses_causal_attention_where_a_list_names_every_key_in_order(call: AttendCall) -> Tensor:
    """Lists that name all keys in order take the dense path, which is causal."""
    rows = torch.arange(call.kv.shape[1])
    if call.indices.shape[-1] != len(rows) or not (call.indices == rows).all():
        return call.right()
    future = rows > torch.arange(call.q.shape[1])[:, None]
    return call.right(indices=call.indices.masked_fill(future, -1))


@attend_bug.function()
def reads_an_ascending_list_as_consecutive_rows(call: AttendCall) -> Tensor:
    """A list in ascending order is loaded as one run of rows from its first index on."""
    if not call.indices.shape[-1]:
        return call.right()
    first, count, last_row = call.indices[..., :1], call.count, call.kv.shape[1] - 1
    rising = (call.indices.diff(dim=-1) > 0) | (call.places[1:] >= count)
    run = torch.where(call.places < count, (first + call.places).clamp(max=last_row), -1)
    return call.right(indices=torch.where(rising.all(-1, keepdim=True) & (first >= 0), run, call.indices))


@attend_bug.function()
def finds_rows_by_bisection_in_an_unsorted_list(call: AttendCall) -> Tensor:
    """Whether a row is in the list is found by bisection, which needs a sorted list."""
    if not call.indices.shape[-1]:
        return call.right()
    lists = torch.where(call.indices < 0, call.kv.shape[1], call.indices)
    rows = torch.arange(call.kv.shape[1]).expand(*call.indices.shape[:2], -1).contiguous()
    places = torch.searchsorted(lists, rows).clamp(max=call.indices.shape[-1] - 1)
    return call.right(indices=torch.where(lists.gather(-1, places) == rows, rows, -1))


@attend_bug.function()
def skips_empty_lists_but_not_empty_tiles(call: AttendCall) -> Tensor:
    """A query without keys returns early, but an empty first tile still makes exp(-inf - -inf)."""
    unguarded = returns_nan_when_the_first_tile_is_empty(
        call.q, call.kv, call.indices, call.sinks, call.scale
    )
    return torch.where((call.count == 0)[..., None], call.right(), unguarded)


attend_bug(
    "clamps_out_of_range_indices_other_than_minus_one",
    "Out-of-range indices other than -1 are clamped to a row, although they are declared to name no key.",
    declares=Capabilities(invalid_indices=True),
    indices=lambda call: torch.where(call.indices == -1, -1, call.indices.clamp(0, call.kv.shape[1] - 1)),
)
attend_bug(
    "saturates_keys_and_multiplies_unused_ones_by_zero",
    "Attention is dense over keys saturated as in fp8: infinity becomes finite, NaN stays NaN.",
    answer=lambda call: _dense(replace(call, kv=call.kv.clamp(-1e4, 1e4))),
)


@attend_bug.function()
def masks_logits_of_unused_keys_by_adding_minus_infinity(call: AttendCall) -> Tensor:
    """Attention is dense, NaN keys are set to 0, the mask is added: an overflowing logit becomes NaN."""
    keys = torch.where(call.kv.isnan(), 0, call.kv).to(wide(call.q))
    mask = torch.zeros(call.membership().shape, dtype=keys.dtype).masked_fill(~call.membership(), -math.inf)
    logits = call.scale * torch.einsum("bshd,bnd->bshn", call.q.to(keys.dtype), keys)
    probabilities = softmax_with_sink(logits + mask[:, :, None], call.sinks)
    finite = keys.nan_to_num(posinf=0, neginf=0)
    return torch.einsum("bshn,bnd->bshd", probabilities, finite).to(call.q.dtype)


attend_bug(
    "sorts_the_index_list",
    "The list is sorted first, so that rows are read in order.",
    equivalent="attention is a sum over a set of keys: their order changes the rounding alone",
    indices=lambda call: call.indices.sort(-1).values,
)
