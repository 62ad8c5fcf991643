"""Sizes at which implementations switch to another kernel, another tile or wider integers.

What is wrong on one side of such a size alone shows only in cases on that side. So every size of a stage is
tried at each of them, one below, one above, and between them; a run must reach each of these kinds of case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, pairwise

THRESHOLDS = (1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 32768, 65536, 2**20, 2**24)
LEAST_PRODUCT = 64
"""The least threshold of two sizes that multiply: below it, single sizes reach every product"""


def size_kinds(sizes: Mapping[str, int], products: Iterable[tuple[str, str]]) -> set[str]:
    """Return the kinds of case that sizes make, by their letters.

    ``S around 64`` is 63, 64 or 65, ``S between 64 and 128`` lies between such sizes, and ``B*S over 64`` is a
    product of two sizes that are both above 1.
    """
    kinds = {kind for letter, size in sizes.items() for kind in _of_one(letter, size)}
    for first, second in products:
        product, both = sizes[first] * sizes[second], min(sizes[first], sizes[second]) > 1
        below = max((t for t in THRESHOLDS if LEAST_PRODUCT <= t < product), default=0)
        if both and below:
            kinds.add(f"{first}*{second} over {below}")
    return kinds


def _of_one(letter: str, size: int) -> list[str]:
    around = [f"{letter} around {t}" for t in THRESHOLDS if abs(size - t) <= 1]
    gaps = ((low, high) for low, high in pairwise(THRESHOLDS) if low < size < high)
    return around or [f"{letter} between {low} and {high}" for low, high in gaps]


def summarised(kinds: Sequence[str]) -> list[str]:
    """Return kinds of sizes in few words, a text for each size: there may be hundreds of kinds."""
    texts = []
    for letter, group in groupby(kinds, key=lambda kind: kind.partition(" ")[0]):
        first, *others = (kind.partition(" ")[2] for kind in group)
        last = f", ..., {others[-1]}" if others else ""
        texts.append(f"sizes {letter} {first}{last}")
    return texts
