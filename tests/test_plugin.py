"""The pytest plugin, as a user of an installed csa-spec meets it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from distribution import REPOSITORY, pip
from engine.drawing import leave_out_corners

from csa_spec.plug.capabilities import DEVICES, DTYPES
from csa_spec.profiles import PROFILES, Profile
from csa_spec.spec import LayerKind
from csa_spec.stages import STAGES
from csa_spec.stages.layer.stage import LAYER

pytest_plugins = ["pytester"]

TESTS = Path(__file__).parent
SUITE = ("--pyargs", "csa_spec.conformance", "-p", "no:cacheprovider", "-p", "no:randomly")
TINY = ("--csa-profile", "tiny", "--csa-layer", "sliding")
CHECKS = len(LAYER.checks)
"""Tests of one layer kind in one dtype."""


TINY_PROFILE = Profile("tiny", light=2, medium=2, heavy=1, law=1, costly=1, patience=float("inf"))
ADD_TINY_PROFILE = f"""
from math import inf
from csa_spec.plug.capabilities import DEVICES, DTYPES
from csa_spec.profiles import PROFILES, Profile
PROFILES["tiny"] = {TINY_PROFILE!r}
"""


@pytest.fixture(autouse=True)
def tiny_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a profile that draws hardly anything, for sessions in this process."""
    monkeypatch.setitem(PROFILES, "tiny", TINY_PROFILE)


def suite(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Run the conformance tests in this process, from an empty folder."""
    return pytester.runpytest_inprocess(*SUITE, *arguments)


def names_of(result: pytest.RunResult) -> list[str]:
    """Return what stands in brackets in the names of the tests that were collected."""
    return [line.partition("[")[2].rstrip("]") for line in result.outlines if "::" in line]


def text_of(result: pytest.RunResult) -> str:
    """Return everything that a session printed."""
    return f"{result.stdout}\n{result.stderr}"


def refusal(result: pytest.RunResult) -> str:
    """Return the one sentence of a session that must end with a usage error."""
    text = text_of(result)
    assert "_hookexec" not in text, text
    assert "Traceback" not in text, text
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (sentence,) = (
        line for line in text.splitlines() if "csa-spec: " in line and "csa-spec: candidates" not in line
    )
    return sentence.partition("csa-spec: ")[2]


# What runs


def test_a_right_candidate_passes_and_the_summary_shows_what_was_covered(pytester: pytest.Pytester) -> None:
    """One test per check; the header shows every option."""
    result = suite(pytester, "--csa-candidate", "cli_candidates:right", *TINY, "--csa-seed", "5")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "csa-spec: candidates cli_candidates:right; stage all, layer sliding, profile tiny, dtype float32, "
            "device cpu, seed 5",
            f"collected {CHECKS} items",
            "*csa-spec: what was covered*",
            "cli_candidates:right sliding float32: inputs are not mutated * 9 cases *",
            "cli_candidates:right sliding float32: output matches the specification * 4? cases * queries*",
        ]
    )


def test_several_candidates_layers_and_dtypes_each_get_their_own_tests(pytester: pytest.Pytester) -> None:
    """The names of the tests say which is which."""
    result = suite(
        pytester, "--csa-candidate", "cli_candidates:right", "--csa-candidate", "cli_candidates:leaky",
        "--csa-dtype", "float32,bfloat16", "--collect-only", "-q",
    )  # fmt: skip
    assert result.ret == 0
    assert sorted(names_of(result)) == sorted(
        f"cli_candidates:{name}-{kind}-{dtype}-{check.name}"
        for name in ("right", "leaky")
        for kind in ("csa", "hca", "sliding")
        for dtype in ("float32", "bfloat16")
        for check in LAYER.checks
    )
    result.stdout.fnmatch_lines([f"{12 * CHECKS} tests collected*"])


def test_a_candidate_may_lie_in_the_folder_that_pytest_is_run_in(pytester: pytest.Pytester) -> None:
    """Without an installation and without a conftest.py."""
    pytester.makepyfile(my_layer="from cli_candidates import right as layer")
    result = suite(pytester, "--csa-candidate", "my_layer:layer", *TINY, "-k", "float32-inputs")
    result.assert_outcomes(passed=1, deselected=CHECKS - 1)


def test_a_wrong_candidate_fails_with_an_explanation_and_no_traceback(pytester: pytest.Pytester) -> None:
    """Everything that is needed to see it again, and nothing of how the suite works."""
    result = suite(
        pytester, "--csa-candidate", "cli_candidates:not_finite", *TINY, "-k", "specification", "--tb=long"
    )
    result.assert_outcomes(failed=1, deselected=CHECKS - 1)
    result.stdout.fnmatch_lines(
        [
            "FAILED: output matches the specification",
            "  Output is not finite:",
            "  smallest case found   sliding *",
            '    check_case("cli_candidates:not_finite", "sliding *")',
        ]
    )
    text = text_of(result)
    for inside in ("Traceback", "plugin.py", "def run", "def _judge", "E   ", ">  "):
        assert inside not in text


def test_a_law_that_is_broken_names_its_check_in_the_line_to_try_again(pytester: pytest.Pytester) -> None:
    """Without it the line would try something else."""
    result = suite(
        pytester, "--csa-candidate", "cli_candidates:changes_inputs", *TINY, "-k", "float32-inputs"
    )
    result.assert_outcomes(failed=1, deselected=CHECKS - 1)
    result.stdout.fnmatch_lines(
        ['*check_case("cli_candidates:changes_inputs", "sliding *", check="inputs")']
    )


@pytest.mark.parametrize("chosen", ["float32-inputs", "float32-specification or float32-inputs"])
def test_a_law_is_skipped_where_the_first_check_fails_for_the_same_cause(
    pytester: pytest.Pytester, chosen: str
) -> None:
    """Also where the first check is a test of another process, or was not chosen."""
    first = "or" in chosen.split()
    result = suite(pytester, "--csa-candidate", "cli_candidates:raises", *TINY, "-k", chosen, "-rs")
    result.assert_outcomes(failed=int(first), skipped=1, deselected=CHECKS - 1 - first)
    result.stdout.fnmatch_lines(
        ["SKIPPED*not judged: the candidate fails here as it does in the check 'output matches the *"]
    )


def test_a_candidate_that_ends_the_process_fails_like_any_other(pytester: pytest.Pytester) -> None:
    """With the case, and without a traceback through the suite."""
    result = suite(pytester, "--csa-candidate", "cli_candidates:exits", *TINY, "-k", "specification")
    result.assert_outcomes(failed=1, deselected=CHECKS - 1)
    result.stdout.fnmatch_lines(['*check_case("cli_candidates:exits", "sliding *")'])
    assert "plugin.py" not in text_of(result)


def test_layers_that_a_candidate_does_not_offer_are_skipped_with_the_reason(
    pytester: pytest.Pytester,
) -> None:
    """So that they show."""
    result = suite(
        pytester,
        "--csa-candidate",
        "cli_candidates:sliding_only",
        "--csa-profile",
        "tiny",
        "-k",
        "inputs and not own-inputs",
        "-rs",
    )
    result.assert_outcomes(passed=1, skipped=2, deselected=3 * (CHECKS - 1))
    for kind in ("csa", "hca"):
        result.stdout.fnmatch_lines([f"SKIPPED*cli_candidates:sliding_only does not offer {kind} layers"])


def test_a_run_that_misses_a_required_kind_fails(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two drawn cases alone do not reach everything."""
    leave_out_corners(monkeypatch)
    result = suite(pytester, "--csa-candidate", "cli_candidates:right", *TINY, "-k", "specification")
    result.assert_outcomes(failed=1, deselected=CHECKS - 1)
    result.stdout.fnmatch_lines(["inconclusive: no case of these kinds was reached: *extreme sink*"])


# Single stages

KERNELS = ("--csa-candidate", "cli_candidates:kernels", "--csa-profile", "tiny")


def kernel_tests(*stages: str) -> list[str]:
    """Return the names of the tests of these stages of ``KERNELS``."""
    checks = [(stage, check.name) for stage in stages for check in STAGES[stage].checks]
    return [f"cli_candidates:kernels-{stage}-float32-{check}" for stage, check in checks]


def test_every_stage_that_a_candidate_offers_has_its_tests(pytester: pytest.Pytester) -> None:
    """One per check. ``--csa-stage`` leaves only one stage."""
    for options, stages in ((), ("select", "attend")), (("--csa-stage", "attend"), ("attend",)):
        result = suite(pytester, *KERNELS, *options, "--collect-only", "-q")
        assert names_of(result) == kernel_tests(*stages)
        result.stdout.fnmatch_lines([f"{len(kernel_tests(*stages))} tests collected*"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("attend", "attend-float32-*"),
        ("select and rows", "select-float32-rows"),
        ("layer", "*-float32-*"),
        ("hca", "hca-float32-*"),
        ("future", "*-float32-future"),
    ],
)
def test_words_choose_tests_by_stage_layer_kind_and_check(
    pytester: pytest.Pytester, words: str, expected: str
) -> None:
    """With pytest's own ``-k``; layers are named after their kinds, and ``layer`` chooses all of them."""
    name = "right" if words in ("layer", "hca", "future") else "kernels"
    candidate = f"cli_candidates:{name}"
    options = ("--csa-candidate", candidate, "--collect-only", "-q")
    every, chosen = names_of(suite(pytester, *options)), names_of(suite(pytester, *options, "-k", words))
    assert chosen
    assert chosen == [test for test in every if fnmatch(test, f"{candidate}-{expected}")]


def test_a_stage_alone_passes_and_the_header_says_which(pytester: pytest.Pytester) -> None:
    """What the candidate does not declare is skipped, and says so."""
    result = suite(pytester, *KERNELS, "--csa-stage", "attend", "-rs")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "csa-spec: candidates cli_candidates:kernels; stage attend, layer all, *",
            "cli_candidates:kernels attend float32: output matches the specification *",
            "SKIPPED*check 'gradients' does not apply: the candidate declares nothing that it is about",
            "SKIPPED*check 'limits' does not apply: the candidate declares nothing that it is about",
        ]
    )


def test_a_function_is_the_stage_that_is_named(pytester: pytest.Pytester) -> None:
    """As with ``--stage``; a wrong one fails with a line that names the stage in the case."""
    options = ("--csa-stage", "select", "--csa-profile", "tiny")
    result = suite(pytester, "--csa-candidate", "cli_candidates:selects_the_lowest", *options)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(['*check_case("cli_candidates:selects_the_lowest", "select *")'])


def test_a_dtype_that_one_stage_lacks_is_skipped_with_the_reason_while_the_others_run(
    pytester: pytest.Pytester,
) -> None:
    """The stage's tests in the other dtype run, too."""
    result = suite(
        pytester, *KERNELS, "--csa-dtype", "float32,float64", "-k", "inputs and not own-inputs", "-rs"
    )
    result.assert_outcomes(passed=3, skipped=1, deselected=2 * (len(kernel_tests("select", "attend")) - 2))
    result.stdout.fnmatch_lines(["SKIPPED*attend of cli_candidates:kernels does not support float64"])


# The configuration file

SETTINGS = """
[tool.pytest.ini_options]
csa_candidate = "cli_candidates:attend"
csa_stage = "attend"
csa_profile = "tiny"
csa_dtype = "bfloat16,float32"
csa_seed = 5
csa_known = "known.toml"
csa_isolate = false
"""
KNOWN = """
[[known_issue]]
candidate = "cli_candidates:attend"
stage = "attend"
name = "empty"
reason = "slow"
"""


def configured(pytester: pytest.Pytester, settings: str, *options: str) -> pytest.RunResult:
    """Run the suite in a folder whose pyproject.toml has settings, with a file of known issues beside it."""
    pytester.makepyprojecttoml(settings)
    pytester.path.joinpath("known.toml").write_text(KNOWN)
    return suite(pytester, *options)


def test_every_option_is_a_setting_of_the_configuration_file_too(pytester: pytest.Pytester) -> None:
    """The header shows what is in force; known issues are left out, counted and tried, once per subject."""
    result = configured(pytester, SETTINGS, "-k", "specification")
    result.assert_outcomes(passed=2, deselected=2 * (len(STAGES["attend"].checks) - 1))
    result.stdout.fnmatch_lines(
        [
            "csa-spec: candidates cli_candidates:attend; stage attend, layer all, profile tiny, "
            "dtype bfloat16,float32, device cpu, seed 5",
            "cli_candidates:attend attend bfloat16: output matches * with indices empty*",
            "cli_candidates:attend attend float32: output matches * with indices empty*",
            "cli_candidates:attend: known issue of attend: empty: passes now on 20 of 20 cases tried (slow)",
        ]
    )
    assert str(result.stdout).count("known issue of attend") == 1


def test_the_command_line_goes_before_the_configuration_file(pytester: pytest.Pytester) -> None:
    """Option by option; a file of known issues is looked for where the command is run."""
    options = (
        "--csa-dtype",
        "float32",
        "--csa-known",
        "known.toml",
        "--collect-only",
    )
    names = names_of(configured(pytester, SETTINGS, *options, "-q"))
    assert names == [
        f"cli_candidates:attend-attend-float32-{check.name}" for check in STAGES["attend"].checks
    ]


def test_a_file_of_known_issues_lies_beside_the_configuration_file(pytester: pytest.Pytester) -> None:
    """Wherever pytest is run."""
    pytester.makepyprojecttoml(SETTINGS)
    pytester.path.joinpath("known.toml").write_text(KNOWN)
    inner = pytester.mkdir("inner")
    os.chdir(inner)
    result = suite(
        pytester, f"--rootdir={pytester.path}", f"-c{pytester.path}/pyproject.toml", "-k", "memory"
    )
    result.assert_outcomes(passed=2, deselected=2 * (len(STAGES["attend"].checks) - 1))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('csa_stage = "atend"', "unknown stage 'atend'; did you mean attend?"),
        ('csa_seed = "five"', "csa_seed must be a number, not 'five'"),
        ('csa_time_limit = "long"', "csa_time_limit must be a number, not 'long'"),
        ('csa_known = "nothing.toml"', "nothing.toml cannot be read: No such file or directory"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_sentence(
    pytester: pytest.Pytester, line: str, sentence: str
) -> None:
    """Other tests of the project run all the same: nothing is looked at before it is needed."""
    name = line.partition(" ")[0]
    kept = [entry for entry in SETTINGS.splitlines() if not entry.startswith(f"{name} ")]
    isolate = ["csa_isolate = true"] * ("limit" in name)
    kept = [entry for entry in kept if not isolate or not entry.startswith("csa_isolate")]
    result = configured(pytester, "\n".join([*kept, line, *isolate]))
    assert result.ret in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERRUPTED)
    assert sentence in text_of(result)
    assert "Traceback" not in text_of(result)
    assert "plugin.py" not in text_of(result)


def test_a_candidate_of_the_configuration_file_costs_other_tests_nothing(pytester: pytest.Pytester) -> None:
    """It is not imported for them, though it may not even be there."""
    pytester.makepyprojecttoml('[tool.pytest.ini_options]\ncsa_candidate = "nosuch:layer"')
    pytester.makepyfile("def test_nothing():\n    pass\n")
    result = pytester.runpython_c(IMPORTED)
    result.stdout.fnmatch_lines(["code 0 plugin True", "heavy []"])


def test_a_file_of_known_issues_that_cannot_be_used_is_a_usage_error(pytester: pytest.Pytester) -> None:
    """Given on the command line: before anything is collected."""
    result = suite(pytester, *KERNELS, "--csa-known", "nothing.toml")
    assert "nothing.toml cannot be read: No such file or directory" in refusal(result)


# Candidates of a conftest.py


OWN = """
import cli_candidates
from cli_candidates import *


def pytest_csa_candidates(config):
    return {
        "mine": cli_candidates.right,
        "pair": {"attend": cli_candidates.attend, "select": "cli_candidates:selects_the_lowest"},
        "both": {"attend": cli_candidates.attend, "layer": cli_candidates.right},
        "odd": {"attend": cli_candidates.attend, "layers": cli_candidates.right},
        "typo": {"atend": cli_candidates.attend},
        "number": 3,
        "gather": cli_candidates.kernels,
    }
"""


def own(pytester: pytest.Pytester, name: str, *options: str) -> pytest.RunResult:
    """Run the suite on a candidate that the conftest.py of the folder names."""
    pytester.makeconftest(OWN)
    return suite(
        pytester, f"--confcutdir={pytester.path}", "--csa-candidate", name, "--csa-profile", "tiny", *options
    )


def test_a_conftest_names_a_function(pytester: pytest.Pytester) -> None:
    """It is a layer, and goes by the name that it got there."""
    result = own(pytester, "mine", "--csa-layer", "sliding", "-k", "float32-inputs")
    result.assert_outcomes(passed=1, deselected=CHECKS - 1)
    result.stdout.fnmatch_lines(
        ["csa-spec: candidates mine; *", "mine sliding float32: inputs are not mutated *"]
    )


def test_a_conftest_names_stages(pytester: pytest.Pytester) -> None:
    """Functions, or names of functions; each is judged as its stage."""
    result = own(pytester, "pair")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*pair attend float32: inputs are not mutated *"])
    failed = [line for line in result.outlines if line.startswith("FAILED test_")]
    assert failed
    assert all("[pair-select-float32-" in line for line in failed)
    both = names_of(own(pytester, "both", "--collect-only", "-q"))
    subjects = {name.split("-")[1] for name in both}
    assert subjects == {"attend", *map(str, LayerKind)}


def test_a_name_of_a_conftest_goes_before_a_shipped_one(pytester: pytest.Pytester) -> None:
    """Whoever names a candidate means that one; names that it does not give are the command's."""
    names = names_of(own(pytester, "gather", "--collect-only", "-q"))
    assert {name.rpartition("float32-")[0] for name in names} == {"gather-select-", "gather-attend-"}
    own(pytester, "cli_candidates:right", "--csa-layer", "sliding", "-k", "float32-inputs").assert_outcomes(
        passed=1, deselected=CHECKS - 1
    )


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "odd",
            "unknown stage 'layers'; did you mean layer?",
        ),
        (
            "typo",
            "unknown stage 'atend'; did you mean attend?",
        ),
        ("number", "builtins:int offers no stage: it is neither callable nor"),
        ("nosuch", "unknown candidate 'nosuch'"),
    ],
)
def test_what_a_conftest_names_wrongly_is_a_usage_error(
    pytester: pytest.Pytester, name: str, sentence: str
) -> None:
    """As any other name."""
    assert sentence in refusal(own(pytester, name))


# What is refused


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (["--csa-candidate", "nosuch"], "unknown candidate 'nosuch'; choose from transformers, gather, "),
        (["--csa-candidate", "nosuch:layer"], "no module 'nosuch'"),
        (["--csa-candidate", "cli_candidates:Layer"], "cli_candidates:Layer is a class"),
        (["--csa-candidate", "cli_candidates:cuda_only"], "cli_candidates:cuda_only does not run on cpu"),
        (
            ["--csa-profile", "nosuch"],
            "unknown profile 'nosuch'; choose from smoke, default, gpu, thorough",
        ),
        (
            ["--csa-stage", "nosuch"],
            "unknown stage 'nosuch'; choose from compressor, index_scores, select, attend,",
        ),
        (
            ["--csa-candidate", "cli_candidates:kernels", "--csa-stage", "layer"],
            "cli_candidates:kernels does not offer the stage layer; it offers select, attend",
        ),
        (
            ["--csa-candidate", "cli_candidates:kernels", "--csa-stage", "attend", "--csa-dtype", "float64"],
            "attend of cli_candidates:kernels does not support float64",
        ),
        (["--csa-layer", "nosuch"], "unknown layer 'nosuch'"),
        (["--csa-dtype", "float32,nosuch"], "unknown dtype 'nosuch'"),
        (["--csa-device", "nosuch"], "unknown device 'nosuch'; choose from cpu, cuda"),
        (["--csa-device", "cuda"], "no CUDA device"),
        (["--csa-profile", "nosuch", "-n", "2"], "unknown profile 'nosuch'"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_what_cannot_be_used_is_a_usage_error_with_one_sentence(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: list[str], fragment: str
) -> None:
    """Exit code 4, as for pytest's own options; under xdist before any worker is started."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    candidate = [] if "--csa-candidate" in options else ["--csa-candidate", "cli_candidates:right"]
    assert fragment in refusal(suite(pytester, *candidate, *options))


def test_without_a_candidate_the_suite_says_what_to_give(pytester: pytest.Pytester) -> None:
    """``--noconftest``: in this checkout the repository's own conftest.py would fill it in."""
    result = suite(pytester, "--noconftest")
    assert "say what to check with --csa-candidate NAME" in refusal(result)


def test_a_seed_that_is_no_number_is_refused_by_pytest_itself(pytester: pytest.Pytester) -> None:
    """As any option of a wrong type."""
    result = suite(pytester, "--csa-candidate", "cli_candidates:right", "--csa-seed", "x")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--csa-seed: invalid int value: 'x'" in text_of(result)


def test_the_help_names_everything_that_options_can_be(pytester: pytest.Pytester) -> None:
    """From the lists that the options are held against."""
    text = " ".join(text_of(pytester.runpytest_inprocess("--help")).split())
    for option, values in (
        ("stage=NAME", STAGES),
        ("layer=KIND", LayerKind),
        ("profile=NAME", [name for name in PROFILES if name != "tiny"]),
        ("dtype=NAME[,NAME]", DTYPES),
        ("device=NAME", DEVICES),
    ):
        assert f"--csa-{option} {', '.join(values)}" in text


# Sessions in processes of their own

IMPORTED = """
import sys, pytest
code = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider"])
print("code", int(code), "plugin", "csa_spec.plugin" in sys.modules)
print("heavy", [name for name in ("torch", "transformers") if name in sys.modules])
"""


def test_an_installed_plugin_costs_other_projects_nothing(pytester: pytest.Pytester) -> None:
    """A session that does not use it does not import torch for it, and prints nothing of it."""
    pytester.makepyfile("def test_nothing():\n    pass\n")
    result = pytester.runpython_c(IMPORTED)
    result.stdout.fnmatch_lines(["code 0 plugin True", "heavy []"])
    assert "csa-spec" not in text_of(result)


def test_it_runs_under_xdist_and_sums_up_in_one_place(pytester: pytest.Pytester) -> None:
    """Two workers; the controller prints the header and what was covered."""
    pytester.makeconftest(ADD_TINY_PROFILE)
    command = [
        sys.executable,
        "-m",
        "pytest",
        *SUITE,
        "--csa-candidate",
        "cli_candidates:right",
        *TINY,
        "-n",
        "2",
    ]
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        command, cwd=pytester.path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "csa-spec: candidates cli_candidates:right; stage all, layer sliding, profile tiny" in done.stdout
    covered = done.stdout.split("csa-spec: what was covered")[1].splitlines()
    assert (
        len([line for line in covered if line.startswith("cli_candidates:right sliding float32: ")])
        == CHECKS - 2
    )
    for undeclared in ("gradients", "declared limits"):
        assert undeclared not in "".join(covered)
    outcomes = pytest.RunResult.parse_summary_nouns(covered)
    assert set(outcomes) <= {"passed", "skipped"}  # a single drawn case may give a law nothing to do
    assert sum(outcomes.values()) == CHECKS


def test_a_wheel_holds_the_package_and_nothing_of_the_repository(wheel: Path) -> None:
    """One import name; the mapped rooms; the marker for type checkers; ready vectors; no conftest."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    rooms = {name.partition("/")[0] for name in names}
    assert {room for room in rooms if not room.endswith(".dist-info")} == {"csa_spec"}
    for name in (
        "py.typed",
        "conformance/test_conformance.py",
        "strategies/layer.py",
        "stages/layer/stage.py",
        "spec/layer.py",
        "plugin.py",
    ):
        assert f"csa_spec/{name}" in names
    modules = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "csa_spec").rglob("*.py")}
    assert modules <= set(names)
    ready = "csa_spec/vectors/ready/"
    others = [name for name in names if not name.startswith(ready)]
    assert [name for name in others if "conftest" in name or name.endswith((".safetensors", ".pyc"))] == []
    assert f"{ready}index.json" in names


CONFTEST = """
import csa_spec, csa_spec.conformance, csa_spec.plugin, csa_spec.strategies
from csa_spec.spec import LayerWeights, attend_batch


def layer(hidden, weights, geometry, positions, documents):
    exact = LayerWeights.from_named({name: tensor.double() for name, tensor in weights.named().items()})
    return attend_batch(hidden.double(), exact, geometry, positions, documents).out.to(hidden.dtype)


def pytest_report_header(config):
    modules = (csa_spec, csa_spec.plugin, csa_spec.conformance, csa_spec.strategies)
    return ["imported " + module.__file__ for module in modules]
"""


def test_an_installed_wheel_checks_a_candidate_of_the_users_conftest(
    wheel: Path, pytester: pytest.Pytester
) -> None:
    """From a folder that knows nothing of this repository; without a candidate it says what to give."""
    site = pytester.path / "site"
    pip("install", "--no-deps", "--target", str(site), str(wheel))
    folder = pytester.mkdir("project")
    (folder / "conftest.py").write_text(CONFTEST + ADD_TINY_PROFILE)

    def session(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pytest", *SUITE, *options],
            cwd=folder, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip

    done = session("--csa-candidate", "conftest:layer", *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    package = site / "csa_spec"
    imported = {
        line.removeprefix("imported ") for line in done.stdout.splitlines() if line.startswith("imported ")
    }
    places = ("__init__.py", "plugin.py", "conformance/__init__.py", "strategies/__init__.py")
    assert imported == {str(package / place) for place in places}
    outcomes = pytest.RunResult.parse_summary_nouns(done.stdout.splitlines())
    assert set(outcomes) <= {"passed", "skipped"}
    assert sum(outcomes.values()) == CHECKS
    assert "csa-spec: what was covered" in done.stdout

    done = session()
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "say what to check with --csa-candidate NAME" in done.stdout + done.stderr
    assert "_hookexec" not in done.stdout + done.stderr
