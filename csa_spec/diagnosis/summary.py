"""Where a candidate goes wrong, and what is wrong with its inputs, in one to three sentences."""

from __future__ import annotations

from typing import Any

from csa_spec.engine import failures as kinds
from csa_spec.engine.failures import Failure
from csa_spec.engine.trial import Trial

_SAYS = {
    kinds.SeesTooMuch: kinds.READS_TOO_MUCH,
    kinds.SeesTooLittle: kinds.READS_TOO_LITTLE,
    kinds.PickNotVisible: "It selects what it must not see",
    kinds.PickOutOfRange: "It selects an entry that does not exist",
    kinds.PickedTwice: "It counts an entry twice",
    kinds.WrongCount: "It selects too few or too many entries",
    kinds.MissedHigherScore: "It selects the right number of entries, but the wrong ones",
    kinds.TieNotLowestFirst: "It breaks a tie differently than declared",
    kinds.AnswersAnother: "It reads the input of another query or entry",
    kinds.OrderMatters: "It reads the right set, but the order of the set counts",
    kinds.RowsInteract: "A row depends on the other rows",
    kinds.FutureLeak: "It reads tokens that come later",
    kinds.PrefixDiffers: "It depends on how many tokens follow",
    kinds.ReturnsPrevious: "It depends on the call before",
    kinds.ReturnsZeros: "It depends on nothing",
    kinds.NotFinite: "The numbers are not finite",
    kinds.StrayGradient: "A gradient reaches what must get none",
    kinds.NoGradient: "A gradient does not reach what must get one",
    kinds.WeightIgnored: "It does not depend on a weight that it must depend on",
}
"""What is wrong with what an output depends on, by the kind of failure; others say it all themselves."""


def summary(trial: Trial[Any], failure: Failure, law: bool = False) -> str:
    """Say where a candidate goes wrong, and whether it reads too much, too little, or the right set.

    A broken ``law`` is about what changes between calls: what the one output depends on does not explain it.
    """
    if isinstance(failure, kinds.WrongNumbers):
        head = f"{failure.detail[0].upper()}{failure.detail[1:]}"
    else:
        says = next((text for kind, text in _SAYS.items() if isinstance(failure, kind)), "")
        head = f"{says}: {failure.detail}" if says else str(failure)[0].upper() + str(failure)[1:]
    sentences = [f"The first stage that differs is {failure.findings[0]}"] if failure.findings else []
    sentences += [head] if law else filter(None, trial.summary(failure, head))
    return " ".join(f"{sentence}." for sentence in sentences[:3])
