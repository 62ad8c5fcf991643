"""Right stage functions pass in every dtype; what they declare changes what is tried, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import csa_spec
from csa_spec.engine.results import Report
from csa_spec.engine.running import CheckResult
from csa_spec.profiles import PROFILES, Profile
from stages.right import (
    attend_gather,
    attend_loops,
    attend_tiles,
    compressor_kernel,
    compressor_loops,
    declaring,
    gathered,
    index_scores_kernel,
    index_scores_loops,
    select_loops,
    select_rounded,
    select_sort,
    select_topk,
    sink_softmax,
)

KERNELS: dict[str, Any] = {
    "attend": attend_tiles,
    "select": select_topk,
    "index_scores": declaring(
        index_scores_kernel, batch_invariant=False
    ),  # matrix products depend on the rows
    "compressor": declaring(compressor_kernel, batch_invariant=False),
}
LOOPS: dict[str, Any] = {
    "attend": attend_loops,
    "select": select_loops,
    "index_scores": index_scores_loops,
    "compressor": compressor_loops,
}
EVERY_DTYPE = "float32,bfloat16,float16,float64"


def kinds(report: Report) -> set[str]:
    """Return the kinds of failure of a whole run."""
    return {failure.kind for result in report.results for failure in result.failures}


def result_of(report: Report, check: str = "specification") -> CheckResult:
    """Return what one check did."""
    (found,) = (result for result in report.results if result.check == check)
    return found


def worst(result: CheckResult) -> float:
    """Return the largest error/budget, but for gates near -20000, where one rounding decides a softmax."""
    ratios = [count.tally.worst for regime, count in result.regimes.items() if "far-gates" not in regime]
    assert result.tally.worst < 0.9
    return max(ratios, default=0.0)


def smoke(function: Callable[..., Any], stage: str = "attend", **declared: Any) -> Report:
    """Run the smallest profile on a function with some capabilities."""
    return csa_spec.check(declaring(function, **declared), stage=stage, profile="smoke")


# RIGHT


HALFWAY = Profile("halfway", light=150, medium=0, heavy=0, law=10, costly=3, patience=float("inf"))
"""Between smoke and default: all corner cases, and of the draws fewer, which take most of the time."""


@pytest.mark.parametrize("stage", KERNELS)
def test_a_kernel_passes_in_every_dtype_with_room_to_spare(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It computes in the dtype of its inputs, with wider accumulators."""
    monkeypatch.setitem(PROFILES, HALFWAY.name, HALFWAY)
    for profile, dtypes in ((HALFWAY.name, "float32,bfloat16"), ("smoke", "float16,float64")):
        report = csa_spec.check(KERNELS[stage], stage=stage, profile=profile, dtype=dtypes)
        assert kinds(report) == set()
        assert str(report.verdict) == "conformant"
        for result in report.results:
            assert result.cases > 0
            # In float64 the specification rounds as much as the candidate does.
            assert worst(result) < (0.8 if result.dtype == "float64" else 0.5)


@pytest.mark.parametrize("stage", LOOPS)
def test_the_rounded_specification_passes_in_every_dtype(stage: str) -> None:
    """Query by query and entry by entry; it uses a small part of the budget."""
    report = csa_spec.check(**{stage: LOOPS[stage]}, profile="smoke", dtype=EVERY_DTYPE)
    assert str(report.verdict) == "conformant"
    for result in report.results:
        assert worst(result) < (0.5 if result.dtype == "float64" else 0.25)


@pytest.mark.parametrize("function", [attend_gather, select_sort], ids=lambda function: function.__name__)
def test_another_layout_passes(function: Callable[..., Any]) -> None:
    """There is more than one right way, bit for bit different."""
    report = csa_spec.check(function, stage=function.__name__.partition("_")[0], profile="smoke")
    assert str(report.verdict) == "conformant"


# SIZES


def only_decodes(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Refuse more than one query."""
    if q.shape[1] > 1:
        raise ValueError(f"decode only: S == 1, not {q.shape[1]}")
    return attend_gather(q, kv, indices, sinks, scale)


def decodes_the_first_query(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Answer the first query, whatever is asked."""
    return attend_gather(q, kv, indices[:, :1].expand_as(indices), sinks, scale)


def test_a_guard_that_is_declared_is_conformant() -> None:
    """Refusing is allowed; what is refused is counted."""
    report = smoke(only_decodes, limits={"S": 1})
    assert str(report.verdict) == "conformant"
    result = result_of(report)
    assert result.not_applicable["S over 1"] > 20
    assert result.reached["several queries"] == 0
    assert result_of(report, "limits").cases > 0


def test_a_guard_that_is_not_declared_is_an_exception() -> None:
    """On the smallest case that is refused: two queries of nothing."""
    report = smoke(only_decodes)
    failure: Any = result_of(report).failures[0]
    assert failure.kind == "CandidateRaised[ValueError]"
    assert failure.case.queries == 2
    assert "decode only" in failure.detail


def test_a_declared_limit_without_a_guard_must_be_right_beyond_it() -> None:
    """Found by the check "limits" and by no other."""
    report = smoke(decodes_the_first_query, limits={"S": 1})
    assert {result.check for result in report.results if result.failures} == {"limits"}
    (failure,) = result_of(report, "limits").failures
    assert failure.kind == "SilentlyWrong"
    assert "S over 1 is declared unsupported, but attend S=2" in failure.detail
    assert str(smoke(attend_gather, limits={"S": 1}).verdict) == "conformant"


def test_multiples_are_kept() -> None:
    """Lists as wide as a tile, and a kernel that looks at whole tiles only is right for them."""

    def reads_whole_tiles(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
        if indices.shape[-1] % 16:
            raise ValueError("n must be a multiple of 16")
        return attend_tiles(q, kv, indices, sinks, scale)

    report = smoke(reads_whole_tiles, multiples={"n": 16})
    assert str(report.verdict) == "conformant"
    assert result_of(report).not_applicable["n not a multiple of 16"] > 20
    assert "CandidateRaised[ValueError]" in kinds(smoke(reads_whole_tiles))


def test_head_dims_and_ratios_are_kept() -> None:
    """The nearest that is supported is tried in place of another; others are tried by the check of limits alone."""
    seen: set[tuple[int, int]] = set()

    def compressor(
        hidden: Tensor, weights: csa_spec.CompressorWeights, geometry: csa_spec.Geometry
    ) -> Tensor:
        if geometry.compress_ratio not in {2, 4} or geometry.head_dim not in {4, 8}:
            raise ValueError("not supported")
        seen.add((geometry.compress_ratio, geometry.head_dim))
        return compressor_loops(hidden, weights, geometry)

    report = smoke(compressor, "compressor", head_dims={4, 8}, compress_ratios={2, 4})
    assert str(report.verdict) == "conformant"
    assert {ratio for ratio, _ in seen} == {2, 4}
    assert {dim for _, dim in seen} == {4, 8}
    assert {"D=6", "m=1", "m=8"} <= set(result_of(report).not_applicable)


def test_the_largest_top_k_is_kept() -> None:
    """And one more is refused, or right."""

    def at_most_three(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
        if top_k > 3:
            raise ValueError("k over 3")
        return select_topk(scores, positions, compress_ratio, top_k)

    report = smoke(at_most_three, "select", max_top_k=3)
    assert str(report.verdict) == "conformant"
    assert result_of(report).not_applicable["k over 3"] > 5
    silent = smoke(lambda s, p, m, k: select_topk(s, p, m, min(k, 3)), "select", max_top_k=3)
    assert kinds(silent) == {"SilentlyWrong"}


def test_static_shapes_keep_the_number_of_shapes_small() -> None:
    """For candidates that compile anew for each of them."""
    shapes: dict[bool, set[Any]] = {True: set(), False: set()}
    for static in shapes:

        def attend(
            q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float, static: bool = static
        ) -> Tensor:
            shapes[static].add((q.shape, kv.shape, indices.shape))
            return attend_gather(q, kv, indices, sinks, scale)

        declared = declaring(attend, static_shapes=static)
        assert kinds(csa_spec.check(declared, stage="attend", profile="smoke")) == set()
    sizes = {size for shape in shapes[True] for part in shape for size in part}
    assert sizes <= {0, 1, 2, 3, 4, 16, 64, 256, 1024}
    assert len(shapes[True]) < 0.9 * len(shapes[False])


# DATA


def fails_on_empty_queries(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Divide by zero where a query has no key."""
    keys, named = gathered(kv, indices)
    out = attend_gather(q, kv, indices, sinks, scale)
    assert keys.shape[2] == named.shape[2]
    return out.masked_fill(~named.any(-1)[..., None, None], torch.nan)


def test_a_kind_of_data_that_is_declared_away_is_not_tried() -> None:
    """Queries without keys, in every kind of list that may have some."""
    away = {("attend", name): "never happens here" for name in ("empty", "holes")}
    report = smoke(fails_on_empty_queries, lacks=away, limits={"n": 200})
    assert result_of(report).not_applicable["indices empty"] > 0
    assert result_of(report).reached["empty"] == 0
    assert "NotFinite" in kinds(smoke(fails_on_empty_queries))


def test_invalid_indices_are_tried_where_they_are_declared() -> None:
    """One function takes any index outside for none; the other one only -1."""

    def reads_what_is_not_minus_one(
        q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float
    ) -> Tensor:
        named = indices != -1
        rows = torch.where(named, indices, 0)
        if not kv.shape[1]:
            return torch.zeros_like(q)
        keys = kv[torch.arange(len(kv))[:, None, None], rows]  # raises IndexError
        keys = keys.masked_fill(~named[..., None], 0)
        logits = (scale * torch.einsum("bshd,bsnd->bshn", q, keys)).masked_fill(
            ~named[:, :, None], -torch.inf
        )
        return torch.einsum("bshn,bsnd->bshd", sink_softmax(logits, sinks), keys)

    report = smoke(attend_gather, invalid_indices=True)
    assert str(report.verdict) == "conformant"
    assert result_of(report).reached["outside"] > 0
    undeclared = smoke(reads_what_is_not_minus_one)
    assert str(undeclared.verdict) == "conformant"
    assert result_of(undeclared).not_applicable["indices outside"] > 0
    assert "CandidateRaised[IndexError]" in kinds(smoke(reads_what_is_not_minus_one, invalid_indices=True))


# LIBERTIES


def test_scores_that_round_to_the_same_number_are_equal_where_that_is_declared() -> None:
    """2**-7 of the larger one for a selection in bfloat16, where each score may be off by 2**-8."""
    assert kinds(smoke(select_rounded, "select", tie_tolerance=2**-7)) == set()
    for too_little in (0.0, 2**-12):
        found = result_of(smoke(select_rounded, "select", tie_tolerance=too_little)).failures
        assert {failure.kind for failure in found} == {"MissedHigherScore"}


def test_a_promise_of_the_lowest_index_is_held() -> None:
    """A stable sort keeps it; the last of equal entries breaks it, and is right without the promise."""

    def takes_the_last(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
        visible = ((positions + 1) // compress_ratio)[..., None]
        hidden = torch.arange(scores.shape[-1]) >= visible
        ranked = (
            scores.nan_to_num(0.0, neginf=torch.finfo(scores.dtype).min)
            .masked_fill(hidden, -torch.inf)
            .flip(-1)
        )
        picks = scores.shape[-1] - 1 - ranked.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
        return torch.where(picks >= visible, -1, picks)

    assert str(smoke(select_sort, "select", lowest_index_first=True).verdict) == "conformant"
    assert str(smoke(takes_the_last, "select").verdict) == "conformant"
    assert kinds(smoke(takes_the_last, "select", lowest_index_first=True)) == {"TieNotLowestFirst"}


def test_other_bits_in_every_run_must_be_declared() -> None:
    """Within the budget, as with atomics."""
    calls: list[int] = []

    def index_scores(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
        calls.append(0)
        out = index_scores_kernel(index_q, index_k, head_weights)
        return out * (1 + torch.finfo(out.dtype).eps) if len(calls) % 2 else out

    found = kinds(smoke(index_scores, "index_scores"))
    assert "NotRepeatable" in found
    assert found <= {"NotRepeatable", "NotBatchInvariant"}
    declared = smoke(index_scores, "index_scores", deterministic=False, batch_invariant=False)
    assert str(declared.verdict) == "conformant"


def test_other_bits_in_every_batch_must_be_declared() -> None:
    """Within the budget, as where the number of rows picks a kernel."""

    def index_scores(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
        out = index_scores_kernel(index_q, index_k, head_weights)
        return out * (1 + torch.finfo(out.dtype).eps) if len(index_q) > 1 else out

    assert kinds(smoke(index_scores, "index_scores")) == {"NotBatchInvariant"}
    assert str(smoke(index_scores, "index_scores", batch_invariant=False).verdict) == "conformant"


def test_float16_arithmetic_inside_must_be_declared() -> None:
    """A kernel that computes in float16 whatever it is given is wrong in float32, unless it says so."""

    def index_scores(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
        return index_scores_kernel(index_q.half(), index_k.half(), head_weights.half()).to(index_q.dtype)

    assert kinds(smoke(index_scores, "index_scores")) == {"WrongNumbers"}
    assert kinds(smoke(index_scores, "index_scores", internal_dtype="float16")) == set()
