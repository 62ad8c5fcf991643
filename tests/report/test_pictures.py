"""Pictures of failures: they parse, fit, say what is wrong where, and are the same every time."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
import torch

from csa_spec.bugs import find_bug
from csa_spec.drawing.svg import SMALL
from csa_spec.engine.dependence import Dependence
from csa_spec.engine.failures import (
    CandidateRaised,
    Certainty,
    Diagnosis,
    Failure,
    Likeness,
    SeesTooMuch,
    WrongNumbers,
)
from csa_spec.report.picture import picture
from csa_spec.stages import parse_case
from report.examples import failure_of

_SVG = "{http://www.w3.org/2000/svg}"
SHARED = "every_query_attends_to_every_querys_top_k"
SHORT = "misses_the_oldest_token_of_the_window"
FAILING = {
    "csa": (SHARED, "csa m=2 W=2 HI=2 DI=4 rows=8 values=gaussian scores=separated seed=1"),
    "the smallest csa": (SHARED, "csa rows=2"),
    "two documents": (SHARED, "csa m=2 rows=3+5,1<4 values=gaussian"),
    "hca": ("sees_its_own_unfinished_block", "hca m=2 W=4 rows=12 values=gaussian seed=1"),
    "sliding": (SHORT, "sliding W=3 rows=6 values=gaussian seed=1"),
    "not probed": (SHORT, "sliding W=3 rows=60 values=gaussian seed=1"),
    "attend": ("reads_index_minus_one_as_row_0", "attend S=4 H=2 D=4 N=8 n=5 indices=holes values=gaussian seed=3"),
    "many keys": ("reads_index_minus_one_as_row_0", "attend S=50 H=2 D=4 N=90 n=60 indices=holes values=gaussian"),
    "select": ("sees_everything", "select S=8 T=4 m=2 k=2 values=gaussian seed=1"),
    "many entries": ("sees_everything", "select S=60 T=50 m=1 k=4 values=gaussian seed=1"),
    "index_scores": ("has_no_relu", "index_scores S=4 T=5 HI=2 DI=4 values=gaussian"),
    "compressor": ("does_not_overlap", "compressor blocks=3 tail=1 m=2 E=4 D=4 overlap=csa values=gaussian"),
}  # fmt: skip


def fail(name: str, check: str = "specification") -> Failure:
    """Return how one of the wrong functions fails."""
    bug, line = FAILING[name]
    return failure_of(find_bug(bug).candidate, line, check)


def parsed(failure: Failure, check: str = "specification") -> ElementTree.Element:
    """Return a failure's picture as XML."""
    text = picture(failure, check)
    assert text is not None
    return ElementTree.fromstring(text)


def squares(svg: ElementTree.Element, meaning: str) -> list[tuple[str, str]]:
    """Return row and column of the squares with a meaning."""
    titles = [title.text or "" for title in svg.findall(f"{_SVG}rect/{_SVG}title")]
    names = [title.split(": ")[0].split(", ") for title in titles if title.endswith(": " + meaning)]
    return [(row, column) for row, column in names]


def words(svg: ElementTree.Element) -> str:
    """Return all that is written in a picture."""
    return "\n".join((text.text or "").replace("\xa0", " ") for text in svg.findall(f"{_SVG}text"))


@pytest.mark.parametrize("name", FAILING)
def test_a_picture_stands_alone_and_nothing_in_it_is_cut_off(name: str) -> None:
    """It parses, has a title, reads nothing from elsewhere; every letter is large and on the paper."""
    failure = fail(name)
    text = picture(failure)
    assert text is not None
    svg = ElementTree.fromstring(text)
    assert svg.find(f"{_SVG}title") is not None
    assert svg.find(f"{_SVG}desc") is not None
    assert {element.tag for element in svg.iter()} <= {
        _SVG + tag for tag in ("svg", "title", "desc", "rect", "path", "text")
    }
    assert "href" not in text
    assert "url(" not in text
    width, height = (float(svg.attrib[side]) for side in ("width", "height"))
    assert width <= 1500
    for one in svg.findall(f"{_SVG}text"):
        x, y, size = (float(one.attrib[key]) for key in ("x", "y", "font-size"))
        assert size >= SMALL
        long = len(one.text or "") * size * 0.5
        left = x - {"start": 0, "middle": long / 2, "end": long}[one.attrib["text-anchor"]]
        assert 0 <= left < left + long <= width
        assert 0 < y < height
    assert words(svg).startswith(failure.title[0].upper() + failure.title[1:20])
    assert str(failure.case)[:40] in words(svg)


@pytest.mark.parametrize("name", ["csa", "attend", "select"])
def test_a_picture_is_the_same_every_time(name: str) -> None:
    """Byte for byte, of the same failure and of another run."""
    first = fail(name)
    assert picture(first) == picture(first) == picture(fail(name))


@pytest.mark.parametrize("name", ["csa", "the smallest csa", "sliding"])
def test_the_marked_squares_are_those_where_the_dependence_is_wrong(name: str) -> None:
    """No more and no fewer; each has its sign."""
    failure = fail(name)
    svg, dependence = parsed(failure), failure.dependence
    assert dependence is not None
    assert dependence.too_much or dependence.too_little
    for pairs, meaning, sign in (
        (dependence.too_much, "depends on it and must not", "!"),
        (dependence.too_little, "does not depend on it and must", "?"),
    ):
        marked = squares(svg, meaning)
        assert sorted((int(row.removeprefix("t=")), int(column)) for row, column in marked) == sorted(pairs)
        legend = 1
        assert words(svg).split("\n").count(sign) == len(pairs) + legend


def test_the_picture_of_a_packed_row_shows_its_documents_and_blocks() -> None:
    """And marks what lies in another document; a row of one document needs no such lines."""
    failure = failure_of(
        find_bug("treats_a_packed_row_as_one_document").candidate, "csa m=2 W=3 rows=3+4 values=gaussian"
    )
    svg = parsed(failure)
    lines = words(svg).split("\n")
    assert {"document", "block", "column", "t=0 (column 3)", "entries of document 1"} <= set(lines)
    assert "who may see whom, in document 1" in lines
    grids = 2  # the block of three tokens in document 0 has one entry, that of four in document 1 two
    assert (lines.count("e0"), lines.count("e1")) == (2 * grids + 1, grids + 1)
    marked = squares(svg, "depends on it and must not")
    assert failure.dependence is not None
    assert sorted(marked) == sorted(
        (f"t={t} (column {t + 3})", str(c)) for t, _, c in failure.dependence.outside
    )
    assert "document" not in words(parsed(fail("csa"))).split("\n")


def test_what_nobody_measured_is_not_drawn() -> None:
    """Long documents are not probed: there is the specification's grid, and a sentence."""
    text = words(parsed(fail("not probed")))
    assert "candidate" not in text.split("\n")
    assert "was not measured" in text


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("not probed", "of 60 are drawn."),
        ("many keys", "Keys 0 to 39 of 90 are drawn."),
        ("many entries", "Queries 0 to 39 of 60 are drawn."),
    ],
)
def test_large_cases_are_cropped_around_the_place_and_say_so(name: str, sentence: str) -> None:
    """Forty rows and columns at most."""
    assert sentence in words(parsed(fail(name)))


def test_the_errors_of_all_queries_are_drawn() -> None:
    """With their colours, and the number beside those over their budget."""
    failure = fail("sliding")
    failure.errors = torch.tensor([0.2, 5.0, 2e5, torch.inf, torch.nan, 0.0], dtype=torch.float64)
    svg = parsed(failure)
    fills = {
        (title.text or "").split(":")[0]: rect.attrib["fill"]
        for rect in svg.findall(f"{_SVG}rect")
        if (title := rect.find(f"{_SVG}title")) is not None and "times the tolerance" in (title.text or "")
    }
    assert fills["t=0"] == fills["t=5"] == "#ffffff"
    assert len({fills[row] for row in ("t=0", "t=1", "t=2", "t=3")}) == 4
    lines = words(svg).split("\n")
    assert "5" in lines
    assert "2e+05" in lines
    assert "0.2" not in lines
    assert "not judged" in lines


def test_an_attend_picture_marks_the_key_that_the_sentence_is_about() -> None:
    """And says how often a query names no key."""
    failure = fail("attend")
    assert isinstance(failure, SeesTooMuch)
    assert failure.facts["number"] == 0
    assert failure.place is not None
    svg = parsed(failure)
    ((row, column),) = squares(svg, "the output changes with it and must not")
    assert (row, column) == (f"t={failure.place.t}", "0")
    assert "2 ×" in words(svg)


def test_a_selection_that_may_not_be_is_marked() -> None:
    """Query 0 sees no entry, so both of its picks are wrong; query 7 sees all."""
    failure = fail("select")
    failure.answer = torch.tensor([[[2, 0], [0, -1], [0, -1], [1, 1], [0, 1], [1, 0], [1, 0], [1, 2]]])
    svg = parsed(failure)
    assert sorted(squares(svg, "selected and must not be")) == [("t=0", "e0"), ("t=0", "e2"), ("t=3", "e1")]
    assert squares(svg, "left out and must not be") == [("t=3", "e0")]


def test_of_other_queries_a_selection_may_not_be_recorded() -> None:
    """Then the picture says so, and shows what the specification selects."""
    failure = fail("select")
    failure.answer = None
    text = words(parsed(failure))
    assert "is not recorded" in text
    assert "the specification selects it" in text


def test_a_tie_may_be_broken_either_way() -> None:
    """Picks among equal scores are right whichever they are."""
    case = parse_case("select S=4 T=4 m=1 k=1 values=equal")
    failure = WrongNumbers(case, place=fail("select").place, wrong=1, total=4, items="queries")
    failure.answer = torch.tensor([[[0], [1], [2], [0]]])
    svg = parsed(failure)
    assert not squares(svg, "selected and must not be")
    assert not squares(svg, "left out and must not be")


def test_a_law_shows_two_runs() -> None:
    """There is nothing expected in a law."""
    text = words(parsed(fail("csa", "future"), "future"))
    assert "one run" in text
    assert "expected" not in text


def test_a_known_bug_is_named() -> None:
    """With where somebody reported it."""
    failure = fail("the smallest csa")
    like = Likeness(
        "shares",
        "all queries share <everything>",
        "Why.",
        ("transformers #45758",),
        ("https://x.org",),
        1,
        1,
    )
    failure.diagnosis = Diagnosis((like,), "", Certainty.CERTAIN)
    assert "behaves like: all queries share <everything> (transformers #45758)" in words(parsed(failure))


def test_characters_that_xml_cannot_hold_do_no_harm() -> None:
    """An exposed stage, a message, may hold anything."""
    failure = fail("the smallest csa")
    failure.detail = 'a\x00b\ud800c<&>"\uffff'
    assert "b" in words(parsed(failure))


def test_where_there_is_nothing_to_draw_there_is_no_picture() -> None:
    """An exception, and a failure that says no place."""
    for line in ("csa rows=2", "attend S=1 N=1 n=1"):
        assert picture(CandidateRaised(ValueError("no"), parse_case(line))) is None
        assert picture(WrongNumbers(parse_case(line), wrong=1, total=1, items="queries")) is None


def test_a_dependence_that_is_right_has_no_marks() -> None:
    """Signs are for what is wrong."""
    failure = fail("sliding")
    assert failure.dependence is not None
    failure.dependence = Dependence(*3 * (failure.dependence.allowed,))
    assert not squares(parsed(failure), "depends on it and must not")
    assert not squares(parsed(failure), "does not depend on it and must")
