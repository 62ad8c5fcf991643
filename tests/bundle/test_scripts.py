"""The scripts of bundles: they fail for the wrong implementation, and pass for the right one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.variants import VARIANTS, WITHOUT_SCRIPT, Variant
from bundle.verifying import verify
from csa_spec import check_case
from csa_spec.bundle import write_bundle
from csa_spec.engine.failures import Failure
from csa_spec.resolving import resolve_candidate
from csa_spec.stages import parse_case

TESTS = Path(__file__).parents[1]
RUN = """
import contextlib, io, json, runpy, sys

results = {}
for name, script in json.loads(sys.stdin.read()).items():
    try:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            runpy.run_path(script, run_name="__main__")
        results[name] = ["passes", said.getvalue()]
    except BaseException as error:
        results[name] = [type(error).__name__, said.getvalue() + str(error)]
print(json.dumps(results))
"""


def failure_of(candidate: str, case: str, check: str) -> Failure:
    """Return the failure of a candidate on a case."""
    with pytest.raises(Failure) as caught:
        check_case(candidate, case, check)
    return caught.value


def _write(root: Path, name: str, variant: Variant) -> Path:
    """Write a variant, wrong and right, and the bundle of the wrong one's failure."""
    for state in ("wrong", "right"):
        (root / state).mkdir(exist_ok=True)
        (root / state / f"of_{name}.py").write_text(variant.module(state == "wrong"))
    attribute = "kernels" if variant.stage == "index_scores" else variant.stage
    candidate = resolve_candidate(f"of_{name}:{attribute}", variant.stage)
    failure = failure_of(candidate.name, variant.case, variant.check)
    assert failure.kind == variant.kind, name
    return write_bundle(failure, candidate, variant.check, root / name, {"torch": "2"})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Write every variant that a script shows."""
    root = tmp_path_factory.mktemp("variants")
    before = sys.path[:]
    sys.path.insert(0, str(root / "wrong"))
    yield {name: _write(root, name, variant) for name, variant in VARIANTS.items()}
    sys.path[:] = before


def run(scripts: dict[str, Path], modules: Path, warnings: str = "error") -> dict[str, tuple[str, str]]:
    """Run scripts in one process, with the modules of a folder; say how each ended, and what it printed."""
    result = subprocess.run(
        [sys.executable, "-W", warnings, "-c", RUN],
        input=json.dumps({name: str(one) for name, one in scripts.items()}),
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(modules), str(TESTS), str(TESTS.parent)])},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    ends: dict[str, tuple[str, str]] = {
        name: (end, said) for name, (end, said) in json.loads(result.stdout).items()
    }
    return ends


def test_scripts_fail_for_the_wrong_and_pass_for_the_right(folders: dict[str, Path]) -> None:
    """Nothing but the module that they import is another."""
    scripts = {name: folder / "repro.py" for name, folder in folders.items()}
    root = next(iter(folders.values())).parents[1]
    wrong, right = (run(scripts, root / state) for state in ("wrong", "right"))
    expected = {
        name: "RuntimeError" if "Raised" in one.kind else "AssertionError" for name, one in VARIANTS.items()
    }
    assert {name: end for name, (end, _) in wrong.items()} == expected, wrong
    assert {name: end for name, (end, _) in right.items()} == dict.fromkeys(VARIANTS, "passes"), right
    assert all(said.strip() for _, said in right.values()), "a script says what it compares"


def test_scripts_need_nothing_of_this_package(folders: dict[str, Path]) -> None:
    """They import torch and the module of the user, and are short enough to read."""
    for name, folder in folders.items():
        text = (folder / "repro.py").read_text()
        assert "csa_spec" not in text, name
        assert max(map(len, text.splitlines())) <= 120, name
        assert len(text.splitlines()) <= 200, name
    with_files = [name for name, folder in folders.items() if (folder / "tensors.safetensors").exists()]
    assert with_files == ["large"]


def test_bundle_holds_what_an_issue_needs(folders: dict[str, Path]) -> None:
    """README.md has the script, both sides of the comparison, and the environment."""
    for name, folder in folders.items():
        variant, readme = VARIANTS[name], (folder / "README.md").read_text()
        assert folder.name.startswith(f"{variant.case.split()[0]}-{variant.check}-"), name
        assert (folder / "repro.py").read_text().rstrip() in readme
        assert "torch 2" in readme
        assert f"csa-spec case of_{name}:" in readme
        assert "](picture" not in readme
        assert "(t=" not in readme, name
        assert "the specification" not in readme, name
        data = json.loads((folder / "case.json").read_text())
        assert (data["csa_spec_bundle"], data["kind"], data["check"]) == (2, variant.kind, variant.check), (
            name
        )
        assert parse_case(data["case_line"]) == parse_case(variant.case)
        assert len(data["inputs_sha256"]) == 64


@pytest.mark.parametrize("name", WITHOUT_SCRIPT)
def test_other_laws_are_tried_with_this_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Their bundle has no script, says how to try the case again, and that fails."""
    variant = WITHOUT_SCRIPT[name]
    monkeypatch.syspath_prepend(str(tmp_path / "wrong"))
    folder = _write(tmp_path, name, variant)
    readme = (folder / "README.md").read_text()
    assert {path.name for path in folder.iterdir()} >= {"README.md", "case.json"}
    assert not (folder / "repro.py").exists()
    call = f'check_case("of_{name}:{variant.stage}", "{variant.case}", check="{variant.check}")'
    assert f"```python\nfrom csa_spec import check_case\n\n{call}\n```" in readme
    assert f"--check {variant.check}\n```" in readme
    with pytest.raises(Failure) as caught:
        exec(call, {"check_case": check_case})
    assert caught.value.kind == variant.kind
    sys.modules.pop(f"of_{name}")


@pytest.mark.parametrize(
    ("script", "kind", "said"),
    [
        ("assert 1 == 2, 'one\\nis not two'", "WrongNumbers", "fails as reported"),
        ("raise ValueError('no')", "CandidateRaised[ValueError]", "fails as reported"),
        ("import this_is_not_there", "WrongNumbers", "other error: ModuleNotFoundError: "),
        ("raise ValueError('no')", "WrongNumbers", "other error: ValueError: no"),
        ("print('fine')", "WrongNumbers", "passes"),
        ("import time; time.sleep(60)", "WrongNumbers", "other error: it ran longer than 1 s"),
        ("import time; time.sleep(60)", "CandidateHung", "fails as reported"),
    ],
)
def test_verify_says_what_a_script_does(tmp_path: Path, script: str, kind: str, said: str) -> None:
    """Fails as reported, passes, or something else."""
    (tmp_path / "repro.py").write_text(script)
    (tmp_path / "case.json").write_text(json.dumps({"kind": kind}))
    assert verify(tmp_path, timeout=1 if "sleep" in script else 60).startswith(said)


def test_a_bug_of_the_catalogue_is_called_with_its_own_classes(tmp_path: Path) -> None:
    """Where the function under test lives in this package, its script may use it too."""
    from csa_spec.bugs import bugs

    one = next(bug for bug in bugs() if bug.stage == "layer" and "visible_entries" in bug.broken)
    candidate, kind = one.candidate, one.kinds[0]
    case = f"{kind} m=2 rows=5 values=gaussian"
    bundle = write_bundle(
        failure_of(candidate.name, case, "specification"), candidate, "specification", tmp_path, {}
    )
    assert run({"one": bundle / "repro.py"}, tmp_path)["one"][0] == "AssertionError"
