"""Wrong candidates, one bug each, named so that a report can name them: ``engine.wrong:NAME``.

Most are of the catalogue. Here are those that show stages as well, and what the suite must say about each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from csa_spec.bugs.layer_compressor import ignores_kv_norm, ignores_the_bias, ignores_the_index_bias
from csa_spec.bugs.layer_numbers import leaves_the_sink_out, nan_without_entries, scales_by_the_dimension
from csa_spec.bugs.layer_rotary import uses_one_theta
from csa_spec.bugs.layer_selection import selects_everything, selects_the_lowest
from csa_spec.bugs.layer_side_effects import (
    adds_the_batch_mean,
    centres_hidden_in_place,
    detaches_hidden,
    draws_random_numbers,
    infinite_at_first,
    joins_rows,
    keeps_every_output,
    multiplies_rows_by_their_number,
    raises_on_a_tail,
    remembers_answers_by_shape,
    replaces_minus_infinity_in_place,
    returns_float64,
    returns_nothing,
    reuses_its_buffer,
    rounds_differently_in_a_batch,
    rounds_differently_in_every_second_call,
    scales_logits_by_the_length_of_the_sequence,
    scales_the_sink_in_place,
)
from csa_spec.bugs.layer_sight import (
    hides_the_newest_entry,
    leaks_the_future,
    misses_the_oldest_token,
    sees_every_entry,
    sees_no_entry,
    sees_one_token_more,
)
from csa_spec.candidates.recognise import import_candidate
from csa_spec.engine.failures import (
    BatchOrderMatters,
    CandidateRaised,
    DrawsRandom,
    Failure,
    FutureLeak,
    GrowsWithCalls,
    InputsChanged,
    NotATensor,
    NotBatchInvariant,
    NotFinite,
    NotRepeatable,
    OverwritesOutput,
    PrefixDiffers,
    ReturnsPrevious,
    RowsInteract,
    SeesTooLittle,
    SeesTooMuch,
    WeightIgnored,
    WrongDtype,
    WrongNumbers,
    WrongShape,
)
from csa_spec.engine.running import ENOUGH, CheckResult, draw_cases, run_check
from csa_spec.engine.stage import Setting
from csa_spec.plug.candidate import Candidate
from csa_spec.spec import SPEC, Geometry, LayerKind, LayerWeights
from csa_spec.spec.attention import attend
from csa_spec.stages.layer.output import LayerOutput, LayerStage
from csa_spec.stages.layer.stage import LAYER
from csa_spec.strategies.layer import cases
from engine.candidates import with_stages

__all__ = [
    "BUGS",
    "LAWS",
    "Bug",
    "adds_the_batch_mean",
    "caught",
    "centres_hidden_in_place",
    "detaches_hidden",
    "draws_random_numbers",
    "drops_the_sink",
    "held",
    "hides_the_newest_entry",
    "ignores_kv_norm",
    "ignores_the_bias",
    "ignores_the_index_bias",
    "infinite_at_first",
    "joins_rows",
    "keeps_every_output",
    "leaks_the_future",
    "leaves_the_sink_out",
    "misses_the_oldest_token",
    "multiplies_rows_by_their_number",
    "named",
    "nan_without_entries",
    "raises_on_a_tail",
    "remembers_answers_by_shape",
    "replaces_minus_infinity_in_place",
    "returns_float64",
    "returns_nothing",
    "reuses_its_buffer",
    "rounds_differently_in_a_batch",
    "rounds_differently_in_every_second_call",
    "scales_by_the_dimension",
    "scales_logits_by_the_length_of_the_sequence",
    "scales_the_sink_in_place",
    "sees_every_entry",
    "sees_no_entry",
    "sees_one_token_more",
    "selects_everything",
    "selects_the_lowest",
    "uses_one_theta",
]

drops_the_sink = leaves_the_sink_out

# NUMBERS: every query sees the right tokens, but not in the right way; the stages are shown as well.

selects_everything_and_shows_it = with_stages(
    replace(SPEC, select=lambda visible, scores, top_k: list(visible))
)
"""No top-k at all: now it can be seen that it attends to too much."""
selects_the_oldest_and_shows_it = with_stages(
    replace(SPEC, select=lambda visible, scores, top_k: list(visible)[:top_k])
)
"""The first that are visible, whatever their scores; it attends rightly to those."""
_without_sink = replace(
    SPEC, attend=lambda q, keys, sink, scale: attend(q, keys, torch.full_like(sink, -math.inf), scale)
)
selects_the_oldest_without_a_sink = with_stages(
    replace(_without_sink, select=lambda visible, scores, top_k: list(visible)[:top_k])
)
"""Two mistakes at once: it also attends wrongly."""
without_a_sink_but_selects_rightly = with_stages(_without_sink)
"""The selection that it shows is right."""


def showing(inner: LayerStage, change: Callable[[Tensor], Tensor]) -> LayerStage:
    """Return a layer that shows another selection than the one that it uses."""

    def layer(
        hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor, /
    ) -> LayerOutput:
        output = inner(hidden, weights, geometry, positions, documents)
        assert isinstance(output, LayerOutput)
        assert output.selection is not None
        return LayerOutput(output.out, selection=change(output.selection))

    return layer


shows_the_oldest = showing(with_stages(), lambda s: torch.where(s >= 0, (s >= 0).cumsum(-1) - 1, -1))
"""The output is right, the selection shown with it is that of the first entries."""
selects_nothing_there_is = showing(with_stages(_without_sink), lambda s: torch.where(s >= 0, s + 99, -1))
"""It shows entries that do not exist."""
selects_twice = showing(with_stages(_without_sink), lambda s: torch.cat((s, s), -1))
"""It shows each entry twice."""
shows_no_selection_in_hca = showing(with_stages(_without_sink), lambda s: torch.full_like(s, -1))
"""It shows a list of none, as an implementation may where nothing is selected."""


@dataclass(frozen=True, slots=True)
class Bug:
    """What the suite must say about a wrong candidate."""

    check: str
    """The check that must find it"""
    failure: type[Failure]
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Facts that it must give"""
    kind: LayerKind = LayerKind.CSA


SPECIFICATION = "specification"
CSA, HCA, SLIDING = LayerKind
LATER = {"what": "token", "why": "later"}
OUTSIDE = {"what": "token", "why": "outside"}
BUGS = {
    "raises_on_a_tail": Bug(SPECIFICATION, CandidateRaised, {"error": "ValueError"}),
    "returns_nothing": Bug(
        SPECIFICATION, NotATensor, {"wanted": "one tensor", "received": "None (return the output)"}, SLIDING
    ),
    "joins_rows": Bug(
        SPECIFICATION, WrongShape, {"wanted": "[1, 1, 2] [B, S, hidden]", "received": [1, 2]}, SLIDING
    ),
    "returns_float64": Bug(SPECIFICATION, WrongDtype, {"wanted": "float32", "received": "float64"}, SLIDING),
    "nan_without_entries": Bug(SPECIFICATION, NotFinite, kind=HCA),
    "leaks_the_future": Bug(SPECIFICATION, SeesTooMuch, LATER),
    "sees_every_entry": Bug(SPECIFICATION, SeesTooMuch, LATER, HCA),
    "sees_one_token_more": Bug(SPECIFICATION, SeesTooMuch, OUTSIDE, SLIDING),
    "sees_no_entry": Bug(SPECIFICATION, SeesTooLittle, {"why": "entry", "entry": 0}, HCA),
    "misses_the_oldest_token": Bug(SPECIFICATION, SeesTooLittle, {"why": "window"}, SLIDING),
    "selects_everything": Bug(SPECIFICATION, WrongNumbers, {"items": "queries"}),
    "selects_the_lowest": Bug(SPECIFICATION, WrongNumbers, {"items": "queries"}),
    "scales_by_the_dimension": Bug(SPECIFICATION, WrongNumbers, {"items": "queries"}, SLIDING),
    "drops_the_sink": Bug(SPECIFICATION, WrongNumbers, {"items": "queries"}, SLIDING),
    "uses_one_theta": Bug(SPECIFICATION, WrongNumbers, {"items": "queries"}, HCA),
}
"""Wrong candidates by name; the same candidate may break a law as well."""
LAWS = {
    "leaks_the_future": Bug("future", FutureLeak, {"column": 1}),
    "adds_the_batch_mean": Bug("rows", RowsInteract, kind=SLIDING),
    "scales_logits_by_the_length_of_the_sequence": Bug("prefix", PrefixDiffers, {"column": 1}, SLIDING),
    "multiplies_rows_by_their_number": Bug("batch-order", BatchOrderMatters, {"order": [1, 0]}, SLIDING),
    "rounds_differently_in_every_second_call": Bug("repeat", NotRepeatable, kind=SLIDING),
    "centres_hidden_in_place": Bug("inputs", InputsChanged, {"names": "hidden"}, SLIDING),
    "scales_the_sink_in_place": Bug("inputs", InputsChanged, {"names": "weights.attn_sink"}, SLIDING),
    "rounds_differently_in_a_batch": Bug("rows", NotBatchInvariant, kind=SLIDING),
    "draws_random_numbers": Bug("state", DrawsRandom, {"what": "torch's random generator"}, SLIDING),
    "keeps_every_output": Bug("growth", GrowsWithCalls, {"what": "tensors"}, SLIDING),
    "reuses_its_buffer": Bug("memory", OverwritesOutput, kind=SLIDING),
    "remembers_answers_by_shape": Bug("own-inputs", ReturnsPrevious, {"same_bits": True}, SLIDING),
    "ignores_kv_norm": Bug("weights", WeightIgnored, {"weight": "kv_norm"}, SLIDING),
}
"""Candidates that break a law, by name."""


def named(name: str) -> Candidate:
    """Return a wrong candidate by the name that a report prints."""
    return import_candidate(f"engine.wrong:{name}")


@cache
def caught(name: str, check: str) -> CheckResult:
    """Hold a wrong candidate to one check on a few small draws; once for all tests.

    A law has one kind of failure, so that the first case that breaks it is enough.
    """
    enough = ENOUGH if check == SPECIFICATION else 1
    return held(named(name), check, (BUGS | LAWS)[name].kind, 12, enough)


def held(
    candidate: Candidate, check: str, kind: LayerKind, examples: int, enough: int = ENOUGH
) -> CheckResult:
    """Hold a candidate to one check on a few small draws, until ``enough`` of them fail."""
    (found,) = (one for one in LAYER.checks if one.name == check)
    setting = Setting(modes=candidate.modes("layer"), ratios=frozenset({1, 2, 3}))
    small = cases(kind, setting).filter(lambda case: case.columns <= 10)
    tried = draw_cases(small, examples, 0)
    return run_check(found, candidate, LAYER, tried, variant=kind, enough=enough)
