"""Which cases of a run show which bug, so that a regime or kind of case that no bug needs can be told.

All cases of the equality with the specification are tried on all bugs of one stage and layer kind, and on right
candidates too, none of which may fail on any. A case's tensors and what the specification says of it are made once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from csa_spec.bugs import find_bug
from csa_spec.bugs.bug import following
from csa_spec.candidates import find_candidate
from csa_spec.checking import Target
from csa_spec.harness.candidate import CACHE, LAYER, Candidate, CandidateError, as_candidate
from csa_spec.harness.case import Case, Scores, Sinks, Values
from csa_spec.harness.engine import subject_of
from csa_spec.harness.failures import Failure
from csa_spec.harness.stream import NotOffered
from csa_spec.harness.trial import Trial
from csa_spec.profiles import Profile
from csa_spec.spec import SPEC, LayerKind
from csa_spec.stages import STAGES

RIGHT = ("transformers", "gather", "flattened", "dense", "sdpa")
"""Right candidates that ship, and whose stages are tried beside the bugs; flex and triton compile for minutes."""


@dataclass(slots=True)
class Shown:
    """On which cases of a pool one candidate fails."""

    failing: set[int] = field(default_factory=set)
    tried: int = 0
    seconds: float = 0.0
    """CPU time of its own, without what all candidates share"""


@dataclass(slots=True)
class Pool:
    """The cases of one stage and layer kind, and who fails on them."""

    subject: str
    labels: list[frozenset[str]]
    """Per case, its regime and the kinds that it belongs to"""
    required: tuple[str, ...]
    """Kinds that every run must reach"""
    bugs: dict[str, Shown] = field(default_factory=dict)
    right: dict[str, Shown] = field(default_factory=dict)

    def needing(self, label: str) -> list[str]:
        """Return the bugs that only cases with a label show."""
        having = {number for number, labels in enumerate(self.labels) if label in labels}
        return [name for name, shown in self.bugs.items() if shown.failing and shown.failing <= having]

    def merge(self, other: Pool) -> None:
        """Take in the candidates of another part of the work on the same cases."""
        self.bugs |= other.bugs
        self.right |= other.right


def try_pool(
    stage: str, kind: LayerKind | None, bugs: Sequence[str], right: Iterable[str], profile: Profile, seed: int
) -> Pool:
    """Try every case of the equality with the specification on bugs and on right candidates.

    Parameters
    ----------
    stage, kind
        Which cases.
    bugs
        Names of bugs of that stage.
    right
        Names of candidates that must not fail: shipped ones, or ``specification``.
    profile, seed
        As of a run.
    """
    one = STAGES[stage]
    check = one.checks[0]
    plain = _reference(stage)
    cases = Target(plain, one, kind, "float32", "cpu", profile, seed).cases(check)
    wrong = {name: find_bug(name).candidate for name in bugs}
    others = {name: found for name in right if (found := _right(name, stage, kind, plain)) is not None}
    pool = Pool(subject_of(stage, kind), [], tuple(one.required(kind, plain.capabilities)))
    for number, case in enumerate(cases):
        known = one.trial(plain, case)
        known.judge(known.answer)
        pool.labels.append(frozenset({*_regime(case), *one.kinds(known)}))
        for shown, candidates in ((pool.bugs, wrong), (pool.right, others)):
            for name, candidate in candidates.items():
                _try(shown.setdefault(name, Shown()), number, known, candidate)
    return pool


def _try(shown: Shown, number: int, known: Trial, candidate: Candidate) -> None:
    fitting, _ = STAGES[known.stage].fit(known.case, candidate.capabilities_of(known.stage))
    if fitting != known.case:
        return
    begin = time.process_time()
    trial = type(known)(candidate, known.case)
    vars(trial).update({name: vars(known)[name] for name in _SHARED if name in vars(known)})
    vars(trial)["sight"] = lambda b, i: None  # that it is wrong is enough; why takes many calls
    try:
        trial.judge(trial.answer)
    except Failure:
        shown.failing.add(number)
    except NotOffered:
        return
    shown.tried += 1
    shown.seconds += time.process_time() - begin


_SHARED = ("inputs", "arguments", "expected", "_expected", "named")
"""What trials compute of a case alone."""


def _regime(case: object) -> Iterable[str]:
    """Name how the data of a layer are drawn; those of other stages are among their kinds."""
    if isinstance(case, Case):
        yield from (f"values={case.values}", f"scores={case.scores}", f"sinks={case.sinks}")


def regimes(stage: str, kind: LayerKind | None) -> list[str]:
    """Return every regime that the cases of a stage are drawn in."""
    recipe = STAGES[stage].recipe
    if recipe is not None:
        return recipe.names()
    if stage != LAYER:
        return []
    drawn: dict[str, Iterable[str]] = {"values": Values, "sinks": Sinks}
    if kind is LayerKind.CSA:
        drawn["scores"] = Scores
    return [f"{name}={one}" for name, options in drawn.items() for one in options]


def _reference(stage: str) -> Candidate:
    """Return a right candidate without any limitation."""
    if stage == LAYER:
        return as_candidate(following(SPEC), "specification", LAYER)
    if stage == CACHE:
        from csa_spec.bugs.stream import Cache

        return as_candidate(Cache, "specification", CACHE)
    return find_candidate("gather")


def _right(name: str, stage: str, kind: LayerKind | None, plain: Candidate) -> Candidate | None:
    """Return a right candidate, if it is installed and offers the stage."""
    if name == "specification":
        return plain
    try:
        found = find_candidate(name)
    except CandidateError:
        return None
    offers = stage in found.offers and (kind is None or kind in found.capabilities_of(stage).kinds)
    return found if offers else None
