"""Which cases of a run show which bug, so that a regime or kind of case that no bug needs can be told.

All cases of the equality with the specification are tried on all bugs of one stage and layer kind, and on right
candidates too, none of which may fail on any. A case's tensors and what the specification says of it are made once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from csa_spec.bugs import find_bug
from csa_spec.bugs.bug import following
from csa_spec.bugs.stream import Cache
from csa_spec.bundle.subjects import subject_of
from csa_spec.candidates import find_candidate
from csa_spec.candidates.recognise import as_candidate
from csa_spec.engine.failures import Failure
from csa_spec.engine.trial import Trial
from csa_spec.plug.call import NotOffered
from csa_spec.plug.candidate import Candidate, CandidateError
from csa_spec.profiles import Profile
from csa_spec.spec import SPEC, LayerKind
from csa_spec.stages import STAGES
from csa_spec.stages.layer.case import DRAWN_SCORES, DRAWN_VALUES, LayerCase, Sinks
from csa_spec.target import Target

RIGHT = ("transformers", "gather", "flattened", "dense", "sdpa")
"""Right candidates that ship, and whose stages are tried beside the bugs; flex and triton compile for minutes."""


_PLAIN = "the plain choice: all that is left where a candidate declares the others away"
KEPT: dict[tuple[str, str], str] = {
    ("compressor", "gaussian"): _PLAIN,
    ("index_scores", "gaussian"): _PLAIN,
    ("index_scores", "integers"): "what failures shrink to: numbers that a person can follow",
    ("select", "gaussian"): _PLAIN,
    ("attend", "shuffled"): _PLAIN,
    ("attend", "drawn-sinks"): _PLAIN,
    ("attend", "no-sinks"): "all that is left where a candidate has no sinks",
    ("attend", "plain-unused"): _PLAIN,
}
"""By stage and regime: why it stays, though every bug that it shows is shown by others too"""


@dataclass(slots=True)
class Shown:
    """On which cases of a pool one candidate fails."""

    tried: int = 0
    failing: int = 0
    common: frozenset[str] = frozenset()
    """Labels of all failing cases: without the cases of one of them the candidate would pass"""


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
        return [name for name, shown in self.bugs.items() if shown.failing and label in shown.common]

    def merge(self, other: Pool) -> None:
        """Take in the candidates of another part of the work on the same cases."""
        self.bugs |= other.bugs
        self.right |= other.right


def try_pool(
    stage: str,
    kind: LayerKind | None,
    bugs: Sequence[str],
    right: Iterable[str],
    profile: Profile,
    seed: int,
) -> Pool:
    """Try the cases of the equality with the specification on bugs and on right candidates.

    A bug is tried until the cases on which it failed have no label in common; a right candidate on all.

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
    plain = _reference(stage)
    cases = Target(plain, one, kind, "float32", "cpu", profile, seed).cases(one.checks[0])
    pool = Pool(subject_of(stage, kind), [], tuple(one.required(kind, plain.capabilities)))
    wrong = {name: (find_bug(name).candidate, pool.bugs.setdefault(name, Shown())) for name in bugs}
    others = {
        name: (found, pool.right.setdefault(name, Shown()))
        for name in right
        if (found := _right(name, stage, kind, plain)) is not None
    }
    for case in reversed(cases):  # what is drawn first: corner cases have much in common
        known = one.trial(plain, case)
        known.judge(known.answer)
        labels = frozenset({*_regime(case), *one.kinds(known)})
        pool.labels.append(labels)
        for candidate, shown in others.values():
            _try(candidate, shown, known, labels)
        for name, (candidate, shown) in list(wrong.items()):
            _try(candidate, shown, known, labels)
            if shown.failing and not shown.common:
                del wrong[name]
    return pool


def _try(candidate: Candidate, shown: Shown, known: Trial, labels: frozenset[str]) -> None:
    fitting, _ = STAGES[known.stage].fit(known.case, candidate.capabilities_of(known.stage))
    if fitting != known.case:
        return
    trial = same_case(known, candidate)
    vars(trial)["sight"] = lambda b, i: None  # that it is wrong is enough; why takes many calls
    shown.tried += 1
    try:
        trial.judge(trial.answer)
    except Failure:
        shown.common = shown.common & labels if shown.failing else labels
        shown.failing += 1
    except NotOffered:
        shown.tried -= 1


def _regime(case: object) -> Iterable[str]:
    """Name how the data of a layer are drawn; those of other stages are among their kinds."""
    if isinstance(case, LayerCase):
        yield from (f"values={case.values}", f"scores={case.scores}", f"sinks={case.sinks}")


def regimes(stage: str, kind: LayerKind | None) -> list[str]:
    """Return every regime that the cases of a stage are drawn in."""
    recipe = STAGES[stage].recipe
    if recipe is not None:
        return recipe.names()
    if stage != LAYER:
        return []
    drawn: dict[str, Iterable[str]] = {"values": DRAWN_VALUES, "sinks": Sinks}
    if kind is LayerKind.CSA:
        drawn["scores"] = DRAWN_SCORES
    return [f"{name}={one}" for name, options in drawn.items() for one in options]


def _reference(stage: str) -> Candidate:
    """Return a right candidate without any limitation."""
    if stage == LAYER:
        return as_candidate(following(SPEC), "specification", LAYER)
    if stage == CACHE:
        return as_candidate(
            lambda weights, geometry, batch: Cache(weights, geometry, batch), "specification", CACHE
        )
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
