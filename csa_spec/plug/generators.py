"""The random generators of the process, which a call gets in states that no seeding gives.

So a call that seeds one to the very state in which it is shows, and one whose output depends on what it draws
gives another output in the next call.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

DRAWN = "the call draws from it"
SEEDED = "the call seeds it"
_STRANGE_SEEDS = (0x5EED_1DEA_0B5E_55ED, 0x5EED_F00D_0FF5_E7ED)
_MOST = 1 << 15
"""Numbers that a call may draw from a generator that does not tell its seed, and still only draw"""


class Generator(Protocol):
    """One random generator."""

    def begin(self) -> None:
        """Remember its state, and give it a strange one."""

    def end(self) -> str:
        """Put the state back; say what the call did to it, if it did something."""


def generators() -> dict[str, Generator]:
    """Return the generators that there are, by what they are called."""
    found: dict[str, Generator] = {"torch's random generator": _TORCH, "Python's random generator": _PYTHON}
    if hasattr(sys.modules.get("numpy.random"), "set_bit_generator"):  # since NumPy 1.24
        found["numpy's random generator"] = _of_numpy()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found["CUDA's random generator"] = _of_cuda()
    return found


class _Torch:
    """One of torch's generators, which know the seed that they had."""

    def __init__(
        self,
        read: Callable[[], Tensor],
        write: Callable[[Tensor], object],
        seed: Callable[[], int],
        strange: torch.Generator,
    ) -> None:
        self._read, self._write, self._seed = read, write, seed
        states = []
        for number in _STRANGE_SEEDS:
            strange.manual_seed(number)
            torch.rand(7, generator=strange, device=strange.device)
            states.append((number, strange.get_state()))
        self._states = itertools.cycle(states)

    def begin(self) -> None:
        self._own, (self._given_seed, self._given) = self._read(), next(self._states)
        self._write(self._given)

    def end(self) -> str:
        after, seed = self._read(), self._seed()
        self._write(self._own)
        if torch.equal(after, self._given):
            return ""
        return DRAWN if seed == self._given_seed else SEEDED


class _Python:
    """The generator of the module ``random``."""

    def __init__(self) -> None:
        states = []
        for number in _STRANGE_SEEDS:
            strange = random.Random(number)
            strange.random()
            state = strange.getstate()
            states.append((state, [strange.getrandbits(32) for _ in range(4)]))
        self._states = itertools.cycle(states)

    def begin(self) -> None:
        self._own, (self._given, self._expected) = random.getstate(), next(self._states)
        random.setstate(self._given)

    def end(self) -> str:
        words = [random.getrandbits(32) for _ in range(4)]  # far cheaper than its state
        random.setstate(self._own)
        if words == self._expected:
            return ""
        again = random.Random()
        again.setstate(self._given)
        return _drawn_or_seeded(words, (again.getrandbits(32) for _ in range(_MOST)))


class _Numpy:
    """numpy's global generator, whose bits come from another source for the time of a call."""

    def __init__(self) -> None:
        self._module: Any = sys.modules["numpy.random"]
        self._strange()

    def _strange(self) -> None:
        self._given, self._twin = (self._module.MT19937(_STRANGE_SEEDS[0]) for _ in range(2))

    def begin(self) -> None:
        self._own, self._state = self._module.get_bit_generator(), self._module.get_state(legacy=False)
        self._module.set_bit_generator(self._given)

    def end(self) -> str:
        bits = self._module.get_bit_generator()
        self._module.set_bit_generator(self._own)
        if self._state["has_gauss"]:  # lost when the source changes
            self._module.set_state(self._state)
        words = [] if bits is not self._given else [self._given.random_raw() for _ in range(4)]
        # The twin keeps step, so neither ever needs its state set.
        if words == [self._twin.random_raw() for _ in range(4)]:
            return ""
        twin = self._module.MT19937(_STRANGE_SEEDS[0])
        self._strange()
        return _drawn_or_seeded(words, map(int, twin.random_raw(_MOST)))


def _drawn_or_seeded(words: list[int], stream: Iterable[int]) -> str:
    """Whether numbers come later in the stream from which they should have been the first."""
    return DRAWN if words and words[0] in stream else SEEDED  # 32 bits: one in 100,000 is taken for another


@cache
def _of_numpy() -> Generator:
    return _Numpy()


@cache
def _of_cuda() -> Generator:
    cuda = torch.cuda
    return _Torch(cuda.get_rng_state, cuda.set_rng_state, cuda.initial_seed, torch.Generator("cuda"))


_TORCH = _Torch(torch.get_rng_state, torch.set_rng_state, torch.initial_seed, torch.Generator())
_PYTHON = _Python()
