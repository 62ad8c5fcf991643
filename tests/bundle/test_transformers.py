"""The script for transformers: one text for all releases, short enough for an issue."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers_adapter.test_second_release import release  # noqa: F401 - a fixture

from bundle.test_scripts import run
from bundle.verifying import verify
from csa_spec.bundle.script import make_script
from csa_spec.engine.failures import Failure, Place, SeesTooMuch, StreamDiffers
from csa_spec.replay import State, replay
from csa_spec.resolving import resolve_candidate
from csa_spec.stages.cache.case import CacheCase
from csa_spec.stages.layer.case import LayerCase


def failure_on(line: str) -> Failure:
    """Return a failure on a case: that of 5.8.0, or that of the last call of a stream."""
    if line.startswith("cache"):
        case = CacheCase.parse(line)
        last = case.steps[-1].call
        facts = {"call": last, "calls": len(case.calls), "op": "1 token", "row": 0, "tokens": 1}
        return StreamDiffers(case, context=(f"(tokens_{last})  <-- wrong",), after="after extend", **facts)
    place = Place(0, 0, 0)
    return SeesTooMuch(LayerCase.parse(line), place=place, what="token", number=1, why="later")


def test_scripts_pass_on_the_installed_release(tmp_path: Path) -> None:
    """Also in 16 bits, with padding, YaRN and a cache, and where a cache is copied, reordered and reset."""
    lines = {
        "short": "csa rows=2",
        "stream": "cache csa B=2 calls=3,reorder:1.0,1,fork,2,save,1,restore,1 m=2 W=3 values=gaussian",
        "reset": "cache hca calls=3,other,reset,other,5 m=2 W=3 values=gaussian",
        "long": "hca m=2 W=2 rows=5,3 values=gaussian sinks=drawn yarn=4/64/32/1 dtype=bfloat16 mode=cache",
    }
    scripts = {}
    for name, line in lines.items():
        made = make_script(
            failure_on(line), resolve_candidate("transformers"), "specification", {"torch": "2"}
        )
        assert made is not None
        text, tensors = made
        assert not tensors
        assert "csa_spec" not in text
        assert max(map(len, text.splitlines())) <= 120
        scripts[name] = tmp_path / f"{name}.py"
        scripts[name].write_text(text)
    assert len(scripts["short"].read_text().splitlines()) <= 60
    ends = run(scripts, tmp_path, warnings="default")
    assert {name: end for name, (end, _) in ends.items()} == dict.fromkeys(lines, "passes"), ends
    assert all("expected" in said for _, said in ends.values())


RECORD = """
import sys
from pathlib import Path
from bundle.test_scripts import failure_of
from bundle.verifying import verify
from csa_spec.bundle import write_bundle
from csa_spec.resolving import resolve_candidate

candidate = resolve_candidate("transformers")
failure = failure_of("transformers", "csa rows=2", "specification")
folder = write_bundle(failure, candidate, "specification", Path(sys.argv[1]), candidate.environment)
print(verify(folder))
"""


@pytest.mark.second_release
def test_script_of_5_8_0_fails_there_and_passes_here(release: Path, tmp_path: Path) -> None:  # noqa: F811
    """So does the replay."""
    tests = Path(__file__).parents[1]
    path = os.pathsep.join(map(str, (release, tests, tests.parent)))
    result = subprocess.run(
        [sys.executable, "-c", RECORD, str(tmp_path)], env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stdout.splitlines()[-1:] == ["fails as reported"], result.stdout + result.stderr
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("csa-specification-SeesTooMuch-")
    assert len((folder / "repro.py").read_text().splitlines()) <= 60
    assert "transformers 5.8.0" in (folder / "README.md").read_text()
    assert verify(folder) == "passes"
    (here,) = replay([folder])
    assert here.state is State.FIXED
