"""The stages that a candidate may offer, in the order of the data. One module per stage.

Each module says what the stage takes and returns, how a case of it is made, and how an answer is judged.
"""

from __future__ import annotations

from typing import Any

from csa_spec.engine.case import Case, CaseError, Feature
from csa_spec.engine.stage import Check, Stage
from csa_spec.engine.stream import Op
from csa_spec.plug.candidate import Candidate
from csa_spec.spec import LayerKind
from csa_spec.stages.attend import ATTEND
from csa_spec.stages.cache import CACHE_STAGE, NARROW
from csa_spec.stages.compressor import COMPRESSOR
from csa_spec.stages.index_scores import INDEX_SCORES
from csa_spec.stages.layer import LAYER_STAGE, SPECIFICATION
from csa_spec.stages.select import SELECT

STAGES: dict[str, Stage] = {
    stage.name: stage for stage in (COMPRESSOR, INDEX_SCORES, SELECT, ATTEND, LAYER_STAGE, CACHE_STAGE)
}

__all__ = [
    "LAYER_STAGE",
    "SPECIFICATION",
    "STAGES",
    "Check",
    "declaration_problem",
    "parse_case",
    "stage_of",
]


def declaration_problem(candidate: Candidate) -> str:
    """Say which size or name a candidate's capabilities declare that none of its stages has; nothing if all is well."""
    sizes: dict[str, list[str]] = {}
    names: dict[str, list[str]] = {}
    for stage in candidate.offers:
        recipe = STAGES[stage].recipe
        sizes[stage] = [] if recipe is None else recipe.letters()
        names[stage] = [] if recipe is None else recipe.names()
    for owner in candidate.offers:
        capabilities = candidate.capabilities_of(owner)
        for what in ("limits", "least", "multiples"):
            own_sizes = {
                **sizes,
                LAYER_STAGE.name: ["S"] if what == "multiples" and LAYER_STAGE.name in sizes else [],
            }
            unknown = set(getattr(capabilities, what)) - {
                letter for letters in own_sizes.values() for letter in letters
            }
            if unknown:
                known = (
                    "; ".join(
                        f"{stage} has the sizes {', '.join(own)}" for stage, own in own_sizes.items() if own
                    )
                    or f"{LAYER_STAGE.name} knows no {what}"
                )
                return f"{candidate.name}: capabilities.{what} names {min(unknown)!r}; {known}"
        for place, name in capabilities.lacks:
            known_names = names.get(str(place), []) if place in STAGES else [str(one) for one in Feature]
            if str(place).split()[0] == CACHE_STAGE.name:
                known_names = [*map(str, Op), NARROW]
            if place not in STAGES and place not in (
                *LayerKind,
                *(f"{CACHE_STAGE.name} {kind}" for kind in LayerKind),
            ):
                return f"{candidate.name}: capabilities.lacks names {str(place)!r}, which is no stage and no layer kind"
            if place in candidate.offers + tuple(LayerKind) and str(name) not in known_names:
                return f"{candidate.name}: capabilities.lacks names {str(name)!r}; {place} has {', '.join(known_names)}"
    return ""


def stage_of(case: Any) -> Stage:
    """Return the stage that a case is of."""
    return LAYER_STAGE if isinstance(case, Case) else STAGES[case.stage]


def parse_case(text: str) -> Any:
    """Read a case of any stage: its first word is the stage, or the layer kind.

    Raises
    ------
    CaseError
        If a word is not known or its value cannot be used.
    """
    first = text.split(maxsplit=1)[0] if text.strip() else ""
    if first in STAGES and first != LAYER_STAGE.name:
        return STAGES[first].parse(text)
    if first not in list(LayerKind):
        kinds = ", ".join(LayerKind)
        stages = ", ".join(name for name in STAGES if name != LAYER_STAGE.name)
        raise CaseError(f"a case starts with a layer kind ({kinds}) or a stage ({stages}), not {first!r}")
    return Case.parse(text)
