"""Make a candidate of what a user gives: a function, an object or module with stages, or a name of one."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from csa_spec.candidates.declarations import capabilities_problem
from csa_spec.plug.candidate import Candidate, CandidateError
from csa_spec.plug.capabilities import Capabilities
from csa_spec.plug.names import did_you_mean, unknown
from csa_spec.plug.position import HERE, stops_the_run
from csa_spec.plug.raised import described, in_short
from csa_spec.stages import DEFAULT, STAGES


def as_candidate(thing: Any, name: str, stage: str | None = None) -> Candidate:
    """Make a candidate of a candidate, a function, or an object or module that has stages as attributes.

    Parameters
    ----------
    thing
        What to look at. It may also have ``capabilities`` (a :class:`Capabilities`), and so may each stage.
    name
        What to call it.
    stage
        What a bare function is. None: its attribute ``stage``, the stage that has its name, or a layer.

    Raises
    ------
    CandidateError
        If it offers no stage, or cannot be called as its stage is.
    """
    if isinstance(thing, Candidate):
        _check_stages(thing, name)
        if not thing.offers:
            raise CandidateError(f"{name} ({thing.name}) offers no stage: it has no functions")
        return thing
    if isinstance(thing, type):
        raise CandidateError(f"{name} is a class; give an instance of it, or a function")
    attributes = {name: getattr(thing, name, None) for name in STAGES}
    functions = {name: value for name, value in attributes.items() if callable(value)}
    if not functions and callable(thing):
        own_names = (getattr(thing, "stage", ""), getattr(thing, "__name__", ""))
        of_its_name = next((own for own in own_names if own in STAGES), DEFAULT.name)
        functions = {stage or of_its_name: thing}
    if not functions:
        *others, last = map(repr, STAGES)
        raise CandidateError(
            f"{name} offers no stage: it is neither callable nor has a callable attribute "
            f"{', '.join(others)} or {last} (it is of type {type(thing).__name__})"
        )
    declared = getattr(thing, "capabilities", None)
    _check_declared(declared, name)
    for own, function in functions.items():
        owner = name if function is thing else f"{name}.{own}"
        _check_declared(getattr(function, "capabilities", None), owner)
        _check_signature(function, own, owner, getattr(function, "capabilities", None) or declared)
    return Candidate(name, functions, declared or Capabilities())


def _check_declared(declared: object, owner: str) -> None:
    if declared is None:
        return
    if not isinstance(declared, Capabilities):
        raise CandidateError(
            f"{owner}.capabilities must be csa_spec.Capabilities, not {type(declared).__name__}"
        )
    problem = capabilities_problem(declared)
    if problem:
        raise CandidateError(f"{owner}: {problem}")


def _check_stages(candidate: Candidate, name: str) -> None:
    """Refuse a candidate that was put together wrongly."""
    if not isinstance(candidate.stages, Mapping) or not isinstance(candidate.own, Mapping):
        raise CandidateError(f"{name}: stages and own must be mappings by the name of the stage")
    odd = [stage for stage in (*candidate.stages, *candidate.own) if stage not in STAGES]
    if odd:
        raise CandidateError(f"{name}: {unknown('stage', odd[0], STAGES)}")
    for stage in candidate.offers:
        functions = candidate.functions(stage)
        if "" not in functions or not all(isinstance(mode, str) for mode in functions):
            raise CandidateError(f"{name}: the modes of {stage} must be texts, and one of them ''")
        if not all(map(callable, functions.values())):
            raise CandidateError(f"{name}: {stage} must be a function, or functions by mode")
    for declared in (candidate.capabilities, *candidate.own.values()):
        _check_declared(declared, name)


def _check_signature(
    function: Callable[..., Any], stage: str, name: str, declared: Capabilities | None
) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a builtin, say
        return
    names, extra = STAGES[stage].arguments, STAGES[stage].trial.extra(declared or Capabilities())
    try:
        signature.bind(*names, **dict.fromkeys(extra))
    except TypeError as error:
        raise CandidateError(
            f"{name} cannot be called with the {len(names)} arguments of {stage} "
            f"({', '.join(names)}){' and by name ' * bool(extra)}{', '.join(extra)}: {error}"
        ) from None


def import_candidate(path: str, stage: str | None = None) -> Candidate:
    """Import ``package.module:object`` and make a candidate of it; a bare function is ``stage``, or a layer.

    Raises
    ------
    CandidateError
        If the module cannot be imported, lacks the object, or the object offers no stage.
    """
    module_name, _, attribute = path.partition(":")
    if not attribute or not all(part.isidentifier() for part in module_name.split(".")):
        raise CandidateError(f"{path!r} is not of the form package.module:object")
    try:
        with HERE.importing(module_name):
            thing = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (
            module_name == error.name or module_name.startswith(error.name + ".")
        ):
            hint = (
                f"; write {module_name[:-3]}:{attribute}, without .py" if module_name.endswith(".py") else ""
            )
            raise CandidateError(f"there is no module {error.name!r} on the Python path{hint}") from None
        raise failed(f"importing {module_name} failed", error) from error
    except BaseException as error:
        if stops_the_run(error):
            raise
        raise failed(f"importing {module_name} failed", error) from error
    try:
        for part in attribute.split("."):
            thing = getattr(thing, part)
        candidate = as_candidate(thing, path, stage)
    except CandidateError:
        raise
    except AttributeError:
        meant = did_you_mean(part, vars(thing)) if hasattr(thing, "__dict__") else ""
        hint = f"; {meant}" if meant else ""
        raise CandidateError(f"module {module_name} has no attribute {attribute!r}{hint}") from None
    except BaseException as error:
        if stops_the_run(error):
            raise
        raise failed(f"{path} cannot be looked at", error) from error
    return replace(candidate, name=path)


def failed(what: str, error: BaseException) -> CandidateError:
    """Return what to raise for an exception of a candidate's own code: a sentence, and where it was."""
    lines = [f"{what}: {in_short(error)}", *described(error).trace]
    return CandidateError("\n  ".join(lines))
