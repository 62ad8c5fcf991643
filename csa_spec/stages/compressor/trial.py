"""How an answer of ``compressor`` is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from csa_spec.engine.budget import Arithmetic, entries_budget
from csa_spec.engine.failures import Failure, Found, SeesTooLittle, SeesTooMuch
from csa_spec.engine.numbers import RIGHT_SET, NumbersTrial
from csa_spec.engine.trial import Form, of_case
from csa_spec.spec import SPEC, CompressorWeights, compress, entries_of
from csa_spec.spec.each import MANY, each
from csa_spec.stages.compressor.case import CompressorCase, make_compressor_inputs
from csa_spec.stages.kinds import kinds_of


class CompressorTrial(NumbersTrial[CompressorCase]):
    """A candidate's ``compressor`` on one case."""

    stage = "compressor"
    batched = ("hidden",)
    item = "entry"

    @of_case
    def arguments(self) -> dict[str, Any]:
        """hidden, weights, geometry."""
        return make_compressor_inputs(self.case)

    @property
    def entries(self) -> int:
        """T."""
        return self.case.geometry.entry_count(self.case.tokens)

    def form(self, arguments: Mapping[str, Any]) -> Form:
        """An entry per complete block."""
        hidden = arguments["hidden"]
        entries = self.case.geometry.entry_count(hidden.shape[1])
        return Form((len(hidden), entries, self.case.head_dim), (hidden.dtype,), "[B, T, D]")

    def specified(self, arguments: Mapping[str, Any], noise: Any = None) -> Tensor:
        """Run the specification, one entry at a time."""
        spec = SPEC if noise is None else noise.of(SPEC)
        weights, geometry = arguments["weights"], arguments["geometry"]
        frequencies = spec.layer_frequencies(geometry)
        rows = [compress(row, 0, weights, geometry, frequencies, spec) for row in arguments["hidden"]]
        return torch.stack(rows)

    @of_case
    def expected(self) -> tuple[Tensor, Tensor]:
        """Entries ``[B, T, D]`` in float64 and their budget."""
        hidden, geometry = self.arguments["hidden"], self.case.geometry
        weights = _double(self.arguments["weights"])
        arithmetic = Arithmetic.of(hidden.dtype, self.capabilities.internal_dtype)
        frequencies = SPEC.layer_frequencies(geometry)
        return each(
            lambda row: (
                entries_of(row, 0, weights, geometry, frequencies, many=MANY),
                entries_budget(arithmetic, row, weights, geometry),
            ),
            hidden.double(),
        )

    def sight(self, b: int, i: int) -> Found | None:
        """Replace one token at a time and watch whether the entry moves when it must, and only then."""
        geometry, fresh = self.case.geometry, self.sibling().arguments["hidden"]
        if self.case.tokens > _MOST_PROBES:
            return None
        tokens = SPEC.pooled_tokens(i, geometry.compress_ratio, geometry.overlap)
        pooled = {pooled.token for pooled in tokens}
        for token in range(self.case.tokens):
            hidden = self.arguments["hidden"].clone()
            hidden[b, token] = -fresh[b, token]
            changed = {**self.arguments, "hidden": hidden}
            moved = self.moved(self.ask(changed), b, i)
            if moved and token not in pooled:
                return SeesTooMuch, {"what": "token", "number": token, "why": "not pooled"}
            if not moved and token in pooled:
                exact = {**changed, "hidden": hidden.double(), "weights": _double(self.arguments["weights"])}
                must = self.specified(exact)[b, i] - self.expected[0][b, i]
                if bool((must.abs() > 8 * self.expected[1][b, i]).any()):
                    return SeesTooLittle, {"what": "token", "number": token, "why": "pooled"}
        return None

    def context(self, b: int, i: int) -> tuple[str, ...]:
        """Show which tokens the entry pools."""
        geometry = self.case.geometry
        pooled = SPEC.pooled_tokens(i, geometry.compress_ratio, geometry.overlap)
        names = [f"{token} ({half.value})" if geometry.overlap else str(token) for token, _, half in pooled]
        sizes = f"S={self.case.tokens}, m={geometry.compress_ratio}"
        return (f"{f'entry {i} pools':<22}tokens {', '.join(names)}; {sizes}",)

    @property
    def tail(self) -> int:
        """Tokens after the last complete block."""
        return self.case.tokens % self.case.compress_ratio

    def kinds(self) -> set[str]:
        """Return the kinds that the case belongs to."""
        return kinds_of(self, KINDS)

    def depends_on(self, failure: Failure) -> str:
        """Say that the set is right, which judging found out."""
        if self.case.tokens > _MOST_PROBES:
            return ""
        return f"The entry depends on the tokens that it pools and on no other: {RIGHT_SET}"


KINDS: dict[str, Callable[[CompressorTrial], bool]] = {
    "several rows": lambda trial: trial.case.rows > 1,
    "shorter than one block": lambda trial: trial.entries == 0,
    "partial tail": lambda trial: trial.entries > 0 and trial.tail > 0,
    "whole blocks": lambda trial: trial.entries > 0 and trial.tail == 0,
    "several entries": lambda trial: trial.entries > 1,
    "ratio of 1": lambda trial: trial.case.compress_ratio == 1,
    "some channels not rotated": lambda trial: trial.case.geometry.rope_dim < trial.case.head_dim,
}
_MOST_PROBES = 64


def _double(weights: CompressorWeights) -> CompressorWeights:
    return CompressorWeights(*(getattr(weights, name).double() for name in ("wkv", "wgate", "ape", "norm")))
