"""The script of a failure: it makes the inputs, calls the implementation and asserts."""

from __future__ import annotations

import ast
import builtins
import importlib
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from csa_spec.bundle.importing import import_path, imported
from csa_spec.candidates import SCRIPTS as OWN_SCRIPTS
from csa_spec.engine.failures import CandidateDied, CandidateHung, CandidateRaised, Failure
from csa_spec.engine.trial import Trial
from csa_spec.plug.arrays import named_tensors
from csa_spec.plug.candidate import Candidate
from csa_spec.plug.layouts import Layout, laid_out, layouts_of
from csa_spec.scripting.arguments import subject_of
from csa_spec.scripting.literals import WIDTH, Literals
from csa_spec.scripting.stage_script import StageScript, Task
from csa_spec.scripting.subject import Subject
from csa_spec.stages import stage_of

_MOST_NUMBERS, _MOST_LINES = 4000, 200
TENSORS_FILE = "tensors.safetensors"


def make_script(
    failure: Failure, candidate: Candidate, check: str, environment: Mapping[str, str]
) -> tuple[str, dict[str, Tensor]] | None:
    """Return the text of ``repro.py`` and the tensors that it reads from a file; None if there is none."""
    trial = stage_of(failure.case).trial(candidate, failure.case)
    script = stage_of(failure.case).script
    if script is None or check not in script.laws():
        return None
    in_file = renamed = False
    while True:
        literals = Literals(in_file, trial.case.device, views=_views(trial))
        subject = _subject(trial, script, literals, renamed)
        body = None if subject is None else script.body(check, Task(trial, failure, subject, literals))
        if subject is None or body is None:
            return None
        text = _text(subject, body, failure, environment, literals)
        if not renamed and _reuses_imported_name(text):
            renamed = True
        elif not in_file and (literals.count > _MOST_NUMBERS or text.count("\n") > _MOST_LINES):
            in_file = True
        else:
            return text, literals.file


def _subject(trial: Trial[Any], script: StageScript, literals: Literals, renamed: bool) -> Subject | None:
    """Return how a script calls a candidate; None where a script cannot."""
    if trial.candidate.name in OWN_SCRIPTS:
        module: Any = importlib.import_module(OWN_SCRIPTS[trial.candidate.name])
        subject: Subject = module.subject_of(trial, script.arguments(trial), literals)
        return subject
    path = import_path(trial.candidate, trial.stage)
    function = None if path is None else imported(path, trial.stage, trial.case.mode, renamed)
    return None if function is None else subject_of(trial, script, literals, function)


def _text(
    subject: Subject, body: list[str], failure: Failure, environment: Mapping[str, str], literals: Literals
) -> str:
    code, imports = "\n".join([*subject.setup, *body]), list(subject.imports)
    code = f"{_IN_MEMORY}\n\n{code}" if "in_memory(" in code else code
    imports += ["import copy"] * bool(re.search(r"\bcopy\.", code))
    if literals.file:
        imports += ["from pathlib import Path", "from safetensors.torch import load_file"]
        code = f'tensors = load_file(Path(__file__).with_name("{TENSORS_FILE}"))\n{code}'
    return f"{_docstring(subject, failure, environment)}\n\n{_sorted(imports)}\n\n{code}\n"


_IN_MEMORY = '''
def in_memory(tensor, size, offset, strides):
    """Return the tensor as a view of larger memory, which holds NaN or -1 everywhere else."""
    memory = tensor.new_full((size,), torch.nan if tensor.is_floating_point() else -1)
    memory[torch.arange(size).as_strided(tensor.shape, strides, offset)] = tensor
    return memory.as_strided(tensor.shape, strides, offset)
'''


def _views(trial: Trial[Any]) -> dict[str, str]:
    """Return how a script puts each input where it lies in memory, by the name of its variable."""
    tensors, views = named_tensors(trial.handed(trial.arguments).arguments), {}
    for name, layout in layouts_of(tensors, trial.case.layout).items():
        view, floats = laid_out(tensors[name], layout), tensors[name].is_floating_point()
        size = view.untyped_storage().nbytes() // view.element_size()
        variable = name.removeprefix("weights.").replace(" ", "_")
        if layout == Layout.REQUIRES_GRAD and floats:
            views[variable] = "{}.requires_grad_()"
        elif size > view.numel() or not view.is_contiguous():
            views[variable] = f"in_memory({{}}, {size}, {view.storage_offset()}, {tuple(view.stride())})"
    return views


def _reuses_imported_name(text: str) -> bool:
    """Whether a script binds a name that it imports a second time, or imports one that is built in."""
    bound = list(_bound_names(ast.parse(text)))
    first = [name for name, imported_there in bound if imported_there]
    return any(hasattr(builtins, name) or sum(name == other for other, _ in bound) > 1 for name in first)


def _bound_names(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Yield the names that code binds, and whether an import does."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from ((alias.asname or alias.name, True) for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, False
        elif isinstance(node, ast.arg):
            yield node.arg, False
        elif isinstance(node, ast.FunctionDef):
            yield node.name, False


def _sorted(imports: list[str]) -> str:
    standard = [line for line in imports if line.split()[1] in sys.stdlib_module_names]
    others = [line for line in imports if line not in standard] + ["import torch"]

    def key(line: str) -> tuple[bool, str]:
        return (line.startswith("from"), line)

    return "\n\n".join("\n".join(sorted(group, key=key)) for group in (standard, others) if group)


def _docstring(subject: Subject, failure: Failure, environment: Mapping[str, str]) -> str:
    shown = {
        name: environment[name] for name in environment if name not in ("csa-spec", "python", "platform")
    }
    versions = ", ".join(f"{name} {version}" for name, version in shown.items())
    where = " where the function can be imported (PYTHONPATH=. python repro.py)" * subject.own_module
    paragraphs = [
        f"{failure.title[0].upper()}{failure.title[1:]}: {failure.detail}".rstrip(".") + ".",
        f"Run it with `python repro.py`{where}. It {_end(failure)} as long as the bug is there."
        + (f" Seen with {versions}." if versions else ""),
    ]
    text = "\n\n".join(textwrap.fill(paragraph, WIDTH, break_on_hyphens=False) for paragraph in paragraphs)
    text = text.replace("\\", "\\\\").replace('"""', "'''")
    return f'"""{text}\n"""'


def _end(failure: Failure) -> str:
    """Say how a script ends."""
    if isinstance(failure, CandidateRaised):
        return f"ends with {failure.facts['error']}"
    if isinstance(failure, CandidateHung):
        return "does not end"
    if isinstance(failure, CandidateDied):
        return "does not come to its end"
    return "ends with an AssertionError"
