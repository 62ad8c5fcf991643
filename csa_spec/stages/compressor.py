"""The stage ``compressor``: one entry for every complete block of tokens.

``compressor(hidden [B,S,E], weights, geometry) -> entries [B,T,D]``, T = S // compress_ratio

``weights`` is a :class:`csa_spec.CompressorWeights`. Rows are whole documents from position 0. ``geometry.overlap``
says whether blocks overlap (CSA) or not (HCA). The indexer's compressor is the same function with its own weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from csa_spec.engine.budget import Arithmetic, entries_budget
from csa_spec.engine.comparison import Tally
from csa_spec.engine.declared_limits import limits_check
from csa_spec.engine.failures import Failure, PrefixDiffers, SeesTooLittle, SeesTooMuch
from csa_spec.engine.gradients import gradients_match
from csa_spec.engine.inputs import choice, gaussian_weight, normal
from csa_spec.engine.recipe import Recipe, drawn, size
from csa_spec.engine.stage import MANNERS, ROWS, Check, Stage
from csa_spec.engine.trial import Form
from csa_spec.plug.candidate import Capabilities
from csa_spec.spec import SPEC, CompressorWeights, Geometry, LayerKind, Yarn, compress, compressor_shapes
from csa_spec.stages.numbers import NumbersTrial, dtype_of, equals_the_specification


class Blocks(StrEnum):
    """Whether an entry also pools the block before its own."""

    HCA = "hca"
    CSA = "csa"


class TokenValues(StrEnum):
    """How hidden states and weights are drawn."""

    INTEGERS = "integers"
    GAUSSIAN = "gaussian"
    LARGE_GATES = "large-gates"
    """Pooling logits up to hundreds: exp overflows without a running maximum"""
    FAR_GATES = "far-gates"
    """All pooling logits near -20000: -1e4 in the place of -inf is no mask any more"""


class Interpolation(StrEnum):
    """The rotary frequencies."""

    PLAIN = "no-yarn"
    YARN = "yarn"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressorCase(Recipe):
    """One trial of ``compressor``."""

    stage = "compressor"
    rows: int = size("B", 1, "rows")
    blocks: int = size("blocks", 0, "complete blocks")
    tail: int = size("tail", 0, "tokens after them")
    compress_ratio: int = size("m", 1, "tokens per entry")
    hidden: int = size("E", 1, "hidden")
    head_dim: int = size("D", 2, "channels")
    rotated: int = size("pairs", 1, "rotated pairs of channels")
    overlap: Blocks = drawn(Blocks)
    values: TokenValues = drawn(TokenValues)
    interpolation: Interpolation = drawn(Interpolation)

    @property
    def tokens(self) -> int:
        """S, at least 1."""
        return max(1, self.blocks * self.compress_ratio + min(self.tail, self.compress_ratio - 1))

    @property
    def geometry(self) -> Geometry:
        """The layer that the compressor belongs to."""
        return Geometry(
            kind=LayerKind(str(self.overlap)),
            compress_ratio=self.compress_ratio,
            hidden=self.hidden,
            head_dim=self.head_dim,
            rope_dim=2 * min(self.rotated, self.head_dim // 2),
            index_head_dim=self.head_dim,
            yarn=Yarn(factor=4.0, original_max_position=64)
            if self.interpolation is Interpolation.YARN
            else None,
        )


class CompressorTrial(NumbersTrial):
    """A candidate's ``compressor`` on one case."""

    stage = "compressor"
    batched = ("hidden",)
    item = "entry"
    case: CompressorCase

    @cached_property
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

    @cached_property
    def expected(self) -> tuple[Tensor, Tensor]:
        """Entries ``[B, T, D]`` in float64 and their budget."""
        hidden, weights, geometry = (
            self.arguments["hidden"].double(),
            self.arguments["weights"],
            self.case.geometry,
        )
        exact = _double(weights)
        arithmetic = Arithmetic.of(self.arguments["hidden"].dtype, self.capabilities.internal_dtype)
        budgets = [entries_budget(arithmetic, row, exact, geometry) for row in hidden]
        expected = self.specified({"hidden": hidden, "weights": exact, "geometry": geometry})
        return expected, torch.stack(budgets)

    def sight(self, b: int, i: int) -> tuple[type[Failure], str, int] | None:
        """Replace one token at a time and watch whether the entry moves when it must, and only then."""
        geometry, fresh = self.case.geometry, self.sibling().arguments["hidden"]
        if self.case.tokens > _MOST_PROBES:
            return None
        pooled = {one.token for one in SPEC.pooled_tokens(i, geometry.compress_ratio, geometry.overlap)}
        for token in range(self.case.tokens):
            hidden = self.arguments["hidden"].clone()
            hidden[b, token] = -fresh[b, token]
            changed = {**self.arguments, "hidden": hidden}
            moved = self.moved(self.ask(changed), b, i)
            if moved and token not in pooled:
                sentence = f"{self.name(b, i)} changes when token {token} changes, which it does not pool"
                return SeesTooMuch, sentence, token
            if not moved and token in pooled:
                exact = {**changed, "hidden": hidden.double(), "weights": _double(self.arguments["weights"])}
                must = self.specified(exact)[b, i] - self.expected[0][b, i]
                if bool((must.abs() > 8 * self.expected[1][b, i]).any()):
                    return (
                        SeesTooLittle,
                        f"{self.name(b, i)} does not change when token {token} changes, which it pools",
                        token,
                    )
        return None

    def context(self, b: int, i: int) -> tuple[str, ...]:
        """Show which tokens the entry pools."""
        geometry = self.case.geometry
        pooled = SPEC.pooled_tokens(i, geometry.compress_ratio, geometry.overlap)
        names = ", ".join(
            f"{one.token} ({one.half.value})" if geometry.overlap else str(one.token) for one in pooled
        )
        return (
            f"{f'entry {i} pools':<22}tokens {names}; S={self.case.tokens}, m={geometry.compress_ratio}",
        )


_MOST_PROBES = 64


def _double(weights: CompressorWeights) -> CompressorWeights:
    return CompressorWeights(*(getattr(weights, name).double() for name in ("wkv", "wgate", "ape", "norm")))


def make_compressor_inputs(case: CompressorCase) -> dict[str, Any]:
    """Make the tensors of a case, on the CPU."""
    geometry, seed, dtype = case.geometry, case.seed, dtype_of(case.dtype)
    shape = (case.rows, case.tokens, case.hidden)
    integers = case.values is TokenValues.INTEGERS
    hidden = (
        choice(seed, "hidden", shape, (-2.0, -1.0, 1.0, 2.0)) if integers else normal(seed, "hidden", shape)
    )
    weights = {}
    for name, weight_shape in compressor_shapes("", geometry, case.head_dim).items():
        if not integers:
            weights[name] = gaussian_weight(seed, name, name, weight_shape)
        elif name == "norm":
            weights[name] = torch.ones(weight_shape, dtype=torch.float64)
        else:
            weights[name] = choice(
                seed, name, weight_shape, (-1.0, 0.0, 1.0) if name == "ape" else (-1.0, 1.0, 2.0)
            )
    if case.values is TokenValues.LARGE_GATES:
        weights["wgate"], weights["ape"] = 100 * weights["wgate"], 100 * weights["ape"]
    elif case.values is TokenValues.FAR_GATES:
        weights["ape"] = weights["ape"] - 20_000
    return {
        "hidden": hidden.to(dtype),
        "weights": CompressorWeights(**{name: tensor.to(dtype) for name, tensor in weights.items()}),
        "geometry": geometry,
    }


def a_prefix_gives_the_same_entries(trial: CompressorTrial) -> Tally | None:
    """Entries of a prefix are those of the whole; so later tokens never change them."""
    keep = trial.case.seed % trial.case.tokens
    whole = trial.relevant(trial.answer).double()
    if keep == 0 or whole.isnan().any():
        return None
    hidden = trial.arguments["hidden"][:, :keep].contiguous()
    shorter = replace(
        trial.case, blocks=keep // trial.case.compress_ratio, tail=keep % trial.case.compress_ratio
    )
    if shorter.fit(trial.capabilities)[0] != shorter:
        return None
    smaller = type(trial)(trial.candidate, shorter)
    entries = smaller.relevant(smaller.ask({**trial.arguments, "hidden": hidden})).double()
    first = whole[:, : entries.shape[1]]
    allowed = (
        2 * trial.expected[1][:, : entries.shape[1]]
        + 16 * torch.finfo(dtype_of(trial.case.dtype)).eps * first.abs()
    )
    wrong = ((entries - first).abs() > allowed).flatten(2).any(-1).nonzero().tolist()
    if wrong:
        b, s = wrong[0]
        raise PrefixDiffers(
            f"{trial.name(b, s)} differs when only the first {keep} tokens are there",
            trial.case,
            expected=first[b, s].tolist(),
            got=entries[b, s].tolist(),
        )
    return Tally(queries=entries.shape[0] * entries.shape[1])


def _gradients_match(trial: CompressorTrial) -> Tally | None:
    """Gates near -20000 are left out: in 16 bits a single rounding of theirs decides a softmax."""
    return None if trial.case.values is TokenValues.FAR_GATES else gradients_match(trial)


def kinds_of(trial: CompressorTrial) -> set[str]:
    """Return the kinds that a case belongs to."""
    case, m = trial.case, trial.case.compress_ratio
    found = set(case.regime)
    if case.rows > 1:
        found.add("several rows")
    if trial.entries == 0:
        found.add("shorter than one block")
    if trial.entries and case.tokens % m:
        found.add("partial tail")
    if trial.entries and case.tokens % m == 0:
        found.add("whole blocks")
    if trial.entries > 1:
        found.add("several entries")
    if m == 1:
        found.add("ratio of 1")
    if case.geometry.rope_dim < case.head_dim:
        found.add("some channels not rotated")
    return found


REQUIRED = (
    *(str(one) for kind in (Blocks, TokenValues, Interpolation) for one in kind),
    "several rows",
    "shorter than one block",
    "partial tail",
    "whole blocks",
    "several entries",
    "ratio of 1",
    "some channels not rotated",
)


def required(_: object, capabilities: Capabilities) -> list[str]:
    """Return the kinds of case that a run must reach, given what the candidate supports."""
    ratios, limits, without = capabilities.compress_ratios, capabilities.limits, set()
    if ratios is not None and 1 not in ratios:
        without.add("ratio of 1")
    if limits.get("tail") == 0 or ratios == {1}:
        without |= {"partial tail", "shorter than one block"}
    if limits.get("B", 2) < 2:
        without.add("several rows")
    if limits.get("blocks", 2) < 2:
        without.add("several entries")
    return [
        name for name in REQUIRED if name not in without and ("compressor", name) not in capabilities.lacks
    ]


COMPRESSOR = Stage(
    "compressor",
    CompressorTrial,
    (
        Check("specification", "the entries equal the specification's", equals_the_specification, False),
        ROWS,
        Check(
            "prefix", "a prefix gives the same entries as the whole", a_prefix_gives_the_same_entries, True
        ),
        *MANNERS,
        Check("gradients", "gradients equal the specification's", _gradients_match, True, costly=True),
        Check(
            "limits",
            "what is declared away is refused or right",
            partial(limits_check, CompressorTrial),
            True,
        ),
    ),
    CompressorCase.fit,
    kinds_of,
    required,
    CompressorCase.parse,
    CompressorCase,
)
