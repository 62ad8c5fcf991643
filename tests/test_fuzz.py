"""Noise in the place of case lines, files of known issues, bundles and commands: a result, or one sentence.

For an hour or a night, in place of a few examples: ``FUZZ_SECONDS=3600 python -m pytest -s tests/test_fuzz.py``.
Each of the tests takes its share of that time; what is found is kept by Hypothesis and tried first next time.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from bad_inputs import BUNDLE, Bad, outcome
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stages.toy import NORM

from csa_spec import AllBut, Candidate, Capabilities
from csa_spec.bundle.reading import BundleError, read_bundle
from csa_spec.candidates.declarations import declaration_problem
from csa_spec.candidates.recognise import as_candidate
from csa_spec.engine.case import LARGEST, MOST_BYTES, Case, CaseError
from csa_spec.engine.known_file import read_known_file
from csa_spec.engine.stage import Setting
from csa_spec.plug.candidate import CandidateError
from csa_spec.plug.reading import Unreadable
from csa_spec.stages import STAGES, parse_case, stage_of

TESTS = 5
SECONDS = float(os.environ.get("FUZZ_SECONDS", "0")) / TESTS
HERE = Path(__file__).parent


def fuzz(
    examples: int, inputs: st.SearchStrategy[Any]
) -> Callable[[Callable[[Any], None]], Callable[[], None]]:
    """Try a test on a few inputs; with ``FUZZ_SECONDS``, on as many as its time allows."""

    def decorate(test: Callable[[Any], None]) -> Callable[[], None]:
        tried = 0

        def counted(value: Any) -> None:
            nonlocal tried
            tried += 1
            test(value)

        counted.__qualname__ = counted.__name__ = test.__name__
        many = 1000 if SECONDS else examples
        once = settings(
            max_examples=many,
            deadline=None,
            derandomize=not SECONDS,
            suppress_health_check=list(HealthCheck),
        )(given(inputs)(counted))

        def repeated() -> None:
            begin = time.monotonic()
            once()
            while time.monotonic() - begin < SECONDS:
                print(f"\n{test.__name__}: {tried} inputs in {time.monotonic() - begin:.0f} s", flush=True)
                once()

        repeated.__name__, repeated.__doc__ = test.__name__, test.__doc__
        return repeated

    return decorate


# What inputs are made of.

WORDS = (
    "\x1b[2J",
    "\0",
    "\u202e",
    "\ud800",
    "=",
    ",",
    "+",
    "@",
    "<",
    ":",
    ".",
    "-",
    "%1b",
    "٣",
    "nan",
    "1e999",
    "{}",
)
NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2, 3, 10**9, 10**9 + 1, 10**12, 2**63, 10**20, 10**29, 10**40]).map(str),
    st.integers(-3, 70_000).map(str),
    st.integers(20, 6000).map(lambda digits: "9" * digits),
)
NOISE = st.one_of(st.sampled_from(WORDS), NUMBERS, st.text(max_size=6))
VALID = [
    case
    for stage in (*STAGES.values(), NORM)
    for variant in stage.variants
    for case in stage.draws.corners(variant, Setting())
]
"""Corner cases of every stage"""


@st.composite
def changed(draw: st.DrawFn, valid: st.SearchStrategy[str]) -> str:
    """Return a valid text with a few places replaced, dropped or doubled, each mostly a number or a word."""
    text = draw(valid)
    for _ in range(draw(st.integers(0, 4))):
        begin = draw(st.integers(0, len(text)))
        end = draw(st.sampled_from([begin, begin + 1, begin + draw(st.integers(0, 12))]))
        text = text[:begin] + draw(NOISE) + text[end:]
    return text


@st.composite
def changed_line(draw: st.DrawFn) -> str:
    """Return the line of a case whose words were changed, dropped, moved from another line or made noise."""
    words = str(draw(st.sampled_from(VALID))).split()
    others = str(draw(st.sampled_from(VALID))).split()
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(words)))
        name = draw(st.sampled_from(words + others)).partition("=")[0]
        word = draw(
            st.one_of(
                st.sampled_from(others),
                NUMBERS.map(f"{name}=".__add__),
                NOISE,
            )
        )
        words[place : place + draw(st.integers(0, 1))] = [word]
    return " ".join(words)


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        NOISE,
        st.sampled_from([10**20, 10**400, [], {}, "x" * 9999]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NOISE, inner, max_size=3)),
    max_leaves=5,
)
TOML = '[[known_issue]]\ncandidate = "gather"\nstage = "attend"\nname = "empty"\nreason = "why"\nversions = ">=1,<2"\n'


def is_sentence(error: BaseException) -> bool:
    """Whether an error is one sentence that can be printed."""
    text = str(error)
    return text.isprintable() and 0 < len(text) < 1500 and "Traceback" not in text


def attempt(read: Callable[[], Any], kind: type[Exception]) -> Any:
    """Return what is read, or None where it is refused in a sentence."""
    try:
        return read()
    except kind as error:
        problem = error
    assert is_sentence(problem), problem
    return None


# The tests.


@fuzz(400, st.one_of(changed_line(), changed(st.sampled_from(VALID).map(str)), st.text(max_size=60)))
def test_a_line_is_a_case_or_a_sentence(line: str) -> None:
    """What can be read is written as it can be read again, and takes no more than a case may."""
    case = attempt(lambda: parse_case(line), CaseError)
    if case is None:
        return
    assert isinstance(case, Case)
    assert type(case).parse(str(case)) == case
    assert 8 * sum(case.numbers.values()) <= MOST_BYTES
    assert all(0 <= size <= max(LARGEST, MOST_BYTES) for size in case.sizes.values())
    assert json.loads(json.dumps(case.to_json()))["stage"] == case.stage
    assert case.in_words()
    assert case.id
    if sum(case.sizes.values()) < 60 and max(case.numbers.values()) < 10**6:
        assert stage_of(case).trial(Candidate("nobody"), case).arguments


@fuzz(
    150,
    st.one_of(
        changed(st.just(TOML)), st.dictionaries(NOISE, VALUES, max_size=2).map(str), st.binary(max_size=20)
    ),
)
def test_a_file_of_known_issues_is_read_or_a_sentence(content: str | bytes) -> None:
    """And nothing but texts comes out of it."""
    path = HERE / f".fuzz-{os.getpid()}.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    try:
        for table in attempt(lambda: read_known_file(path), Unreadable) or ():
            assert all(isinstance(table[key], str) for key in table if key != "versions")
    finally:
        path.unlink()


def _changed_bundle(changes: dict[str, Any], dropped: set[str]) -> str:
    data = {name: value for name, value in {**BUNDLE, **changes}.items() if name not in dropped}
    return json.dumps(data)


BUNDLES = st.one_of(
    st.builds(
        _changed_bundle,
        st.dictionaries(st.sampled_from([*BUNDLE, "else"]), VALUES, max_size=2),
        st.sets(st.sampled_from(list(BUNDLE)), max_size=1),
    ),
    st.builds(lambda line: json.dumps({**BUNDLE, "case_line": line}), changed_line()),
    changed(st.just(json.dumps(BUNDLE))),
    st.integers(1, 100_000).map(lambda depth: "[" * depth),
)


@fuzz(150, BUNDLES)
def test_a_bundle_is_read_or_a_sentence(content: str) -> None:
    """Whatever is in it."""
    folder = HERE / f".fuzz-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    try:
        (folder / "case.json").write_bytes(content.encode("utf-8", "surrogatepass"))
        recorded = attempt(lambda: read_bundle(folder), BundleError)
        if recorded is not None:
            assert recorded.candidate.isprintable()
            assert recorded.check in {check.name for check in stage_of(recorded.case).checks}
    finally:
        (folder / "case.json").unlink()
        folder.rmdir()


def _command(line: str, options: list[str]) -> Bad:
    return Bad("", "", words=("case", "gather", line, *options))


OPTIONS = st.lists(
    st.one_of(st.sampled_from(["--check", "rows", "memory", "gradients", "--known", "--"]), NOISE),
    max_size=2,
)


def _small(line: str) -> bool:
    try:
        case = parse_case(line)
    except CaseError:
        return True
    return max(case.sizes.values()) < 9 and sum(case.numbers.values()) < 10**6


@fuzz(40, st.builds(_command, changed_line().filter(_small), OPTIONS))
def test_the_command_ends_with_a_verdict_or_a_sentence(bad: Bad) -> None:
    """Never with a traceback: exit 3."""
    code, sentence = outcome(bad)
    assert code in (0, 1, 2), sentence
    assert sentence


KEYS = st.sampled_from(
    ["S", "m", "k", "first", ("csa", "m"), ("attend", "empty"), ("cache", "fork"), "", 5, None]
)
DECLARED = st.one_of(
    VALUES,
    st.sampled_from([math.nan, AllBut(4), range(3), range(1, 10**30), "float32", "cpu", 10**4000]),
    st.frozensets(st.sampled_from([1, 4, 0, "cpu", "csa", "float32", None, True]), max_size=2),
    st.dictionaries(KEYS, st.one_of(st.integers(-1, 70), VALUES, st.just({1, 4})), max_size=2),
)
CAPABILITIES = st.dictionaries(
    st.sampled_from([field.name for field in fields(Capabilities)]), DECLARED, max_size=3
)


@fuzz(150, st.tuples(CAPABILITIES, st.sampled_from(["layer", "attend", "cache"])))
def test_a_declaration_is_used_or_a_sentence(declared: tuple[dict[str, Any], str]) -> None:
    """Cases fit what is accepted, or there is none."""
    values, stage = declared
    candidate = Candidate("fuzzed", {stage: lambda *arguments: None}, Capabilities(**values))
    if attempt(lambda: as_candidate(candidate, "fuzzed"), CandidateError) and not declaration_problem(
        candidate
    ):
        for case in [case for case in VALID if case.stage == stage][:5]:
            attempt(lambda case=case: case.fit(candidate.capabilities), CaseError)


def test_what_is_fuzzed_is_valid_to_begin_with(tmp_path: Path) -> None:
    """Else only the first checks would be tried."""
    assert all(stage_of(case) is STAGES.get(case.stage) for case in VALID if case.stage != NORM.name)
    (tmp_path / "case.json").write_text(json.dumps(BUNDLE))
    assert read_bundle(tmp_path).candidate == "gather"
    (tmp_path / "known.toml").write_text(TOML)
    assert len(read_known_file(tmp_path / "known.toml")) == 1


@pytest.fixture(autouse=True, scope="module")
def toy() -> Any:
    """The stage of the tests is one like any other."""
    STAGES[NORM.name] = NORM
    yield
    del STAGES[NORM.name]
