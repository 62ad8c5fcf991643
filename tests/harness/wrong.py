"""Wrong candidates, one bug each, named so that a report can name them: ``harness.wrong:NAME``.

Most are the specification with one rule replaced. Where the bug is one that somebody shipped, its URL is there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from csa_spec.harness.candidate import Candidate, Capabilities, LayerOutput, LayerStage, import_candidate
from csa_spec.harness.engine import CheckResult, draw_cases, run_check
from csa_spec.harness.failures import (
    BatchOrderMatters,
    CandidateRaised,
    Failure,
    FutureLeak,
    InputsChanged,
    NotBatchInvariant,
    NotFinite,
    NotRepeatable,
    OverwritesOutput,
    PrefixDiffers,
    ReturnsPrevious,
    RowsInteract,
    SeesTooLittle,
    SeesTooMuch,
    StateChanged,
    WeightIgnored,
    WrongDtype,
    WrongNumbers,
    WrongShape,
)
from csa_spec.harness.inputs import Inputs
from csa_spec.spec import SPEC, Geometry, LayerKind, LayerWeights, Spec, attend_document, split_documents
from csa_spec.spec.attention import attend
from csa_spec.spec.rope import rope_frequencies
from csa_spec.spec.selection import select
from csa_spec.stages import LAYER_STAGE
from csa_spec.strategies import cases
from harness.candidates import as_specified, with_stages

_right = as_specified()

# FORM: what comes back is no output at all.


def raises_on_a_tail(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """Refuse lengths that are no multiple of the ratio, as torchtitan does, but without declaring it."""
    if hidden.shape[1] % geometry.compress_ratio:
        raise ValueError(f"{hidden.shape[1]} tokens are no multiple of {geometry.compress_ratio}")
    return _tensor(_right(hidden, weights, geometry, positions, documents))


def returns_nothing(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> None:
    """Write the output somewhere and forget to return it."""
    _right(hidden, weights, geometry, positions, documents)


def joins_rows(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """Return tokens of all rows one after another, as token-major kernels have them."""
    return _tensor(_right(hidden, weights, geometry, positions, documents)).flatten(0, 1)


def returns_float64(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """Forget to convert back."""
    return _tensor(_right(hidden, weights, geometry, positions, documents)).double()


def nan_without_entries(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """Take a softmax over the entries of a query that sees none.

    https://github.com/vllm-project/vllm/issues/48364
    """
    out = _tensor(_right(hidden, weights, geometry, positions, documents))
    if geometry.compress_ratio > 1:
        out[:, 0] = math.nan
    return out


def infinite_at_first(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """Overflow at the same place every time, which is wrong but breaks no law."""
    out = _tensor(_right(hidden, weights, geometry, positions, documents))
    out[:, 0] = math.inf
    return out


# SIGHT: queries see what they must not, or miss what they must see.


def per_document(make_spec: Callable[[int, Geometry], Spec]) -> LayerStage:
    """Return a layer whose rules depend on the length of the document."""

    def layer(
        hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor, /
    ) -> Tensor:
        exact = Inputs(hidden, weights, positions, documents).double()
        out = torch.zeros_like(exact.hidden)
        for document in split_documents(exact.positions, exact.documents):
            tokens, spec = exact.hidden[document.row, document.columns], make_spec(document.length, geometry)
            trace = attend_document(tokens, document, exact.weights, geometry, spec)
            out[document.row, document.columns] = trace.out
        return out.to(hidden.dtype)

    return layer


def _visible_up_to(bound: Callable[[int, int, int], int]) -> Callable[[int, Geometry], Spec]:
    """Return the rules under which entries up to ``bound(t, m, T)`` are visible, as far as there are any."""

    def make_spec(length: int, geometry: Geometry) -> Spec:
        count = geometry.entry_count(length)
        return replace(SPEC, visible_entries=lambda t, m: list(range(min(count, bound(t, m, count)))))

    return make_spec


leaks_the_future = per_document(_visible_up_to(lambda t, m, count: t // m + 1))
"""``s <= t // m``: a query sees the block that it is in. https://github.com/vllm-project/tpu-inference/issues/3536"""
sees_every_entry = per_document(_visible_up_to(lambda t, m, count: count))
"""No causal mask before the top-k. https://github.com/huggingface/transformers/issues/45820"""
hides_the_newest_entry = per_document(_visible_up_to(lambda t, m, count: t // m))
"""The paper's ``s < floor(t / m)``, read 0-based."""
sees_no_entry = as_specified(replace(SPEC, visible_entries=lambda t, m: []))
"""The compressed pool is masked off. https://github.com/ml-explore/mlx-lm/pull/1189"""
misses_the_oldest_token = as_specified(replace(SPEC, window_tokens=lambda t, w: list(range(max(0, t - w + 2), t + 1))))
"""A window one token short; with a window of 1 not even the query's own token is left."""
sees_one_token_more = as_specified(replace(SPEC, window_tokens=lambda t, w: list(range(max(0, t - w), t + 1))))
"""A window that does not count the query's own token."""

# NUMBERS: every query sees the right tokens, but not in the right way.

selects_everything = as_specified(replace(SPEC, select=lambda visible, scores, top_k: list(visible)))
"""No top-k at all. https://github.com/hw-native-sys/pypto-lib/pull/593"""
selects_everything_and_shows_it = with_stages(replace(SPEC, select=lambda visible, scores, top_k: list(visible)))
"""The same, with its stages exposed: now it can be seen that it attends to too much."""
selects_the_oldest_and_shows_it = with_stages(
    replace(SPEC, select=lambda visible, scores, top_k: list(visible)[:top_k])
)
"""The first that are visible, whatever their scores; it attends rightly to those."""
selects_the_lowest = as_specified(
    replace(SPEC, select=lambda visible, scores, top_k: select(visible, [-score for score in scores], top_k))
)
"""The top-k of the wrong end."""
scales_by_the_dimension = as_specified(replace(SPEC, softmax_scale=lambda g: 1 / g.head_dim))
"""A scale of ``1 / d`` in place of ``1 / sqrt(d)``."""
drops_the_sink = as_specified(
    replace(SPEC, attend=lambda q, keys, sink, scale: attend(q, keys, torch.full_like(sink, -math.inf), scale))
)
"""A plain softmax. https://github.com/vllm-project/vllm/pull/54568"""
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
uses_one_theta = as_specified(
    replace(SPEC, layer_frequencies=lambda g: rope_frequencies(g.rope_dim, g.rope_theta, None))
)
"""``rope_theta`` in layers with entries too. https://github.com/huggingface/transformers/issues/45910"""

# LAWS: wrong in a way that needs no specification to see.


def adds_the_batch_mean(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """Let rows leak into each other."""
    out = _tensor(_right(hidden, weights, geometry, positions, documents))
    return out + out.mean(0, keepdim=True)


normalises_by_length = per_document(
    lambda length, geometry: replace(SPEC, softmax_scale=lambda g: g.scale * math.log(1 + length))
)
"""A scale that depends on tokens still to come, though not on what they are."""


def counts_rows(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """Use a row's index, as a request-local index that is rebased twice does.

    https://github.com/vllm-project/vllm/pull/41834
    """
    out = _tensor(_right(hidden, weights, geometry, positions, documents))
    return out * torch.arange(1, len(out) + 1, dtype=out.dtype)[:, None, None]


_calls = itertools.count()


def changes_by_a_hair(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """Round differently at every other call, as atomic additions do; far within the budget."""
    out = _tensor(_right(hidden, weights, geometry, positions, documents))
    return out * (1 + torch.finfo(out.dtype).eps) if next(_calls) % 2 else out


def centres_hidden_in_place(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """Use the caller's tensor as scratch memory, after all is done."""
    out = _tensor(_right(hidden, weights, geometry, positions, documents))
    hidden.sub_(1)
    return out


def scales_the_sink_in_place(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """Prepare a weight at every call: right at the first only."""
    out = _tensor(_right(hidden, weights, geometry, positions, documents))
    weights.attn_sink.add_(1)
    return out


def replaces_minus_infinity_in_place(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """Make sinks finite for a kernel that wants them so; the softmax stays the same."""
    weights.attn_sink.clamp_(min=torch.finfo(hidden.dtype).min)
    return _tensor(_right(hidden, weights, geometry, positions, documents))


def rounds_with_the_batch(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """Add up in another order where there are more rows, as matrix products do; far within the budget."""
    out = _tensor(_right(hidden, weights, geometry, positions, documents))
    return out * (1 + torch.finfo(out.dtype).eps) if len(out) > 1 else out


def draws_random_numbers(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """Draw from the global generator, and drop what it drew."""
    torch.rand(1)
    return _tensor(_right(hidden, weights, geometry, positions, documents))


_buffers: dict[tuple[int, ...], Tensor] = {}


def reuses_its_buffer(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """Write every output of a shape to the same memory."""
    out = _tensor(_right(hidden, weights, geometry, positions, documents))
    return _buffers.setdefault(tuple(out.shape), torch.empty_like(out)).copy_(out)


_answers: dict[tuple[object, ...], Tensor] = {}


def remembers_shapes(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """Keep answers by the shape of the question."""
    key = (geometry, tuple(hidden.shape), *positions.flatten().tolist(), *documents.flatten().tolist())
    if key not in _answers:
        _answers[key] = _tensor(_right(hidden, weights, geometry, positions, documents))
    return _answers[key].clone()


def detaches_hidden(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """Cut autograd's path to the hidden states, though gradients are declared."""
    return _tensor(_right(hidden.detach(), weights, geometry, positions, documents))


detaches_hidden.capabilities = Capabilities(gradients=True)  # type: ignore[attr-defined]


def ignoring(weight: str, make: Callable[[Tensor], Tensor]) -> LayerStage:
    """Return a layer that uses ``make(weight)`` in place of a weight."""

    def layer(
        hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor, /
    ) -> Tensor:
        named = weights.named()
        if weight in named:
            named[weight] = make(named[weight])
        return _tensor(_right(hidden, LayerWeights.from_named(named), geometry, positions, documents))

    return layer


ignores_kv_norm = ignoring("kv_norm", torch.ones_like)
"""A norm without its weight: right for a fresh checkpoint, where it is one."""
ignores_the_bias = ignoring("compressor.ape", torch.zeros_like)
"""No position bias where tokens are pooled."""
ignores_the_index_bias = ignoring("indexer.compressor.ape", torch.zeros_like)
"""Only the indexer's compressor lacks its position bias; it shows where a top-k truncates, and nowhere else."""


def _tensor(returned: Tensor | LayerOutput) -> Tensor:
    assert isinstance(returned, Tensor)
    return returned


@dataclass(frozen=True, slots=True)
class Bug:
    """What the suite must say about a wrong candidate."""

    check: str
    """The check that must find it"""
    failure: type[Failure]
    says: str
    """Part of the detail"""
    kind: LayerKind = LayerKind.CSA


SPECIFICATION = "specification"
BUGS = {
    "raises_on_a_tail": Bug(SPECIFICATION, CandidateRaised, "ValueError: "),
    "returns_nothing": Bug(SPECIFICATION, WrongShape, "expected one tensor, got NoneType", LayerKind.SLIDING),
    "joins_rows": Bug(SPECIFICATION, WrongShape, "[B, S, hidden], got [", LayerKind.SLIDING),
    "returns_float64": Bug(SPECIFICATION, WrongDtype, "expected float32, got float64", LayerKind.SLIDING),
    "nan_without_entries": Bug(SPECIFICATION, NotFinite, "has NaN or infinity where", LayerKind.HCA),
    "leaks_the_future": Bug(SPECIFICATION, SeesTooMuch, "comes after it, so it must not see it"),
    "sees_every_entry": Bug(SPECIFICATION, SeesTooMuch, "comes after it, so it must not see it", LayerKind.HCA),
    "sees_one_token_more": Bug(SPECIFICATION, SeesTooMuch, "is neither in its window nor", LayerKind.SLIDING),
    "sees_no_entry": Bug(SPECIFICATION, SeesTooLittle, "is part of an entry that it may see", LayerKind.HCA),
    "misses_the_oldest_token": Bug(SPECIFICATION, SeesTooLittle, "is in its window", LayerKind.SLIDING),
    "selects_everything": Bug(SPECIFICATION, WrongNumbers, "differ from the specification"),
    "selects_the_lowest": Bug(SPECIFICATION, WrongNumbers, "differ from the specification"),
    "scales_by_the_dimension": Bug(SPECIFICATION, WrongNumbers, "differ from the specification", LayerKind.SLIDING),
    "drops_the_sink": Bug(SPECIFICATION, WrongNumbers, "differ from the specification", LayerKind.SLIDING),
    "uses_one_theta": Bug(SPECIFICATION, WrongNumbers, "differ from the specification", LayerKind.HCA),
}
"""Wrong candidates by name; the same candidate may break a law as well."""
LAWS = {
    "leaks_the_future": Bug("future", FutureLeak, "changes when the tokens from column"),
    "adds_the_batch_mean": Bug("rows", RowsInteract, "differs when its row is run alone", LayerKind.SLIDING),
    "normalises_by_length": Bug("prefix", PrefixDiffers, "differs when the batch ends at column", LayerKind.SLIDING),
    "counts_rows": Bug("batch-order", BatchOrderMatters, "differs when the rows come in the order", LayerKind.SLIDING),
    "changes_by_a_hair": Bug("repeat", NotRepeatable, "differs; a candidate that is not bitwise", LayerKind.SLIDING),
    "centres_hidden_in_place": Bug("inputs", InputsChanged, "these differ: hidden", LayerKind.SLIDING),
    "scales_the_sink_in_place": Bug("inputs", InputsChanged, "these differ: weights.attn_sink", LayerKind.SLIDING),
    "rounds_with_the_batch": Bug("rows", NotBatchInvariant, "but not bit for bit", LayerKind.SLIDING),
    "draws_random_numbers": Bug(
        "state", StateChanged, "what the call changes: torch's random generator", LayerKind.SLIDING
    ),
    "reuses_its_buffer": Bug("memory", OverwritesOutput, "changes when the candidate is called", LayerKind.SLIDING),
    "remembers_shapes": Bug("own-inputs", ReturnsPrevious, "it returns the same bits", LayerKind.SLIDING),
    "ignores_kv_norm": Bug("weights", WeightIgnored, "replacing kv_norm does not move", LayerKind.SLIDING),
}
"""Candidates that break a law, by name."""


def named(name: str) -> Candidate:
    """Return a wrong candidate by the name that a report prints."""
    return import_candidate(f"harness.wrong:{name}")


@cache
def caught(name: str, check: str) -> CheckResult:
    """Hold a wrong candidate to one check on a few small draws; once for all tests."""
    return held(named(name), check, (BUGS | LAWS)[name].kind, 12)


def held(candidate: Candidate, check: str, kind: LayerKind, examples: int) -> CheckResult:
    """Hold a candidate to one check on a few small draws."""
    (found,) = (one for one in LAYER_STAGE.checks if one.name == check)
    small = cases(kind, ratios=(1, 2, 3), modes=tuple(candidate.layers)).filter(lambda case: case.columns <= 10)
    return run_check(found, candidate, LAYER_STAGE, kind, draw_cases(small, examples, 0))
