"""The specification of DeepSeek-V4.1's attention: stacks of layers that share entries, index keys and picks.

Start at :mod:`csa_spec.spec.v41.query`, which is one query of one layer; :mod:`csa_spec.spec.v41.rules` lists
what is V4's and what V4.1 changed. Which entries a query sees, and whose:
:mod:`csa_spec.spec.v41.roles` (the layer that owns them) and ``visible_entries`` (V4's rule).
"""

from csa_spec.spec.v41.candidates import Blocks
from csa_spec.spec.v41.context import empty_context, extend_context
from csa_spec.spec.v41.geometry import StackGeometry
from csa_spec.spec.v41.layer import attend_layer
from csa_spec.spec.v41.preconditions import NO_LAYER
from csa_spec.spec.v41.query import answer_query
from csa_spec.spec.v41.roles import LayerRole, layer_role
from csa_spec.spec.v41.rope import Rotated
from csa_spec.spec.v41.rules import STACK_SPEC, StackSpec
from csa_spec.spec.v41.stack import attend_stack, attend_stack_document
from csa_spec.spec.v41.trace import (
    LayerContext,
    LayerTrace,
    Published,
    Sources,
    StackDocumentTrace,
    StackQueryTrace,
    StackTrace,
)
from csa_spec.spec.v41.weights import (
    StackCompressorWeights,
    StackIndexerWeights,
    StackLayerWeights,
    stack_weight_shapes,
    stack_weights,
)

__all__ = [
    "NO_LAYER",
    "STACK_SPEC",
    "Blocks",
    "LayerContext",
    "LayerRole",
    "LayerTrace",
    "Published",
    "Rotated",
    "Sources",
    "StackCompressorWeights",
    "StackDocumentTrace",
    "StackGeometry",
    "StackIndexerWeights",
    "StackLayerWeights",
    "StackQueryTrace",
    "StackSpec",
    "StackTrace",
    "answer_query",
    "attend_layer",
    "attend_stack",
    "attend_stack_document",
    "empty_context",
    "extend_context",
    "layer_role",
    "stack_weight_shapes",
    "stack_weights",
]
