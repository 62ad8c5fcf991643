"""The words of failures for readers who have never seen this package."""

from __future__ import annotations

import re


def plain(text: str) -> str:
    """Return a text in which queries have numbers and no letters, and the specification is the reference.

    ``query A (t=0)`` becomes ``query 0``, as it is query 0 in the arrays of a script.
    """
    text = re.sub(r"\b[A-Z] \(t=(\d+)\)", r"\1", " ".join(text.split()))
    text = re.sub(r"\bquery t=(\d+)", r"query \1", text)
    return re.sub(
        r"\b1 (token|row|head|call)s\b", r"1 \1", text.replace("the specification", "the reference")
    )
