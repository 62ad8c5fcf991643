"""The lines of a script that make the arguments of a call, and the import of what is called."""

from __future__ import annotations

from dataclasses import fields
from types import ModuleType
from typing import Any

from torch import Tensor

from csa_spec.plug.capabilities import Capabilities
from csa_spec.scripting.literals import Literals, number, wrapped
from csa_spec.scripting.stage_script import StageScript
from csa_spec.scripting.subject import Callee, Imported, Subject
from csa_spec.spec import CompressorWeights, Geometry, LayerKind, LayerWeights, Yarn


def subject_of(trial: Any, script: StageScript, literals: Literals, target: Imported) -> Subject:
    """Return how a script makes a case's arguments and calls an imported function."""
    arguments, own = script.arguments(trial), _takes_our_classes(target.module)
    callee, libraries = _callee(target.expression, trial.capabilities, literals.device)
    literals.wrap = callee.hand_over
    tensors, others = [], []
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            tensors.append(f"{name} = {literals.of(name, value)}")
        elif isinstance(value, Geometry):
            others += _geometry(value, own)
        elif isinstance(value, LayerWeights):
            tensors += _layer_weights(value, literals, own)
        elif isinstance(value, CompressorWeights):
            tensors += _fields("weights = ", value, literals, "CompressorWeights" if own else _PLAIN)
        else:
            others.append(f"{name} = {number(value) if isinstance(value, float) else value}")
    imports = [target.line, *libraries, *_classes(arguments, own)]
    subject = Subject(imports, [*tensors, *others], tuple(arguments))
    subject.tensors = frozenset(name for name, value in arguments.items() if isinstance(value, Tensor))
    script.write_call(subject, trial, callee)
    return subject


def _callee(expression: str, capabilities: Capabilities, device: str) -> tuple[Callee, list[str]]:
    """Return what is called, with the conversions of its arrays, and the imports that those need."""
    arrays, to_cpu = capabilities.arrays, ".cpu()" if device != "cpu" else ""
    if arrays == "torch":
        return Callee(expression, "{}", "{}" + to_cpu), []
    if arrays == "numpy":
        return Callee(expression, "{}.numpy()", "torch.as_tensor(numpy.array({}))"), ["import numpy"]
    back = "torch.from_dlpack({})" + to_cpu
    return Callee(expression, "from_dlpack({})", back), [f"from {arrays} import from_dlpack"]


_PLAIN = "SimpleNamespace"
"""Stands for the classes of the specification, so that scripts do not need this package."""


def _takes_our_classes(module: ModuleType) -> bool:
    """Whether a module works with the classes of the specification, so that plain objects may not do."""
    return module.__name__.startswith("csa_spec.") or any(
        str(getattr(value, "__module__", "")).startswith("csa_spec.spec") for value in vars(module).values()
    )


def _classes(arguments: dict[str, Any], own: bool) -> list[str]:
    """Return the imports that geometry and weights need."""
    if not {"weights", "geometry"} & arguments.keys():
        return []
    if not own:
        return [f"from types import {_PLAIN}"]
    names = {"Geometry", "LayerKind", type(arguments["weights"]).__name__}
    names |= {"Yarn"} if arguments["geometry"].yarn is not None else set()
    return [f"from csa_spec.spec import {', '.join(sorted(names))}"]


def _geometry(geometry: Geometry, own: bool) -> list[str]:
    values = {field.name: getattr(geometry, field.name) for field in fields(geometry)}
    values["kind"] = f"LayerKind.{geometry.kind.name}" if own else f'"{geometry.kind}"'
    if geometry.yarn is not None:
        yarn = ", ".join(f"{part.name}={getattr(geometry.yarn, part.name)!r}" for part in fields(Yarn))
        values["yarn"] = f"{'Yarn' if own else _PLAIN}({yarn})"
    items = [f"{name}={value}" for name, value in values.items()]
    if not own:
        sliding = geometry.kind is LayerKind.SLIDING
        count = "0" if sliding else f"length // {geometry.compress_ratio}"
        items += [f"overlap={geometry.overlap}", f"scale={geometry.scale!r}"]
        items.append(f"entry_count=lambda length: {count}")
    return wrapped(f"geometry = {'Geometry' if own else _PLAIN}(", items, ")")


def _layer_weights(weights: LayerWeights, literals: Literals, own: bool) -> list[str]:
    if own:
        tensors = weights.named().items()
        entries = (f'    "{name}": {literals.given(name, tensor, "    ")},' for name, tensor in tensors)
        return ["weights = LayerWeights.from_named({", *entries, "})"]
    words = [f'"{name}": weights.{name}' for name in weights.named()]
    lines = _fields("weights = ", weights, literals, _PLAIN)
    return lines + wrapped("weights.named = lambda: {", words, "}")


def _fields(
    head: str, part: Any, literals: Literals, kind: str, prefix: str = "", indent: str = ""
) -> list[str]:
    """Return a call that makes a dataclass with its inner ones."""
    lines, inner = [f"{indent}{head}{kind}("], indent + "    "
    for field in fields(part):
        name, value = field.name, getattr(part, field.name)
        if isinstance(value, Tensor):
            lines.append(f"{inner}{name}={literals.given(prefix + name, value, inner)},")
        elif value is None:
            lines.append(f"{inner}{name}=None,")
        else:
            lines += _fields(f"{name}=", value, literals, kind, f"{prefix}{name}.", inner)
    return [*lines, f"{indent}){',' if indent else ''}"]
