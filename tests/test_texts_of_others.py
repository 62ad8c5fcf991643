"""What a candidate says, its name, messages and reasons, does no harm where it is shown."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from pathlib import Path

import pytest
from torch import Tensor

import csa_spec
from csa_spec import Candidate, Capabilities
from csa_spec.bundle import write_bundles
from csa_spec.plug.candidate import CandidateError
from csa_spec.plug.plain import MOST, plain, plain_line, said, shown
from csa_spec.profiles import PROFILES, Profile
from csa_spec.report.html import to_html
from csa_spec.report.json import to_json
from csa_spec.report.markdown import to_markdown
from csa_spec.report.markup import code, prose
from csa_spec.report.text import summarise
from csa_spec.resolving import resolve_candidate

HOSTILE = (
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J \x00 \ud800 \u202eevil\u2066 @octocat #123 GH-5 me/us#7 "
    "<script>alert(1)</script> | a | `ticks` ``` \n```\n</details> [x](javascript:alert(1)) "
    "\"\"\"\nopen('ran', 'w')\n\"\"\" ''' {0} %s \\"
)


class Odd(Exception):
    """An exception with an odd name, a long message and more lines than one."""


Odd.__name__ = "O\x1b[2Jdd`@octocat"


def attend(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Raise it."""
    raise Odd(HOSTILE + "A" * 1_000_000)


class Mute(Exception):
    """An exception that has no text."""

    def __str__(self) -> str:
        """Raise another."""
        raise RuntimeError("\x1b[2J")


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain", "plain"),
        ("two\r\nlines\tof it", "two\nlines\tof it"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[38;5;196mred\x1b(B\x1b[m", "red"),
        ("\x1b]8;;https://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]0;never closed", ""),
        ("\x9b2Jgone", "gone"),
        ("back\x08space\x7f\x00", "backspace"),
        ("\u202eabc\u2066\u200b\ufeff", "abc"),
        ("\ud800", "\ufffd"),
        ("a\u2028b", "a\nb"),
        ("Größe, 大きさ, 📏", "Größe, 大きさ, 📏"),
        (5, "5"),
        (None, "None"),
    ],
)
def test_what_a_text_shows_stays_and_nothing_else(text: object, seen: str) -> None:
    """Letters of any language stay, too."""
    assert plain(text) == seen


def test_long_texts_are_cut_and_counted() -> None:
    """At once, whatever their length."""
    assert plain("a" * MOST) == "a" * MOST
    assert plain("a" * (MOST + 100)) == "a" * MOST + "... (100 more characters)"
    long = plain("a" * 5_000_000)
    assert long.endswith(f"... ({5_000_000 - MOST:,} more characters)")
    assert plain(long) == long
    assert plain_line("a\n\n b") == "a b"


def test_an_object_without_a_text_has_a_name() -> None:
    """Whatever its methods raise."""
    assert said(Mute()) == "<Mute, whose text cannot be had: RuntimeError>"
    assert shown("\x1b") == "'\\x1b'"
    assert "\x1b" not in str(CandidateError(HOSTILE))


def hidden(text: str) -> set[str]:
    """Return the characters of a page that show nothing, but for new lines and what keeps names apart."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\u200b"}


def outside_code(text: str) -> str:
    """Return Markdown without its code."""
    text = re.sub(r"^(`{3,})[^`\n]*\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(?<!\\)(`+)(?!`).+?(?<!`)\1(?!`)", "", text)


def test_a_hostile_candidate_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the terminal, in JSON, HTML and Markdown, in the README and the script of a bundle."""
    monkeypatch.setitem(
        PROFILES, "few", Profile("few", light=1, medium=1, heavy=1, law=1, costly=1, shrinks=False)
    )
    lacks = {("attend", "empty"): HOSTILE}
    candidate = Candidate(
        f"test_texts_of_others:attend {HOSTILE}",
        {"attend": attend},
        Capabilities(lacks=lacks),
        {f"library {HOSTILE}": HOSTILE},
    )
    report = csa_spec.check(candidate, profile="few")
    pages = {
        "text": summarise(report),
        "html": to_html(report),
        "markdown": to_markdown(report),
        "json": json.dumps(to_json(report), ensure_ascii=False),
    }
    # Of a name that can be imported there are scripts.
    named = resolve_candidate(attend, "attend")
    folders = write_bundles(csa_spec.check(named, stage="attend", profile="few"), named, tmp_path)
    pages |= {
        f"{folder.name}/{path.name}": path.read_text() for folder in folders for path in folder.glob("*.*")
    }
    scripts = {name: text for name, text in pages.items() if name.endswith(".py")}
    assert scripts
    for name, text in pages.items():
        assert not hidden(text), name
        assert "A" * (MOST + 1) not in text, name
    assert "<script>alert" not in pages["html"]
    assert not re.search(r'href="(?!https://|#)', pages["html"])
    for name in [name for name in pages if name == "markdown" or name.endswith(".md")]:
        text = outside_code(pages[name])
        assert "evil" in text, name
        assert not re.search(r"@octocat|#123|us#7|GH-5|<script|(?<!\\)\]\(javascript", text), name
    for name, script in scripts.items():
        called = {
            ast.unparse(node.func) for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Call)
        }
        assert "open" not in called, name


def test_markup_is_escaped_for_good() -> None:
    """A cell, a link, a heading, a person, an issue; a name in backticks."""
    assert prose("a | b") == r"a \| b"
    assert prose("[x](y) *a* _b_ ~c~ `d`") == r"\[x\](y) \*a\* \_b\_ \~c\~ \`d\`"
    assert prose("<b> & @me #1 GH-2") == "&lt;b&gt; &amp; @\u200bme \\#\u200b1 GH-\u200b2"
    assert code("a`b") == "`` a`b ``"
