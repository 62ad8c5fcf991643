"""An executable specification of DeepSeek-V4's attention, and a suite that tests implementations against it.

>>> import csa_spec
>>> report = csa_spec.check("transformers", profile="smoke")  # doctest: +SKIP
>>> report.verdict  # doctest: +SKIP
<Verdict.CONFORMANT: 0>

To run it
    ``check`` a candidate, a function or an object; ``check_case`` runs one case, as a failure prints it;
    ``parametrize`` makes pytest tests of the checks.
To describe an implementation
    ``Capabilities`` (with ``AllBut``, ``Feature``, ``LayerKind``), ``Candidate``, and for layers ``LayerOutput``
    and ``LayerStage``. Its layers are called with ``LayerWeights`` (``CompressorWeights``) and a ``Geometry``
    (``Yarn``).
What comes back
    A ``Report`` with a ``Verdict``, and each ``Failure``. ``UsageError``, ``CandidateError`` and ``CaseError``
    are raised for what cannot be done: one sentence.
Cases
    ``parse_case`` reads one; ``Case``, ``LayerCase`` with its ``Row``. For tests of your own: the ``tensors`` of a
    case, the ``expected`` answer (a ``Reference``, with ``Choices`` where scores tie), ``assert_close``, and the
    strategies of ``csa_spec.strategies``.

On the command line: ``csa-spec --help``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csa_spec.answers import assert_close, expected, tensors
    from csa_spec.checking import check, check_case
    from csa_spec.engine.case import Case, CaseError
    from csa_spec.engine.failures import Failure
    from csa_spec.engine.reference import Choices, Reference
    from csa_spec.engine.results import Report, Verdict
    from csa_spec.plug.candidate import Candidate, CandidateError
    from csa_spec.plug.capabilities import AllBut, Capabilities
    from csa_spec.pytest_checks import parametrize
    from csa_spec.resolving import UsageError
    from csa_spec.spec import CompressorWeights, Geometry, LayerKind, LayerWeights, Yarn
    from csa_spec.stages import parse_case
    from csa_spec.stages.layer.case import Feature, LayerCase, Row
    from csa_spec.stages.layer.output import LayerOutput, LayerStage

    __version__: str

__all__ = [
    "AllBut",
    "Candidate",
    "CandidateError",
    "Capabilities",
    "Case",
    "CaseError",
    "Choices",
    "CompressorWeights",
    "Failure",
    "Feature",
    "Geometry",
    "LayerCase",
    "LayerKind",
    "LayerOutput",
    "LayerStage",
    "LayerWeights",
    "Reference",
    "Report",
    "Row",
    "UsageError",
    "Verdict",
    "Yarn",
    "assert_close",
    "check",
    "check_case",
    "expected",
    "parametrize",
    "parse_case",
    "tensors",
]

_IN = {
    "csa_spec.answers": ("assert_close", "expected", "tensors"),
    "csa_spec.checking": ("check", "check_case"),
    "csa_spec.engine.case": ("Case", "CaseError"),
    "csa_spec.engine.failures": ("Failure",),
    "csa_spec.engine.reference": ("Choices", "Reference"),
    "csa_spec.engine.results": ("Report", "Verdict"),
    "csa_spec.plug.candidate": ("Candidate", "CandidateError"),
    "csa_spec.plug.capabilities": ("AllBut", "Capabilities"),
    "csa_spec.pytest_checks": ("parametrize",),
    "csa_spec.resolving": ("UsageError",),
    "csa_spec.spec": ("CompressorWeights", "Geometry", "LayerKind", "LayerWeights", "Yarn"),
    "csa_spec.stages": ("parse_case",),
    "csa_spec.stages.layer.case": ("Feature", "LayerCase", "Row"),
    "csa_spec.stages.layer.output": ("LayerOutput", "LayerStage"),
}
_HOMES = {name: home for home, names in _IN.items() for name in names}


def __dir__() -> list[str]:
    """Return the public names, also those that are not imported yet."""
    return sorted({"__version__", *__all__, *(name for name in globals() if name.startswith("__"))})


def __getattr__(name: str) -> Any:
    """Import a name when it is used: the pytest plugin is in this package, and must not import torch."""
    if name == "__version__":
        return import_module("importlib.metadata").version("csa-spec")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
