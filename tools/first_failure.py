"""How long until a failing run says something, and how long it takes in all, against one that finds nothing.

``python -m tools.first_failure`` checks mutants of transformers' modeling file (those of
``tests/transformers_adapter/mutants.py``), each in a process of its own, and prints for each the seconds from
the start of the process to its first failure, found, made small and named, and to the end of the run.

``--cpu`` counts seconds of CPU time, also where the run itself looks at the clock: what an idle machine would
show, measured on one that is not. ``--mutants 0,3,5`` chooses some, ``--fail-fast`` stops each at the first.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
CLEAN = -1
"""In place of a mutant's number: the file as it is"""


def measure(number: int, options: argparse.Namespace) -> dict[str, Any]:
    """Check one mutant in a process of its own; return what it printed."""
    flags = [f"--{name}" for name in ("cpu", "fail-fast") if getattr(options, name.replace("-", "_"))]
    command = [
        sys.executable,
        "-m",
        "tools.first_failure",
        "--one",
        f"{number}",
        f"--begin={time.time()}",
        *flags,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def check_one(number: int, cpu: bool, begin: float, fail_fast: bool) -> dict[str, Any]:
    """Check one mutant in this process, which does nothing else."""
    if cpu:
        time.perf_counter = time.monotonic = time.process_time
    sys.path.insert(0, str(TESTS))
    adapter: Any = importlib.import_module("transformers_adapter.mutants")

    import csa_spec

    def now() -> float:
        return time.process_time() if cpu else time.time() - begin

    failures: list[dict[str, Any]] = []

    def found(failure: Any, result: Any) -> None:
        likenesses = failure.diagnosis.behaves_like if failure.diagnosis else ()
        failures.append(
            {
                "seconds": now(),
                "check": result.check,
                "kind": failure.kind,
                "case": str(failure.case),
                "off_by": failure.over_budget,
                "names": [likeness.name for likeness in likenesses],
                "remarks": failure.remarks,
            }
        )

    mutant = None if number == CLEAN else adapter.MUTANTS[number]
    with tempfile.TemporaryDirectory() as folder:
        candidate = adapter.patched(mutant, Path(folder))
        csa_spec.check(candidate, found=found, fail_fast=fail_fast)
    return {"name": mutant.name if mutant else "clean", "seconds": now(), "failures": failures}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mutants", default=",".join(map(str, range(21))), metavar="N,N,...")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--fail-fast", action="store_true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--begin", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one is not None:
        print(json.dumps(check_one(options.one, options.cpu, options.begin, options.fail_fast)))
        return
    clean = measure(CLEAN, options)["seconds"] if not options.fail_fast else None
    firsts, shares = [], []
    for number in map(int, options.mutants.split(",")):
        measured = measure(number, options)
        first = measured["failures"][0]
        firsts.append(first["seconds"])
        shares.append(measured["seconds"] / (clean or measured["seconds"]))
        print(
            f"{number:>2} {measured['name']:<52}{firsts[-1]:>6.1f} s{measured['seconds']:>7.1f} s",
            flush=True,
        )
        for failure in measured["failures"]:
            print(
                "     {seconds:.1f} s {check} {kind} x{off_by} {names} {remarks}\n       {case}".format_map(
                    failure
                )
            )
    print(f"first failure after {median(firsts):.1f} s (median)")
    if clean is not None:
        print(
            f"clean run {clean:.1f} s; failing ones {median(shares):.2f} times (median), at most {max(shares):.2f}"
        )


if __name__ == "__main__":
    main()
