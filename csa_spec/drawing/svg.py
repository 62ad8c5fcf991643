"""A sheet of paper to draw on: SVG text without scripts, fonts or references, the same bytes every time."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape

INK, QUIET, PAPER, EDGE = "#1f2328", "#57606a", "#ffffff", "#d0d7de"
RED, PURPLE = "#cf222e", "#8250df"
SANS = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
SMALL, TEXT, HEAD = 11, 12, 15
MARGIN = 20
_WIDE = {False: 0.57, True: 0.62}
"""Width of a letter over the size of the text, sans and mono, on the wide side: nothing may be cut off."""


def text_width(text: str, size: float, mono: bool = False) -> float:
    """Return about how wide a text is."""
    return len(text) * size * _WIDE[mono]


class Sheet:
    """Shapes, and how much room they take."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.right = self.bottom = 0.0

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        stroke: str = "none",
        stroke_width: float = 1,
        dash: str = "",
        title: str = "",
    ) -> None:
        """Draw a rectangle; ``title`` is what a browser shows when the pointer rests on it."""
        style = f' stroke-dasharray="{dash}"' if dash else ""
        shape = (
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2" fill="{fill}" '
            f'stroke="{stroke}" stroke-width="{stroke_width:g}"{style}'
        )
        self.parts.append(f"{shape}><title>{_clean(title)}</title></rect>" if title else f"{shape}/>")
        self._reach(x + width, y + height)

    def squares(
        self, corners: Sequence[tuple[float, float]], width: float, height: float, fill: str, stroke: str
    ) -> None:
        """Draw many rectangles of one size and colour as one shape: large grids stay small files."""
        path = "".join(f"M{x:g} {y:g}h{width:g}v{height:g}h{-width:g}z" for x, y in corners)
        self.parts.append(f'<path d="{path}" fill="{fill}" stroke="{stroke}" stroke-linejoin="round"/>')
        for x, y in corners:
            self._reach(x + width, y + height)

    def line(self, x1: float, y1: float, x2: float, y2: float, stroke: str = QUIET) -> None:
        """Draw a line."""
        self.parts.append(f'<path d="M{x1:g} {y1:g} L{x2:g} {y2:g}" stroke="{stroke}" fill="none"/>')
        self._reach(max(x1, x2), max(y1, y2))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = TEXT,
        fill: str = INK,
        anchor: str = "start",
        bold: bool = False,
        mono: bool = False,
    ) -> None:
        """Write a line; ``y`` is its base line."""
        more = (' font-weight="600"' if bold else "") + (f' font-family="{escape(MONO)}"' if mono else "")
        letters = _clean(text)
        if mono:  # what stands in columns; XML would fold its spaces
            letters = letters.replace(" ", "\u00a0")
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{fill}" text-anchor="{anchor}"{more}>'
            f"{letters}</text>"
        )
        width = text_width(text, size, mono) * (1.06 if bold else 1)
        self._reach(x + {"start": width, "middle": width / 2, "end": 0}[anchor], y + size / 3)

    def paragraph(
        self,
        x: float,
        y: float,
        text: str,
        width: float,
        size: float = TEXT,
        fill: str = INK,
        bold: bool = False,
        mono: bool = False,
    ) -> float:
        """Write a text over as many lines as it takes, four at most; return where the next base line is."""
        letters = max(20, int(width / (size * _WIDE[mono] * (1.06 if bold else 1))))
        for line in textwrap.wrap(text, letters, max_lines=4, placeholder=" ..."):
            self.text(x, y, line, size, fill, bold=bold, mono=mono)
            y += size * 1.4
        return y

    def finish(self, title: str, description: str) -> str:
        """Return the SVG, on white paper so that it reads the same on a dark page."""
        width, height = round(self.right + MARGIN), round(self.bottom + MARGIN)
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
                f'height="{height}" role="img" font-family="{escape(SANS)}">',
                f"<title>{_clean(title)}</title>",
                f"<desc>{_clean(description)}</desc>",
                f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8" fill="{PAPER}" '
                f'stroke="{EDGE}"/>',
                *self.parts,
                "</svg>",
                "",
            ]
        )

    def _reach(self, x: float, y: float) -> None:
        self.right, self.bottom = max(self.right, x), max(self.bottom, y)


def _clean(text: str) -> str:
    """Escape a text, without the characters that XML cannot hold."""
    return escape(
        "".join(
            c if c in "\t\n" or (c >= " " and not 0xD800 <= ord(c) < 0xE000 and c < "\ufffe") else "\ufffd"
            for c in text
        )
    )
