"""The specification of DeepSeek-V4's attention layers: float64, explicit loops, nothing else.

Start at :mod:`csa_spec.spec.layer`. One module per step: ``compressor``, ``indexer``, ``selection`` (which
entries may query t see), ``window``, ``attention``, ``output``; ``rope`` and ``norm`` serve them all.
DeepSeek-V4.1, whose layers share entries and picks, is in :mod:`csa_spec.spec.v41`, made of the same functions.
"""

from csa_spec.spec.batch import PADDING, attend_batch, split_documents
from csa_spec.spec.context import compress, document_context, entries_of
from csa_spec.spec.geometry import Geometry, GeometryError, LayerKind, Yarn
from csa_spec.spec.layer import answer_query, attend_document
from csa_spec.spec.rules import SPEC, Spec
from csa_spec.spec.trace import BatchTrace, Context, Document, DocumentTrace, QueryTrace
from csa_spec.spec.weights import (
    CompressorWeights,
    IndexerWeights,
    LayerWeights,
    compressor_shapes,
    weight_shapes,
)

__all__ = [
    "PADDING",
    "SPEC",
    "BatchTrace",
    "CompressorWeights",
    "Context",
    "Document",
    "DocumentTrace",
    "Geometry",
    "GeometryError",
    "IndexerWeights",
    "LayerKind",
    "LayerWeights",
    "QueryTrace",
    "Spec",
    "Yarn",
    "answer_query",
    "attend_batch",
    "attend_document",
    "compress",
    "compressor_shapes",
    "document_context",
    "entries_of",
    "split_documents",
    "weight_shapes",
]
