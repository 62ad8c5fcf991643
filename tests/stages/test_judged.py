"""Of long rows some queries are judged: as they are judged where all are, at a cost that grows with them alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from csa_spec.bugs import find_bug
from csa_spec.candidates import find_candidate
from csa_spec.engine.failures import Failure
from csa_spec.engine.running import run_check
from csa_spec.engine.trial import main_output
from csa_spec.plug.candidate import Candidate
from csa_spec.spec import SPEC, compress, entries_of
from csa_spec.spec.each import each
from csa_spec.stages import STAGES
from csa_spec.stages.layer.case import LayerCase
from csa_spec.stages.layer.output import LayerOutput

LAYER = STAGES["layer"]
GATHER = find_candidate("gather")
LINES = (
    "csa rows=90 m=3 k=4 W=5 H=2 D=6 R=4 HI=12 DI=6 values=gaussian seed=2 judged=12",
    "csa rows=3<60@7,50+21 m=2 k=3 W=4 HI=12 values=gaussian seed=5 judged=9",
    "csa rows=80 m=4 k=2 W=3 seed=4 judged=10",
    "hca rows=100@9 m=8 W=7 H=2 D=4 values=gaussian seed=1 judged=8",
    "sliding rows=70 W=9 values=gaussian judged=7",
)


@pytest.mark.parametrize("line", LINES)
def test_what_is_judged_is_expected_as_where_all_is(line: str) -> None:
    """Outputs, budgets and valid selections of the judged queries are those that they have among all."""
    case = LayerCase.parse(line)
    some, every = (LAYER.trial(GATHER, one).expected for one in (case, replace(case, judged=0)))
    for few, all_ in zip(some.documents, every.documents, strict=True):
        asked = [query.t for query in few.trace.queries]
        assert asked == list(case.judged_of(few.span.length))
        assert {0, few.span.length - 1} <= set(asked)
        for t in asked:
            assert few.choice(t) == all_.choice(t)
            assert torch.allclose(few.trace.query(t).out, all_.trace.query(t).out, rtol=1e-12, atol=0)
            assert torch.allclose(few.budget(t), all_.budget(t), rtol=1e-9, atol=0)


@pytest.mark.parametrize("line", LINES)
def test_only_what_is_judged_can_fail(line: str) -> None:
    """An error in another query is not seen, one in a judged query is; both are counted."""
    case = LayerCase.parse(line)
    trial = LAYER.trial(GATHER, case)
    tally = trial.judge(trial.answer)
    assert (
        tally.queries == trial.queries == sum(min(12, case.judged) for row in case.rows for _ in row.lengths)
    )
    right, span = main_output(trial.answer), trial.expected.documents[0].span
    judged = set(case.judged_of(span.length))

    def with_error_at(t: int) -> LayerOutput:
        out = right.clone()
        out[span.row, span.begin + t] += 1
        return LayerOutput(out)

    other = next(t for t in range(span.length) if t not in judged)
    trial.judge(replace(trial.answer, returned=with_error_at(other)))
    with pytest.raises(Failure):
        trial.judge(replace(trial.answer, returned=with_error_at(max(judged))))


def test_entries_of_long_rows_are_those_of_the_loop() -> None:
    """Made from two blocks each, many at once, to float64 rounding."""
    case = LayerCase.parse("csa rows=700@11 m=3 D=6 R=4 DI=4 values=gaussian seed=3")
    inputs, geometry = LAYER.trial(GATHER, case).inputs.double(), case.geometry
    given = inputs.hidden[0], 11, inputs.weights.compressor, geometry, SPEC.layer_frequencies(geometry)
    assert torch.allclose(entries_of(*given), compress(*given), rtol=1e-12, atol=1e-14)


def test_a_rule_that_asks_for_a_number_is_called_in_a_loop() -> None:
    """Known bugs have such rules."""
    assert each(lambda n: torch.tensor(1.0 if n % 2 else 0.0), range(100)).sum() == 50


def broken_from(length: int) -> Candidate:
    """Return a layer that is wrong in its queries from some number on."""

    def layer(*arguments: object) -> LayerOutput:
        output = GATHER.stages["layer"](*arguments)
        late = torch.arange(output.out.shape[1])[:, None] >= length
        return LayerOutput(torch.where(late, 2 * output.out, output.out))

    return replace(GATHER, stages={"layer": layer})


def smallest(candidate: Candidate, line: str) -> Failure:
    """Return the failure on a case after it was made small."""
    result = run_check(LAYER.checks[0], candidate, LAYER, [LayerCase.parse(line)], variant=line.split()[0])
    (failure,) = result.failures
    return failure


def test_what_only_long_rows_show_is_made_as_short_as_it_gets() -> None:
    """By bisection: a row of one token more than is right."""
    failure = smallest(broken_from(700), "csa rows=2000 m=4 k=2 W=8 values=gaussian judged=16")
    assert failure.case.rows[0].lengths == (701,)
    assert failure.kind == "WrongNumbers"


def test_what_short_rows_show_too_is_named_there() -> None:
    """Long documents are not probed; the smaller case is one of the same failure, and says more."""
    failure = smallest(find_bug("sees_its_own_unfinished_block").candidate, "csa rows=100 m=4 k=9 judged=9")
    assert failure.kind == "SeesTooMuch"
    assert failure.case.columns <= 4
    assert failure.case.judged == 0
