"""A failing case becomes one that a person can follow, and stays the same kind of failure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from csa_spec.engine.case import CaseError
from csa_spec.engine.failures import CandidateRaised, Failure, SeesTooLittle
from csa_spec.engine.shrink import TRIALS, shrink
from csa_spec.spec import Geometry, LayerKind
from csa_spec.stages.layer.case import LayerCase, Row, Scores, Sinks, Values
from csa_spec.stages.layer.stage import LAYER
from csa_spec.stages.layer.trial import LayerTrial
from engine.wrong import named

SIZES = "E=6 H=4 D=8 R=4 q_lora=4 HI=2 DI=6 groups=2 o_lora=3 compress_theta=1600 yarn=4/64/32/1 eps=0.01"
LARGE = f"m=2 k=2 W=3 {SIZES} rows=1<3+5@8,7 values=gaussian scores=separated sinks=drawn"
WITHOUT_INDEXER = LARGE.replace(" k=2", "").replace(" HI=2 DI=6", "").replace(" scores=separated", "")
SLIDING = WITHOUT_INDEXER.replace("m=2 ", "")


class Judge:
    """Try cases with one check of one candidate, and count them."""

    def __init__(self, name: str, check: str) -> None:
        self.candidate = named(name)
        (self.check,) = (one for one in LAYER.checks if one.name == check)
        self.calls = 0

    def __call__(self, case: LayerCase) -> Failure | None:
        """Return how the candidate fails, if it does."""
        self.calls += 1
        try:
            self.check.run(LayerTrial(self.candidate, case))
        except Failure as failure:
            return failure
        return None

    def shrunk(self, text: str) -> tuple[Failure, Failure]:
        """Return a failure and what it shrinks to."""
        failure = self(LayerCase.parse(text))
        assert failure is not None
        self.calls = 0
        return failure, shrink(failure, self, LAYER.passes)


def simpler(case: LayerCase) -> Iterator[LayerCase]:
    """Yield every case that is simpler in one respect; an independent list of what a person would try next."""
    rows = case.rows
    for index, row in enumerate(rows):
        if len(rows) > 1:
            yield replace(case, rows=rows[:index] + rows[index + 1 :])
        for length in range(1, row.lengths[0]):
            yield replace(case, rows=(*rows[:index], Row((length, *row.lengths[1:])), *rows[index + 1 :]))
        if row.start:
            yield replace(case, rows=(*rows[:index], replace(row, start=0), *rows[index + 1 :]))
        if row.left_padding:
            yield replace(case, rows=(*rows[:index], replace(row, left_padding=0), *rows[index + 1 :]))
        if len(row.lengths) > 1:
            yield replace(case, rows=(*rows[:index], Row(row.lengths[:1]), *rows[index + 1 :]))
    smallest = Geometry(kind=case.geometry.kind)
    rules = {
        LayerKind.CSA: ("compress_ratio", "top_k"),
        LayerKind.HCA: ("compress_ratio",),
        LayerKind.SLIDING: (),
    }
    names = (*rules[case.geometry.kind], "window", "hidden", "heads", "head_dim", "rope_dim", "q_lora_rank",
             "index_heads", "index_head_dim", "o_groups", "o_lora_rank")  # fmt: skip
    for name in names:
        for value in range(0 if name == "top_k" else getattr(smallest, name), getattr(case.geometry, name)):
            yield from _with(case, name, value)
    for name in ("rope_theta", "compress_rope_theta", "norm_eps", "yarn"):
        yield from _with(case, name, getattr(smallest, name))
    for kind, name in ((Values, "values"), (Scores, "scores"), (Sinks, "sinks")):
        for regime in list(kind)[: list(kind).index(getattr(case, name))]:
            yield replace(case, **{name: regime})  # type: ignore[arg-type]


def _with(case: LayerCase, name: str, value: object) -> Iterator[LayerCase]:
    try:
        yield replace(case, **{name: value})  # type: ignore[arg-type]
    except CaseError:
        return


@pytest.mark.parametrize(
    ("name", "check", "text", "tokens"),
    [
        ("nan_without_entries", "specification", f"hca {WITHOUT_INDEXER}", 1),
        ("leaks_the_future", "specification", f"csa {LARGE}", 2),
        ("leaks_the_future", "future", f"csa {LARGE}", 2),
        ("sees_every_entry", "specification", f"hca {WITHOUT_INDEXER}", 2),
        ("misses_the_oldest_token", "specification", f"sliding {SLIDING}", 2),
        ("selects_the_lowest", "specification", f"csa {LARGE}", 3),
        ("drops_the_sink", "specification", f"sliding {SLIDING}", 1),
        ("uses_one_theta", "specification", f"hca {WITHOUT_INDEXER}", 2),
        ("multiplies_rows_by_their_number", "batch-order", f"sliding {SLIDING}", 2),
    ],
)
def test_a_failure_shrinks_to_one_row_of_a_few_tokens(name: str, check: str, text: str, tokens: int) -> None:
    """From two rows of 15 tokens, padded, packed and shifted, within the trials that it is given."""
    judge = Judge(name, check)
    found, shrunk = judge.shrunk(text)
    assert judge.calls <= TRIALS
    assert shrunk.kind == found.kind
    assert shrunk.case.order < found.case.order
    rows = shrunk.case.rows
    assert sum(row.width for row in rows) <= tokens, shrunk.case
    assert len(rows) == (2 if check == "batch-order" else 1), shrunk.case
    assert not shrunk.case.features
    assert shrunk.case.geometry.yarn is None
    assert shrunk.case.values in (Values.UNITS, Values.INTEGERS)
    assert shrunk.case.geometry.heads == 1
    again = judge(shrunk.case)
    assert again is not None
    assert again.detail == shrunk.detail
    if judge.calls < TRIALS:
        simpler_failures = [judge(case) for case in simpler(shrunk.case) if case.order < shrunk.case.order]
        assert [one.case for one in simpler_failures if one is not None and one.kind == shrunk.kind] == []


def test_another_kind_of_failure_on_a_smaller_case_does_not_take_over() -> None:
    """With one token the numbers are wrong, too, but the window shows what the entry would."""
    judge = Judge("hides_the_newest_entry", "specification")
    found, shrunk = judge.shrunk("hca m=3 W=2 E=4 D=4 q_lora=2 o_lora=2 rows=3,1<7 values=gaussian")
    assert isinstance(found, SeesTooLittle)
    assert isinstance(shrunk, SeesTooLittle)
    assert str(replace(shrunk.case, values=Values.INTEGERS, seed=0)) == "hca m=2 rows=2"
    smaller = judge(LayerCase.parse("hca rows=1"))
    assert smaller is not None
    assert smaller.kind == "WrongNumbers"
    assert smaller.case.order < shrunk.case.order


def test_shrinking_what_is_small_changes_nothing() -> None:
    """It ends where nothing smaller fails."""
    judge = Judge("leaks_the_future", "specification")
    _, shrunk = judge.shrunk("csa m=2 k=2 rows=5")
    assert str(replace(shrunk.case, values=Values.INTEGERS, seed=0)) == "csa m=2 rows=2"
    assert shrink(shrunk, judge, LAYER.passes) is shrunk


@pytest.mark.parametrize("trials", [0, 1, 7])
def test_shrinking_stops_when_its_trials_are_used_up(trials: int) -> None:
    """What it has by then is still a failure of the same kind."""
    judge = Judge("leaks_the_future", "specification")
    failure = judge(LayerCase.parse("csa m=2 k=2 W=3 rows=5,4"))
    assert failure is not None
    judge.calls = 0
    shrunk = shrink(failure, judge, LAYER.passes, trials)
    assert judge.calls <= trials
    assert shrunk.kind == failure.kind
    assert (shrunk is failure) == (trials == 0)


def test_no_case_is_tried_twice_and_none_that_is_larger() -> None:
    """Candidates may take minutes to compile for a new shape."""
    tried: list[LayerCase] = []

    def judge(case: LayerCase) -> Failure | None:
        tried.append(case)
        return CandidateRaised(ValueError("always"), case) if case.columns >= 5 else None

    begin = CandidateRaised(ValueError("always"), LayerCase.parse(f"csa {LARGE}"))
    shrunk = shrink(begin, judge, LAYER.passes)
    assert len(tried) == len(set(tried))
    assert all(case.order < begin.case.order for case in tried)
    assert str(shrunk.case) == "csa k=0 rows=5 values=units"


def test_cases_are_ordered_as_a_person_would() -> None:
    """Fewer tokens first, then fewer rows, smaller rules, smaller tensors, simpler values, smaller seeds."""
    lines = [
        "csa k=0 rows=1 values=units seed=9",
        "csa k=0 rows=1",
        "csa rows=1",
        "csa k=0 rows=1@8",
        "csa rows=2",
        "csa rows=2 seed=3",
        "csa rows=2 sinks=drawn",
        "csa o_lora=2 rows=2",
        "csa H=2 rows=2",
        "csa W=2 rows=2",
        "csa rows=1,1",
        "csa rows=1+1",
        "csa rows=1<1,1<1",
    ]
    cases = [LayerCase.parse(line) for line in lines]
    assert sorted(cases, key=lambda case: case.order) == cases
    assert cases[0].geometry.kind is LayerKind.CSA
