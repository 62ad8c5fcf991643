"""Wrong where arguments come in another form: lists with lengths, keys in pages, indices in 32 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from csa_spec.bugs.calls import AttendCall, IndexScoresCall, StageBugs, attend_bug
from csa_spec.candidates import batched, gather
from csa_spec.plug.capabilities import Capabilities

# LENGTHS


def attend_with_lengths(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float, topk_length: Tensor
) -> Tensor:
    """Attend to the first ``topk_length`` ``[B, S]`` places of each list; the others are not looked at."""
    counts = torch.arange(indices.shape[-1]) < topk_length[..., None]
    return gather.attend(q, kv, torch.where(counts, indices, -1), sinks, scale)


@dataclass(frozen=True, slots=True)
class LengthsCall(AttendCall):
    """Attention over lists with lengths."""

    topk_length: Tensor
    by_name: ClassVar[tuple[str, ...]] = ("topk_length",)
    implementation: ClassVar[Callable[..., Tensor]] = staticmethod(attend_with_lengths)

    @property
    def width(self) -> int:
        """Places of a list."""
        return self.indices.shape[-1]


lengths_bug = StageBugs(LengthsCall, declares=Capabilities(lengths=True, batch_invariant=False))
lengths_bug(
    "ignores_the_lengths_of_lists",
    "Every place of a list is read, whatever its length.",
    "https://github.com/NVIDIA/cudnn-frontend/issues/405",
    topk_length=lambda call: torch.full_like(call.topk_length, call.width),
)
lengths_bug(
    "reads_one_place_behind_the_length",
    "The bound of the loop is <= instead of <.",
    topk_length=lambda call: call.topk_length + 1,
)
lengths_bug(
    "uses_the_length_of_the_first_query_for_all",
    "The length is read once for a row.",
    topk_length=lambda call: call.topk_length[:, :1].expand_as(call.topk_length),
)
lengths_bug(
    "takes_a_length_of_0_for_the_whole_list",
    "A length of 0 is taken for one that nobody gave.",
    topk_length=lambda call: call.topk_length.masked_fill(call.topk_length == 0, call.width),
)
lengths_bug(
    "rounds_lengths_up_to_tiles_of_24",
    "The last tile of 24 places is not masked.",
    topk_length=lambda call: -(-call.topk_length // 24) * 24,
)
lengths_bug(
    "keeps_lengths_in_8_bits",
    "Lengths pass through uint8, which holds 255 at most.",
    topk_length=lambda call: call.topk_length.to(torch.uint8).int(),
)
lengths_bug(
    "reads_at_most_300_places_of_a_list",
    "Lengths are cut to the size of a buffer.",
    topk_length=lambda call: call.topk_length.clamp(max=300),
)
lengths_bug(
    "counts_valid_indices_up_to_the_length",
    "The length is taken for the number of valid indices, so that every -1 before it moves the end on.",
    topk_length=lambda call: call.topk_length + _nothing_before(call),
)


def _nothing_before(call: LengthsCall) -> Tensor:
    before = torch.arange(call.width) < call.topk_length[..., None]
    return ((call.indices < 0) & before).sum(-1)


# PAGES


def physical_rows(logical: Tensor, table: Tensor, size: int) -> Tensor:
    """Return where keys ``[B, ...]`` lie in the pages of all rows, one after another; -1 for none."""
    width = table.shape[1]
    none = (logical < 0) | (logical >= width * size)
    number = torch.where(none, width, logical // size)
    page = pad(table.long(), (0, 1)).gather(1, number.flatten(1)).view_as(logical)
    return torch.where(none, -1, page * size + logical % size)


def attend_paged(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float, block_table: Tensor
) -> Tensor:
    """Attend to keys in pages ``[pages, size, D]``; ``block_table`` ``[B, M]`` says which are those of a row."""
    rows = physical_rows(indices, block_table, kv.shape[1])
    return _attend_to_rows(q, kv.flatten(0, 1), rows, sinks, scale)


def _attend_to_rows(q: Tensor, memory: Tensor, rows: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Attend from every query to rows ``[B, S, n]`` of memory that all batch rows share; -1 is none."""
    own = memory[rows.clamp(min=0)].flatten(1, 2)
    places = torch.arange(own.shape[1]).view(rows.shape[1:]).expand_as(rows)
    return gather.attend(q, own, torch.where(rows < 0, -1, places), sinks, scale)


def index_scores_paged(
    index_q: Tensor, index_k: Tensor, head_weights: Tensor, block_table: Tensor
) -> Tensor:
    """Score every place of the pages of a row, ``[B, S, M * size]``."""
    keys = index_k[block_table.long()].flatten(1, 2)
    return batched.index_scores(index_q, keys, head_weights)


_PAGED = Capabilities(paged=(1, 16, 64), batch_invariant=False)


@dataclass(frozen=True, slots=True)
class PagedCall(AttendCall):
    """Attention over keys in pages."""

    block_table: Tensor
    by_name: ClassVar[tuple[str, ...]] = ("block_table",)
    implementation: ClassVar[Callable[..., Tensor]] = staticmethod(attend_paged)

    @property
    def size(self) -> int:
        """Keys of a page."""
        return self.kv.shape[1]

    def at(self, rows: Tensor) -> Tensor:
        """Attend to keys by where they lie in the pages of all rows; -1 for none."""
        kv = self.kv.flatten(0, 1)
        none = (self.indices < 0) | (rows >= len(kv))
        return _attend_to_rows(self.q, kv, rows.masked_fill(none, -1), self.sinks, self.scale)


paged_bug = StageBugs(PagedCall, declares=_PAGED)
paged_bug(
    "uses_the_block_table_of_row_0",
    "The table has no offset for the batch row.",
    block_table=lambda call: call.block_table[:1].expand_as(call.block_table),
)
paged_bug(
    "takes_logical_pages_for_physical_ones",
    "The table is never looked at: pages are taken to lie in order, row after row.",
    "https://github.com/sgl-project/sglang/issues/34725",
    block_table=lambda call: torch.arange(call.block_table.numel()).view_as(call.block_table),
)
paged_bug(
    "reads_block_tables_as_16_bits",
    "Entries of the table pass through int16, which holds 32767 at most.",
    block_table=lambda call: call.block_table.to(torch.int16).clamp(min=0).int(),
)
paged_bug(
    "clamps_pages_to_the_number_of_pages_in_use",
    "Pages are clamped to the number of entries of the table, and a cache has more pages.",
    block_table=lambda call: call.block_table.clamp(max=max(0, call.block_table.numel() - 1)),
)
paged_bug(
    "reads_at_most_100_pages_of_a_row",
    "The table is copied into a buffer of 100 entries, and later pages are the last of these.",
    block_table=lambda call: call.block_table[:, torch.arange(call.block_table.shape[1]).clamp(max=99)],
)


@paged_bug.function("https://github.com/sgl-project/sglang/issues/31218")
def reads_the_last_page_from_its_beginning(call: PagedCall) -> Tensor:
    """The offset within a page is taken from the end of the row, which lies in the last page."""
    last = call.indices // call.size == call.block_table.shape[1] - 1
    rows = physical_rows(call.indices, call.block_table, call.size)
    return call.at(torch.where(last, rows // call.size * call.size, rows))


@paged_bug.function()
def reads_minus_one_through_the_table(call: PagedCall) -> Tensor:
    """Index -1 is divided by the page size and looked up like any other: the last key of the last page."""
    end = call.block_table.shape[1] * call.size
    return call.right(indices=call.indices % max(1, end)) if end else call.right()


@paged_bug.function()
def addresses_pages_with_16_bits(call: PagedCall) -> Tensor:
    """The page times its size is an unsigned 16-bit number."""
    rows = physical_rows(call.indices, call.block_table, call.size)
    return call.at(rows // call.size * call.size % 65536 + rows % call.size)


@StageBugs(PagedCall, declares=Capabilities(paged=(24, 96), batch_invariant=False)).function()
def shifts_where_a_page_is_no_power_of_two(call: PagedCall) -> Tensor:
    """The page of an index is found with a shift, by the power of two below the page size."""
    shift = call.size.bit_length() - 1
    page = call.indices.clamp(min=0) >> shift
    table = pad(call.block_table.long(), (0, 1))
    number = table.gather(1, page.clamp(max=table.shape[1] - 1).flatten(1)).view_as(page)
    return call.at(number * call.size + (call.indices & ((1 << shift) - 1)))


@dataclass(frozen=True, slots=True)
class PagedScoresCall(IndexScoresCall):
    """Index scores over keys in pages."""

    block_table: Tensor
    by_name: ClassVar[tuple[str, ...]] = ("block_table",)
    implementation: ClassVar[Callable[..., Tensor]] = staticmethod(index_scores_paged)


paged_scores_bug = StageBugs(PagedScoresCall, declares=_PAGED)
paged_scores_bug(
    "scores_the_pages_of_row_0_for_all_rows",
    "The table of index keys has no offset for the batch row.",
    block_table=lambda call: call.block_table[:1].expand_as(call.block_table),
)
paged_scores_bug(
    "scores_pages_in_the_order_of_their_numbers",
    "The pages of a row are sorted before they are read.",
    block_table=lambda call: call.block_table.sort(-1).values,
)
paged_scores_bug(
    "scores_at_most_40_pages_of_a_row",
    "The grid has 40 blocks for a row, and later pages repeat the last of them.",
    block_table=lambda call: call.block_table[:, torch.arange(call.block_table.shape[1]).clamp(max=39)],
)

# INDICES IN 32 BITS

attend_bug(
    "reads_minus_one_in_32_bits_as_a_large_index",
    "The path for indices in 32 bits reads them as unsigned, and clamps -1 to the last row.",
    declares=Capabilities(index_dtypes={"int64", "int32"}),
    indices=lambda call: (
        call.indices
        if call.indices.dtype == torch.int64
        else torch.where(call.indices < 0, call.kv.shape[1] - 1, call.indices)
    ),
)
attend_bug(
    "takes_indices_in_32_bits_for_64",
    "The memory of a list is read as 64-bit numbers, whatever its dtype is: every second index is lost.",
    declares=Capabilities(index_dtypes={"int32"}),
    indices=lambda call: torch.where(torch.arange(call.indices.shape[-1]) % 2 == 0, call.indices, -1),
)
