"""Wrong attention over index lists: the wrong keys are read, or too many or too few."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from csa_spec.bugs.attend_softmax import nan_in_an_empty_first_tile
from csa_spec.bugs.bug import bug
from csa_spec.bugs.kernels import TILE, attend_from, declaring, membership
from csa_spec.candidates.batched import softmax_with_sink, wide
from csa_spec.candidates.gather import attend


@bug(
    "attend",
    "https://github.com/hw-native-sys/pypto-lib/pull/234",
    "https://github.com/hw-native-sys/pypto-lib/pull/328",
)
def starts_from_row_zero(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """A query without keys attends to row 0."""
    if not indices.shape[-1] or not kv.shape[1]:
        return torch.zeros_like(q)
    empty = (indices < 0).all(-1, keepdim=True) & (torch.arange(indices.shape[-1]) == 0)
    return attend(q, kv, torch.where(empty, 0, indices), sinks, scale)


@bug(
    "attend",
    "https://github.com/NVIDIA-NeMo/Automodel/issues/2144",
    "https://github.com/NVIDIA-NeMo/Automodel/pull/2152",
)
def hides_key_zero(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """-1 is clamped to 0 and scattered last."""
    lost = (indices == 0) & (indices == -1).any(-1, keepdim=True)
    return attend(q, kv, indices.masked_fill(lost, -1), sinks, scale)


@bug("attend")
def takes_none_for_row_zero(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """-1 is clamped to 0 and never masked."""
    return attend(q, kv, indices.clamp(min=0), sinks, scale)


@bug("attend")
def wraps_none_to_the_last_row(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """An index of -1 is the last row in Python."""
    return attend(q, kv, indices % max(1, kv.shape[1]), sinks, scale)


@bug("attend", "https://github.com/hw-native-sys/pypto-lib/pull/615")
def reads_padded_lanes(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Lanes after the list hold 0."""
    return attend(q, kv, pad(indices, (0, -indices.shape[-1] % TILE)), sinks, scale)


@bug("attend", "https://github.com/hw-native-sys/pypto-lib/pull/158")
def ignores_the_first_index(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The first key is taken to be row 0."""
    first = (torch.arange(indices.shape[-1]) == 0) & (indices >= 0)
    return attend(q, kv, torch.where(first, 0, indices), sinks, scale)


@bug("attend")
def ignores_the_list(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The first n rows in place of those that the list names."""
    prefix = torch.arange(indices.shape[-1]).expand_as(indices)
    return attend(q, kv, torch.where(indices < 0, -1, prefix), sinks, scale)


@bug("attend")
def stops_at_the_first_none(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """A list ends at its first -1."""
    ended = (indices < 0).cumsum(-1) > 0
    return attend(q, kv, indices.masked_fill(ended, -1), sinks, scale)


@bug("attend")
def takes_none_for_the_last_row_between_keys(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """-1 is trimmed at both ends of a list; in the middle it is the last row, as in Python."""
    valid = indices >= 0
    inside = (valid.cumsum(-1) > 0) & (valid.flip(-1).cumsum(-1).flip(-1) > 0)
    return attend(q, kv, torch.where(inside & ~valid, kv.shape[1] - 1, indices), sinks, scale)


@bug("attend")
def skips_rows_whose_first_query_has_no_keys(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """A batch row has nothing to attend to if its first query has not."""
    nothing = (indices[:, :1] < 0).all(-1, keepdim=True)
    return attend(q, kv, indices.masked_fill(nothing, -1), sinks, scale)


@bug("attend")
def reads_64_picks_at_most(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """One tile of 64 indices, and no loop over tiles."""
    return attend(q, kv, indices[..., :64], sinks, scale)


@bug("attend")
def reads_as_many_as_there_are(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """The count of valid indices is taken for their extent."""
    count = (indices >= 0).sum(-1, keepdim=True)
    return attend(q, kv, indices.masked_fill(torch.arange(indices.shape[-1]) >= count, -1), sinks, scale)


@bug("attend", "https://github.com/hw-native-sys/pypto-lib/pull/910")
def reads_whole_tiles_only(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The number of tiles is rounded down, but for the first."""
    width = indices.shape[-1]
    return attend(q, kv, indices[..., : width if width < TILE else width // TILE * TILE], sinks, scale)


@bug("attend", "https://github.com/vllm-project/vllm/pull/41834")
def takes_keys_of_the_next_row(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """The offset of a batch row is added twice."""
    return attend(q, kv.roll(-1, 0), indices, sinks, scale)


@bug(
    "attend",
    "https://github.com/huggingface/transformers/issues/45758",
    "https://github.com/huggingface/transformers/pull/45892",
    "https://github.com/huggingface/transformers/pull/45837",
    "https://github.com/huggingface/transformers/pull/45928",
)
def sees_what_other_queries_gathered(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """All picks in one row without a block mask."""
    everything = indices.flatten(1)[:, None].expand(-1, indices.shape[1], -1)
    return attend(q, kv, everything, sinks, scale)


@bug("attend")
def multiplies_unused_rows_by_zero(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """Dense, with probabilities of exactly 0: NaN in a stale row of the cache is still NaN."""
    keys = kv[:, None].expand(-1, q.shape[1], -1, -1)
    return attend_from(q, keys, membership(kv, indices), sinks, scale)


@bug("attend")
def forgets_half_of_the_queries(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """Each pair of queries gets the answer of its first one."""
    first = torch.arange(q.shape[1]) // 2 * 2
    return attend(q, kv, indices, sinks, scale)[:, first]


@bug("attend")
def returns_zeros(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The kernel was never launched."""
    return torch.zeros_like(q)


@bug("attend")
def returns_its_accumulator(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The accumulator, which is wider than the inputs, is handed out."""
    out = attend(q, kv, indices, sinks, scale)
    return out.double() if q.dtype == torch.float32 else out.float()


@bug("attend")
def returns_heads_first(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """[B, H, S, D], as most attention functions have it."""
    return attend(q, kv, indices, sinks, scale).transpose(1, 2)


@bug("attend")
def fails_without_keys(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """The largest logit of no logits."""
    (scale * q @ kv.mT[:, None]).amax(-1)
    return attend(q, kv, indices, sinks, scale)


@bug("attend")
def goes_dense_where_a_list_is_a_prefix(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """Lists that name all keys in order take the dense path, which is causal."""
    rows = torch.arange(kv.shape[1])
    if indices.shape[-1] != len(rows) or not (indices == rows).all():
        return attend(q, kv, indices, sinks, scale)
    return attend(q, kv, indices.masked_fill(rows > torch.arange(q.shape[1])[:, None], -1), sinks, scale)


@bug("attend")
def reads_an_ascending_list_as_one_run(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """A list in ascending order is loaded as consecutive rows from its first index on."""
    if not indices.shape[-1]:
        return attend(q, kv, indices, sinks, scale)
    count = (indices >= 0).sum(-1, keepdim=True)
    places = torch.arange(indices.shape[-1])
    rising = (indices.diff(dim=-1) > 0) | (places[1:] >= count)
    run = torch.where(places < count, (indices[..., :1] + places).clamp(max=kv.shape[1] - 1), -1)
    ascending = rising.all(-1, keepdim=True) & (indices[..., :1] >= 0)
    return attend(q, kv, torch.where(ascending, run, indices), sinks, scale)


@bug("attend")
def looks_rows_up_by_bisection(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """Whether a row is in a list is found by bisection, which needs a sorted list."""
    if not indices.shape[-1]:
        return attend(q, kv, indices, sinks, scale)
    lists = torch.where(indices < 0, kv.shape[1], indices)
    rows = torch.arange(kv.shape[1]).expand(*indices.shape[:2], -1).contiguous()
    places = torch.searchsorted(lists, rows).clamp(max=indices.shape[-1] - 1)
    return attend(q, kv, torch.where(lists.gather(-1, places) == rows, rows, -1), sinks, scale)


@bug("attend")
def skips_empty_lists_but_not_empty_tiles(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """A query without keys returns early; a first tile of nothing but -1 still makes exp(-inf - -inf)."""
    empty = (indices < 0).all(-1)[..., None, None]
    unguarded = nan_in_an_empty_first_tile(q, kv, indices, sinks, scale)
    return torch.where(empty, attend(q, kv, indices, sinks, scale), unguarded)


@bug("attend")
@declaring(invalid_indices=True)
def takes_only_minus_one_for_none(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """Any other index out of range is clamped into it, though they are declared to be none."""
    return attend(q, kv, torch.where(indices == -1, -1, indices.clamp(0, kv.shape[1] - 1)), sinks, scale)


@bug("attend")
def saturates_keys_and_multiplies_unused_ones_by_zero(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """Dense, with keys saturated as a conversion to fp8 does it: infinity becomes finite, NaN stays."""
    return multiplies_unused_rows_by_zero(q, kv.clamp(-1e4, 1e4), indices, sinks, scale)


@bug("attend")
def cleans_nan_and_adds_minus_infinity(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """Dense with an additive mask, NaN in keys replaced by 0: a product that overflows to infinity is still NaN."""
    keys = torch.where(kv.isnan(), 0, kv).to(wide(q))
    named = membership(kv, indices)
    logits = scale * torch.einsum("bshd,bnd->bshn", q.to(keys.dtype), keys)
    logits = logits + torch.zeros(named.shape, dtype=keys.dtype).masked_fill(~named, -math.inf)[:, :, None]
    probabilities = softmax_with_sink(logits, sinks)
    finite = keys.nan_to_num(posinf=0, neginf=0)
    return torch.einsum("bshn,bnd->bshd", probabilities, finite).to(q.dtype)


@bug("attend", equivalent="attention is a sum over a set of keys: their order changes the rounding alone")
def sorts_the_list(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Lists are sorted first, so that rows are read in order."""
    return attend(q, kv, indices.sort(-1).values, sinks, scale)
