"""Make ``docs/transformers.md``: what each release of transformers gets right, by layer kind and operation.

``python tests/transformers_adapter/table.py --write`` installs the releases beside each other and measures each in a
process of its own. Every cell tries a few small cases; the failing ones are shrunk, without the operation ever getting
lost.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csa_spec.candidates import find_candidate
from csa_spec.candidates.transformers_cache import RecordingStream, is_refusal
from csa_spec.engine.failures import CandidateRaised, Failure
from csa_spec.engine.shrink import shrink
from csa_spec.plug.call import NotOffered
from csa_spec.plug.candidate import Candidate
from csa_spec.spec import Geometry, LayerKind, LayerWeights, Yarn
from csa_spec.stages import STAGES
from csa_spec.stages.cache.case import CacheCase
from csa_spec.stages.cache.stream import Op
from csa_spec.stages.layer.case import Feature, LayerCase, Row, Sinks, Values
from csa_spec.stages.layer.output import LayerOutput

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "transformers.md"
RELEASES = ("5.8.0", "5.8.1", "5.10.2", "5.17.0", "5.23.0")
"""The newest release is added."""
TRIALS = 150
"""For shrinking one finding; the time is no limit, so that the page is the same on any machine"""
SECONDS = 120.0


@dataclass(frozen=True)
class Finding:
    """A kind of wrong answer, on the smallest case found."""

    mode: str
    """Of the layer; ``""`` where it has one"""
    case: str
    """Its one line"""
    kind: str
    detail: str


@dataclass(frozen=True)
class Cell:
    """What one release does with one operation in one kind of layer."""

    right: int
    """Cases that are"""
    refusals: list[str]
    """What each refused case was told"""
    wrong: list[Finding]
    """One of each kind"""
    modes: int = 1
    """Ways to run that were tried"""

    @property
    def verdict(self) -> str:
        """One or two words."""
        if self.wrong:
            modes = {finding.mode for finding in self.wrong}
            where = (
                ""
                if len(modes) == self.modes
                else " with a cache"
                if "cache" in modes
                else " without a cache"
            )
            return f"wrong{where}" + (" or refused" if self.refusals else "")
        if self.refusals:
            return "ok or refused" if self.right else "refused"
        return "ok"


# What is tried


def layer_of(kind: LayerKind, m: int, window: int, yarn: Yarn | None = None) -> LayerCase:
    """Return a small layer whose every part shows in its output."""
    geometry = Geometry(
        kind=kind, compress_ratio=1 if kind is LayerKind.SLIDING else m, window=window, hidden=6, heads=2, head_dim=6,
        rope_dim=4, q_lora_rank=4, index_head_dim=6, o_groups=2, o_lora_rank=3, yarn=yarn,
    )  # fmt: skip
    if kind is LayerKind.CSA:
        geometry = replace(geometry, top_k=2, index_heads=4)
    return LayerCase.of(geometry, values=Values.GAUSSIAN, sinks=Sinks.DRAWN)


Size = tuple[int, int, Yarn | None]
SIZES: tuple[Size, ...] = ((2, 3, None), (3, 2, Yarn(4.0, 64)), (4, 9, None))
"""m, window (the last holds all tokens) and rotary scaling"""
NARROW_SIZES: tuple[Size, ...] = ((2, 1, None), (3, 1, None))

SCHEDULES: dict[str, tuple[set[Op], tuple[str, ...]]] = {
    "prefill": (set(), ("1", "2", "7", "2x8")),
    "chunked prefill": (set(), (*(f"{n},{7 - n}" for n in range(1, 7)), "2,3,2", "3,1,3", "2x4,3")),
    "decode, a token a call": (set(), ("1,1,1,1,1,1,1,1", "4,1,1,1,1", "2x3,1,1,1")),
    "decode, blocks of drafts": (set(), ("4,2,2,2", "1,3,3", "3,4,4", "2x2,2,3")),
    "`reorder_cache`": ({Op.REORDER}, ("2x1,reorder:1.0,1", "2x3,reorder:1.0,1,1,1", "2x4,reorder:1.1,3")),
    "`reset`": ({Op.RESET}, ("1,reset,1", "5,reset,1,1,1", "3,reset,4", "7,reset,7")),
    "`crop`": (
        {Op.ROLLBACK},
        ("1,rollback:1,1", "2,rollback:1,2", "1,1,rollback:1,1,1", "7,rollback:2,2,1"),
    ),
    "`batch_select_indices`": ({Op.SELECT}, ("2x1,select:1,1", "2x3,select:1.0,1,1", "2x4,select:1,3")),
    "`batch_repeat_interleave`": ({Op.REPEAT}, ("1,repeat:2,1", "3,repeat:2,1,2", "2x4,repeat:2,3")),
    "`copy.deepcopy`": (
        {Op.FORK, Op.SAVE},
        ("3,fork,2,2", "4,fork,1", "3,save,2,restore,3", "2x5,fork,1,1"),
    ),
}
"""Operation: calls of which one must be in a case, and schedules (``2x``: of two rows)."""
RECORDED = "`crop` after `activate_past_recording`"
NARROW = "`sliding_window=1`, chunks and decode"
NARROW_SCHEDULES = ("3,1", "1,1,1", "1,3", "2x2,1,2")

ROWS: dict[str, tuple[Feature, tuple[str, ...]]] = {
    "left padding": (Feature.LEFT_PADDING, ("1<1", "1<6", "2<5,7", "3<4,7")),
    "right padding": (Feature.RIGHT_PADDING, ("5,7", "1,7", "3,4")),
    "packed documents, `position_ids` restart": (Feature.PACKING, ("1+1", "3+4", "4+3", "2+2+3,7")),
    "`position_ids` from n on": (Feature.SHIFTED_START, ("7@1", "7@4", "6@3,6@3")),
}
BATCHES = ("1", "2", "7", "1,1", "7,7")
"""Rows that masks are tried on"""

Masked = Callable[[Any, Geometry, Tensor], dict[str, Any]]


def seen_by(geometry: Geometry, hidden: Tensor) -> Tensor:
    """Return which token sees which through the window, ``[B, 1, S, S]``: the mask that a user would make."""
    rows, columns, _ = hidden.shape
    t, j = torch.arange(columns)[:, None], torch.arange(columns)[None]
    return ((j <= t) & (j > t - geometry.window)).expand(rows, 1, columns, columns)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where a mask is true and the dtype's least number elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


MASKS: dict[str, Callable[[Geometry, Tensor], Tensor | None]] = {
    "additive 4-D mask": lambda geometry, hidden: additive(seen_by(geometry, hidden), hidden.dtype),
    "additive 4-D mask of one row": lambda geometry, hidden: additive(
        seen_by(geometry, hidden)[:1], hidden.dtype
    ),
    "bool 4-D mask": seen_by,
    "`attention_mask=None` at the layer": lambda geometry, hidden: None,
}


def run_masked(
    make: Callable[[Geometry, Tensor], Tensor | None],
    adapter: Any,
    hidden: Tensor,
    weights: LayerWeights,
    geometry: Geometry,
    positions: Tensor,
    documents: Tensor,
) -> LayerOutput:
    """Run the layer with a mask of the user's own; None is handed to the attention layer itself."""
    mask = make(geometry, hidden)
    if mask is not None:
        return LayerOutput(adapter.attend(hidden, weights, geometry, attention_mask=mask)["attention"][0])
    attention = adapter._model(geometry, hidden.dtype, hidden.device).layers[0].self_attn
    handle = attention.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "attention_mask": None}), with_kwargs=True
    )
    try:
        return LayerOutput(adapter.attend(hidden, weights, geometry)["attention"][0])
    finally:
        handle.remove()


# Measuring one release


def cache_cases_of(
    kind: LayerKind, texts: Iterable[str], sizes: Iterable[Size] = SIZES
) -> Iterator[CacheCase]:
    """Yield schedules on layers of several sizes."""
    for text in texts:
        batch, _, calls = text.rpartition("x")
        for seed, size in enumerate(sizes):
            line = f"cache {kind} B={batch or 1} calls={calls}"
            schedule, layer = CacheCase.parse(line), replace(layer_of(kind, *size), seed=seed)
            yield CacheCase(**layer.layer, batch=schedule.batch, calls=schedule.calls)


def layer_cases_of(kind: LayerKind, texts: Iterable[str], mode: str = "") -> Iterator[LayerCase]:
    """Yield rows on layers of several sizes."""
    for text in texts:
        for seed, size in enumerate(SIZES):
            yield replace(
                layer_of(kind, *size), rows=tuple(map(Row.parse, text.split(","))), seed=seed, mode=mode
            )


def look(candidate: Candidate, stage: str, cases: Iterable[Any], keeps: Callable[[Any], bool]) -> Cell:
    """Try cases; shrink what fails first, as long as ``keeps`` holds of it."""
    check, right, refusals = STAGES[stage].checks[0], 0, []
    smallest: dict[str, Failure] = {}

    def attempt(case: Any) -> Failure | str | None:
        try:
            check.run(STAGES[stage].trial(candidate, case))
        except NotOffered as refusal:
            return str(refusal)
        except CandidateRaised as failure:
            return str(failure.error) if is_refusal(failure.error) else failure
        except Failure as failure:
            return failure
        return None

    for case in cases:
        found = attempt(case)
        if found is None:
            right += 1
        elif isinstance(found, str):
            refusals.append(found)
        elif found.kind not in smallest or found.case.order < smallest[found.kind].case.order:
            smallest[found.kind] = found

    def judge(case: Any) -> Failure | None:
        found = attempt(case) if keeps(case) else None
        return found if isinstance(found, Failure) else None

    wrong = []
    for failure in smallest.values():
        least = shrink(failure, judge, STAGES[stage].passes, TRIALS, SECONDS)
        wrong.append(Finding(least.case.mode, str(least.case), least.kind, " ".join(least.detail.split())))
    return Cell(right, refusals, wrong)


def measure() -> dict[str, Any]:
    """Measure the installed release: cells by layer kind and operation."""
    torch.set_num_threads(1)
    candidate = find_candidate("transformers")
    adapter = candidate.functions("cache")[""].__self__  # type: ignore[attr-defined]
    bare = replace(candidate, capabilities=replace(candidate.capabilities, lacks={}))
    recording = replace(
        candidate,
        stages={
            "cache": lambda weights, geometry, batch: adapter.open_as(RecordingStream, weights, geometry)
        },
    )
    cells: dict[str, dict[str, Cell]] = {}
    for kind in LayerKind:
        found = cells[str(kind)] = {}

        def wide(ops: set[Op], case: CacheCase) -> bool:
            return case.window > 1 and (not ops or any(call.op in ops for call in case.calls))

        for name, (ops, texts) in SCHEDULES.items():
            found[name] = look(candidate, "cache", cache_cases_of(kind, texts), partial(wide, ops))
            if Op.ROLLBACK in ops:
                found[RECORDED] = look(recording, "cache", cache_cases_of(kind, texts), partial(wide, ops))
        narrow = cache_cases_of(kind, NARROW_SCHEDULES, NARROW_SIZES)
        found[NARROW] = look(candidate, "cache", narrow, lambda case: True)
        for name, (feature, texts) in ROWS.items():
            parts = [
                look(
                    bare,
                    "layer",
                    layer_cases_of(kind, texts, mode),
                    lambda case, feature=feature, mode=mode: feature in case.features and case.mode == mode,
                )
                for mode in candidate.modes("layer")
            ]
            found[name] = _joined(parts)
        for name, make in MASKS.items():
            masked = replace(candidate, stages={"layer": partial(run_masked, make, adapter)})
            found[name] = look(
                masked, "layer", layer_cases_of(kind, BATCHES), lambda case: not case.features
            )
    return {
        "versions": {**candidate.environment, "torch": torch.__version__},
        "cells": {
            kind: {name: asdict(cell) for name, cell in found.items()} for kind, found in cells.items()
        },
    }


def _joined(parts: list[Cell]) -> Cell:
    return Cell(
        sum(part.right for part in parts),
        [text for part in parts for text in part.refusals],
        [finding for part in parts for finding in part.wrong],
        len(parts),
    )


# All releases


def newest() -> str | None:
    """Return the newest release that pip offers; None without a package registry."""
    command = [sys.executable, "-m", "pip", "index", "versions", "transformers"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    match = re.search(r"^transformers \(([\w.]+)\)", result.stdout, re.MULTILINE)
    return match[1] if match else None


def install(release: str, folder: Path) -> dict[str, str]:
    """Install a release, unless it is there; return the environment that has it first on its path."""
    if version("transformers") == release:
        return dict(os.environ)
    target = folder / f"transformers-{release}"
    if not (target / "installed").exists():
        print(f"installing transformers {release} ...", file=sys.stderr, flush=True)
        target.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--target",
            str(target),
            f"transformers=={release}",
        ]
        subprocess.run(command, check=True)
        (target / "installed").touch()
    paths = [str(target), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def measure_release(release: str, folder: Path) -> dict[str, Any]:
    """Measure one release in a process of its own."""
    result = subprocess.run(
        [sys.executable, __file__, "--measure"],
        env=install(release, folder),
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise SystemExit(f"measuring transformers {release} failed:\n{result.stderr}")
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    if found["versions"]["transformers"] != release:
        raise SystemExit(f"asked for transformers {release}, measured {found['versions']['transformers']}")
    print(f"measured transformers {release}", file=sys.stderr, flush=True)
    return found


INTRODUCTION = """\
# transformers, release by release

Made by `python tests/transformers_adapter/table.py --write` (about six minutes, and a package registry); do not edit.
Measured on the CPU in float32 with torch {torch}; transformers {releases}.

Every cell is a handful of small cases of a real one-layer `DeepseekV4Model` on its `DynamicCache(config=config)`, held
against the specification on the tokens that are then in each row. Where prefill is wrong, so is all below it.

* **ok**: right on all of them. **wrong**: at least one has wrong numbers, or breaks inside or in the next call; the
  smallest case found of each kind stands below its table.
* **refused**: all end with an error that transformers raises itself; *ok or refused*, *wrong or refused*: some do.
* *wrong with a cache*: right with `use_cache=False`.
* Padding goes in as a 2-D `attention_mask`, the other layouts as `position_ids`, with and without a cache. 4-D masks
  are the causal window, as `[B, 1, S, S]`.
* Lines that begin with `cache` are schedules of calls: numbers are tokens of one call. Lines can be tried again by
  `csa_spec.check_case("transformers", line)`, except for those of masks and of `activate_past_recording`.
"""


def page(measured: dict[str, dict[str, Any]]) -> str:
    """Write the page."""
    torch_version = next(iter(measured.values()))["versions"]["torch"].partition("+")[0]
    lines = [INTRODUCTION.format(torch=torch_version, releases=", ".join(measured))]
    for kind in LayerKind:
        tables = {release: found["cells"][str(kind)] for release, found in measured.items()}
        names = list(next(iter(tables.values())))
        notes: dict[str, int] = {}
        lines += [f"## {kind} layers\n", f"| | {' | '.join(tables)} |", "|---" * (len(tables) + 1) + "|"]
        for name in names:
            cells = [_shown(_read(table[name]), notes) for table in tables.values()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines += ["", *(f"{number}. {text}" for text, number in notes.items()), ""]
    return "\n".join(lines).rstrip() + "\n"


def _read(cell: dict[str, Any]) -> Cell:
    return Cell(**{**cell, "wrong": [Finding(**finding) for finding in cell["wrong"]]})


def _shown(cell: Cell, notes: dict[str, int]) -> str:
    findings: dict[str, Finding] = {}
    for finding in cell.wrong:
        findings.setdefault(finding.kind, finding)  # without a cache and with one it is mostly the same case
    texts = [f"`{one.case}`: {_said(one)}" for one in findings.values()]
    if not cell.wrong and cell.refusals:
        texts = [f"Refused: {_short(cell.refusals[0].rpartition('refused: ')[2], 78)}"]
    numbers = ", ".join(str(notes.setdefault(text, len(notes) + 1)) for text in texts)
    verdict = f"**{cell.verdict}**" if cell.wrong else cell.verdict
    return f"{verdict} {numbers}".rstrip()


def _said(finding: Finding) -> str:
    if finding.kind.startswith(CandidateRaised.__name__):
        return _short(f"raises {finding.detail}")
    return f"{finding.kind}: {_short(finding.detail)}"


def _short(text: str, most: int = 200) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= most else text[:most].rsplit(" ", 1)[0] + " ..."


def main() -> None:
    """Measure the installed release, or all and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="print the installed release's cells as JSON")
    parser.add_argument(
        "--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}; else print it"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / ".pytest_cache" / "d",
        help="where releases are installed, and kept",
    )
    parser.add_argument("--releases", nargs="+", help=f"default: {', '.join(RELEASES)} and the newest")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure()))
        return
    releases = options.releases or [*RELEASES, *({newest()} - {None, *RELEASES})]
    with ThreadPoolExecutor(max_workers=2) as pool:
        found = list(pool.map(partial(measure_release, folder=options.folder), releases))
    text = page(dict(zip(releases, found, strict=True)))
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
