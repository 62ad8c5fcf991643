"""A picture of a failure: SVG text that stands alone, the same bytes every time."""

from __future__ import annotations

from csa_spec.engine.failures import (
    CandidateDied,
    CandidateHung,
    CandidateRaised,
    Failure,
    WrongDtype,
    WrongShape,
)
from csa_spec.report.pictures.layer import layer_picture
from csa_spec.report.pictures.stages import (
    attend_picture,
    compressor_picture,
    index_scores_picture,
    select_picture,
)
from csa_spec.stages import SPECIFICATION, stage_of

_STAGES = {
    "attend": attend_picture,
    "select": select_picture,
    "index_scores": index_scores_picture,
    "compressor": compressor_picture,
}
_WITHOUT_OUTPUT = (CandidateRaised, CandidateHung, CandidateDied, WrongShape, WrongDtype)


def picture(failure: Failure, check: str = SPECIFICATION.name) -> str | None:
    """Draw a failure.

    Parameters
    ----------
    failure
        What is wrong; the more it recorded, the more is drawn.
    check
        Name of the check that found it: laws hold two runs against each other.

    Returns
    -------
    str or None
        SVG text; None where there is nothing to draw, as for an exception.
    """
    if isinstance(failure, _WITHOUT_OUTPUT):
        return None
    draw = _STAGES.get(stage_of(failure.case).name)
    if draw is None:
        return layer_picture(failure, check)
    return None if failure.place is None else draw(failure, check)
