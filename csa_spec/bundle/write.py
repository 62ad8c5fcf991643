"""Write the bundle of a failure, and try its script."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from csa_spec.bundle.digest import digest_of
from csa_spec.bundle.reading import CASE_FILE, VERSION
from csa_spec.bundle.readme import make_readme
from csa_spec.bundle.script import TENSORS_FILE, make_script
from csa_spec.bundle.subjects import import_path
from csa_spec.candidates import SHIPPED
from csa_spec.engine.failures import CandidateDied, CandidateHung, Failure
from csa_spec.engine.results import Report
from csa_spec.plug.candidate import Candidate
from csa_spec.report.json import failure_json
from csa_spec.stages import stage_of

SCRIPT_FILE, README_FILE, PICTURE_FILE = "repro.py", "README.md", "picture.svg"


def write_bundle(
    failure: Failure, candidate: Candidate, check: str, folder: Path, environment: Mapping[str, str]
) -> Path:
    """Write the bundle of a failure into a folder; return where it is.

    A bundle of the same failure that is there already is replaced. An interrupted run leaves no bundle, or the old
    one.

    Parameters
    ----------
    failure
        What is wrong.
    candidate
        Who is wrong.
    check
        Name of the check that found it.
    folder
        Where bundles go; made if it is not there.
    environment
        Versions, e.g. those of a report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / bundle_name(failure, check)
    name = _name_for_replay(candidate, stage_of(failure.case).name)
    environment = {**environment, "python": platform.python_version(), "platform": platform.platform()}
    temporary = Path(tempfile.mkdtemp(prefix=".bundle-", dir=folder))
    try:
        script = make_script(failure, candidate, check, environment)
        if script is not None:
            (temporary / SCRIPT_FILE).write_text(script[0], encoding="utf-8")
            if script[1]:
                save_file(script[1], temporary / TENSORS_FILE)
        drawing = _picture(failure, check)
        if drawing is not None:
            (temporary / PICTURE_FILE).write_text(drawing, encoding="utf-8")
        files = [
            one for one in (SCRIPT_FILE, TENSORS_FILE, PICTURE_FILE, CASE_FILE) if (temporary / one).exists()
        ]
        text = None if script is None else script[0]
        readme = make_readme(failure, name, check, environment, text, [*files, CASE_FILE])
        (temporary / README_FILE).write_text(readme, encoding="utf-8")
        data = _record(failure, name, check, environment)
        (temporary / CASE_FILE).write_text(
            json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
        temporary.chmod(0o755)  # mkdtemp lets nobody else in
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def write_bundles(report: Report, candidate: Candidate, folder: Path) -> list[Path]:
    """Write a bundle for every failure of a run; return where they are."""
    return [
        write_bundle(failure, candidate, result.check, folder, report.environment)
        for result in report.results
        for failure in result.failures
    ]


def bundle_name(failure: Failure, check: str) -> str:
    """Return a name that says what it is and stays: subject, check, kind of failure, case."""
    first = str(failure.case).split()[0]
    kind = re.sub(r"[^A-Za-z0-9]+", "-", failure.kind).strip("-")
    return f"{first}-{check}-{kind}-{failure.case.id}"


def verify(folder: Path, timeout: float = 120) -> str:
    """Run the script of a bundle in a process of its own; say in a word what came of it.

    Returns
    -------
    str
        ``fails as reported``, ``passes``, or ``other error: `` and the last line.
    """
    script = folder / SCRIPT_FILE
    if not script.is_file():
        return "other error: there is no repro.py"
    path = os.pathsep.join(dict.fromkeys([*filter(None, sys.path), os.getcwd()]))
    reported = json.loads((folder / CASE_FILE).read_text(encoding="utf-8"))["kind"]
    try:
        result = subprocess.run(
            [sys.executable, script.name], cwd=folder, env={**os.environ, "PYTHONPATH": path}, timeout=timeout,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return (
            _FAILS
            if reported == CandidateHung.__name__
            else f"other error: it ran longer than {timeout:g} s"
        )
    if result.returncode == 0:
        return "passes"
    last = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
    raised = re.fullmatch(r"CandidateRaised\[(\w+)\]", reported)
    wanted = raised[1] if raised else "AssertionError"
    name = last.partition(":")[0].rpartition(".")[2]
    if any(name == wanted for name in (name, *_heads(result.stderr))):
        return _FAILS
    if reported == CandidateDied.__name__ and "Error" not in last:
        return _FAILS
    return f"other error: {last}"


_FAILS = "fails as reported"


def _heads(stderr: str) -> list[str]:
    """Return the names of exceptions that end a traceback; a message may have several lines."""
    return [
        match[1]
        for match in re.finditer(r"^(?:\w+\.)*(\w+)(?::|$)", stderr.rpartition("Traceback")[2], re.M)
    ]


def _name_for_replay(candidate: Candidate, stage: str) -> str:
    if candidate.name in SHIPPED or ", " not in candidate.name:
        return candidate.name
    return import_path(candidate, stage) or candidate.name


def _record(failure: Failure, name: str, check: str, environment: Mapping[str, str]) -> dict[str, Any]:
    stage = stage_of(failure.case)
    return {
        "csa_spec_bundle": VERSION,
        "candidate": name,
        "check": check,
        "stage": stage.name,
        **failure_json(failure),
        "inputs_sha256": digest_of(stage, failure.case),
        "environment": dict(environment),
    } | ({"diagnosis": _diagnosis(failure)})


def _diagnosis(failure: Failure) -> dict[str, Any] | None:
    found = failure.diagnosis
    if found is None:
        return None
    return {
        "summary": found.summary,
        "behaves_like": [
            {
                "name": one.name, "title": one.title, "cause": one.cause, "urls": list(one.urls),
                "agreeing": one.agreeing, "tried": one.tried,
            }
            for one in found.behaves_like
        ],
    }  # fmt: skip


def _picture(failure: Failure, check: str) -> str | None:
    from csa_spec.report.picture import picture

    return picture(failure, check)
