"""The workflow files of ``docs/ci.md`` and ``action.yml``: the shell of every step is run as it stands.

GitHub and GitLab are played by this module: it fills in expressions, sets the variables that they set and ends a
job at a step that fails. Only what needs a network is replaced. ``pip`` writes down what it would install, and leaves
a package of this repository's making on ``PYTHONPATH``; ``actions/...`` are not run; and a small kernel stands
for transformers, whose smoke run takes a minute.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "ci.md").read_text(encoding="utf-8")
ACTION = yaml.safe_load((REPOSITORY / "action.yml").read_text(encoding="utf-8"))
BLOCKS = [yaml.safe_load(part.split("```")[0]) for part in PAGE.split("```yaml\n")[1:]]
TRANSFORMERS, KERNEL, SUITE, GITLAB = BLOCKS
OURS = "csa-spec/csa-spec@v0.2.0"
OTHERS = {"actions/checkout@v4", "actions/setup-python@v5", "actions/upload-artifact@v4"}
TORCH = "install torch --index-url https://download.pytorch.org/whl/cpu"

RIGHT = "from csa_spec.candidates.gather import attend\n"
WRONG = '''import torch


def attend(q, kv, indices, sinks, scale):
    """Forget to launch the kernel."""
    return torch.zeros_like(q)
'''
PIP = """#!/bin/sh
if [ "$1 $2" = "-m pip" ]; then shift 2; fi
echo "$@" >> "$PIP_LOG"
"""
PYTHON = """#!/bin/sh
if [ "$1 $2" = "-m pip" ]; then exec pip "$@"; fi
exec "%s" "$@"
"""


@dataclass
class Runner:
    """A machine with a checkout, as a runner prepares it."""

    folder: Path
    work: Path
    environment: dict[str, str]
    statuses: list[tuple[str, int]] = field(default_factory=list)
    output: str = ""
    uploads: list[list[Path]] = field(default_factory=list)

    @property
    def installed(self) -> list[str]:
        """What pip was told, line by line."""
        return (self.folder / "pip.log").read_text().splitlines()

    @property
    def summary(self) -> str:
        """The summaries of all steps."""
        return (self.folder / "summary.md").read_text(encoding="utf-8")

    def shell(self, script: str, extra: dict[str, str], *bash: str) -> int:
        """Run a script in the checkout; return its exit code."""
        done = subprocess.run(
            ["bash", *(bash or ("--noprofile", "--norc", "-eo", "pipefail")), "-c", script],
            cwd=self.work, env=self.environment | extra, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        self.output += done.stdout + done.stderr
        return done.returncode

    def steps(self, steps: list[dict[str, Any]], values: dict[str, str]) -> bool:
        """Run steps of a job or an action one after the other; return whether all passed."""
        passed = True
        for step in steps:
            assert {*step} <= {"name", "uses", "with", "run", "env", "if", "shell"}
            assert step.get("if", "always()") == "always()"
            if not passed and "if" not in step:
                continue
            passed &= self.step(step, values)
        return passed

    def step(self, step: dict[str, Any], values: dict[str, str]) -> bool:
        """Run a step; return whether it passed."""
        given = {key: filled(str(value), values) for key, value in step.get("with", {}).items()}
        if "run" in step:
            assert "${{" not in step["run"], "an expression in a script is a hole: it belongs into env"
            extra = {key: filled(value, values) for key, value in step.get("env", {}).items()}
            code = self.shell(step["run"], extra)
            self.statuses.append((step["name"], code))
            return code == 0
        if step["uses"] == OURS:
            assert {*given} <= {*ACTION["inputs"]}
            inputs = {key: given.get(key, about.get("default")) for key, about in ACTION["inputs"].items()}
            assert None not in inputs.values(), "an input that is required is missing"
            context = {f"inputs.{key}": value for key, value in inputs.items()}
            return self.steps(ACTION["runs"]["steps"], context | {"github.action_path": str(REPOSITORY)})
        assert step["uses"] in OTHERS
        if "upload" in step["uses"]:
            place = self.work / given["path"]
            self.uploads.append(sorted(place.iterdir()) if place.is_dir() else [place])
        return True

    def git(self, *words: str) -> str:
        """Run git in the checkout."""
        options = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
        command = ["git", *options, "-C", str(self.work), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, kernel: str) -> str:
        """Put a kernel into the checkout's package; return the commit."""
        package = self.work / "my_kernels"
        package.mkdir(exist_ok=True)
        (package / "__init__.py").touch()
        (package / "attention.py").write_text(kernel)
        self.git("add", "my_kernels")
        self.git("commit", "-q", "-m", "change")
        return self.git("rev-parse", "HEAD")


def filled(text: str, values: dict[str, str]) -> str:
    """Return a text with its expressions filled in."""
    return re.sub(r"\$\{\{ *([\w.-]+) *\}\}", lambda found: values[found[1]], text)


@pytest.fixture
def runner(tmp_path: Path, installed: str) -> Runner:
    """Return a machine with the commands of an installed wheel, and a pip without a network."""
    work, bin_folder = tmp_path / "work", tmp_path / "bin"
    work.mkdir()
    bin_folder.mkdir()
    csa_spec = f'#!/bin/sh\nexec "{installed}" -m csa_spec "$@"\n'
    pytest_command = f'#!/bin/sh\nexec "{installed}" -m pytest "$@"\n'
    for name, text in (
        ("pip", PIP),
        ("python", PYTHON % installed),
        ("csa-spec", csa_spec),
        ("pytest", pytest_command),
    ):
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
    environment |= {
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(work),  # what `pip install -e .` would do
        "PYTHONDONTWRITEBYTECODE": "1",
        "PIP_LOG": str(tmp_path / "pip.log"),
    }
    made = Runner(tmp_path, work, environment)
    made.git("init", "-q")
    return made


def github(runner: Runner) -> Runner:
    """Set what GitHub sets."""
    (runner.folder / "summary.md").touch()
    runner.environment |= {
        "CI": "true",
        "GITHUB_ACTIONS": "true",
        "GITHUB_WORKSPACE": str(runner.work),
        "GITHUB_STEP_SUMMARY": str(runner.folder / "summary.md"),
        "RUNNER_TEMP": str(runner.folder),
    }
    return runner


def job(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the steps of the only job of a workflow, which must be one that GitHub takes."""
    [(name, one)] = workflow["jobs"].items()
    assert {*workflow} == {"name", True, "permissions", "jobs"}  # YAML 1.1 reads `on` as true
    assert {*one} == {"runs-on", "steps"}
    assert re.fullmatch(r"[A-Za-z_][\w-]*", name)
    steps: list[dict[str, Any]] = one["steps"]
    return steps


def small(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return steps in which a small kernel stands for transformers."""
    text = json.dumps(steps)
    assert text.count("check transformers --profile") == text.count('"candidate": "transformers"') == 1
    text = text.replace("check transformers", "check my_kernels.attention:attend --stage attend")
    text = text.replace('"transformers"', '"my_kernels.attention:attend"')
    changed: list[dict[str, Any]] = json.loads(
        text.replace('"--profile smoke"', '"--profile smoke --stage attend"')
    )
    return changed


def test_the_action_is_one_that_github_takes() -> None:
    """Each script has a shell, and every input that is used is declared and described."""
    assert {*ACTION} == {"name", "description", "inputs", "runs"}
    assert ACTION["runs"]["using"] == "composite"
    used = set(re.findall(r"inputs\.([\w-]+)", json.dumps(ACTION["runs"])))
    assert used == {*ACTION["inputs"]}
    for about in ACTION["inputs"].values():
        assert about["description"]
        assert about.get("required") or isinstance(about["default"], str)
    assert all(step["shell"] == "bash" for step in ACTION["runs"]["steps"] if "run" in step)


def test_a_pull_request_that_breaks_something(runner: Runner) -> None:
    """The check fails, its failure is annotated, the report is kept, and the comparison says what is new."""
    base = github(runner).commit(RIGHT)
    head = runner.commit(WRONG)
    values = {"github.event.pull_request.base.sha": base}
    assert not runner.steps(small(job(TRANSFORMERS)), values)
    assert runner.statuses == [
        ("Install this checkout", 0),
        ("Install csa-spec", 0),
        ("Check", 1),
        ("Compare with the base", 1),
    ]
    assert runner.installed == [TORCH, "install -e .", TORCH, f"install {REPOSITORY}"]
    annotations = [line for line in runner.output.splitlines() if line.startswith("::")]
    assert len(annotations) == 1
    assert annotations[0].startswith("::error file=my_kernels/attention.py,line=4,title=")
    assert runner.summary.startswith("**NOT CONFORMANT** for attend: `my_kernels.attention:attend`")
    assert "**csa-spec: 1 new failure, 0 changed, 0 fixed**" in runner.summary
    assert [path.name for path in runner.uploads[0]] == [
        f"report.{kind}" for kind in ("html", "json", "md", "xml")
    ]
    report = json.loads((runner.work / "csa-spec-report" / "report.json").read_text())
    assert report["sources"]["my_kernels"] == {"path": str(runner.work), "revision": head, "dirty": False}


def test_a_pull_request_that_mends_something(runner: Runner) -> None:
    """All steps pass, and nothing is annotated."""
    base = github(runner).commit(WRONG)
    runner.commit(RIGHT)
    assert runner.steps(small(job(TRANSFORMERS)), {"github.event.pull_request.base.sha": base})
    assert "\n::" not in runner.output
    assert "**csa-spec: 0 new failures, 0 changed, 1 fixed**" in runner.summary


def test_a_kernel_package(runner: Runner) -> None:
    """Its function is checked in both dtypes."""
    github(runner).commit(RIGHT)
    assert runner.steps(job(KERNEL), {})
    assert runner.summary.startswith("**CONFORMANT** for attend: `my_kernels.attention:attend`")
    report = json.loads((runner.work / "csa-spec-report" / "report.json").read_text())
    assert report["dtypes"] == ["float32", "bfloat16"]


def test_a_candidate_that_is_not_there_ends_the_step_with_a_sentence(runner: Runner) -> None:
    """And options that a shell would expand are passed on as they are."""
    (github(runner).work / "star").touch()
    steps = json.loads(json.dumps(job(KERNEL)).replace("--stage attend", "--stage *"))
    assert not runner.steps(job(KERNEL), {})
    assert runner.statuses[-1] == ("Check", 2)
    assert "csa-spec: there is no module 'my_kernels' on the Python path" in runner.output
    assert runner.uploads == [[]]
    runner.commit(RIGHT)
    assert not runner.steps(steps, {})
    assert "csa-spec: unknown stage '*'; choose from " in runner.output


@pytest.mark.parametrize(("kernel", "failures"), [(RIGHT, 0), (WRONG, 1)])
def test_a_suite_of_its_own(runner: Runner, kernel: str, failures: int) -> None:
    """Own tests and checks run side by side, and both are in the file that is kept."""
    github(runner).commit(kernel)
    (runner.work / "tests").mkdir()
    (runner.work / "tests" / "test_own.py").write_text("def test_own():\n    pass\n")
    assert runner.steps(job(SUITE), {}) == (not failures)
    assert runner.installed[-1] == f"install -e . csa-spec @ git+https://github.com/{OURS}"
    [[kept]] = runner.uploads
    names = [case.attrib["name"] for case in ElementTree.parse(kept).iter("testcase")]
    assert "test_own" in names
    assert any("attend-float32-specification" in name for name in names)
    assert len(list(ElementTree.parse(kept).iter("failure"))) == failures


@pytest.mark.parametrize(("kernel", "failures"), [(RIGHT, 0), (WRONG, 1)])
def test_gitlab(runner: Runner, kernel: str, failures: int) -> None:
    """Its script runs line by line, and what it keeps is there also where the check fails."""
    runner.commit(kernel)
    runner.environment |= {"CI": "true", "GITLAB_CI": "true", "CI_PROJECT_DIR": str(runner.work)}
    one = GITLAB["csa-spec"]
    assert runner.shell("\n".join(one["script"]), {}) == failures
    assert "::error" not in runner.output
    root = ElementTree.parse(runner.work / one["artifacts"]["reports"]["junit"]).getroot()
    assert root.attrib["failures"] == str(failures)
    assert "<!DOCTYPE html>" in (runner.work / one["artifacts"]["paths"][0]).read_text(encoding="utf-8")
    assert one["artifacts"]["when"] == "always"


def test_all_versions_agree() -> None:
    """One name and one version of the action, and of others, in all files."""
    assert set(re.findall(r"csa-spec/csa-spec@[\w.]+", PAGE)) == {OURS}
    used = set(re.findall(r"uses: (\S+)", PAGE + (REPOSITORY / "action.yml").read_text(encoding="utf-8")))
    assert used - {OURS} == OTHERS
