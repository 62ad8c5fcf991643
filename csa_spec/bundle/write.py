"""Write the bundle of a failure."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from csa_spec.bundle.importing import import_path
from csa_spec.bundle.reading import CASE_FILE, VERSION, candidates_in, digest_of
from csa_spec.bundle.readme import make_readme
from csa_spec.bundle.script import TENSORS_FILE, make_script
from csa_spec.candidates import SHIPPED
from csa_spec.engine.failures import Failure
from csa_spec.engine.results import Report
from csa_spec.plug.candidate import Candidate
from csa_spec.report.content import versions
from csa_spec.report.json import failure_json
from csa_spec.stages import stage_of

SCRIPT_FILE, README_FILE, PICTURE_FILE = "repro.py", "README.md", "picture.svg"


def write_bundle(
    failure: Failure, candidate: Candidate, check: str, folder: Path, environment: Mapping[str, str]
) -> Path:
    """Write the bundle of a failure into a folder; return where it is.

    ``check`` found it; ``environment`` has versions. A bundle of the same failure that is there already is
    replaced. An interrupted run leaves no bundle, or the old one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / bundle_name(failure, check)
    name = _name_for_replay(candidate, stage_of(failure.case).name)
    environment = {**environment, "python": platform.python_version(), "platform": platform.platform()}
    temporary = Path(tempfile.mkdtemp(prefix=".bundle-", dir=folder))
    try:
        script = _script(failure, candidate, check, environment)
        if script is not None:
            (temporary / SCRIPT_FILE).write_text(script[0], encoding="utf-8", errors="backslashreplace")
            if script[1]:
                save_file(script[1], temporary / TENSORS_FILE)
        drawing = _picture(failure, check)
        if drawing is not None:
            (temporary / PICTURE_FILE).write_text(drawing, encoding="utf-8", errors="backslashreplace")
        files = [path.name for path in temporary.iterdir()]
        text = None if script is None else script[0]
        readme = make_readme(failure, name, check, environment, text, files)
        (temporary / README_FILE).write_text(readme, encoding="utf-8", errors="backslashreplace")
        data = json.dumps(_record(failure, name, check, environment), indent=1, allow_nan=False)
        (temporary / CASE_FILE).write_text(data + "\n", encoding="utf-8", errors="backslashreplace")
        temporary.chmod(0o755)  # mkdtemp lets nobody else in
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def write_bundles(
    report: Report, candidate: Candidate, folder: Path, tell: Callable[[str], None] = lambda line: None
) -> Iterator[Path]:
    """Write a bundle for every failure of a run; yield where they are.

    ``tell`` gets a line about each that cannot be written; the others are written all the same.
    """
    for result in report.results:
        for failure in result.failures:
            try:
                yield write_bundle(failure, candidate, result.check, folder, versions(report))
            except Exception as error:
                name, reason = bundle_name(failure, result.check), " ".join(f"{error}".split())
                tell(f"csa-spec: --bundle: {name} could not be written: {type(error).__name__}: {reason}")


def problem_of_others(folder: Path, candidate: str) -> str:
    """Say that a folder holds bundles of another candidate, which those of this one would be mixed with."""
    other = next((name for name in candidates_in(folder).values() if name != candidate), "")
    return f"{folder} holds bundles of {other}; name another folder, or remove it" if other else ""


def write_and_tell(
    report: Report,
    candidate: Candidate,
    folder: Path,
    say: Callable[[str], None],
    tell: Callable[[str], None],
) -> None:
    """Write the bundles of a run, and ``say`` where each is, what it replaces and what stays of earlier runs."""
    old = candidates_in(folder)
    for path in write_bundles(report, candidate, folder, tell):
        say(f"bundle: {path}" + " (replaces that of an earlier run)" * (path in old))
        old.pop(path, None)
    if old:
        say(
            f"of earlier runs {folder} still holds {', '.join(path.name for path in old)}; "
            f"csa-spec replay {folder} tells whether they are fixed"
        )


def bundle_name(failure: Failure, check: str) -> str:
    """Return a name that says what it is and stays: subject, check, kind of failure, case."""
    first = str(failure.case).split()[0]
    kind = re.sub(r"[^A-Za-z0-9]+", "-", failure.kind).strip("-")
    return f"{first}-{check}-{kind}-{failure.case.id}"


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
    }


def _script(
    failure: Failure, candidate: Candidate, check: str, environment: Mapping[str, str]
) -> tuple[str, dict[str, Tensor]] | None:
    try:
        return make_script(failure, candidate, check, environment)
    except Exception as error:
        _warn("repro.py", failure, check, error)
        return None


def _picture(failure: Failure, check: str) -> str | None:
    from csa_spec.report.picture import picture

    try:
        return picture(failure, check)
    except Exception as error:
        _warn(PICTURE_FILE, failure, check, error)
        return None


def _warn(file: str, failure: Failure, check: str, error: Exception) -> None:
    """Say that a file is left out: the report of a long run must not end because of one drawing."""
    warnings.warn(
        f"no {file} could be made for the failure of {check!r} on {failure.case}; please report this: "
        f"{type(error).__name__}: {error}",
        stacklevel=3,
    )
