"""``csa-spec vectors``: vectors are written, or recorded figures compared."""

from __future__ import annotations

import argparse
from pathlib import Path

from csa_spec.commands.arguments import Commands, whole
from csa_spec.output import Console
from csa_spec.report.files import reason_of
from csa_spec.supervising import Supervised


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    vectors = commands.add_parser(
        "vectors",
        help="write test vectors, or compare the specification with recorded figures",
        description="With --write: write inputs and right answers into a folder, for an implementation in any "
        "language; `csa-spec judge` judges its answers. Without: compare the specification, or an attention "
        "core, with recorded figures. Exit codes: 0 written, or every case agrees; 1 at least one does not; 2 "
        "the folder or the candidate cannot be used.",
    )
    vectors.add_argument(
        "folder",
        metavar="DIR",
        type=Path,
        help="folder with index.json and safetensors files, or one to write",
    )
    vectors.add_argument("--write", action="store_true", help="write vectors into the folder")
    vectors.add_argument(
        "--stage", default="all", metavar="NAME[,NAME]", help="of {stages}, those to write (default: all)"
    )
    vectors.add_argument(
        "--layer", default="all", metavar="KIND", help="{layers} or all (default), for stages that have some"
    )
    vectors.add_argument(
        "--dtype",
        default="float32",
        metavar="NAME[,NAME]",
        help="{dtypes}: one or several (default: float32)",
    )
    which = vectors.add_mutually_exclusive_group()
    which.add_argument(
        "--catalogue",
        action="store_true",
        help="write the cases that tell the known bugs of each stage apart (the default)",
    )
    which.add_argument("--cases", type=whole, metavar="N", help="write N drawn cases of each instead")
    vectors.add_argument(
        "--seed", default=0, type=whole, metavar="N", help="seed of the drawn cases (default 0)"
    )
    vectors.add_argument(
        "--attend",
        metavar="CANDIDATE",
        help="compare this candidate's attend with recorded figures in place of the specification",
    )
    vectors.set_defaults(run=run)


_CHOOSE_VECTORS = {
    "--stage": "all",
    "--layer": "all",
    "--dtype": "float32",
    "--catalogue": False,
    "--cases": None,
    "--seed": 0,
}
"""Options that mean something only with ``--write``, and what they are where they are not given."""


def run(options: argparse.Namespace, console: Console, supervised: Supervised) -> int:
    """Run the command; return its exit code."""
    if options.write:
        return _write_vectors(options, console)
    from csa_spec.resolving import UsageError, stage_function
    from csa_spec.vectors.figures import STAGE, TOLERANCE, check_attend, check_vectors, summarise_figures

    for option, left_out in _CHOOSE_VECTORS.items():
        if getattr(options, option.removeprefix("--")) != left_out:
            raise UsageError(f"{option} chooses what is written; add --write, or leave it out")
    if options.attend is None:
        results = list(check_vectors(options.folder))
    else:
        results = list(check_attend(options.folder, stage_function(options.attend, STAGE)))
    console.say(summarise_figures(results))
    wrong = sum(not result.agrees for result in results)
    console.say(f"{len(results) - wrong} of {len(results)} cases agree within {TOLERANCE:g}")
    return 1 if wrong else 0


def _write_vectors(options: argparse.Namespace, console: Console) -> int:
    from csa_spec.report.files import problem_of_folder
    from csa_spec.resolving import UsageError
    from csa_spec.vectors.writing import summarise_written, write_vectors

    if options.attend is not None:
        raise UsageError("--attend compares a candidate with recorded figures; leave it out where you write")
    problem = problem_of_folder(options.folder)
    if problem:
        raise UsageError(problem)
    try:
        written = write_vectors(
            options.folder, options.stage, options.layer, options.dtype, options.cases, options.seed
        )
    except OSError as error:
        raise UsageError(f"{options.folder} could not be written: {reason_of(error)}") from None
    console.say(summarise_written(options.folder, written))
    return 0
