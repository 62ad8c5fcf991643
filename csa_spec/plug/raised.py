"""An exception of a candidate in plain text: what it says and where it comes from.

Nothing here trusts the exception: its message may raise, be megabytes long, or be no legal text.
"""

from __future__ import annotations

import linecache
import os
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import TypeGuard, TypeVar

import torch

from csa_spec.plug.ending import Frame
from csa_spec.plug.plain import plain, plain_line

FRAMES = 6
"""Innermost frames that are shown"""
_CHAIN = 3

_PACKAGE = Path(__file__).parents[1]
_OURS = tuple(f"{_PACKAGE / room}{os.sep}" for room in ("plug", "engine", "stages")) + tuple(
    str(_PACKAGE / "candidates" / name) for name in ("recognise.py", "__init__.py")
)
_STANDARD = sysconfig.get_paths()["stdlib"] + os.sep
_IMPORTING = re.compile(r"<frozen |.*[/\\]importlib[/\\]")
_LIBRARY = re.compile(r".*[/\\](site|dist)-packages[/\\](torch|numpy|jax|jaxlib|triton|scipy|cupy)[/\\]")

Exc = TypeVar("Exc", bound=BaseException)


@dataclass(frozen=True, slots=True)
class Raised:
    """What is known of an exception once it has left its process."""

    error: str
    """Name of its class"""
    message: str
    where: str = ""
    """The innermost place in the candidate's own code, e.g. ``kernel.py:41 in attend``"""
    trace: tuple[str, ...] = ()
    """The last lines of its traceback, from the candidate's code on"""


def described(error: BaseException) -> Raised:
    """Return what to tell of an exception; never raises."""
    try:
        known = vars(error).get("raised")
        if isinstance(known, Raised):  # it was described where it was raised
            return known
        frames = own_frames(error)
        trace = tuple(_trace(error, frames))
        return Raised(_class_name(error), _message(error), _where(error, frames), trace)
    except Exception:  # attributes of every exception that raise in this one
        return Raised(_class_name(error), "(it cannot be described)")


def in_short(error: BaseException) -> str:
    """Return class, message and place, on one line."""
    raised = described(error)
    message = " ".join(f"{raised.error}: {raised.message}".split()).removesuffix(":")
    return message + (f", at {raised.where}" if raised.where else "")


def own_frames(error: BaseException) -> list[Frame]:
    """Return the frames of a traceback from the candidate's code on, the outermost first."""
    return [
        (frame.f_code.co_filename, line, frame.f_code.co_name) for frame, line in _candidates_frames(error)
    ]


def _candidates_frames(error: BaseException) -> list[tuple[FrameType, int]]:
    frames: list[tuple[FrameType, int]] = []
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        ours = not frames and file.startswith(_OURS)
        if not ours and not _IMPORTING.match(file):
            frames.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    return frames


def _where(error: BaseException, frames: list[Frame]) -> str:
    if _is(error, SyntaxError) and error.filename:
        return plain(f"{os.path.basename(error.filename)}:{error.lineno}")
    own = [frame for frame in frames if not _is_library(frame[0])]
    for file, line, name in reversed(own or frames):
        return plain(f"{os.path.basename(file)}:{line} in {name}")
    return ""


def _is_library(file: str) -> bool:
    if _LIBRARY.match(file):
        return True
    return file.startswith(_STANDARD) and "-packages" not in file


def _trace(error: BaseException, frames: list[Frame]) -> Iterator[str]:
    for file, line, name in frames[-FRAMES:]:
        yield plain(f'File "{file}", line {line}, in {name}')
        source = linecache.getline(file, line).strip()
        if source:
            yield plain(f"  {source[:200]}")
    if _is(error, SyntaxError) and error.filename:
        yield plain(f'File "{error.filename}", line {error.lineno}')
        if isinstance(error.text, str):
            yield plain(f"  {error.text.strip()[:200]}")
    for word, other in _related(error):
        yield plain(f"{word} {in_short(other)}"[:300])


def _related(error: BaseException) -> Iterator[tuple[str, BaseException]]:
    if _is(error, BaseExceptionGroup):
        for inner in error.exceptions[:_CHAIN]:
            yield "with", inner
    seen, cause = {id(error)}, _cause(error)
    while cause is not None and id(cause) not in seen and len(seen) <= _CHAIN:
        yield "caused by", cause
        seen.add(id(cause))
        cause = _cause(cause)


def _is(error: BaseException, kind: type[Exc]) -> TypeGuard[Exc]:
    return issubclass(type(error), kind)  # isinstance asks the exception itself, too


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _class_name(error: BaseException) -> str:
    return plain_line(getattr(type(error), "__name__", "Exception"), 80)


def _message(error: BaseException) -> str:
    notes = getattr(error, "__notes__", None)
    own = [note for note in notes[:2] if isinstance(note, str)] if isinstance(notes, list) else []
    return "; ".join(map(plain, (error, *own)))


# THE WRONG LIBRARY: a function for numpy that is handed torch's tensors, and the reverse.

_MODULES = {"jax": "jax.numpy", "numpy": "numpy", "cupy": "cupy"}


def hint_at_library(error: BaseException, arrays: str) -> str:
    """Say what to declare where an exception comes of arrays of another library; nothing elsewhere.

    Parameters
    ----------
    error
        Raised by the candidate's function.
    arrays
        The library whose arrays it was handed.
    """
    try:
        used, message = _libraries_used(error), str(error)
    except Exception:
        return ""
    if arrays != "torch":
        # The second is how torch 2.6 says it.
        refused = (
            "must be Tensor" in message or "invalid combination of arguments - got (numpy.ndarray" in message
        )
        wrong = ("torch" in used and arrays.split(".")[0] not in used) or refused
        return f"it was handed arrays of {arrays}, as declared; leave arrays out if it takes torch's" * wrong
    others = [module for name, module in _MODULES.items() if name in used]
    if "torch" in used or not others:
        others = ["numpy"] * ("'Tensor' object has no attribute 'astype'" in message)
    return (
        f'it was handed torch\'s tensors; declare arrays="{others[0]}" if it takes those' if others else ""
    )


def _libraries_used(error: BaseException) -> set[str]:
    """Return which libraries the candidate's own module has imported, as far as it shows."""
    own = [frame for frame, _ in _candidates_frames(error) if not _is_library(frame.f_code.co_filename)]
    values = [*own[-1].f_globals.values()] if own else []
    names = {value.__name__.split(".")[0] for value in values if isinstance(value, ModuleType)}
    of_torch = any(value is torch.Tensor for value in values)
    return {*names} & {"torch", *_MODULES} | ({"torch"} if of_torch else set())
