"""The release that this project exists for: transformers 5.8.0, where queries saw each other's selections.

It is installed beside the current one, into a folder that a subprocess has first on its path.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from csa_spec.stages.layer.case import LayerCase

RELEASE = "5.8.0"


@pytest.fixture(scope="module")
def release(request: pytest.FixtureRequest) -> Path:
    """Install the release once per checkout; later runs find it in pytest's cache."""
    folder = Path(request.config.cache.mkdir(f"transformers-{RELEASE}"))  # type: ignore[union-attr]
    done = folder / "installed"
    if not done.exists():
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--target",
            str(folder),
            f"transformers=={RELEASE}",
        ]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            pytest.fail(
                f"pip could not install transformers {RELEASE}; without a package registry, deselect this test with "
                f"-m 'not second_release'\n{result.stderr}",
                pytrace=False,
            )
        done.touch()
    return folder


@pytest.mark.second_release
def test_queries_of_5_8_0_see_entries_that_they_must_not_see(release: Path, tmp_path: Path) -> None:
    """Not conformant for CSA and HCA, with the smallest case, and a text that says what is wrong."""
    report_path = tmp_path / "report.json"
    command = [
        sys.executable,
        "-m",
        "csa_spec",
        "check",
        "transformers",
        "--profile",
        "smoke",
        "--patience",
        "inf",
    ]
    result = subprocess.run(
        [*command, "--json", str(report_path)],
        env=os.environ | {"PYTHONPATH": str(release)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1, result.stdout + result.stderr
    report = json.loads(report_path.read_text())
    assert report["environment"]["transformers"] == RELEASE
    assert report["verdict"] == "not conformant"

    for kind in ("csa", "hca"):
        (equality,) = (
            r
            for r in report["results"]
            if (r["stage"], r["layer_kind"], r["check"]) == ("layer", kind, "specification")
        )
        (leak,) = (f for f in equality["failures"] if f["kind"] == "SeesTooMuch")
        case = LayerCase.parse(leak["case_line"])
        assert len(case.rows) == 1
        assert case.columns <= 3
        # With m = 1 every token is an entry; k = 1 is the least selection; two tokens: a past and a future.
        assert (case.columns, case.geometry.compress_ratio, case.geometry.top_k) == (2, 1, 1)
        assert (leak["facts"]["number"], leak["facts"]["why"]) == (1, "later")
        assert "the output of query 0 changes when token 1 changes" in leak["detail"]
        assert "it must not attend to it at all" in leak["findings"][0]
        (future,) = (r for r in report["results"] if r["layer_kind"] == kind and r["check"] == "future")
        assert future["failures"], "future tokens change earlier outputs, so the law must fall too"

    assert "Output depends on what it must not depend on" in result.stdout
    assert "who may see whom" in result.stdout
    assert "transformers: NOT CONFORMANT for csa, hca" in result.stdout
    assert "Traceback" not in result.stderr

    readme = Path(__file__).parents[2] / "README.md"
    shown = readme.read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
    lines = [
        line for line in shown.splitlines() if "off by" not in line
    ]  # rounding differs between machines
    missing = [line for line in lines if line not in result.stdout.splitlines()]
    assert not missing, "the README shows what the command no longer prints"
