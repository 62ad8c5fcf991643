"""The transformers adapter runs the real layer, with what the real model passes, and leaves no traces."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from csa_spec.candidates import find_candidate
from csa_spec.candidates import transformers as adapter
from csa_spec.spec import Geometry, LayerKind, Yarn, weight_shapes
from csa_spec.stages.layer.case import Feature, LayerCase, Row, Sinks, Values
from csa_spec.stages.layer.checks import matches_specification
from csa_spec.stages.layer.output import LayerOutput
from csa_spec.stages.layer.trial import LayerTrial

CASE = LayerCase.of(
    Geometry(
        compress_ratio=2, top_k=2, window=3, hidden=6, heads=2, head_dim=6, rope_dim=4, q_lora_rank=4, index_heads=3,
        index_head_dim=5, o_groups=2, o_lora_rank=3, yarn=Yarn(4.0, 64),
    ),
    rows=(Row((9,)), Row((6,))),
    values=Values.GAUSSIAN,
    sinks=Sinks.DRAWN,
)  # fmt: skip


def of_kind(kind: LayerKind) -> LayerCase:
    """Return the case with another layer kind."""
    return replace(CASE, kind=kind)


def run(case: LayerCase) -> LayerOutput:
    """Run the installed transformers on a case."""
    return LayerTrial(find_candidate("transformers"), case).output


@pytest.mark.parametrize("mode", ["", "cache"])
@pytest.mark.parametrize("kind", list(LayerKind), ids=str)
def test_both_modes_match_the_specification(kind: LayerKind, mode: str) -> None:
    """Without a cache, and filling one."""
    tally = matches_specification(
        LayerTrial(find_candidate("transformers"), replace(of_kind(kind), mode=mode))
    )
    assert tally.queries == 15


def test_every_weight_of_the_layer_has_a_name() -> None:
    """What the adapter copies in covers the specification's weights, none twice."""
    for kind in LayerKind:
        geometry = replace(CASE.geometry, kind=kind)
        known = set(adapter.WEIGHT_NAMES.values())
        assert set(weight_shapes(geometry)) <= known


def test_intermediate_stages_are_exposed() -> None:
    """Entries, index scores, selection and probabilities come out with the layer's output."""
    output = run(CASE)
    assert output.entries is not None
    assert output.entries.shape == (2, 4, 6)
    assert output.index_scores is not None
    assert output.index_scores.shape == (2, 9, 4)
    assert output.selection is not None
    assert output.selection.shape == (2, 9, 2)
    assert output.probabilities is not None
    assert output.probabilities.shape == (2, 2, 9, 9 + 4)


def test_global_random_state_and_inputs_stay_as_they_are() -> None:
    """Building a model draws weights; nobody else's numbers may change by that."""
    torch.manual_seed(7)
    before = torch.get_rng_state()
    case = replace(CASE, seed=12345, hidden=7)
    run(case)
    assert torch.equal(before, torch.get_rng_state())


def test_hooks_are_gone_after_a_call() -> None:
    """Also after a call that failed."""
    candidate = find_candidate("transformers")
    trial = LayerTrial(candidate, CASE)
    bound = candidate.functions("layer")[""].func.__self__  # type: ignore[attr-defined]
    trial.run(trial.inputs)
    attention = bound._model(CASE.geometry, torch.float32, torch.device("cpu")).layers[0].self_attn
    wrong = torch.zeros(1, 2, 3)
    with pytest.raises(RuntimeError):
        candidate.functions("layer")[""](
            wrong, trial.inputs.weights, CASE.geometry, torch.zeros(1, 2).long(), torch.zeros(1, 2).long()
        )
    for module in attention.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("head_dim", range(2, 65))
def test_the_rotary_factor_gives_back_every_rope_dim(head_dim: int) -> None:
    """Transformers computes ``int(head_dim * factor)``; rope_dim / head_dim sometimes loses one."""
    for rope_dim in range(2, head_dim + 1, 2):
        geometry = Geometry(head_dim=head_dim, rope_dim=rope_dim, index_head_dim=head_dim)
        factor = adapter.configuration_of(geometry)["partial_rotary_factor"]
        assert int(head_dim * factor) == rope_dim


def test_what_upstream_does_not_support_is_really_wrong() -> None:
    """Each feature declared away fails when it is run all the same: nothing right is declared away."""
    candidate = find_candidate("transformers")
    cases = {
        Feature.LEFT_PADDING: replace(CASE, rows=(Row((9,), left_padding=1), Row((9,)))),
        Feature.PACKING: replace(CASE, rows=(Row((5, 4)),)),
        Feature.SHIFTED_START: replace(CASE, rows=(Row((9,), start=5),)),
    }
    for (kind, feature), reason in candidate.capabilities.lacks.items():
        if kind not in list(LayerKind):
            continue  # of caches: test_cache.py
        case = replace(cases[feature], kind=kind)
        modes = [mode for mode in candidate.modes("layer") if _fails(replace(case, mode=mode))]
        assert modes, f"{kind} with {feature} is right, but declared away: {reason}"


def _fails(case: LayerCase) -> bool:
    try:
        matches_specification(LayerTrial(find_candidate("transformers"), case))
    except AssertionError:
        return True
    return False
