"""Text that somebody else wrote, made fit to be shown: on a terminal, on a page, in a file.

A candidate's name, its reasons and the messages of its exceptions pass through here once, where they come in.
What a format needs beyond that, escaped markup say, is the business of who writes the format.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

MOST = 400
"""Characters of one text that are kept."""
_SLACK = 50
"""And so many more, if it ends with them."""
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, the cursor
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # titles, links
    r"|\x1b[ -/]*[0-~]"
)
_DROPPED = ("Cc", "Cf", "Co", "Cn")
"""Categories of Unicode that show nothing, or change what is shown around them: controls, overrides of the
direction, zero-width characters."""


def plain(text: object, most: int = MOST) -> str:
    """Return what a text shows, without anything that a terminal or a reader would take for a command.

    Lines stay lines. Longer texts than ``most`` characters are cut, and say how many are left out. An object
    that cannot be made a text is named by its type.
    """
    whole = said(text)
    begin, rest = whole[: 8 * most], len(whole[8 * most :])
    visible = "".join(map(_visible, _ESCAPES.sub("", begin).replace("\r\n", "\n")))
    more = len(visible[most:]) + rest
    if not rest and more <= _SLACK:  # a text that was cut before stays as it is
        return visible
    return f"{visible[:most]}... ({more:,} more characters)"


def plain_line(text: object, most: int = MOST) -> str:
    """Return the same on one line."""
    return " ".join(plain(text, most).split())


def shown(thing: object, most: int = 60) -> str:
    """Return ``repr(thing)`` on one line, for a sentence about a value that is not what it must be."""
    return plain_line(said(thing, repr), most)


def said(thing: object, write: Callable[[object], str] = str) -> str:
    """Return ``str(thing)``, whatever that may raise: what a candidate gives has any methods at all."""
    try:
        return str.__str__(write(thing))  # of a str of their own, the str
    except BaseException as error:  # no memory for it, say
        return f"<{type(thing).__name__}, whose text cannot be had: {type(error).__name__}>"


def _visible(character: str) -> str:
    if character in "\n\t":
        return character
    category = unicodedata.category(character)
    if category == "Cs":  # half a character, which no encoding can write
        return "\ufffd"
    return "\n" if category in ("Zl", "Zp") else "" if category in _DROPPED else character
