"""Whether what a candidate declares is about sizes and names that its stages have."""

from __future__ import annotations

from csa_spec.engine.case import CaseError
from csa_spec.plug.candidate import Candidate
from csa_spec.plug.capabilities import Capabilities
from csa_spec.stages import STAGES


def declaration_problem(candidate: Candidate) -> str:
    """Say what a candidate declares that none of its stages has; nothing if all is well."""
    for stage in candidate.offers:
        declared = candidate.capabilities_of(stage)
        # What is declared for all stages at once may be about any of them.
        about = candidate.offers if declared is candidate.capabilities else (stage,)
        problem = _of_sizes(declared, about) or _of_names(declared, about) or _of_gradients(declared, about)
        problem = problem or _of_nothing_left(declared, stage)
        if problem:
            return f"{candidate.name}: {problem}"
    return ""


def _of_sizes(declared: Capabilities, stages: tuple[str, ...]) -> str:
    letters = {stage: list(STAGES[stage].case.letters()) for stage in stages}
    known = {letter for own in letters.values() for letter in own}
    variants = {variant for stage in stages for variant in STAGES[stage].variants}
    listed = "; ".join(f"{stage} has the sizes {', '.join(own)}" for stage, own in letters.items())
    for what, sizes in declared.sizes.items():
        for key in sizes:
            variant, letter = key if isinstance(key, tuple) else ("", key)
            if letter not in known:
                return f"capabilities.{what} names {letter!r}; {listed}"
            if variant and variant not in variants:
                kinds = ", ".join(sorted(variants))
                return f"capabilities.{what} names {variant!r}; the layer kinds are {kinds}"
    return ""


def _of_names(declared: Capabilities, stages: tuple[str, ...]) -> str:
    every = {place: names for stage in STAGES.values() for place, names in stage.case.may_lack().items()}
    own = {place for stage in stages for place in STAGES[stage].case.may_lack()}
    for place, name in declared.lacks:
        if place not in every:
            return f"capabilities.lacks names {str(place)!r}; choose from {', '.join(every)}"
        if place in own and name not in every[place]:
            return f"capabilities.lacks names {str(name)!r}; {place} has {', '.join(every[place])}"
    return ""


def _of_gradients(declared: Capabilities, stages: tuple[str, ...]) -> str:
    checked = [stage for stage in stages if any(check.name == "gradients" for check in STAGES[stage].checks)]
    if declared.gradients and not checked:
        return f"capabilities.gradients: {', '.join(stages)} has no gradients that could be checked"
    return ""


def _of_nothing_left(declared: Capabilities, stage: str) -> str:
    kinds = [variant for variant in STAGES[stage].variants if not variant or variant in declared.kinds]
    for variant in kinds:
        case = STAGES[stage].case
        try:
            (case(kind=variant) if variant else case()).fit(declared)
        except CaseError as error:
            return str(error)
    return ""
