"""Every kind of mistake gets its own kind of failure, at the right place, with a line that shows it again."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace

import pytest

import csa_spec
from csa_spec.bugs import find_bug
from csa_spec.bugs.bug import following
from csa_spec.candidates.recognise import as_candidate
from csa_spec.diagnosis.summary import summary
from csa_spec.engine.failures import (
    CandidateRaised,
    Failure,
    InputsChanged,
    NoGradient,
    NotFinite,
    SeesTooLittle,
    SeesTooMuch,
    WeightIgnored,
    WrongNumbers,
    WrongSelection,
)
from csa_spec.engine.running import failure_of
from csa_spec.report.maps import maps
from csa_spec.report.text import describe
from csa_spec.spec import SPEC, LayerKind, split_documents
from csa_spec.stages import parse_case
from csa_spec.stages.layer.case import LayerCase
from csa_spec.stages.layer.inputs import make_inputs
from csa_spec.stages.layer.stage import LAYER
from engine.candidates import VECTORISED, WITH_STAGES
from engine.wrong import BUGS, LAWS, Bug, caught, held, named

TABLE = [*BUGS.items(), *LAWS.items()]
WITHOUT_A_PLACE = (
    "CandidateRaised", "NotATensor", "WrongShape", "WrongDtype", "InputsChanged", "DrawsRandom",
    "GrowsWithCalls", "OverwritesOutput", "ReturnsPrevious", "NotBatchInvariant",
)  # fmt: skip
EACH = pytest.mark.parametrize(("name", "bug"), TABLE, ids=[f"{name}-{bug.check}" for name, bug in TABLE])


def found_failure(name: str, bug: Bug) -> Failure:
    """Return the failure of the kind that the table names."""
    failures = caught(name, bug.check).failures
    of_kind = [failure for failure in failures if type(failure) is bug.failure]
    assert of_kind, f"found only {[failure.kind for failure in failures]}"
    return of_kind[0]


@EACH
def test_a_wrong_candidate_gets_the_failure_that_names_its_mistake(
    name: str, bug: Bug, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its class, its facts and a sentence made of them, its place, and a line that shows it again."""
    # Which known bug it behaves like, and how long it takes to say so, is tested in test_diagnosis.py.
    monkeypatch.setattr("csa_spec.checking.diagnose", lambda *_: None)
    failure = found_failure(name, bug)
    assert bug.facts.items() <= failure.facts.items()
    assert failure.detail == bug.failure.says.format_map(
        {"item": failure.item, **failure.facts, **failure.words()}
    )
    assert str(failure) == f"{failure.title}: {failure.detail}"
    assert failure.case.geometry.kind is bug.kind
    it_says_where_it_is(failure, bug)
    its_line_shows_it_again(failure, name, bug)


def it_says_where_it_is(failure: Failure, bug: Bug) -> None:
    """A query of the batch, and what it should have said beside what it says; nothing where no output is wrong."""
    place, case = failure.place, failure.case
    if place is None:
        assert bug.failure.__name__ in WITHOUT_A_PLACE
        return
    inputs = make_inputs(case)
    begins = [d.begin for d in split_documents(inputs.positions, inputs.documents) if d.row == place.row]
    assert place.column - place.t in begins
    assert place.column < case.columns
    assert failure.expected is not None
    assert failure.got is not None
    assert len(failure.expected) == len(failure.got) == case.geometry.hidden
    assert all(map(math.isfinite, failure.expected))
    if failure.over_budget is not None:
        assert failure.over_budget > 1
        assert failure.got != failure.expected


def its_line_shows_it_again(failure: Failure, name: str, bug: Bug) -> None:
    """Copied as it is into a Python prompt."""
    line = describe(failure, named(name).name, bug.check).splitlines()[-1].strip()
    assert line.startswith(f'check_case("engine.wrong:{name}", "{bug.kind} ')
    with pytest.raises(bug.failure) as again:
        exec(line, {"check_case": csa_spec.check_case})
    assert again.value.detail == failure.detail
    assert again.value.case == failure.case
    assert failure.title[1:] in "".join(again.value.__notes__)


@pytest.mark.parametrize("kind", LayerKind)
def test_a_right_candidate_passes_what_wrong_ones_fail(kind: LayerKind) -> None:
    """The same checks on the same draws; it declares a size, so that there is one to go beyond."""
    declared = replace(WITH_STAGES.capabilities, limits={"W": 8})
    right = replace(WITH_STAGES, capabilities=declared)
    for check in LAYER.checks:
        result = held(right, check.name, kind, 3 if check.costly else 8)
        assert result.failures == []
        assert result.cases > 0


def test_an_independent_layer_passes_the_whole_suite() -> None:
    """Corner cases included; what it declines is counted, not failed, and what it does not declare is not run."""
    report = csa_spec.check(VECTORISED, profile="smoke")
    assert str(report.verdict) == "conformant"
    assert all(
        result.not_applicable["packed documents"]
        for result in report.results
        if result.check == "specification"
    )
    assert {result.check for result in report.results} == {one.name for one in LAYER.checks} - {
        "gradients",
        "limits",
    }


def test_every_law_has_a_candidate_that_breaks_it() -> None:
    """A law that nothing breaks may be asleep. Gradients and declared limits have tests of their own."""
    assert {bug.check for bug in LAWS.values()} == {one.name for one in LAYER.checks if one.law} - {
        "gradients",
        "limits",
    }


def test_a_layer_without_a_path_for_gradients_is_told_to_which_input() -> None:
    """Where it declares them; where it does not, the check has nothing to do."""
    failure = check_text("detaches_hidden", "sliding W=2 rows=2", "gradients")
    assert isinstance(failure, NoGradient)
    assert failure.kind == "NoGradient[hidden]"
    assert failure.detail == "autograd finds no path from the output to hidden"
    with pytest.raises(csa_spec.UsageError, match="does not apply to this case"):
        csa_spec.check_case(named("drops_the_sink"), "sliding W=2 rows=2", "gradients")


def check_text(name: str, text: str, check: str = "specification") -> Failure:
    """Return how a wrong candidate fails on one case."""
    with pytest.raises(Failure) as raised:
        csa_spec.check_case(named(name), text, check)
    assert isinstance(raised.value, Failure)
    return raised.value


def test_a_leak_is_located_at_the_first_query_that_sees_too_much() -> None:
    """Query 0 of the block {0, 1} sees token 1: the issue that this suite grew from, in two tokens."""
    failure = check_text("leaks_the_future", "csa m=2 rows=4")
    assert isinstance(failure, SeesTooMuch)
    assert str(failure.place) == "row 0, query 0"
    assert failure.facts == {"what": "token", "number": 1, "why": "later"}
    assert "query 0 changes when token 1 changes; token 1 comes after it" in failure.detail
    assert failure.dependence is not None
    assert failure.dependence.too_much == [(0, 1)]


def test_places_in_packed_rows_count_from_the_document_and_from_the_row() -> None:
    """The second document's first query is its query 0, whatever column it stands in."""
    line = "sliding W=3 E=4 D=4 q_lora=2 o_lora=2 rows=1,1<2+4 values=gaussian seed=1"
    failure = check_text("misses_the_oldest_token", line)
    assert failure.place is not None
    assert (failure.place.row, failure.place.column, failure.place.t) == (1, 5, 2)


OUTSIDE = (
    (
        "sees_padding_in_its_window",
        "csa m=2 W=3 rows=2<3 values=gaussian",
        "query 0 (column 2) changes when the padding in column 0 changes; padding belongs to no document; "
        "it is one of the 3 columns of the row that end with the query",
    ),
    (
        "pools_padding_into_entries",
        "hca m=4 rows=5<6,13 values=gaussian",
        "query 2 of row 0 (column 7) changes when the padding in column 4 changes; padding belongs to no document; "
        "it is in entry 1 if blocks are counted from column 0",
    ),
    (
        "pools_padding_into_index_keys",
        "csa m=2 HI=2 rows=1<6 values=gaussian",
        "query 3 (column 4) changes when the padding in column 0 changes; padding belongs to no document; "
        "it is in entry 0 if blocks are counted from column 0",
    ),
    (
        "sees_entries_made_of_padding",
        "csa m=2 k=2 rows=2<3 values=gaussian",
        "query 0 (column 2) changes when the padding in column 0 changes; padding belongs to no document; "
        "it is in entry 0 if blocks are counted from column 0",
    ),
    (
        "sees_entries_by_the_position_of_their_last_token",
        "hca m=2 rows=3,6 values=gaussian",
        "query 0 of row 0 changes when the padding in column 3 changes; padding belongs to no document; "
        "it is in entry 1 if blocks are counted from column 0",
    ),
    (
        "treats_a_packed_row_as_one_document",
        "csa m=2 W=3 rows=3+4 values=gaussian",
        "query 0 of document 1 (column 3) changes when token 0 of document 0 changes; that is another document; "
        "it is in entry 0 if blocks are counted from column 0",
    ),
    (
        "gathers_entries_of_the_first_row",
        "csa m=2 W=3 rows=4,4 values=gaussian",
        "query 1 of row 1 changes when token 0 of row 0 changes; that is another row",
    ),
)


@pytest.mark.parametrize(("name", "line", "says"), OUTSIDE, ids=[one[0] for one in OUTSIDE])
def test_what_is_read_outside_of_a_document_is_named(name: str, line: str, says: str) -> None:
    """Padding, other documents and other rows: which column, and by which entry where that is clear."""
    case = parse_case(line)
    failure = failure_of(LAYER.checks[0], find_bug(name).candidate, LAYER, case)
    assert isinstance(failure, SeesTooMuch)
    assert failure.detail == f"the output of {says}"
    trial = LAYER.trial(find_bug(name).candidate, case)
    assert "It reads what it must not read: query" in summary(trial, failure)
    assert "depends on the tokens that it must and on no other" not in summary(trial, failure)


def test_a_right_layer_depends_on_nothing_outside_of_a_document() -> None:
    """In a batch with padding on both sides and packed documents; whatever it is compared with."""
    trial = LAYER.trial(
        as_candidate(following(SPEC), "right"), parse_case("csa m=2 W=3 rows=2<3+4,1<3 values=gaussian")
    )
    for document in trial.expected.documents:
        dependence = trial.dependence(document)
        assert dependence is not None
        assert not dependence.outside
        assert not dependence.too_much
        assert not dependence.too_little


def test_a_summary_says_in_which_document_it_counts() -> None:
    """And where that document begins."""
    case = parse_case("csa m=2 W=3 rows=3+4 values=gaussian")
    candidate = find_bug("treats_a_packed_row_as_one_document").candidate
    failure = failure_of(LAYER.checks[0], candidate, LAYER, case)
    assert failure is not None
    says = summary(LAYER.trial(candidate, case), failure)
    assert "of document 1 of row 0 (its first token is in column 3) are wrong" in says
    assert (
        "query 0 depends on tokens 0 to 2 of document 0, query 1 depends on tokens 0 to 2 of document 0"
        in says
    )


def test_the_map_of_a_packed_row_says_what_its_columns_hold() -> None:
    """Documents, their tokens and their blocks; a row of one document needs only numbers."""
    failure = check_text("misses_the_oldest_token", "hca m=2 W=2 rows=1<1+3 values=gaussian")
    (sight, _) = maps(failure)
    assert failure.place is not None
    assert failure.place.document == 1
    assert sight[1:6] == [
        "  column                       0  1  2  3  4",
        "  document                     -  0  1  1  1",
        "  t                            -  0  0  1  2",
        "  block                        -  - e0 e0  -  |  e0   entries of document 1",
        "  document 1, t=0 (column 2)   .  .  #  .  .  |   .",
    ]


def test_the_map_of_queries_that_select_nothing_says_so() -> None:
    """With k = 0 there is nothing to list."""
    (sight, _) = maps(check_text("misses_the_oldest_token", "csa k=0 W=2 rows=3 values=gaussian"))
    assert sight[-1].endswith("selects no entry")


@pytest.mark.parametrize("name", ["sees_no_entry", "misses_the_oldest_token"])
def test_a_query_that_misses_something_is_told_what(name: str) -> None:
    """The token, and the role in which it should have been seen."""
    failure = check_text(name, "hca m=3 W=2 E=4 D=4 q_lora=2 o_lora=2 rows=7 values=gaussian")
    assert isinstance(failure, SeesTooLittle)
    token = failure.facts["number"]
    entry, window = f"token {token} is part of entry 0, which it may see", f"token {token} is in its window"
    assert (entry if name == "sees_no_entry" else window) in failure.detail
    assert failure.facts["why"] == ("entry" if name == "sees_no_entry" else "window")
    assert "does not change when token" in failure.detail


def test_attending_to_everything_visible_is_wrong_numbers_unless_the_candidate_shows_more() -> None:
    """From outside nothing forbidden is seen: scores of all visible entries decide. Exposed stages tell."""
    line = "csa m=2 k=1 W=2 rows=6 seed=1"
    assert isinstance(check_text("selects_everything", line), WrongNumbers)
    failure = check_text("selects_everything_and_shows_it", line)
    assert isinstance(failure, SeesTooMuch)
    assert "must not attend to it at all" in failure.detail
    assert "selects entries 0 and 1 where the scores say entry 1" in failure.findings[0]


CROWDED = "csa m=2 k=1 W=2 rows=6 seed=1"
"""Query 3 sees two entries and may attend to one of them."""


def test_a_wrong_selection_beside_a_right_output_is_wrong() -> None:
    """Whoever builds on the selection that is shown builds on another one than the output was made with."""
    failure = check_text("shows_the_oldest", CROWDED)
    assert isinstance(failure, WrongSelection)
    finding = "selection: query 3 selects entry 0 where the scores say entry 1"
    assert failure.facts["finding"].startswith(finding)
    assert finding in failure.detail
    assert str(failure.place) == "row 0, query 3"
    csa_spec.check_case(
        named("shows_the_oldest"), CROWDED.replace("k=1", "k=3")
    )  # all that is visible is right again


@pytest.mark.parametrize(
    ("name", "finding"),
    [
        ("selects_the_oldest_and_shows_it", "attention: right for the selections that the candidate made"),
        (
            "selects_the_oldest_without_a_sink",
            "attention: wrong even for the selections that the candidate made; query",
        ),
    ],
)
def test_the_attention_is_judged_by_itself_where_a_wrong_selection_is_shown(name: str, finding: str) -> None:
    """So that the selection is repaired where the selection is wrong, and both where both are."""
    findings = check_text(name, CROWDED).findings
    assert findings[0].startswith("selection: query 3 selects entry 0 where the scores say entry 1")
    assert findings[-1].startswith(finding)
    assert sum("selections that the candidate made" in one for one in findings) == 1


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("selects_the_lowest", CROWDED),  # shows nothing
        ("without_a_sink_but_selects_rightly", CROWDED),
        ("selects_nothing_there_is", CROWDED),
        ("selects_twice", CROWDED),
        ("shows_no_selection_in_hca", "hca m=2 W=2 rows=6 values=gaussian"),
    ],
)
def test_the_attention_is_not_judged_by_a_selection_that_says_nothing(name: str, line: str) -> None:
    """None shown, a right one, entries that are not there or there twice, a layer that selects nothing."""
    assert not [
        one for one in check_text(name, line).findings if "selections that the candidate made" in one
    ]


def test_exceptions_of_different_types_are_different_failures() -> None:
    """So that one does not hide the other."""
    failure = check_text("raises_on_a_tail", "csa m=2 rows=3")
    assert isinstance(failure, CandidateRaised)
    assert failure.kind == "CandidateRaised[ValueError]"
    assert CandidateRaised(TypeError("x"), failure.case).kind == "CandidateRaised[TypeError]"
    assert isinstance(failure.__cause__, ValueError)


@pytest.mark.parametrize(
    ("name", "weight", "regime"),
    [
        ("ignores_the_bias", "compressor.ape", "seed=1"),
        ("ignores_the_index_bias", "indexer.compressor.ape", "scores=separated seed=2"),
    ],
)
def test_an_ignored_weight_is_named(name: str, weight: str, regime: str) -> None:
    """Of the indexer, too, whose weights have no effect but on the selection."""
    line = f"csa m=2 k=1 E=4 D=4 q_lora=3 HI=3 DI=4 o_lora=2 rows=8 values=gaussian {regime}"
    failure = check_text(name, line, "weights")
    assert isinstance(failure, WeightIgnored)
    assert failure.facts["weight"] == weight
    assert f"replacing {weight} does not change the output of query" in failure.detail


def test_minus_infinity_that_becomes_a_number_is_a_changed_input() -> None:
    """A sink of -inf is legal, and the caller still wants it after the call."""
    case = LayerCase.parse("sliding H=4 rows=2 sinks=extreme seed=1")
    assert make_inputs(case).weights.attn_sink.isinf().any()
    failure = check_text("replaces_minus_infinity_in_place", str(case), "inputs")
    assert isinstance(failure, InputsChanged)
    assert failure.facts["names"] == "weights.attn_sink"
    assert failure.detail == "changed by the call: weights.attn_sink"


@pytest.mark.parametrize("name", LAWS)
def test_laws_find_what_they_are_for_and_no_more(name: str) -> None:
    """A candidate that breaks one law, and nothing that the law implies, passes the others."""
    implied = {
        "leaks_the_future": {"future", "prefix"},
        "multiplies_rows_by_their_number": {"rows", "batch-order"},
        "rounds_differently_in_every_second_call": {"repeat", "rows"},
        "remembers_answers_by_shape": {"own-inputs", "rows", "batch-order", "weights"},
    }
    mine = LAWS[name]
    line = {LayerKind.CSA: "csa m=2 W=2", LayerKind.HCA: "hca m=2 W=2", LayerKind.SLIDING: "sliding W=2"}[
        mine.kind
    ]
    case = LayerCase.parse(
        f"{line} E=4 H=2 D=4 q_lora=2 o_lora=2 rows=4,4 values=gaussian sinks=extreme seed=8"
    )
    for check in LAYER.checks:
        if not check.law or check.name in implied.get(name, {mine.check}):
            continue
        with suppress(csa_spec.UsageError):  # a law may have nothing to do here
            csa_spec.check_case(named(name), case, check.name)


def test_infinite_outputs_break_no_law_that_they_obey() -> None:
    """Infinity at the same place every time is not finite, and that is all it is."""
    case = "sliding W=2 rows=3,3"
    assert isinstance(check_text("infinite_at_first", case), NotFinite)
    for check in LAYER.checks:
        if check.law and check.name != "weights":  # it does ignore every weight there
            with suppress(csa_spec.UsageError):
                csa_spec.check_case(named("infinite_at_first"), case, check.name)
