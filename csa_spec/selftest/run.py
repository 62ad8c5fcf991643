"""Run the self-test, in several processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

import torch

from csa_spec.bugs import Bug, bugs, find_bug
from csa_spec.profiles import PROFILES, Profile
from csa_spec.resolving import UsageError, resolve_profile
from csa_spec.selftest.grid import GridResult, try_grid
from csa_spec.selftest.kills import Hunt, hunts, rows, subjects
from csa_spec.selftest.naming import Named, accuracy
from csa_spec.selftest.pool import RIGHT, Pool, try_pool
from csa_spec.spec import LayerKind
from csa_spec.stages import STAGES

PARTS = ("kills", "matrix", "inputs", "names", "grid")
"""``kills``: to the first failure, with every seed. ``matrix``: every check by itself. ``inputs``: which cases show
which bug, and that right candidates fail on none. ``names``: what a diagnosis calls each bug, plugged in as a black
box. ``grid``: what a grid of random inputs finds."""
QUICK = ("kills", "grid")
"""What fits in a few minutes."""


@dataclass(slots=True)
class SelfTest:
    """What the self-test found."""

    bugs: tuple[Bug, ...]
    profile: str
    seeds: tuple[int, ...]
    jobs: int
    hunts: list[Hunt] = field(default_factory=list)
    matrix: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    """By bug and check: cases tried, and cases up to the first failure or 0; in the plainest layer kind"""
    pools: list[Pool] = field(default_factory=list)
    named: list[Named] = field(default_factory=list)
    grid: list[GridResult] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def survivors(self) -> list[Hunt]:
        """Bugs that no check found, though they are not equivalent to what is right."""
        return [one for one in self.hunts if one.first is None and not find_bug(one.bug).equivalent]

    @property
    def not_equivalent(self) -> list[Hunt]:
        """Bugs that are said to be equivalent, and were found all the same."""
        return [one for one in self.hunts if one.first is not None and find_bug(one.bug).equivalent]

    @property
    def false_alarms(self) -> list[tuple[str, str, int]]:
        """Right candidates that failed: who, on what, on how many cases."""
        return [
            (name, pool.subject, shown.failing)
            for pool in self.pools
            for name, shown in pool.right.items()
            if shown.failing
        ]

    @property
    def passed(self) -> bool:
        """Whether the suite found what it must, and nothing else."""
        return not (self.survivors or self.not_equivalent or self.false_alarms)


def selftest(
    names: Collection[str] = (),
    profile: str = "default",
    seeds: Sequence[int] = (0,),
    jobs: int = 2,
    parts: Collection[str] = QUICK,
    progress: Callable[[int, int], None] = lambda done, all_: None,
) -> SelfTest:
    """Put the suite to the test.

    Parameters
    ----------
    names
        Of bugs; none: the whole catalogue.
    profile, seeds
        As of runs. Parts other than ``kills`` use the first seed.
    jobs
        Processes.
    parts
        Some of ``PARTS``.
    progress
        Called with how many of how many pieces of work are done.

    Raises
    ------
    UsageError
        If a name is not known.
    """
    begin = time.perf_counter()
    amounts = resolve_profile(profile)
    catalogue = {one.name: one for one in bugs()}
    for what, given, known in (("bug", names, catalogue), ("part", parts, PARTS)):
        unknown = [name for name in given if name not in known]
        if unknown:
            near = [name for name in known if unknown[0] in name][:5]
            raise UsageError(
                f"unknown {what} {unknown[0]!r}" + (f"; there is {', '.join(near)}" if near else "")
            )
    chosen = [catalogue[name] for name in names] if names else list(catalogue.values())
    found = SelfTest(tuple(chosen), profile, tuple(seeds), jobs)
    work = [
        piece for part in PARTS if part in parts for piece in _PIECES[part](chosen, amounts, found.seeds)
    ]
    for done, (take, result) in enumerate(_results(work, jobs), 1):
        take(found, result)
        progress(done, len(work))
    order = {name: number for number, name in enumerate(catalogue)}
    found.hunts.sort(key=lambda one: (order[one.bug], one.subject, one.seed))
    found.grid.sort(key=lambda one: order[one.bug])
    found.seconds = time.perf_counter() - begin
    return found


Take = Callable[[SelfTest, Any], None]
Piece = tuple[Callable[..., Any], tuple[Any, ...], Take]
"""A function of this module, what it is called with in another process, and what is done with its result."""


def _results(work: Sequence[Piece], jobs: int) -> Iterator[tuple[Take, Any]]:
    """Do the work, in this process if one is enough; yield results as they come."""
    if jobs == 1:
        yield from ((take, function(*arguments)) for function, arguments, take in work)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_begin) as pool:
        pending: dict[Future[Any], Take] = {
            pool.submit(function, *arguments): take for function, arguments, take in work
        }
        try:
            for future in as_completed(pending):
                yield pending[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin() -> None:
    """Let a worker use one thread, and end with the process that started it, however that ends."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _kills(chosen: Sequence[Bug], profile: Profile, seeds: Sequence[int]) -> list[Piece]:
    return [(hunts, (some, profile, seeds), _take_hunts) for some in _parcels(chosen, 12)]


def _matrix(chosen: Sequence[Bug], profile: Profile, seeds: Sequence[int]) -> list[Piece]:
    return [(rows, (some, profile, seeds[0]), _take_rows) for some in _parcels(chosen, 12)]


def _inputs(chosen: Sequence[Bug], profile: Profile, seeds: Sequence[int]) -> list[Piece]:
    pieces: list[Piece] = []
    for stage in STAGES:
        for kind in (*LayerKind,) if stage in (LAYER, CACHE) else (None,):
            mine = [one for one in chosen if one.stage == stage and kind in subjects(one)]
            names = tuple(one.name for one in mine if not one.equivalent)
            pieces.append(
                (try_pool, (stage, kind, names, ("specification", *RIGHT), profile, seeds[0]), _take_pool)
            )
    return pieces


def _names(chosen: Sequence[Bug], profile: Profile, seeds: Sequence[int]) -> list[Piece]:
    return [(_named, (some, profile, seeds[0]), _take_named) for some in _parcels(chosen, 4)]


def _grid(chosen: Sequence[Bug], profile: Profile, seeds: Sequence[int]) -> list[Piece]:
    return [(_grids, (some,), _take_grids) for some in _parcels(chosen, 30)]


def _parcels(chosen: Sequence[Bug], size: int) -> list[tuple[str, ...]]:
    """Return the names of bugs in parcels, each of one stage and of one plainest layer kind."""
    alike: dict[Any, list[str]] = {}
    for one in chosen:
        alike.setdefault((one.stage, subjects(one)[0]), []).append(one.name)
    return [tuple(names[i : i + size]) for names in alike.values() for i in range(0, len(names), size)]


_PIECES = {"kills": _kills, "matrix": _matrix, "inputs": _inputs, "names": _names, "grid": _grid}


def _grids(names: Sequence[str]) -> list[GridResult]:
    return [try_grid(name, subjects(find_bug(name))[0]) for name in names]


def _named(names: Sequence[str], profile: Profile, seed: int) -> list[Named]:
    """Diagnose what the smoke profile finds; the given profile only where that finds nothing."""
    return list(accuracy([find_bug(name) for name in names], seed, (PROFILES["smoke"], profile)))


def _take_named(found: SelfTest, named: list[Named]) -> None:
    found.named += named


def _take_hunts(found: SelfTest, hunts: list[Hunt]) -> None:
    found.hunts += hunts


def _take_rows(found: SelfTest, rows: dict[str, dict[str, tuple[int, int]]]) -> None:
    found.matrix |= rows


def _take_pool(found: SelfTest, pool: Pool) -> None:
    for known in found.pools:
        if known.subject == pool.subject:
            known.merge(pool)
            return
    found.pools.append(pool)


def _take_grids(found: SelfTest, grid: list[GridResult]) -> None:
    found.grid += grid
