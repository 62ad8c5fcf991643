"""Flat cases: a few sizes, a few names that say how data are drawn, a seed. One line of text.

A stage's case is a frozen dataclass that derives from :class:`Recipe` and declares its fields with :func:`size` and
:func:`drawn`. Text, JSON, hashing, fitting to capabilities and shrinking follow from the fields.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, ClassVar, Self

from csa_spec.engine.case import DEVICES, DTYPES, CaseError
from csa_spec.plug.candidate import Capabilities


def size(letter: str, least: int, words: str) -> Any:
    """Declare a size, written ``letter=...``, whose smallest and default value is ``least``."""
    return field(default=least, metadata={"letter": letter, "least": least, "words": words})


def drawn(kind: type[StrEnum]) -> Any:
    """Declare how something is drawn; the first name is the simplest, the default."""
    return field(default=next(iter(kind)), metadata={"kind": kind})


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What the cases of all stages but the layer have in common."""

    stage: ClassVar[str]
    """Name of the stage, the first word of the text"""
    seed: int = 0
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check sizes and names."""
        for one in fields(self):
            value = getattr(self, one.name)
            if "letter" in one.metadata:
                if not isinstance(value, int) or isinstance(value, bool) or value < one.metadata["least"]:
                    raise CaseError(
                        f"{one.metadata['letter']} ({one.metadata['words']}) must be an integer of at least "
                        f"{one.metadata['least']}, not {value!r}"
                    )
            elif "kind" in one.metadata:
                kind = one.metadata["kind"]
                if value not in list(kind):
                    raise CaseError(f"{one.name} {value!r} is none of {', '.join(kind)}")
                object.__setattr__(self, one.name, kind(value))
        for name, known in (("dtype", DTYPES), ("device", DEVICES)):
            if getattr(self, name) not in known:
                raise CaseError(f"{name} {getattr(self, name)!r} is none of {', '.join(known)}")

    @property
    def mode(self) -> str:
        """Stages other than the layer have one way to run."""
        return ""

    @property
    def regime(self) -> tuple[str, ...]:
        """How its data are drawn."""
        return tuple(str(getattr(self, one.name)) for one in fields(self) if "kind" in one.metadata)

    @property
    def sizes(self) -> dict[str, int]:
        """Its sizes by their letters."""
        return {
            one.metadata["letter"]: getattr(self, one.name)
            for one in fields(self)
            if "letter" in one.metadata
        }

    def in_words(self) -> str:
        """Return its sizes in words."""
        sizes = [one for one in fields(self) if "letter" in one.metadata]
        parts = [f"{one.metadata['words']} {getattr(self, one.name)}" for one in sizes]
        return ", ".join([*parts, self.dtype, self.device])

    @classmethod
    def letters(cls) -> list[str]:
        """Return the letters of its sizes."""
        return [one.metadata["letter"] for one in fields(cls) if "letter" in one.metadata]

    @classmethod
    def names(cls) -> list[str]:
        """Return every name that its data may have."""
        return [str(name) for one in fields(cls) if "kind" in one.metadata for name in one.metadata["kind"]]

    @property
    def id(self) -> str:
        """A stable hash of the case, 12 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]

    def __str__(self) -> str:
        """Return the case as one line, without what is at its default."""
        words = [self.stage]
        for one in sorted(fields(self), key=lambda one: one.name in _LAST):
            value = getattr(self, one.name)
            if value != one.default:
                words.append(f"{one.metadata.get('letter', one.name)}={value}")
        return " ".join(words)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str`` wrote.

        Raises
        ------
        CaseError
            If a word is not known or its value cannot be used.
        """
        known = {one.metadata.get("letter", one.name): one for one in fields(cls)}
        values: dict[str, Any] = {}
        for word in text.split()[1:]:
            name, _, value = word.partition("=")
            if name not in known:
                raise CaseError(
                    f"{word!r} is not part of a case of {cls.stage}; known are {', '.join(known)}"
                )
            one = known[name]
            if one.name in values:
                raise CaseError(f"{word!r} is the second {name}")
            try:
                values[one.name] = int(value) if "letter" in one.metadata or name == "seed" else value
            except ValueError:
                raise CaseError(f"{word!r} has no value that can be read") from None
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return the case as plain JSON data."""
        numbers = {one.name: getattr(self, one.name) for one in fields(self)}
        return {"stage": self.stage} | {k: v if isinstance(v, int) else str(v) for k, v in numbers.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read what ``to_json`` wrote."""
        try:
            return cls(**{key: value for key, value in data.items() if key != "stage"})
        except TypeError as error:
            raise CaseError(f"this is not a case of {cls.stage}: {error}") from None

    def fit(self, capabilities: Capabilities) -> tuple[Self, list[str]]:
        """Return the nearest case that a candidate supports, and what of this one it does not support."""
        changes: dict[str, Any] = {}
        lacking: list[str] = []
        for one in fields(self):
            value = getattr(self, one.name)
            if "kind" in one.metadata and (self.stage, str(value)) in capabilities.lacks:
                changes[one.name] = one.default
                lacking.append(f"{one.name} {value}")
            elif "letter" in one.metadata:
                fitting, reason = _fitting_size(one.name, one.metadata["letter"], value, capabilities)
                if fitting != value:
                    changes[one.name] = max(fitting, one.metadata["least"])
                    lacking += [reason] if reason else []
        return (replace(self, **changes) if changes else self), lacking


_LAST = ("seed", "dtype", "device")


def _fitting_size(name: str, letter: str, value: int, capabilities: Capabilities) -> tuple[int, str]:
    """Return the nearest size that is supported, and why it is not ``value``; no reason for a mere bucket."""
    fitting, reason = value, ""
    allowed = {"compress_ratio": capabilities.compress_ratios, "head_dim": capabilities.head_dims}.get(name)
    if allowed is not None and value not in allowed:
        return min(allowed, key=lambda one: (abs(one - value), one)), f"{letter}={value}"
    if capabilities.static_shapes and name not in ("compress_ratio", "start"):
        fitting = next(bucket for bucket in (0, *(4**n for n in range(16))) if bucket >= value)
    multiple = capabilities.multiples.get(letter, 1)
    if fitting % multiple:
        fitting, reason = fitting + -fitting % multiple, f"{letter} not a multiple of {multiple}"
    limits = [capabilities.limits.get(letter), capabilities.max_top_k if name == "top_k" else None]
    least = capabilities.least.get(letter, 0)
    if fitting < least:
        fitting, reason = least + -least % multiple, f"{letter} under {least}"
    limit = min((one for one in limits if one is not None), default=None)
    if limit is not None and fitting > limit:
        fitting, reason = limit - limit % multiple, f"{letter} over {limit}"
    return fitting, reason
