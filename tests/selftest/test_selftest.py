"""The self-test finds bugs, says so when one survives, and when a right candidate fails."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import csa_spec.selftest.right
from csa_spec.bugs import Bug, find_bug
from csa_spec.cli import main
from csa_spec.resolving import UsageError, resolve_profile
from csa_spec.selftest.right import Passed, try_right
from csa_spec.selftest.run import SelfTest, selftest
from csa_spec.selftest.text import as_markdown, as_text
from csa_spec.spec import SPEC

SMOKE = resolve_profile("smoke")
SOME = ("drops_the_sink", "sees_everything", "has_no_relu", "does_not_overlap")


@pytest.fixture
def only_the_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out right candidates that ship, where a test is about bugs."""
    monkeypatch.setattr(csa_spec.selftest.right, "RIGHT", ())


def test_bugs_of_every_stage_are_found_and_the_tables_say_with_what() -> None:
    """Two processes, one seed; what was found so far is told after each part."""
    done: list[tuple[int, int, int]] = []
    texts: list[str] = []

    def progress(so_far: SelfTest) -> None:
        done.append((so_far.done, so_far.total, len(so_far.hunts)))
        texts.append(as_text(so_far))

    found = selftest(SOME, "smoke", (0,), 2, progress)
    assert [parts for parts, _, _ in done] == list(range(1, len(done) + 1))
    assert done[-1] == (len(done), len(done), len(found.hunts))
    assert f"Stopped after 1 of {len(done)} parts" in texts[0]
    assert "Stopped" not in texts[-1]
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
    assert {one.candidate for one in found.right} == {
        "specification",
        "gather",
        "flattened",
        "dense",
        "sdpa",
    }
    assert "No right candidate fails" in page


@pytest.mark.usefixtures("only_the_specification")
def test_a_survivor_is_said_and_makes_it_fail(
    extra: Callable[..., Bug], capsys: pytest.CaptureFixture[str]
) -> None:
    """Rules in other words are no bug, so nothing finds them."""
    extra(
        "scores_three_times_as_much",
        index_score=lambda q, weights, key: 3 * SPEC.index_score(q, weights, key),
    )
    arguments = ["--bug", "scores_three_times_as_much", "--profile", "smoke", "--seeds", "0", "--jobs", "1"]
    assert main(["selftest", *arguments]) == 1
    said = capsys.readouterr().out
    assert "SURVIVES csa, seed 0: scores_three_times_as_much" in said
    assert "does not find all that it must" in said


@pytest.mark.usefixtures("only_the_specification")
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
    found = selftest(("shows_one_block_more", "scores_twice_as_much"), "smoke", (0,), 1)
    assert not found.passed
    assert {one.bug for one in found.not_equivalent} == {"shows_one_block_more"}
    assert not found.survivors
    assert "NOT EQUIVALENT: shows_one_block_more" in as_text(found)


@pytest.mark.parametrize(("stage", "names"), [("layer", {"gather", "transformers"}), ("cache", set())])
def test_right_candidates_pass_on_the_same_cases(stage: str, names: set[str]) -> None:
    """Those that offer the layer kind, the specification among them."""
    passed = {one.candidate: one for one in try_right(stage, "sliding", SMOKE, 0)}
    assert {"specification", *names} <= set(passed)
    assert {name: one.false_alarms for name, one in passed.items()} == dict.fromkeys(passed, 0)
    assert min(one.cases for one in passed.values()) > 20


def test_a_false_alarm_makes_it_fail() -> None:
    """Right candidates are counted on the same cases."""
    right = [Passed("gather", "csa", 0, 1, 1), Passed("dense", "csa", 0, 1, 0)]
    found = SelfTest((), "smoke", (0,), 1, right=right)
    assert found.false_alarms == right[:1]
    assert not found.passed
    assert "FALSE ALARM: gather fails on 1 cases of csa" in as_text(found)
    assert "No right candidate fails" not in as_text(found)
    assert "more than it must" in as_text(found)


def test_a_right_candidate_that_fails_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the cases on which it does."""
    bad = [("wrong", find_bug("drops_the_sink").candidate)]
    monkeypatch.setattr(csa_spec.selftest.right, "right_candidates", lambda stage, kind: bad)
    (wrong,) = try_right("attend", "", SMOKE, 0)
    assert wrong.candidate == "wrong"
    assert 0 < wrong.false_alarms <= wrong.cases


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find a process's children")
@pytest.mark.parametrize("command", ["selftest", "check gather --profile thorough"])
def test_workers_end_with_a_command_that_is_killed(command: str) -> None:
    """Even where it has no chance to stop them."""
    arguments = [*command.split(), "--jobs", "2"]
    run = subprocess.Popen([sys.executable, "-m", "csa_spec", *arguments], stdout=subprocess.DEVNULL)
    workers: list[str] = []
    until = time.monotonic() + 60
    # The process that is supervised, its two workers, and what keeps track of shared memory.
    while len(workers) < 4 and time.monotonic() < until:
        workers = _descendants(str(run.pid))
        time.sleep(0.2)
    time.sleep(1)
    run.kill()
    run.wait()
    until = time.monotonic() + 60
    while any(map(_is_running, workers)) and time.monotonic() < until:
        time.sleep(0.2)
    assert len(workers) == 4
    assert not any(map(_is_running, workers))


def _descendants(process: str) -> list[str]:
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return children + [other for child in children for other in _descendants(child)]


def _is_running(process: str) -> bool:
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


def test_wrong_use_is_said_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """Names, seeds, processes."""
    for arguments, says in (
        (["--bug", "drops_the"], "unknown bug 'drops_the'; did you mean drops_the_sink"),
        (["--bug", "nsa"], "unknown bug 'nsa'; docs/power.md lists all"),
        (["--bug", "drops"], "unknown bug 'drops'; choose from drops_"),
        (["--seeds", "a,b"], "--seeds takes whole numbers separated by commas, not 'a,b'"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--profile", "huge"], "unknown profile 'huge'"),
        (["--markdown", "/there/is/none/x.md"], "--markdown: there is no folder /there/is/none"),
    ):
        assert main(["selftest", *arguments]) == 2
        assert says in capsys.readouterr().err
    with pytest.raises(UsageError):
        selftest(("nothing",))
