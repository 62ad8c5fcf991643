"""Keys in pages, as serving engines keep them: how a case says so, and what is handed over.

``[B, N, D]`` becomes pages ``[pages, page size, D]`` in any order, and a table ``[B, ceil(N / page size)]``
that says in which page the keys of a row lie. Key j of row b is ``pages[table[b, j // size], j % size]``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from csa_spec.engine.case import LARGEST, Case, CaseError, coded, whole
from csa_spec.engine.tensors import generator
from csa_spec.plug.capabilities import Capabilities
from csa_spec.plug.plain import shown

TABLE = "block_table"
_UNUSED = 3
"""Pages that no row has, in every cache"""
_MOST_ROWS = 2**22
"""Keys that all unused pages hold, where a case does not name its page size"""


@dataclass(frozen=True, kw_only=True, repr=False)
class PagedCase(Case):
    """A case whose keys are handed over in pages to candidates that declare it."""

    page: int = coded(whole, default=0, rank=2)
    """Keys that a page holds; 0: the keys are not in pages"""
    spare: int = coded(whole, default=0, rank=2)
    """More pages without use, which come before all others: numbers of pages are large"""

    def _complete(self) -> None:
        """Refuse pages that cannot be."""
        for name in ("page", "spare"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST:
                raise CaseError(f"{name} must be from 0 to {LARGEST:,}, not {shown(value, 40)}")

    def formed(self, capabilities: Capabilities) -> Self:
        """Return the case with pages of a declared size, which its seed chooses, or without any."""
        if self.page in capabilities.paged or not (self.page or self.spare or capabilities.paged):
            return self
        if not capabilities.paged:
            return replace(self, page=0, spare=0)
        sizes = sorted(capabilities.paged)
        page = sizes[self.seed % len(sizes)]
        return replace(self, page=page, spare=min(self.spare, _MOST_ROWS // page))

    @property
    def order(self) -> tuple[Any, ...]:
        """Smaller pages, and fewer of them, are simpler."""
        total, oddities, seed = super().order
        return (total, oddities + self.page + self.spare, seed)

    def places(self, keys: int) -> int:
        """Return how many keys the pages of a row have room for: as many as there are, without pages."""
        return math.ceil(keys / self.page) * self.page if self.page else keys

    def pages(self, rows: int, keys: int) -> int:
        """Return how many pages there are."""
        return rows * self.places(keys) // self.page + _UNUSED + self.spare if self.page else 0

    def page_kinds(self, keys: int) -> set[str]:
        """Return the kinds of case that its pages make."""
        holds = {
            f"page {self.page}": self.page > 0,
            _SEVERAL: 0 < self.page < keys,
            _PARTLY: self.page > 0 and keys % self.page > 0,
        }
        return {name for name, is_so in holds.items() if is_so}


_SEVERAL, _PARTLY = "several pages in a row", "a page partly filled"
_FEW = 100
"""A page size at which several pages are a small case"""


def required_pages(capabilities: Capabilities) -> list[str]:
    """Return the kinds of case that a run must reach, given the page sizes that a candidate declares."""
    sizes = sorted(capabilities.paged)
    several = [_SEVERAL] * any(size < _FEW for size in sizes)
    return [*(f"page {size}" for size in sizes), *several, *[_PARTLY] * any(size > 1 for size in sizes)]


def simpler_pages(case: PagedCase) -> Iterator[PagedCase]:
    """Yield the case with smaller and with fewer pages."""
    sizes = {factor << bits for factor in (1, 3) for bits in range(case.page.bit_length())}
    yield from (replace(case, page=size) for size in sorted(sizes) if size < case.page)
    spares = [0, *(1 << bits for bits in range(case.spare.bit_length()))]
    yield from (replace(case, spare=spare) for spare in spares if spare < case.spare)


def in_pages(case: PagedCase, keys: Tensor, used: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return keys ``[B, N, D]`` as pages ``[pages, page, D]``, and the table of the rows in int32.

    ``used`` ``[B, N]`` says which keys anybody names; None: all. What stands in the table for a page without
    one is garbage: -1, or a page that no row has. All that is no key is NaN, or the largest number.
    """
    (rows, count, channels), size, seed = keys.shape, case.page, case.seed
    width, total = math.ceil(count / size), case.pages(rows, count)
    numbers = case.spare + torch.randperm(rows * width + _UNUSED, generator=generator(seed, "pages"))
    table, unused = numbers[: rows * width].view(rows, width), int(numbers[-1])
    places = torch.arange(count)
    memory = keys.new_full((total * size * channels,), torch.nan)
    memory[::3] = torch.finfo(keys.dtype).max
    pages = memory.view(total * size, channels)
    pages[table[:, places // size] * size + places % size] = keys
    if used is not None:
        whole_pages = torch.zeros(rows, width * size, dtype=torch.bool)
        whole_pages[:, :count] = used
        garbage = torch.where(torch.arange(width) % 2 == 0, unused, -1)
        table = torch.where(whole_pages.view(rows, width, size).any(-1), table, garbage)
    return pages.view(total, size, channels), table.int()
