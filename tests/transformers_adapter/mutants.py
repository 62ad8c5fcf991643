"""Wrong copies of transformers' modeling file, one changed line each.

They say how much the suite sees of mistakes that people make in real code. Run this file as a script to see, for each,
which layer kind and check of the default profile finds it first, and how fast.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import transformers
from transformers.models.deepseek_v4 import configuration_deepseek_v4, modeling_deepseek_v4

from csa_spec.candidates.transformers import from_modules
from csa_spec.engine.running import CheckResult
from csa_spec.engine.stage import Check
from csa_spec.plug.candidate import Candidate
from csa_spec.resolving import resolve_profile
from csa_spec.spec import LayerKind
from csa_spec.stages.layer.stage import LAYER
from csa_spec.target import Target

WRITTEN_FOR = "5.23.0"
"""The release whose lines are changed here."""


@dataclass(frozen=True)
class Mutant:
    """One changed line."""

    name: str
    where: str
    kinds: tuple[LayerKind, ...]
    """Layer kinds that the line serves"""
    old: str
    new: str
    occurrence: int = 0
    """Which of several equal lines: 0 is the first"""


CSA, HCA, SLIDING = LayerKind.CSA, LayerKind.HCA, LayerKind.SLIDING
EVERY = (CSA, HCA, SLIDING)

MUTANTS = (
    Mutant(
        "overlap takes the same block twice",
        "compressor",
        (CSA,),
        "new_kv[:, 1:, :ratio] = chunk_kv[:, :-1, :, : self.head_dim]",
        "new_kv[:, 1:, :ratio] = chunk_kv[:, 1:, :, : self.head_dim]",
        occurrence=1,
    ),
    Mutant(
        "previous half read for the current block",
        "compressor",
        (CSA,),
        "new_kv[:, :, ratio:] = chunk_kv[..., self.head_dim :]",
        "new_kv[:, :, ratio:] = chunk_kv[..., : self.head_dim]",
        occurrence=1,
    ),
    Mutant(
        "pooling bias dropped",
        "compressor",
        (CSA,),
        "chunk_gate = chunk_gate.view(batch, n_windows, ratio, -1) + self.position_bias",
        "chunk_gate = chunk_gate.view(batch, n_windows, ratio, -1) + 0 * self.position_bias",
        occurrence=1,
    ),
    Mutant(
        "entries rotated at the last token of their block",
        "compressor",
        (CSA,),
        "positions = positions * self.compress_rate + first_window_position",
        "positions = positions * self.compress_rate + first_window_position + self.compress_rate - 1",
        occurrence=1,
    ),
    Mutant(
        "index keys rotated at the last token of their block",
        "indexer",
        (CSA,),
        "positions = positions * self.compress_rate + first_window_position",
        "positions = positions * self.compress_rate + first_window_position + self.compress_rate - 1",
    ),
    Mutant(
        "index scores without ReLU",
        "indexer",
        (CSA,),
        "scores = F.relu(scores) * self.softmax_scale",
        "scores = scores * self.softmax_scale",
    ),
    Mutant(
        "head weights through a sigmoid",
        "indexer",
        (CSA,),
        "weights = self.weights_proj(hidden_states).float() * self.weights_scaling",
        "weights = self.weights_proj(hidden_states).float().sigmoid() * self.weights_scaling",
    ),
    Mutant(
        "index queries not rotated",
        "indexer",
        (CSA,),
        "q = apply_rotary_pos_emb(q, cos_q, sin_q).transpose(1, 2)",
        "q = q.transpose(1, 2)",
    ),
    Mutant(
        "unfinished block visible to the indexer",
        "selection",
        (CSA,),
        "causal_threshold = (position_ids + 1) // self.compress_rate  # [B, S]",
        "causal_threshold = position_ids // self.compress_rate + 1",
        occurrence=1,
    ),
    Mutant(
        "one pick too many",
        "selection",
        (CSA,),
        "top_k = min(self.index_topk, compressed_len)",
        "top_k = min(self.index_topk + 1, compressed_len)",
    ),
    Mutant(
        "-1 picks scattered into entry 0",
        "selection",
        (CSA,),
        "safe_indices = torch.where(valid, top_k_indices, torch.full_like(top_k_indices, compressed_len))",
        "safe_indices = torch.where(valid, top_k_indices, torch.zeros_like(top_k_indices))",
    ),
    Mutant(
        "entries not masked at all",
        "mask",
        (CSA, HCA),
        "attention_mask = torch.cat([attention_mask, block_bias.to(attention_mask.dtype)], dim=-1)",
        "attention_mask = F.pad(attention_mask, (0, kv.shape[2] - attention_mask.shape[-1]), value=0.0)",
    ),
    Mutant(
        "no window: plain causal mask",
        "window",
        EVERY,
        "from ...masking_utils import create_sliding_window_causal_mask",
        "from ...masking_utils import create_causal_mask as create_sliding_window_causal_mask",
    ),
    Mutant(
        "sink scaled like the logits",
        "core",
        EVERY,
        "combined_logits = torch.cat([attn_weights, sinks], dim=-1)",
        "combined_logits = torch.cat([attn_weights, sinks * scaling], dim=-1)",
    ),
    Mutant(
        "softmax scale from rope_dim",
        "core",
        EVERY,
        "self.scaling = self.head_dim**-0.5",
        "self.scaling = config.qk_rope_head_dim**-0.5",
    ),
    Mutant(
        "output not rotated back",
        "core",
        EVERY,
        "attn_output = apply_rotary_pos_emb(attn_output.transpose(1, 2), cos, -sin).transpose(1, 2)",
        "attn_output = attn_output",
    ),
    Mutant(
        "queries without their norm",
        "core",
        EVERY,
        "q = self.q_b_norm(q)",
        "q = q",
    ),
    Mutant(
        "one rotary table for all layers",
        "rope",
        (CSA, HCA),
        'self.rope_layer_type = "main" if self.layer_type == "sliding_attention" else "compress"',
        'self.rope_layer_type = "main"',
    ),
    Mutant(
        "block hidden from its own last token",
        "HCA",
        (HCA,),
        "causal_threshold = (position_ids + 1) // self.compress_rate  # [B, S]",
        "causal_threshold = position_ids // self.compress_rate",
    ),
    Mutant(
        "pooling weights normalised over channels",
        "HCA",
        (HCA,),
        "(chunk_kv * chunk_gate.softmax(dim=2, dtype=torch.float32).to(chunk_kv.dtype)).sum(dim=2)",
        "(chunk_kv * chunk_gate.softmax(dim=-1, dtype=torch.float32).to(chunk_kv.dtype)).sum(dim=2)",
    ),
    Mutant(
        "the cache keeps the wrong tokens of an odd length",
        "cache",
        (CSA, HCA),
        "return kv[:, :usable], gate[:, :usable], first_window_position",
        "return kv[:, kv.shape[1] - usable :], gate[:, kv.shape[1] - usable :], first_window_position",
    ),
)


def patched(mutant: Mutant | None, folder: Path) -> Candidate:
    """Return transformers with one line of its modeling file changed, or none."""
    text = Path(modeling_deepseek_v4.__file__).read_text(encoding="utf-8")
    if mutant is not None:
        parts = text.split(mutant.old)
        assert len(parts) > mutant.occurrence + 1, f"{mutant.name}: transformers has no such line any more"
        kept = mutant.old.join(parts[: mutant.occurrence + 1])
        text = kept + mutant.new + mutant.old.join(parts[mutant.occurrence + 1 :])
    path = folder / "modeling_deepseek_v4_patched.py"
    path.write_text(text, encoding="utf-8")
    name = "transformers.models.deepseek_v4.modeling_deepseek_v4_patched"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return from_modules(
        module, configuration_deepseek_v4, {"transformers": f"{transformers.__version__}, patched"}
    )


class _Found(Exception):
    """Stops a check at its first failing case."""


@dataclass
class Catch:
    """How a mutant was found."""

    kind: LayerKind
    check: Check
    cases: int
    seconds: float


def hunt(candidate: Candidate, kinds: tuple[LayerKind, ...], profile: str, seed: int = 0) -> Catch | None:
    """Run a profile, layer kind by layer kind and check by check, up to the first failing case."""
    begin, cases = time.perf_counter(), 0

    def stop_at_once(result: CheckResult) -> None:
        nonlocal cases
        cases = result.cases
        if result.failing:
            raise _Found

    for kind in kinds:
        for check in LAYER.checks:
            try:
                Target(candidate, LAYER, kind, "float32", "cpu", resolve_profile(profile), seed).run(
                    check, stop_at_once
                )
            except _Found:
                return Catch(kind, check, cases, time.perf_counter() - begin)
    return None


def main() -> None:
    """Print the table."""
    print(f"transformers {transformers.__version__}, default profile, up to the first failing case\n")
    print(f"{'changed line':<52}{'where':<12}{'found by':<24}{'cases':>6}{'seconds':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for mutant in MUTANTS:
            catch = hunt(patched(mutant, Path(folder)), mutant.kinds, "default")
            found = "ESCAPED" if catch is None else f"{catch.kind}: {catch.check.name}"
            numbers = "" if catch is None else f"{catch.cases:>6}{catch.seconds:>9.2f}"
            print(f"{mutant.name:<52}{mutant.where:<12}{found:<24}{numbers}", flush=True)


if __name__ == "__main__":
    main()
