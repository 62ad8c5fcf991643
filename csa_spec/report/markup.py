"""Text in Markdown: nothing in it is markup, calls a person or links an issue."""

from __future__ import annotations

import re


def cut(text: str, most: int) -> str:
    """Return the beginning of a text."""
    return text if len(text) <= most else text[:most] + " ..."


def prose(text: str) -> str:
    """Escape a text: nothing in it is markup, starts a cell, calls a person or names an issue."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", text).replace("@", "@\u200b")
    # GitHub links these in the text that is shown, escaped or not.
    return re.sub(r"(#|\bGH-)(?=\d)", "\\1\u200b", text)


def code(text: str) -> str:
    """Return a text as code inside a line."""
    text = " ".join(text.split())
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def fence(text: str, language: str = "text") -> list[str]:
    """Return a text as a block of code, in a fence that it cannot close."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [f"{ticks}{language}", text, ticks]
