"""The caches as ``generate`` uses them: with one, it must give what it gives without.

The stage ``cache`` holds single layers to the specification. Here all three kinds of layer stand in one model, and
transformers itself prefills, decodes and reorders beams.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import transformers
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM
from transformers.cache_utils import DynamicSlidingWindowLayer

from csa_spec.candidates.transformers import configuration_of
from csa_spec.spec import Geometry

pytestmark = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23),
    reason="older releases do not reorder entries",
)

PROMPT = torch.tensor([[5, 3, 9, 1, 12, 7, 2, 14, 4], [8, 8, 1, 0, 3, 15, 6, 2, 11]])
"""Nine tokens: two blocks of four, and one token of the third."""


@pytest.fixture(scope="module")
def model() -> Any:
    """A model with a CSA, an HCA and a sliding layer, whose sinks and biases are drawn, too."""
    geometry = Geometry(
        compress_ratio=4, top_k=1, window=5, hidden=16, heads=2, head_dim=8, rope_dim=4, q_lora_rank=6, index_heads=4,
        index_head_dim=6, o_groups=2, o_lora_rank=4,
    )  # fmt: skip
    kinds = ["compressed_sparse_attention", "heavily_compressed_attention", "sliding_attention"]
    config = configuration_of(geometry) | {
        "vocab_size": 16, "num_hidden_layers": 3, "layer_types": kinds, "mlp_layer_types": ["moe"] * 3,
        "moe_intermediate_size": 8, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = DeepseekV4ForCausalLM(DeepseekV4Config(**config)).eval()
        for parameter in found.parameters():
            parameter.data.normal_(0, 0.5)
    return found


@torch.no_grad()
def test_greedy_generation_with_the_cache_has_the_logits_of_the_whole_text(model: Any) -> None:
    """Prefill and 14 single tokens, over three borders of blocks and past the window."""
    done = model.generate(
        PROMPT, max_new_tokens=14, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    whole = model(done.sequences, use_cache=False).logits[:, PROMPT.shape[1] - 1 : -1]
    stepwise = torch.stack(done.logits, dim=1)
    assert stepwise.shape == whole.shape == (2, 14, 16)
    assert len(set(done.sequences[0, 9:].tolist())) > 1  # it does say something
    torch.testing.assert_close(stepwise, whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_beam_search_finds_the_same_beams_with_and_without_the_cache(model: Any) -> None:
    """Beams are reordered between tokens, in the middle of blocks, too."""
    options = {"max_new_tokens": 11, "num_beams": 3, "do_sample": False, "return_dict_in_generate": True}
    with_cache, without = (
        model.generate(PROMPT, use_cache=use_cache, output_scores=True, **options)
        for use_cache in (True, False)
    )
    assert torch.equal(with_cache.sequences, without.sequences)
    torch.testing.assert_close(with_cache.sequences_scores, without.sequences_scores, rtol=1e-4, atol=1e-4)
    moved = with_cache.beam_indices[:, :11]
    assert (moved.diff(dim=1) != 0).any()  # else nothing was reordered


@torch.no_grad()
def test_a_cache_that_forgets_to_reorder_entries_is_found(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As releases before 5.23.0 did."""
    module = sys.modules[type(model).__module__]
    for name in ("DeepseekV4HCACache", "DeepseekV4CSACache"):
        monkeypatch.setattr(getattr(module, name), "reorder_cache", DynamicSlidingWindowLayer.reorder_cache)
    with pytest.raises(AssertionError):
        test_beam_search_finds_the_same_beams_with_and_without_the_cache(model)
