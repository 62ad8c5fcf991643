"""Where a candidate goes wrong and what is wrong with what it depends on, in one to three sentences."""

from __future__ import annotations

from typing import Any

from csa_spec.engine import failures as kinds
from csa_spec.engine.failures import Failure
from csa_spec.engine.trial import Trial

_SAYS = {
    kinds.SeesTooMuch: "It sees too much",
    kinds.SeesTooLittle: "It sees too little",
    kinds.PickNotVisible: "It sees too much",
    kinds.PickOutOfRange: "It sees what is not there",
    kinds.PickedTwice: "It counts an entry twice",
    kinds.WrongCount: "It sees too few or too many entries",
    kinds.MissedHigherScore: "It sees as many entries as it must, but the wrong ones",
    kinds.TieNotLowestFirst: "It sees entries that a promise excludes",
    kinds.NotZero: "It sees too much",
    kinds.AnswersAnother: "It sees what belongs to another",
    kinds.OrderMatters: "It sees the right set, but its order counts",
    kinds.RowsInteract: "A row depends on the other rows",
    kinds.FutureLeak: "It sees too much",
    kinds.PrefixDiffers: "It depends on how many tokens follow",
    kinds.ReturnsPrevious: "It depends on the call before",
    kinds.StreamDiffers: "It does not answer the tokens that the row holds",
    kinds.ReturnsZeros: "It depends on nothing",
    kinds.NotFinite: "The numbers are not finite",
    kinds.StrayGradient: "A gradient reaches what must get none",
    kinds.NoGradient: "A gradient does not reach what must get one",
    kinds.WeightIgnored: "It does not depend on a weight that it must depend on",
}
"""What is wrong with what an output depends on, by the kind of failure; others say it all themselves."""


def summary(trial: Trial[Any], failure: Failure) -> str:
    """Say where a candidate goes wrong, and whether it sees too much, too little, or the right set.

    Parameters
    ----------
    trial
        Of the candidate, on the failure's case.
    failure
        What it did there.
    """
    if isinstance(failure, kinds.WrongNumbers):
        head = f"It differs: {failure.detail}"
    else:
        says = next((text for kind, text in _SAYS.items() if isinstance(failure, kind)), "")
        head = f"{says}: {failure.detail}" if says else str(failure)[0].upper() + str(failure)[1:]
    sentences = [f"The first stage that differs is {failure.findings[0]}"] if failure.findings else []
    sentences += [one for one in trial.summary(failure, head) if one]
    return " ".join(f"{one}." for one in sentences[:3])
