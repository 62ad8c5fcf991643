"""Which selections are valid, held against brute force: some scores within their tolerances must choose them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csa_spec.engine.choices import Choice, valid_choice
from csa_spec.spec.selection import select

SCORES = st.lists(st.integers(-3, 3), max_size=6)
"""Few values, so that ties are common; integers, so that no comparison is a matter of rounding."""
TOP_KS = st.integers(0, 7)


def brute_force(scores: list[float], tolerances: list[float], top_k: int) -> set[frozenset[int]]:
    """Return every selection that some scores within the tolerances choose, ties broken either way.

    A selection is chosen by some such scores iff it is chosen where its own entries score as high as they may, and
    all others as low.
    """
    entries = range(len(scores))
    valid = set()
    for chosen in itertools.combinations(entries, min(top_k, len(scores))):
        worst = min((scores[i] + tolerances[i] for i in chosen), default=float("inf"))
        best = max((scores[i] - tolerances[i] for i in entries if i not in chosen), default=float("-inf"))
        if worst >= best:
            valid.add(frozenset(chosen))
    return valid


def selections(choice: Choice) -> set[frozenset[int]]:
    """Return what a choice says is valid."""
    return {frozenset(selection) for selection in choice.selections()}


@settings(max_examples=300)
@given(SCORES, TOP_KS)
def test_without_tolerance_exactly_the_ties_are_open(scores: list[float], top_k: int) -> None:
    """Ties across the k-th place and nothing else: every way to break them is valid."""
    exact = [0.0] * len(scores)
    choice = valid_choice(list(range(len(scores))), scores, exact, top_k)
    valid = brute_force(scores, exact, top_k)
    assert selections(choice) == valid
    assert choice.count == len(valid)
    assert choice.ambiguous == (len(valid) > 1)


@settings(max_examples=500)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), max_size=6), TOP_KS)
def test_within_tolerances_no_valid_selection_is_lost(pairs: list[tuple[int, int]], top_k: int) -> None:
    """And an entry is certain, or contested, exactly if it is in all, or in some, of the valid selections."""
    scores, tolerances = [float(score) for score, _ in pairs], [float(tolerance) for _, tolerance in pairs]
    choice = valid_choice(list(range(len(pairs))), scores, tolerances, top_k)
    valid = brute_force(scores, tolerances, top_k)
    assert valid <= selections(choice)
    assert choice.certain == frozenset.intersection(*valid)
    assert choice.certain | choice.contested == frozenset.union(*valid)
    assert choice.ambiguous == (len(valid) > 1)


@settings(max_examples=200)
@given(SCORES, st.integers(0, 3), TOP_KS)
def test_what_the_specification_selects_is_always_valid(
    scores: list[float], tolerance: int, top_k: int
) -> None:
    """In whatever order, but without duplicates, strangers or gaps."""
    visible = [10 + i for i in range(len(scores))]
    choice = valid_choice(visible, scores, [float(tolerance)] * len(scores), top_k)
    chosen = select(visible, scores, top_k)
    assert choice.allows(chosen)
    assert choice.allows(chosen[::-1])
    assert frozenset(chosen) in selections(choice)
    if chosen:
        assert not choice.allows(chosen[:-1])
        assert not choice.allows([*chosen, chosen[0]])
        assert not choice.allows([*chosen[:-1], 99])


@settings(max_examples=200)
@given(SCORES, st.integers(0, 2), TOP_KS)
def test_allowed_is_what_is_listed(scores: list[float], tolerance: int, top_k: int) -> None:
    """The two ways to ask whether a selection is valid agree."""
    choice = valid_choice(list(range(len(scores))), scores, [float(tolerance)] * len(scores), top_k)
    listed = selections(choice)
    for length in range(len(scores) + 1):
        for chosen in itertools.combinations(range(len(scores)), length):
            assert choice.allows(list(chosen)) == (frozenset(chosen) in listed)


@pytest.mark.parametrize(
    ("scores", "tolerance", "top_k", "certain", "contested"),
    [
        ([], 0.0, 2, set(), set()),
        ([5.0, 1.0], 0.0, 0, set(), set()),
        ([5.0, 1.0], 0.0, 2, {0, 1}, set()),
        ([5.0, 1.0], 9.0, 7, {0, 1}, set()),
        ([5.0, 1.0, 3.0], 0.5, 1, {0}, set()),
        ([5.0, 1.0, 1.0], 0.0, 2, {0}, {1, 2}),
        ([5.0, 4.0, 3.0], 0.6, 1, set(), {0, 1}),
        ([5.0, 4.0, 3.0], 0.6, 2, {0}, {1, 2}),
        ([5.0, 4.0, 3.0], 1.1, 2, set(), {0, 1, 2}),
    ],
)
def test_choices_as_a_person_would_work_them_out(
    scores: list[float], tolerance: float, top_k: int, certain: set[int], contested: set[int]
) -> None:
    """Entries that tie below the k-th place, or only above it, are not contested."""
    choice = valid_choice(list(range(len(scores))), scores, [tolerance] * len(scores), top_k)
    assert choice.certain == certain
    assert choice.contested == contested
