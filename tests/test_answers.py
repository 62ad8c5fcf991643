"""From a case to its tensors and right answers, and from answers to explained failures."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import csa_spec
from csa_spec.bugs import Bug, bugs, find_bug
from csa_spec.engine.failures import WrongNumbers
from csa_spec.engine.running import draw_cases
from csa_spec.engine.stage import Setting
from csa_spec.engine.tensors import dtype_of
from csa_spec.engine.trial import main_output
from csa_spec.plug.candidate import Candidate
from csa_spec.plug.capabilities import Capabilities
from csa_spec.stages import STAGES
from csa_spec.strategies import stage_cases

PLACES = [(stage, variant) for stage in STAGES.values() for variant in stage.variants]


def rounded(case: Any) -> torch.Tensor:
    """Return the right answer to a case as an implementation would give it."""
    output = csa_spec.expected(case).output
    return output if output.dtype == torch.int64 else output.to(dtype_of(case.dtype))


@pytest.mark.parametrize(("stage", "variant"), PLACES, ids=lambda value: getattr(value, "name", value))
def test_the_expected_output_is_right(stage: Any, variant: str) -> None:
    """On corner cases and drawn ones, in either dtype, and of the shape that the comparison has."""
    cases = [
        *stage.draws.corners(variant, Setting()),
        *draw_cases(stage.draws.cases(variant, Setting()), 8, 3),
    ]
    for number, plain in enumerate(sorted(cases, key=lambda case: case.order)[:40]):
        case = replace(plain, dtype=("float32", "bfloat16")[number % 2])
        reference = csa_spec.expected(case)
        csa_spec.assert_close(case, rounded(case))
        assert reference.compared.shape == reference.output.shape[: reference.compared.dim()]
        if reference.tolerance is not None:
            assert reference.tolerance.shape == reference.output.shape


@cache
def told_apart(name: str) -> Any:
    """Return a small drawn case on which a bug is wrong, and what it answers; None where there is none."""
    bug = find_bug(name)
    stage, variant = STAGES[bug.stage], bug.kinds[0] if bug.kinds else ""
    setting = Setting()
    capabilities = bug.candidate.capabilities_of(stage.name)
    cases = [*stage.draws.corners(variant, setting), *draw_cases(stage.draws.cases(variant, setting), 10, 1)]
    for case in sorted(cases, key=lambda case: case.order)[:25]:
        fitting, _ = case.fit(capabilities)
        if fitting != case:
            continue
        trial = stage.trial(bug.candidate, case)
        try:
            answer = trial.answer
            if trial.is_wrong(answer):
                return case, main_output(answer)
        except Exception:
            continue
    return None


WRONG = random.Random(5).sample([bug for bug in bugs() if not bug.equivalent], 40)


@pytest.mark.parametrize("bug", WRONG, ids=lambda bug: bug.name)
def test_a_wrong_answer_is_refused(bug: Bug) -> None:
    """The answers of known bugs, where they are wrong at all on small cases."""
    found = told_apart(bug.name)
    if found is None:
        pytest.skip("no small case of the specification check tells it apart")
    with pytest.raises(csa_spec.Failure):
        csa_spec.assert_close(*found)


def test_most_of_these_are_tried() -> None:
    """A skipped test says nothing."""
    assert sum(told_apart(bug.name) is not None for bug in WRONG[:12]) >= 6


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_choices_are_those_that_the_rules_of_select_allow(data: st.DataObject) -> None:
    """Every selection of every query, held against the stage's own judgement; ties are common."""
    case = data.draw(stage_cases("select").filter(lambda case: case.entries <= 5 and case.top_k <= 4))
    reference, k = csa_spec.expected(case), case.top_k
    assert reference.choices is not None
    b, t = (data.draw(st.integers(0, size - 1)) for size in (case.rows, case.queries))
    certain, contested = (
        set(x[b, t].nonzero().flatten().tolist())
        for x in (reference.choices.certain, reference.choices.contested)
    )
    places = int(reference.choices.places[b, t])
    for count in range(min(k, case.entries) + 1):
        for picks in itertools.combinations(range(case.entries), count):
            got = reference.output.clone()
            got[b, t] = torch.tensor([*picks, *[-1] * (k - count)])
            valid = set(picks) - certain <= contested and certain <= set(picks)
            valid &= len(picks) == len(certain) + places
            if places < 0:
                continue
            if valid:
                csa_spec.assert_close(case, got)
            else:
                with pytest.raises(csa_spec.Failure):
                    csa_spec.assert_close(case, got)


def test_where_nothing_is_compared_anything_is_right() -> None:
    """At padding, and for queries that are not judged."""
    for line in ("csa rows=2<3,5 k=1", "csa rows=20 judged=3"):
        case = csa_spec.parse_case(line)
        reference, got = csa_spec.expected(case), rounded(case)
        assert 0 < int(reference.compared.sum()) < reference.compared.numel()
        got[~reference.compared] = 1e6
        csa_spec.assert_close(case, got)
        got[reference.compared] += 1
        with pytest.raises(WrongNumbers):
            csa_spec.assert_close(case, got)


def test_an_element_may_be_off_by_its_tolerance() -> None:
    """And by no more."""
    case = csa_spec.parse_case("attend S=2 H=2 D=4 N=6 n=3 values=gaussian seed=1")
    reference = csa_spec.expected(case)
    assert reference.tolerance is not None
    for share, right in ((0.9, True), (1.1, False)):
        got = reference.output.clone()
        got[0, 1, 1, 2] += share * reference.tolerance[0, 1, 1, 2]
        near = got.float()
        assert abs(float(near[0, 1, 1, 2] - got[0, 1, 1, 2])) < 0.1 * float(reference.tolerance[0, 1, 1, 2])
        if right:
            csa_spec.assert_close(case, near)
        else:
            with pytest.raises(WrongNumbers):
                csa_spec.assert_close(case, near)


def test_tensors_are_what_a_candidate_is_called_with() -> None:
    """In order, in the dtype and the layout of the case, and each time anew."""
    case = "attend S=3 H=2 D=4 N=6 n=3 layout=transposed dtype=bfloat16"
    first, second = csa_spec.tensors(case), csa_spec.tensors(case)
    assert list(first) == ["q", "kv", "indices", "sinks", "scale"]
    assert first["q"].dtype is torch.bfloat16
    assert not first["q"].is_contiguous()
    assert torch.equal(first["q"], second["q"])
    assert first["q"].data_ptr() != second["q"].data_ptr()


def test_tensors_have_the_form_that_is_declared() -> None:
    """Lengths beside lists, for who takes them."""
    given = csa_spec.tensors("attend N=6 n=3 lengths=ragged", Capabilities(lengths=True))
    assert list(given)[-1] == "topk_length"
    case = csa_spec.parse_case("attend N=6 n=3 lengths=ragged seed=3")
    right = csa_spec.expected(case, Capabilities(lengths=True)).output.float()
    csa_spec.assert_close(case, right, Capabilities(lengths=True))


def test_answers_of_other_libraries_and_shapes() -> None:
    """NumPy arrays, layers that show how they got there, tensors that require grad."""
    select = csa_spec.parse_case("select S=3 T=6 m=2 k=2")
    csa_spec.assert_close(select, rounded(select).numpy())
    csa_spec.assert_close(select, rounded(select).numpy().astype(np.int32)[..., ::-1])
    layer = csa_spec.parse_case("csa rows=9 k=1")
    csa_spec.assert_close(layer, csa_spec.LayerOutput(rounded(layer).requires_grad_()))
    shown = csa_spec.LayerOutput(rounded(layer), selection=torch.zeros(1, 9, 1, dtype=torch.int64))
    with pytest.raises(csa_spec.Failure, match="select"):
        csa_spec.assert_close(layer, shown)


def test_a_failure_is_explained() -> None:
    """With the numbers, what is not known, and how to see it again; without frames of this package."""
    case = csa_spec.parse_case("attend S=2 N=6 n=3")
    with pytest.raises(WrongNumbers) as raised:
        csa_spec.assert_close(case, rounded(case) + 1)
    (note,) = raised.value.__notes__
    assert 'case = csa_spec.parse_case("attend S=2 N=6 n=3")' in note
    assert "off by" in note
    assert "failing case " in note
    assert raised.traceback[-1].name == "assert_close"


@pytest.mark.parametrize(
    ("got", "says"),
    [
        (None, "got None"),
        (torch.zeros(3), r"expected \[1, 2, any\] \[B, S, n\], got \[3\]"),
        (torch.zeros(1, 2, 1), "expected int64 or int32 or int16, got float32"),
        ("text", "got a str"),
        (torch.zeros(1, 2, 1, dtype=torch.int64, device="meta"), "meta"),
    ],
)
def test_answers_of_a_wrong_form(got: Any, says: str) -> None:
    """One sentence."""
    with pytest.raises(csa_spec.Failure, match=says):
        csa_spec.assert_close("select S=2 T=6 m=2 k=2", got)


def test_what_is_no_case_is_refused() -> None:
    """By all three."""
    for function in (csa_spec.tensors, csa_spec.expected, lambda case: csa_spec.assert_close(case, None)):
        with pytest.raises(csa_spec.CaseError):
            function("banana")
        with pytest.raises(csa_spec.CaseError, match="a case is"):
            function(3)


def test_a_case_prints_as_the_call_that_makes_it() -> None:
    """Also as Hypothesis prints a failing one."""
    case = csa_spec.parse_case("csa rows=2")
    assert eval(repr(case), {"parse_case": csa_spec.parse_case}) == case

    @settings(max_examples=5, database=None)
    @given(case=stage_cases("select"))
    def test(case: Any) -> None:
        raise AssertionError

    with pytest.raises(AssertionError) as raised:
        test()
    assert any('case=parse_case("select' in note for note in raised.value.__notes__)


def test_a_candidate_with_recorded_answers_offers_its_stage() -> None:
    """It is no special case for whoever asks."""
    from csa_spec.plug.recorded import recorded

    candidate = recorded("x", "select", {})
    assert isinstance(candidate, Candidate)
    assert candidate.offers == ("select",)
