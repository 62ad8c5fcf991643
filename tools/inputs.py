"""Make ``docs/inputs.md``: which cases of a run show which bug, and so which kinds of case no bug needs.

All cases of the specification check are tried on all bugs of one stage and layer kind. A case's tensors and
what the specification says of it are made once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from csa_spec.bugs import find_bug
from csa_spec.bugs.right import specification
from csa_spec.engine.failures import Failure
from csa_spec.engine.trial import Trial
from csa_spec.plug.call import NotOffered
from csa_spec.plug.candidate import Candidate
from csa_spec.profiles import Profile
from csa_spec.selftest.subjects import all_subjects, kinds_of, target
from csa_spec.selftest.text import Table, marked_table, plain_table
from csa_spec.selftest.work import Task
from csa_spec.spec import LayerKind
from csa_spec.stages import STAGES
from csa_spec.stages.layer.case import DRAWN_SCORES, DRAWN_VALUES, LayerCase, Sinks
from tools.command import Command, parser, read_command

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
    """On which cases of a pool one bug fails."""

    failing: int = 0
    common: frozenset[str] = frozenset()
    """Labels of all failing cases: without the cases of one of them the bug would escape"""


@dataclass(slots=True)
class Label:
    """A regime or a kind of case, in one stage and layer kind."""

    subject: str
    name: str
    cases: int
    needed_by: list[str]
    """Bugs that only cases with this label show"""
    kept: str
    """Why it stays, though no bug needs it"""


@dataclass(slots=True)
class Pool:
    """The cases of one stage and layer kind, and which bugs fail on them."""

    stage: str
    kind: str
    labels: list[frozenset[str]]
    """Per case, its regime and the kinds that it belongs to"""
    required: tuple[str, ...]
    """Kinds that every run must reach"""
    bugs: dict[str, Shown] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """Stage or layer kind."""
        return STAGES[self.stage].subject(self.kind)

    def needing(self, label: str) -> list[str]:
        """Return the bugs that only cases with a label show."""
        return [name for name, shown in self.bugs.items() if shown.failing and label in shown.common]

    def rows(self) -> Iterator[Label]:
        """Yield every regime and required kind that some case has."""
        for name in dict.fromkeys([*self.required, *regimes(self.stage, self.kind)]):
            cases = sum(name in labels for labels in self.labels)
            if cases:
                kept = KEPT.get((self.stage, name), "")
                yield Label(self.subject, name, cases, self.needing(name), kept)


def try_pool(stage: str, kind: str, names: Sequence[str], profile: Profile, seed: int) -> Pool:
    """Try the cases of the specification check on bugs.

    Each bug is tried until its failing cases have no label in common.
    """
    own, right = STAGES[stage], specification(stage)
    cases = target(right, own, kind, profile, seed).cases(own.checks[0])
    pool = Pool(stage, kind, [], tuple(own.required(kind, right.capabilities)))
    wrong = {name: (find_bug(name).candidate, pool.bugs.setdefault(name, Shown())) for name in names}
    for case in reversed(cases):  # what is drawn first: corner cases have much in common
        known = own.trial(right, case)
        known.judge(known.answer)
        labels = frozenset({*_regime(case), *known.kinds()})
        pool.labels.append(labels)
        for name, (candidate, shown) in list(wrong.items()):
            if fails(candidate, known):
                shown.common = shown.common & labels if shown.failing else labels
                shown.failing += 1
                if not shown.common:
                    del wrong[name]
    return pool


def fails(candidate: Candidate, known: Trial[Any]) -> bool:
    """Whether a candidate takes a case and fails on it."""
    fitting, _ = known.case.fit(candidate.capabilities_of(known.stage))
    if fitting != known.case:
        return False
    trial = known.of(candidate)
    vars(trial)["sight"] = lambda b, i: None  # that it is wrong is enough; why takes many calls
    try:
        trial.judge(trial.answer)
    except Failure:
        return True
    except NotOffered:
        pass
    return False


def _regime(case: object) -> Iterable[str]:
    """Name how the data of a layer are drawn; those of other stages are among their kinds."""
    if isinstance(case, LayerCase):
        yield from (f"values={case.values}", f"scores={case.scores}", f"sinks={case.sinks}")


def regimes(stage: str, kind: str) -> list[str]:
    """Return every regime that the cases of a stage are drawn in."""
    if stage == "cache":
        return []
    if stage != "layer":
        names: list[str] = STAGES[stage].case.names()
        return names
    drawn: dict[str, Iterable[str]] = {"values": DRAWN_VALUES, "sinks": Sinks}
    if kind is LayerKind.CSA:
        drawn["scores"] = DRAWN_SCORES
    return [f"{name}={one}" for name, options in drawn.items() for one in options]


def measure(command: Command) -> list[Pool]:
    """Try all bugs."""
    tasks: list[Task] = []
    for stage, kind in all_subjects():
        mine = [bug for bug in command.bugs if bug.stage == stage and kind in kinds_of(bug)]
        names = tuple(bug.name for bug in mine if not bug.equivalent)
        if names:
            tasks.append((try_pool, (stage, kind, names, command.profile, command.seeds[0])))
    return command.do(tasks)


def page(pools: Sequence[Pool], command: Command) -> str:
    """Return the page: totals, and what no bug needs."""
    parts = [
        command.head("Which cases known bugs need"),
        "Cases have labels: how their data are drawn (regimes), and the kinds of case that a run must "
        "reach. A bug needs a label if it would escape the specification check without the cases that have "
        "it (first seed). What no bug needs is dead weight, or there is a reason to keep it. How many bugs "
        "need a label depends on the draw: a bug that only one case shows needs everything that this case "
        "has.",
        marked_table(totals_table(pools)),
        "## Needed by no bug",
        marked_table(unneeded_table(pools, not command.options.bug)),
    ]
    return "\n\n".join(parts) + "\n"


def totals_table(pools: Sequence[Pool]) -> Table:
    """Return, by stage and layer kind, how many labels there are and how many bugs need them."""
    lines = []
    for pool in pools:
        rows = [*pool.rows()]
        needed = [len(row.needed_by) for row in rows if row.needed_by]
        rarest = min(rows, key=lambda row: row.cases)
        lines.append(
            (
                pool.subject,
                str(len(pool.labels)),
                f"{sum(shown.failing > 0 for shown in pool.bugs.values())} of {len(pool.bugs)}",
                f"{len(needed)} of {len(rows)}",
                f"{needed.count(1)}",
                f"{median(needed or [0]):g}, {max(needed, default=0)}",
                f"{rarest.name}: {rarest.cases}",
            )
        )
    head = (
        "stage",
        "cases",
        "bugs shown",
        "labels that a bug needs",
        "only one bug",
        "bugs per label: median, most",
        "rarest label: cases",
    )
    return head, lines


def unneeded_table(pools: Sequence[Pool], whole: bool) -> Table:
    """Return the labels that no bug needs; of a part of the catalogue, only those that are kept."""
    lines = []
    for pool in pools:
        for row in pool.rows():
            why = row.kept or ("dead weight" if whole else "")
            if why and not row.needed_by:
                lines.append((pool.subject, row.name, f"{row.cases} of {len(pool.labels)}", why))
    return ("stage", "regime or kind of case", "cases", "why it is kept"), lines


def labels_table(pools: Sequence[Pool]) -> Table:
    """Return every regime and kind of case, and the bugs that need it."""
    lines = []
    for pool in pools:
        for row in pool.rows():
            bugs = ", ".join(find_bug(name).title for name in row.needed_by[:3])
            more = f", {len(row.needed_by) - 3} more" if len(row.needed_by) > 3 else ""
            cases = f"{row.cases} of {len(pool.labels)}"
            lines.append((pool.subject, row.name, cases, str(len(row.needed_by)), bugs + more or row.kept))
    return ("stage", "regime or kind of case", "cases", "bugs", "such as, or why it is kept"), lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the page if asked to."""
    command = read_command("inputs", parser("inputs", __doc__ or ""), arguments)
    pools = measure(command)
    print(plain_table(labels_table(pools)), end="\n\n")
    command.finish(page(pools, command))


if __name__ == "__main__":
    main()
