"""Reports as HTML and Markdown: complete, escaped, within bounds."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from csa_spec.engine.failures import CandidateRaised, Certainty, Diagnosis, Failure, Likeness
from csa_spec.engine.known_issues import KnownIssue
from csa_spec.engine.results import Report
from csa_spec.report.content import quoted
from csa_spec.report.files import write_text
from csa_spec.report.html import to_html
from csa_spec.report.markdown import MOST, to_markdown
from csa_spec.stages import parse_case
from report import examples

HOSTILE = "mod:<script>alert('x')</script>|`a`*b*@someone\n# no"


class Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Count a tag and keep what it links to."""
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        self.links += [
            value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "action", "data")
        ]

    def handle_data(self, data: str) -> None:
        """Keep text."""
        self.text += data


def _failures() -> list[Failure]:
    found = [examples.failure_of(examples.NAME, line) for line in examples.CASES.values()]
    title = "all queries <b>share</b> their picks"
    urls = ("https://github.com/huggingface/transformers/issues/45758", "javascript:alert(1)")
    like = Likeness("share", title, "A cause.", ("transformers #45758", "elsewhere"), urls, 1, 1)
    found[0].diagnosis = Diagnosis((like,), "The selection is the first that differs.", Certainty.CERTAIN)
    return [*found, CandidateRaised(ValueError(HOSTILE), parse_case("csa rows=2"))]


@pytest.fixture(scope="module")
def report() -> Report:
    """Return a report of four failures and a known issue, of a candidate with a hostile name."""
    made = examples.report_of(HOSTILE, _failures())
    made.results[0].reached["one token"] = 3
    return replace(
        made,
        missing={("float32", "csa"): ["partial | tail"]},
        declined={"hca": "<no> hca"},
        known_issues=[KnownIssue("csa", HOSTILE, "why <not>", 3, 3)],
    )


def test_a_page_needs_nothing_else_and_escapes_everything(report: Report) -> None:
    """No script, nothing loaded, links only within the page and to https."""
    page = Page(to_html(report))
    assert not {"script", "link", "img", "iframe", "object", "b"} & set(page.tags)
    assert not [name for name in page.attributes if name.startswith("on")]
    outside = {link for link in page.links if not link.startswith("#")}
    assert outside == {
        f"https://github.com/huggingface/transformers/issues/{number}" for number in (45758, 45820)
    }
    style = to_html(report).split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert HOSTILE in page.text


def test_a_page_holds_all_of_a_report(report: Report) -> None:
    """Verdict, table, pictures, likely cause, the line that shows it again, known_issues, coverage."""
    page = Page(to_html(report))
    assert page.tags["svg"] == 3
    assert page.tags["section"] == 4
    for text in (
        "not conformant for csa, attend, select",
        "1 FAILED",
        "all queries <b>share</b> their picks",
        "The selection is the first that differs.",
        f'check_case({quoted(HOSTILE)}, "{examples.CASES["attend"]}")',
        "partial | tail",
        "<no> hca",
        "why <not>",
        "one token 3",
        "ValueError",
    ):
        assert text in page.text, text


def test_pictures_in_a_page_are_those_that_stand_alone(report: Report) -> None:
    """Each parses as XML by itself."""
    svgs = re.findall(r"<svg.*?</svg>", to_html(report), re.DOTALL)
    assert len(svgs) == 3
    for svg in svgs:
        ElementTree.fromstring(svg)


def test_pictures_fit_into_a_narrow_window_and_a_dark_page(report: Report) -> None:
    """Neither cut off nor white; the candidate's path is no title by itself."""
    text = to_html(report)
    style = text.split("<style>")[1].split("</style>")[0]
    everywhere, dark = (
        style.partition("@media")[2].split("\n}\n", 1)[1],
        style.split("@media")[1].split("\n}\n")[0],
    )
    assert re.search(r"\.wide svg \{[^}]*max-width: 100%; height: auto;", everywhere.split("@media")[0])
    assert "prefers-color-scheme: dark" in dark
    assert re.search(r"\.wide svg \{ filter: invert\(", dark)
    assert text.count('<div class="wide"><svg') == text.count("<svg") == 3
    assert "<h1>csa-spec report on <code>" in text


def test_a_right_candidate_has_a_short_page_and_comment(report: Report) -> None:
    """No failures, no headings for them."""
    right = replace(report, results=[], missing={}, declined={}, known_issues=[])
    assert "Failures" not in Page(to_html(right)).text
    assert to_markdown(right).startswith("**INCONCLUSIVE**")
    assert "<details>" not in to_markdown(right)


def test_a_comment_says_the_verdict_first_and_then_why(report: Report) -> None:
    """And links the known bug, unless its address is none."""
    text = to_markdown(report)
    assert text.startswith("**NOT CONFORMANT** for csa, attend, select: `")
    assert text.count("<details>") == text.count("</details>") == 4
    assert (
        "[transformers \\#\u200b45758](https://github.com/huggingface/transformers/issues/45758), elsewhere"
        in text
    )
    assert "javascript" not in text
    assert "what outputs depend on" in text
    assert examples.CASES["select"] in text
    assert "known issue of csa" in text


def test_a_comment_escapes_names(report: Report) -> None:
    """Outside of code nothing is markup, and nobody is called."""
    text = to_markdown(report)
    prose = re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", text)
    prose = re.sub(r"(?<!\\)(`+)(?!`).*?(?<!`)\1(?!`)", "", prose)
    assert "<script" not in prose
    assert "@someone" not in prose
    assert "*b*" not in prose.replace("\\*", "")
    tables = [line for line in text.split("\n") if line.startswith("| ")]
    assert tables
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} == {3}


def test_a_fence_cannot_be_closed_from_within(report: Report) -> None:
    """A name with backticks gets a longer fence."""
    name = "mod:f\n```\n````\n<b>"
    text = to_markdown(replace(report, candidate=name))
    call = text[text.index("from csa_spec import check_case") - 20 :]
    assert "`````python" in call
    assert text.count("`````python") == 4


def test_a_comment_always_fits(report: Report) -> None:
    """However many failures there are; it says how many are left out."""
    one = report.results[0]
    many = replace(report, results=[replace(one, failures=one.failures * 3) for _ in range(200)])
    text = to_markdown(many)
    assert 0.9 * MOST < len(text) <= MOST
    shown = text.count("<details>")
    assert f"{600 - shown} more failures would not fit" in text
    assert "<sub>" in text


@pytest.mark.parametrize(
    "field", ["candidate", "known_issues", "declined", "results", "environment", "detail"]
)
def test_a_comment_fits_whatever_is_long(report: Report, field: str) -> None:
    """Any text may be long, and there may be many of each."""
    long = "x|" * 40_000
    raised = CandidateRaised(ValueError(long), parse_case("csa rows=2"))
    changes = {
        "candidate": long,
        "known_issues": [KnownIssue("csa", long, long)] * 500,
        "declined": {str(n): long for n in range(500)},
        "results": [
            replace(report.results[0], check=str(n), sentence=f"{n} {long}"[:900], failures=[])
            for n in range(99)
        ],
        "environment": {"torch": long},
        "detail": [replace(report.results[0], failures=[raised])],
    }
    text = to_markdown(replace(report, **{"results" if field == "detail" else field: changes[field]}))
    assert len(text) <= MOST
    assert text.startswith("**")


def test_files_are_written_at_once_or_not_at_all(tmp_path: Path) -> None:
    """What cannot be written leaves the old file, and nothing beside it."""
    path = tmp_path / "report.html"
    write_text(path, "old\n")
    with pytest.raises(TypeError):
        write_text(path, 3)  # type: ignore[arg-type]
    assert path.read_bytes() == b"old\n"
    write_text(path, "new \ud800\n")
    assert path.read_bytes() == b"new \\ud800\n"
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]


def test_the_examples_in_the_docs_are_there() -> None:
    """Of every case; numbers may differ in their last digit from machine to machine."""
    pictures = {f"{name}.svg" for name in examples.CASES}
    assert {path.name for path in examples.FOLDER.iterdir()} == pictures | {"report.html", "report.md"}
    for name in pictures:
        ElementTree.fromstring((examples.FOLDER / name).read_text(encoding="utf-8"))
    for name in ("report.html", "report.md"):
        text = (examples.FOLDER / name).read_text(encoding="utf-8")
        assert all(line in text.replace("&#39;", "'") for line in examples.CASES.values())
