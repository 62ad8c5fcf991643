"""Scripts about ``transformers``: a real model of one layer, as the adapter builds it, in its own API."""

from __future__ import annotations

from typing import Any

import torch

from csa_spec.candidates.transformers import WEIGHT_NAMES, configuration_of, rows_arguments
from csa_spec.scripting.literals import Literals, wrapped
from csa_spec.scripting.subject import Subject
from csa_spec.spec import Geometry, LayerKind, LayerWeights
from csa_spec.stages.cache.schedule import Schedule
from csa_spec.stages.cache.stream import Op

_OPS = {
    Op.ROLLBACK: "{stream}.crop(-{numbers})",
    Op.RESET: "{stream}.reset()",
    Op.REORDER: "{stream}.reorder_cache(torch.tensor([{numbers}]{device}))",
    Op.SELECT: "{stream}.batch_select_indices(torch.tensor([{numbers}]{device}))",
    Op.REPEAT: "{stream}.batch_repeat_interleave({numbers})",
    Op.FORK: "original, {stream} = {stream}, copy.deepcopy({stream})",
    Op.SAVE: "state = copy.deepcopy({stream})",
    Op.RESTORE: "{stream} = copy.deepcopy(state)",
}
"""How a cache of transformers is asked for something."""
_DEFAULTS = {
    "rope_theta": 10000.0,
    "compress_rope_theta": 160000.0,
    "rms_norm_eps": 1e-6,
    "rope_parameters": None,
    "max_position_embeddings": 1 << 20,
}
"""Of the configuration, in every release."""


def subject_of(trial: Any, arguments: dict[str, Any], literals: Literals) -> Subject:
    """Return how a script builds the model and calls it.

    Parameters
    ----------
    trial
        The candidate on a case of ``layer`` or ``cache``.
    arguments
        Those of the stage, by variable.
    literals
        Those of the script.
    """
    stream = trial.stage == "cache"
    weights, geometry = arguments["weights"], arguments["geometry"]
    rows = {} if stream else rows_arguments(arguments["positions"], arguments["documents"])
    hidden = {name: value for name, value in arguments.items() if name.startswith(("hidden", "tokens_"))}
    lines = [f"{name} = {literals.of(name, tensor)}" for name, tensor in (hidden | rows).items()]
    lines += [*_weights(weights, literals), *_config(geometry)]
    lines += _model(weights.wkv.dtype, trial.case.device)
    cache = "past_key_values=cache, use_cache=True" if stream else f"use_cache={trial.case.mode == 'cache'}"
    imports = ["import transformers", "from transformers import DeepseekV4Config, DeepseekV4Model"]
    subject = Subject(imports, lines, (*hidden, *rows), (*hidden, *rows), "run", tuple(rows))
    subject.own_module = False
    on_cpu = trial.case.device == "cpu"
    subject.define(
        "run",
        ("hidden", *["cache"] * stream, *(f"{name}=None" for name in rows)),
        [
            "given.append(hidden)",
            "with torch.no_grad():",
            f"    model({', '.join(['inputs_embeds=hidden', cache, *(f'{name}={name}' for name in rows)])})",
            f"return out[-1]{'' if on_cpu else '.cpu()'}",
        ],
    )
    if stream:
        imports[1] += ", DynamicCache"
        device = "" if on_cpu else f', device="{trial.case.device}"'
        opened, extend = "DynamicCache(config=config)", "run({tokens}, {stream})"
        subject.schedule = Schedule(opened, extend, _OPS, stream="cache", device=device)
    return subject


def _weights(weights: LayerWeights, literals: Literals) -> list[str]:
    """Return a dictionary of the weights as nested lists, by the name of the parameter."""
    named = weights.named()
    entries = [
        f'"{name}": {literals.plain(name, named[official])}'
        for name, official in WEIGHT_NAMES.items()
        if official in named and "scorer" not in name
    ]
    return wrapped("weights = {", entries, "}")


def _config(geometry: Geometry) -> list[str]:
    """Return the lines of the configuration; what is the default of every release is left out."""
    left_out = {"hc_mult", "hc_sinkhorn_iters"}
    if geometry.kind is not LayerKind.CSA:
        left_out |= {"index_n_heads", "index_head_dim", "index_topk"}
    config = configuration_of(geometry)
    items = [
        f"{name}={_quoted(value)}"
        for name, value in config.items()
        if name not in left_out and not (name in _DEFAULTS and _DEFAULTS[name] == value)
    ]
    return wrapped("config = DeepseekV4Config(", items, ")")


def _quoted(value: Any) -> str:
    text = repr(value).replace("'", '"')
    return text if len(text) < 100 else f"{{\n        {text[1:-1]},\n    }}"


def _model(dtype: torch.dtype, device: str) -> list[str]:
    """Return the lines that make the model, with hooks in place of its other layers."""
    move = "" if dtype == torch.float32 and device == "cpu" else f".to({dtype})"
    move += "" if device == "cpu" else f'.to("{device}")'
    return [
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
    ]
