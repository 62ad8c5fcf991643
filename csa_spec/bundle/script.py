"""The script of a failure: it makes the inputs, calls the implementation, and asserts, all without this package."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Mapping

from torch import Tensor

from csa_spec.bundle.laws import BODIES
from csa_spec.bundle.literals import WIDTH, Literals
from csa_spec.bundle.subjects import subject_of
from csa_spec.bundle.wording import plain
from csa_spec.engine.failures import CandidateDied, CandidateHung, CandidateRaised, Failure
from csa_spec.engine.stage import SPECIFICATION
from csa_spec.engine.trial import Trial
from csa_spec.plug.candidate import Candidate
from csa_spec.stages import stage_of
from csa_spec.stages.cache.trial import CacheTrial

_MOST_NUMBERS, _MOST_LINES = 4000, 200
TENSORS_FILE = "tensors.safetensors"


def make_script(
    failure: Failure, candidate: Candidate, check: str, environment: Mapping[str, str]
) -> tuple[str, dict[str, Tensor]] | None:
    """Return the text of ``repro.py`` and the tensors that it reads from a file; None where there can be no script."""
    trial = stage_of(failure.case).trial(candidate, failure.case)
    for in_file in (False, True):
        literals = Literals(in_file)
        text = _script(trial, failure, check, environment, literals)
        if text is None:
            return None
        if literals.count <= _MOST_NUMBERS and text.count("\n") <= _MOST_LINES:
            break
    assert text is not None
    return text, literals.file


def _script(
    trial: Trial, failure: Failure, check: str, environment: Mapping[str, str], literals: Literals
) -> str | None:
    make, subject = BODIES.get(check), subject_of(trial, literals)
    if subject is None or make is None:
        return None
    if isinstance(trial, CacheTrial):
        subject.follow(trial, failure, whole=check != SPECIFICATION.name)
    body = make(trial, failure, subject, literals)
    if body is None:
        return None
    code = "\n".join([*(line for lines in subject.data.values() for line in lines), *subject.setup, *body])
    imports = subject.imports
    imports = [
        *imports,
        *(f"import {name}" for name in ("copy", "os", "random") if re.search(rf"\b{name}\.", code)),
    ]
    if literals.file:
        imports = [*imports, "from pathlib import Path", "from safetensors.torch import load_file"]
        code = f'tensors = load_file(Path(__file__).with_name("{TENSORS_FILE}"))\n{code}'
    return f"{_docstring(trial, failure, environment)}\n\n{_sorted(imports)}\n\n{code}\n"


def _sorted(imports: list[str]) -> str:
    standard = [line for line in imports if line.split()[1] in sys.stdlib_module_names]
    others = [line for line in imports if line not in standard] + ["import torch"]

    def key(line: str) -> tuple[bool, str]:
        return (line.startswith("from"), line)

    return "\n\n".join("\n".join(sorted(group, key=key)) for group in (standard, others) if group)


def _docstring(trial: Trial, failure: Failure, environment: Mapping[str, str]) -> str:
    versions = ", ".join(
        f"{name} {version}"
        for name, version in environment.items()
        if name not in ("csa-spec", "python", "platform")
    )
    ends = "ends with an AssertionError"
    if isinstance(failure, CandidateRaised):
        ends = f"ends with {type(failure.error).__name__}"
    elif isinstance(failure, CandidateHung):
        ends = "does not end"
    elif isinstance(failure, CandidateDied):
        ends = "does not come to its end"
    where = ""
    if trial.candidate.name != "transformers":
        where = " where the function can be imported (PYTHONPATH=. python repro.py)"
    paragraphs = [
        plain(f"{failure.title[0].upper()}{failure.title[1:]}: {failure.detail}").rstrip(".") + ".",
        f"Run it with `python repro.py`{where}. It {ends} as long as the bug is there."
        + (f" Seen with {versions}." if versions else ""),
    ]
    text = "\n\n".join(textwrap.fill(one, WIDTH, break_on_hyphens=False) for one in paragraphs)
    text = text.replace("\\", "\\\\").replace('"""', "'''")
    return f'"""{text}\n"""'
