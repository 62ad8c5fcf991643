"""The lines of a script that compare what came back with numbers, or one run with another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from csa_spec.engine.failures import Failure, Place, WrongDtype, WrongShape
from csa_spec.scripting.literals import Literals, number, shorten


def has_wrong_form(failure: Failure) -> bool:
    """Whether shape or dtype of an answer are wrong, so that its numbers were never looked at."""
    return isinstance(failure, (WrongShape, WrongDtype))


def form(shape: Sequence[int | None], dtypes: Sequence[torch.dtype], failure: Failure) -> list[str]:
    """Return the lines that ask for shape and dtype of ``got``; None in a shape is any length."""
    names = ", ".join(map(str, dtypes))
    sizes = [f"got.shape == {tuple(shape)}"]
    if None in shape:
        known = tuple(size for size in shape if size is not None)
        sizes = [f"got.dim() == {len(shape)}", f"got.shape[:{len(known)}] == {known}"]
    dtype = f"got.dtype in ({names})" if len(dtypes) > 1 else f"got.dtype == {names}"
    kind = 'assert isinstance(got, torch.Tensor), f"got {type(got).__name__}"'
    return [
        *[kind] * isinstance(failure, WrongShape),
        f'assert {" and ".join([*sizes, dtype])}, f"got {{got.dtype}} of shape {{tuple(got.shape)}}"',
    ]


def within(
    expected: Tensor, allowed: Tensor, several: bool, at: Place | None, literals: Literals
) -> list[str]:
    """Return the lines that compare ``got`` with numbers, each with its allowed error.

    With ``several``, the first dimension counts valid selections, each of which is right. ``at`` is printed
    where the whole is large.
    """
    expected, allowed = shorten(expected, allowed)
    comment = "  # by valid selection, as scores tie" if several else ""
    lines = [
        "got = got.detach().double()",
        f"expected = {literals.of('expected', expected)}{comment}",
        f"# The allowed error{_uncompared(allowed)}:",
        f"allowed = {literals.of('allowed', allowed)}",
        "wrong = ~((got - expected).abs() <= allowed) & (got != expected)",
    ]
    if several:
        lines += [
            "best = wrong.any(-1).long().argmin(0)  # by query, the selection that explains the output",
            "expected, allowed, wrong = (",
            "    x.gather(0, best[None, ..., None].expand_as(x[:1]))[0] for x in (expected, allowed, wrong)",
            ")",
        ]
    index = _index(at, expected[0] if several else expected)
    return [
        *lines,
        f'print(f"expected {{expected{index}.tolist()}}\\ngot      {{got{index}.tolist()}}")',
        "shown = [values[wrong][:4].tolist() for values in (expected, got, allowed)]",
        'assert not wrong.any(), "expected {}, got {}, allowed error {}".format(*shown)',
    ]


def _uncompared(allowed: Tensor) -> str:
    return "; inf: not compared (scores tie, or padding)" if allowed.isinf().any() else ""


def _index(place: Place | None, expected: Tensor) -> str:
    """Return an index of what is shown: what the failure is about, or everything where that is little."""
    if place is None or expected.numel() <= 12:
        return "" if expected.numel() <= 64 else ".flatten()[:8]"
    head = "" if place.head is None else f", {place.head}"
    return f"[{place.row}, {place.column}{head}]"


def two_runs(
    first: str,
    second: str,
    what: str,
    allowed: Tensor,
    dtype: torch.dtype,
    literals: Literals,
    *,
    at: Place | None = None,
    part: str = "",
    elementwise: bool = False,
) -> list[str]:
    """Return the lines that compare two runs, given as expressions of their outputs.

    ``what`` says in words how the second run is different. Both may be off by a budget each, so they may
    differ by ``allowed``, and what is large in ``dtype`` rounds more: each number by itself if
    ``elementwise``, else with its neighbours. The index ``part`` is compared, ``at`` is printed where the
    whole is large.
    """
    _, allowed = shorten(torch.zeros_like(allowed), allowed)
    size = "first.abs()" if elementwise else "first.abs().amax(-1, keepdim=True)"
    shown = "" if at is None or allowed.numel() <= 12 else f"[{at.row}, {at.column}]"
    return [
        f"first = {first}",
        f"# The same with {what}:",
        f"second = {second}",
        f"first, second = (out.detach().double(){part} for out in (first, second))",
        f"# The allowed difference{_uncompared(allowed)}:",
        f"allowed = {literals.of('allowed', allowed)}",
        f"allowed = allowed + {number(16 * torch.finfo(dtype).eps)} * {size}",
        "same = (first == second) | (first.isnan() & second.isnan())",
        "wrong = ~((second - first).abs() <= allowed) & ~same",
        f'print("one run  ", first{shown}.tolist())',
        f'print("the other", second{shown}.tolist())',
        "shown = [values[wrong][:4].tolist() for values in (first, second)]",
        'assert not wrong.any(), "one run has {}, the other {}".format(*shown)',
    ]
