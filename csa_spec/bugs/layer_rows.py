"""Layers that mix up what lies in a batch: rows, padding, packed documents, shards, positions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from csa_spec.bugs.bug import COMPRESSED, CSA, DocumentCall, layer_bug
from csa_spec.spec import SPEC, Context, Document, LayerKind

# PACKED DOCUMENTS


def _seeing(first: int, end: int) -> list[int]:
    return list(range(first, max(0, end)))


def _joined(contexts: list[Context]) -> Context:
    """Return the last of some keys with the entries of all."""
    return replace(
        contexts[-1],
        entries=torch.cat([context.entries for context in contexts]),
        index_keys=torch.cat([context.index_keys for context in contexts]),
    )


def _with_earlier_tokens(call: DocumentCall, begin: int) -> Tensor:
    """Let windows reach back to a column of the row; tokens of other documents stand where they stand."""
    offset = call.document.begin - begin
    own = call.context()
    earlier = [call.context(document=document).window_keys for document in call.before]
    gap = offset - sum(map(len, earlier))
    if gap:  # padding
        pads = Document(call.document.row, begin, gap, 0)
        earlier.insert(0, call.context(document=pads).window_keys)
    spec = replace(SPEC, window_tokens=lambda t, window: SPEC.window_tokens(offset + t, window))
    return call.out(replace(own, window_keys=torch.cat((*earlier, own.window_keys))), spec)


layer_bug(
    "window_reaches_into_the_previous_document",
    "The window begins in the packed row instead of the document, and so reaches into the document before.",
    "https://github.com/radixark/miles/pull/2038",
    "https://github.com/NVIDIA-NeMo/Automodel/pull/2696",
    "https://github.com/NVIDIA-NeMo/Automodel/pull/2731",
    answer=lambda call: _with_earlier_tokens(call, call.origin),
)


@layer_bug.function("https://github.com/radixark/miles/pull/2038", kinds=COMPRESSED)
def rotates_tokens_by_their_column_in_a_packed_row(call: DocumentCall) -> Tensor:
    """Positions of tokens run on over the documents of a row, while those of entries begin anew in each."""
    own, place = call.context(), call.document
    tokens = call.context(document=place._replace(start=place.start + place.begin - call.origin))
    return call.out(replace(tokens, entries=own.entries, index_keys=own.index_keys))


def _on_the_grid_of_the_row(call: DocumentCall, begin: int) -> Tensor:
    """Count blocks from a column of the row; a query sees those that hold tokens of its own document."""
    early, ratio = call.document.begin - begin, call.geometry.compress_ratio
    stream = call.context(document=call.stream(begin))
    spec = replace(SPEC, visible_entries=lambda t, m: _seeing(early // m, (early + t + 1) // m))
    return call.out_with_entries_of(stream, spec) if early and ratio > 1 else call.trace().out


layer_bug(
    "compresses_across_documents",
    "Blocks are counted from the beginning of the packed row, so that one may hold tokens of two documents.",
    "https://github.com/radixark/miles/pull/2038",
    "https://github.com/NVIDIA-NeMo/Automodel/pull/2696",
    kinds=COMPRESSED,
    answer=lambda call: _on_the_grid_of_the_row(call, call.origin),
)


@layer_bug.function(
    "https://github.com/radixark/miles/pull/2038",
    "https://github.com/NVIDIA-NeMo/Automodel/pull/2731",
    kinds=COMPRESSED,
)
def sees_the_entries_of_previous_documents(call: DocumentCall) -> Tensor:
    """A query sees the entries of all documents before its own in the packed row."""
    joined = _joined([*(call.context(document=document) for document in call.before), call.context()])
    earlier = len(joined.entries) - call.count
    return call.out(joined, replace(SPEC, visible_entries=lambda t, m: _seeing(0, earlier + (t + 1) // m)))


@layer_bug.function(kinds=COMPRESSED)
def sees_the_entries_of_the_first_document(call: DocumentCall) -> Tensor:
    """Positions begin anew in each packed document but entries do not: those of the first are seen."""
    stream = call.stream(call.origin)._replace(start=call.document.start)
    return call.out_with_entries_of(call.context(document=stream))


@layer_bug.function("https://github.com/NVIDIA-NeMo/Automodel/pull/3231")
def treats_a_packed_row_as_one_document(call: DocumentCall) -> Tensor:
    """The boundaries of packed documents are ignored, so that a row is one causal sequence."""
    whole = replace(call, document=call.stream(call.origin))
    return whole.trace().out[call.document.begin - call.origin :]


# PADDING

layer_bug(
    "pools_padding_into_entries",
    "Blocks are counted from the first column of the batch, so that padding on the left goes into entries.",
    "https://github.com/huggingface/transformers/issues/45938",
    kinds=COMPRESSED,
    answer=lambda call: call.trace().out if call.before else _on_the_grid_of_the_row(call, 0),
)
layer_bug(
    "sees_padding_in_its_window",
    "Padding on the left is not masked in the window.",
    answer=lambda call: call.trace().out if call.before else _with_earlier_tokens(call, 0),
)


def _padding(call: DocumentCall) -> list[Document]:
    """Return the padding before and behind the documents of a row, where it makes at least one block."""
    last = max(document.begin + document.length for document in call.own_row)
    spans = ((0, call.origin), (last, call.hidden.shape[1]))
    least = call.geometry.compress_ratio
    return [Document(call.document.row, a, b - a, 0) for a, b in spans if b - a >= least]


@layer_bug.function(kinds=COMPRESSED)
def sees_entries_made_of_padding(call: DocumentCall) -> Tensor:
    """Blocks of padding are compressed too, and since positions at padding are 0 every query sees them."""
    joined = _joined([*(call.context(document=padding) for padding in _padding(call)), call.context()])
    more = len(joined.entries) - call.count
    return call.out(joined, replace(SPEC, visible_entries=lambda t, m: _seeing(0, more + (t + 1) // m)))


@layer_bug.function(kinds=COMPRESSED)
def sees_entries_by_the_position_of_their_last_token(call: DocumentCall) -> Tensor:
    """An entry that ends in the padding behind a document has its position, 0, and so is seen at once."""
    place = call.document
    if any(document.begin > place.begin for document in call.own_row):
        return call.trace().out
    padded = place._replace(length=call.hidden.shape[1] - place.begin)

    def visible(t: int, m: int) -> list[int]:
        ends = [(s + 1) * m - 1 for s in range(padded.length // m)]
        return [s for s, end in enumerate(ends) if end <= t or end >= place.length]

    return call.out_with_entries_of(call.context(document=padded), replace(SPEC, visible_entries=visible))


def _by_keys_from_the_first_column(call: DocumentCall) -> list[list[int]]:
    if call.before:
        return call.selections(call.context())
    early = call.context(document=call.document._replace(begin=0))
    return call.selections(replace(call.context(), index_keys=early.index_keys))


layer_bug(
    "pools_padding_into_index_keys",
    "Only the indexer's blocks are counted from the first column, so that its keys hold padding on the left.",
    selections=_by_keys_from_the_first_column,
)


@layer_bug.function()
def reads_rows_from_their_end(call: DocumentCall) -> Tensor:
    """The tokens of a row are taken from the end of the batch, as if all padding were on the left."""
    last = max(document.begin + document.length for document in call.own_row)
    gap = call.hidden.shape[1] - last
    return replace(call, hidden=call.hidden.roll(-gap, 1)).trace().out


def _beginning_late(call: DocumentCall, late: int) -> Tensor:
    """Count blocks from a later token of the document."""
    place = call.document
    if not 0 < late < place.length:
        return call.trace().out
    inner = place._replace(begin=place.begin + late, length=place.length - late, start=place.start + late)
    spec = replace(SPEC, visible_entries=lambda t, m: _seeing(0, max(0, t - late + 1) // m))
    return call.out_with_entries_of(call.context(document=inner), spec)


layer_bug(
    "aligns_blocks_to_the_end_of_the_batch",
    "Blocks are counted from the end of the batch, so that the first S % m tokens are in none.",
    kinds=COMPRESSED,
    answer=lambda call: _beginning_late(
        call, (call.hidden.shape[1] - call.document.begin) % call.geometry.compress_ratio
    ),
)

# ROWS


def _without_the_offset_of_the_row(call: DocumentCall) -> list[list[int]]:
    base = call.document.row * call.geometry.entry_count(call.hidden.shape[1])
    return [[max(0, entry - base) for entry in query.selection] for query in call.trace().queries]


layer_bug(
    "subtracts_the_offset_of_the_request_twice",
    "The offset of the request is subtracted from selected entries that do not contain it.",
    "https://github.com/vllm-project/vllm/pull/41834",
    selections=_without_the_offset_of_the_row,
)


@layer_bug.function(kinds=COMPRESSED)
def gathers_entries_of_the_first_row(call: DocumentCall) -> Tensor:
    """The gather has no batch index, so that every row reads the entries of the first."""
    own, first = call.context(), call.context(document=call.documents[0])
    shared = min(len(own.entries), len(first.entries))
    return call.out(replace(own, entries=torch.cat((first.entries[:shared], own.entries[shared:]))))


@layer_bug.function(kinds=CSA)
def overlaps_with_the_last_block_of_the_previous_row(call: DocumentCall) -> Tensor:
    """The blocks of all rows are one list when it is shifted by one block for the overlap."""
    place, m = call.document, call.geometry.compress_ratio
    above = [one for one in call.documents if one.row < place.row and one.length >= m]
    if not above or not call.count or call.before or not call.geometry.overlap:
        return call.trace().out
    block = above[-1].begin + (above[-1].length // m - 1) * m
    earlier = call.hidden[above[-1].row, block : block + m]
    hidden = torch.cat((earlier, call.hidden[place.row, place.columns]))
    joined = Document(0, 0, len(hidden), place.start - m)
    context = replace(call, hidden=hidden[None], document=joined).context()
    return call.out_with_entries_of(
        replace(context, entries=context.entries[1:], index_keys=context.index_keys[1:])
    )


# SHARDS


def _shards(call: DocumentCall, boundary: int) -> Context:
    """Compress two shards of a document one by one."""
    place, own = call.document, call.context()
    if not call.geometry.compress_ratio <= boundary < place.length:
        return own
    second = place._replace(
        begin=place.begin + boundary, length=place.length - boundary, start=place.start + boundary
    )
    shards = place._replace(length=boundary), second
    return _joined([call.context(document=shard) for shard in shards])


@layer_bug.function(
    "https://github.com/PrimeIntellect-ai/prime-rl/pull/3508",
    "https://github.com/tenstorrent/tt-metal/pull/57192",
    kinds=COMPRESSED,
)
def compresses_each_shard_alone(call: DocumentCall) -> Tensor:
    """Each half of a sequence counts blocks from its own start, so that a block across both is lost."""
    half = (call.document.length + 1) // 2
    first = half // call.geometry.compress_ratio

    def visible(t: int, m: int) -> list[int]:
        return _seeing(0, min((t + 1) // m, first) + max(0, t + 1 - half) // m)

    return call.out_with_entries_of(_shards(call, half), replace(SPEC, visible_entries=visible))


layer_bug(
    "starts_a_shard_without_the_previous_block",
    "The first block of a shard does not overlap with the block before it, which is on another rank.",
    "https://github.com/baidu-baige/LoongForge/pull/141",
    "https://github.com/NVIDIA/Megatron-LM/pull/5087",
    "https://github.com/PaddlePaddle/PaddleFleet/pull/2053",
    kinds=CSA,
    answer=lambda call: call.out_with_entries_of(
        _shards(call, (call.count + 1) // 2 * call.geometry.compress_ratio)
    ),
)


@layer_bug.function(kinds=(LayerKind.SLIDING, LayerKind.HCA, LayerKind.CSA))
def compares_positions_of_queries_with_columns_of_keys(call: DocumentCall) -> Tensor:
    """The window compares positions of queries with columns of keys, so that later chunks miss keys."""

    def tokens(t: int, window: int) -> list[int]:
        return [j for j in SPEC.window_tokens(t, window) if j > call.document.start + t - window]

    return call.follow(window_tokens=tokens)


layer_bug(
    "aligns_blocks_to_absolute_positions",
    "Blocks begin at multiples of the ratio instead of at the first token of the document.",
    kinds=COMPRESSED,
    answer=lambda call: _beginning_late(call, -call.document.start % call.geometry.compress_ratio),
)
