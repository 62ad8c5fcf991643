"""The maintainers' tools know which checks find a bug, which cases it needs, and what a plain grid finds."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from csa_spec.bugs import Bug, bugs
from csa_spec.engine.failures import Certainty
from csa_spec.resolving import resolve_profile
from csa_spec.selftest.kills import hunt
from csa_spec.selftest.right import try_right
from csa_spec.selftest.subjects import kinds_of
from csa_spec.spec import SPEC, LayerKind
from csa_spec.stages import STAGES
from tools import inputs, names, power
from tools.command import Command, parser, read_command
from tools.grid import try_grid
from tools.inputs import KEPT, Pool, Shown, regimes, try_pool
from tools.matrix import found_by

SMOKE = resolve_profile("smoke")
SOME = ("drops_the_sink", "sees_everything", "has_no_relu", "does_not_overlap")
BROKEN = replace(SPEC, softmax_scale=lambda geometry: 2 * geometry.scale)


def ask(name: str, *arguments: str) -> Command:
    """Return a command as if it were typed."""
    return read_command(name, parser(name, ""), arguments)


def test_what_a_diagnosis_calls_a_bug_is_counted(extra: Callable[..., Bug]) -> None:
    """One that is in the catalogue under its own name, and one that the diagnosis cannot tell from it."""
    extra("shows_a_block_early_too", visible_entries=lambda t, m: list(range(t // m + 1)))
    command = ask("names", "--profile", "smoke", "--bug", "has_no_relu", "--bug", "shows_a_block_early_too")
    known, twin = measured = names.measure(command)
    assert known.known.right
    assert known.known.certainty is Certainty.CERTAIN
    assert not known.held_out.names
    assert twin.known.certainty is Certainty.SEVERAL
    assert twin.known.tied
    page = names.page(measured, command)
    assert "1 of 2 (50.0%) bugs are what the diagnosis names first" in page
    assert page.startswith("# How often a diagnosis names the right bug\n")
    assert "Every bug" not in page  # whether all are found was not asked


def test_bugs_that_replace_the_same_or_answer_alike_are_of_one_kind(extra: Callable[..., Bug]) -> None:
    """Whatever their names are."""
    check = STAGES["layer"].checks[0]
    early = extra("shows_a_block_early_again", visible_entries=lambda t, m: list(range(t // m + 1)))
    twin = extra(
        "answers_as_if", answer=lambda call: call.follow(visible_entries=early.broken["visible_entries"])
    )
    none = extra("shows_nothing_at_all", visible_entries=lambda t, m: [])
    assert names.same_kind(early, none, check)
    assert names.same_kind(early, twin, check)
    assert not names.same_kind(twin, none, check)


def test_the_matrix_tells_which_checks_find_a_bug(extra: Callable[..., Bug]) -> None:
    """A query that sees a block early breaks the specification check and a law; right rules break nothing."""
    wrong = extra("shows_a_block_early", visible_entries=lambda t, m: list(range(t // m + 1)))
    rows = {check: first for check, _, first in found_by(wrong, "hca", SMOKE, 0)}
    assert rows["specification"] > 0
    assert rows["prefix"] > 0 or rows["future"] > 0
    assert rows["repeat"] == rows["inputs"] == 0
    right = extra("does_it_right", visible_entries=SPEC.visible_entries)
    assert all(first == 0 and tried for _, tried, first in found_by(right, "hca", SMOKE, 0))
    assert hunt(right, "hca", SMOKE, 0).first is None


def test_a_pool_tells_which_cases_a_bug_needs(extra: Callable[..., Bug]) -> None:
    """Wrong rules of all rows but the first only show where there are several rows."""
    wrong = extra(
        "needs_several_rows",
        answer=lambda call: call.trace(SPEC if call.document.row == 0 else BROKEN).out,
    )
    pool = try_pool("layer", "sliding", (wrong.name,), SMOKE, 0)
    assert pool.needing("several rows") == [wrong.name]
    assert pool.needing("one token") == []
    rows = {row.name: row for row in pool.rows()}
    assert rows["several rows"].needed_by == [wrong.name]
    assert set(regimes("layer", "sliding")) <= set(rows)


def test_a_pool_of_schedules_has_the_cases_that_a_right_stream_is_tried_on() -> None:
    """A wrong one fails on some of them."""
    pool = try_pool("cache", "sliding", ("reset_keeps_the_keys",), SMOKE, 0)
    right = try_right("cache", "sliding", SMOKE, 0)[0]
    assert right.candidate == "specification"
    assert right.false_alarms == 0
    assert right.cases == len(pool.labels) > 20
    assert pool.bugs["reset_keeps_the_keys"].failing > 0


def test_what_no_bug_needs_is_dead_weight_or_has_a_reason() -> None:
    """But only where the whole catalogue was tried."""
    pool = Pool("select", "", [frozenset({"gaussian", "nan"})], (), {"sees_everything": Shown()})
    rows = [line for line in inputs.page([pool], ask("inputs")).splitlines() if line.startswith("| select")]
    assert any("| gaussian |" in row and "the plain choice" in row for row in rows)
    assert any("| nan |" in row and "dead weight" in row for row in rows)
    assert "dead weight |" not in inputs.page([pool], ask("inputs", "--bug", "sees_everything"))


def test_reasons_are_given_for_regimes_that_there_are() -> None:
    """None of a regime that is gone."""
    assert all(label in regimes(stage, "") for stage, label in KEPT)


def test_the_grid_finds_the_plain_and_misses_the_subtle(extra: Callable[..., Bug]) -> None:
    """Random normal scores have no ties, and a few shapes no short rows."""
    plain = extra("scales_twice", softmax_scale=lambda geometry: 2 * geometry.scale)
    assert try_grid(plain.name, "csa").found
    right = extra("does_it_right_too", visible_entries=SPEC.visible_entries)
    for kind in LayerKind:
        assert not try_grid(right.name, kind).found


@pytest.mark.parametrize("stage", ["attend", "select", "index_scores", "cache"])
def test_the_grid_of_a_stage_passes_what_is_right(stage: str) -> None:
    """Variants that are equivalent are right in all that a test can see."""
    equivalent = [one for one in bugs() if one.stage == stage and one.equivalent]
    for one in equivalent:
        assert not try_grid(one.name, kinds_of(one)[0]).found
    assert equivalent


def test_the_page_on_power_has_totals_and_the_command() -> None:
    """What is printed beside it has a row for every bug."""
    command = ask("power", "--profile", "smoke", *(f"--bug={name}" for name in SOME))
    measured = power.measure(command)
    page = power.page(measured, command)
    assert {one.bug for one in measured.grid} == set(SOME) == set(measured.matrix)
    assert "Made by `python -m tools.power --profile smoke --bug=drops_the_sink" in page
    for stage in ("compressor", "index_scores", "select", "attend"):
        assert f"| {stage} | 1 of 1 |" in page
    assert "| suite | 4 of 4 | 100% |" in page
    assert "specification 0 of " in page
    assert len(page.splitlines()) <= 45
    assert dict(power.matrix_table(measured)[1])["drops the sink"].startswith("specification:1")


def test_a_page_is_made_of_the_whole_catalogue_only(capsys: pytest.CaptureFixture[str]) -> None:
    """A few bugs are for looking, not for the documentation."""
    with pytest.raises(SystemExit):
        ask("names", "--bug", "has_no_relu", "--write")
    assert "--write makes a page of the whole catalogue" in capsys.readouterr().err


def test_tools_are_not_installed() -> None:
    """The wheel has no package of them, and nothing in it imports them."""
    root = Path(__file__).parents[2]
    packages = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert "csa_spec.selftest" in packages
    assert [name for name in packages if name.split(".")[0] != "csa_spec"] == []
    for folder in ("csa_spec", "strategies", "tests/conformance"):
        for path in (root / folder).rglob("*.py"):
            assert not re.search(r"^\s*(from|import) tools\b", path.read_text(), re.MULTILINE), path
