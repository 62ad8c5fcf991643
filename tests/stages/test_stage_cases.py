"""Cases of single stages: their text, what becomes of them where less is supported, and their tensors."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from engine.drawing import case_of_json, draw, stage_corners

from csa_spec.candidates.recognise import as_candidate
from csa_spec.engine.case import CaseError
from csa_spec.engine.shrink_flat import simpler as simpler_cases
from csa_spec.plug.arrays import named_tensors, same_bits
from csa_spec.plug.capabilities import Capabilities
from csa_spec.spec import SPEC
from csa_spec.stages import STAGES, parse_case, stage_of
from csa_spec.stages.attend.case import AttendCase, CoreSinks, IndexLists, UnusedRows, make_attend_inputs
from csa_spec.stages.compressor.case import CompressorCase, TokenValues, make_compressor_inputs
from csa_spec.stages.index_scores.case import make_index_scores_inputs
from csa_spec.stages.select.case import Invisible, ScoreValues, SelectCase, make_select_inputs
from csa_spec.strategies import stage_cases
from stages.right import RIGHT

NAMES = ("compressor", "index_scores", "select", "attend")
EACH = pytest.mark.parametrize("stage", NAMES)
MAKE: dict[str, Any] = {
    "attend": make_attend_inputs,
    "select": make_select_inputs,
    "index_scores": make_index_scores_inputs,
    "compressor": make_compressor_inputs,
}


def small(stage: str, examples: int = 60, dtype: str = "float32") -> list[Any]:
    """Return corner cases and draws, without the largest."""
    cases = [*stage_corners(stage, dtype), *draw(stage_cases(stage, dtype), examples)]
    return [case for case in cases if case.sizes.get("T", 0) < 1000]


# TEXT


@EACH
def test_a_case_is_one_line_of_text_and_reads_back(stage: str) -> None:
    """As a report prints it."""
    for case in small(stage, dtype="float16"):
        line = str(case)
        assert "\n" not in line
        assert line.split()[0] == stage
        assert parse_case(line) == case
        assert str(parse_case(line)) == line
        assert stage_of(case) is STAGES[stage]


@EACH
def test_a_case_is_plain_json_and_reads_back(stage: str) -> None:
    """With the same hash."""
    for case in small(stage, 20):
        data = json.loads(json.dumps(case.to_json()))
        again = case_of_json(data)
        assert again == case
        assert again.id == case.id
        assert data["stage"] == stage


def test_hashes_tell_cases_apart() -> None:
    """Of all stages."""
    cases = {case for stage in NAMES for case in small(stage)}
    assert len({case.id for case in cases}) == len(cases)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "attend Q=3",
            "'Q=3' is not part of a case of attend; choose from seed, mode, layout, dtype, device, page, spare, B,",
        ),
        ("attend n=3 n=4", "'n=4' is the second n"),
        ("attend n=x", "'n=x' is not a whole number"),
        ("attend n", "'n' is not a whole number"),
        ("attend n=", "'n=' is not a whole number"),
        ("attend n=1.5", "'n=1.5' is not a whole number"),
        ("attend B=0", "B (rows) must be an integer of at least 1, not 0"),
        ("attend N=-1", "N (keys) must be an integer of at least 0, not -1"),
        ("attend indices=some", "unknown indices 'some'; choose from prefix, shuffled, holes,"),
        ("select values=", "unknown values ''; choose from integers,"),
        ("select dtype=int8", "unknown dtype 'int8'; choose from"),
        ("compressor device=tpu", "unknown device 'tpu'; choose from"),
        (
            "attention n=1",
            "a case starts with compressor, index_scores, select, attend, csa, hca, sliding, cache, "
            "not with 'attention'",
        ),
        ("", "a case starts with compressor, "),
        ("index_scores seed=x", "'seed=x' is not a whole number"),
    ],
)
def test_text_that_is_no_case_is_refused_in_one_clear_sentence(text: str, says: str) -> None:
    """What is wrong, and what could stand there."""
    with pytest.raises(CaseError) as refused:
        parse_case(text)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


# CAPABILITIES


DECLARED = {
    "nothing": Capabilities(),
    "decoding": Capabilities(limits={"S": 1, "B": 1}),
    "tiles": Capabilities(multiples={"n": 16, "T": 4}, limits={"n": 64, "T": 32}),
    "few": Capabilities(compress_ratios={2, 4}, head_dims={4, 16}, max_top_k=3),
    "static": Capabilities(static_shapes=True),
    "static tiles": Capabilities(static_shapes=True, multiples={"n": 16, "T": 16}),
    "less": Capabilities(
        lacks={
            ("attend", "empty"): "x",
            ("select", "nan"): "x",
            ("compressor", "yarn"): "x",
            ("index_scores", "large"): "x",
        }
    ),
    "invalid": Capabilities(invalid_indices=True),
}


@EACH
@pytest.mark.parametrize("declared", DECLARED)
def test_fitting_stays_within_what_is_declared_and_is_done_once(stage: str, declared: str) -> None:
    """What fits is not touched again, and what does not is counted."""
    capabilities = DECLARED[declared]
    for case in small(stage):
        fitting, lacking = case.fit(capabilities)
        assert fitting.fit(capabilities) == (fitting, [])
        if declared == "invalid" or (declared == "nothing" and "outside" not in case.regime):
            assert (fitting, lacking) == (case.formed(capabilities), [])
        for letter, size in fitting.sizes.items():
            assert size <= capabilities.limits.get(letter, size)
            assert size % capabilities.multiples.get(letter, 1) == 0
        assert (
            capabilities.compress_ratios is None or fitting.sizes.get("m", 2) in capabilities.compress_ratios
        )
        assert capabilities.head_dims is None or fitting.sizes.get("D", 4) in capabilities.head_dims
        assert not any((stage, name) in capabilities.lacks for name in fitting.regime)


def test_a_size_that_is_only_rounded_up_to_a_bucket_is_not_called_lacking() -> None:
    """The case is as good as the one that was drawn."""
    fitting, lacking = AttendCase(keys=9, picks=6).fit(Capabilities(static_shapes=True))
    assert (fitting.keys, fitting.picks, lacking) == (16, 16, [])


# SHRINKING


@EACH
def test_simpler_cases_are_legal_and_mostly_smaller(stage: str) -> None:
    """Every one can be written, read and run; the order that shrinking uses is total."""
    for case in small(stage, 10)[-10:]:
        simpler = list(simpler_cases(case))
        assert simpler
        for one in simpler:
            assert type(one) is type(case)
            assert parse_case(str(one)) == one
            assert (one.dtype, one.device) == (case.dtype, case.device)
            assert replace(one, seed=case.seed).order <= case.order
        for one in simpler[:3]:
            MAKE[stage](one)


@EACH
def test_the_simplest_case_has_nothing_simpler_but_its_seed(stage: str) -> None:
    """All sizes at their least, all names the first ones."""
    simplest = parse_case(stage)
    assert {replace(one, seed=0) for one in simpler_cases(replace(simplest, seed=9))} == {simplest}
    for one in fields(simplest):
        if "letter" in one.metadata:
            assert getattr(simplest, one.name) == one.metadata["least"]


# COVERAGE


@EACH
def test_corner_cases_reach_every_kind_that_a_run_must_reach(stage: str) -> None:
    """Without a single draw, so that no seed makes a run inconclusive."""
    candidate = as_candidate(RIGHT[stage][0], "right", stage)
    reached = set[str]()
    for case in stage_corners(stage):
        fitting, _ = case.fit(Capabilities())
        reached |= STAGES[stage].trial(candidate, fitting).kinds()
    assert set(STAGES[stage].required("", Capabilities())) <= reached


# TENSORS


@EACH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_case_always_gives_the_same_tensors(stage: str, dtype: str) -> None:
    """Bit for bit, whatever the generators of the process hold; another seed gives others."""
    others = 0
    for case in small(stage, 20, dtype):
        torch.manual_seed(case.seed)
        first, second = named_tensors(MAKE[stage](case)), named_tensors(MAKE[stage](case))
        torch.manual_seed(case.seed + 1)
        third = named_tensors(MAKE[stage](replace(case, seed=case.seed + 1)))
        assert first.keys() == second.keys() == third.keys()
        assert all(same_bits(first[name], second[name]) for name in first)
        assert all(first[name].shape == third[name].shape for name in first)
        others += any(not same_bits(first[name], third[name]) for name in first)
        for tensor in first.values():
            assert tensor.dtype in (getattr(torch, dtype), torch.int64)
            assert tensor.is_contiguous()
    assert others > 20


ATTEND = AttendCase(rows=3, queries=5, heads=2, head_dim=4, keys=9, picks=6)


def lists(kind: IndexLists, **changed: Any) -> list[list[int]]:
    """Return index lists of a kind, of many queries."""
    cases = [replace(ATTEND, indices=kind, seed=seed, **changed) for seed in range(8)]
    return [one for case in cases for row in make_attend_inputs(case)["indices"].tolist() for one in row]


def test_index_lists_are_what_their_names_say() -> None:
    """Each kind is there to show a mistake of its own."""
    valid = {kind: [[i for i in one if i >= 0] for one in lists(kind)] for kind in IndexLists}
    for kind, found in valid.items():
        if kind is not IndexLists.OUTSIDE:
            assert all(-1 <= i < ATTEND.keys for one in lists(kind) for i in one)
            assert all(len(set(one)) == len(one) for one in found), f"{kind} names a key twice"
    assert all(one == list(range(6)) for one in lists(IndexLists.PREFIX))
    assert any(one != sorted(one) for one in valid[IndexLists.SHUFFLED])
    assert all(-1 not in one for one in lists(IndexLists.SHUFFLED))
    holes = lists(IndexLists.HOLES)
    assert any(one[0] == -1 and one[-1] != -1 for one in holes)
    assert any(-1 in one and 0 in one for one in holes)
    assert all(valid[IndexLists.HOLES])
    assert all(one[:5] == [-1] * 5 and one[5] != -1 for one in lists(IndexLists.LEADING))
    empty = [not one for one in valid[IndexLists.EMPTY]]
    assert all(empty[::5])
    assert 0.4 < sum(empty) / len(empty) < 0.8
    outside = [i for one in lists(IndexLists.OUTSIDE) for i in one]
    assert min(outside) == -(2**31)
    assert max(outside) == 2**31 - 1


def test_wide_lists_begin_with_whole_tiles_of_nothing() -> None:
    """128 is the widest tile that is common."""
    assert all(one[:128] == [-1] * 128 for one in lists(IndexLists.LEADING, picks=200, keys=90))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_that_no_query_of_their_batch_row_names_are_poisoned(dtype: str) -> None:
    """All of them, and no other."""
    poisoned = 0
    for unused in (UnusedRows.NAN, UnusedRows.HUGE):
        for kind in IndexLists:
            case = replace(ATTEND, queries=2, picks=3, indices=kind, unused=unused, dtype=dtype)
            given = make_attend_inputs(case)
            for b in range(case.rows):
                used = set(given["indices"][b].flatten().tolist())
                for key in range(case.keys):
                    row = given["kv"][b, key]
                    large = row.isnan() | row.isinf() | (row.abs() == torch.finfo(row.dtype).max)
                    assert bool(large.all()) == (key not in used)
                    assert bool(large.any()) == (key not in used)
                    poisoned += key not in used
    assert poisoned > 50


def test_sinks_are_what_their_names_say() -> None:
    """None is -inf, and extremes are of all kinds."""
    sinks = {kind: make_attend_inputs(replace(ATTEND, heads=64, sinks=kind))["sinks"] for kind in CoreSinks}
    assert not sinks[CoreSinks.ZERO].any()
    assert (sinks[CoreSinks.NONE] == -torch.inf).all()
    assert len(sinks[CoreSinks.EXTREME].unique()) == 5


SELECT = SelectCase(rows=2, queries=4, entries=40, compress_ratio=2, top_k=3, start=31)


def scores(values: ScoreValues, **changed: Any) -> torch.Tensor:
    """Return scores of a kind."""
    found: torch.Tensor = make_select_inputs(replace(SELECT, values=values, **changed))["scores"].double()
    return found


def test_scores_are_what_their_names_say() -> None:
    """Each kind is there to show a mistake of its own."""
    assert scores(ScoreValues.NAN).isnan().any()
    assert not scores(ScoreValues.NAN).isnan().all()
    assert (scores(ScoreValues.MINUS_INF) == -torch.inf).any()
    assert (scores(ScoreValues.EQUAL) == scores(ScoreValues.EQUAL)[..., :1]).all()
    assert len(scores(ScoreValues.LOW_BITS).bfloat16().unique()) <= 2
    assert len(scores(ScoreValues.LOW_BITS).unique()) > 50


def test_special_scores_are_among_those_that_a_query_sees() -> None:
    """What the others are is another choice."""
    hidden = torch.arange(40) >= ((make_select_inputs(SELECT)["positions"] + 1) // 2)[..., None]
    for values in (ScoreValues.NAN, ScoreValues.MINUS_INF):
        assert scores(values)[hidden].isfinite().all()
        assert (scores(values, invisible=Invisible.NAN)[hidden]).isnan().all()


def test_what_a_query_must_not_see_is_poisoned() -> None:
    """And what it may see is not."""
    for invisible, poison in ((Invisible.NAN, torch.isnan), (Invisible.HUGE, torch.isposinf)):
        given = make_select_inputs(replace(SELECT, invisible=invisible))
        for b in range(2):
            for t in range(4):
                visible = len(SPEC.visible_entries(int(given["positions"][b, t]), 2))
                assert poison(given["scores"][b, t, visible:]).all()
                assert given["scores"][b, t, :visible].isfinite().all()


def test_positions_follow_each_other_and_differ_between_rows() -> None:
    """A candidate that takes those of row 0 for all shows."""
    positions = make_select_inputs(SELECT)["positions"]
    assert positions.tolist() == [[31, 32, 33, 34], [32, 33, 34, 35]]


def test_gates_are_as_large_as_their_names_say() -> None:
    """Large ones overflow exp in float32; far ones are all below -1e4."""
    case = CompressorCase(blocks=4, compress_ratio=4, hidden=8, head_dim=8)
    logits = {}
    for values in (TokenValues.LARGE_GATES, TokenValues.FAR_GATES):
        given = make_compressor_inputs(replace(case, values=values))
        weights = given["weights"]
        logits[values] = given["hidden"] @ weights.wgate.T + weights.ape.repeat(4, 1)
    assert logits[TokenValues.LARGE_GATES].max() > 100
    assert logits[TokenValues.FAR_GATES].max() < -15_000
