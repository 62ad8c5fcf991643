"""Make a candidate of what a user gives: a function, an object or module with stages, or a name of one."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from csa_spec.plug.arrays import library_problem
from csa_spec.plug.candidate import Candidate, CandidateError, one_line
from csa_spec.plug.capabilities import DEVICES, DTYPES, Capabilities
from csa_spec.plug.position import HERE, stops_the_run
from csa_spec.spec import LayerKind
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
        if not thing.offers:
            raise CandidateError(f"{name} ({thing.name}) offers no stage: it has no functions")
        unknown = [stage for stage in thing.stages if stage not in STAGES]
        if unknown:
            raise CandidateError(f"{name}: unknown stage {unknown[0]!r}; choose from {', '.join(STAGES)}")
        _check_capabilities(thing.capabilities, name)
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
    _check_declared(getattr(thing, "capabilities", None), name)
    for own, function in functions.items():
        owner = name if function is thing else f"{name}.{own}"
        _check_declared(getattr(function, "capabilities", None), owner)
        _check_signature(function, own, owner)
    return Candidate(name, functions, getattr(thing, "capabilities", None) or Capabilities())


def _check_declared(declared: object, owner: str) -> None:
    if declared is None:
        return
    if not isinstance(declared, Capabilities):
        raise CandidateError(
            f"{owner}.capabilities must be csa_spec.Capabilities, not {type(declared).__name__}"
        )
    _check_capabilities(declared, owner)


def _check_signature(function: Callable[..., Any], stage: str, name: str) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a builtin, say
        return
    names = STAGES[stage].arguments
    try:
        signature.bind(*names)
    except TypeError as error:
        raise CandidateError(
            f"{name} cannot be called with the {len(names)} arguments of {stage} "
            f"({', '.join(names)}): {error}"
        ) from None


def _check_capabilities(capabilities: Capabilities, name: str) -> None:
    if not capabilities.kinds:
        raise CandidateError(f"{name} offers no stage: its capabilities name no layer kind")
    ratios = capabilities.compress_ratios
    if ratios is not None and (not ratios or min(ratios) < 1):
        raise CandidateError(f"{name} supports no compression ratio: {sorted(ratios)}")
    for what, known in (("dtypes", DTYPES), ("devices", DEVICES), ("kinds", tuple(LayerKind))):
        declared = getattr(capabilities, what)
        unknown = [declared] if isinstance(declared, str) else sorted(set(declared) - set(known))
        if unknown:
            raise CandidateError(
                f"{name}: capabilities.{what} must be a set out of {', '.join(known)}, not {unknown[0]!r}"
            )
    problem = library_problem(capabilities.arrays)
    if problem:
        raise CandidateError(f"{name}: capabilities.arrays: {problem}")
    for what, least in (("limits", 0), ("least", 0), ("multiples", 1)):
        sizes = capabilities.sizes[what].items()
        wrong = {key: size for key, size in sizes if not isinstance(size, int) or size < least}
        if wrong:
            raise CandidateError(
                f"{name}: capabilities.{what} must be integers of at least {least}, not {wrong}"
            )
    if capabilities.gradients and capabilities.arrays != "torch":
        raise CandidateError(f"{name}: gradients need torch's arrays, not {capabilities.arrays}'s")


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
        raise CandidateError(f"importing {module_name} failed: {error}") from error
    except BaseException as error:
        if stops_the_run(error):
            raise
        why = f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")
        raise CandidateError(f"importing {module_name} failed: {why}") from error
    try:
        for part in attribute.split("."):
            thing = getattr(thing, part)
        candidate = as_candidate(thing, path, stage)
    except CandidateError:
        raise
    except AttributeError:
        raise CandidateError(f"module {module_name} has no attribute {attribute!r}") from None
    except BaseException as error:
        if stops_the_run(error):
            raise
        raise CandidateError(
            f"{path} cannot be looked at: {type(error).__name__}: {one_line(error)}"
        ) from error
    return replace(candidate, name=path)
