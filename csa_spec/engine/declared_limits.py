"""Inputs outside the declared limits raise an error or give the right answer: never a silent wrong one."""

from __future__ import annotations

from typing import Any

from csa_spec.engine.failures import CandidateRaised, Failure, SilentlyWrong
from csa_spec.engine.tally import Tally
from csa_spec.engine.trial import Trial
from csa_spec.plug.call import NotOffered
from csa_spec.plug.capabilities import Capabilities

SENTENCE = "inputs outside the declared limits raise an error or give the right answer"


def declares_limits(capabilities: Capabilities) -> bool:
    """Whether a candidate declares any size, or that it needs contiguous tensors."""
    short = (capabilities.compress_ratios, capabilities.head_dims, capabilities.max_top_k)
    return any(capabilities.sizes.values()) or short != (None, None, None) or capabilities.contiguous


def limits_check(trial: Trial[Any]) -> Tally | None:
    """Just outside each declared limit, the candidate raises an error or is right."""
    tally = Tally()
    for case, limit in trial.case.outside(trial.capabilities):
        outside = type(trial)(trial.candidate, case)
        tally.queries += 1
        try:
            outside.judge(outside.answer)
            state = "right all the same"
        except (CandidateRaised, NotOffered):
            state = "raises an error"
        except Failure as failure:
            facts: dict[str, Any] = {"limit": limit, "outside": str(case), "inner": failure.detail}
            facts |= {"context": failure.context, **failure.numbers}
            raise SilentlyWrong(trial.case, **facts) from None
        tally.seen[f"{limit}: {state}"] += 1
    return tally if tally.queries else None
