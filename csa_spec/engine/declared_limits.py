"""What is declared away must be refused, or right: never silently wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from csa_spec.engine.comparison import Tally
from csa_spec.engine.failures import CandidateRaised, Failure, SilentlyWrong
from csa_spec.engine.recipe import Recipe
from csa_spec.engine.trial import Trial
from csa_spec.plug.candidate import Candidate, Capabilities


def limits_check(make: Callable[[Candidate, Recipe], Trial], trial: Trial) -> Tally | None:
    """Just beyond each declared size, the candidate raises an exception or is right."""
    tally = Tally()
    for case, limit in _beyond(trial.case, trial.capabilities):
        beyond = make(trial.candidate, case)
        tally.queries += 1
        try:
            beyond.judge(beyond.answer)
        except CandidateRaised:
            continue
        except Failure as failure:
            raise SilentlyWrong(
                f"{limit} is declared, and beyond it (on {case}) there is neither an exception nor a right answer: "
                f"{failure.detail}",
                trial.case,
                place=failure.place,
                expected=failure.expected,
                got=failure.got,
                over_budget=failure.over_budget,
                context=failure.context,
            ) from None
    return tally if tally.queries else None


def _beyond(case: Recipe, capabilities: Capabilities) -> Iterator[tuple[Recipe, str]]:
    for one in fields(case):
        letter = one.metadata.get("letter")
        if letter is None:
            continue
        limits = [capabilities.limits.get(letter), capabilities.max_top_k if one.name == "top_k" else None]
        for limit in (limit for limit in limits if limit is not None):
            yield _with(case, one.name, limit + 1), f"a limit of {letter}={limit}"
        least = capabilities.least.get(letter, 0)
        if least > one.metadata["least"]:
            yield _with(case, one.name, least - 1), f"at least {letter}={least}"
        multiple = capabilities.multiples.get(letter, 1)
        if multiple > 1:
            size = max(getattr(case, one.name) - 1, one.metadata["least"], 1)
            uneven = size + (size % multiple == 0)
            yield _with(case, one.name, uneven), f"{letter} being a multiple of {multiple}"


def _with(case: Recipe, name: str, size: int) -> Recipe:
    changes: dict[str, Any] = {name: size}
    return replace(case, **changes)
