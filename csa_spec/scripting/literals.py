"""Tensors as literals of a script: the fewest digits that give the number back."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

WIDTH = 116
_FEW = 24
"""Tensors of so few numbers stay literals where others go to a file."""


def number(value: float, dtype: torch.dtype = torch.float64) -> str:
    """Write a number of a dtype in the fewest digits that give it back; integers as integers."""
    if not math.isfinite(value):
        return "torch.nan" if value != value else "torch.inf" if value > 0 else "-torch.inf"
    if value == 0:
        return "-0.0" if math.copysign(1, value) < 0 else "0"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if dtype == torch.float64:
        return repr(value)
    for digits in range(1, 10):
        text = f"{value:.{digits}g}"
        if torch.tensor(float(text), dtype=torch.float64).to(dtype).item() == value:
            return text
    return repr(value)


def rounded_up(value: float) -> float:
    """Round a positive number up to two digits."""
    if not math.isfinite(value) or value == 0:
        return value
    text = float(f"{value:.1e}")
    return text if text >= value else float(f"{value * 1.05:.1e}")


def near(value: float, allowed: float) -> float:
    """Return the number with the fewest digits that is off by a hundredth of what is allowed, or less."""
    if not math.isfinite(value) or not allowed > 0:
        return value
    if math.isinf(allowed):
        return float(f"{value:.3g}")
    for digits in range(1, 17):
        short = float(f"{value:.{digits}g}")
        if abs(short - value) <= allowed / 100:
            return short
    return value


def shorten(expected: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Return expected numbers and allowed errors with as few digits as matter, in float64."""
    budget = [rounded_up(error) for error in allowed.double().flatten().tolist()]
    short = list(map(near, expected.double().flatten().tolist(), budget))
    return (
        torch.tensor(short, dtype=torch.float64).view(expected.shape),
        torch.tensor(budget, dtype=torch.float64).view(allowed.shape),
    )


def nested(tensor: Tensor) -> Any:
    """Return a tensor as nested lists of the texts of its numbers."""
    if tensor.dim() == 0:
        return str(tensor.item()) if tensor.dtype == torch.bool else number(tensor.item(), tensor.dtype)
    return [nested(part) for part in tensor]


def layout(data: Any, room: int, indent: str = "") -> str:
    """Write nested lists on one line where they fit into ``room`` columns, else one item to a line."""
    if isinstance(data, str):
        return data
    line = _line(data)
    if len(line) <= room:
        return line
    inner = indent + "    "
    if all(isinstance(item, str) for item in data):
        lines = textwrap.wrap(line[1:-1], WIDTH - len(inner), break_on_hyphens=False)
        body = textwrap.indent("\n".join(lines), inner)
        return f"[\n{body},\n{indent}]"
    items = "".join(f"{inner}{layout(item, WIDTH - len(inner), inner)},\n" for item in data)
    return f"[\n{items}{indent}]"


def _line(data: Any) -> str:
    return data if isinstance(data, str) else f"[{', '.join(map(_line, data))}]"


@dataclass
class Literals:
    """The tensors of one script: written out, or put into a file beside it."""

    in_file: bool = False
    device: str = "cpu"
    wrap: str = "{}"
    """What is done to every input, e.g. ``{}.numpy()``"""
    views: dict[str, str] = field(default_factory=dict)
    """By the name of an input: how it is put where it lies in memory, e.g. ``in_memory({}, 40, 16, (2, 1))``"""
    file: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0
    """Numbers so far"""

    def of(self, name: str, tensor: Tensor, indent: str = "") -> str:
        """Return the expression that makes a tensor; ``name`` is what it is called in the file."""
        view = self.views.get(name, "{}")
        return view.format(self._of(f"{name}{view}", name, tensor, indent))

    def _of(self, before: str, name: str, tensor: Tensor, indent: str) -> str:
        self.count += tensor.numel()
        if self.in_file and tensor.numel() > _FEW:
            expression = self._filed(name, tensor)
            return expression + (f'.to("{self.device}")' if self.device != "cpu" else "")
        dtype = "" if tensor.dtype == torch.int64 else f", dtype={tensor.dtype}"
        where = f', device="{self.device}"' if self.device != "cpu" else ""
        if not tensor.numel():
            return f"torch.zeros({tuple(tensor.shape)}, dtype={tensor.dtype}{where})"
        room = WIDTH - len(f"{indent}{before} = torch.tensor(){dtype}{where}")
        return f"torch.tensor({layout(nested(tensor), room, indent)}{dtype}{where})"

    def plain(self, name: str, tensor: Tensor) -> str:
        """Return nested lists, or the tensor in the file."""
        self.count += tensor.numel()
        if self.in_file and tensor.numel() > _FEW:
            return self._filed(name, tensor)
        return layout(nested(tensor), WIDTH - len(name) - 8, "    ")

    def given(self, name: str, tensor: Tensor, indent: str = "") -> str:
        """Return the expression that makes an input in the candidate's kind of arrays."""
        return self.wrap.format(self.of(name, tensor, indent))

    def _filed(self, name: str, tensor: Tensor) -> str:
        self.file[name] = tensor.contiguous().clone()
        return f'tensors["{name}"]'


def wrapped(head: str, items: list[str], tail: str, indent: str = "") -> list[str]:
    """Return a call, or a dictionary, whose items fill lines."""
    lines, line = [f"{indent}{head}"], f"{indent}   "
    for item in items:
        if ("\n" in line + item or len(f"{line} {item},") > WIDTH) and line.strip():
            lines.append(line)
            line = f"{indent}   "
        line += f" {item},"
    return [*lines, line, f"{indent}{tail}"]
