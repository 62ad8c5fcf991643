"""What is said of a name that is not known: the names that it may have been meant to be, or all there are."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from csa_spec.plug.plain import shown

MOST = 3
"""Names that are suggested at most."""


def unknown(what: str, name: object, known: Iterable[str], of: str = "") -> str:
    """Return ``unknown stage 'atttend'; did you mean attend?``, or what to choose from where nothing is close."""
    return f"unknown {what} {shown(name)}{' of ' * bool(of)}{of}; {instead(name, known)}"


def instead(name: object, known: Iterable[str]) -> str:
    """Say what to write in place of a name: what is close to it, else any that is known."""
    listed = list(known)
    return did_you_mean(name, listed) or f"choose from {', '.join(listed)}"


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Ask for the names that are close to one; empty where none is."""
    listed = list(known)
    lower = get_close_matches(str(name).lower()[:60], {entry.lower() for entry in listed}, MOST)
    close = [entry for like in lower for entry in listed if entry.lower() == like]
    return f"did you mean {' or '.join(close)}?" if close else ""
