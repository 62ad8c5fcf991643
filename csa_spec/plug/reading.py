"""Reading files that somebody else wrote: bounded, UTF-8, and every trouble in a few words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from csa_spec.plug.plain import plain_line

MOST_BYTES = 16 << 20


class Unreadable(Exception):
    """A file that cannot be used; the message goes on after its name."""


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder; nothing has a name that is too long, say."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether it is a folder, or a link to one."""
    return is_there(path) and path.is_dir()


def is_file_name(text: str) -> bool:
    """Whether a text is a name that shows as it is, without a folder, so that it leads out of none."""
    return text.isprintable() and Path(text).name == text != ".."


def read_as(form: str, parse: Callable[[str], Any], path: Path) -> Any:
    """Return what a parser (of ``form``, such as JSON) makes of a file's text.

    Raises
    ------
    Unreadable
        If there is no such file, or its content is not of that form, or too much.
    """
    text = _text(path)
    try:
        return parse(text)
    except RecursionError:
        raise Unreadable(f"is not valid {form}: it is nested too deeply") from None
    except ValueError as error:  # Python refuses integers of more than 4300 digits
        digits = "digits" in str(error) and "limit" in str(error)
        reason = "a number in it has thousands of digits" if digits else plain_line(error, 200)
        raise Unreadable(f"is not valid {form}: {reason}") from None


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise Unreadable("is not a file")
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except (OSError, ValueError, RuntimeError) as error:  # a name that no file can have, a loop of links
        raise Unreadable(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(raw) > MOST_BYTES:
        raise Unreadable(f"has more than {MOST_BYTES >> 20} MB; no such file is that large")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not UTF-8 text: byte {error.start} cannot be read") from None
