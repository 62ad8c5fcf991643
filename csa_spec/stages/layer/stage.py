"""The stage ``layer``: a whole attention layer, batched.

``layer(hidden [B,S,E], weights, geometry, positions [B,S], documents [B,S]) -> out [B,S,E]``

Hidden states come after the layer's input norm; ``weights`` (:class:`csa_spec.LayerWeights`) have their
dtype, and so has the output. Positions are int64, absolute and 0-based. Documents are int64 too: tokens with
the same number in a row are one document, attended alone. Padding, on the left or right of a row, has
document -1, position 0, and hidden states like those of tokens, which no output may depend on. Source: the
official ``Attention`` of ``inference/model.py``, rule by rule in :mod:`csa_spec.spec`.
"""

from __future__ import annotations

from functools import partial

from csa_spec.engine.stage import LIMITS, SIDE_EFFECTS, Check, Stage, Words, gradients_check
from csa_spec.spec import LayerKind
from csa_spec.stages.layer.case import LayerCase
from csa_spec.stages.layer.checks import (
    batch_order_does_not_matter,
    every_weight_matters,
    future_tokens_do_not_matter,
    gradients_of_a_layer_match,
    matches_specification,
    prefix_is_enough,
    rows_do_not_interact,
)
from csa_spec.stages.layer.coverage import required, too_ambiguous
from csa_spec.stages.layer.picture import layer_picture
from csa_spec.stages.layer.script import LayerScript
from csa_spec.stages.layer.shrinking import PASSES
from csa_spec.stages.layer.trial import LayerTrial

TITLES = {
    LayerKind.CSA: "compressed sparse attention (CSA)",
    LayerKind.HCA: "heavily compressed attention (HCA)",
    LayerKind.SLIDING: "sliding-window attention",
}


_law: partial[Check[LayerTrial]] = partial(Check, two_runs=True)


class _LayerStage(Stage[LayerCase, LayerTrial]):
    def subject(self, variant: str) -> str:
        """Return the layer kind alone: a layer is what most people check."""
        return variant


LAYER = _LayerStage(
    name="layer",
    arguments=("hidden", "weights", "geometry", "positions", "documents"),
    case=LayerCase,
    trial=LayerTrial,
    checks=(
        Check("specification", "output matches the specification", matches_specification, law=False),
        _law("future", "future tokens do not change earlier outputs", future_tokens_do_not_matter),
        _law("rows", "rows do not change each other", rows_do_not_interact),
        _law("prefix", "a prefix gives the same outputs as the whole", prefix_is_enough),
        _law("batch-order", "permuting the batch permutes the output", batch_order_does_not_matter),
        *SIDE_EFFECTS,
        _law("weights", "every weight matters where it should", every_weight_matters, costly=True),
        gradients_check(gradients_of_a_layer_match),
        LIMITS,
    ),
    words=Words(title=lambda kind: f"the {TITLES[LayerKind(kind)]} layer"),
    required=lambda kind, capabilities: required(kind),
    variants=tuple(LayerKind),
    effort="medium",
    passes=PASSES,
    wanting=too_ambiguous,
    picture=layer_picture,
    script=LayerScript(),
)
