"""A case: everything that decides one trial, in one line of text.

A stage's case is a frozen dataclass that derives from :class:`Case` and declares its fields with
:func:`size`, :func:`drawn` and :func:`coded`. Text, JSON, a stable hash, what declared limits make of it,
and shrinking follow from the fields.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, ClassVar, Self
from urllib.parse import quote, unquote

from csa_spec.engine.sizes import size_kinds
from csa_spec.plug.capabilities import DEVICES, DTYPES, Capabilities, SizeRule, unknown_device
from csa_spec.plug.layouts import Layout
from csa_spec.plug.names import instead, unknown
from csa_spec.plug.plain import plain_line, shown

MOST_BYTES = 16 << 30
"""What the tensors of a case and the specification's work on it may take together. The weights of one layer
of the released models take 2.4 GiB of it, scores ``[65536, 16384]`` 8 GiB."""
PER_QUERY = 3072
"""Numbers that the specification, its trace and its budgets hold at least, for one head of one query."""
LARGEST = 10**9
"""Of sizes that take no memory, a first position say: indices are 64-bit integers."""
_DIGITS, _SEED_DIGITS = 30, 18


class CaseError(ValueError):
    """A case that cannot be read; the message says why."""

    def __init__(self, sentence: str) -> None:
        super().__init__(plain_line(sentence, 1000))


class UnfitNumber(CaseError):
    """A number that nothing of a case can be; the message goes on after the name of what has it."""


def require_memory(numbers: Mapping[str, int]) -> None:
    """Refuse what takes more memory than a case may, given how many float64 numbers each part of it has."""
    total = 8 * sum(numbers.values())
    if total > MOST_BYTES:
        most = max(numbers, key=lambda part: numbers[part])
        raise CaseError(
            f"the case would take {in_gib(total)} of memory, most of it for {most}; "
            f"the limit is {in_gib(MOST_BYTES)}, so choose smaller sizes"
        )


def in_gib(count: int) -> str:
    """Return a number of bytes, e.g. ``24 GiB``."""
    gib = -(-count >> 30)
    return f"{gib:,} GiB" if gib < 10**12 else "more than 1,000,000,000,000 GiB"


def whole(text: str, digits: int = _DIGITS) -> int:
    """Read a whole number; one of too many digits is a sentence, and never Python's limit."""
    if not re.fullmatch("[+-]?[0-9]+", text):
        raise ValueError
    if len(text) > digits:
        raise UnfitNumber(f"has a number of {len(text):,} digits; write one of at most {digits}")
    return int(text)


def finite(text: str) -> float:
    """Read a number that is neither infinite nor NaN."""
    value = float(text)
    if not math.isfinite(value):
        raise UnfitNumber(
            f"has {plain_line(text, 40)}, which is not a finite number; write one such as 0.001"
        )
    return value


def size(
    letter: str,
    least: int,
    words: str,
    default: int | None = None,
    bucketed: bool = True,
    rank: int = 1,
    multiple: int = 1,
) -> Any:
    """Declare a size, written ``letter=...``.

    Parameters
    ----------
    letter, words
        How it is written in cases and in capabilities, and what it is.
    least, default
        The smallest legal size, and what it is where nothing is said: the smallest.
    bucketed
        Whether a candidate that compiles for every new shape gets it from a few powers of four.
    rank
        Its place in the text: 0 first.
    multiple
        What every legal size is a multiple of.
    """
    value = least if default is None else default
    what = {"letter": letter, "least": least, "words": words, "bucketed": bucketed, "rank": rank}
    return dataclasses.field(default=value, metadata={**what, "multiple": multiple})


def drawn(kind: type[StrEnum], default: StrEnum | None = None, form: bool = False) -> Any:
    """Declare how something is drawn. The first name is the simplest, and the default.

    A ``form`` is none of the data: it is how they are handed over to a candidate that declares it.
    """
    what = {"kind": kind, "rank": 2, "form": form}
    return dataclasses.field(default=default or next(iter(kind)), metadata=what)


def coded(
    read: Callable[[str], Any],
    write: Callable[[Any], str] = str,
    *,
    default: Any,
    text: str = "",
    rank: int = 1,
    always: bool = False,
) -> Any:
    """Declare anything else that has a text of its own.

    Parameters
    ----------
    read, write
        From and to text without blanks; ``read`` may raise ``ValueError``.
    default
        Is left out of the text.
    text
        How it is written, where not as the field.
    rank
        Its place in the text: 0 first, 1 among the sizes, 2 among the names of data, 3 at the end.
    always
        Whether the default is written too.
    """
    what = {"read": read, "write": write, "text": text, "rank": rank, "always": always}
    return dataclasses.field(default=default, metadata=what)


@dataclass(frozen=True, kw_only=True, repr=False)
class Case:
    """What the cases of all stages have in common. ``str`` gives the line of text, ``parse`` reads it."""

    stage: ClassVar[str]
    """Name of the stage, the first word of the text"""
    products: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Letters of sizes that an implementation may multiply: into a number of rows, or an address"""
    seed: int = dataclasses.field(
        default=0, metadata={"read": lambda text: whole(text, _SEED_DIGITS), "rank": 3}
    )
    mode: str = coded(unquote, quote, default="", rank=3)
    """One of the candidate's ways to run the stage; empty where it has only one"""
    layout: Layout = dataclasses.field(default=Layout.PLAIN, metadata={"rank": 3})
    """How its tensors lie in memory when a candidate is called"""
    dtype: str = dataclasses.field(default="float32", metadata={"rank": 3})
    device: str = dataclasses.field(default="cpu", metadata={"rank": 3})

    def __post_init__(self) -> None:
        """Refuse what no case can have, and what would take more memory than there is."""
        self._check_fields()
        self._complete()
        require_memory(self.numbers)
        for field in self._size_fields():
            if getattr(self, field.name) > LARGEST:
                raise CaseError(
                    f"{_named(field)} must be at most {LARGEST:,}, not {getattr(self, field.name):,}"
                )

    def _complete(self) -> None:
        """Set what follows from the fields, and refuse fields that do not go together."""

    @property
    def numbers(self) -> Mapping[str, int]:
        """How many numbers the case takes, by what they are for: its largest tensors, the specification's work.

        Where a stage says nothing, one tensor over all its sizes.
        """
        return {"a tensor over all sizes": math.prod(max(1, size) for size in self.sizes.values())}

    def _check_fields(self) -> None:
        for field in self._size_fields():
            _check_size(field, getattr(self, field.name))
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise CaseError(f"seed must be a whole number, not {shown(self.seed, 40)}")
        if not isinstance(self.mode, str):
            raise CaseError(f"mode must be text, not {shown(self.mode, 40)}")
        for field in self._drawn_fields():
            kind, value = field.metadata["kind"], getattr(self, field.name)
            if value not in list(kind):
                raise CaseError(unknown(field.name, str(value), kind))
            object.__setattr__(self, field.name, kind(value))
        if self.device not in DEVICES:
            raise CaseError(unknown_device(str(self.device)))
        for name, known in (("layout", tuple(Layout)), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise CaseError(unknown(name, str(getattr(self, name)), known))
        object.__setattr__(self, "layout", Layout(self.layout))

    @classmethod
    def _size_fields(cls) -> list[Field[Any]]:
        return [field for field in fields(cls) if "letter" in field.metadata]

    @classmethod
    def multiples(cls) -> dict[str, int]:
        """Return, by letter, what every legal size is a multiple of."""
        return {field.metadata["letter"]: field.metadata["multiple"] for field in cls._size_fields()}

    @classmethod
    def _drawn_fields(cls) -> list[Field[Any]]:
        return [field for field in fields(cls) if "kind" in field.metadata]

    @classmethod
    def _data_fields(cls) -> list[Field[Any]]:
        return [field for field in cls._drawn_fields() if not field.metadata["form"]]

    # Text.

    @classmethod
    def first_words(cls) -> tuple[str, ...]:
        """Return the words that a case of this stage may start with."""
        return (cls.stage,)

    @classmethod
    def _read_head(cls, words: Sequence[str]) -> tuple[dict[str, Any], Sequence[str]]:
        """Return what the first words decide, and the other words."""
        return {}, words[1:]

    def _head(self) -> list[str]:
        return [self.stage]

    def __str__(self) -> str:
        """Return the case as one line, without what is at its default."""
        words = self._head()
        for field in sorted(self._written(), key=lambda field: field.metadata.get("rank", 1)):
            value = getattr(self, field.name)
            if value != field.default or field.metadata.get("always"):
                words.append(f"{_text_of(field)}={field.metadata.get('write', str)(value)}")
        return " ".join(words)

    def __repr__(self) -> str:
        """Return the call that makes it."""
        return f"parse_case({json.dumps(str(self), ensure_ascii=False)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Let Hypothesis and IPython print that call."""
        printer.text(repr(self))

    @classmethod
    def _written(cls) -> list[Field[Any]]:
        """Return the fields that are written as ``name=value``."""
        return [field for field in fields(cls) if field.init and field.default is not MISSING]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str`` wrote.

        Raises
        ------
        CaseError
            If a word is not known or its value cannot be used.
        """
        values, words = cls._read_head(text.split())
        known = {_text_of(field): field for field in cls._written()}
        for word in words:
            name, _, value = word.partition("=")
            if name not in known:
                raise CaseError(
                    f"{shown(word)} is not part of a case of {cls.stage}; {instead(name, known)}"
                )
            field = known[name]
            if field.name in values:
                raise CaseError(f"{shown(word)} is the second {name}; write it once")
            values[field.name] = _read(field, word, value)
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return the case as plain JSON data: numbers, and the texts of everything else."""
        data: dict[str, Any] = {"stage": self.stage}
        for field in fields(self):
            if field.init:
                value = getattr(self, field.name)
                plain = isinstance(value, (int, float)) and not isinstance(value, bool)
                data[_text_of(field)] = value if plain else field.metadata.get("write", str)(value)
        return data

    @cached_property
    def id(self) -> str:
        """A stable hash of the case, 12 hexadecimal digits."""
        return hashlib.sha256(str(self).encode()).hexdigest()[:12]

    def in_words(self) -> str:
        """Return its sizes in words."""
        sizes = [f"{field.metadata['words']} {getattr(self, field.name)}" for field in self._size_fields()]
        return ", ".join([*sizes, self.dtype, self.device])

    # What it is made of.

    def documents_of(self, row: int) -> list[int]:
        """Return the document of each column of a row, -1 at padding; empty where a row is one document."""
        return []

    @property
    def variant(self) -> str:
        """The layer kind, for stages that have some."""
        return ""

    @property
    def quick(self) -> bool:
        """Whether a diagnosis, which must not take long, may ask about it."""
        return True

    @property
    def regime(self) -> tuple[str, ...]:
        """How its data are drawn; reports count by it."""
        return tuple(str(getattr(self, field.name)) for field in self._data_fields())

    @property
    def order(self) -> tuple[Any, ...]:
        """Orders cases as a person would: smaller sizes first, then simpler data, then the seed."""
        drawn = ((list(field.metadata["kind"]), getattr(self, field.name)) for field in self._drawn_fields())
        oddities = sum(kind.index(name) for kind, name in drawn) + list(Layout).index(self.layout)
        return (sum(self.sizes.values()), oddities, self.seed)

    @classmethod
    def names(cls) -> list[str]:
        """Return every name that its data may have."""
        return [str(name) for field in cls._data_fields() for name in field.metadata["kind"]]

    @classmethod
    def letters(cls) -> dict[str, int]:
        """Return the smallest legal value of every size, by its letter."""
        return {field.metadata["letter"]: field.metadata["least"] for field in cls._size_fields()}

    @property
    def sizes(self) -> dict[str, int]:
        """Its sizes by their letters."""
        return {field.metadata["letter"]: getattr(self, field.name) for field in self._size_fields()}

    @property
    def size_kinds(self) -> set[str]:
        """The kinds of case that its sizes make, e.g. ``S around 64``."""
        return size_kinds(self.sizes, self.products)

    def with_sizes(self, sizes: Mapping[str, int]) -> Self:
        """Return the case with other sizes, given by their letters."""
        names = {field.metadata["letter"]: field.name for field in self._size_fields()}
        changes: dict[str, Any] = {names[letter]: value for letter, value in sizes.items()}
        return replace(self, **changes) if changes else self

    # What a candidate supports of it.

    forms: ClassVar[frozenset[str]] = frozenset()
    """Names of capabilities that say in which form the stage gets its arguments"""

    def formed(self, capabilities: Capabilities) -> Self:
        """Return the case with its arguments in the form that a candidate declares."""
        return self

    @classmethod
    def may_lack(cls) -> dict[str, list[str]]:
        """Return what ``Capabilities.lacks`` may name: by the first half of its keys, the second halves."""
        return {cls.stage: cls.names()}

    def without_lacks(self, capabilities: Capabilities) -> tuple[Self, list[str]]:
        """Return the case without the data that a candidate declares not to support, and the names of those.

        The simplest data that it supports take their place.
        """
        changes: dict[str, Any] = {}
        for field in self._data_fields():
            options = field.metadata["kind"]
            lacking = {str(name) for name in options if (self.stage, name) in capabilities.lacks}
            if str(getattr(self, field.name)) in lacking:
                left = [name for name in options if name not in lacking]
                if not left:
                    raise CaseError(f"capabilities.lacks leaves no {field.name} for {self.stage}")
                changes[field.name] = left[0]
        names = [f"{name} {getattr(self, name)}" for name in changes]
        return (replace(self, **changes) if changes else self), names

    def _in_memory(self, capabilities: Capabilities) -> tuple[Self, list[str]]:
        """Return the case with tensors that lie as a candidate needs them, and what it does not support."""
        if self.layout in capabilities.layouts:
            return self, []
        return replace(self, layout=Layout.PLAIN), [f"layout {self.layout}"]

    def fits(self, capabilities: Capabilities) -> bool:
        """Whether a candidate supports the case as it is."""
        try:
            return self.fit(capabilities)[0] == self
        except CaseError:
            return False

    def fit(self, capabilities: Capabilities) -> tuple[Self, list[str]]:
        """Return the nearest case that a candidate supports, and what of this one it does not support.

        Raises
        ------
        CaseError
            If what the candidate declares leaves no case.
        """
        case, lacking = self.formed(capabilities).without_lacks(capabilities)
        case, elsewhere = case._in_memory(capabilities)
        lacking += elsewhere
        for _ in range(_ROUNDS):
            wanted, reasons = case._misfits(capabilities)
            if not wanted:
                return case, lacking
            case = case.with_sizes(wanted)
            lacking += [reason for reason in reasons if reason not in lacking]
        raise CaseError(f"the declared sizes leave no {self.stage} case near {self}")

    def _misfits(self, capabilities: Capabilities) -> tuple[dict[str, int], list[str]]:
        """Return what sizes must become to be supported, and why; a mere bucket needs no reason."""
        wanted: dict[str, int] = {}
        reasons = []
        for letter, value in self._fitted_sizes().items():
            rule = capabilities.rule(letter, self.variant)
            size = self._bucket(letter, value) if capabilities.static_shapes else value
            reason = rule.reason(size, letter)
            nearest = self._nearest(letter, size, rule) if reason else size
            if nearest != value:
                wanted[letter] = nearest
            reasons += [reason] if reason else []
        return wanted, reasons

    def _nearest(self, letter: str, size: int, rule: SizeRule) -> int:
        legal = rule.within(self.letters()[letter], self.multiples().get(letter, 1))
        nearest = legal.nearest(size)
        if nearest is None:
            raise CaseError(f"capabilities leave no size {letter} for {self.stage}: {legal}")
        return nearest

    def _fitted_sizes(self) -> dict[str, int]:
        """Return the sizes that can be made to fit one by one."""
        return self.sizes

    def _bucket(self, letter: str, value: int) -> int:
        """Return the next power of four, for sizes that a candidate would compile anew for."""
        for field in self._size_fields():
            if field.metadata["letter"] == letter and field.metadata["bucketed"]:
                return next(bucket for bucket in _BUCKETS if bucket >= value)
        return value

    def outside(self, capabilities: Capabilities) -> Iterator[tuple[Self, str]]:
        """Yield cases just outside of each limit that a candidate declares, with what is declared."""
        declared_away = replace(capabilities, contiguous=False).layouts - capabilities.layouts
        for layout in filter(declared_away.__contains__, Layout):
            yield replace(self, layout=layout), f"layout {layout}"
        for letter, least in self.letters().items():
            rule, value = capabilities.rule(letter, self.variant), self.sizes.get(letter, least)
            for options in rule.just_outside(value) if rule.declared else ():
                cases = (self._resized(letter, size) for size in options if size >= least)
                case = next((case for case in cases if case is not None), None)
                if case is not None:
                    yield case, rule.reason(case.sizes[letter], letter)

    def _resized(self, letter: str, value: int) -> Self | None:
        """Return the case with another size; None where there is no such case."""
        try:
            case = self.with_sizes({letter: value})
        except ValueError:
            return None
        return case if case.sizes.get(letter) == value else None


_BUCKETS = (0, *(int(4**n) for n in range(16)))
_ROUNDS = 4
"""A size that gives way for another may have to be changed once more."""


def _check_size(field: Field[Any], value: object) -> None:
    least = field.metadata["least"]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise CaseError(f"{_named(field)} must be an integer of at least {least}, not {shown(value, 40)}")


def _named(field: Field[Any]) -> str:
    return f"{field.metadata['letter']} ({field.metadata['words']})"


def _text_of(field: Field[Any]) -> str:
    return str(field.metadata.get("letter") or field.metadata.get("text") or field.name)


def _read(field: Field[Any], word: str, value: str) -> Any:
    if "kind" in field.metadata:
        return value  # checked with the others
    whole_number = "letter" in field.metadata or field.name == "seed"
    try:
        return (whole if "letter" in field.metadata else field.metadata.get("read", str))(value)
    except UnfitNumber as error:
        raise CaseError(f"{_text_of(field)} {error}") from None
    except CaseError:
        raise
    except ValueError:
        if whole_number:
            raise CaseError(f"{shown(word)} is not a whole number; write e.g. {_text_of(field)}=2") from None
        raise CaseError(f"{shown(word)} has no value that can be read") from None
