"""Files of reports: tried before the work, written at once or not at all. Without torch."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

_ROOM = b"\n" * (1 << 16)
"""What is written to see whether there is room"""


def write_text(path: Path, text: str) -> None:
    """Write a text; an interrupted write leaves the old file as it was, where the file is a regular one."""
    if is_special(path):
        with path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(text)
        return
    path = path.resolve()  # the file, not the link to it
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def problem_of_file(path: Path) -> str:
    """Say why a file cannot be written, after an attempt that leaves nothing behind; "" where it can."""
    try:
        if not path.resolve().parent.is_dir():
            return f"there is no folder {path.absolute().parent}; make it first"
        if path.is_dir():
            return f"{path} is not a file; name another"
        if not is_special(path):
            if path.exists():
                path.open("ab").close()
            with tempfile.TemporaryFile(dir=path.resolve().parent) as file:
                file.write(_ROOM)
        elif (
            path.exists()
            and stat.S_ISCHR(path.stat().st_mode)
            and not os.isatty(fd := os.open(path, os.O_WRONLY | os.O_NOCTTY))
        ):
            os.write(fd, b"\n")  # of all devices, /dev/full is why: it takes nothing
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return f"{path} cannot be written: {reason_of(error)}; name another"
    return ""


def problem_of_folder(path: Path) -> str:
    """Say why files cannot be written into a folder, which need not be there yet; "" where they can."""
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()  # of a name that no folder can have
        there = next(place for place in (path, *path.absolute().parents) if place.exists())
        if not there.is_dir():
            return f"{there} is not a folder; name a folder, or one to make"
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(_ROOM)
    except (OSError, ValueError) as error:
        return f"{path} cannot be written: {reason_of(error)}; name another"
    return ""


def reason_of(error: Exception) -> str:
    """Return what an error says, without the number and the name of the file where it has them."""
    return (getattr(error, "strerror", None) or f"{type(error).__name__}: {error}").lower()


def is_special(path: Path) -> bool:
    """Whether a path is a device or a pipe, or like /dev/stdout stands for one: nothing may replace it."""
    return path.parts[:2] == ("/", "dev") or (path.exists() and not path.is_file() and not path.is_dir())
