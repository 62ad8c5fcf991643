"""The strategies draw legal cases only, reach everything that matters, and shrink to what a person would write."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from functools import cache

import pytest
import torch
from engine.drawing import case_of_json, draw
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from csa_spec.engine.stage import Setting
from csa_spec.spec import LayerKind, split_documents
from csa_spec.stages.layer.case import DRAWN_SCORES, Feature, LayerCase, Sinks, Values
from csa_spec.stages.layer.coverage import REQUIRED, kinds_of, required
from csa_spec.stages.layer.expected import expect
from csa_spec.stages.layer.inputs import make_inputs
from csa_spec.strategies.layer import cases, corner_cases

KINDS = st.sampled_from(LayerKind)
EXAMPLES = 600
"""Draws within which everything must be reached. The counts below are at most half of what was seen."""


@cache
def drawn_cases(kind: LayerKind) -> list[LayerCase]:
    """Draw once for all tests that count."""
    return draw(cases(kind), EXAMPLES)


@settings(max_examples=200)
@given(KINDS.flatmap(cases))
def test_every_drawn_case_survives_text_and_json(case: LayerCase) -> None:
    """A report prints the line and the JSON; both lead back to the same case."""
    line = str(case)
    assert LayerCase.parse(line) == case, line
    assert len(line.splitlines()) == 1
    through_json = case_of_json(json.loads(json.dumps(case.to_json(), allow_nan=False)))
    assert through_json == case
    assert through_json.id == case.id == LayerCase.parse(line).id


@settings(max_examples=200)
@given(KINDS.flatmap(cases))
def test_every_drawn_case_is_a_legal_batch(case: LayerCase) -> None:
    """The specification finds in the layout the documents that the rows name, with finite tensors to go with it."""
    positions, documents = (torch.tensor(rows) for rows in case.positions_and_documents())
    assert positions.shape == documents.shape == (len(case.rows), case.columns)
    found = [
        (document.row, document.length, document.start) for document in split_documents(positions, documents)
    ]
    assert found == [(n, length, row.start) for n, row in enumerate(case.rows) for length in row.lengths]
    inputs = make_inputs(case)
    assert inputs.hidden.isfinite().all()
    assert all(not tensor.isnan().any() for tensor in inputs.weights.named().values())


@pytest.mark.parametrize("kind", LayerKind)
def test_draws_reach_every_feature_regime_and_size(kind: LayerKind) -> None:
    """Rows of every form, every way to draw values, and sizes that are no powers of two."""
    seen: Counter[str] = Counter()
    for case in drawn_cases(kind):
        g = case.geometry
        seen.update(str(feature) for feature in case.features)
        seen.update((f"values {case.values}", f"scores {case.scores}", f"sinks {case.sinks}"))
        seen.update((f"{len(case.rows)} rows", f"theta {g.rope_theta}", f"eps {g.norm_eps}"))
        seen["plain"] += not case.features
        seen["equal rows"] += len(case.rows) > 1 and len(set(case.rows)) == 1
        seen["one column"] += case.columns == 1
        seen["start far away"] += any(row.start >= 1000 for row in case.rows)
        seen["start off the grid"] += any(row.start % g.compress_ratio for row in case.rows)
        seen["YaRN"] += g.yarn is not None
        seen["odd hidden"] += g.hidden % 2
        seen["odd head_dim"] += g.head_dim % 2
        seen["odd heads"] += g.heads % 2 and g.heads > 1
        seen["several groups"] += g.o_groups > 1
        seen["some channels not rotated"] += g.rope_dim < g.head_dim
    least = {
        **{str(feature): 75 for feature in Feature if feature in required(kind)},
        **{f"values {values}": 60 for values in Values if values is not Values.UNITS},
        **{f"sinks {sinks}": 50 for sinks in Sinks},
        **{f"{rows} rows": 50 for rows in (1, 2, 3)},
        "plain": 25, "equal rows": 60, "one column": 12, "start far away": 20, "YaRN": 100, "theta 100.0": 40,
        "theta 10000.0": 200, "eps 0.01": 40, "eps 1e-06": 200, "odd hidden": 75, "odd head_dim": 45, "odd heads": 20,
        "several groups": 100, "some channels not rotated": 180,
    }  # fmt: skip
    if kind is LayerKind.CSA:
        least |= {f"scores {scores}": 20 for scores in DRAWN_SCORES}
    if kind is not LayerKind.SLIDING:
        least["start off the grid"] = 25
    assert {name: seen[name] for name, count in least.items() if seen[name] < count} == {}
    assert not seen[f"values {Values.UNITS}"]  # only shrinking goes there


@pytest.mark.parametrize("kind", [LayerKind.CSA, LayerKind.HCA])
def test_draws_reach_every_ratio_and_number_of_blocks(kind: LayerKind) -> None:
    """Ratios 1 to 8, 16 and 128; no entry, one, several; whole blocks and tails."""
    ratios: Counter[int] = Counter()
    seen: Counter[str] = Counter()
    for case in drawn_cases(kind):
        m = case.geometry.compress_ratio
        lengths = [length for row in case.rows for length in row.lengths]
        ratios[m] += 1
        seen.update({f"{min(length // m, 2)} entries" for length in lengths})
        seen["several entries of 16 tokens or more"] += m >= 16 and max(lengths) >= 2 * m
        seen["tail"] += any(length > m and length % m for length in lengths)
        seen["whole blocks"] += any(length % m == 0 for length in lengths)
        seen["one short of a block"] += m > 1 and any((length + 1) % m == 0 for length in lengths)
        seen["one past a block"] += m > 1 and any(length > m and length % m == 1 for length in lengths)
    assert set(ratios) == {1, 2, 3, 4, 5, 6, 7, 8, 16, 128}
    assert min(ratios.values()) >= 5, ratios
    assert seen["several entries of 16 tokens or more"] >= 10
    few = {name: count for name, count in seen.items() if count < 50 and not name.startswith("several")}
    assert not few


def test_draws_put_top_k_on_both_sides_of_what_there_is() -> None:
    """Zero, fewer, all and more than the T entries; truncating some queries while others still see fewer than k."""
    seen: Counter[str] = Counter()
    for case in drawn_cases(LayerKind.CSA):
        k, m = case.geometry.top_k, case.geometry.compress_ratio
        entries = max(length for row in case.rows for length in row.lengths) // m
        seen["0, with something to select"] += k == 0 < entries
        seen["truncates"] += 0 < k < entries
        seen["truncates, though not at first"] += 1 < k < entries
        seen["all but one"] += 0 < k == entries - 1
        seen["exactly all"] += k == entries > 0
        seen["more than there are"] += k > entries > 0
        seen["more than there are, of none"] += k > entries == 0
        seen["two or three out of four"] += 1 < k < entries == 4
    assert min(seen.values()) >= 20, seen
    assert seen["truncates"] >= 120


@pytest.mark.parametrize("kind", LayerKind)
def test_draws_put_the_window_on_both_sides_of_everything(kind: LayerKind) -> None:
    """Shorter than, equal to and longer than the longest document and the compression ratio."""
    seen: Counter[str] = Counter()
    for case in drawn_cases(kind):
        window, longest = case.geometry.window, max(length for row in case.rows for length in row.lengths)
        pairs = [("longest document", longest)]
        if kind is not LayerKind.SLIDING:
            pairs.append(("ratio", case.geometry.compress_ratio))
        for name, other in pairs:
            seen[f"less than the {name}"] += window < other
            seen[f"the {name}"] += window == other
            seen[f"one more than the {name}"] += window == other + 1
            seen[f"more than the {name}"] += window > other
        seen["1, of several tokens"] += window == 1 < longest
    assert min(seen.values()) >= 25, seen


def test_candidates_narrow_the_draws() -> None:
    """Only ratios, modes, dtype and device that were asked for are drawn, and all of them are."""
    setting = Setting("bfloat16", "cuda", modes=("", "chunks"), ratios=frozenset({4, 128}))
    drawn = draw(cases(LayerKind.HCA, setting), 60)
    assert {case.geometry.compress_ratio for case in drawn} == {4, 128}
    assert {case.mode for case in drawn} == {"", "chunks"}
    assert {(case.dtype, case.device) for case in drawn} == {("bfloat16", "cuda")}


def smallest(condition: Callable[[LayerCase], bool], kind: LayerKind = LayerKind.CSA) -> LayerCase:
    """Return what Hypothesis shrinks to."""
    phases = [
        Phase.generate,
        Phase.shrink,
    ]  # to explain what it found costs Hypothesis several times as long
    search = settings(
        max_examples=1000, phases=phases, database=None, deadline=None, report_multiple_bugs=False
    )
    return find(cases(kind), condition, settings=search, random=random.Random(0))


def truncates(case: LayerCase) -> bool:
    """Whether a query has to choose."""
    entries = max(length for row in case.rows for length in row.lengths) // case.geometry.compress_ratio
    return 0 < case.geometry.top_k < entries


def test_what_does_not_matter_shrinks_away() -> None:
    """One token in the smallest layer, small integers, no sink, seed 0."""
    assert str(smallest(lambda case: case.values is Values.GAUSSIAN)) == "csa rows=1 values=gaussian"


def test_a_truncated_top_k_shrinks_to_two_tokens() -> None:
    """One row of two entries, of one token each."""
    assert str(smallest(truncates)) == "csa rows=2"


def test_a_larger_truncated_top_k_shrinks_to_what_a_person_would_write() -> None:
    """The issue that this suite grew from has three tokens and k = 2."""
    found = smallest(lambda case: truncates(case) and case.columns >= 3 and case.geometry.top_k >= 2)
    assert found.columns <= 4
    assert len(found.rows) <= 2
    assert found.geometry.top_k == 2
    assert str(found).startswith("csa k=2 rows="), "everything else is at its smallest"


def test_packing_shrinks_to_two_documents_of_one_token() -> None:
    """Rows, too, keep only what shows the feature."""
    assert str(smallest(lambda case: Feature.PACKING in case.features)) == "csa rows=1+1"


NOT_OF_RATIOS = {
    None: set[str](),
    frozenset({2}): {"ratio of 1"},
    frozenset({1}): {
        "shorter than one block",
        "partial tail",
        "window shorter than the ratio",
        "packed documents that start inside a block",
    },
}
"""The required kinds of case that there are not with these ratios alone"""


@pytest.mark.parametrize("ratios", NOT_OF_RATIOS, ids=str)
@pytest.mark.parametrize("kind", LayerKind)
def test_corner_cases_alone_reach_every_required_kind(
    kind: LayerKind, ratios: frozenset[int] | None
) -> None:
    """So no run depends on luck, whatever ratios a candidate supports."""
    reached: set[str] = set()
    for case in corner_cases(kind, Setting(ratios=ratios)):
        reached |= kinds_of(case, expect(case, make_inputs(case)))
    without = NOT_OF_RATIOS[ratios] if kind is not LayerKind.SLIDING else set()
    assert {name for name in required(kind) if name not in reached} == without
    if ratios is None:
        assert set(REQUIRED[kind]) <= reached


@pytest.mark.parametrize("kind", LayerKind)
def test_corner_cases_are_distinct_and_take_the_modes_in_turn(kind: LayerKind) -> None:
    """Each has a seed of its own, and every mode of a candidate gets its share."""
    corners = corner_cases(kind, Setting("bfloat16", modes=("", "chunks"), ratios=frozenset({4})))
    assert len({case.id for case in corners}) == len(corners)
    assert len({case.seed for case in corners}) == len(corners)
    assert Counter(case.mode for case in corners)["chunks"] == len(corners) // 2
    assert {case.dtype for case in corners} == {"bfloat16"}
    assert all(LayerCase.parse(str(case)) == case for case in corners)
    if kind is not LayerKind.SLIDING:
        assert {case.geometry.compress_ratio for case in corners} == {4}
