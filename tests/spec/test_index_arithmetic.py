"""Index arithmetic is small enough to try all of it: every length up to 32, every ratio and window up to 8."""
# ruff: noqa: D103

from __future__ import annotations

import itertools

import pytest
import second_oracle

from csa_spec.spec import Geometry, LayerKind
from csa_spec.spec.compressor import Half, entry_position, half_columns, pooled_tokens
from csa_spec.spec.selection import select, selection_margin, visible_entries
from csa_spec.spec.window import window_tokens

LONGEST = 32
RATIOS = range(1, 9)
WINDOWS = range(1, 9)


@pytest.mark.parametrize("m", RATIOS)
def test_both_oracles_see_the_same_entries(m: int) -> None:
    for t in range(LONGEST):
        assert visible_entries(t, m) == second_oracle.visible_entries(t, m)


@pytest.mark.parametrize("window", WINDOWS)
def test_both_oracles_see_the_same_window(window: int) -> None:
    for t in range(LONGEST):
        assert window_tokens(t, window) == second_oracle.window_tokens(t, window)


@pytest.mark.parametrize("m", RATIOS)
@pytest.mark.parametrize("overlap", [True, False])
def test_an_entry_is_visible_exactly_to_queries_that_follow_all_it_pools(m: int, overlap: bool) -> None:
    for t in range(LONGEST):
        entries = range(LONGEST)
        past = [s for s in entries if all(pooled.token <= t for pooled in pooled_tokens(s, m, overlap))]
        assert visible_entries(t, m) == past


@pytest.mark.parametrize("m", RATIOS)
@pytest.mark.parametrize("kind", [LayerKind.CSA, LayerKind.HCA])
def test_the_last_token_sees_every_entry_that_there_is_and_no_token_sees_more(
    m: int, kind: LayerKind
) -> None:
    geometry = Geometry(kind=kind, compress_ratio=m)
    for length in range(1, LONGEST + 1):
        everything = list(range(geometry.entry_count(length)))
        assert visible_entries(length - 1, m) == everything
        assert all(set(visible_entries(t, m)) <= set(everything) for t in range(length))
        assert all(p.token < length for s in everything for p in pooled_tokens(s, m, geometry.overlap))


@pytest.mark.parametrize("m", RATIOS)
def test_a_window_holds_its_own_token_and_at_most_as_many_as_its_size(m: int) -> None:
    for t in range(LONGEST):
        tokens = window_tokens(t, m)
        assert tokens[-1] == t
        assert len(tokens) == min(m, t + 1)
        assert tokens == sorted(set(tokens))
        assert tokens[0] >= 0


@pytest.mark.parametrize("m", RATIOS)
def test_sliding_layers_have_no_entries_whatever_their_ratio(m: int) -> None:
    geometry = Geometry(kind=LayerKind.SLIDING, compress_ratio=m)
    assert [geometry.entry_count(length) for length in range(LONGEST + 1)] == [0] * (LONGEST + 1)


@pytest.mark.parametrize("m", RATIOS)
@pytest.mark.parametrize("overlap", [True, False])
def test_every_token_of_a_complete_block_is_current_in_exactly_one_entry(m: int, overlap: bool) -> None:
    for entries in range(LONGEST // m + 1):
        pooled = [p for s in range(entries) for p in pooled_tokens(s, m, overlap)]
        assert [p.token for p in pooled if p.half is Half.CURRENT] == list(range(entries * m))


@pytest.mark.parametrize("m", RATIOS)
def test_with_overlap_every_token_but_those_of_the_last_block_is_previous_in_exactly_one_entry(
    m: int,
) -> None:
    for entries in range(LONGEST // m + 1):
        pooled = [p for s in range(entries) for p in pooled_tokens(s, m, True)]
        assert [p.token for p in pooled if p.half is Half.PREVIOUS] == list(range(max(0, entries - 1) * m))


@pytest.mark.parametrize("m", RATIOS)
def test_without_overlap_no_token_is_previous(m: int) -> None:
    assert all(p.half is Half.CURRENT for s in range(8) for p in pooled_tokens(s, m, False))


@pytest.mark.parametrize("m", RATIOS)
@pytest.mark.parametrize("overlap", [True, False])
def test_the_place_of_a_pooled_token_is_its_index_in_its_own_block_in_either_role(
    m: int, overlap: bool
) -> None:
    for s in range(8):
        for token, place, half in pooled_tokens(s, m, overlap):
            block = s - 1 if half is Half.PREVIOUS else s
            assert (token // m, token % m) == (block, place)


@pytest.mark.parametrize("m", RATIOS)
@pytest.mark.parametrize("overlap", [True, False])
def test_an_entry_stands_at_the_first_token_of_its_own_block(m: int, overlap: bool) -> None:
    for s in range(8):
        own = [p.token for p in pooled_tokens(s, m, overlap) if p.half is Half.CURRENT]
        assert entry_position(s, m) == own[0] == min(own)


@pytest.mark.parametrize("dim", range(1, 9))
def test_the_two_halves_share_no_column_and_leave_none_out(dim: int) -> None:
    columns = list(range(2 * dim))
    assert columns[half_columns(Half.PREVIOUS, dim, True)] == columns[:dim]
    assert columns[half_columns(Half.CURRENT, dim, True)] == columns[dim:]
    assert columns[:dim][half_columns(Half.CURRENT, dim, False)] == columns[:dim]


@pytest.mark.parametrize("top_k", range(9))
def test_an_entry_is_selected_exactly_if_fewer_than_k_come_before_it(top_k: int) -> None:
    # 0.0 and -0.0 are equal, and both come out of a ReLU times a weight.
    for length in range(7):
        for scores in itertools.product((-1.0, -0.0, 0.0, 0.5), repeat=length):
            entries = range(length)
            before = [
                sum(scores[r] > scores[s] or (scores[r] == scores[s] and r < s) for r in entries)
                for s in entries
            ]
            best_first = sorted(entries, key=before.__getitem__)
            assert select(entries, scores, top_k) == [s for s in best_first if before[s] < top_k]


@pytest.mark.parametrize("top_k", range(9))
def test_the_margin_is_what_the_last_selected_score_could_lose(top_k: int) -> None:
    for length in range(7):
        for scores in itertools.product((-1.0, 0.0, 0.5), repeat=length):
            chosen = select(range(length), scores, top_k)
            rejected = set(range(length)) - set(chosen)
            margin = selection_margin(scores, top_k)
            if chosen and rejected:
                assert margin == min(scores[s] for s in chosen) - max(scores[s] for s in rejected)
            else:
                assert margin is None


def test_a_selection_names_entries_not_places_in_the_list_of_scores() -> None:
    assert select([4, 7, 9], [0.0, 2.0, 1.0], 2) == [7, 9]
    assert select([4, 7, 9], [1.0, 1.0, 1.0], 2) == [4, 7]


def test_scores_and_entries_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="shorter"):
        select([0, 1], [1.0], 1)
