"""Caches that go wrong between any two calls."""
# ruff: noqa: D102 - Cache says what its methods do

from __future__ import annotations

import torch
from torch import Tensor

from csa_spec.bugs.bug import CSA
from csa_spec.bugs.stream import COMPRESSED, Blocks, Cache, Projected, Slot, cache_bug, wrong_stream
from csa_spec.spec import CompressorWeights, Geometry, LayerWeights


@wrong_stream(kinds=CSA)
class LosesTheUnfinishedBlock(Cache):
    """Tokens of an unfinished block are dropped at the end of a call."""

    def carry(self, blocks: Blocks) -> None:
        blocks.filling = []


@wrong_stream(kinds=CSA)
class LosesThePreviousBlockBetweenCalls(Cache):
    """The previous block is known only within a call."""

    def carry(self, blocks: Blocks) -> None:
        blocks.before = []


@wrong_stream("https://github.com/GDzhu01/vllm-ascend-deepseekv4/pull/132", kinds=CSA)
class KeepsTheBlockBeforeThePreviousOne(Cache):
    """Where a call completes several blocks, the last but one is kept for the overlap."""

    def next_block(self, blocks: Blocks) -> None:
        blocks.before, blocks.filling = blocks.before + blocks.filling, []

    def carry(self, blocks: Blocks) -> None:
        m = self.geometry.compress_ratio
        blocks.before = (blocks.before[:-m] or blocks.before)[-m:]


@wrong_stream(kinds=CSA)
class OverwritesThePreviousBlockWithTheUnfinishedOne(Cache):
    """At the end of a call the unfinished block takes the place of the previous one too."""

    def carry(self, blocks: Blocks) -> None:
        blocks.before = list(blocks.filling) or blocks.before


@wrong_stream(kinds=CSA)
class KeepsTheWrongHalfOfThePreviousBlock(Cache):
    """Of the previous block the columns for the current role are kept."""

    def carry(self, blocks: Blocks) -> None:
        halves = [(x[len(x) // 2 :], logits[len(x) // 2 :]) for x, logits in blocks.before]
        blocks.before = [(x.repeat(2), logits.repeat(2)) for x, logits in halves]


@wrong_stream("https://github.com/sgl-project/sglang/pull/24872", kinds=COMPRESSED)
class WritesTheUnfinishedBlockToEntry0(Cache):
    """A decoded token that completes no block writes to entry 0."""

    def feed(self, blocks: Blocks, w: CompressorWeights, x: Tensor, t: int, start: int) -> None:
        super().feed(blocks, w, x, t, start)
        if start and blocks.filling and blocks.entries:
            blocks.entries[0] = self.entry(blocks, w, t, start)


cache_bug(
    "counts_visible_entries_once_per_call",
    "All queries of a later call see what its first query may see, as in a port of the official helper.",
    kinds=COMPRESSED,
    visible=lambda cache, slot, t, start: Cache.visible(cache, slot, start or t, start),
)
cache_bug(
    "counts_visible_entries_after_the_update",
    "All queries of a later call see the entries that there are after it, future ones included.",
    "https://github.com/SharpAI/SwiftLM/pull/159",
    kinds=COMPRESSED,
    visible=lambda cache, slot, t, start: Cache.visible(cache, slot, slot.count - 1 if start else t, start),
)


@wrong_stream("https://github.com/hw-native-sys/pypto-lib/issues/592", kinds=CSA)
class SelectsOnlyEntriesOfTheCurrentCall(Cache):
    """Only entries of the current call are scored."""

    def visible(self, slot: Slot, t: int, start: int) -> list[int]:
        return [s for s in super().visible(slot, t, start) if s >= start // self.geometry.compress_ratio]


@wrong_stream("https://github.com/ml-explore/mlx-lm/pull/1189", kinds=CSA)
class KeepsIndexKeysForOneCallOnly(Cache):
    """Index keys are not kept between calls, so that entries are counted from the current call."""

    def finish(self, slot: Slot, start: int) -> None:
        super().finish(slot, start)
        slot.index.entries = []

    def visible(self, slot: Slot, t: int, start: int) -> list[int]:
        return super().visible(slot, t, start)[: len(slot.index.entries)]


@wrong_stream(kinds=COMPRESSED)
class LosesAPromptOneTokenShortOfABlock(Cache):
    """A prompt of exactly m - 1 tokens is neither kept as an unfinished block nor pooled."""

    def finish(self, slot: Slot, start: int) -> None:
        super().finish(slot, start)
        if slot.count == self.geometry.compress_ratio - 1 and not start:
            slot.main.filling, slot.index.filling = [], []


@wrong_stream(kinds=COMPRESSED)
class PoolsAPromptOfOneBlockTwice(Cache):
    """A prompt of exactly m tokens is kept as an unfinished block, although it is an entry already."""

    def finish(self, slot: Slot, start: int) -> None:
        super().finish(slot, start)
        if slot.count == self.geometry.compress_ratio and not start:
            for blocks in slot.compressors:
                blocks.filling, blocks.before = blocks.before, []


@wrong_stream()
class ForgetsEarlierKeysInALongCall(Cache):
    """A call longer than the window is taken to need no keys of earlier calls, but its first queries do."""

    def window(self, slot: Slot, t: int, start: int) -> list[Tensor]:
        seen = super().window(slot, t, start)
        return seen[-(t - start + 1) :] if slot.count - start > self.geometry.window else seen


cache_bug(
    "does_not_see_keys_of_earlier_calls",
    "The window holds only keys of the current call.",
    window=lambda cache, slot, t, start: Cache.window(cache, slot, t, start)[-(t - start + 1) :],
)
cache_bug(
    "keeps_one_key_too_few",
    "The ring of the window holds W - 2 keys, although a query sees W - 1 keys before its own.",
    kept=lambda cache: max(0, cache.geometry.window - 2),
)


@wrong_stream(
    "https://github.com/xLLM-AI/xllm/pull/1515", "https://github.com/lightseekorg/tokenspeed/pull/613"
)
class OverwritesKeysThatALongCallNeeds(Cache):
    """A call longer than the window overwrites keys in the ring that its first queries still need."""

    def take_in(self, slot: Slot, x: Tensor, start: int) -> None:
        super().take_in(slot, x, start)
        if start:
            slot.keys = slot.keys[-self.geometry.window :]

    def window(self, slot: Slot, t: int, start: int) -> list[Tensor]:
        return super().window(slot, t, start) or slot.keys[:1]


cache_bug(
    "counts_entry_positions_from_the_call",
    "Entries are rotated to positions counted from the first token of the call.",
    kinds=COMPRESSED,
    entry_position=lambda cache, t, start: Cache.entry_position(cache, t, start) - start,
)
cache_bug(
    "counts_query_positions_from_the_call",
    "Queries are rotated to positions counted from the first token of the call.",
    query_position=lambda cache, t, start: t - start,
)


@wrong_stream("https://github.com/sgl-project/sglang/pull/35494")
class SharesOneStateBetweenRows(Cache):
    """All rows of the batch share one state."""

    def __init__(self, weights: LayerWeights, geometry: Geometry, batch: int) -> None:
        super().__init__(weights, geometry, batch)
        self.slots = self.slots[:1] * batch


@wrong_stream(
    "https://github.com/hw-native-sys/pypto-lib/pull/1013",
    "https://github.com/hw-native-sys/pypto-lib/pull/492",
    kinds=CSA,
)
class StoresAllTokensOfACallBeforePooling(Cache):
    """All tokens of a call go into a ring of two blocks before any is pooled, and overwrite each other."""

    def extend_row(self, slot: Slot, tokens: Tensor) -> Tensor:
        self.call = tokens
        return super().extend_row(slot, tokens)

    def entry(self, blocks: Blocks, w: CompressorWeights, t: int, start: int) -> Tensor:
        m, last = self.geometry.compress_ratio, start + len(self.call) - 1

        def stored(token: Projected, j: int) -> Projected:
            """Read the ring as the last token of the call leaves it."""
            holder = last - (last - j) % (2 * m)
            return token if holder <= j else self.projected(w, self.call[holder - start], holder)

        filling = [stored(token, t - m + 1 + i) for i, token in enumerate(blocks.filling)]
        before = [stored(token, t - 2 * m + 1 + i) for i, token in enumerate(blocks.before)]
        return super().entry(Blocks(before, filling), w, t, start)


@wrong_stream("https://github.com/ml-explore/mlx-lm/pull/1189", kinds=CSA)
class SkipsIndexKeysOfShortContexts(Cache):
    """While every entry is selected no index keys are made, and later they are missing."""

    def index_key(self, slot: Slot, s: int, start: int) -> Tensor:
        key = super().index_key(slot, s, start)
        return key if s >= self.geometry.top_k else torch.zeros_like(key)


@wrong_stream("https://github.com/LMCache/LMCache/pull/5010", kinds=CSA)
class KeepsIndexKeysOfPrefillsOnly(Cache):
    """A block that is completed by a call of one token gets no index key."""

    def extend_row(self, slot: Slot, tokens: Tensor) -> Tensor:
        self.alone = len(tokens) == 1
        return super().extend_row(slot, tokens)

    def feed(self, blocks: Blocks, w: CompressorWeights, x: Tensor, t: int, start: int) -> None:
        super().feed(blocks, w, x, t, start)
        indexer = self.weights.indexer
        if self.alone and indexer and w is indexer.compressor and not blocks.filling:
            blocks.entries[-1] = torch.zeros_like(blocks.entries[-1])


@wrong_stream(
    "https://github.com/1CatAI/1Cat-vLLM/pull/250",
    "https://github.com/vllm-project/vllm/pull/40991",
    "https://github.com/vllm-project/vllm/issues/52109",
    "https://github.com/HYGON-AI/vllm-plugin-das/pull/89",
    "https://github.com/ROCm/aiter/pull/4028",
    kinds=CSA,
)
class ReadsIndexKeysInAnotherLayout(Cache):
    """After the first call, pages of two index keys written key by key are read channel by channel."""

    def index_key(self, slot: Slot, s: int, start: int) -> Tensor:
        page = slot.index.entries[s // 2 * 2 : s // 2 * 2 + 2]
        if not start or len(page) < 2:
            return super().index_key(slot, s, start)
        return torch.stack(page).T.reshape(2, -1)[s % 2]


@wrong_stream(
    "https://github.com/vllm-project/vllm/pull/51042",
    "https://github.com/vllm-project/vllm/pull/51538",
)
class UsesOneWindowForAllQueriesOfACall(Cache):
    """The windows of all queries of a call begin where that of its first query does."""

    def window(self, slot: Slot, t: int, start: int) -> list[Tensor]:
        end = len(slot.keys) - (slot.count - 1 - t)
        first = start or t
        return slot.keys[max(0, end - self.geometry.window - (t - first)) : end]


@wrong_stream("https://github.com/Luce-Org/lucebox/pull/698")
class AnswersTheLastTokenOnly(Cache):
    """In a later call only the last token gets an output; the outputs of the others stay zero."""

    def extend_row(self, slot: Slot, tokens: Tensor) -> Tensor:
        later, out = slot.count > 0, super().extend_row(slot, tokens)
        return torch.cat((torch.zeros_like(out[:-1]), out[-1:])) if later else out


@wrong_stream(kinds=COMPRESSED)
class CountsPlacesInABlockFromTheCall(Cache):
    """The position bias is counted from the first token of the call, as if a block began there."""

    def projected(self, w: CompressorWeights, x: Tensor, t: int) -> Projected:
        return super().projected(w, x, t - self.begin)

    def extend_row(self, slot: Slot, tokens: Tensor) -> Tensor:
        self.begin = slot.count
        return super().extend_row(slot, tokens)
