"""The self-test finds bugs, says so when one survives, and knows which cases a bug needs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import csa_spec.bugs
from csa_spec.bugs import Bug, bugs
from csa_spec.bugs.bug import REGISTERED, layer_bug
from csa_spec.cli import main
from csa_spec.resolving import UsageError, resolve_profile
from csa_spec.selftest.grid import try_grid
from csa_spec.selftest.kills import found_by, hunt
from csa_spec.selftest.pool import KEPT, Pool, Shown, regimes, try_pool
from csa_spec.selftest.run import SelfTest, selftest
from csa_spec.selftest.text import as_markdown, as_text, label_rows
from csa_spec.spec import SPEC, LayerKind

SMOKE = resolve_profile("smoke")
SOME = ("drops_the_sink", "sees_everything", "has_no_relu", "does_not_overlap")


@pytest.fixture
def extra() -> Iterator[Callable[..., Bug]]:
    """Register layer bugs for one test."""
    before = len(bugs()), list(REGISTERED)

    def add(name: str, **rules: Any) -> Bug:
        layer_bug(name, "It does something.", **rules)
        csa_spec.bugs.bugs.cache_clear()
        return bugs()[-1]

    yield add
    REGISTERED[:] = before[1]
    csa_spec.bugs.bugs.cache_clear()
    assert len(bugs()) == before[0]


def test_bugs_of_every_stage_are_found_and_the_tables_say_with_what() -> None:
    """Two processes, one seed."""
    done: list[tuple[int, int]] = []
    found = selftest(SOME, "smoke", (0,), 2, ("kills", "grid"), lambda *numbers: done.append(numbers))
    assert done[-1] == (len(done), len(done))
    assert found.passed
    assert {one.bug for one in found.hunts} == set(SOME)
    assert all(one.first is not None and one.first.check == "specification" for one in found.hunts)
    text, page = as_text(found), as_markdown(found, "csa-spec selftest")
    for name in SOME:
        assert name.replace("_", " ") in text
        assert name.replace("_", " ") in page
    assert "SURVIVES" not in text
    assert "Every bug that is not equivalent is found, and nothing else" in text
    assert page.count("\n## ") == 2


def test_what_a_diagnosis_calls_a_bug_is_counted(extra: Callable[..., Bug]) -> None:
    """One that is in the catalogue under its own name, and one that the diagnosis cannot tell from it."""
    extra("shows_a_block_early_too", visible_entries=lambda t, m: list(range(t // m + 1)))
    found = selftest(("has_no_relu", "shows_a_block_early_too"), "smoke", (0,), 1, ("names",))
    known, twin = found.named
    assert known.right
    assert not twin.right
    assert twin.tied
    assert "1 of 2 bugs (50%) are what the diagnosis names first" in as_text(found)
    page = as_markdown(found, "csa-spec selftest --part names")
    assert page.startswith("# How often a diagnosis names the right bug\n")
    assert "Every bug" not in page  # whether all are found was not asked


def test_a_survivor_is_said_and_makes_it_fail(
    extra: Callable[..., Bug], capsys: pytest.CaptureFixture[str]
) -> None:
    """Rules in other words are no bug, so nothing finds them."""
    extra(
        "scores_three_times_as_much",
        index_score=lambda q, weights, key: 3 * SPEC.index_score(q, weights, key),
    )
    arguments = ["--bug", "scores_three_times_as_much", "--profile", "smoke", "--seeds", "0", "--jobs", "1"]
    assert main(["selftest", *arguments, "--part", "kills"]) == 1
    said = capsys.readouterr().out
    assert "SURVIVES csa, seed 0: scores_three_times_as_much" in said
    assert "does not find all that it must" in said


def test_what_is_said_to_be_equivalent_must_not_be_found(extra: Callable[..., Bug]) -> None:
    """The argument is held to the suite."""
    extra(
        "shows_one_block_more",
        visible_entries=lambda t, m: list(range(t // m + 1)),
        equivalent="So they say.",
    )
    extra(
        "scores_twice_as_much",
        index_score=lambda q, w, key: 2 * SPEC.index_score(q, w, key),
        equivalent="Linear.",
    )
    found = selftest(("shows_one_block_more", "scores_twice_as_much"), "smoke", (0,), 1, ("kills",))
    assert not found.passed
    assert {one.bug for one in found.not_equivalent} == {"shows_one_block_more"}
    assert not found.survivors
    assert "NOT EQUIVALENT: shows_one_block_more" in as_text(found)


def test_the_matrix_tells_which_checks_find_a_bug(extra: Callable[..., Bug]) -> None:
    """A query that sees a block too early breaks the equality and a law; right rules break nothing."""
    wrong = extra("shows_a_block_early", visible_entries=lambda t, m: list(range(t // m + 1)))
    rows = {check: first for check, _, first in found_by(wrong, LayerKind.CSA, SMOKE, 0)}
    assert rows["specification"] > 0
    assert rows["prefix"] > 0 or rows["future"] > 0
    assert rows["repeat"] == rows["inputs"] == 0
    right = extra("does_it_right", visible_entries=SPEC.visible_entries)
    assert all(first == 0 and tried for _, tried, first in found_by(right, LayerKind.HCA, SMOKE, 0))
    assert hunt(right, LayerKind.HCA, SMOKE, 0).first is None


def test_a_pool_tells_which_cases_a_bug_needs(extra: Callable[..., Bug]) -> None:
    """A window of which one token is lost only shows where there is more than one token; right ones never fail."""
    wrong = extra(
        "needs_several_rows", rules=lambda document, geometry: SPEC if document.row == 0 else _BROKEN
    )
    pool = try_pool(
        "layer", LayerKind.SLIDING, (wrong.name,), ("specification", "gather", "transformers"), SMOKE, 0
    )
    assert pool.needing("several rows") == [wrong.name]
    assert pool.needing("one token") == []
    assert {name: shown.failing for name, shown in pool.right.items()} == dict.fromkeys(pool.right, 0)
    assert min(shown.tried for shown in pool.right.values()) > 10
    rows = {label: (cases, names) for label, cases, names in label_rows(pool, "layer", LayerKind.SLIDING)}
    assert rows["several rows"][1] == [wrong.name]
    assert set(regimes("layer", LayerKind.SLIDING)) <= set(rows)


def test_a_pool_of_schedules_has_a_right_stream() -> None:
    """It never fails where a wrong one does."""
    pool = try_pool("cache", LayerKind.SLIDING, ("reset_keeps_the_keys",), ("specification",), SMOKE, 0)
    assert pool.right["specification"].failing == 0
    assert pool.right["specification"].tried == len(pool.labels) > 20
    assert pool.bugs["reset_keeps_the_keys"].failing > 0


_BROKEN = replace(SPEC, softmax_scale=lambda geometry: 2 * geometry.scale)


def test_a_false_alarm_makes_it_fail() -> None:
    """Right candidates are counted on the same cases."""
    pool = Pool("csa", [frozenset()], (), right={"gather": Shown(1, 1), "dense": Shown(1, 0)})
    found = SelfTest((), "smoke", (0,), 1, pools=[pool])
    assert found.false_alarms == [("gather", "csa", 1)]
    assert not found.passed
    assert "FALSE ALARM: gather fails on 1 cases of csa" in as_text(found)
    assert "No right candidate fails" not in as_text(found)
    assert "more than it must" in as_text(found)


def test_the_grid_finds_the_plain_and_misses_the_subtle(extra: Callable[..., Bug]) -> None:
    """Random normal scores have no ties, and a few shapes no short rows."""
    plain = extra("scales_twice", softmax_scale=lambda geometry: 2 * geometry.scale)
    assert try_grid(plain.name, LayerKind.CSA).found
    right = extra("does_it_right_too", visible_entries=SPEC.visible_entries)
    for kind in LayerKind:
        assert not try_grid(right.name, kind).found


@pytest.mark.parametrize("stage", ["attend", "select", "index_scores", "cache"])
def test_the_grid_of_a_stage_passes_what_is_right(stage: str) -> None:
    """Variants that are equivalent are right in all that a test can see."""
    equivalent = [one for one in bugs() if one.stage == stage and one.equivalent]
    for one in equivalent:
        assert not try_grid(one.name, one.kinds[0] if one.kinds else None).found
    assert equivalent


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find a process's children")
def test_workers_end_with_a_self_test_that_is_killed() -> None:
    """Even where it has no chance to stop them."""
    run = subprocess.Popen(
        [sys.executable, "-m", "csa_spec", "selftest", "--jobs", "2"], stdout=subprocess.DEVNULL
    )
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    workers: list[str] = []
    until = time.monotonic() + 60
    while len(workers) < 3 and time.monotonic() < until:  # two, and what keeps track of shared memory
        workers = children.read_text().split()
        time.sleep(0.2)
    time.sleep(1)
    run.kill()
    run.wait()
    until = time.monotonic() + 60
    while any(map(_is_running, workers)) and time.monotonic() < until:
        time.sleep(0.2)
    assert len(workers) == 3
    assert not any(map(_is_running, workers))


def _is_running(process: str) -> bool:
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


def test_what_no_bug_needs_is_dead_weight_or_has_a_reason() -> None:
    """But only where the whole catalogue was tried."""
    found = SelfTest(bugs(), "smoke", (0,), 1)
    found.pools = [Pool("select", [frozenset({"gaussian", "nan"})], (), {"sees_everything": Shown()})]
    rows = [line for line in as_markdown(found, "").splitlines() if line.startswith("| select")]
    assert any("| gaussian |" in row and "the plain choice" in row for row in rows)
    assert any("| nan |" in row and "dead weight" in row for row in rows)
    found.bugs = found.bugs[:1]
    assert "dead weight |" not in as_markdown(found, "")


def test_reasons_are_given_for_regimes_that_there_are() -> None:
    """None of a regime that is gone."""
    assert all(label in regimes(stage, None) for stage, label in KEPT)


def test_wrong_use_is_said_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """Names, seeds, processes."""
    for arguments, says in (
        (["--bug", "drops_the"], "unknown bug 'drops_the'; there is drops_the_sink"),
        (["--part", "everything"], "unknown part 'everything'"),
        (["--seeds", "a,b"], "--seeds takes whole numbers separated by commas, not 'a,b'"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--profile", "huge"], "unknown profile 'huge'"),
        (["--markdown", "/there/is/none/x.md"], "--markdown: there is no folder /there/is/none"),
    ):
        assert main(["selftest", *arguments]) == 2
        assert says in capsys.readouterr().err
    with pytest.raises(UsageError):
        selftest(parts=("nothing",))
