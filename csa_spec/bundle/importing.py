"""What a script can import of a candidate."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any

from csa_spec.candidates import GROUP, SHIPPED
from csa_spec.plug.candidate import Candidate
from csa_spec.plug.position import stops_the_run
from csa_spec.report.content import quoted
from csa_spec.scripting.subject import Imported


def import_path(candidate: Candidate, stage: str) -> str | None:
    """Return ``package.module:object`` of a candidate's stage; None where it has none."""
    if candidate.name in SHIPPED:
        return f"{SHIPPED[candidate.name]}:load"
    for name in candidate.name.split(", "):  # of single stages, the names are joined
        entries = entry_points(group=GROUP, name=name)
        path = next((entry.value for entry in entries), name)
        result = imported(path, stage) if ":" in path else None
        if result is None:
            continue
        function = result.function
        is_of_stage = stage in (getattr(function, "stage", stage), getattr(function, "__name__", ""))
        if name == candidate.name or is_of_stage:
            return path
    return None


def imported(path: str, stage: str, mode: str = "", renamed: bool = False) -> Imported | None:
    """Return how a script imports a stage from ``package.module:object``; None if it cannot.

    It is ``renamed`` where the script uses the object's own name for something else.
    """
    module_name, _, attribute = path.partition(":")
    if "<" in attribute or module_name == "__main__":
        return None
    first, *rest = attribute.split(".")
    try:
        module = importlib.import_module(module_name)
        thing: Any = module
        for part in (first, *rest):
            thing = getattr(thing, part)
    except BaseException as error:
        if stops_the_run(error):
            raise
        return None
    expression = ".".join(["imported" if renamed else first, *rest])
    if module_name.startswith("csa_spec.candidates.") and attribute == "load":
        thing, expression = thing(), f"{expression}()"
    function, access = _stage_in(thing, stage, mode)
    if not callable(function):
        return None
    line = f"from {module_name} import {first}" + " as imported" * renamed
    return Imported(line, expression + access, function, module)


def _stage_in(thing: Any, stage: str, mode: str) -> tuple[Any, str]:
    """Return the function of a stage, and how it is reached from the thing that has it."""
    if isinstance(thing, Candidate):
        return thing.functions(stage).get(mode), f'.functions("{stage}")[{quoted(mode)}]'
    if callable(getattr(thing, stage, None)):
        return getattr(thing, stage), f".{stage}"
    return thing, ""
