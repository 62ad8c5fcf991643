"""Tensors that lie in memory as callers have them: the same bits, poison around them, and who writes there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import csa_spec
from csa_spec import Capabilities
from csa_spec.bugs import find_bug
from csa_spec.bugs.memory import packed
from csa_spec.candidates.gather import attend
from csa_spec.candidates.recognise import as_candidate
from csa_spec.engine.failures import Failure
from csa_spec.engine.running import run_check
from csa_spec.plug.call import LocalCaller, Request
from csa_spec.plug.layouts import CONTIGUOUS, VIEWS, Layout, laid_out, layouts_of, memory_of, once
from csa_spec.stages import STAGES, parse_case
from csa_spec.stages.attend.stage import ATTEND

SHAPES = [(2, 3, 4, 5), (2, 3, 4), (3, 4), (5,), (1, 1), (), (2, 0, 3)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool]
SINGLE = [layout for layout in Layout if layout is not Layout.MIXED]
CASE = parse_case("attend B=2 S=3 H=2 D=4 N=9 n=6 indices=shuffled values=gaussian sinks=drawn-sinks")


@pytest.mark.parametrize("layout", SINGLE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layout_changes_no_bit(layout: Layout, dtype: torch.dtype) -> None:
    """NaN and -0.0 included, whatever the shape; elements never share memory unless they are equal."""
    for shape in SHAPES:
        tensor = torch.randn(shape).mul(3).to(dtype)
        if tensor.is_floating_point() and tensor.numel() > 2:
            tensor.view(-1)[:2] = torch.tensor([torch.nan, -0.0])
        view = laid_out(tensor, layout)
        assert view.shape == tensor.shape
        assert view.data_ptr() != tensor.data_ptr() or not tensor.numel()
        bits = [
            x.flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8)
            for x in (view, tensor)
        ]
        assert torch.equal(*bits)


@pytest.mark.parametrize("layout", SINGLE)
def test_a_layout_is_what_its_name_says(layout: Layout) -> None:
    """And everything around is poison."""
    tensor = torch.arange(24.0).view(2, 3, 4)
    equal = tensor[:1].expand(2, 3, 4).clone()
    view = laid_out(equal if layout is Layout.EXPANDED else tensor, layout)
    strides = {
        Layout.SLICED: (21, 7, 1),
        Layout.TRANSPOSED: (4, 8, 1),
        Layout.STRIDED: (24, 8, 2),
        Layout.EXPANDED: (0, 4, 1),
    }
    assert view.stride() == strides.get(layout, (12, 4, 1))
    assert (layout in CONTIGUOUS) == view.is_contiguous()
    assert (view.data_ptr() % 16 == 0) == (layout is not Layout.OFFSET)
    once(view).fill_(0)
    assert not view.any()
    around = memory_of(view).view(torch.float32)
    around = around[around != 0]
    assert bool((around.isnan() | (around > 1e38)).all())
    assert len(around) >= (0 if layout in (Layout.PLAIN, Layout.REQUIRES_GRAD) else 32)


def test_only_equal_rows_share_memory() -> None:
    """Rows that differ in the sign of a zero are not equal; neither are those that hold different NaN."""
    for rows in ([[0.0], [-0.0]], [[1.0], [2.0]]):
        assert laid_out(torch.tensor(rows), Layout.EXPANDED).stride() == (1, 1)
    assert laid_out(torch.tensor([[torch.nan], [torch.nan]]), Layout.EXPANDED).stride() == (0, 1)


def test_mixed_layouts_mix() -> None:
    """Each two arguments one after another lie in different ways; other shapes lie in others."""
    calls = [{name: torch.zeros(n, 2, 2) for name in "abc"} for n in range(1, 20)]
    layouts = [layouts_of(call, Layout.MIXED) for call in calls]
    assert all(one["a"] != one["b"] != one["c"] for one in layouts)
    assert {one["a"] for one in layouts} == {one["b"] for one in layouts} > {Layout.PLAIN, Layout.SLICED}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_gets_every_layout(stage: str) -> None:
    """The candidate sees it, in this process; what is asked stays as it is."""
    case = next(
        case
        for case in STAGES[stage].draws.corners(STAGES[stage].variants[-1], csa_spec.engine.stage.Setting())
        if case.layout is Layout.SLICED
    )
    for layout in VIEWS:
        trial = STAGES[stage].trial(as_candidate(attend, "x", "attend"), replace(case, layout=layout))
        assert f"layout {layout}" in trial.all_kinds()
        assert all(x.is_contiguous() for x in csa_spec.plug.arrays.named_tensors(trial.arguments).values())


@pytest.mark.parametrize("layout", Layout)
def test_inputs_that_are_used_again_lie_where_they_were(layout: Layout) -> None:
    """With other numbers in the same memory; and what is overwritten afterwards is theirs alone."""
    caller, seen = LocalCaller(), []

    def function(x: Tensor) -> Tensor:
        seen.append((x.data_ptr(), x.stride(), x.requires_grad))
        return x.detach().clone()

    for n in (1.0, 2.0, 3.0):
        x = torch.full((2, 3), n)
        options = {"reuse": n == 2, "overwrite": n == 3}
        answer = caller(function, Request("attend", {"x": x}, layout=layout, **options))
        assert not answer.changed_inputs
        assert not answer.changed_later
        assert not answer.read_later
        assert torch.equal(answer.returned, x)
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "layout", [layout for layout in VIEWS if layout not in (Layout.REQUIRES_GRAD, Layout.MIXED)]
)
def test_writing_around_an_input_is_told_from_writing_to_it(layout: Layout) -> None:
    """Before, behind and between its elements."""

    def function(x: Tensor) -> Tensor:
        memory = memory_of(x)
        memory[:: len(memory) - 1] = 1
        return x.clone()

    x = torch.randn(1, 3).expand(2, 3).clone()
    answer = LocalCaller()(function, Request("attend", {"x": x}, layout=layout))
    assert answer.changed_inputs == ("memory around x, which is not part of it",)
    both = LocalCaller()(lambda x: once(x).zero_().sum(), Request("attend", {"x": x}, layout=layout))
    assert both.changed_inputs == ("x",)


def refuses_views(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Take contiguous tensors only."""
    if not all(x.is_contiguous() for x in (q, kv, indices, sinks)):
        raise ValueError("not contiguous")
    return attend(q, kv, indices, sinks, scale)


def test_what_needs_contiguous_tensors_says_so() -> None:
    """Then nothing else is drawn, what is left out is counted, and views must be refused or right."""
    undeclared = csa_spec.check(attend=refuses_views, profile="smoke", patience=5)
    assert str(undeclared.verdict) == "not conformant"
    candidate = as_candidate(refuses_views, "x", "attend").declaring("attend", Capabilities(contiguous=True))
    report = csa_spec.check(candidate, profile="smoke")
    assert str(report.verdict) == "conformant"
    first, *_, limits = report.results
    assert first.not_applicable["layout sliced"]
    assert not first.reached["layout sliced"]
    assert first.reached["layout offset"]
    assert limits.check == "limits"
    assert limits.tally.seen["layout sliced: raises an error"]


def takes_views_for_packed(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Read keys as if they were contiguous."""
    return attend(q, packed(kv), indices, sinks, scale)


def test_views_that_are_declared_away_must_not_be_answered_wrongly() -> None:
    """Nothing but the check of declared limits shows it."""
    candidate = as_candidate(takes_views_for_packed, "x", "attend")
    report = csa_spec.check(candidate.declaring("attend", Capabilities(contiguous=True)), profile="smoke")
    failures = {result.check: [one.kind for one in result.failures] for result in report.results}
    assert {check for check, kinds in failures.items() if kinds} == {"limits"}
    assert failures["limits"] == ["SilentlyWrong"]


def test_a_failure_that_needs_a_layout_says_so() -> None:
    """It becomes plain where that fails too."""
    candidate = find_bug("reads_q_and_kv_as_packed").candidate
    case = replace(CASE, layout=Layout.TRANSPOSED)
    (failure,) = run_check(ATTEND.checks[0], candidate, ATTEND, [case]).failures
    assert failure.case.layout is not Layout.PLAIN
    assert any("without layout=" in remark for remark in failure.remarks)
    candidate = find_bug("drops_the_sink").candidate
    (failure,) = run_check(ATTEND.checks[0], candidate, ATTEND, [case]).failures
    assert failure.case.layout is Layout.PLAIN
    assert not failure.remarks


@pytest.mark.parametrize(
    ("arrays", "left"), [("numpy", {*Layout} - {Layout.REQUIRES_GRAD}), ("jax.numpy", {Layout.PLAIN})]
)
def test_arrays_of_other_libraries_lie_as_they_can(arrays: str, left: set[Layout]) -> None:
    """NumPy's have strides, but no grad; those of JAX are plain."""
    declared = Capabilities(arrays=arrays)
    assert {replace(CASE, layout=layout).fit(declared)[0].layout for layout in Layout} == left


def test_numpy_arrays_have_the_strides_of_the_layout() -> None:
    """They are views of the same memory."""
    seen: list[Any] = []
    x = torch.randn(2, 3, 4)
    LocalCaller()(
        lambda x: seen.append(x.strides) or x.copy(), Request("attend", {"x": x}, layout="strided"), "numpy"
    )
    assert seen == [(96, 32, 8)]


@pytest.mark.parametrize(
    ("layout", "advice"),
    [
        ("", "choose from plain, offset, sliced"),
        ("slanted", "did you mean sliced"),
        ("PLAIN", "did you mean plain"),
    ],
)
def test_an_unknown_layout_is_refused(layout: str, advice: str) -> None:
    """With the names that there are, or the one that is close."""
    with pytest.raises(csa_spec.CaseError, match=rf"unknown layout '{layout}'; {advice}"):
        parse_case(f"attend layout={layout}")


@pytest.mark.parametrize("layout", VIEWS)
def test_gradients_of_views_are_compared_too(layout: Layout) -> None:
    """They are gradients of what the candidate was handed."""
    csa_spec.check_case("gather", str(replace(CASE, layout=layout)), check="gradients")
    with pytest.raises(Failure):
        csa_spec.check_case("csa_spec.bugs:returns_zeros", str(replace(CASE, layout=layout)))
