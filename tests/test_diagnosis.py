"""What a failure looks like: known bugs behind another name are recognised, place and dependence told."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from csa_spec.bugs import find_bug
from csa_spec.bugs.bug import Bug, following
from csa_spec.candidates.recognise import as_candidate
from csa_spec.diagnosis import diagnose
from csa_spec.diagnosis.further import further_cases
from csa_spec.diagnosis.summary import summary
from csa_spec.engine.agreement import Part, same_and_wrong
from csa_spec.engine.failures import Certainty, Diagnosis, Failure
from csa_spec.engine.running import failure_of
from csa_spec.plug.candidate import Candidate
from csa_spec.spec import SPEC
from csa_spec.stages import parse_case, stage_of
from tools.names import black_box

BUSY = 600.0
"""Seconds for naming, so that it is not cut short on a busy machine"""


def fail(candidate: Candidate, line: str, check: str = "specification") -> Failure:
    """Return how a candidate fails on a case."""
    case = parse_case(line)
    stage = stage_of(case)
    failure = failure_of(next(one for one in stage.checks if one.name == check), candidate, stage, case)
    assert failure is not None, f"{candidate.name} is right about {line}"
    return failure


def diagnosis(candidate: Candidate, line: str, check: str = "specification") -> Diagnosis:
    """Return what the failure on a case looks like."""
    found = diagnose(candidate, check, fail(candidate, line, check), BUSY)
    assert found is not None
    return found


NAMED = (
    ("every_query_attends_to_every_querys_top_k", "csa rows=2", "specification"),
    ("sees_every_entry", "csa rows=2 seed=3", "specification"),
    ("places_entries_at_the_previous_block", "csa rows=1 values=units seed=1", "specification"),
    ("ignores_the_weight_of_the_kv_norm", "csa k=0 rows=1 values=gaussian", "specification"),
    ("aligns_blocks_to_absolute_positions", "csa m=2 rows=2@1 values=units seed=1", "specification"),
    ("pads_a_short_sequence_with_zero_keys", "csa k=0 W=2 rows=1 values=units seed=1", "specification"),
    ("masks_logits_with_a_finite_number", "attend N=1 n=1 indices=empty sinks=no-sinks", "specification"),
    ("drops_key_0_where_the_list_has_a_minus_one", "attend N=2 n=2 indices=holes seed=4", "specification"),
    ("returns_nan_when_the_first_tile_is_empty", "attend n=1", "specification"),
    ("ranks_by_sign_and_exponent_only", "select T=3 k=2 start=2 values=gaussian seed=3", "specification"),
    ("pads_the_list_with_the_number_of_entries", "select T=1 m=2 k=1", "specification"),
    ("scores_whole_tiles_only", "index_scores T=5", "specification"),
    ("swaps_the_halves", "compressor overlap=csa", "specification"),
    ("rotates_at_position_zero", "compressor blocks=2 seed=1", "specification"),
    ("loses_the_unfinished_block", "cache csa calls=1,1 m=2 values=units seed=1", "specification"),
    ("fails_without_entries", "select", "specification"),
    ("rounds_differently_in_a_batch", "sliding rows=1,1 values=units seed=1", "rows"),
)


@pytest.mark.parametrize(("name", "line", "check"), NAMED, ids=[one[0] for one in NAMED])
def test_a_known_bug_behind_another_name_is_named_first(name: str, line: str, check: str) -> None:
    """Nothing but what it returns is known of a black box."""
    found = diagnosis(black_box(find_bug(name)), line, check)
    assert found.behaves_like
    assert found.behaves_like[0].name == name, [one.name for one in found.behaves_like]
    assert found.behaves_like[0].agreeing == found.behaves_like[0].tried
    # That rounding depends on the batch is all that can be seen of it.
    assert found.certainty is (Certainty.CERTAIN if check == "specification" else Certainty.RESEMBLES)
    assert found.behaves_like[0].cause
    assert found.summary


def test_further_cases_tell_bugs_apart_that_answer_alike_on_the_failing_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one entry more than a query may see two wrong bounds are the same; on longer rows they differ."""
    bounds: dict[str, Callable[[int, int], list[int]]] = {
        "sees_every_entry_of_all": lambda t, m: list(range(2**16)),
        "sees_one_entry_too_many": lambda t, m: list(range((t + 1) // m + 1)),
    }
    catalogue = tuple(
        _bug(name, following(replace(SPEC, visible_entries=rule))) for name, rule in bounds.items()
    )
    monkeypatch.setattr("csa_spec.bugs.bugs", lambda: catalogue)
    for bug in catalogue:
        (first,) = diagnosis(black_box(bug), "hca rows=2").behaves_like
        assert first.name == bug.name
        assert first.agreeing == first.tried > 1


def test_bugs_that_are_the_same_function_are_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing tells them apart, so neither is hidden."""
    layer = following(replace(SPEC, visible_entries=lambda t, m: list(range((t + 1) // m + 1))))
    monkeypatch.setattr("csa_spec.bugs.bugs", lambda: (_bug("one", layer), _bug("other", layer)))
    found = diagnosis(as_candidate(layer, "black box", "layer"), "hca rows=2")
    assert [one.name for one in found.behaves_like] == ["one", "other"]
    assert found.certainty is Certainty.SEVERAL


def _bug(name: str, function: Callable[..., Any]) -> Bug:
    case = parse_case("hca rows=2")
    return Bug(
        name=name, cause="A cause.", urls=(), stage="layer", function=function, kinds=(case.geometry.kind,)
    )


def test_a_name_that_most_cases_speak_against_is_not_given() -> None:
    """It is right about the smallest case, but not about the others."""
    first = find_bug("every_query_attends_to_every_querys_top_k")

    def both(hidden: Any, weights: Any, geometry: Any, positions: Any, documents: Any) -> Any:
        out = first.function(hidden, weights, geometry, positions, documents)
        return out * 1.5 if hidden.shape[1] > 2 else out

    assert not diagnosis(as_candidate(both, "black box", "layer"), "csa rows=2").behaves_like


def test_a_name_that_some_cases_speak_against_is_no_certain_one() -> None:
    """A second mistake where there are many heads: the first is what it resembles, with the cases counted."""
    first = find_bug("drops_the_sink")

    def both(q: Any, kv: Any, indices: Any, sinks: Any, scale: float) -> Any:
        out = first.function(q, kv, indices, sinks, scale)
        return out * 1.5 if q.shape[2] > 2 else out

    found = diagnosis(as_candidate(both, "black box", "attend"), "attend N=1 n=1")
    assert found.certainty is Certainty.RESEMBLES
    assert found.behaves_like[0].name == first.name
    assert found.behaves_like[0].agreeing < found.behaves_like[0].tried


def test_where_the_candidate_alone_is_wrong_speaks_against_a_bug() -> None:
    """The bug changes nothing about the case, so it explains nothing."""
    first = find_bug("reads_index_minus_one_as_row_0")

    def more(q: Any, kv: Any, indices: Any, sinks: Any, scale: float) -> Any:
        return first.function(q, kv, indices, sinks + 1 if bool((indices >= 0).all()) else sinks, scale)

    found = diagnosis(as_candidate(more, "black box", "attend"), "attend N=1 n=1 indices=empty")
    assert found.certainty is Certainty.RESEMBLES
    assert all(one.agreeing < one.tried for one in found.behaves_like)


def test_right_rounding_that_depends_on_the_batch_is_like_no_bug() -> None:
    """What rounds in another way has only the failure in common with the bug that does so."""

    def rounds(hidden: Any, weights: Any, geometry: Any, positions: Any, documents: Any) -> Any:
        out = following(SPEC)(hidden, weights, geometry, positions, documents)
        return out * (1 - torch.finfo(out.dtype).eps) if len(out) > 1 else out

    line = "sliding rows=1,1 values=units seed=1"
    assert not diagnosis(as_candidate(rounds, "black box", "layer"), line, "rows").behaves_like


def test_agreement_within_a_wide_budget_is_none() -> None:
    """An answer between zero and the specification's is not zero, though all three are within budgets."""
    budget, no_tie = torch.ones(1, 1), torch.zeros(1, dtype=torch.bool)
    got, zero, expected = torch.full((1, 1), 0.6), torch.zeros(1, 1), torch.full((1, 1), 1.5)
    wide = Part((got, zero), expected, budget, no_tie)
    assert not same_and_wrong([wide], torch.float32)
    assert same_and_wrong([wide._replace(answers=(zero, zero))], torch.float32)


def test_a_case_from_before_shrinking_gives_the_name_that_the_smallest_one_lost() -> None:
    """The smallest case shows another mistake."""
    first = find_bug("every_query_attends_to_every_querys_top_k")

    def both(hidden: Any, weights: Any, geometry: Any, positions: Any, documents: Any) -> Any:
        out = first.function(hidden, weights, geometry, positions, documents)
        return out * 1.0625 if hidden.shape[1] == 2 else out

    candidate, longer = as_candidate(both, "black box", "layer"), parse_case("csa rows=5 seed=1")
    failure = fail(candidate, "csa rows=2")
    alone = diagnose(candidate, "specification", failure, BUSY)
    helped = diagnose(candidate, "specification", failure, BUSY, others=[longer])
    assert alone is not None
    assert helped is not None
    assert not alone.behaves_like
    assert helped.behaves_like[0].name == first.name


def test_naming_ends_when_its_time_is_over() -> None:
    """Without any, nothing is named, and the summary is there all the same."""
    candidate = black_box(find_bug("sees_every_entry"))
    found = diagnose(candidate, "specification", fail(candidate, "csa rows=2 seed=3"), seconds=0)
    assert found is not None
    assert not found.behaves_like
    assert found.summary


CONTRADICTIONS = (
    (
        "none that is hidden|on no other",
        "must not (see|read|attend)|what it must not|too much|when token . changes",
    ),
    ("each token that it must|the set is right", "does not (read|change|depend)|too little"),
    (
        "what it makes of them is wrong|the set is right",
        "its output is that of attending|selects entry|leaves out",
    ),
    ("call 1 of 1 ", "sequence of calls|than one call"),
    ("no token that the row does not hold", "which the row does not hold"),
    ("none that is hidden|the set is right", "tokens from column|input ends at|row is run alone"),
    ("within rounding", "numbers are wrong|queries? .* wrong"),
)
"""What no report may say together"""
BROKEN_LAWS = (
    ("sees_the_next_token", "csa k=0 rows=2 values=units seed=1", "future"),
    ("adds_the_batch_mean", "sliding rows=1,1 values=units seed=1", "rows"),
    ("scales_logits_by_the_length_of_the_sequence", "sliding rows=2 values=units seed=1", "prefix"),
)
MORE = (
    ("sees_no_entry", "csa rows=1 values=units seed=1", "specification"),
    ("attends_to_every_second_entry", "csa rows=2 values=units seed=2", "specification"),
    ("misses_the_oldest_token_of_the_window", "csa rows=1 values=units seed=1", "specification"),
    ("rotates_at_position_zero", "compressor blocks=2 seed=1", "specification"),
    (
        "uses_the_sink_of_head_0_for_every_head",
        "attend H=2 N=1 n=1 sinks=drawn-sinks seed=1",
        "specification",
    ),
    ("scales_scores_to_the_unit_interval", "select S=2 T=2 k=1 seed=3", "specification"),
    ("shares_one_state_between_rows", "cache sliding B=2 W=2 values=units seed=1", "specification"),
)


@pytest.mark.parametrize(("name", "line", "check"), [*NAMED, *BROKEN_LAWS, *MORE], ids=lambda word: word)
def test_a_report_does_not_contradict_itself(name: str, line: str, check: str) -> None:
    """Title, sentence, findings and summary, of the black box and of what it would expose."""
    for candidate in (black_box(find_bug(name)), find_bug(name).candidate):
        failure = fail(candidate, line, check)
        law = check != "specification"
        said = summary(stage_of(failure.case).trial(candidate, failure.case), failure, law)
        text = " ".join((failure.title, failure.detail, *failure.findings, said))
        for one, other in CONTRADICTIONS:
            assert not (re.search(one, text) and re.search(other, text)), text


def _odd(hidden: Any, weights: Any, geometry: Any, positions: Any, documents: Any) -> Any:
    """Be wrong in a way of its own: every second query is 1.0625 times what it must be."""
    out = following(SPEC)(hidden, weights, geometry, positions, documents)
    out[:, 1::2] *= 1.0625
    return out


def test_where_no_known_bug_is_like_it_place_and_dependence_are_told() -> None:
    """The set is right, the numbers of one query are wrong."""
    found = diagnosis(as_candidate(_odd, "black box", "layer"), "csa m=2 k=1 rows=2 values=gaussian seed=1")
    assert not found.behaves_like
    assert "Query 1 of row 0 is wrong, the other is right" in found.summary
    assert "query 1 must attend to entry 0 (of 1) and to token 1 in its window" in found.summary
    assert "on none that is hidden from it: what it makes of them is wrong" in found.summary


def test_what_is_seen_and_must_not_be_is_named() -> None:
    """The map of dependence is put into words."""
    found = diagnosis(black_box(find_bug("sees_every_entry")), "csa rows=2 seed=3")
    assert "It reads what it must not read: query 0 depends on token 1 (of entry 1)" in found.summary


def test_a_wrong_selection_is_told_by_what_it_would_explain() -> None:
    """A query that attends to another entry than it must gives the specification's output for that entry."""
    lowest = following(
        replace(SPEC, select=lambda visible, scores, k: sorted(visible, key=scores.__getitem__)[:k])
    )
    failure = fail(as_candidate(lowest, "black box", "layer"), "csa m=1 k=1 rows=2 values=gaussian seed=5")
    found = diagnose(as_candidate(lowest, "black box", "layer"), "specification", failure)
    assert found is not None
    assert "its output is that of attending to entry" in found.summary
    assert "which entries it attends to is wrong" in found.summary


def test_a_stage_without_a_likeness_says_what_is_wrong_with_its_set() -> None:
    """For select it is what the rules of a selection say."""

    def none(scores: Any, positions: Any, compress_ratio: int, top_k: int) -> Any:
        picks = torch.full((*scores.shape[:2], 3), -1)
        picks[..., 1:] = 1
        return picks

    found = diagnosis(as_candidate(none, "black box", "select"), "select T=2 k=1 start=4")
    assert not found.behaves_like
    assert found.summary.startswith("It counts an entry twice: query 0")


def test_scores_that_do_not_depend_on_their_entry_see_too_little() -> None:
    """The stage's own check does not probe."""
    found = diagnosis(black_box(find_bug("scores_whole_tiles_only")), "index_scores T=5")
    assert (
        "It does not read what it must read: query 0 has 1 wrong score of 5, the first of entry 4; "
        "the score of entry 4 does not change with its key" in found.summary
    )


def test_a_stream_that_keeps_what_was_rolled_back_sees_too_much() -> None:
    """The token that must be forgotten is named."""
    line = "cache sliding B=2 calls=1,rollback:1,1 W=2 values=units seed=1"
    found = diagnosis(black_box(find_bug("rollback_is_right_for_the_first_row_only")), line)
    assert "It reads what it must not read: it depends on token 0 of row 1 in call 1" in found.summary


def test_a_candidate_that_raises_is_like_no_bug_that_answers() -> None:
    """There is no answer to compare."""

    def broken(*arguments: Any) -> Any:
        raise ZeroDivisionError("nothing")

    found = diagnosis(as_candidate(broken, "black box", "layer"), "csa rows=2")
    assert not found.behaves_like
    assert "ZeroDivisionError: nothing (at test_diagnosis.py:" in found.summary


def test_a_bug_that_cannot_be_run_is_no_match(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are found all the same."""

    def broken(*arguments: Any) -> Any:
        raise ZeroDivisionError("nothing")

    layer = following(replace(SPEC, visible_entries=lambda t, m: list(range((t + 1) // m + 1))))
    monkeypatch.setattr("csa_spec.bugs.bugs", lambda: (_bug("broken", broken), _bug("right", layer)))
    found = diagnosis(as_candidate(layer, "black box", "layer"), "hca rows=2").behaves_like
    assert [one.name for one in found] == ["right"]


def test_a_right_candidate_is_like_no_bug() -> None:
    """A failure that does not come back has no likeness."""
    wrong = fail(black_box(find_bug("sees_every_entry")), "csa rows=2 seed=3")
    found = diagnose(as_candidate(following(SPEC), "black box", "layer"), "specification", wrong)
    assert found is not None
    assert not found.behaves_like


def test_global_random_state_is_left_alone() -> None:
    """Bugs run as candidates, and cases are drawn, without anybody noticing."""
    candidate = black_box(find_bug("sees_every_entry"))
    failure = fail(candidate, "csa rows=2 seed=3")
    before = torch.get_rng_state(), random.getstate()
    diagnose(candidate, "specification", failure)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_further_cases_are_of_the_same_kind() -> None:
    """They are of the same stage, kind and dtype, and always the same."""
    case = parse_case("csa rows=2")
    found, again = (
        further_cases(case, as_candidate(following(SPEC), "right", "layer"), stage_of(case))
        for _ in range(2)
    )
    assert found == again
    assert len(found) > 20
    assert {one.geometry.kind for one in found} == {case.geometry.kind}
