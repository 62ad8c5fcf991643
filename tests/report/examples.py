"""Make the examples of ``docs/failures``: three failures, a picture of each, and both kinds of report.

``python tests/report/examples.py --write``; without ``--write`` it says which files are out of date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))


from csa_spec.bugs import find_bug
from csa_spec.checking import check_case
from csa_spec.diagnosis import diagnose
from csa_spec.engine.failures import Failure
from csa_spec.engine.results import Report
from csa_spec.engine.running import CheckResult
from csa_spec.engine.stage import SPECIFICATION
from csa_spec.report.html import to_html
from csa_spec.report.markdown import to_markdown
from csa_spec.report.picture import picture
from csa_spec.resolving import resolve_candidate
from csa_spec.stages import stage_of

FOLDER = Path(__file__).parents[2] / "docs" / "failures"
KERNELS = SimpleNamespace(
    layer=find_bug("every_query_attends_to_every_querys_top_k").function,  # as transformers 5.8.0
    attend=find_bug("reads_index_minus_one_as_row_0").function,
    select=find_bug("sees_everything").function,
)
"""An implementation whose stages have one bug each."""
NAME = "report.examples:KERNELS"
CASES = {
    "csa": "csa m=2 W=2 HI=2 DI=4 rows=8 values=gaussian scores=separated seed=1",
    "attend": "attend S=4 H=2 D=4 N=8 n=5 indices=holes values=gaussian seed=3",
    "select": "select S=8 T=4 m=2 k=2 values=gaussian seed=1",
}


def failure_of(candidate: object, line: str, check: str = SPECIFICATION) -> Failure:
    """Return how a wrong candidate fails on a case, which need not be small."""
    try:
        check_case(candidate, line, check)
    except Failure as failure:
        return failure
    raise RuntimeError(f"{candidate} passes {check} on {line}")


def report_of(candidate: str, failures: Sequence[Failure]) -> Report:
    """Return the report of a run in which the equality with the specification failed in these ways."""
    results = []
    for failure in failures:
        stage = stage_of(failure.case)
        check = stage.checks[0]
        variant = failure.case.variant
        found = CheckResult(check.name, check.sentence, stage.name, variant, stage.subject(variant))
        found.cases, found.failing, found.failures = 1, 1, [failure]
        results.append(found)
    return Report(
        candidate, {"csa-spec": "example"}, "example", ("float32",), "cpu", 0, results, {}, {}, {}, 0.0
    )


def files() -> dict[str, str]:
    """Return the text of every example."""
    failures = {name: failure_of(NAME, line) for name, line in CASES.items()}
    for failure in failures.values():
        check = stage_of(failure.case).checks[0]
        failure.diagnosis = diagnose(resolve_candidate(NAME), check, failure)
    report = report_of(NAME, list(failures.values()))
    pictures = {f"{name}.svg": picture(failure) or "" for name, failure in failures.items()}
    return {**pictures, "report.html": to_html(report), "report.md": to_markdown(report)}


def main() -> int:
    """Write the examples, or say which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write them")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where they are (docs/failures)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    stale = []
    for name, text in files().items():
        path = options.folder / name
        if options.write:
            options.folder.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    if stale:
        print("out of date: " + ", ".join(stale))
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
