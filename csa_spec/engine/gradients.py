r"""Gradients, compared with autograd of the specification in float64.

The budget of a gradient is measured, not derived: the specification runs several times with every rounding
that a right implementation may make replaced by a random one of the same size (Parker, "Monte Carlo
Arithmetic", 1997). Each result of an operation, forward and backward, is multiplied by 1 + u xi with xi
standard normal; a sum of products x . w also gets u sqrt(sum (x w)^2) xi and a (sum \|x w\|) xi, as in
:mod:`csa_spec.engine.budget`, with u the unit roundoff of the dtype and a that of accumulators. The standard
deviation over the runs, times a margin, is the budget of an element. Where every run gives exactly 0, the
gradient must be exactly 0: that of a key that no query names, of a token that no judged query sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from csa_spec.engine.budget import Arithmetic
from csa_spec.engine.failures import NoGradient, StrayGradient, WrongGradient
from csa_spec.engine.tally import Tally, error_ratios
from csa_spec.engine.tensors import generator, normal
from csa_spec.engine.trial import Trial
from csa_spec.plug.arrays import map_tensors, named_tensors
from csa_spec.spec import Geometry, Spec

RUNS = 16
"""Runs whose spread is measured."""
MARGIN = 8.0
"""Standard deviations in a budget: more than for outputs, since so few runs leave the spread uncertain."""

_MOVES = frozenset(
    """
    alias arange argmax as_strided cat clone constant_pad_nd copy_ detach empty empty_like expand eye fill_
    flip full full_like gather index index_select isnan lift_fresh masked_fill narrow new_empty new_full
    new_ones new_zeros neg ones ones_like permute repeat reshape scatter select select_backward slice
    slice_backward sort split split_with_sizes squeeze stack t transpose unbind unfold unsqueeze view
    _unsafe_view where zero_ zeros zeros_like _to_copy maximum amax relu threshold_backward clamp clamp_min
    scalar_tensor triu tril _reshape_alias unsafe_split expand_copy
    """.split()  # noqa: SIM905 - a list of quoted words is harder to read
)
"""Operations of torch that move numbers, or choose among them, without rounding."""
_PRODUCTS = frozenset(("mm", "bmm", "mv", "dot"))


class RoundingNoise(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Random rounding errors in everything that torch computes, backward passes included."""

    def __init__(self, arithmetic: Arithmetic, seed: int, run: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._unit, self._accumulator = arithmetic.unit, arithmetic.accumulator
        self._rng = generator(seed, f"rounding {run}")

    def of(self, spec: Spec) -> Spec:
        """Return the rules with rotary tables made in float32, as models of lower precision make them."""

        def frequencies(geometry: Geometry) -> Tensor:
            with self._finely():
                return spec.layer_frequencies(geometry)

        def rotate(vectors: Tensor, position: int, frequencies: Tensor) -> Tensor:
            """Rotate as the specification does, with an angle, a cosine and a sine of finer rounding."""
            with self._finely():
                angle = position * frequencies
                cos, sin = torch.cos(angle), torch.sin(angle)
            cos, sin = cos * 1.0, sin * 1.0  # the tables are stored in the model's dtype
            width = 2 * len(frequencies)
            plain, turned = vectors[..., :-width], vectors[..., -width:]
            a, b = turned[..., 0::2], turned[..., 1::2]
            pairs = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1)
            return torch.cat((plain, pairs.flatten(-2)), dim=-1)

        return replace(spec, layer_frequencies=frequencies, rotate=rotate)

    @contextmanager
    def _finely(self) -> Iterator[None]:
        before, self._unit = self._unit, self._accumulator
        try:
            yield
        finally:
            self._unit = before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and round its result."""
        out = func(*args, **(kwargs or {}))
        name = func.__name__.partition(".")[0]
        if not isinstance(out, Tensor) or not out.is_floating_point() or name in _MOVES:
            return out
        noisy = out * (1 + self._unit * self._draw(out))
        if name in _PRODUCTS:
            squares = func(args[0].square(), args[1].square())
            magnitudes = func(args[0].abs(), args[1].abs())
            noisy = noisy + self._unit * squares.sqrt() * self._draw(out)
            noisy = noisy + self._accumulator * magnitudes * self._draw(out)
        return out.copy_(noisy) if name.endswith("_") else noisy

    def _draw(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._rng, dtype=like.dtype)


def gradients_match(trial: Trial[Any]) -> Tally | None:
    """Gradients match the specification's: within the budget, and exactly zero where nothing flows."""
    if not trial.capabilities.gradients:
        return None
    cotangent = cotangent_of(trial)
    if cotangent is None:
        return None
    exact = map_tensors(lambda _, x: x.double() if x.is_floating_point() else x, trial.arguments)
    expected = _gradient(trial, exact, cotangent)
    answer = trial.ask(trial.arguments, cotangent=cotangent)
    for name, reference in expected.items():
        if answer.gradients.get(name) is None and reference.any():
            raise NoGradient(trial.case, of=name)
    arithmetic = Arithmetic.of(cotangent.dtype, trial.capabilities.internal_dtype)
    squares = {name: torch.zeros_like(gradient) for name, gradient in expected.items()}
    for run in range(RUNS):
        noise = RoundingNoise(arithmetic, trial.case.seed, run)
        for name, noisy in _gradient(trial, exact, cotangent, noise).items():
            squares[name] += (noisy - expected[name]).square() / RUNS
    tally = Tally(queries=len(expected))
    for name, reference in expected.items():
        gradient = answer.gradients.get(name)
        if gradient is not None and reference.numel():
            worst = _compare(trial, name, reference, gradient, squares[name], arithmetic)
            tally.worst = max(tally.worst, worst)
    return tally


def _compare(
    trial: Trial[Any],
    name: str,
    reference: Tensor,
    gradient: Tensor,
    squares: Tensor,
    arithmetic: Arithmetic,
) -> float:
    """Return the largest error of a gradient over its budget; ``squares`` are the variances measured."""
    nothing = (squares == 0) & (reference == 0)
    typical = squares.mean() * 0.1  # for an element whose few runs happened to agree
    floor = arithmetic.underflow * 64 + arithmetic.unit**2 * reference.abs().amax()
    floor = floor + 1e-150  # squares of smaller spreads underflow in float64
    budget = MARGIN * (squares + typical).sqrt() + floor
    ratios = error_ratios(gradient.double(), reference, torch.where(nothing, 0.0, budget))
    worst = float(ratios.max())
    if worst <= 1:
        return worst
    at = [int(i) for i in torch.unravel_index(ratios.argmax(), ratios.shape)]
    want, got = float(reference[tuple(at)]), float(gradient[tuple(at)])
    kind = StrayGradient if bool(nothing[tuple(at)]) else WrongGradient
    facts: dict[str, Any] = {"of": name, "at": at, "reference": want, "gradient": got}
    raise kind(trial.case, expected=[want], got=[got], over_budget=worst, **facts)


def cotangent_of(trial: Trial[Any]) -> Tensor | None:
    """Return what the output is multiplied with: random numbers, at one query alone in half of the cases."""
    shape, dtypes, _ = trial.form(trial.arguments)
    if 0 in shape:
        return None
    cotangent = normal(trial.case.seed, "cotangent", tuple(int(length or 0) for length in shape))
    if trial.case.seed % 2 and cotangent.dim() > 1 and cotangent.shape[1] > 1:
        query = trial.case.seed // 2 % cotangent.shape[1]
        alone = torch.zeros_like(cotangent)
        alone[:, query] = cotangent[:, query]
        cotangent = alone
    return cotangent.to(dtypes[0])


def _gradient(
    trial: Trial[Any], exact: Mapping[str, Any], cotangent: Tensor, noise: RoundingNoise | None = None
) -> dict[str, Tensor]:
    """Return the gradients of the specification by the name of the argument; zero where it finds no path."""
    given = map_tensors(_leaf, exact)
    leaves = {name: tensor for name, tensor in named_tensors(given).items() if tensor.requires_grad}
    with torch.enable_grad(), nullcontext() if noise is None else noise:
        out = trial.specified(given, noise)
        gradients = _backward(out, list(leaves.values()), cotangent)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient.detach()
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
    }


def _leaf(name: str, x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_() if x.is_floating_point() else x


def _backward(out: Tensor, leaves: list[Tensor], cotangent: Tensor) -> tuple[Tensor | None, ...]:
    if not out.requires_grad:
        return (None,) * len(leaves)
    return torch.autograd.grad(out, leaves, cotangent.double(), allow_unused=True)
