"""A picture of a failure: SVG text that stands alone, the same bytes every time."""

from __future__ import annotations

from csa_spec.drawing.frame import plain_picture
from csa_spec.engine import failures as kinds
from csa_spec.engine.failures import Failure
from csa_spec.engine.stage import SPECIFICATION
from csa_spec.report.content import numbers_lines
from csa_spec.stages import stage_of

_NO_ANSWER = (kinds.CandidateRaised, kinds.CandidateHung, kinds.CandidateDied)
_WRONG_FORM = (kinds.WrongShape, kinds.WrongDtype)


def picture(failure: Failure, check: str = SPECIFICATION) -> str | None:
    """Draw a failure that a check found, as SVG text; None where there is nothing to draw."""
    if isinstance(failure, _NO_ANSWER + _WRONG_FORM):
        return None
    return (stage_of(failure.case).picture or plain_picture)(failure, numbers_lines(failure, check))
