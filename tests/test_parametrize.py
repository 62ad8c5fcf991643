"""The decorator ``csa_spec.parametrize``, in a test file of somebody else."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from test_plugin import ADD_TINY_PROFILE, TESTS, names_of, text_of, tiny_profile  # noqa: F401 - a fixture

import csa_spec
from csa_spec.pytest_checks import CheckFailed, CheckTest
from csa_spec.stages import STAGES

pytest_plugins = ["pytester"]

CHECKS = [check.name for check in STAGES["select"].checks]
UNDECLARED = {"limits"}
"""Of these checks: those that need something declared, and are skipped"""
PLAIN = ("-p", "no:cacheprovider", "-p", "no:randomly")
FILE = """
import csa_spec
from cli_candidates import kernels, raises, selects_the_lowest

select = kernels.select

@csa_spec.parametrize({arguments}, profile="tiny")
def test_mine(check):
    check()
"""


def session(pytester: pytest.Pytester, arguments: str, *options: str) -> pytest.RunResult:
    """Run pytest on a file with one test function that is decorated with these arguments."""
    pytester.makepyfile(FILE.format(arguments=arguments))
    return pytester.runpytest_inprocess(*PLAIN, *options)


def subprocess_session(pytester: pytest.Pytester, arguments: str, *options: str) -> pytest.RunResult:
    """Run it in a process of its own, with the plugins that are named."""
    pytester.makeconftest(f"import sys\nsys.path.insert(0, {str(TESTS)!r})\n{ADD_TINY_PROFILE}")
    pytester.makepyfile(FILE.format(arguments=arguments))
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)


def rows_of(result: pytest.RunResult) -> list[str]:
    """Return the rows of the summary."""
    return [line for line in result.outlines if " cases " in line and ": " in line]


def test_each_check_is_a_test_with_a_readable_id(pytester: pytest.Pytester) -> None:
    """With the dtype where there are several; what is not declared is skipped, and says so."""
    assert names_of(session(pytester, "select=select", "--collect-only", "-q")) == [
        f"select-{name}" for name in CHECKS
    ]
    several = 'select=select, dtype="float32,bfloat16"'
    assert names_of(session(pytester, several, "--collect-only", "-q")) == [
        f"select-{dtype}-{name}" for dtype in ("float32", "bfloat16") for name in CHECKS
    ]
    result = session(pytester, "select=select", "-rs")
    result.assert_outcomes(passed=len(CHECKS) - len(UNDECLARED), skipped=len(UNDECLARED))
    result.stdout.fnmatch_lines(
        [
            "SKIPPED*check 'limits' does not apply: the candidate declares nothing that it is about",
        ]
    )
    assert len(rows_of(result)) == len(CHECKS) - len(UNDECLARED)


@pytest.mark.parametrize(
    ("arguments", "subjects"),
    [
        ('"cli_candidates:kernels"', {"select", "attend"}),
        ('kernels, stage="attend"', {"attend"}),
        ('select=select, attend="gather"', {"select", "attend"}),
        ('"cli_candidates:right", layer="sliding"', {"sliding"}),
    ],
)
def test_a_candidate_is_what_check_takes(
    pytester: pytest.Pytester, arguments: str, subjects: set[str]
) -> None:
    """A name, an object, or stages by name."""
    names = names_of(session(pytester, arguments, "--collect-only", "-q"))
    assert {name.partition("-")[0] for name in names} == subjects


def test_a_wrong_candidate_fails_with_the_explanation_and_no_traceback(pytester: pytest.Pytester) -> None:
    """Nothing of how the suite works, not even with long tracebacks."""
    result = session(pytester, "select=selects_the_lowest", "-k", "specification", "--tb=long")
    result.assert_outcomes(failed=1, deselected=len(CHECKS) - 1)
    result.stdout.fnmatch_lines(["FAILED: every selection is valid", "*smallest case found   select *"])
    for inside in ("Traceback", "pytest_checks.py", "def _judge", "E   "):
        assert inside not in text_of(result)


def test_checks_after_one_that_raises_are_not_judged(pytester: pytest.Pytester) -> None:
    """As in the conformance tests: also where the first check is not run."""
    session(pytester, "select=raises").assert_outcomes(failed=1, skipped=len(CHECKS) - 1)
    session(pytester, "select=raises", "-k", "inputs and not own").assert_outcomes(
        skipped=1, deselected=len(CHECKS) - 1
    )


def test_failures_that_are_expected_are_xfailed_and_must_fail(pytester: pytest.Pytester) -> None:
    """By the name of the check, or by the id of one test; strictly."""
    wrong = "select=selects_the_lowest, expected_failures={'specification': 'the lowest, not the highest'}"
    result = session(pytester, wrong, "-k", "specification or inputs", "-rx")
    assert result.parseoutcomes()["xfailed"] == 1
    assert "failed" not in result.parseoutcomes()
    result.stdout.fnmatch_lines(["XFAIL *select-specification* - the lowest, not the highest*"])
    right = session(pytester, "select=select, expected_failures={'select-inputs': 'why'}", "-k", "inputs")
    right.assert_outcomes(failed=1, passed=1, deselected=len(CHECKS) - 2)
    right.stdout.fnmatch_lines(["*XPASS(strict)*why*"])


def test_only_a_failure_of_the_check_is_expected(pytester: pytest.Pytester) -> None:
    """Neither an inconclusive run nor an error of the test function is."""
    pytester.makepyfile(
        FILE.format(arguments="select=selects_the_lowest, expected_failures={'specification': 'why'}")
        + "    \ndef test_nothing(): pass\n".replace("    \n", "\n")
        + """
@csa_spec.parametrize(select=selects_the_lowest, profile="tiny", expected_failures={"specification": "why"})
def test_stumbles(check):
    assert not check.name
"""
    )
    result = pytester.runpytest_inprocess(*PLAIN, "-k", "specification")
    result.assert_outcomes(xfailed=1, failed=1, deselected=2 * (len(CHECKS) - 1) + 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("selekt=select", "unknown stage or option 'selekt'; did you mean select or seed?"),
        ("select=select, dtyp='float32'", "unknown stage or option 'dtyp'; did you mean dtype?"),
        ("select=select, dtype='bf16'", "unknown dtype 'bf16'; did you mean bfloat16?"),
        (
            "kernels, stage='attend', dtype='float64'",
            "attend of cli_candidates:Kernels does not support float64",
        ),
        (
            "kernels, stage='layer'",
            "cli_candidates:Kernels does not offer the stage layer; it offers select, att",
        ),
        ("None", "give either one candidate, or single stages such as attend=function"),
        ("'nosuch:attend'", "there is no module 'nosuch' on the Python path"),
        ("select=select, device='cuda:0'", "write cuda, and choose the GPU with CUDA_VISIBLE_DEVICES=0"),
        ("select=select, known='nothing.toml'", "nothing.toml cannot be read: No such file or directory"),
        ("select=select, seed='1'", "seed must be a whole number of at most 18 digits, not '1'"),
        (
            "select=select, expected_failures={'memry': 'why'}",
            "expected_failures: unknown check 'memry'; did you mean memory?",
        ),
        (
            "select=select, expected_failures={'select-memry': 'why'}",
            "expected_failures: unknown check 'select-memry'; did you mean select-memory",
        ),
        (
            "select=select, expected_failures={'memory': None}",
            "expected_failures: the reason for 'memory' must be text, not None",
        ),
        (
            "select=select, expected_failures=['memory']",
            "expected_failures must be reasons by the name of a check, not ['memory']",
        ),
    ],
)
def test_what_cannot_be_used_is_one_sentence_at_collection(
    pytester: pytest.Pytester, arguments: str, sentence: str
) -> None:
    """Not a traceback through the suite."""
    result = session(pytester, arguments)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    (line,) = (line for line in result.outlines if "csa-spec: " in line and "candidates" not in line[:20])
    assert line.startswith("csa-spec: ")
    assert sentence in line
    assert re.search(r"csa_spec/\w+\.py:\d+", text_of(result)) is None  # pytest itself may warn


@pytest.mark.parametrize(
    "function", ["def test_mine(): pass", "class TestMine:\n    def test(self, check): check()"]
)
def test_a_function_without_an_argument_for_the_check_is_refused(
    pytester: pytest.Pytester, function: str
) -> None:
    """And a class."""
    text = FILE.format(arguments="select=select").partition("def ")[0]
    pytester.makepyfile(text + function)
    result = pytester.runpytest_inprocess(*PLAIN)
    result.stdout.fnmatch_lines(
        ["csa-spec: parametrize needs a test function with an argument for the check, *"]
    )


IN_A_CLASS = """
import csa_spec
from cli_candidates import kernels

class TestSelect:
    @csa_spec.parametrize(select=kernels.select, profile="tiny")
    def test_select(self, run, tmp_path):
        assert tmp_path.exists()
        assert run.where == "select-float32"
        assert run() is None
"""


def test_in_a_class_the_argument_after_self_gets_the_check(pytester: pytest.Pytester) -> None:
    """Of whatever name; the others are fixtures."""
    pytester.makepyfile(IN_A_CLASS)
    result = pytester.runpytest_inprocess(*PLAIN, "-k", "repeat or memory")
    result.assert_outcomes(passed=2, deselected=len(CHECKS) - 2)


def test_without_the_plugin_the_tests_run_without_a_summary(pytester: pytest.Pytester) -> None:
    """``-p no:csa_spec``; markers are strict."""
    result = subprocess_session(
        pytester, "select=select", "-p", "no:csa_spec", "--strict-markers", "-k", "repeat"
    )
    result.assert_outcomes(passed=1, deselected=len(CHECKS) - 1)
    assert rows_of(result) == []


def test_it_runs_under_xdist(pytester: pytest.Pytester) -> None:
    """Two workers collect the same tests; the summary has one row for each."""
    result = subprocess_session(pytester, "select=select", "-n", "2")
    result.assert_outcomes(passed=len(CHECKS) - len(UNDECLARED), skipped=len(UNDECLARED))
    assert max(Counter(rows_of(result)).values()) == 1
    assert not (pytester.path / ".hypothesis").exists()
    assert len(rows_of(result)) == len(CHECKS) - len(UNDECLARED)


def test_it_runs_in_any_order_and_draws_the_same_cases(pytester: pytest.Pytester) -> None:
    """pytest-randomly shuffles, and reseeds random, numpy and what else there is."""
    pytest.importorskip("pytest_randomly")
    wanted = rows_of(subprocess_session(pytester, "select=select", "-p", "no:randomly"))
    assert wanted
    for seed in ("1", "2"):
        result = subprocess_session(pytester, "select=select", f"--randomly-seed={seed}")
        assert f"--randomly-seed={seed}" in text_of(result)
        assert rows_of(result) == wanted


def test_a_check_that_is_run_again_has_one_row(pytester: pytest.Pytester) -> None:
    """The last one; those of tests that pass at once stay."""
    pytest.importorskip("pytest_rerunfailures")
    result = subprocess_session(
        pytester,
        "select=selects_the_lowest",
        "--reruns",
        "2",
        "-p",
        "no:randomly",
        "-k",
        "specification or memory",
    )
    assert result.parseoutcomes()["rerun"] == 2
    assert len(rows_of(result)) == 2
    assert len({row.partition("cases")[0] for row in rows_of(result)}) == 2


def test_known_issues_are_left_out_and_tried_apart(pytester: pytest.Pytester) -> None:
    """As ``csa-spec check --known`` does: counted, and what became of them is in the summary."""
    pytester.path.joinpath("known.toml").write_text(
        '[[known_issue]]\ncandidate = "cli_candidates:kernels"\nstage = "attend"\nname = "empty"\nreason = "slow"'
    )
    arguments = '"cli_candidates:kernels", stage="attend", known="known.toml"'
    result = session(pytester, arguments, "-k", "specification")
    result.assert_outcomes(passed=1, deselected=len(STAGES["attend"].checks) - 1)
    result.stdout.fnmatch_lines(
        [
            "*cases skipped: * with indices empty*",
            "cli_candidates:kernels: known issue of attend: empty: passes now on 20 of 20 cases tried (slow)",
        ]
    )


def test_a_check_is_an_object_that_says_what_it_is() -> None:
    """Outside of pytest, too."""
    collected: list[CheckTest] = []

    @csa_spec.parametrize("gather", stage="attend", profile="smoke")
    def function(check: CheckTest) -> None:
        """It is not called here."""

    (mark,) = function.pytestmark  # type: ignore[attr-defined]
    assert mark.args[0] == "check"
    collected = [entry.values[0] for entry in mark.args[1]]
    assert collected[0].name == "specification"
    assert issubclass(CheckFailed, pytest.fail.Exception)
