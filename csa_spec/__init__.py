"""An executable specification of DeepSeek-V4's attention, and a suite that holds implementations against it.

>>> import csa_spec
>>> report = csa_spec.check("transformers", profile="smoke")  # doctest: +SKIP
>>> report.verdict  # doctest: +SKIP
<Verdict.CONFORMANT: 0>
"""

from csa_spec.check import UsageError, check, check_case
from csa_spec.harness.candidate import Candidate, CandidateError, Capabilities, LayerOutput, LayerStage
from csa_spec.harness.case import Case, CaseError, Feature, Row
from csa_spec.harness.failures import Failure
from csa_spec.harness.results import Report, Verdict
from csa_spec.spec import Geometry, LayerKind, LayerWeights, Yarn

__all__ = [
    "Candidate",
    "CandidateError",
    "Capabilities",
    "Case",
    "CaseError",
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
