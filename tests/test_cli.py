"""The command line: exit codes, one clear sentence for bad input, the JSON report, recorded figures."""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.drawing import leave_out_corners
from safetensors.torch import load_file, save_file
from torch import Tensor

from csa_spec.cli import main
from csa_spec.profiles import PROFILES, Profile

TESTS = Path(__file__).parent
OFFICIAL = TESTS / "vectors" / "official"
TINY = ("--profile", "tiny", "--layer", "sliding")


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: object
    out: str
    err: str

    @property
    def text(self) -> str:
        """Return everything that it printed."""
        return self.out + self.err


def run(*arguments: str | Path) -> Outcome:
    """Run the command in this process; what argparse or a candidate exits with counts as its code."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code: object = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
    return Outcome(code, out.getvalue(), err.getvalue())


def refusal(*arguments: str | Path) -> str:
    """Run a command that must be refused with exit code 2 and one sentence; return the sentence."""
    outcome = run(*arguments)
    assert "Traceback" not in outcome.err, outcome.err
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    line, *trace = outcome.err.splitlines()
    assert all(more.startswith("  ") for more in trace)  # where the candidate's own code failed
    assert line.startswith("csa-spec: ")
    return line.removeprefix("csa-spec: ")


def spawn(*arguments: str | Path, folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, where ``cli_candidates`` can be imported."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((*options.pop("paths", ()), str(TESTS)))}
    return subprocess.run(
        [str(argument) for argument in arguments],
        cwd=folder, env=environment, text=True, capture_output=True, timeout=120, check=False, **options,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run each test in an empty folder, with a profile that draws hardly anything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(PROFILES, "tiny", TINY_PROFILE)
    return tmp_path


TINY_PROFILE = Profile("tiny", light=2, medium=2, heavy=2, law=1, costly=1, patience=float("inf"))


# Verdicts


def test_a_right_candidate_is_conformant() -> None:
    """Exit 0, and the verdict is the last line."""
    outcome = run("check", "cli_candidates:right", *TINY)
    assert outcome.code == 0
    assert outcome.out.endswith("cli_candidates:right: CONFORMANT for sliding\n")
    assert outcome.err == "checking sliding float32 ...\n"


def test_layers_that_an_object_does_not_offer_are_named_and_the_rest_decides() -> None:
    """Of ``--layer all`` only sliding is run."""
    outcome = run("check", "cli_candidates:sliding_only", "--profile", "tiny")
    assert outcome.code == 0
    for kind in ("csa", "hca"):
        assert f"not checked: cli_candidates:sliding_only does not offer {kind} layers\n" in outcome.out


def test_a_run_that_misses_a_required_kind_is_inconclusive_and_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two drawn cases alone do not reach everything."""
    leave_out_corners(monkeypatch)
    outcome = run("check", "cli_candidates:right", *TINY)
    assert outcome.code == 2
    assert "inconclusive for sliding in float32: no case of these kinds was reached: " in outcome.out
    assert "extreme sink" in outcome.out
    assert "INCONCLUSIVE" in outcome.out.splitlines()[-1]


def test_a_candidate_that_raises_is_not_conformant_and_its_words_are_shown() -> None:
    """Its exception is a finding, not an error of the command."""
    outcome = run("check", "cli_candidates:raises", *TINY)
    assert outcome.code == 1
    assert "RuntimeError: no kernel for this machine see the log" in outcome.out
    assert "Traceback" not in outcome.text


def test_each_failure_is_printed_once_and_the_first_may_be_the_last() -> None:
    """The verdict at the end does not print them again."""
    outcome = run("check", "cli_candidates:raises", "--profile", "tiny")
    assert outcome.out.count("FAILED csa: ") == outcome.out.count("FAILED hca: ") == 1
    assert outcome.out.count("RuntimeError: no kernel") == 6  # the sentence, and what the diagnosis says
    outcome = run("check", "cli_candidates:raises", "--profile", "tiny", "-x")
    assert outcome.code == 1
    assert outcome.out.count("FAILED ") == 1
    assert "not finished: it stopped at the first failure, as it was told to" in outcome.out
    assert "NOT CONFORMANT for csa" in outcome.out.splitlines()[-1]


def test_jobs_must_be_at_least_one() -> None:
    """One sentence, like all that cannot be used."""
    assert "jobs must be at least 1, not 0" in refusal("check", "cli_candidates:right", "--jobs", "0")


def test_a_process_of_jobs_that_is_ended_never_looks_like_success() -> None:
    """An exit in C ends the process that checks the candidate."""
    sentence = refusal("check", "cli_candidates:leaves", "--jobs", "2", "--profile", "smoke")
    assert "a process of --jobs was ended with status 0" in sentence


def test_a_call_that_hangs_in_a_process_of_jobs_ends_the_run() -> None:
    """Whose sentence names the call."""
    arguments = ("--jobs", "2", "--profile", "smoke", "--time-limit", "1")
    sentence = refusal("check", "cli_candidates:sleeps", *arguments)
    assert "a call did not return (no answer within 1 s, in sleeps (cli_candidates.py:" in sentence
    assert "in check 'specification' of " in sentence
    assert sentence.endswith("--isolate makes that a failure")


def test_a_candidate_that_ends_the_process_is_not_conformant() -> None:
    """``sys.exit(0)`` inside a candidate must not look like success."""
    outcome = run("check", "cli_candidates:exits", *TINY)
    assert outcome.code == 1
    assert "SystemExit" in outcome.out
    assert run("case", "cli_candidates:exits", "sliding rows=1").code == 1


def test_an_internal_error_is_not_blamed_on_the_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 3, with the traceback for the report."""

    def broken(*arguments: object, **options: object) -> list[object]:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("csa_spec.target._drawn", broken)
    outcome = run("check", "cli_candidates:right", *TINY)
    assert outcome.code == 3
    assert "ZeroDivisionError: ours" in outcome.err
    assert outcome.err.endswith("csa-spec: internal error, not the candidate's fault; please report it\n")


# Candidates that cannot be used


NAMES = {
    "nosuch": ["unknown candidate 'nosuch'", "transformers", "package.module:object"],
    "Transformers": ["unknown candidate 'Transformers'"],
    "": ["unknown candidate ''"],
    "cli_candidates": ["unknown candidate 'cli_candidates'", "package.module:object"],
    "cli_candidates:": ["'cli_candidates:' is not of the form package.module:object"],
    ":right": ["':right' is not of the form package.module:object"],
    "nosuch:layer": ["no module 'nosuch'"],
    "nosuch.deeper:layer": ["no module 'nosuch'"],
    "cli_candidates:absent": ["cli_candidates", "no attribute 'absent'"],
    "cli_candidates:right.absent": ["no attribute 'right.absent'"],
    "cli_candidates:Layer": ["cli_candidates:Layer is a class", "instance"],
    "cli_candidates:number": ["cli_candidates:number offers no stage", "callable", "int"],
    "cli_candidates:undeclared": ["cli_candidates:undeclared.capabilities", "Capabilities", "dict"],
    "cli_candidates:cuda_only": ["cli_candidates:cuda_only does not run on cpu"],
    "cli_candidates:lazy": ["cli_candidates:lazy", "RuntimeError", "lazy import failed"],
    "cli_candidates:no_modes": ["no modes"],
    "cli_candidates:no_kinds": ["cli_candidates:no_kinds"],
    "cli_candidates:no_ratios": ["cli_candidates:no_ratios", "ratio"],
    "./cli_candidates.py:right": ["./cli_candidates.py", "package.module:object"],
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_candidate_is_refused(name: str) -> None:
    """The sentence says what is wrong with it."""
    sentence = refusal("check", name, "--profile", "tiny")
    for fragment in NAMES[name]:
        assert fragment in sentence


MODULES = {
    "import": ("from torch import nothing_of_the_kind", ["ImportError", "nothing_of_the_kind"]),
    "syntax": ("def layer(:", ["SyntaxError", "line 1"]),
    "raise": ("raise RuntimeError('first line\\nsecond line')", ["RuntimeError", "first line"]),
    "exit": ("import sys; sys.exit('no GPU found')", ["no GPU found"]),
    "exit_0": ("import sys; sys.exit(0)", ["SystemExit"]),
    "package": ("import a_package_that_nobody_has", ["'a_package_that_nobody_has'"]),
    "submodule": ("import torch.nothing_of_the_kind", ["'torch.nothing_of_the_kind'"]),
    "getattr": (
        "def __getattr__(name):\n    raise RuntimeError('lazy ' + name)",
        ["RuntimeError", "lazy layer"],
    ),
}


@pytest.mark.parametrize("reason", MODULES)
def test_a_module_that_fails_is_refused_with_its_reason(folder: Path, reason: str) -> None:
    """It lies in the folder that the command is run in, as a user's does."""
    name = f"broken_by_{reason}"
    text, fragments = MODULES[reason]
    (folder / f"{name}.py").write_text(text)
    importlib.invalidate_caches()
    sentence = refusal("check", f"{name}:layer")
    assert name in sentence
    for fragment in fragments:
        assert fragment in sentence
    assert f"no module '{name}'" not in sentence


def test_a_package_missing_further_down_is_the_one_that_is_named(folder: Path) -> None:
    """Neither the module asked for nor the one between them is missing."""
    (folder / "chain_upper.py").write_text("import chain_lower")
    (folder / "chain_lower.py").write_text("import a_package_that_nobody_has")
    importlib.invalidate_caches()
    sentence = refusal("check", "chain_upper:layer")
    failed = "importing chain_upper failed: ModuleNotFoundError: No module named 'a_package_that_nobody_has'"
    assert sentence.splitlines()[0] == f"{failed}, at chain_lower.py:1 in <module>"


def test_a_submodule_that_its_package_lacks_is_named_in_full(folder: Path) -> None:
    """The package is there; the sentence must not say that it is not."""
    (folder / "present_package").mkdir()
    (folder / "present_package" / "__init__.py").touch()
    importlib.invalidate_caches()
    assert "'present_package.absent'" in refusal("check", "present_package.absent:layer")


ABSENT = "raise ModuleNotFoundError(\"No module named 'transformers'\", name='transformers')"
STUBS = {
    "absent": (ABSENT, ["transformers is not installed", "pip install transformers"]),
    "old": ("__version__ = '4.40.0'", ["transformers 4.40.0 has no DeepSeek-V4", "5.8.0"]),
    "failing": (
        "raise RuntimeError('tokenizers>=1 is needed\\nhere')",
        ["RuntimeError", "tokenizers>=1 is needed"],
    ),
    "needy": ("import a_package_that_nobody_has", ["'a_package_that_nobody_has'"]),
    "exiting": ("raise SystemExit(0)", ["SystemExit"]),
    "strange": ("__version__ = '9.0'", ["transformers 9.0", "DeepseekV4Model"]),
}


@pytest.fixture
def no_transformers() -> Iterator[None]:
    """Forget an imported transformers, and afterwards any stub in its place."""
    ours = [name for name in sys.modules if name.partition(".")[0] == "transformers"]
    kept = {name: sys.modules.pop(name) for name in ours}
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        del sys.modules[name]
    sys.modules.update(kept)


@pytest.mark.usefixtures("no_transformers")
@pytest.mark.parametrize("stub", STUBS)
def test_transformers_that_cannot_be_used_are_refused(folder: Path, stub: str) -> None:
    """Not installed, too old, broken, or changed beyond what the adapter knows."""
    text, fragments = STUBS[stub]
    package = folder / "transformers"
    package.mkdir()
    (package / "__init__.py").write_text(text)
    if stub == "old":
        (package / "models").mkdir()
        (package / "models" / "__init__.py").touch()
    if stub == "strange":
        model = package / "models" / "deepseek_v4"
        model.mkdir(parents=True)
        for name in ("__init__", "modeling_deepseek_v4", "configuration_deepseek_v4"):
            (model / f"{name}.py").touch()
        (package / "models" / "__init__.py").touch()
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    sentence = refusal("check", "transformers")
    for fragment in fragments:
        assert fragment in sentence


# Options that cannot be used


OPTIONS = {
    ("--stage", "nosuch"): [
        "unknown stage 'nosuch'",
        "compressor, index_scores, select, attend, layer, cache, all",
    ],
    ("--stage", "Layer"): ["unknown stage 'Layer'"],
    ("--stage", ""): ["unknown stage ''"],
    ("--layer", "nosuch"): ["unknown layer 'nosuch'", "csa, hca, sliding, all"],
    ("--layer", "CSA"): ["unknown layer 'CSA'"],
    ("--layer", ""): ["unknown layer ''"],
    ("--profile", "nosuch"): ["unknown profile 'nosuch'", "smoke, default, gpu, thorough"],
    ("--dtype", "nosuch"): ["unknown dtype 'nosuch'", "float32, float64, bfloat16, float16"],
    ("--dtype", "torch.float32"): ["unknown dtype 'torch.float32'"],
    ("--dtype", ""): ["unknown dtype ''"],
    ("--device", "nosuch"): ["unknown device 'nosuch'", "cpu, cuda"],
    ("--device", "cuda:0"): ["unknown device 'cuda:0'; write cuda", "CUDA_VISIBLE_DEVICES=0"],
}


@pytest.mark.parametrize(("option", "value"), OPTIONS)
def test_an_option_that_is_not_known_is_refused_with_what_is(option: str, value: str) -> None:
    """Before anything is run."""
    sentence = refusal("check", "cli_candidates:exits", option, value)
    for fragment in OPTIONS[option, value]:
        assert fragment in sentence


@pytest.mark.parametrize("dtypes", ["float32,nosuch", "float32,", "float32,float32x,float64"])
def test_a_list_of_dtypes_is_refused_before_the_first_is_run(dtypes: str) -> None:
    """Otherwise the mistake shows after minutes."""
    assert "unknown dtype" in refusal("check", "cli_candidates:right", *TINY, "--dtype", dtypes)


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """For whole runs and for single cases."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in refusal("check", "cli_candidates:right", "--device", "cuda")
    assert "no CUDA device" in refusal("case", "cli_candidates:right", "csa device=cuda")


def test_what_a_candidate_does_not_declare_is_refused() -> None:
    """A layer kind and a dtype asked for by name."""
    assert refusal("check", "cli_candidates:sliding_only", "--layer", "hca") == (
        "cli_candidates:sliding_only does not offer hca layers; it offers sliding"
    )
    assert refusal("check", "cli_candidates:float32_only", "--dtype", "float64", *TINY) == (
        "cli_candidates:float32_only does not support float64; it supports float32 on cpu, cuda"
    )
    assert refusal("check", "cli_candidates:kernels", "--stage", "attend", "--dtype", "float64", *TINY) == (
        "attend of cli_candidates:kernels does not support float64; it supports float32 on cpu, cuda"
    )
    assert refusal("check", "cli_candidates:kernels", "--stage", "compressor") == (
        "cli_candidates:kernels does not offer the stage compressor; it offers select, attend"
    )
    assert refusal("check", "cli_candidates:layer_object", "--stage", "attend") == (
        "cli_candidates:layer_object does not offer the stage attend; it offers layer"
    )
    assert refusal("case", "cli_candidates:layer_object", "attend n=1") == (
        "cli_candidates:layer_object does not offer the stage attend; it offers layer"
    )


@pytest.mark.parametrize(
    "arguments",
    [[], ["nosuch"], ["check"], ["case", "cli_candidates:right"], ["check", "cli_candidates:right", "--seed", "x"],
     ["check", "cli_candidates:right", "--nosuch"], ["vectors"]],
)  # fmt: skip
def test_a_command_line_that_cannot_be_read_shows_the_usage(arguments: list[str]) -> None:
    """Exit 2, the usage, and one line that says what is wrong."""
    outcome = run(*arguments)
    assert outcome.code == 2
    lines = outcome.err.splitlines()
    assert lines[0].startswith("usage: csa-spec")
    assert lines[-1].startswith("csa-spec")
    assert "error: " in lines[-1]


# Single stages


def test_a_function_is_the_stage_that_is_named() -> None:
    """Exit 0, progress and verdict by the stage's name."""
    outcome = run("check", "cli_candidates:attend", "--stage", "attend", "--profile", "tiny")
    assert (outcome.code, outcome.err) == (0, "checking attend float32 ...\n")
    assert outcome.out.endswith("\ncli_candidates:attend: CONFORMANT for attend\n")


def test_of_several_stages_each_is_checked_and_the_wrong_one_is_named(folder: Path) -> None:
    """In the order of the data; ``--stage`` picks one."""
    imports = "import sys\nfrom cli_candidates import attend, selects_the_lowest as select\n"
    (folder / "two_stages.py").write_text(f"{imports}both = sys.modules[__name__]\n")
    importlib.invalidate_caches()
    outcome = run("check", "two_stages:both", "--profile", "tiny")
    assert outcome.code == 1
    assert outcome.err == "checking select float32 ...\nchecking attend float32 ...\n"
    assert outcome.out.endswith("two_stages:both: NOT CONFORMANT for select (nothing found for attend)\n")
    assert 'check_case("two_stages:both", "select ' in outcome.out
    assert run("check", "two_stages:both", "--stage", "attend", "--profile", "tiny").code == 0


def test_a_dtype_that_one_stage_lacks_is_declined_while_the_others_run(folder: Path) -> None:
    """It is named in the text and in the JSON report, and is no reason to fail."""
    path = folder / "report.json"
    options = ("--dtype", "float32,float64", "--profile", "tiny", "--json", path)
    outcome = run("check", "cli_candidates:kernels", *options)
    assert outcome.code == 0, outcome.text
    reason = "attend of cli_candidates:kernels does not support float64"
    assert f"not checked: {reason}\n" in outcome.out
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["declined"] == {"attend-float64": reason}
    ran = {(result["stage"], result["layer_kind"], result["dtype"]) for result in data["results"]}
    assert ran == {("select", None, "float32"), ("select", None, "float64"), ("attend", None, "float32")}
    assert {missing["subject"] for missing in data["missing"]} == {"select", "attend"}


def test_a_case_that_the_candidate_declares_unsupported_says_so() -> None:
    """On a line of its own, before the outcome."""
    outcome = run("case", "cli_candidates:sliding_only", "csa rows=1")
    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        "cli_candidates:sliding_only declares that it does not support csa layers; run all the same:",
        "cli_candidates:sliding_only passes specification on: csa rows=1",
    ]


def test_a_case_of_a_stage_is_tried_and_explained() -> None:
    """The first word of the case says what a bare function is."""
    line = "select S=4 T=4 k=1 values=gaussian"
    assert (
        run("case", "cli_candidates:select", line).out
        == f"cli_candidates:select passes specification on: {line}\n"
    )
    outcome = run("case", "cli_candidates:selects_the_lowest", line)
    assert outcome.code == 1
    assert "A query leaves out an entry that scores higher than one that it selects:" in outcome.out
    code = "\n".join(line.strip() for line in outcome.out.split("to see it again")[1].splitlines())
    with pytest.raises(AssertionError, match="scores higher"):
        exec(code)


# The JSON report


def report(path: Path, candidate: str, *options: str) -> tuple[Outcome, dict[str, Any]]:
    """Run a check; return its outcome and its report, which must be strict JSON."""

    def refuse(constant: str) -> object:
        raise AssertionError(f"{constant} is not JSON")

    outcome = run("check", candidate, *TINY, *options, "--json", path)
    return outcome, json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def without_times(data: Any) -> Any:
    """Return JSON data without the fields that hold times."""
    if isinstance(data, dict):
        return {key: without_times(value) for key, value in data.items() if key != "seconds"}
    return [without_times(value) for value in data] if isinstance(data, list) else data


def test_a_report_says_what_was_run_and_how_it_ended(folder: Path) -> None:
    """Version, verdict and counts; the counts are those of the text."""
    outcome, data = report(folder / "report.json", "cli_candidates:right", "--seed", "3")
    assert data["csa_spec_report"] == 3
    assert (data["verdict"], data["exit_code"], outcome.code) == ("conformant", 0, 0)
    assert (data["candidate"], data["profile"], data["dtypes"]) == (
        "cli_candidates:right",
        "tiny",
        ["float32"],
    )
    assert (data["device"], data["seed"]) == ("cpu", 3)
    assert data["environment"]["torch"] == torch.__version__
    assert {(result["stage"], result["layer_kind"]) for result in data["results"]} == {("layer", "sliding")}
    for result in data["results"]:
        row = next(line for line in outcome.out.splitlines() if line.startswith(result["property"]))
        assert row.split()[-2:] == ([str(result["cases"]), "ok"] if result["cases"] else ["no", "case"])
        assert (result["failing_cases"], result["failures"]) == (0, [])
        assert sum(regime["cases"] for regime in result["regimes"].values()) == result["cases"]
    first = data["results"][0]
    assert first["check"] == "specification"
    assert first["queries"] > first["cases"] > 20
    assert all(first["reached"].values())
    assert os.listdir(folder) == ["report.json"]


def test_every_failure_in_a_report_can_be_tried_again(folder: Path) -> None:
    """``csa-spec case`` with its line and its check fails too, and shows the same words."""
    outcome, data = report(folder / "report.json", "cli_candidates:raises")
    assert (data["verdict"], data["exit_code"], outcome.code) == ("not conformant", 1, 1)
    failing = [(result["check"], failure) for result in data["results"] for failure in result["failures"]]
    assert [check for check, _ in failing] == ["specification"]
    assert {result["state"] for result in data["results"][1:]} <= {"not judged", "no case"}
    for check, failure in failing:
        again = run("case", "cli_candidates:raises", failure["case_line"], "--check", check)
        assert again.code == 1
        assert failure["kind"] == "CandidateRaised[RuntimeError]"
        assert " ".join(failure["detail"].split()) in again.out


def test_wrong_numbers_are_reported_with_their_place(folder: Path) -> None:
    """Expected and got, as JSON, also where they are no numbers."""
    _, data = report(folder / "report.json", "cli_candidates:not_finite")
    failure = data["results"][0]["failures"][0]
    assert failure["kind"] == "NotFinite"
    assert (failure["row"], failure["column"], failure["query"]) == (0, 0, 0)
    assert all(isinstance(number, float) for number in failure["expected"])
    assert set(failure["got"]) == {"nan"}
    assert failure["error_over_budget"] == "inf"
    assert run("case", "cli_candidates:not_finite", failure["case_line"]).code == 1


def test_the_same_seed_gives_the_same_report_and_another_seed_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Apart from times. Without corner cases, so that what is drawn decides."""
    leave_out_corners(monkeypatch)
    first, second, other = (
        report(folder / f"{number}.json", "cli_candidates:right", "--seed", seed)[1]
        for number, seed in enumerate(("7", "7", "8"))
    )
    assert without_times(first) == without_times(second)
    assert without_times(first["results"]) != without_times(other["results"])


def test_an_old_report_is_replaced(folder: Path) -> None:
    """By a whole new one."""
    path = folder / "report.json"
    path.write_text("old")
    assert report(path, "cli_candidates:raises")[1]["exit_code"] == 1


@pytest.mark.parametrize("name", ["nosuch/report.json", "file/report.json", "folder", ".", ""])
def test_a_place_where_no_report_can_be_written_is_refused_before_the_run(folder: Path, name: str) -> None:
    """A missing folder, a file in place of the folder, and a folder in place of the file."""
    (folder / "folder").mkdir()
    (folder / "file").touch()
    assert "--json" in refusal("check", "cli_candidates:exits", *TINY, "--json", name)
    assert {path.name for path in folder.iterdir()} == {"folder", "file"}


def test_a_report_never_takes_the_place_of_a_device(folder: Path) -> None:
    """``--json /dev/null`` as root must not turn the device into a file; a pipe stands in for it here."""
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # whoever writes to it finds a reader
    try:
        outcome = run("check", "cli_candidates:raises", *TINY, "--json", pipe)
        assert stat.S_ISFIFO(pipe.stat().st_mode)
        assert "Traceback" not in outcome.err
    finally:
        os.close(reader)


def test_reports_are_written_in_the_format_of_their_suffix(folder: Path) -> None:
    """Several at once, also beside the options that name a format; an unknown suffix is refused first."""
    names = ("a.json", "b.JSON", "page.html", "comment.md", "junit.xml")
    options = [word for name in names for word in ("--report", name)]
    assert run("check", "cli_candidates:raises", *TINY, *options, "--json", "report").code == 1
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in (*names, "report")}
    assert texts["a.json"] == texts["b.JSON"] == texts["report"]
    assert json.loads(texts["report"])["verdict"] == "not conformant"
    assert texts["page.html"].startswith("<!DOCTYPE html>")
    assert texts["comment.md"].startswith("**NOT CONFORMANT**")
    assert "<failure " in texts["junit.xml"]
    said = refusal("check", "cli_candidates:exits", *TINY, "--report", "new.json", "--report", "new.pdf")
    assert said == "--report: no format has the suffix of new.pdf; choose from .json, .html, .md, .xml"
    assert not list(folder.glob("new.*"))


# Single cases


def test_a_case_that_passes_says_so() -> None:
    """Exit 0; every kind of word is read."""
    line = "csa m=2 k=2 W=3 E=4 H=2 D=4 R=2 yarn=4/64/32/1 rows=2<5@8,3+4 values=large-logits sinks=extreme seed=3"
    outcome = run("case", "cli_candidates:right", line)
    assert outcome.code == 0
    assert outcome.out == f"cli_candidates:right passes specification on: {line}\n"


def test_a_case_that_fails_is_explained_and_its_code_runs() -> None:
    """What it prints to see it again raises the same failure."""
    outcome = run("case", "cli_candidates:leaky", "hca m=3 rows=4")
    assert outcome.code == 1
    assert "Output depends on what it must not depend on:" in outcome.out
    code = "\n".join(line.strip() for line in outcome.out.split("to see it again")[1].splitlines())
    with pytest.raises(AssertionError, match="must not depend on"):
        exec(code)


def test_a_candidate_with_a_name_of_its_own_can_be_tried_again() -> None:
    """The printed call must name what was given on the command line, not only what it calls itself."""
    outcome = run("case", "cli_candidates:named", "hca m=3 rows=4")
    assert outcome.code == 1
    assert 'check_case("cli_candidates:named", ' in outcome.out


def test_a_law_is_tried_on_a_case_by_its_name() -> None:
    """Right ones hold; a leak breaks the law of the future."""
    assert run("case", "cli_candidates:right", "hca m=2 rows=4,3", "--check", "rows").code == 0
    # The seed decides where the batch is cut: here between the two tokens of a block.
    outcome = run("case", "cli_candidates:leaky", "hca m=2 rows=2", "--check", "future")
    assert outcome.code == 1
    assert 'check="future"' in outcome.out


def test_a_case_that_gives_a_law_nothing_to_do_does_not_pass() -> None:
    """One row cannot interact with others: exit 2, not a green line."""
    outcome = run("case", "cli_candidates:right", "csa rows=1", "--check", "rows")
    assert outcome.code == 2
    assert "passes" not in outcome.out


LINES = {
    "": [
        "a case starts with compressor, index_scores, select, attend, csa, hca, sliding, cache, not with ''"
    ],
    "dense rows=4": ["a case starts with ", "csa, hca, sliding, ", ", not with 'dense'"],
    "layer rows=4": ["a case starts with ", "csa, hca, sliding, ", ", not with 'layer'"],
    "attend rows=4": ["'rows=4' is not part of a case"],
    "attend banana": ["'banana' is not part of a case"],
    "attend n=x": ["'n=x'"],
    "select k=-1": ["k (picks at most)", "at least 0"],
    "csa banana=4": ["'banana=4' is not part of a case"],
    "csa banana": ["'banana' is not part of a case"],
    "csa m=x": ["'m=x'"],
    "csa m": ["'m'"],
    "csa m=0": ["m (compression ratio)", "at least 1, not 0"],
    "csa R=3": ["rope_dim 3 must be even"],
    "csa H=3 groups=2": ["o_groups 2 must divide heads 3"],
    "csa eps=0": ["norm_eps"],
    "csa yarn=1": ["'yarn=1'"],
    "csa yarn=0/64/32/1": ["YaRN needs a positive factor"],
    "csa yarn=4/64/1/32": ["YaRN needs beta_fast > beta_slow"],
    "csa yarn=nan/64/32/1": ["yarn has nan"],
    "csa rows=": ["'' is not a row"],
    "csa rows=0": ["row 0"],
    "csa rows=-1": ["'-1' is not a row"],
    "csa rows=3+": ["'3+' is not a row"],
    "csa values=odd": ["unknown values 'odd'", "integers, gaussian, large-logits"],
    "csa scores=odd": ["scores 'odd'"],
    "csa sinks=odd": ["sinks 'odd'"],
    "csa dtype=float8": ["dtype 'float8'"],
    "csa device=tpu": ["device 'tpu'"],
    "csa seed=x": ["'seed=x'"],
    "csa mode=cache": ["no mode 'cache'"],
    "csa m=2 m=3": ["m"],
}


@pytest.mark.parametrize("line", LINES)
def test_a_case_that_cannot_be_read_is_refused(line: str) -> None:
    """The sentence shows the word or the field."""
    sentence = refusal("case", "cli_candidates:right", line)
    for fragment in LINES[line]:
        assert fragment in sentence


def test_a_check_that_is_not_known_is_refused_with_those_that_are() -> None:
    """And so is a candidate, before the case is read."""
    sentence = refusal("case", "cli_candidates:right", "csa", "--check", "nosuch")
    assert "unknown check 'nosuch'" in sentence
    assert "specification, future, rows" in sentence
    assert "unknown candidate" in refusal("case", "nosuch", "csa")


# Recorded figures

Index = list[Any]
Tensors = dict[str, Tensor]
SLIDING = "sliding_window8.safetensors"


class Recorded:
    """A small copy of the official figures, to be changed: the sliding layer, one row and two rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "vectors"
        self.folder.mkdir()
        index = json.loads((OFFICIAL / "index.json").read_text(encoding="utf-8"))
        (self.entry,) = (entry for entry in index if entry["file"] == SLIDING)
        self.entry["cases"] = [case for case in self.entry["cases"] if case["case"] in (1, 2)]
        self.tensors = load_file(OFFICIAL / SLIDING)

    def write(self, index: object = None) -> Path:
        """Write the folder; return it."""
        save_file(
            {name: tensor.contiguous() for name, tensor in self.tensors.items()}, self.folder / SLIDING
        )
        text = json.dumps([self.entry] if index is None else index)
        (self.folder / "index.json").write_text(text, encoding="utf-8")
        return self.folder


@pytest.fixture
def recorded(folder: Path) -> Recorded:
    """Return a copy of some official figures."""
    return Recorded(folder)


def test_the_official_figures_agree() -> None:
    """Every case of every file that the index lists."""
    index = json.loads((OFFICIAL / "index.json").read_text(encoding="utf-8"))
    cases = sum(len(entry["cases"]) for entry in index)
    assert (len(index), cases) == (7, 50)
    outcome = run("vectors", OFFICIAL)
    assert outcome.code == 0
    assert outcome.out.endswith(f"\n{cases} of {cases} cases agree within 2e-05\n")
    for entry in index:
        (line,) = (line for line in outcome.out.splitlines() if line.startswith(entry["file"]))
        assert f" {len(entry['cases'])} cases agree" in line


def test_an_attend_is_held_against_the_official_core(recorded: Recorded) -> None:
    """In place of the specification; what is wrong with the folder, or with the name, is said as ever."""
    outcome = run("vectors", recorded.write(), "--attend", "cli_candidates:attend")
    assert (outcome.code, outcome.out.splitlines()[-1]) == (0, "2 of 2 cases agree within 2e-05")
    assert "cli_candidates:layer_object does not offer the stage attend" in refusal(
        "vectors", recorded.folder, "--attend", "cli_candidates:layer_object"
    )
    recorded.tensors["case2.core.o"][0, 0, 0, 0] += 1e-3
    outcome = run("vectors", recorded.write(), "--attend", "cli_candidates:attend")
    assert (outcome.code, outcome.out.splitlines()[-1]) == (1, "1 of 2 cases agree within 2e-05")
    assert "case2.core.q" in refusal(
        "vectors", without_tensor(recorded, "case2.core.q"), "--attend", "gather"
    )


def test_far_indices_are_not_handed_to_an_attend(recorded: Recorded) -> None:
    """They would be its error, or its crash."""
    folder = with_tensor(recorded, "case2.core.idx", lambda t: t + 99)
    assert "case2.core.idx" in refusal("vectors", folder, "--attend", "gather")


@pytest.mark.parametrize("tensor", ["y", "y_prefill_then_decode", "core.q", "core.kv", "core.o"])
def test_an_altered_figure_disagrees(recorded: Recorded, tensor: str) -> None:
    """By little more than the tolerance, in one place; the file and the case are named."""
    recorded.tensors[f"case2.{tensor}"].view(-1)[-1] += 1e-3
    outcome = run("vectors", recorded.write())
    assert outcome.code == 1
    assert f"{SLIDING}            2 cases cases [2] DISAGREE" in outcome.out
    assert "1.0e-03" in outcome.out
    assert outcome.out.endswith("1 of 2 cases agree within 2e-05\n")


def test_an_altered_selection_disagrees(recorded: Recorded) -> None:
    """A query that the record lets see one key less."""
    indices = recorded.tensors["case2.core.idx"]
    indices[0, -1, (indices[0, -1] >= 0).nonzero()[0]] = -1
    outcome = run("vectors", recorded.write())
    assert outcome.code == 1
    assert "core keys" in outcome.out


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_that_is_no_number_disagrees_and_shows(recorded: Recorded, value: float) -> None:
    """Also in a case after one that agrees."""
    recorded.tensors["case2.y"].view(-1)[0] = value
    outcome = run("vectors", recorded.write())
    assert outcome.code == 1
    assert f"output {value}" in outcome.out


def truncate(recorded: Recorded, size: int) -> Path:
    """Cut the safetensors file off."""
    path = recorded.write() / SLIDING
    path.write_bytes(path.read_bytes()[:size])
    return path.parent


def without_tensor(recorded: Recorded, name: str) -> Path:
    """Leave one tensor out."""
    del recorded.tensors[name]
    return recorded.write()


def with_tensor(recorded: Recorded, name: str, change: Callable[[Tensor], Tensor]) -> Path:
    """Change one tensor."""
    recorded.tensors[name] = change(recorded.tensors[name])
    return recorded.write()


def with_geometry(recorded: Recorded, **fields: object) -> Path:
    """Change fields of the geometry; Ellipsis removes one."""
    geometry = recorded.entry["geometry"] | fields
    recorded.entry["geometry"] = {name: value for name, value in geometry.items() if value is not ...}
    return recorded.write()


def with_entry(recorded: Recorded, **fields: object) -> Path:
    """Change fields of the file's entry in the index."""
    recorded.entry |= fields
    return recorded.write()


def with_index(recorded: Recorded, text: bytes) -> Path:
    """Write an index of other bytes."""
    recorded.write()
    (recorded.folder / "index.json").write_bytes(text)
    return recorded.folder


def without_file(recorded: Recorded, name: str, folder_instead: bool = False) -> Path:
    """Remove a file, or put a folder in its place."""
    path = recorded.write() / name
    path.unlink()
    if folder_instead:
        path.mkdir()
    return path.parent


FOLDERS: dict[str, tuple[Callable[[Recorded], Path], list[str]]] = {
    "missing": (lambda r: r.folder / "absent", ["absent", "folder"]),
    "file": (lambda r: r.write() / SLIDING, [SLIDING, "not a folder"]),
    "no-index": (lambda r: without_file(r, "index.json"), ["no index.json"]),
    "index-is-folder": (lambda r: without_file(r, "index.json", True), ["index.json"]),
    "broken-json": (lambda r: with_index(r, b"[{"), ["index.json is not valid JSON"]),
    "empty-json": (lambda r: with_index(r, b""), ["index.json is not valid JSON"]),
    "binary-json": (lambda r: with_index(r, b"\xff\xfe"), ["index.json is not UTF-8 text"]),
    "other-version": (lambda r: r.write({"version": 2}), ["another version", "dict"]),
    "empty-index": (lambda r: r.write([]), ["another version", "empty"]),
    "entry-is-text": (lambda r: r.write(["a file"]), ["index.json", "'file'"]),
    "file-is-number": (lambda r: with_entry(r, file=3), ["index.json", "'file'"]),
    "cases-is-text": (lambda r: with_entry(r, cases="all"), ["'cases'"]),
    "no-cases": (lambda r: with_entry(r, cases=[]), ["case"]),
    "case-is-text": (lambda r: with_entry(r, cases=[{"case": "1"}]), ["'case'"]),
    "no-such-case": (lambda r: with_entry(r, cases=[{"case": 99}]), ["case99.x"]),
    "no-geometry": (lambda r: with_entry(r, geometry=None), ["'geometry'"]),
    "missing-file": (lambda r: without_file(r, SLIDING), [SLIDING, "does not hold it"]),
    "file-is-folder": (lambda r: without_file(r, SLIDING, True), [SLIDING]),
    "truncated": (lambda r: truncate(r, 5000), [SLIDING, "not a readable safetensors"]),
    "header-only": (lambda r: truncate(r, 3), [SLIDING, "not a readable safetensors"]),
    "empty-file": (lambda r: truncate(r, 0), [SLIDING, "not a readable safetensors"]),
    "no-weight": (lambda r: without_tensor(r, "weights.wq_a.weight"), [SLIDING, "wq_a"]),
    "no-input": (lambda r: without_tensor(r, "case2.x"), [SLIDING, "case2.x"]),
    "no-indices": (lambda r: without_tensor(r, "case2.core.idx"), [SLIDING, "case2.core.idx"]),
    "weight-shape": (lambda r: with_tensor(r, "weights.wq_a.weight", lambda t: t[:, :5]), ["wq_a"]),
    "sink-shape": (lambda r: with_tensor(r, "weights.attn_sink", lambda t: t[:1]), ["attn_sink"]),
    "input-flat": (lambda r: with_tensor(r, "case2.x", lambda t: t[0]), ["case2.x"]),
    "input-empty": (lambda r: with_tensor(r, "case2.x", lambda t: t[:, :0]), ["case2.x"]),
    "input-narrow": (lambda r: with_tensor(r, "case2.x", lambda t: t[..., :3]), ["case2.x"]),
    "output-short": (lambda r: with_tensor(r, "case2.y", lambda t: t[:, :3]), ["case2.y"]),
    "output-one-row": (lambda r: with_tensor(r, "case2.y", lambda t: t[:1]), ["case2.y"]),
    "core-shape": (lambda r: with_tensor(r, "case2.core.o", lambda t: t[:, :, :1]), ["case2.core.o"]),
    "far-indices": (lambda r: with_tensor(r, "case2.core.idx", lambda t: t + 99), ["case2.core.idx"]),
    "float-indices": (lambda r: with_tensor(r, "case2.core.idx", Tensor.float), ["case2.core.idx"]),
    "no-heads": (lambda r: with_geometry(r, heads=0), ["impossible geometry", "heads 0"]),
    "odd-rope": (lambda r: with_geometry(r, rope_dim=5), ["impossible geometry", "rope_dim 5"]),
    "theta-0": (lambda r: with_geometry(r, theta=0), ["impossible geometry", "theta"]),
    "theta-null": (lambda r: with_geometry(r, theta=None), ["theta"]),
    "no-theta": (lambda r: with_geometry(r, theta=...), ["'theta'"]),
    "kind": (lambda r: with_geometry(r, kind="dense"), ["'dense'"]),
    "kind-of-other-weights": (lambda r: with_geometry(r, kind="hca", compress_ratio=4), [SLIDING]),
    "unknown-field": (lambda r: with_geometry(r, banana=1), ["banana"]),
    "geometry-of-other-weights": (lambda r: with_geometry(r, hidden=7), [SLIDING]),
    "yarn-field": (lambda r: with_geometry(r, yarn={"factor": 1, "x": 2}), [SLIDING]),
    "yarn-is-text": (lambda r: with_geometry(r, yarn="none"), [SLIDING]),
}


@pytest.mark.parametrize("state", FOLDERS)
def test_a_folder_that_cannot_be_used_is_refused(recorded: Recorded, state: str) -> None:
    """Missing, broken, of another version, or inconsistent; never a verdict, never a traceback."""
    make, fragments = FOLDERS[state]
    sentence = refusal("vectors", make(recorded))
    for fragment in fragments:
        assert fragment in sentence


# Processes of their own


def test_the_installed_command_finds_candidates_in_its_folder(folder: Path) -> None:
    """The module lies beside, not on the Python path. Hypothesis alone may leave its own."""
    command = shutil.which("csa-spec", path=str(Path(sys.executable).parent))
    assert command is not None
    (folder / "my_layer.py").write_text("from cli_candidates import raises as layer\n")
    done = spawn(
        command, "check", "my_layer:layer", "--layer", "sliding", "--profile", "smoke", folder=folder
    )
    assert (done.returncode, done.stderr) == (1, "checking sliding float32 ...\n")
    assert "my_layer:layer: NOT CONFORMANT for sliding\n" in done.stdout
    assert {path.name for path in folder.iterdir()} - {"__pycache__", ".hypothesis"} == {"my_layer.py"}


@pytest.mark.parametrize("buffered", [True, False])
def test_python_m_runs_the_command_and_survives_a_reader_that_leaves(
    recorded: Recorded, buffered: bool
) -> None:
    """``python -m csa_spec ... | true``: no complaint about the pipe, at a print or at the last flush."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    if not buffered:
        environment["PYTHONUNBUFFERED"] = "1"
    command = [sys.executable, "-m", "csa_spec", "vectors", str(recorded.write())]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


def test_transformers_that_are_not_installed_are_named(folder: Path) -> None:
    """In a fresh process, with a stub first on the Python path."""
    (folder / "stub").mkdir()
    (folder / "stub" / "transformers.py").write_text(ABSENT)
    done = spawn(
        sys.executable,
        "-m",
        "csa_spec",
        "check",
        "transformers",
        folder=folder,
        paths=[str(folder / "stub")],
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "csa-spec: transformers is not installed; `pip install transformers`\n"


# Pages and bundles


def test_failures_become_pages_and_bundles_that_can_be_replayed(folder: Path) -> None:
    """Each bundle is printed, holds what an issue needs, and tells whether the failure is still there."""
    pages, bundles = (folder / "report.html", folder / "comment.md"), folder / "bundles"
    options = ("--html", pages[0], "--markdown", pages[1], "--bundle", bundles)
    outcome = run("check", "csa_spec.bugs:reads_index_minus_one_as_row_0", "--profile", "tiny", *options)
    assert outcome.code == 1
    assert all("reads index minus one as row 0" in page.read_text(encoding="utf-8") for page in pages)
    printed = [
        Path(line.removeprefix("bundle: "))
        for line in outcome.out.splitlines()
        if line.startswith("bundle: ")
    ]
    assert sorted(path.name for path in bundles.iterdir()) == sorted(path.name for path in printed)
    for path in printed:
        files = {one.name for one in path.iterdir()}
        assert {"README.md", "case.json", "picture.svg"} <= files
        assert "repro.py" in files or "-order-" in path.name  # a check without a script
    again = run("replay", bundles, "--trust")
    assert again.code == 1
    assert again.out.count("still failing") == len(printed) + 1  # and in the sum
    right = run("replay", *printed, "--candidate", "gather")
    assert right.code == 0
    assert f"{len(printed)} bundles: {len(printed)} fixed" in right.out


def test_a_folder_of_bundles_is_of_one_candidate(folder: Path) -> None:
    """What a second run replaces, and what stays of the first, is said; another candidate is refused at once."""
    bundles = folder / "bundles"
    options = ("--layer", "sliding", "--profile", "tiny", "--fail-fast", "--bundle", bundles)
    (first,) = _bundle_lines(run("check", "cli_candidates:not_finite", *options))
    (bundles / "sliding-own-inputs-old").mkdir()
    shutil.copy(Path(first) / "case.json", bundles / "sliding-own-inputs-old")
    again = run("check", "cli_candidates:not_finite", *options)
    assert _bundle_lines(again) == [f"{first} (replaces that of an earlier run)"]
    assert f"of earlier runs {bundles} still holds sliding-own-inputs-old; csa-spec replay" in again.out
    before = sorted(bundles.rglob("*"))
    assert refusal("check", "cli_candidates:raises", *options) == (
        f"--bundle: {bundles} holds bundles of cli_candidates:not_finite; name another folder, or remove it"
    )
    assert sorted(bundles.rglob("*")) == before


def _bundle_lines(outcome: Outcome) -> list[str]:
    return [
        line.removeprefix("bundle: ") for line in outcome.out.splitlines() if line.startswith("bundle: ")
    ]


def test_nothing_is_left_in_the_folder_of_the_command(folder: Path) -> None:
    """Hypothesis would keep what it finds in modules in .hypothesis/ there."""
    (folder / "mine.py").write_text("from cli_candidates import select\n")
    program = (sys.executable, "-B", "-m", "csa_spec")
    for arguments in (
        ("check", "mine:select", "--stage", "select", "--profile", "smoke"),
        ("case", "mine:select", "select S=2"),
    ):
        done = spawn(*program, *arguments, folder=folder)
        assert done.returncode == 0, done
    assert [path.name for path in folder.iterdir()] == ["mine.py"]


def test_a_right_candidate_leaves_no_bundle(folder: Path) -> None:
    """Nothing failed."""
    assert run("check", "cli_candidates:right", *TINY, "--bundle", folder / "bundles").code == 0
    assert not list((folder / "bundles").glob("*"))


@pytest.mark.parametrize("option", ["--html", "--markdown", "--bundle"])
def test_a_place_that_cannot_be_written_is_refused_before_the_run(folder: Path, option: str) -> None:
    """A folder in place of a file, or a file in place of a folder."""
    (folder / "folder").mkdir()
    (folder / "file").touch()
    place = "file" if option == "--bundle" else "folder"
    assert refusal("check", "cli_candidates:exits", *TINY, option, place).startswith(
        f"{option}: {place} is not a f"
    )


def test_what_is_no_bundle_is_said_and_the_rest_is_replayed(folder: Path) -> None:
    """Exit 2, for something was not decided."""
    (folder / "damaged").mkdir()
    (folder / "damaged" / "case.json").write_text('{"csa_spec_bundle": 1')
    outcome = run("replay", folder / "damaged", folder / "nothing")
    assert outcome.code == 2
    assert "case.json is not valid JSON" in outcome.out
    assert "there is no such folder" in outcome.out
