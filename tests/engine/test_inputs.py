"""Tensors made from a case: the same bits every time, and of the kind that the case names."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from csa_spec.plug.arrays import named_tensors
from csa_spec.plug.capabilities import DTYPES
from csa_spec.spec import Geometry, LayerKind, QueryTrace, attend_batch
from csa_spec.stages.layer.case import LayerCase, Scores, Sinks, Values
from csa_spec.stages.layer.inputs import Inputs, fresh_tokens, fresh_weight, make_inputs

LAYER = "E=6 H=4 D=6 R=4 q_lora=4 HI=3 DI=6 groups=2 o_lora=3"
CASE = LayerCase.parse(f"csa m=2 k=2 W=2 {LAYER} rows=13,9 values=gaussian sinks=drawn seed=5")
SEEDS = range(20)


def tensors(inputs: Inputs) -> dict[str, Tensor]:
    """Return every tensor by name."""
    return named_tensors(inputs.arguments(Geometry()))


def bits(inputs: Inputs) -> dict[str, list[float]]:
    """Return every tensor as a list of numbers."""
    return {name: tensor.flatten().tolist() for name, tensor in tensors(inputs).items()}


def changed(one: LayerCase, other: LayerCase) -> set[str]:
    """Return the names of the tensors that differ between two cases, in shape or value."""
    first, second = tensors(make_inputs(one)), tensors(make_inputs(other))
    assert first.keys() == second.keys()
    return {name for name, tensor in first.items() if not torch.equal(tensor, second[name])}


def with_geometry(case: LayerCase, **changes: object) -> LayerCase:
    """Return the case with another layer."""
    return replace(case, **changes)  # type: ignore[arg-type]


def queries(case: LayerCase) -> list[QueryTrace]:
    """Return how each query that has to choose came to its answer, in float64."""
    exact = make_inputs(case).double()
    trace = attend_batch(exact.hidden, exact.weights, case.geometry, exact.positions, exact.documents)
    return [query for document in trace.documents for query in document.queries if query.margin is not None]


@pytest.mark.parametrize("scores", Scores)
@pytest.mark.parametrize("values", Values)
def test_the_same_case_gives_the_same_bits(values: Values, scores: Scores) -> None:
    """Whatever else drew random numbers in between."""
    case = replace(CASE, values=values, scores=scores)
    first = bits(make_inputs(case))
    torch.rand(7)
    assert bits(make_inputs(case)) == first
    assert bits(make_inputs(replace(case, seed=6)))["hidden"] != first["hidden"]


def test_making_inputs_leaves_the_global_generator_alone() -> None:
    """Candidates may seed it themselves."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    make_inputs(CASE)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_rounded_once_from_the_same_numbers(dtype: str) -> None:
    """So a failure in one dtype can be tried in another."""
    wide, rounded = make_inputs(replace(CASE, dtype="float64")), make_inputs(replace(CASE, dtype=dtype))
    for name, tensor in tensors(rounded).items():
        if name in ("positions", "documents"):
            assert tensor.dtype == torch.int64
            continue
        assert tensor.dtype == getattr(torch, dtype), name
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, tensors(wide)[name].to(tensor.dtype)), name


def test_the_specification_gets_exactly_the_numbers_that_the_candidate_gets() -> None:
    """Rounding inputs is not an error of the candidate."""
    inputs = make_inputs(replace(CASE, dtype="bfloat16"))
    for name, tensor in tensors(inputs.double()).items():
        assert torch.equal(tensor, tensors(inputs)[name].to(tensor.dtype)), name
    assert inputs.double().hidden.dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"window": 5}, set()),
        ({"top_k": 1}, set()),
        ({"norm_eps": 1e-2}, set()),
        ({"compress_ratio": 3}, {"weights.compressor.ape", "weights.indexer.compressor.ape"}),
        ({"heads": 2}, {"weights.wq_b", "weights.wo_a", "weights.attn_sink"}),
        ({"index_heads": 2}, {"weights.indexer.wq_b", "weights.indexer.weights_proj"}),
        ({"o_lora_rank": 2}, {"weights.wo_a", "weights.wo_b"}),
    ],
)
def test_changing_one_size_leaves_other_tensors_as_they_are(
    changes: dict[str, object], names: set[str]
) -> None:
    """One generator per tensor: a shrunk case keeps most of what made the larger one fail."""
    assert changed(CASE, with_geometry(CASE, **changes)) <= names


def test_regimes_change_only_what_they_name() -> None:
    """Sinks leave all but the sink alone, scores all but the indexer."""
    assert changed(CASE, replace(CASE, sinks=Sinks.ZERO)) == {"weights.attn_sink"}
    for scores in (Scores.TIED, Scores.PLATEAU, Scores.SEPARATED):
        named = changed(CASE, replace(CASE, scores=scores))
        assert named <= {"weights.indexer.weights_proj", "weights.indexer.wq_b"}, scores


def test_layer_kinds_share_their_weights() -> None:
    """The same seed gives the same hidden states and the same common weights."""
    csa, sliding = (
        tensors(make_inputs(CASE)),
        tensors(make_inputs(with_geometry(CASE, kind=LayerKind.SLIDING))),
    )
    assert all(torch.equal(tensor, csa[name]) for name, tensor in sliding.items())


def test_integers_are_small_integers() -> None:
    """Only numbers that a person can follow; norms do not scale."""
    for scores in (Scores.FREE, Scores.TIED, Scores.PLATEAU):
        case = replace(CASE, values=Values.INTEGERS, scores=scores)
        for seed in SEEDS:
            for name, tensor in tensors(make_inputs(replace(case, seed=seed))).items():
                assert torch.equal(tensor, tensor.round()), name
                assert tensor.abs().max() <= (12 if name == "positions" else 2), name
                if name.endswith("norm"):
                    assert (tensor == 1).all(), name


def test_large_logits_come_from_keys_four_to_sixteen_times_as_long() -> None:
    """The softmax is nearly one-hot; the queries stay as they are."""
    factors = set()
    for seed in SEEDS:
        plain, large = (
            make_inputs(replace(CASE, values=values, seed=seed, dtype="float64")).weights
            for values in (Values.GAUSSIAN, Values.LARGE_LOGITS)
        )
        assert plain.compressor is not None
        assert large.compressor is not None
        assert torch.equal(plain.wq_b, large.wq_b)
        factor = float((large.kv_norm / plain.kv_norm).mean())
        torch.testing.assert_close(large.kv_norm, factor * plain.kv_norm)
        torch.testing.assert_close(large.compressor.norm, factor * plain.compressor.norm)
        factors.add(factor)
    assert 4 <= min(factors) < 6
    assert 12 < max(factors) <= 16


def test_sinks_are_of_the_kind_that_the_case_names() -> None:
    """Zero, about as large as logits, or far off and sometimes -inf."""

    def sinks(kind: Sinks) -> Tensor:
        return torch.cat(
            [make_inputs(replace(CASE, sinks=kind, seed=seed)).weights.attn_sink for seed in SEEDS]
        )

    assert (sinks(Sinks.ZERO) == 0).all()
    drawn, extreme = sinks(Sinks.DRAWN), sinks(Sinks.EXTREME)
    assert drawn.isfinite().all()
    assert 0.5 < drawn.std() < 2
    assert not extreme.isnan().any()
    assert (extreme == -torch.inf).any()
    assert (extreme < -40).logical_and(extreme.isfinite()).any()
    assert (extreme >= 20).any()
    assert not (extreme == torch.inf).any()


def margins(scores: Scores) -> list[float]:
    """Return each case's narrowest margin, relative to the spread of its query's scores."""
    drawn = [replace(CASE, scores=scores, seed=seed) for seed in SEEDS]
    return [min(_relative_margin(query) for query in queries(case)) for case in drawn]


def _relative_margin(query: QueryTrace) -> float:
    assert query.margin is not None
    spread = float(query.scores.max() - query.scores.min())
    return query.margin / spread if spread else 0.0


def test_separated_scores_have_wider_margins_than_free_ones() -> None:
    """In the median several times as wide, so that a selection can be judged strictly even in bfloat16."""
    free, separated = statistics.median(margins(Scores.FREE)), statistics.median(margins(Scores.SEPARATED))
    assert separated > 1.5 * free
    assert separated > 0.005


@pytest.mark.parametrize("values", Values)
def test_tied_scores_are_all_exactly_zero(values: Values) -> None:
    """So any choice is right, and every tie-break is tried."""
    for seed in SEEDS:
        for query in queries(replace(CASE, scores=Scores.TIED, values=values, seed=seed)):
            assert (query.scores == 0).all()
            assert query.margin == 0


@pytest.mark.parametrize(
    "values", [one for one in Values if one is not Values.UNITS]
)  # without negative numbers
def test_plateau_scores_are_often_exactly_zero_but_not_always(values: Values) -> None:
    """One index head leaves ReLU's zeros standing."""
    scores = torch.cat(
        [
            query.scores
            for seed in SEEDS
            for query in queries(replace(CASE, scores=Scores.PLATEAU, values=values, seed=seed))
        ]
    )
    assert 0.25 < float((scores == 0).double().mean()) < 0.75


def test_near_tied_scores_have_margins_that_are_small_but_not_zero() -> None:
    """Small beside the scores themselves, and much smaller than free ones."""

    def closeness(scores: Scores) -> list[float]:
        chosen = [query for seed in SEEDS for query in queries(replace(CASE, scores=scores, seed=seed))]
        return [
            float(query.margin or 0) / float(query.scores.abs().max())
            for query in chosen
            if query.scores.any()
        ]

    near, free = closeness(Scores.NEAR_TIED), closeness(Scores.FREE)
    assert statistics.median(near) < 0.1 * statistics.median(free)
    assert sum(margin > 0 for margin in near) > 0.8 * len(near)


def test_fresh_tokens_are_new_and_of_the_same_form() -> None:
    """A perturbation that leaves something as it was would prove nothing."""
    inputs = make_inputs(replace(CASE, dtype="float16"))
    fresh, other = fresh_tokens(CASE, inputs, "probe"), fresh_tokens(CASE, inputs, "future")
    assert fresh.shape == inputs.hidden.shape
    assert fresh.dtype == inputs.hidden.dtype
    assert torch.equal(fresh, fresh_tokens(CASE, inputs, "probe"))
    assert (fresh != inputs.hidden).any(-1).all()
    assert not torch.equal(fresh, other)


def test_a_fresh_weight_replaces_that_weight_only() -> None:
    """For every weight there is, and never by itself."""
    for values in Values:
        inputs = make_inputs(replace(CASE, values=values))
        for name, old in inputs.weights.named().items():
            named = fresh_weight(CASE, inputs, name).weights.named()
            assert not torch.equal(named[name], old), name
            assert (named[name].shape, named[name].dtype) == (old.shape, old.dtype)
            assert all(
                torch.equal(named[other], inputs.weights.named()[other]) for other in named if other != name
            )
