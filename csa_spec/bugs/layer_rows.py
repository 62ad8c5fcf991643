"""Layers that mix up what lies in a batch: rows, padding, packed documents, shards of a sequence, positions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from csa_spec.bugs.bug import COMPRESSED, CSA, EVERY, Asked, layer_bug
from csa_spec.spec import SPEC, Context, Document, LayerKind

# PACKED DOCUMENTS


def _with_earlier_tokens(asked: Asked, begin: int) -> Tensor:
    """Let windows reach back to a column of the row; tokens of other documents stand where they stand."""
    offset = asked.document.begin - begin
    own = asked.context()
    earlier = [asked.context(document=one).window_keys for one in asked.before]
    gap = offset - sum(map(len, earlier))
    if gap:  # padding
        pads = Document(asked.document.row, begin, gap, 0)
        earlier.insert(0, asked.context(document=pads).window_keys)
    spec = replace(SPEC, window_tokens=lambda t, window: SPEC.window_tokens(offset + t, window))
    return asked.out(replace(own, window_keys=torch.cat((*earlier, own.window_keys))), spec)


layer_bug(
    "reaches_into_the_document_before",
    "The window ends at the beginning of the packed row in place of that of the document.",
    "https://github.com/radixark/miles/pull/2038",
    "https://github.com/NVIDIA-NeMo/Automodel/pull/2696",
    "https://github.com/NVIDIA-NeMo/Automodel/pull/2731",
    kinds=EVERY,
    answer=lambda asked: _with_earlier_tokens(asked, asked.origin),
)


def _queries_by_column(asked: Asked) -> Tensor:
    """Rotate tokens by the column in the row, and entries by the place in the document."""
    own, place = asked.context(), asked.document
    moved = place._replace(start=place.start + place.begin - asked.origin)
    tokens = asked.context(document=moved)
    return asked.out(replace(tokens, entries=own.entries, index_keys=own.index_keys))


layer_bug(
    "rotates_tokens_by_their_column_in_a_packed_row",
    "Positions of tokens run on over the documents of a row, while those of entries begin anew in each.",
    "https://github.com/radixark/miles/pull/2038",
    kinds=COMPRESSED,
    answer=_queries_by_column,
)


def _on_the_grid_of_the_row(asked: Asked, begin: int) -> Tensor:
    """Count blocks from a column of the row; a query sees those that hold tokens of its own document."""
    early, ratio = asked.document.begin - begin, asked.geometry.compress_ratio
    stream = asked.context(document=asked.stream(begin))
    own = replace(asked.context(), entries=stream.entries, index_keys=stream.index_keys)
    spec = replace(SPEC, visible_entries=lambda t, m: range_of(early // m, (early + t + 1) // m))
    return asked.out(own, spec) if early and ratio > 1 else asked.trace().out


def range_of(first: int, end: int) -> list[int]:
    """Return the numbers from first up to end, which is not one of them."""
    return list(range(first, end))


layer_bug(
    "compresses_across_documents",
    "Blocks are counted from the beginning of the packed row, so that one may hold tokens of two documents.",
    "https://github.com/radixark/miles/pull/2038",
    "https://github.com/NVIDIA-NeMo/Automodel/pull/2696",
    kinds=COMPRESSED,
    answer=lambda asked: _on_the_grid_of_the_row(asked, asked.origin),
)


def _with_entries_of_the_row(asked: Asked) -> Tensor:
    """Let a query see all entries of the documents before."""
    contexts = [*(asked.context(document=one) for one in asked.before), asked.context()]
    earlier = sum(len(one.entries) for one in contexts[:-1])
    joined = replace(
        contexts[-1],
        entries=torch.cat([one.entries for one in contexts]),
        index_keys=torch.cat([one.index_keys for one in contexts]),
    )
    return asked.out(joined, replace(SPEC, visible_entries=lambda t, m: range_of(0, earlier + (t + 1) // m)))


layer_bug(
    "scores_the_entries_of_documents_before",
    "The indexer scores the entries of the whole packed row, so that a query selects some of other documents.",
    "https://github.com/radixark/miles/pull/2038",
    "https://github.com/NVIDIA-NeMo/Automodel/pull/2731",
    kinds=COMPRESSED,
    answer=_with_entries_of_the_row,
)


def _first_entries_of_the_row(asked: Asked) -> Tensor:
    """Count what is visible from the document, and entries from the row."""
    stream = asked.context(document=asked.stream(asked.origin)._replace(start=asked.document.start))
    return asked.out(replace(asked.context(), entries=stream.entries, index_keys=stream.index_keys))


layer_bug(
    "sees_the_entries_of_the_first_document",
    "Positions begin anew in each packed document but entries do not, so that those of the first are seen.",
    kinds=COMPRESSED,
    answer=_first_entries_of_the_row,
)


def _one_document(asked: Asked) -> Tensor:
    stream = asked.stream(asked.origin)
    whole = replace(asked, document=stream)
    return whole.trace().out[asked.document.begin - asked.origin :]


layer_bug(
    "takes_a_packed_row_for_one_document",
    "The boundaries of packed documents are not read, so that a row is one causal sequence.",
    "https://github.com/NVIDIA-NeMo/Automodel/pull/3231",
    kinds=EVERY,
    answer=_one_document,
)

# PADDING


def _pools_padding(asked: Asked) -> Tensor:
    """Count blocks from the first column of the batch, over padding."""
    return asked.trace().out if asked.before else _on_the_grid_of_the_row(asked, 0)


layer_bug(
    "pools_padding_into_entries",
    "Blocks are counted from the first column of the batch, so that padding on the left is part of entries.",
    "https://github.com/huggingface/transformers/issues/45938",
    kinds=COMPRESSED,
    answer=_pools_padding,
)
layer_bug(
    "sees_padding_in_its_window",
    "Padding on the left is not masked in the window.",
    answer=lambda asked: asked.trace().out if asked.before else _with_earlier_tokens(asked, 0),
)


def _from_the_right(asked: Asked) -> Tensor:
    """Read a row as if it ended with the batch."""
    last = max(one.begin + one.length for one in asked.documents if one.row == asked.document.row)
    gap = asked.hidden.shape[1] - last
    return replace(asked, hidden=asked.hidden.roll(-gap, 1)).trace().out


layer_bug(
    "reads_rows_from_their_end",
    "A row's tokens are taken from the end of the batch, as if all padding were on the left.",
    answer=_from_the_right,
)


def _aligned_to_the_batch(asked: Asked) -> Tensor:
    """Count blocks so that the last one ends with the batch."""
    m, place = asked.geometry.compress_ratio, asked.document
    shift = (asked.hidden.shape[1] - place.begin) % m
    inner = place._replace(begin=place.begin + shift, length=place.length - shift, start=place.start + shift)
    if not shift or inner.length < 1:
        return asked.trace().out
    late = asked.context(document=inner)
    own = replace(asked.context(), entries=late.entries, index_keys=late.index_keys)
    return asked.out(
        own, replace(SPEC, visible_entries=lambda t, m: range_of(0, max(0, t - shift + 1) // m))
    )


layer_bug(
    "cuts_the_tail_off_at_the_wrong_end",
    "Of a length that is no multiple of the ratio the last whole blocks are kept in place of the first.",
    kinds=COMPRESSED,
    answer=_aligned_to_the_batch,
)

# ROWS


def _rebased_twice(asked: Asked) -> Tensor:
    base = asked.document.row * asked.geometry.entry_count(asked.hidden.shape[1])
    selections = [[max(0, entry - base) for entry in query.selection] for query in asked.trace().queries]
    return asked.out(asked.context(), selections=selections)


layer_bug(
    "rebases_its_picks_twice",
    "Picks are local to a request already when the beginning of the request is subtracted from them once more.",
    "https://github.com/vllm-project/vllm/pull/41834",
    kinds=CSA,
    answer=_rebased_twice,
)


def _entries_of_row_zero(asked: Asked) -> Tensor:
    first = asked.documents[0]
    context, other = asked.context(), asked.context(document=first)
    shared = min(len(context.entries), len(other.entries))
    entries = torch.cat((other.entries[:shared], context.entries[shared:]))
    return asked.out(replace(context, entries=entries))


layer_bug(
    "gathers_entries_of_the_first_row",
    "The batch is missing from the index of the gather, so that every row reads the entries of the first.",
    kinds=COMPRESSED,
    answer=_entries_of_row_zero,
)


def _previous_row(asked: Asked) -> Tensor:
    """Blocks of all rows lie one after another: the first block of a row overlaps the last of the row before."""
    place, m = asked.document, asked.geometry.compress_ratio
    above = [one for one in asked.documents if one.row < place.row and one.length >= m]
    if not above or not asked.count or asked.before or not asked.geometry.overlap:
        return asked.trace().out
    last = above[-1]
    block = last.begin + (last.length // m - 1) * m
    hidden = torch.cat((asked.hidden[last.row, block : block + m], asked.hidden[place.row, place.columns]))
    joined = replace(
        asked, hidden=hidden[None], document=Document(0, 0, len(hidden), place.start - m)
    ).context()
    own = replace(asked.context(), entries=joined.entries[1:], index_keys=joined.index_keys[1:])
    return asked.out(own)


layer_bug(
    "overlaps_with_the_last_block_of_the_row_before",
    "Blocks of all rows are one list when it is shifted by one block for the overlap.",
    kinds=CSA,
    answer=_previous_row,
)

# SHARDS


def _shards(asked: Asked, boundary: int) -> Context:
    """Compress two shards of a document one by one."""
    place, own, m = asked.document, asked.context(), asked.geometry.compress_ratio
    if not m <= boundary < place.length:
        return own
    parts = [
        place._replace(length=boundary),
        place._replace(
            begin=place.begin + boundary, length=place.length - boundary, start=place.start + boundary
        ),
    ]
    contexts = [asked.context(document=part) for part in parts]
    return replace(
        own,
        entries=torch.cat([one.entries for one in contexts]),
        index_keys=torch.cat([one.index_keys for one in contexts]),
    )


def _shard_by_shard(asked: Asked) -> Tensor:
    half = (asked.document.length + 1) // 2
    context = _shards(asked, half)
    first = half // asked.geometry.compress_ratio

    def visible(t: int, m: int) -> list[int]:
        return range_of(0, min((t + 1) // m, first) + max(0, t + 1 - half) // m)

    return asked.out(context, replace(SPEC, visible_entries=visible))


layer_bug(
    "compresses_each_shard_alone",
    "Each half of a sequence counts blocks from its own first token, so that a block across the border is lost.",
    "https://github.com/PrimeIntellect-ai/prime-rl/pull/3508",
    "https://github.com/tenstorrent/tt-metal/pull/57192",
    kinds=COMPRESSED,
    answer=_shard_by_shard,
)


def _without_halo(asked: Asked) -> Tensor:
    m = asked.geometry.compress_ratio
    return asked.out(_shards(asked, (asked.count + 1) // 2 * m))


layer_bug(
    "forgets_the_block_before_a_shard",
    "The first block of a shard has no block before it to overlap with, because that one is on another rank.",
    "https://github.com/baidu-baige/LoongForge/pull/141",
    "https://github.com/NVIDIA/Megatron-LM/pull/5087",
    "https://github.com/PaddlePaddle/PaddleFleet/pull/2053",
    kinds=CSA,
    answer=_without_halo,
)


layer_bug(
    "compares_positions_of_queries_with_columns_of_keys",
    "The mask of the window is made of absolute positions for queries and of columns for keys, so that queries of a "
    "later chunk miss keys.",
    kinds=(LayerKind.SLIDING, LayerKind.HCA, LayerKind.CSA),
    rules=lambda document, geometry: replace(
        SPEC,
        window_tokens=lambda t, window: [
            j for j in SPEC.window_tokens(t, window) if j > document.start + t - window
        ],
    ),
)


def _from_the_absolute_grid(asked: Asked) -> Tensor:
    """Blocks begin at multiples of the ratio, so that the first tokens of a document may be part of none."""
    m, place = asked.geometry.compress_ratio, asked.document
    late = -place.start % m
    inner = place._replace(begin=place.begin + late, length=place.length - late, start=place.start + late)
    if not late or inner.length < 1:
        return asked.trace().out
    context = asked.context(document=inner)
    own = replace(asked.context(), entries=context.entries, index_keys=context.index_keys)
    return asked.out(own, replace(SPEC, visible_entries=lambda t, m: range_of(0, max(0, t - late + 1) // m)))


layer_bug(
    "cuts_blocks_at_absolute_positions",
    "Blocks begin at positions that are multiples of the ratio in place of the first token of the document.",
    kinds=COMPRESSED,
    answer=_from_the_absolute_grid,
)
