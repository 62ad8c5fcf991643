"""Run the script of a bundle as a user does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from csa_spec.engine.failures import CandidateDied, CandidateHung


def verify(folder: Path, timeout: float = 120) -> str:
    """Run the script of a bundle in a process of its own; say in a word what came of it.

    Returns
    -------
    str
        ``fails as reported``, ``passes``, or ``other error: `` and the last line.
    """
    script = folder / "repro.py"
    if not script.is_file():
        return "other error: there is no repro.py"
    path = os.pathsep.join(dict.fromkeys([*filter(None, sys.path), os.getcwd()]))
    reported = json.loads((folder / "case.json").read_text(encoding="utf-8"))["kind"]
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
