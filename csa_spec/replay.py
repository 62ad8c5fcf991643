"""Try the failures of bundles again: still failing, fixed, or failing in another way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from csa_spec.bundle.reading import BundleError, Recorded, bundles_in, digest_of, read_bundle
from csa_spec.candidates import is_installed
from csa_spec.checking import check_case
from csa_spec.engine.case import CaseError
from csa_spec.engine.failures import CandidateDied, CandidateHung, Failure
from csa_spec.plug.candidate import CandidateError
from csa_spec.plug.plain import plain_line
from csa_spec.plug.worker import TIME_LIMIT, WorkerCaller
from csa_spec.resolving import UsageError, isolated, resolve_candidate
from csa_spec.stages import stage_of

_LINE = 1500


class State(StrEnum):
    """What became of a failure."""

    FAILING = "still failing"
    FIXED = "fixed"
    CHANGED = "changed kind"
    UNDECIDED = "cannot be replayed"


@dataclass(frozen=True, slots=True)
class Replayed:
    """One bundle, tried again."""

    folder: Path
    state: State
    sentence: str
    """What is wrong now, or why nothing was decided; empty where it is fixed"""
    remark: str = ""
    """What to keep in mind: that this torch draws other numbers, say"""

    def __str__(self) -> str:
        """Return a line, or two."""
        if self.state is State.UNDECIDED:
            return plain_line(self.sentence, _LINE)
        line = ": ".join(filter(None, (str(self.folder), str(self.state), self.sentence)))
        return plain_line(line, _LINE) + (f"\n  {self.remark}" if self.remark else "")


def replay(folders: Iterable[Path], candidate: Any = None, *, trust: bool = False) -> list[Replayed]:
    """Try the case of each bundle again.

    A bundle may come from anybody: of what it names, only candidates that ship or are installed as entry
    points are imported.

    Parameters
    ----------
    folders
        Bundles, or folders that hold bundles.
    candidate
        Whom to try, as for :func:`csa_spec.check`. None: the candidate that each bundle names.
    trust
        Whether to import whatever module a bundle names.
    """
    return [_replay(bundle, candidate, trust) for folder in folders for bundle in bundles_in(Path(folder))]


def exit_code(replayed: list[Replayed]) -> int:
    """Return 2 if a bundle could not be decided (or there was none), else 1 if one still fails, else 0."""
    states = {bundle.state for bundle in replayed}
    if not states or State.UNDECIDED in states:
        return 2
    return 0 if states == {State.FIXED} else 1


def summarise_replay(replayed: list[Replayed]) -> str:
    """Return a line per bundle and a line that counts."""
    counts = Counter(bundle.state for bundle in replayed)
    total = ", ".join(f"{counts[state]} {state}" for state in State if counts[state])
    many = f"{len(replayed)} bundle" + "s" * (len(replayed) != 1)
    return "\n".join([*map(str, replayed), f"{many}: {total}"])


def _replay(folder: Path, candidate: Any, trust: bool) -> Replayed:
    try:
        recorded = read_bundle(folder)
    except BundleError as error:
        return Replayed(folder, State.UNDECIDED, str(error))
    if candidate is None and not trust and not is_installed(recorded.candidate):
        sentence = (
            f"{folder}: the bundle names {recorded.candidate!r}; what a bundle names is imported only if you ask "
            "for it; give --candidate NAME, or --trust if you trust that module"
        )
        return Replayed(folder, State.UNDECIDED, sentence)
    remark = _remark(recorded)
    try:
        _try(recorded, recorded.candidate if candidate is None else candidate)
    except Failure as failure:
        if failure.kind == recorded.kind:
            return Replayed(folder, State.FAILING, str(failure), remark)
        sentence = f"it was {recorded.kind}, now it is {failure.kind}: {failure}"
        return Replayed(folder, State.CHANGED, sentence, remark)
    except (UsageError, CandidateError, CaseError) as error:
        return Replayed(folder, State.UNDECIDED, f"{folder}: {error}")
    except (RuntimeError, MemoryError, OverflowError) as error:  # a case of absurd sizes, written by hand
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        return Replayed(folder, State.UNDECIDED, f"{folder}: its case cannot be tried: {line}")
    return Replayed(folder, State.FIXED, "", remark)


def _try(recorded: Recorded, candidate: Any) -> None:
    if recorded.kind not in (CandidateHung.__name__, CandidateDied.__name__):
        check_case(candidate, recorded.case, recorded.check)
        return
    stage = stage_of(recorded.case).name  # what may hang or die does so in a process of its own
    tried = isolated(resolve_candidate(candidate, stage), candidate, stage, TIME_LIMIT)
    assert isinstance(tried.caller, WorkerCaller)
    try:
        check_case(tried, recorded.case, recorded.check)
    finally:
        tried.caller.close()


def _remark(recorded: Recorded) -> str:
    try:
        same = digest_of(stage_of(recorded.case), recorded.case) == recorded.digest
    except (RuntimeError, MemoryError, OverflowError):
        return ""  # trying the case says so
    if same:
        return ""
    return (
        "this torch draws other numbers than the bundle was written with; repro.py in the bundle has those"
    )
