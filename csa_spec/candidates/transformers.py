"""The attention layers of ``transformers``, release 5.8.0 and later, as the real model runs them.

The adapter builds a real one-layer ``DeepseekV4Model`` and calls it. A hook hands our hidden states to its
attention layer in place of the model's own, together with whatever mask, positions and rotary tables that
very release passes; another takes the layer's output and ends the call. So signatures that changed between
releases do not matter here, and a release that is not out yet has a good chance to work.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from csa_spec.candidates.transformers_cache import CacheStream
from csa_spec.plug.candidate import Candidate, CandidateError, one_line
from csa_spec.plug.capabilities import Capabilities
from csa_spec.spec import PADDING, Geometry, LayerKind, LayerWeights
from csa_spec.stages.layer.case import Feature
from csa_spec.stages.layer.output import LayerOutput

_LAYER_TYPES = {
    LayerKind.CSA: "compressed_sparse_attention",
    LayerKind.HCA: "heavily_compressed_attention",
    LayerKind.SLIDING: "sliding_attention",
}
_COMPRESSED = (LayerKind.CSA, LayerKind.HCA)
_PADDING_URL = "pads are pooled into entries: https://github.com/huggingface/transformers/issues/45938"
_COMPRESSED_LACKS = {
    Feature.LEFT_PADDING: _PADDING_URL,
    Feature.SHIFTED_START: "entries are placed as if the first position were 0",
    Feature.PACKING: "entries of one document are visible to the next; upstream does not support it",
}
_COMPRESSED_CACHE_LACKS = {
    "rollback": "crop leaves the state of the compressor as it is",
    "select": "batch_select_indices leaves the state of the compressor as it is",
    "repeat": "batch_repeat_interleave leaves the state of the compressor as it is",
}
_SLIDING_PACKING = "documents are told apart only without a cache and without a 2-D mask"
_EMPTIED = "batch_select_indices and batch_repeat_interleave skip a cache that crop has emptied"
_NARROW = "a window of one token keeps all tokens in the cache"
_LACKS: dict[tuple[str, str], str] = {
    **{(kind, name): reason for name, reason in _COMPRESSED_LACKS.items() for kind in _COMPRESSED},
    (LayerKind.SLIDING, Feature.PACKING): _SLIDING_PACKING,
    **{
        (f"cache {kind}", name): reason
        for kind in _COMPRESSED
        for name, reason in _COMPRESSED_CACHE_LACKS.items()
    },
    **{(f"cache {kind}", "window of one token"): _NARROW for kind in LayerKind},
    (f"cache {LayerKind.SLIDING}", "select or repeat of emptied rows"): _EMPTIED,
}

WEIGHT_NAMES = {
    "q_a_proj.weight": "wq_a",
    "q_a_norm.weight": "q_norm",
    "q_b_proj.weight": "wq_b",
    "kv_proj.weight": "wkv",
    "kv_norm.weight": "kv_norm",
    "o_a_proj.weight": "wo_a",
    "o_b_proj.weight": "wo_b",
    "sinks": "attn_sink",
    "compressor.kv_proj.weight": "compressor.wkv",
    "compressor.gate_proj.weight": "compressor.wgate",
    "compressor.position_bias": "compressor.ape",
    "compressor.kv_norm.weight": "compressor.norm",
    "compressor.indexer.kv_proj.weight": "indexer.compressor.wkv",
    "compressor.indexer.gate_proj.weight": "indexer.compressor.wgate",
    "compressor.indexer.position_bias": "indexer.compressor.ape",
    "compressor.indexer.kv_norm.weight": "indexer.compressor.norm",
    "compressor.indexer.q_b_proj.weight": "indexer.wq_b",
    "compressor.indexer.weights_proj.weight": "indexer.weights_proj",
    "compressor.indexer.scorer.weights_proj.weight": "indexer.weights_proj",  # since 5.10
}
"""Parameter of ``DeepseekV4Attention``: official name."""


def load() -> Candidate:
    """Return the installed transformers as a candidate.

    Raises
    ------
    CandidateError
        If transformers is not installed, cannot be imported, or has no DeepSeek-V4.
    """
    package = "transformers.models.deepseek_v4"
    try:
        version = importlib.import_module("transformers").__version__
        modeling = importlib.import_module(f"{package}.modeling_deepseek_v4")
        configuration = importlib.import_module(f"{package}.configuration_deepseek_v4")
    except ModuleNotFoundError as error:
        if error.name == "transformers":
            raise CandidateError("transformers is not installed; `pip install transformers`") from None
        if error.name is not None and error.name.startswith(package):
            raise CandidateError(f"transformers {version} has no DeepSeek-V4; it came with 5.8.0") from None
        raise CandidateError(f"importing transformers failed: {error}") from error
    except (Exception, SystemExit) as error:
        raise CandidateError(
            f"importing transformers failed: {type(error).__name__}: {one_line(error)}"
        ) from error
    try:
        return from_modules(modeling, configuration, {"transformers": version})
    except AttributeError as error:
        raise CandidateError(f"transformers {version} is not what this adapter knows: {error}") from error


def from_modules(
    modeling: ModuleType, configuration: ModuleType, environment: Mapping[str, str]
) -> Candidate:
    """Make a candidate of a modeling module and its configuration module (a patched copy, for instance)."""
    adapter = _Adapter(modeling, configuration)
    # In training the model runs without a cache; its default at inference is to fill one.
    modes = {"": partial(adapter.run, use_cache=False), "cache": partial(adapter.run, use_cache=True)}
    return Candidate(
        "transformers",
        {"layer": modes, "cache": adapter.open},
        # Norms, rotary tables and index scores are float32 inside, whatever the dtype of the model.
        Capabilities(lacks=_LACKS, internal_dtype="float32", batch_invariant=False),
        dict(environment),
        implementation=getattr(modeling, "DeepseekV4Attention", None),
    )


class _LayerDone(Exception):
    """Ends the model's forward once the attention layer has answered."""


class _Adapter:
    def __init__(self, modeling: ModuleType, configuration: ModuleType) -> None:
        self._model_class: Callable[[Any], torch.nn.Module] = modeling.DeepseekV4Model
        self._config_class: Callable[..., Any] = configuration.DeepseekV4Config
        self._cache_class: Callable[..., Any] = modeling.DynamicCache
        self._model = lru_cache(maxsize=64)(self._build_model)

    def run(
        self,
        hidden: Tensor,
        weights: LayerWeights,
        geometry: Geometry,
        positions: Tensor,
        documents: Tensor,
        use_cache: bool,
    ) -> LayerOutput:
        """Run the attention layer on one batch."""
        rows = rows_arguments(positions, documents)
        return _exposed(self.attend(hidden, weights, geometry, use_cache=use_cache, **rows))

    def attend(
        self, hidden: Tensor, weights: LayerWeights, geometry: Geometry, **arguments: Any
    ) -> dict[str, Any]:
        """Run the attention layer inside the model's own forward; return what its modules returned.

        Parameters
        ----------
        hidden, weights, geometry
            As for a layer.
        arguments
            The model's own, beside ``inputs_embeds``.
        """
        model = self._model(geometry, hidden.dtype, hidden.device)
        attention = model.layers[0].self_attn  # type: ignore[union-attr, index]
        named = weights.named()
        with torch.no_grad():
            for name, parameter in attention.named_parameters():
                parameter.copy_(named[WEIGHT_NAMES[name]])
        seen: dict[str, Any] = {}
        handles = [
            attention.register_forward_pre_hook(partial(_hand_over, hidden), with_kwargs=True),
            attention.register_forward_hook(partial(_finish, seen)),
        ]
        compressor = getattr(attention, "compressor", None)
        indexer = getattr(compressor, "indexer", None)
        scorer = getattr(indexer, "scorer", None)
        for name, module in (("compressor", compressor), ("selection", indexer), ("index_scores", scorer)):
            if module is not None:
                handles.append(module.register_forward_hook(partial(_keep, seen, name)))
        try:
            model(inputs_embeds=hidden, **arguments)
        except _LayerDone:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def open(self, weights: LayerWeights, geometry: Geometry, batch: int) -> CacheStream:
        """Open a stream on an empty cache of the kind that the release makes for such a layer."""
        return self.open_as(CacheStream, weights, geometry)

    def open_as(self, kind: type[CacheStream], weights: LayerWeights, geometry: Geometry) -> CacheStream:
        """Open a stream of a class of its own."""
        model = self._model(geometry, weights.wkv.dtype, weights.wkv.device)
        # Other streams on the same model may have other weights, so every call brings its own.
        attend = partial(self.attend, weights=weights, geometry=geometry)
        return kind(attend, self._cache_class(config=model.config))

    def _build_model(self, geometry: Geometry, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        logger = logging.getLogger("transformers")
        level = logger.level
        # Some releases warn about rotary settings that they themselves fill in.
        logger.setLevel(logging.ERROR)
        try:
            with torch.random.fork_rng(devices=[]):
                model = self._model_class(self._config_class(**configuration_of(geometry)))
        finally:
            logger.setLevel(level)
        return model.to(dtype).to(device).eval()


def _hand_over(hidden: Tensor, module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Replace the hidden states of the call, wherever the release passes them."""
    if "hidden_states" in kwargs:
        return args, {**kwargs, "hidden_states": hidden}
    return (hidden, *args[1:]), kwargs


def _keep(seen: dict[str, Any], name: str, module: object, args: object, output: Any) -> None:
    seen[name] = output


def _finish(seen: dict[str, Any], module: object, args: object, output: Any) -> None:
    seen["attention"] = output
    raise _LayerDone


def _exposed(seen: dict[str, Any]) -> LayerOutput:
    out, probabilities = seen["attention"]
    entries = None
    if isinstance(seen.get("compressor"), tuple):  # 5.8.0 returns what it gathered, not the entries
        entries = seen["compressor"][0].squeeze(1)
    return LayerOutput(out, entries, seen.get("index_scores"), seen.get("selection"), probabilities)


def rows_arguments(positions: Tensor, documents: Tensor) -> dict[str, Tensor]:
    """Return the arguments that a user of the model passes for such rows."""
    real = documents != PADDING
    arguments: dict[str, Tensor] = {}
    if not bool(real.all()):
        arguments["attention_mask"] = real.long()
    plain = torch.arange(positions.shape[1], device=positions.device).expand_as(positions)
    if not torch.equal(positions[real], plain[real]):
        arguments["position_ids"] = positions
    return arguments


def configuration_of(geometry: Geometry) -> dict[str, Any]:
    """Return the arguments of ``DeepseekV4Config`` for a model of one layer."""
    g = geometry
    # int(head_dim * factor) must be rope_dim again, so aim at the middle.
    partial_rotary_factor = (g.rope_dim + 0.5) / g.head_dim if g.rope_dim < g.head_dim else 1.0
    rope: dict[str, Any] | None = None
    longest = 1 << 20
    if g.yarn is not None:
        longest = round(g.yarn.factor * g.yarn.original_max_position)  # anything else draws a warning
        rope = {
            "rope_type": "yarn",
            "factor": g.yarn.factor,
            "original_max_position_embeddings": g.yarn.original_max_position,
            "beta_fast": g.yarn.beta_fast,
            "beta_slow": g.yarn.beta_slow,
        }
    return {
        "vocab_size": 2,
        "hidden_size": g.hidden,
        "moe_intermediate_size": 1,
        "num_hidden_layers": 1,
        "num_attention_heads": g.heads,
        "head_dim": g.head_dim,
        "partial_rotary_factor": partial_rotary_factor,
        "q_lora_rank": g.q_lora_rank,
        "num_experts_per_tok": 1,
        "n_routed_experts": 1,
        "layer_types": [_LAYER_TYPES[g.kind]],
        "mlp_layer_types": ["moe"],
        "compress_rates": {_LAYER_TYPES[kind]: g.compress_ratio for kind in _COMPRESSED},
        "sliding_window": g.window,
        "o_groups": g.o_groups,
        "o_lora_rank": g.o_lora_rank,
        "index_n_heads": g.index_heads,
        "index_head_dim": g.index_head_dim,
        "index_topk": g.top_k,
        "hc_mult": 1,
        "hc_sinkhorn_iters": 1,
        "rope_theta": g.rope_theta,
        "compress_rope_theta": g.compress_rope_theta,
        "rope_parameters": rope,
        "max_position_embeddings": longest,
        "rms_norm_eps": g.norm_eps,
    }
