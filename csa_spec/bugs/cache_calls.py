"""Caches that go wrong between any two calls."""

from __future__ import annotations

import torch
from torch import Tensor

from csa_spec.bugs.bug import CSA
from csa_spec.bugs.stream import COMPRESSED, Blocks, Cache, Projected, Slot, cache_bug
from csa_spec.spec import CompressorWeights, Geometry, LayerWeights


@cache_bug(kinds=CSA)
class LosesTheRemainder(Cache):
    """Tokens of an unfinished block are dropped at the end of a call."""

    def carry(self, blocks: Blocks) -> None:
        """Keep whole blocks only."""
        blocks.filling = []


@cache_bug(kinds=CSA)
class LosesTheOverlap(Cache):
    """The block before is known inside of a call only."""

    def carry(self, blocks: Blocks) -> None:
        """Forget it."""
        blocks.before = []


@cache_bug("https://github.com/GDzhu01/vllm-ascend-deepseekv4/pull/132", kinds=CSA)
class CarriesTheBlockBeforeThat(Cache):
    """Of several blocks in one call the last but one is kept."""

    def next_block(self, blocks: Blocks) -> None:
        """Keep all blocks until the call ends."""
        blocks.before, blocks.filling = blocks.before + blocks.filling, []

    def carry(self, blocks: Blocks) -> None:
        """Keep the last but one, where there are two."""
        m = self.geometry.compress_ratio
        blocks.before = (blocks.before[:-m] or blocks.before)[-m:]


@cache_bug(kinds=CSA)
class CarriesTheBlockThatIsFilled(Cache):
    """The block before is overwritten by what there is of the next."""

    def carry(self, blocks: Blocks) -> None:
        """Keep the unfinished block in both places."""
        blocks.before = list(blocks.filling) or blocks.before


@cache_bug(kinds=CSA)
class CarriesTheWrongHalf(Cache):
    """Of the block before the columns of the current role are kept."""

    def carry(self, blocks: Blocks) -> None:
        """Put the second half in the place of the first."""
        blocks.before = [tuple(x[len(x) // 2 :].repeat(2) for x in one) for one in blocks.before]  # type: ignore[misc]


@cache_bug("https://github.com/sgl-project/sglang/pull/24872", kinds=COMPRESSED)
class WritesIntoTheFirstEntry(Cache):
    """Decoding a token that ends no block writes to slot 0."""

    def feed(self, blocks: Blocks, w: CompressorWeights, x: Tensor, t: int, start: int) -> None:
        """Pool what there is of the block."""
        super().feed(blocks, w, x, t, start)
        if start and blocks.filling and blocks.entries:
            blocks.entries[0] = self.entry(blocks, w, t, start)


@cache_bug(kinds=COMPRESSED)
class CountsEntriesOnceACall(Cache):
    """All queries of a later call see what its first may see: VIS-07, in a port of the official helper."""

    def visible(self, slot: Slot, t: int, start: int) -> list[int]:
        """Count at the first token."""
        return super().visible(slot, start or t, start)


@cache_bug("https://github.com/SharpAI/SwiftLM/pull/159", kinds=COMPRESSED)
class CountsEntriesAfterTheCall(Cache):
    """The mask is made of the count after the update."""

    def visible(self, slot: Slot, t: int, start: int) -> list[int]:
        """Count at the last token."""
        return super().visible(slot, slot.count - 1 if start else t, start)


@cache_bug("https://github.com/hw-native-sys/pypto-lib/issues/592", kinds=CSA)
class SelectsOfThisCall(Cache):
    """Only entries of this call are scored."""

    def visible(self, slot: Slot, t: int, start: int) -> list[int]:
        """Leave earlier entries out."""
        return [s for s in super().visible(slot, t, start) if s >= start // self.geometry.compress_ratio]


@cache_bug("https://github.com/ml-explore/mlx-lm/pull/1189", kinds=CSA)
class KeepsIndexKeysOfThisCall(Cache):
    """Index keys are not kept, picks count from the call's first."""

    def finish(self, slot: Slot, start: int) -> None:
        """Drop them."""
        super().finish(slot, start)
        slot.index.entries = []

    def visible(self, slot: Slot, t: int, start: int) -> list[int]:
        """As many as there are index keys."""
        return super().visible(slot, t, start)[: len(slot.index.entries)]


@cache_bug(kinds=COMPRESSED)
class LosesAPromptOneTokenShortOfABlock(Cache):
    """Fewer than m - 1 tokens of a prompt are kept for the first block, m of them make it: m - 1 are neither."""

    def finish(self, slot: Slot, start: int) -> None:
        """Drop them."""
        super().finish(slot, start)
        if slot.count == self.geometry.compress_ratio - 1 and not start:
            slot.main.filling, slot.index.filling = [], []


@cache_bug(kinds=COMPRESSED)
class PoolsAPromptOfOneBlockAgain(Cache):
    """A prompt of up to m tokens is kept for the block that is being filled, though m of them have filled it."""

    def finish(self, slot: Slot, start: int) -> None:
        """Take the block before for the one that is being filled."""
        super().finish(slot, start)
        if slot.count == self.geometry.compress_ratio and not start:
            for blocks in (slot.main, slot.index):
                blocks.filling, blocks.before = blocks.before, []


@cache_bug()
class BeginsAnewWithALongCall(Cache):
    """A call longer than the window is taken to need no keys of the calls before it, which its first queries do."""

    def window(self, slot: Slot, t: int, start: int) -> list[Tensor]:
        """Leave them out."""
        seen = super().window(slot, t, start)
        return seen[-(t - start + 1) :] if slot.count - start > self.geometry.window else seen


@cache_bug()
class ClipsTheWindow(Cache):
    """Keys of earlier calls are not seen."""

    def window(self, slot: Slot, t: int, start: int) -> list[Tensor]:
        """Leave them out."""
        return super().window(slot, t, start)[-(t - start + 1) :]


@cache_bug()
class KeepsOneKeyTooFew(Cache):
    """The ring is as wide as the window without the query and its neighbour."""

    def kept(self) -> int:
        """One too few."""
        return max(0, self.geometry.window - 2)


@cache_bug(
    "https://github.com/xLLM-AI/xllm/pull/1515", "https://github.com/lightseekorg/tokenspeed/pull/613"
)
class OverwritesTheRing(Cache):
    """A call longer than the window overwrites keys that it still needs."""

    def take_in(self, slot: Slot, x: Tensor, start: int) -> None:
        """Hold no more keys than the window has."""
        super().take_in(slot, x, start)
        if start:
            slot.keys = slot.keys[-self.geometry.window :]

    def window(self, slot: Slot, t: int, start: int) -> list[Tensor]:
        """Take what is left."""
        return super().window(slot, t, start) or slot.keys[:1]


@cache_bug(kinds=COMPRESSED)
class CountsEntryPositionsInTheCall(Cache):
    """Entries are rotated as if the call were the document."""

    def entry_position(self, t: int, start: int) -> int:
        """Count from the call's first token."""
        return super().entry_position(t, start) - start


@cache_bug()
class CountsQueryPositionsInTheCall(Cache):
    """Queries are rotated as if the call were the document."""

    def query_position(self, t: int, start: int) -> int:
        """Count from the call's first token."""
        return t - start


@cache_bug("https://github.com/sgl-project/sglang/pull/35494")
class SharesOneState(Cache):
    """All rows have one state."""

    def __init__(self, weights: LayerWeights, geometry: Geometry, batch: int) -> None:
        super().__init__(weights, geometry, batch)
        self.slots = self.slots[:1] * batch


@cache_bug(
    "https://github.com/hw-native-sys/pypto-lib/pull/1013",
    "https://github.com/hw-native-sys/pypto-lib/pull/492",
    kinds=CSA,
)
class StoresACallBeforeItPools(Cache):
    """All tokens of a call go into a ring of two blocks before entries are made: later ones overwrite earlier ones."""

    def extend_row(self, slot: Slot, tokens: Tensor) -> Tensor:
        """Note the tokens of the call."""
        self.call = tokens
        return super().extend_row(slot, tokens)

    def entry(self, blocks: Blocks, w: CompressorWeights, t: int, start: int) -> Tensor:
        """Read the ring as the last token of the call leaves it."""
        m, last = self.geometry.compress_ratio, start + len(self.call) - 1

        def stored(one: Projected, j: int) -> Projected:
            holder = last - (last - j) % (2 * m)
            return one if holder <= j else self.projected(w, self.call[holder - start], holder)

        filling = [stored(one, t - m + 1 + i) for i, one in enumerate(blocks.filling)]
        before = [stored(one, t - 2 * m + 1 + i) for i, one in enumerate(blocks.before)]
        return super().entry(Blocks(before, filling), w, t, start)


@cache_bug("https://github.com/ml-explore/mlx-lm/pull/1189", kinds=CSA)
class SkipsIndexKeysOfShortContexts(Cache):
    """While every entry is selected no index keys are made, and later they are missing."""

    def index_key(self, slot: Slot, s: int, start: int) -> Tensor:
        """Return zeros for an entry that was made then."""
        key = super().index_key(slot, s, start)
        return key if s >= self.geometry.top_k else torch.zeros_like(key)


@cache_bug("https://github.com/LMCache/LMCache/pull/5010", kinds=CSA)
class KeepsIndexKeysOfPrefillsOnly(Cache):
    """A token that comes alone adds no index key."""

    def extend_row(self, slot: Slot, tokens: Tensor) -> Tensor:
        """Note whether this is a prefill."""
        self.alone = len(tokens) == 1
        return super().extend_row(slot, tokens)

    def feed(self, blocks: Blocks, w: CompressorWeights, x: Tensor, t: int, start: int) -> None:
        """Leave zeros where the index key should be."""
        super().feed(blocks, w, x, t, start)
        if (
            self.alone
            and self.weights.indexer
            and w is self.weights.indexer.compressor
            and not blocks.filling
        ):
            blocks.entries[-1] = torch.zeros_like(blocks.entries[-1])


@cache_bug(
    "https://github.com/1CatAI/1Cat-vLLM/pull/250",
    "https://github.com/vllm-project/vllm/pull/40991",
    "https://github.com/vllm-project/vllm/issues/52109",
    "https://github.com/HYGON-AI/vllm-plugin-das/pull/89",
    "https://github.com/ROCm/aiter/pull/4028",
    kinds=CSA,
)
class ReadsIndexKeysInAnotherLayout(Cache):
    """Pages of two index keys are written key by key and read channel by channel, but for the first call."""

    def index_key(self, slot: Slot, s: int, start: int) -> Tensor:
        """Take every second number of a page."""
        page = slot.index.entries[s // 2 * 2 : s // 2 * 2 + 2]
        if not start or len(page) < 2:
            return super().index_key(slot, s, start)
        return torch.stack(page).T.reshape(2, -1)[s % 2]


@cache_bug(
    "https://github.com/vllm-project/vllm/pull/51042",
    "https://github.com/vllm-project/vllm/pull/51538",
)
class HasOneWindowForACall(Cache):
    """The window of a call of several tokens is as wide as all of theirs together."""

    def window(self, slot: Slot, t: int, start: int) -> list[Tensor]:
        """Begin where the window of the call's first query does."""
        end = len(slot.keys) - (slot.count - 1 - t)
        first = start or t
        return slot.keys[max(0, end - self.geometry.window - (t - first)) : end]


@cache_bug("https://github.com/Luce-Org/lucebox/pull/698")
class AnswersTheLastTokenOnly(Cache):
    """Of a later call only the last token gets an answer; the others keep zeros."""

    def extend_row(self, slot: Slot, tokens: Tensor) -> Tensor:
        """Leave the others out."""
        later, out = slot.count > 0, super().extend_row(slot, tokens)
        return torch.cat((torch.zeros_like(out[:-1]), out[-1:])) if later else out


@cache_bug(kinds=COMPRESSED)
class BeginsBlocksWithTheCall(Cache):
    """A call is taken to begin with a block: the position bias counts from its first token."""

    def projected(self, w: CompressorWeights, x: Tensor, t: int) -> Projected:
        """Count from the call's first token."""
        return super().projected(w, x, t - self.begin)

    def extend_row(self, slot: Slot, tokens: Tensor) -> Tensor:
        """Note where it begins."""
        self.begin = slot.count
        return super().extend_row(slot, tokens)
