"""From a case to its tensors and right answers: for tests of one's own, and for answers from elsewhere.

>>> import csa_spec
>>> case = csa_spec.parse_case("select S=2 T=6 m=2 k=2")
>>> scores, positions, compress_ratio, top_k = csa_spec.tensors(case).values()
>>> csa_spec.expected(case).output.shape
torch.Size([1, 2, 2])
"""

from __future__ import annotations

from typing import Any

from csa_spec.diagnosis.summary import summary
from csa_spec.engine.failures import Diagnosis, Failure
from csa_spec.engine.reference import Reference
from csa_spec.engine.trial import Trial
from csa_spec.plug.call import Request, arguments_of
from csa_spec.plug.candidate import Candidate
from csa_spec.plug.capabilities import Capabilities
from csa_spec.plug.recorded import fingerprint, recorded
from csa_spec.report.text import explained
from csa_spec.stages import parse_case, stage_of
from csa_spec.target import one_thread

YOURS = "the answer"
"""What the candidate is called whose answer somebody gives us"""


_AGAIN = """  to see it again
    case = csa_spec.{case!r}
    csa_spec.assert_close(case, your_function(*csa_spec.tensors(case{more}).values()){more})"""


def _again(case: Any, capabilities: Capabilities | None) -> str:
    return _AGAIN.format(case=case, more="" if capabilities is None else ", capabilities")


def tensors(case: Any, capabilities: Capabilities | None = None) -> dict[str, Any]:
    """Return the arguments of a case, by name and in the order in which a candidate is called with them.

    Parameters
    ----------
    case
        A case, or its one line.
    capabilities
        What the implementation declares, where that changes what it is handed: lengths beside index lists, say.

    Returns
    -------
    dict
        Fresh tensors on the CPU, in the dtype and the memory layout of the case; numbers; for a layer also
        :class:`csa_spec.LayerWeights` and :class:`csa_spec.Geometry`. ``docs/stages.md`` has the shapes.

    Raises
    ------
    csa_spec.CaseError
        If it is not a case.
    """
    trial = _trial(case, Candidate("nobody", capabilities=capabilities or Capabilities()))
    handed = trial.handed(trial.arguments)
    request = Request(trial.stage, handed.arguments, layout=trial.case.layout)
    return arguments_of(request, "torch")[0]


def expected(case: Any, capabilities: Capabilities | None = None) -> Reference:
    """Return what the specification answers to a case, by how much each element may be off, and what ties.

    Parameters
    ----------
    case
        A case, or its one line.
    capabilities
        What the implementation declares, where that changes what is right: ``internal_dtype``, say.

    Raises
    ------
    csa_spec.CaseError
        If it is not a case.
    """
    with one_thread():
        return _trial(case, Candidate("nobody", capabilities=capabilities or Capabilities())).reference


def assert_close(case: Any, got: Any, capabilities: Capabilities | None = None) -> None:
    """Compare an answer to a case with the specification; return if it is right.

    Parameters
    ----------
    case
        A case, or its one line.
    got
        What an implementation returned for ``tensors(case)``: an array of the shape and dtype that
        ``docs/stages.md`` says, on any device, or a :class:`csa_spec.LayerOutput`. For a stream the outputs of
        all calls one after another, ``[tokens, hidden]``.
    capabilities
        What the implementation declares, where that changes what is right.

    Raises
    ------
    csa_spec.Failure
        If it is wrong: which query or entry, by how much, and in which way.
    csa_spec.CaseError
        If it is not a case.
    """
    __tracebackhide__ = True
    trial = _trial(case, Candidate("nobody", capabilities=capabilities or Capabilities()))
    key = fingerprint(trial.handed(trial.arguments).arguments)
    answered = trial.of(recorded(YOURS, trial.stage, {key: got}, capabilities))
    check = stage_of(trial.case).checks[0]
    with one_thread():
        try:
            check.run(answered)
        except Failure as failure:
            failure.alone, failure.diagnosis = True, Diagnosis((), summary(answered, failure))
            failure.add_note(f"\n{explained(failure, check.name)}\n\n{_again(trial.case, capabilities)}")
            raise failure.with_traceback(None) from None


def _trial(case: Any, candidate: Candidate) -> Trial[Any]:
    parsed = parse_case(case) if isinstance(case, str) else case
    stage = stage_of(parsed)
    trial: Trial[Any] = stage.trial(candidate, parsed.formed(candidate.capabilities_of(stage.name)))
    return trial
