"""Schedules of calls: their text, what is refused, what the model says, and how they get smaller."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine.drawing import case_of_json, draw
from hypothesis.strategies import SearchStrategy

from csa_spec.candidates.recognise import as_candidate
from csa_spec.engine.case import CaseError
from csa_spec.engine.stage import Setting
from csa_spec.plug.capabilities import Capabilities
from csa_spec.spec import LayerKind
from csa_spec.stages import STAGES, parse_case, stage_of
from csa_spec.stages.cache.case import CacheCase, make_cache_inputs
from csa_spec.stages.cache.stage import required
from csa_spec.stages.cache.stream import Call, Op
from csa_spec.stages.cache.trial import LATE, LONG_FIRST, LONG_LATER, CacheTrial
from csa_spec.strategies.cache import DRAWS
from stages.streams import Tokens, candidate_of

STAGE = STAGES["cache"]


def cache_corners(kind: LayerKind, dtype: str = "float32") -> list[CacheCase]:
    """Return the ready-made schedules."""
    return list(DRAWS.corners(kind, Setting(dtype)))


def cache_cases(kind: LayerKind, dtype: str = "float32") -> SearchStrategy[CacheCase]:
    """Schedules that are drawn."""
    return DRAWS.cases(kind, Setting(dtype))


EACH = pytest.mark.parametrize("kind", LayerKind)


def drawn(kind: LayerKind, examples: int = 60, dtype: str = "float32") -> list[CacheCase]:
    """Return corner cases and draws."""
    return [*cache_corners(kind, dtype), *draw(cache_cases(kind, dtype), examples)]


def schedule(text: str, batch: int = 1, kind: LayerKind = LayerKind.CSA) -> CacheCase:
    """Return a schedule on the smallest layer."""
    return CacheCase(kind=kind, batch=batch, calls=tuple(map(Call.parse, text.split(","))))


# TEXT


@EACH
def test_a_case_is_one_line_of_text_and_reads_back(kind: LayerKind) -> None:
    """As a report prints it."""
    for case in drawn(kind, dtype="float16"):
        line = str(case)
        assert "\n" not in line
        assert line.split()[:2] == ["cache", str(kind)]
        assert parse_case(line) == case
        assert str(parse_case(line)) == line
        assert stage_of(case) is STAGE


@EACH
def test_json_holds_all_of_a_case_and_hashes_tell_cases_apart(kind: LayerKind) -> None:
    """Plain data, from which the case can be made again."""
    cases = set(drawn(kind))
    for case in cases:
        data = json.loads(json.dumps(case.to_json()))
        assert case_of_json(data) == case
        assert data["stage"] == "cache"
    assert len({case.id for case in cases}) == len(cases)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cache csa calls=0", "call 1 (0) extends by no token"),
        ("cache csa calls=reset", "a schedule that never extends has no answer to judge"),
        ("cache csa calls=", "'' is no call; write e.g. 3, rollback:1, reorder:1.0, "),
        ("cache csa calls=1,x", "'x' is no call; write e.g. 3, rollback:1, reorder:1.0, "),
        ("cache csa calls=1,-1", "'-1' is no call; "),
        ("cache csa calls=1,extend:1", ""),
        ("cache csa calls=1,rollback", "'rollback' must have 1 numbers behind a colon"),
        ("cache csa calls=1,reset:1", "'reset:1' must have no numbers behind a colon"),
        ("cache csa calls=1,reorder,1", "'reorder' must have rows numbers behind a colon"),
        ("cache csa calls=1,rollback:2", "call 2 (rollback:2) rolls back 2 tokens; a row has 1"),
        (
            "cache csa B=2 calls=2,clear:0,1,rollback:2,1",
            "call 4 (rollback:2) rolls back 2 tokens; a row has 1",
        ),
        ("cache csa calls=1,restore,1", "call 2 (restore) restores what was never saved"),
        ("cache csa B=2 calls=1,reorder:0,1", "call 2 (reorder:0) must name 2 rows"),
        ("cache csa B=2 calls=1,reorder:0.2,1", "call 2 (reorder:0.2) names row 2, but there are 2 rows"),
        ("cache csa B=2 calls=1,select:0,clear:1,1", "call 3 (clear:1) names row 1, but there are 1 rows"),
        (
            "cache csa B=2 calls=extend_rows:1,1",
            "call 1 (extend_rows:1) must have a number for each of 2 rows",
        ),
        ("cache csa B=2 calls=extend_rows:0.0,1", "call 1 (extend_rows:0.0) extends by no token"),
        (
            "cache csa B=2 calls=2,rollback_rows:1.3,1",
            "call 2 (rollback_rows:1.3) rolls back 3 tokens; a row has 2",
        ),
        ("cache csa B=2 calls=2,rollback_rows:0.0,1", "call 2 (rollback_rows:0.0) rolls back no token"),
        ("cache csa calls=1,rollback_rows", "'rollback_rows' must have the rows' numbers behind a colon"),
        ("cache csa calls=1,original,1", "call 2 (original) goes on with the original of a fork, but "),
        ("cache csa calls=1,repeat:0,1", "call 2 (repeat:0) repeats rows no time"),
        ("cache csa B=0 calls=1", "B (rows) must be an integer of at least 1, not 0"),
        ("cache csa B=x calls=1", "'B=x' is not a whole number"),
        ("cache csa calls=1 calls=2", "'calls=2' is the second calls"),
        ("cache csa calls=1 Q=2", "'Q=2' is not part of a case of cache; choose from "),
    ],
)
def test_what_is_no_schedule_is_refused_in_one_sentence(text: str, says: str) -> None:
    """It names the call and what is wrong with it."""
    if not says:
        assert parse_case(text) == parse_case("cache csa calls=1,1")  # spelled out
        return
    with pytest.raises(CaseError) as refusal:
        parse_case(text)
    assert str(refusal.value).startswith(says)
    assert "\n" not in str(refusal.value)


# MODEL


def naive(case: CacheCase) -> list[tuple[int, list[list[tuple[int, int, int]]]]]:
    """Run a schedule on lists that are changed in place; return what each call that answers must see."""
    rows: list[list[tuple[int, int, int]]] = [[] for _ in range(case.batch)]
    others: list[list[tuple[int, int, int]]] = [[] for _ in range(case.batch)]
    seen, saved = [], json.dumps(rows)
    original = rows
    for number, call in enumerate(case.calls):
        match str(call).split(":"):
            case ["fork"]:
                original = [list(row) for row in rows]
                seen.append((number, both_longer(original, number)))
            case ["original"]:
                seen.append((number, both_longer(original, number)))
            case ["other"]:
                seen.append((number, both_longer(others, number)))
            case ["extend_rows", counts]:
                for b, n in enumerate(counts.split(".")):
                    rows[b] += [(number, b, i) for i in range(int(n))]
                seen.append((number, [list(row) for row in rows]))
            case ["rollback_rows", counts]:
                for row, n in zip(rows, counts.split("."), strict=True):
                    del row[len(row) - int(n) :]
            case ["rollback", n]:
                for row in rows:
                    for _ in range(int(n)):
                        row.pop()
            case ["reset"]:
                for row in rows:
                    row.clear()
            case ["clear", which]:
                for b in which.split("."):
                    rows[int(b)].clear()
            case ["reorder" | "select", which]:
                rows = [list(rows[int(b)]) for b in which.split(".")]
            case ["repeat", times]:
                rows = [list(rows[i // int(times)]) for i in range(len(rows) * int(times))]
            case ["save"]:
                saved = json.dumps(rows)
            case ["restore"]:
                rows = [[(c, b, i) for c, b, i in row] for row in json.loads(saved)]
            case [n]:
                for i in range(int(n)):
                    for b, row in enumerate(rows):
                        row.append((number, b, i))
                seen.append((number, [list(row) for row in rows]))
    return seen


def both_longer(rows: list[list[tuple[int, int, int]]], call: int) -> list[list[tuple[int, int, int]]]:
    """Give each row the two tokens of a turn, in place; return a copy."""
    for b, row in enumerate(rows):
        row += [(call, b, 0), (call, b, 1)]
    return [list(row) for row in rows]


@EACH
def test_the_model_is_what_a_list_of_tokens_per_row_would_be(kind: LayerKind) -> None:
    """After every call that answers."""
    for case in drawn(kind, 150):
        case = replace(case, turn=2)
        assert [(step.call, [list(row) for row in step.rows]) for step in case.steps] == naive(case)


@EACH
def test_tokens_have_the_shapes_that_the_model_says(kind: LayerKind) -> None:
    """One tensor for each call that answers, in order, the same bits for the same case."""
    for case in drawn(kind, 40):
        inputs = make_cache_inputs(case)
        shapes = {name: tuple(x.shape) for name, x in inputs.items() if name.startswith("tokens")}
        hidden = case.hidden
        assert shapes == {
            f"tokens {step.call}": (len(step.rows), step.tokens, hidden) for step in case.steps
        }
        assert list(inputs) == ["weights", "geometry", "batch", "calls", *shapes]
        again = make_cache_inputs(parse_case(str(case)))
        assert all(torch.equal(inputs[name], again[name]) for name in shapes)


def test_rows_go_where_the_names_of_the_operations_say() -> None:
    """Written out."""
    by = {
        "1,reorder:1.1,1": [[(0, 1, 0), (2, 0, 0)], [(0, 1, 0), (2, 1, 0)]],
        "1,select:1,1": [[(0, 1, 0), (2, 0, 0)]],
        "1,repeat:2,1": [[(0, b // 2, 0), (2, b, 0)] for b in range(4)],
        "1,clear:0,1": [[(2, 0, 0)], [(0, 1, 0), (2, 1, 0)]],
        "2,rollback:1,1": [[(0, 0, 0), (2, 0, 0)], [(0, 1, 0), (2, 1, 0)]],
        "1,save,1,restore,1": [[(0, 0, 0), (4, 0, 0)], [(0, 1, 0), (4, 1, 0)]],
        "1,fork,1": [[(0, 0, 0), (2, 0, 0)], [(0, 1, 0), (2, 1, 0)]],
        "1,fork,1,original": [[(0, b, 0), (1, b, 0), (1, b, 1), (3, b, 0), (3, b, 1)] for b in range(2)],
        "1,extend_rows:0.2": [[(0, 0, 0)], [(0, 1, 0), (1, 1, 0), (1, 1, 1)]],
        "2,rollback_rows:0.2,1": [[(0, 0, 0), (0, 0, 1), (2, 0, 0)], [(2, 1, 0)]],
    }
    for text, rows in by.items():
        assert [list(row) for row in schedule(text, 2).steps[-1].rows] == rows, text


# FIT


@EACH
@pytest.mark.parametrize("op", [op for op in Op if op is not Op.EXTEND])
def test_fit_drops_operations_that_are_lacking_and_leaves_a_legal_schedule(kind: LayerKind, op: Op) -> None:
    """And says which; what is left fits."""
    capabilities = Capabilities(lacks={("cache", op): "no"})
    for case in drawn(kind):
        fitting, names = case.fit(capabilities)
        has = any(call.op is op for call in case.calls)
        assert names == [str(op)] * has
        assert not any(call.op is op for call in fitting.calls)
        assert fitting.steps
        assert fitting.fit(capabilities) == (fitting, [])
        if not has:
            assert fitting == case
        assert parse_case(str(fitting)) == fitting


def test_what_rests_on_an_operation_goes_with_it() -> None:
    """Restoring without saving is not legal."""
    case = schedule("2,save,1,restore,1")
    assert str(case.fit(Capabilities(lacks={("cache", Op.SAVE): "no"}))[0]) == "cache csa calls=2,1,1"
    assert case.fit(Capabilities(lacks={("cache", Op.RESTORE): "no"}))[0] == schedule("2,save,1,1")
    assert schedule("1,repeat:2,select:1,1").fit(Capabilities(lacks={("cache", Op.REPEAT): "no"}))[
        0
    ] == schedule("1,1")


def test_fit_takes_the_nearest_ratio() -> None:
    """Blocks of another length, the same calls; sliding layers have no ratio."""
    capabilities = Capabilities(compress_ratios={4, 128})
    fitting, names = schedule("5,1").fit(capabilities)
    assert (str(fitting), names) == ("cache csa calls=5,1 m=4", ["m=1"])
    assert schedule("5,1", kind=LayerKind.SLIDING).fit(capabilities)[1] == []


# COVERAGE


def kinds_in(cases: list[CacheCase]) -> Counter[str]:
    """Count the kinds of cases."""
    candidate = as_candidate(candidate_of(Tokens), "tokens", "cache")
    return Counter(kind for case in cases for kind in CacheTrial(candidate, case).kinds())


@EACH
def test_corner_cases_reach_every_required_kind(kind: LayerKind) -> None:
    """Whatever is drawn, also for streams that only extend."""
    corners = cache_corners(kind)
    for cases in (corners, [case for case in corners if {call.op for call in case.calls} == {Op.EXTEND}]):
        reached = kinds_in(cases)
        assert [name for name in required(kind) if not reached[name]] == []
    assert {call.op for case in corners for call in case.calls} == set(Op)
    assert len({case.calls for case in corners if case.batch == 1}) >= 25


@EACH
def test_drawn_schedules_reach_every_operation(kind: LayerKind) -> None:
    """A call that answers comes after each of them, in enough of 300 draws; a third only extends."""
    cases = draw(cache_cases(kind), 300)
    reached = kinds_in(cases)
    for op in Op:
        assert op is Op.EXTEND or reached[f"a call after {op}"] >= 5, op
    assert reached["rows of different lengths"] >= 10
    assert reached["several rows"] >= 60
    assert 60 <= sum({call.op for call in case.calls} == {Op.EXTEND} for case in cases) <= 150
    ready_made = {LONG_FIRST, LONG_LATER, LATE}
    assert [name for name in required(kind) if reached[name] < 20 and name not in ready_made] == []
    assert max(len(row) for case in cases for step in case.steps for row in step.rows) <= 30


# SHRINKING


@EACH
def test_every_simpler_case_is_legal_and_smaller_or_as_small(kind: LayerKind) -> None:
    """Whatever a pass yields reads back from its text; most are smaller."""
    smaller = yielded = 0
    for case in [case for case in drawn(kind, 10) if case.total < 60][
        ::4
    ]:  # of long ones there are too many
        for pass_ in STAGE.passes:
            for simpler in pass_(case):
                assert simpler.steps
                assert simpler.kind is kind
                assert parse_case(str(simpler)) == simpler
                yielded += 1
                smaller += simpler.order < case.order
    assert smaller > 0.8 * yielded


def test_size_orders_schedules_as_a_person_would() -> None:
    """Fewer calls, then fewer tokens, then fewer rows, then plainer operations."""
    ordered = ["1", "2", "1,1", "2,1", "1,reset,1", "1,reset,2", "1,1,1,1"]
    sizes = [schedule(text).order for text in ordered]
    assert sizes == sorted(sizes)
    assert schedule("1,1").order < schedule("1,1", batch=2).order
    assert schedule("2,rollback:1,1").order < schedule("2,save,1").order


def test_a_rollback_and_what_it_takes_back_get_shorter_together() -> None:
    """Else neither may: the tokens that stay decide whether it fails."""
    (passes, *_) = STAGE.passes
    simpler: set[Any] = {case.calls for case in passes(schedule("7,rollback:6,1"))}
    assert schedule("6,rollback:5,1").calls in simpler
    assert schedule("7,1").calls in simpler
