"""How a script makes the inputs of a case and calls the implementation under test."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from csa_spec.bundle.literals import WIDTH, Literals, number
from csa_spec.bundle.streams import OWN, TRANSFORMERS, Schedule, tokens_name, wrong_call
from csa_spec.candidates import GROUP, SHIPPED
from csa_spec.candidates.transformers import WEIGHT_NAMES, configuration_of, rows_arguments
from csa_spec.engine.failures import CandidateDied, CandidateHung, CandidateRaised, Failure
from csa_spec.engine.trial import Trial
from csa_spec.plug.candidate import Candidate
from csa_spec.spec import CompressorWeights, Geometry, LayerKind, LayerWeights
from csa_spec.stages.cache.trial import CacheTrial


@dataclass
class Subject:
    """The part of a script that comes before its assertions."""

    imports: list[str]
    data: dict[str, list[str]]
    """The lines that make tensors, by argument"""
    setup: list[str]
    names: tuple[str, ...]
    """Variables that the implementation is called with, in order"""
    batched: tuple[str, ...]
    """Those of them whose first dimension is the rows of the batch"""
    function: str
    keywords: tuple[str, ...] = ()
    """Those of them that are passed by name"""
    schedule: Schedule | None = None
    """How the calls of a stream are written; None where all are in a function"""
    plain_call: str = ""
    """A call whose result is what the implementation returns; empty where there is none"""
    own: bool = False
    """Whether it takes the classes of the specification"""

    def call(self, **changes: str) -> str:
        """Return a call, with other expressions for some variables."""
        given = ((name, changes.get(name, name)) for name in self.names)
        return f"{self.function}({', '.join(f'{n}={e}' if n in self.keywords else e for n, e in given)})"

    def follow(self, trial: CacheTrial, failure: Failure, whole: bool) -> None:
        """Put the calls of a stream into a function where the script needs all answers, and not one."""
        known = (
            isinstance(failure, (CandidateRaised, CandidateHung, CandidateDied))
            or wrong_call(failure) is not None
        )
        if self.schedule is not None and (whole or not known):
            self.setup += self.schedule.function(self.function, self.names, trial.case, failure)
            self.schedule = None

    def each(self, form: str) -> dict[str, str]:
        """Return an expression for every batched variable, e.g. of ``{}[:1]``."""
        return {name: form.format(name) for name in self.batched}


def subject_of(trial: Trial, literals: Literals) -> Subject | None:
    """Return how a script calls a candidate; None where a script cannot."""
    literals.device = trial.case.device
    if trial.candidate.name == "transformers":
        return _transformers(trial, literals)
    path = import_path(trial.candidate, trial.stage)
    found = None if path is None else _imported(path, trial.stage, trial.case.mode)
    return None if found is None else _function(trial, literals, *found)


def import_path(candidate: Candidate, stage: str) -> str | None:
    """Return ``package.module:object`` of a candidate's stage; None where it has none."""
    if candidate.name in SHIPPED:
        return f"{SHIPPED[candidate.name]}:load"
    for name in candidate.name.split(", "):  # of single stages, the names are joined
        entries = entry_points(group=GROUP, name=name)
        path = next((entry.value for entry in entries), name)
        found = _imported(path, stage, "") if ":" in path else None
        if found is not None and (name == candidate.name or _is_of(found[2], stage)):
            return path
    return None


def _is_of(thing: Any, stage: str) -> bool:
    return stage in (getattr(thing, "stage", stage), getattr(thing, "__name__", ""))


def _imported(path: str, stage: str, mode: str) -> tuple[str, str, Any, ModuleType] | None:
    """Return the import line, the expression, the function and its module; None if it is not importable."""
    module_name, _, attribute = path.partition(":")
    if "<" in attribute or module_name == "__main__":
        return None
    try:
        module = importlib.import_module(module_name)
        thing: Any = module
        for part in attribute.split("."):
            thing = getattr(thing, part)
    except (Exception, SystemExit):
        return None
    first, *rest = attribute.split(".")
    bound = f"{first} as imported" if first in _RESERVED else first
    expression = ".".join([bound.rpartition(" ")[2], *rest])
    if module_name.startswith("csa_spec.candidates.") and attribute == "load":
        thing, expression = thing(), f"{expression}()"
    if isinstance(thing, Candidate):
        place = ("layers", mode) if stage == LAYER else ("stages", stage)
        function = getattr(thing, place[0]).get(place[1])
        expression += f'.{place[0]}["{place[1]}"]'
    elif callable(getattr(thing, stage, None)):
        function, expression = getattr(thing, stage), f"{expression}.{stage}"
    else:
        function = thing
    return (
        (f"from {module_name} import {bound}", expression, function, module) if callable(function) else None
    )


_RESERVED = {
    "torch", "numpy", "hidden", "weights", "geometry", "positions", "documents", "index_q", "index_k", "head_weights",
    "scores", "compress_ratio", "top_k", "q", "kv", "indices", "sinks", "scale", "run", "expected", "allowed",
    "wrong", "tensors", "row", "first", "second", "out", "changed", "alone", "right", "shown", "best",
    "inputs", "before", "stream", "other", "original", "state", "answers", "outs", "cotangent", "after", "valid",
    "picks", "kept", "got",
}  # fmt: skip


def _function(
    trial: Trial, literals: Literals, line: str, expression: str, function: Any, module: ModuleType
) -> Subject:
    arrays, own = trial.capabilities.arrays, _takes_our_classes(module)
    imports, setup = [line], []
    data: dict[str, list[str]] = {}
    convert = {"torch": "{}", "numpy": "{}.numpy()"}.get(arrays, "from_dlpack({})")
    back = {"torch": "{}", "numpy": "torch.as_tensor(numpy.array({}))"}.get(arrays, "torch.from_dlpack({})")
    back += ".cpu()" if literals.device != "cpu" else ""
    literals.wrap = convert
    if arrays == "numpy":
        imports.append("import numpy")
    elif arrays != "torch":
        imports.append(f"from {arrays} import from_dlpack")
    arguments = _arguments(trial)
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            data[name] = [f"{name} = {literals.of(name, value)}"]
        elif isinstance(value, Geometry):
            setup += _geometry(value, own)
        elif isinstance(value, (LayerWeights, CompressorWeights)):
            data[name] = _weights(value, literals, own)
        else:
            setup.append(f"{name} = {number(value) if isinstance(value, float) else value}")
    if {"weights", "geometry"} & arguments.keys():
        classes = ("Geometry", "LayerKind", type(arguments["weights"]).__name__)
        if own:
            imports.append(f"from csa_spec.spec import {', '.join(sorted({*classes, *_yarn(arguments)}))}")
        else:
            imports.append("from types import SimpleNamespace")
    names = tuple(arguments)
    if isinstance(trial, CacheTrial):
        opened = f"{expression}(weights, geometry, {trial.case.batch})"
        extend = back.format(f"{{stream}}.extend({convert.format('{tokens}')})")
        names = tuple(name for name in names if name != "geometry")
        return Subject(imports, data, setup, names, (), "answers", schedule=Schedule(opened, extend, OWN))
    given = (
        convert.format(name) if isinstance(value, Tensor) else name for name, value in arguments.items()
    )
    plain = f"{expression}({', '.join(given)})"
    called = expression
    if arrays != "torch" or trial.stage == LAYER or literals.device != "cpu":
        setup += ["", "", f"def run({', '.join(names)}):", f"    out = {plain}"]
        if trial.stage == LAYER:
            setup.append('    out = getattr(out, "out", out)  # a layer may show more than its output')
        setup += [f"    return {back.format('out')}", "", ""]
        called = "run"
    return Subject(imports, data, setup, names, trial.batched, called, plain_call=plain, own=own)


def _arguments(trial: Trial) -> dict[str, Any]:
    """Return a trial's arguments by variable; the schedule of a stream, and its batch, are lines of the script."""
    if not isinstance(trial, CacheTrial):
        return dict(trial.arguments)
    tokens = {tokens_name(step.call): trial.arguments[f"tokens {step.call}"] for step in trial.case.steps}
    return {name: trial.arguments[name] for name in ("weights", "geometry")} | tokens


def _yarn(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    return ("Yarn",) if arguments["geometry"].yarn is not None else ()


def _takes_our_classes(module: ModuleType) -> bool:
    """Whether a module works with the classes of the specification, so that plain objects may not do."""
    return module.__name__.startswith("csa_spec.") or any(
        str(getattr(one, "__module__", "")).startswith("csa_spec.spec") for one in vars(module).values()
    )


def _geometry(geometry: Geometry, own: bool) -> list[str]:
    values = {one.name: getattr(geometry, one.name) for one in fields(geometry)}
    values["kind"] = f"LayerKind.{geometry.kind.name}" if own else f'"{geometry.kind}"'
    if geometry.yarn is not None:
        inner = ", ".join(
            f"{one.name}={getattr(geometry.yarn, one.name)!r}" for one in fields(geometry.yarn)
        )
        values["yarn"] = f"{'Yarn' if own else 'SimpleNamespace'}({inner})"
    words = [f"{name}={value}" for name, value in values.items()]
    if not own:
        count = "0" if geometry.kind == "sliding" else f"length // {geometry.compress_ratio}"
        words += [
            f"overlap={geometry.overlap}",
            f"scale={geometry.scale!r}",
            f"entry_count=lambda length: {count}",
        ]
    return _wrapped(f"geometry = {'Geometry' if own else 'SimpleNamespace'}(", words, ")")


def _wrapped(head: str, words: list[str], tail: str, indent: str = "") -> list[str]:
    """Return a call, or a dictionary, whose items fill lines."""
    lines, line = [f"{indent}{head}"], f"{indent}   "
    for word in words:
        if ("\n" in line + word or len(f"{line} {word},") > WIDTH) and line.strip():
            lines.append(line)
            line = f"{indent}   "
        line += f" {word},"
    return [*lines, line, f"{indent}{tail}"]


def _weights(weights: LayerWeights | CompressorWeights, literals: Literals, own: bool) -> list[str]:
    if isinstance(weights, CompressorWeights):
        return _namespace(
            "weights = ", weights, literals, "CompressorWeights" if own else "SimpleNamespace", "", ""
        )
    if own:
        lines = ["weights = LayerWeights.from_named({"]
        lines += [
            f'    "{name}": {literals.given(name, one, "    ")},' for name, one in weights.named().items()
        ]
        return [*lines, "})"]
    lines = _namespace("weights = ", weights, literals, "SimpleNamespace", "", "")
    words = [f'"{name}": weights.{name}' for name in weights.named()]
    return lines + _wrapped("weights.named = lambda: {", words, "}")


def _namespace(head: str, part: Any, literals: Literals, kind: str, prefix: str, indent: str) -> list[str]:
    lines, inner = [f"{indent}{head}{kind}("], indent + "    "
    for one in fields(part):
        value = getattr(part, one.name)
        if isinstance(value, Tensor):
            lines.append(f"{inner}{one.name}={literals.given(prefix + one.name, value, inner)},")
        elif value is None:
            lines.append(f"{inner}{one.name}=None,")
        else:
            lines += _namespace(f"{one.name}=", value, literals, kind, f"{prefix}{one.name}.", inner)
    return [*lines, f"{indent}){',' if indent else ''}"]


# transformers


def _transformers(trial: Trial, literals: Literals) -> Subject:
    """Build a real model of one layer, as the adapter does, with hooks in place of its other layers."""
    arguments, geometry = _arguments(trial), trial.arguments["geometry"]
    stream = isinstance(trial, CacheTrial)
    weights = arguments.pop("weights")
    named, dtype = weights.named(), weights.wkv.dtype
    rows = {} if stream else rows_arguments(arguments["positions"], arguments["documents"])
    tensors = {
        name: value
        for name, value in arguments.items()
        if name == "hidden" or (stream and name != "geometry")
    }
    data = {name: [f"{name} = {literals.of(name, tensor)}"] for name, tensor in (tensors | rows).items()}
    entries = [
        f'"{name}": {literals.plain(name, named[official])}'
        for name, official in WEIGHT_NAMES.items()
        if official in named and "scorer" not in name
    ]
    data["weights"] = _wrapped("weights = {", entries, "}")
    on_cpu = trial.case.device == "cpu"
    if not on_cpu:
        move = f'.to({dtype}).to("{trial.case.device}")'
    else:
        move = "" if dtype == torch.float32 else f".to({dtype})"
    cache = "past_key_values=cache, use_cache=True" if stream else f"use_cache={trial.case.mode == 'cache'}"
    given = ", ".join(["inputs_embeds=hidden", cache, *(f"{name}={name}" for name in rows)])
    signature = ", ".join(["hidden", *["cache"] * stream, *(f"{name}=None" for name in rows)])
    setup = [
        *_config(geometry),
        f"model = DeepseekV4Model(config){move}.eval()",
        "model.layers[0].mlp.forward = lambda hidden, **_: hidden  # the experts are not needed",
        "attention = model.layers[0].self_attn",
        "with torch.no_grad():",
        "    for name, parameter in attention.named_parameters():",
        '        values = weights[name.replace("indexer.scorer.", "indexer.")]  # its name since 5.10',
        "        parameter.copy_(torch.as_tensor(values, dtype=parameter.dtype))",
        "# The attention gets our hidden states in place of those that the model makes of them.",
        "given, out = [], []",
        "attention.register_forward_pre_hook(lambda module, args: (given[-1], *args[1:]))",
        "attention.register_forward_hook(lambda module, args, output: out.append(output[0]))",
        "",
        "",
        f"def run({signature}):",
        "    given.append(hidden)",
        "    with torch.no_grad():",
        f"        model({given})",
        f"    return out[-1]{'' if on_cpu else '.cpu()'}",
        "",
        "",
    ]
    imports = ["import transformers", "from transformers import DeepseekV4Config, DeepseekV4Model"]
    names = tuple(tensors | rows)
    if stream:
        imports[1] += ", DynamicCache"
        device = "" if on_cpu else f', device="{trial.case.device}"'
        schedule = Schedule(
            "DynamicCache(config=config)",
            "run({tokens}, {stream})",
            TRANSFORMERS,
            stream="cache",
            device=device,
        )
        return Subject(imports, data, setup, names, (), "answers", schedule=schedule)
    return Subject(imports, data, setup, names, names, "run", tuple(rows))


def _config(geometry: Geometry) -> list[str]:
    """Return the lines of the configuration; what is the default of every release is left out."""
    defaults = {"rope_theta": 10000.0, "compress_rope_theta": 160000.0, "rms_norm_eps": 1e-6, "rope_parameters": None,
                "max_position_embeddings": 1 << 20}  # fmt: skip
    left_out = {"hc_mult", "hc_sinkhorn_iters"}
    if geometry.kind is not LayerKind.CSA:
        left_out |= {"index_n_heads", "index_head_dim", "index_topk"}
    config = configuration_of(geometry)
    words = [
        f"{name}={_quoted(value)}"
        for name, value in config.items()
        if name not in left_out and defaults.get(name, config) != value
    ]
    return _wrapped("config = DeepseekV4Config(", words, ")")


def _quoted(value: Any) -> str:
    text = repr(value).replace("'", '"')
    return text if len(text) < 100 else f"{{\n        {text[1:-1]},\n    }}"
