"""Case lines of release 0.1.0 are still read: those in the documentation, and one of every stage with every word."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from csa_spec.engine.case import Case, CaseError
from csa_spec.stages import STAGES, parse_case

ROOT = Path(__file__).parents[1]
FAULTS = ROOT / "docs" / "faults.md"  # its inputs are wrong on purpose
PAGES = [ROOT / "README.md", *sorted(set((ROOT / "docs").rglob("*.md")) - {FAULTS})]
HEADS = [head for stage in STAGES.values() for head in stage.case.first_words()]
_WORD = r"[\w-]+=[\w./<+@,:*-]*[\w.]"
LINE = re.compile(rf"(?<![\w./-])(?:cache )?(?:{'|'.join(HEADS)})(?: {_WORD})+")

OF_0_1_0 = (
    "csa rows=1",
    "csa m=4 k=2 W=8 E=6 H=4 D=8 R=4 q_lora=3 HI=2 DI=6 groups=2 o_lora=5 theta=500 compress_theta=1600 eps=1e-05 "
    "yarn=4/64/32/2 rows=2<3+4@8,1 values=gaussian scores=near-tied sinks=extreme seed=17 mode=cache dtype=bfloat16 "
    "device=cuda",
    "csa k=0 rows=5 values=units scores=tied",
    "csa rows=2 scores=plateau sinks=drawn mode=two%20words",
    "csa rows=2 scores=separated",
    "hca m=128 W=3 rows=300 values=large-logits sinks=drawn seed=65535 dtype=float16",
    "sliding W=3 rows=1<3,2+2@4 values=integers dtype=float64",
    "cache csa B=2 calls=4,rollback:1,reorder:1.0,2,select:0.1,1,repeat:2,1,clear:0,1,save,1,restore,1,fork,other,"
    "reset,3 m=4 k=2 W=6 E=6 H=2 D=8 R=4 q_lora=4 HI=4 DI=6 groups=2 o_lora=3 theta=500 compress_theta=1600 eps=0.01 "
    "yarn=4/64/32/1 values=gaussian scores=near-tied sinks=drawn seed=3 dtype=float16 device=cuda",
    "cache hca calls=1,1 m=2",
    "cache sliding calls=13 W=6 values=large-logits sinks=extreme",
    "cache csa calls=1,1 scores=tied",
    "cache csa calls=3 scores=plateau",
    "cache csa calls=3,1 values=units scores=separated",
    "compressor",
    "compressor B=2 blocks=3 tail=1 m=4 E=6 D=8 pairs=3 overlap=csa values=gaussian interpolation=yarn seed=5 "
    "dtype=bfloat16 device=cuda",
    "compressor pairs=2 values=large-gates",
    "compressor D=4 pairs=9 values=far-gates",
    "index_scores B=2 S=3 T=5 HI=4 DI=6 values=gaussian seed=1 dtype=float64 device=cuda",
    "index_scores T=3 values=large",
    "select B=2 S=6 T=8 m=2 k=3 start=8 values=low-bits invisible=nan-invisible seed=2 dtype=float16 device=cuda",
    "select values=minus-inf invisible=huge-invisible",
    "select values=equal seed=7",
    "select values=gaussian",
    "select values=nan",
    "attend B=2 S=3 H=2 D=4 N=9 n=6 indices=shuffled values=gaussian sinks=drawn-sinks unused=nan-unused "
    "scale=scale-root seed=1 dtype=bfloat16 device=cuda",
    "attend N=1 n=1 indices=empty sinks=no-sinks unused=huge-unused scale=scale-root",
    "attend indices=holes values=overflow sinks=extreme-sinks",
    "attend indices=leading",
    "attend indices=outside",
)  # fmt: skip
"""Written by release 0.1.0, or read by it"""


def lines_of(page: Path) -> list[str]:
    """Return what looks like a case in a page."""
    return [match.group() for match in LINE.finditer(page.read_text(encoding="utf-8"))]


def holds(line: str) -> Case:
    """Read a case; what it prints is read as the same case, and is the same line from then on."""
    case: Case = parse_case(line)
    assert parse_case(str(case)) == case
    assert str(parse_case(str(case))) == str(case)
    return case


@pytest.mark.parametrize("line", OF_0_1_0)
def test_a_line_of_0_1_0_is_read(line: str) -> None:
    """All of its words count, and are written again but for the one that has another name now."""
    written = set(str(holds(line)).split())
    renamed = {word for word in line.split() if word.startswith("pairs=")}
    assert set(line.split()) - written <= renamed | {"values=integers"}  # the simplest is left out


@pytest.mark.parametrize(("pairs", "channels"), [(1, 2), (3, 6), (9, 8)])
def test_pairs_are_twice_as_many_rotated_channels(pairs: int, channels: int) -> None:
    """As many as there are."""
    assert parse_case(f"compressor D=8 pairs={pairs}") == parse_case(f"compressor D=8 R={channels}")


def test_every_word_of_every_stage_is_among_the_lines() -> None:
    """But for what is new."""
    new = {"mode", "R", "turn", "layout", "positions", "page", "spare", "lengths", "index_dtype", "judged"}
    new_names = {
        "zero-weights",
        "ascending",
        "descending",
        "clustered",
        "signed-zeros",
        "denormal",
        "gaps",
        "scattered",
    }
    for stage in STAGES.values():
        lines = [line for line in OF_0_1_0 if type(parse_case(line)) is stage.case]
        words = {word.partition("=")[0] for line in lines for word in line.split()}
        known = set(parse_case(lines[0]).to_json()) - {"stage", "kind"}
        assert known - words <= new, stage.name
        names = {word.partition("=")[2] for line in lines for word in line.split()}
        first = {next(iter(one.metadata["kind"])) for one in fields(stage.case) if "kind" in one.metadata}
        assert set(stage.case.names()) - names <= {*map(str, first), "integers", *new_names}, stage.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_line_of_a_page_is_read(page: Path) -> None:
    """Whoever copies it gets the case that the page is about."""
    for line in lines_of(page):
        if "rollback:0" in line:  # it rolled back nothing
            with pytest.raises(CaseError, match="rolls back no token"):
                parse_case(line)
        else:
            holds(line)


def test_the_pages_have_lines() -> None:
    """Or what looks for them is broken."""
    assert sum(len(lines_of(page)) for page in PAGES) >= 60
