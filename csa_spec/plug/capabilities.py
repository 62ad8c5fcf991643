"""What a candidate declares: what it supports, which sizes, and which liberties it takes."""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from math import lcm
from types import MappingProxyType

from csa_spec.plug.layouts import CONTIGUOUS, Layout
from csa_spec.plug.plain import shown
from csa_spec.spec import LayerKind

DTYPES = ("float32", "float64", "bfloat16", "float16")
NARROW = ("bfloat16", "float16")
DEVICES = ("cpu", "cuda")
INDEX_DTYPES = ("int64", "int32")

Sized = str | tuple[str, str]
"""The letter of a size, or a layer kind and the letter where kinds differ: ``("csa", "m")``."""

_NOTHING: Mapping[tuple[str, str], str] = MappingProxyType({})
_NO_SIZES: Mapping[Sized, int] = MappingProxyType({})
_ANY_SIZE: Mapping[Sized, Container[int]] = MappingProxyType({})
_FAR = 4096
"""How far the nearest supported size is looked for."""


def unknown_device(device: str) -> str:
    """Say what to write in place of a device that is not known, such as ``cuda:0``."""
    number = re.fullmatch(r"cuda:([0-9]{1,3})", device)
    if number is None:
        return f"unknown device {shown(device)}; choose from {', '.join(DEVICES)}"  # gpu is no slip of cpu
    return f"unknown device {device!r}; write cuda, and choose the GPU with CUDA_VISIBLE_DEVICES={number[1]}"


_STRIDED = ("torch", "numpy", "cupy")
"""Libraries whose arrays are views of memory with strides"""


class AllBut:
    """Every size but these, for ``Capabilities.allowed``."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = frozenset(sizes)

    def __contains__(self, size: object) -> bool:
        """Whether a size is not one of them."""
        return size not in self.sizes

    def __repr__(self) -> str:
        """Return e.g. ``AllBut(4)``."""
        return f"AllBut({', '.join(map(str, sorted(self.sizes)))})"


@dataclass(frozen=True, slots=True)
class SizeRule:
    """Which values of one size a candidate supports."""

    least: int = 0
    limit: int | None = None
    multiple: int = 1
    allowed: tuple[Container[int], ...] = ()

    @property
    def declared(self) -> bool:
        """Whether it leaves anything out."""
        return self != SizeRule()

    def __str__(self) -> str:
        """Return e.g. ``at least 2, at most 8``."""
        parts = [f"at least {self.least}"] if self.least else []
        parts += [] if self.limit is None else [f"at most {self.limit}"]
        parts += [f"a multiple of {self.multiple}"] if self.multiple > 1 else []
        return ", ".join([*parts, *(f"out of {sizes}" for sizes in self.allowed)])

    def allows(self, size: int) -> bool:
        """Whether a size is supported."""
        return not self.reason(size, "")

    def reason(self, size: int, letter: str) -> str:
        """Say why a size is not supported; nothing if it is."""
        if size < self.least:
            return f"{letter} under {self.least}"
        if self.limit is not None and size > self.limit:
            return f"{letter} over {self.limit}"
        if size % self.multiple:
            return f"{letter} not a multiple of {self.multiple}"
        if not all(size in sizes for sizes in self.allowed):
            return f"{letter}={size}"
        return ""

    def within(self, least: int, multiple: int) -> SizeRule:
        """Return the rule for sizes of which only some are legal at all."""
        return replace(self, least=max(self.least, least), multiple=lcm(self.multiple, multiple))

    def nearest(self, size: int) -> int | None:
        """Return the nearest supported size, a larger one before a smaller one; None if there is none.

        Of a finite set of allowed sizes it is the nearest, whichever way.
        """
        finite = [sizes for sizes in self.allowed if isinstance(sizes, Collection)]
        if finite:
            fitting = [allowed for allowed in finite[0] if self.allows(allowed)]
            return min(fitting, key=lambda allowed: (abs(allowed - size), allowed), default=None)
        begin = max(size, self.least)
        end = begin + _FAR if self.limit is None else self.limit
        larger = filter(self.allows, range(begin, min(end, begin + _FAR) + 1))
        smaller = filter(self.allows, range(min(begin, end), -1, -1))
        return next(larger, next(smaller, None))

    def just_outside(self, size: int) -> Iterator[list[int]]:
        """Yield, for each thing that is declared, sizes just outside of it, those near ``size`` first."""
        if self.limit is not None:
            yield [self.limit + 1, self.limit + 2]
        if self.least:
            yield [self.least - 1, self.least - 2]
        near = sorted(range(max(0, size - 8), size + 9), key=lambda other: abs(other - size))
        if self.multiple > 1:
            yield [other for other in near if other % self.multiple and other >= self.least]
        for sizes in self.allowed:
            yield [other for other in near if other not in sizes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a candidate supports, and which liberties it takes. All that is not declared is tested strictly.

    Sizes go by the letters of their stage (``docs/stages.md``), such as S, B, m, k, W. What is declared away
    is left out and counted in the report, and tried just outside: there it must raise an error or be right.
    """

    # What it supports.
    kinds: Set[LayerKind] = frozenset(LayerKind)
    dtypes: Set[str] = frozenset(DTYPES)
    devices: Set[str] = frozenset(DEVICES)
    compress_ratios: Set[int] | None = None
    """Short for ``allowed={"m": ...}``. None: any"""
    head_dims: Set[int] | None = None
    """Short for ``allowed={"D": ...}``. None: any"""
    max_top_k: int | None = None
    """Short for ``limits={"k": ...}``. None: any"""
    limits: Mapping[Sized, int] = field(default_factory=lambda: _NO_SIZES)
    """Largest sizes, e.g. ``{"S": 1}`` for decoding only"""
    least: Mapping[Sized, int] = field(default_factory=lambda: _NO_SIZES)
    """Smallest sizes, e.g. ``{"n": 1}`` where an empty index list is refused"""
    multiples: Mapping[Sized, int] = field(default_factory=lambda: _NO_SIZES)
    """What sizes must be multiples of, e.g. ``{"n": 64}``"""
    allowed: Mapping[Sized, Container[int]] = field(default_factory=lambda: _ANY_SIZE)
    """Sets of sizes, e.g. ``{("csa", "m"): {4}, ("hca", "m"): AllBut(4)}``"""
    lacks: Mapping[tuple[str, str], str] = field(default_factory=lambda: _NOTHING)
    """What else is not supported, with the reason or the URL that says so. Keys are a layer kind and a
    :class:`csa_spec.Feature` of rows, or a stage and one of the names that its cases give to their data,
    e.g. ``("attend", "empty")``"""
    arrays: str = "torch"
    """The library of its arrays: ``torch``, ``numpy``, or a module with ``from_dlpack``"""
    gradients: bool = False
    """Autograd runs through it: then its gradients are compared with the specification's"""
    invalid_indices: bool = False
    """attend takes any index outside of the keys for none, not only -1"""
    index_dtypes: Set[str] = frozenset({"int64"})
    """What attend takes its indices in: ``int64``, ``int32`` or both"""
    lengths: bool = False
    """attend takes ``topk_length [B, S]`` by name: how many places of each list count"""
    paged: Collection[int] = ()
    """Page sizes, e.g. ``(1, 16, 64)``: attend takes ``kv``, and index_scores ``index_k``, as pages, with
    ``block_table`` by name"""
    contiguous: bool = False
    """It needs contiguous tensors. Then it must refuse views that are not, or answer them rightly"""
    static_shapes: bool = False
    """It compiles for every new shape: sizes are drawn from a few powers of four"""

    # Liberties.
    internal_dtype: str | None = None
    """Widest dtype of the candidate's own arithmetic, where that is narrower than the case's dtype"""
    tie_tolerance: float = 0.0
    """select takes scores for equal that differ by this much of the larger magnitude, e.g. 2**-7 if it
    rounds to bfloat16 first, which moves each by up to 2**-8"""
    lowest_index_first: bool = False
    """A promise: among equal scores select takes the lowest entries. Without it any choice is right"""
    draws_random: bool = False
    """A call draws from the process's random generators, to make a module say; its output never depends on
    what it draws, and it never seeds them"""
    deterministic: bool = True
    """Two runs on the same input give the same bits"""
    batch_invariant: bool = True
    """A row gives the same bits alone as in a batch"""

    @property
    def layouts(self) -> frozenset[str]:
        """How tensors may lie in memory: arrays other than torch's have no grad, those of JAX no strides."""
        if self.arrays not in _STRIDED:
            return frozenset({Layout.PLAIN})
        left = CONTIGUOUS if self.contiguous else frozenset(Layout)
        return left - (frozenset() if self.arrays == "torch" else {Layout.REQUIRES_GRAD})

    @property
    def sizes(self) -> dict[str, Mapping[Sized, object]]:
        """What is declared of sizes, by the name of the field."""
        return {name: getattr(self, name) for name in ("limits", "least", "multiples", "allowed")}

    def rule(self, letter: str, variant: str = "") -> SizeRule:
        """Return which values of a size are supported, of a layer kind where the stage has some."""
        keys = (letter, (variant, letter))
        limits = [self.limits[key] for key in keys if key in self.limits]
        allowed = [self.allowed[key] for key in keys if key in self.allowed]
        short = {"m": self.compress_ratios, "D": self.head_dims}.get(letter)
        if short is not None:
            allowed.append(short)
        if letter == "k" and self.max_top_k is not None:
            limits.append(self.max_top_k)
        return SizeRule(
            max((self.least[key] for key in keys if key in self.least), default=0),
            min(limits, default=None),
            max((self.multiples[key] for key in keys if key in self.multiples), default=1),
            tuple(allowed),
        )
