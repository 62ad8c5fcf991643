"""Ties, and what a candidate shows: right answers are accepted whatever they choose, wrong ones only by their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import csa_spec
from csa_spec.engine.failures import Failure
from csa_spec.engine.running import failure_of
from csa_spec.engine.tally import Tally
from csa_spec.plug.candidate import Candidate
from csa_spec.spec import SPEC, Geometry, LayerWeights, Spec, attend_batch
from csa_spec.spec.attention import attend
from csa_spec.spec.selection import select
from csa_spec.stages.layer import comparison
from csa_spec.stages.layer.case import LayerCase
from csa_spec.stages.layer.comparison import Mismatch, compare, explain_stages
from csa_spec.stages.layer.output import LayerOutput
from csa_spec.stages.layer.stage import LAYER
from csa_spec.stages.layer.trial import LayerTrial
from engine.candidates import RIGHT, VECTORISED, as_specified, expose, trace_batch, with_stages

SIZES = "E=4 H=2 D=4 q_lora=3 HI=2 DI=4 o_lora=2"
TIED = LayerCase.parse(f"csa k=2 W=1 {SIZES} rows=5 values=gaussian scores=tied seed=1")
SMALL_TIED = LayerCase.parse("csa rows=2 scores=tied seed=1")
CLEAR = LayerCase.parse(f"csa k=2 W=1 {SIZES} rows=5 values=gaussian scores=separated seed=1")


def _last_of_ties(visible: Sequence[int], scores: Sequence[float], top_k: int) -> list[int]:
    """Break ties the other way: highest index first."""
    ranked = sorted(zip(visible, scores, strict=True), key=lambda pair: (-pair[1], -pair[0]))
    return [entry for entry, _ in ranked[:top_k]]


def _next_best(visible: Sequence[int], scores: Sequence[float], top_k: int) -> list[int]:
    """Leave the best out where that makes a difference."""
    return (
        select(visible, scores, top_k + 1)[1:]
        if 0 < top_k < len(visible)
        else select(visible, scores, top_k)
    )


def candidate(stages: bool = False, **rules: object) -> Candidate:
    """Return the specification with other rules."""
    spec: Spec = replace(SPEC, **rules)  # type: ignore[arg-type]
    return Candidate("candidate", {"layer": with_stages(spec) if stages else as_specified(spec)})


def judge(one: Candidate, case: LayerCase) -> tuple[Tally, Mismatch | None]:
    """Compare a candidate with the specification on one case."""
    trial = LayerTrial(one, case)
    return compare(trial.expected, trial.output)


@pytest.mark.parametrize("stages", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ties_may_be_broken_either_way(dtype: str, stages: bool) -> None:
    """The sources leave it open, so lowest index first is only our convention."""
    tally, mismatch = judge(candidate(stages, select=_last_of_ties), replace(TIED, dtype=dtype))
    assert mismatch is None
    assert tally.ambiguous == 3
    assert tally.unjudged == 0


def test_a_lower_score_is_not_a_tie() -> None:
    """An entry that clearly scores less is wrong, however close the output may be."""
    tally, mismatch = judge(candidate(select=_next_best), CLEAR)
    assert tally.ambiguous == 0
    assert mismatch is not None
    assert mismatch.queries == 3
    assert mismatch.over_budget > 100


def test_a_selection_beside_the_tie_is_wrong() -> None:
    """Two tied entries leave the choice between these two, not among all."""
    weightless = "csa k=1 W=1 E=4 H=2 D=4 q_lora=3 HI=1 DI=4 o_lora=2 rows=6 values=gaussian scores=plateau"
    wrong = candidate(select=lambda visible, scores, k: select(visible, [-score for score in scores], k))
    for seed in range(10):
        case = LayerCase.parse(f"{weightless} seed={seed}")
        expected = LayerTrial(RIGHT, case).expected
        (document,) = expected.documents
        contested = [choice for choice in document.choices if choice.ambiguous and choice.count < 6]
        if contested and judge(wrong, case)[1] is not None:
            return
    raise AssertionError("no such case among ten")


def test_ambiguous_queries_are_counted() -> None:
    """Query t sees t + 1 entries of one token each, and may choose two of them from query 2 on."""
    tally, _ = judge(RIGHT, TIED)
    assert (tally.queries, tally.ambiguous, tally.unjudged) == (5, 3, 0)
    tally, _ = judge(RIGHT, CLEAR)
    assert (tally.queries, tally.ambiguous, tally.unjudged) == (5, 0, 0)


def test_too_many_choices_are_counted_and_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong output is not called wrong then, but the count says that nobody looked."""
    monkeypatch.setattr(comparison, "ALTERNATIVES", 4)
    broken = candidate(softmax_scale=lambda geometry: 9.0)
    tally, mismatch = judge(broken, TIED)
    assert (tally.ambiguous, tally.unjudged) == (3, 2)  # 3, 6 and 10 choices
    assert mismatch is not None
    assert mismatch.t < 3


def test_the_worst_error_is_that_of_the_choice_that_fits_best() -> None:
    """Not of the first one that happens to be within the budget, or the figure says nothing about the candidate."""
    line = "csa m=4 H=2 D=4 q_lora=2 DI=6 groups=2 rows=42,42 sinks=drawn seed=5 dtype=bfloat16"
    tally, mismatch = judge(RIGHT, LayerCase.parse(line))
    assert mismatch is None
    assert tally.ambiguous > 20
    assert tally.worst < 0.2  # one rounding


@pytest.mark.parametrize("seed", [325, 373, 112])
def test_each_choice_has_a_budget_of_its_own(seed: int) -> None:
    """Where the specification's own choice leaves hardly any attention, the other one may have much to round."""

    def last(scores: Tensor, top_k: int) -> Tensor:
        order = scores.flip(-1).sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
        return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.shape[-1] - 1 - order, True)

    case = LayerCase.parse(
        f"csa E=4 D=4 q_lora=3 o_lora=2 rows=6 values=large-logits scores=tied seed={seed}"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.candidates._highest", last)
        assert judge(VECTORISED, case)[1] is None


def showing(
    shown: Callable[[LayerOutput], LayerOutput],
    rule: Callable[[Sequence[int], Sequence[float], int], list[int]],
) -> Candidate:
    """Return a candidate that computes with one selection rule, and changes what it shows of it."""
    spec = replace(SPEC, select=rule)

    def layer(
        hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
    ) -> LayerOutput:
        return shown(
            expose(
                trace_batch(hidden, weights, geometry, positions, documents, spec), geometry, hidden.dtype
            )
        )

    return Candidate("shows", {"layer": layer})


def _as_by_convention(output: LayerOutput) -> LayerOutput:
    """Show the selection of the specification, lowest index first, whatever was computed."""
    assert output.selection is not None
    selection = output.selection.clone()
    for t in range(2, selection.shape[1]):
        selection[0, t, :2] = torch.tensor([0, 1])
    return replace(output, selection=selection)


def test_an_exposed_selection_must_be_the_one_that_was_used() -> None:
    """It is valid, and so is the output for some other valid selection, but not for this one."""
    honest = showing(lambda output: output, _last_of_ties)
    dishonest = showing(_as_by_convention, _last_of_ties)
    silent = showing(lambda output: replace(output, selection=None), _last_of_ties)
    assert judge(honest, TIED)[1] is None
    assert judge(silent, TIED)[1] is None
    mismatch = judge(dishonest, TIED)[1]
    assert mismatch is not None
    assert mismatch.queries == 3


def test_exposing_the_selection_lets_every_query_be_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many choices there are, only one has to be tried."""
    monkeypatch.setattr(comparison, "ALTERNATIVES", 1)
    tally, mismatch = judge(candidate(True, select=_last_of_ties), TIED)
    assert mismatch is None
    assert tally.unjudged == 0
    assert judge(candidate(False, select=_last_of_ties), TIED)[0].unjudged == 3


STAGES = LayerCase.parse(
    f"csa m=2 k=2 W=2 {SIZES} rows=9 values=gaussian scores=separated sinks=drawn seed=2"
)


def findings(one: Candidate, case: LayerCase = STAGES) -> list[str]:
    """Return what the stages of a candidate show."""
    trial = LayerTrial(one, case)
    return [
        finding.sentence
        for document in trial.expected.documents
        for finding in explain_stages(trial.output, document)
    ]


def test_right_stages_show_nothing() -> None:
    """Neither the specification's own, nor those of the vectorised layer."""
    for case in (STAGES, TIED, replace(STAGES, dtype="bfloat16"), replace(TIED, dtype="float64")):
        assert findings(candidate(stages=True), case) == []
        assert findings(VECTORISED, case) == []


def test_entries_that_no_query_selects_need_not_be_among_the_keys() -> None:
    """A layer that gathers what is selected has none of them where k is 0; where k is not, they are missing."""

    def without_entries(output: LayerOutput) -> LayerOutput:
        assert output.probabilities is not None
        return replace(output, probabilities=output.probabilities[..., :9])

    none = replace(STAGES, top_k=0)
    assert findings(showing(without_entries, select), none) == []
    assert findings(showing(without_entries, select), STAGES) == [
        "attention: 9 keys where there must be 9 tokens and 4 entries"
    ]


@pytest.mark.parametrize(
    ("rules", "first"),
    [
        ({"entry_position": lambda s, m: s * m + m - 1}, "compressor: entry 0 differs by"),
        ({"index_score": lambda q, w, key: (w * (q @ key)).sum()}, "index scores: query "),
        ({"select": _next_best}, "selection: query 5 selects entries "),
        ({"softmax_scale": lambda g: 1 / g.head_dim}, "attention: query 0, head "),
        (
            {"attend": lambda q, keys, sink, scale: attend(q, keys, sink + 1, scale)},
            "attention: query 0, head ",
        ),
    ],
)
def test_the_first_stage_that_differs_is_named(rules: dict[str, object], first: str) -> None:
    """What follows from it comes later in the list."""
    found = findings(candidate(stages=True, **rules))
    assert found[0].startswith(first), found


def test_what_is_shown_in_an_odd_form_does_not_stop_the_run() -> None:
    """Stages are optional, so shapes that do not fit are passed over; the output is judged all the same."""
    odd = torch.zeros(1, 1, 1)
    for name in ("entries", "index_scores", "selection", "probabilities"):
        for value in (odd, odd.long(), torch.zeros(0, 1, 1), "no tensor"):
            for rule in ({}, {"softmax_scale": lambda geometry: 9.0}):
                spec = replace(SPEC, **rule)  # type: ignore[arg-type]

                def layer(
                    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor,
                    spec: Spec = spec, shown: dict[str, object] = {name: value},  # noqa: B006
                ) -> LayerOutput:  # fmt: skip
                    out = attend_batch(
                        hidden.double(), _double(weights), geometry, positions, documents, spec
                    ).out
                    return LayerOutput(out.to(hidden.dtype), **shown)  # type: ignore[arg-type]

                found = failure_of(LAYER.checks[0], Candidate("odd", {"layer": layer}), LAYER, SMALL_TIED)
                assert (found is not None) == bool(rule)
        with pytest.raises(Failure):  # explained as well, which takes longer
            csa_spec.check_case(layer, SMALL_TIED)


def _double(weights: LayerWeights) -> LayerWeights:
    return LayerWeights.from_named({name: tensor.double() for name, tensor in weights.named().items()})


def test_only_tokens_of_documents_are_compared() -> None:
    """What a layer says at padding is nobody's business, NaN included."""

    def noisy(
        hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
    ) -> Tensor:
        out = trace_batch(hidden, weights, geometry, positions, documents).out.to(hidden.dtype)
        return out.masked_fill((documents < 0)[..., None], torch.nan)

    case = LayerCase.parse("hca m=2 rows=1<3,2,1+1")
    assert judge(Candidate("noisy", {"layer": noisy}), case)[1] is None
    for check in ("future", "rows", "prefix", "batch-order", "repeat"):
        csa_spec.check_case(noisy, case, check)


def test_the_worst_query_is_shown() -> None:
    """Of all that are wrong, the one furthest over its budget; NaN is furthest."""

    def off(
        hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
    ) -> Tensor:
        out = trace_batch(hidden, weights, geometry, positions, documents).out.to(hidden.dtype)
        out[0, 1] *= 1.5
        out[0, 2] *= 3
        return out

    def broken(
        hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
    ) -> Tensor:
        out = off(hidden, weights, geometry, positions, documents)
        out[0, 3, 0] = torch.nan
        return out

    mismatch = judge(Candidate("off", {"layer": off}), CLEAR)[1]
    assert mismatch is not None
    assert (mismatch.queries, mismatch.t) == (2, 2)
    torch.testing.assert_close(mismatch.got, 3 * mismatch.expected, rtol=1e-5, atol=1e-7)
    mismatch = judge(Candidate("broken", {"layer": broken}), CLEAR)[1]
    assert mismatch is not None
    assert (mismatch.queries, mismatch.t, mismatch.over_budget) == (3, 3, float("inf"))
