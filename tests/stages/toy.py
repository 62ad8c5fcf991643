"""A whole stage in one module: ``norm(x [B,S,D], weight [D], eps) -> [B,S,D]``, an RMS norm.

``register(NORM)`` is all that the rest of the house needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

from hypothesis import strategies as st
from torch import Tensor

from csa_spec.engine.budget import MARGIN, Arithmetic, Rounded
from csa_spec.engine.case import Case, drawn, size
from csa_spec.engine.gradients import gradients_match
from csa_spec.engine.numbers import NumbersTrial, equals_the_specification
from csa_spec.engine.stage import LIMITS, ROWS, SIDE_EFFECTS, Check, Stage, Words, gradients_check
from csa_spec.engine.tensors import choice, dtype_of, normal, with_shared_rows
from csa_spec.engine.trial import Form
from csa_spec.plug.arrays import map_tensors
from csa_spec.strategies.flat import SEEDS, any_of, draws

EPS = 1e-6


class NormValues(StrEnum):
    """How tokens are drawn."""

    INTEGERS = "integers"
    GAUSSIAN = "gaussian"
    TINY = "tiny"
    """So small that eps decides"""


@dataclass(frozen=True, kw_only=True)
class NormCase(Case):
    """One trial of ``norm``."""

    stage = "norm"
    rows: int = size("B", 1, "rows")
    tokens: int = size("S", 1, "tokens")
    channels: int = size("D", 1, "channels")
    values: NormValues = drawn(NormValues)


class NormTrial(NumbersTrial[NormCase]):
    """A candidate's ``norm`` on one case."""

    stage = "norm"
    batched = ("x",)
    item = "token"

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """x, weight, eps."""
        case = self.case
        seed, dtype, shape = case.seed, dtype_of(case.dtype), (case.rows, case.tokens, case.channels)
        if case.values is NormValues.INTEGERS:
            x = choice(seed, "x", shape, (-2.0, -1.0, 1.0, 3.0))
            weight = choice(seed, "weight", (case.channels,), (-1.0, 2.0, 3.0))
        else:
            x = normal(seed, "x", shape) * (EPS**0.5 if case.values is NormValues.TINY else 1.0)
            weight = normal(seed, "weight", (case.channels,))
        (x,) = with_shared_rows(case, x=x)
        return {"x": x.to(dtype), "weight": weight.to(dtype), "eps": EPS}

    def form(self, arguments: Mapping[str, Any]) -> Form:
        """As x."""
        return Form(tuple(arguments["x"].shape), (arguments["x"].dtype,), "[B, S, D]")

    def specified(self, arguments: Mapping[str, Any], noise: Any = None) -> Tensor:
        """Divide by the root mean square, multiply by the weight."""
        x, weight, eps = (arguments[name] for name in NORM.arguments)
        normed: Tensor = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight
        return normed

    @cached_property
    def expected(self) -> tuple[Tensor, Tensor]:
        """The output ``[B, S, D]`` in float64 and its budget."""
        exact = map_tensors(lambda _, tensor: tensor.double(), self.arguments)
        arithmetic = Arithmetic.of(self.arguments["x"].dtype, self.capabilities.internal_dtype)
        rounded = arithmetic.norm(Rounded.exact(exact["x"]), exact["weight"], EPS)
        return self.specified(exact), MARGIN * rounded.variance.sqrt()

    def kinds(self) -> set[str]:
        """Return the kinds that the case belongs to."""
        case = self.case
        several = {"rows": case.rows, "tokens": case.tokens, "channels": case.channels}
        return super().kinds() | {f"several {name}" for name, count in several.items() if count > 1}


def norm_cases() -> st.SearchStrategy[NormCase]:
    """Few and many channels."""
    return st.builds(
        NormCase,
        rows=st.sampled_from((1, 1, 2, 3)),
        tokens=st.integers(1, 5),
        channels=st.sampled_from((1, 2, 3, 4, 7, 8, 33)),
        values=any_of(NormValues),
        seed=SEEDS,
    )


PLAIN = NormCase(rows=2, tokens=3, channels=4, values=NormValues.GAUSSIAN)

NORM = Stage(
    name="norm",
    arguments=("x", "weight", "eps"),
    case=NormCase,
    trial=NormTrial,
    checks=(
        Check("specification", "tokens match the specification", equals_the_specification, law=False),
        ROWS,
        *SIDE_EFFECTS,
        gradients_check(gradients_match),
        LIMITS,
    ),
    words=Words(title=lambda variant: "`norm`, an RMS norm", output="value of"),
    required=lambda variant, capabilities: (
        *NormValues,
        "several rows",
        "several tokens",
        "several channels",
    ),
    drawn=draws(
        norm_cases,
        bases=(PLAIN,),
        special=(replace(PLAIN, channels=1), replace(PLAIN, tokens=1)),
        production=(replace(PLAIN, channels=4096),),
    ),
)
