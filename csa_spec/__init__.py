"""An executable specification of DeepSeek-V4's attention, and a suite that holds implementations against it.

>>> import csa_spec
>>> report = csa_spec.check("transformers", profile="smoke")  # doctest: +SKIP
>>> report.verdict  # doctest: +SKIP
<Verdict.CONFORMANT: 0>
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csa_spec.checking import check, check_case
    from csa_spec.engine.case import Case, CaseError, Feature, Row
    from csa_spec.engine.failures import Failure
    from csa_spec.engine.results import Report, Verdict
    from csa_spec.plug.candidate import Candidate, CandidateError, Capabilities, LayerOutput, LayerStage
    from csa_spec.resolving import UsageError
    from csa_spec.spec import CompressorWeights, Geometry, LayerKind, LayerWeights, Yarn

__all__ = [
    "Candidate",
    "CandidateError",
    "Capabilities",
    "Case",
    "CaseError",
    "CompressorWeights",
    "Failure",
    "Feature",
    "Geometry",
    "LayerKind",
    "LayerOutput",
    "LayerStage",
    "LayerWeights",
    "Report",
    "Row",
    "UsageError",
    "Verdict",
    "Yarn",
    "check",
    "check_case",
]

_HOMES = {
    **dict.fromkeys(("check", "check_case"), "csa_spec.checking"),
    "UsageError": "csa_spec.resolving",
    **dict.fromkeys(
        ("Candidate", "CandidateError", "Capabilities", "LayerOutput", "LayerStage"),
        "csa_spec.plug.candidate",
    ),
    **dict.fromkeys(("Case", "CaseError", "Feature", "Row"), "csa_spec.engine.case"),
    "Failure": "csa_spec.engine.failures",
    **dict.fromkeys(("Report", "Verdict"), "csa_spec.engine.results"),
    **dict.fromkeys(("CompressorWeights", "Geometry", "LayerKind", "LayerWeights", "Yarn"), "csa_spec.spec"),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: the pytest plugin lives in this package, and must not cost every session torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
