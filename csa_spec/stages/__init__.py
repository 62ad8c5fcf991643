"""The stages that a candidate may offer, in the order of the data: a folder for each.

``stage.py`` of a folder says what the stage is called with: shapes, units and sources. What a stage must
bring along is described in :mod:`csa_spec.engine.stage`; this list is the only one that registers them.
"""

from __future__ import annotations

from typing import Any

from csa_spec.engine.case import Case, CaseError
from csa_spec.engine.stage import Stage
from csa_spec.plug.names import did_you_mean
from csa_spec.plug.plain import shown
from csa_spec.stages.attend.stage import ATTEND
from csa_spec.stages.cache.stage import CACHE
from csa_spec.stages.compressor.stage import COMPRESSOR
from csa_spec.stages.index_scores.stage import INDEX_SCORES
from csa_spec.stages.layer.stage import LAYER
from csa_spec.stages.select.stage import SELECT

AnyStage = Stage[Any, Any]

STAGES: dict[str, AnyStage] = {}


def register(stage: AnyStage) -> None:
    """Add a stage, behind those that are there."""
    STAGES[stage.name] = stage


for _stage in (COMPRESSOR, INDEX_SCORES, SELECT, ATTEND, LAYER, CACHE):
    register(_stage)

DEFAULT = LAYER
"""What a bare function is where nothing is said."""


def stage_of(case: Case) -> AnyStage:
    """Return the stage that a case is of.

    Raises
    ------
    CaseError
        If it is no case.
    """
    if not isinstance(case, Case):
        raise CaseError(f"a case is a csa_spec.Case or its line of text, not {type(case).__name__}")
    return STAGES[case.stage]


def parse_case(text: str) -> Any:
    """Read a case of any stage: its first word is the stage, or the layer kind.

    Raises
    ------
    CaseError
        If a word is not known or its value cannot be used.
    """
    first = text.split(maxsplit=1)[0] if text.strip() else ""
    heads = {head: stage for stage in STAGES.values() for head in stage.case.first_words()}
    if first not in heads:
        meant = did_you_mean(first, heads)
        raise CaseError(
            f"a case starts with {', '.join(heads)}, not with {shown(first)}{'; ' * bool(meant)}{meant}"
        )
    return heads[first].case.parse(text)
