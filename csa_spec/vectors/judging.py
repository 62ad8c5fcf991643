"""Judging what another program answered to test vectors: ``csa-spec judge DIR ANSWERS``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csa_spec.answers import tensors
from csa_spec.diagnosis import diagnose
from csa_spec.engine.case import CaseError
from csa_spec.engine.results import Report
from csa_spec.engine.running import CheckResult, run_check
from csa_spec.plug.names import did_you_mean, instead
from csa_spec.plug.plain import plain_line, shown
from csa_spec.plug.reading import is_folder, is_there
from csa_spec.plug.recorded import fingerprint, recorded
from csa_spec.stages import STAGES, parse_case
from csa_spec.target import one_thread
from csa_spec.vectors.files import File, VectorsError, read_index, read_tensors, same_inputs


def judge(folder: Path, answers: Path, name: str = "") -> Report:
    """Hold answers that another program wrote against a folder of vectors.

    Parameters
    ----------
    folder
        That :func:`csa_spec.vectors.writing.write_vectors` made.
    answers
        A safetensors file with a tensor for each case, by its name, or a folder of such files.
    name
        Of the program, for the report; the name of ``answers`` if not given.

    Returns
    -------
    Report
        As of a run: not conformant where an answer is wrong, inconclusive where a case has none.

    Raises
    ------
    VectorsError
        If the folder, or the answers, cannot be used.
    """
    begin = time.perf_counter()
    files, given = read_index(folder), _read_answers(answers)
    _require_known(given, files, answers)
    who = name or answers.stem
    results: list[CheckResult] = []
    unanswered: list[str] = []
    with one_thread():
        for file in files:
            if not _is_asked(file, given):
                continue
            result = _judge_file(folder, file, given, who)
            results.append(result)
            unanswered += [vector.name for vector in file.cases if vector.name not in given]
    if not results:
        raise VectorsError(
            f"{answers} has no answers; a tensor is named after its case, such as {_example(files)}"
        )
    return Report(
        candidate=plain_line(who),
        environment={"csa-spec": version("csa-spec"), "torch": torch.__version__},
        profile="vectors",
        dtypes=tuple(dict.fromkeys(result.dtype for result in results)),
        device="cpu",
        seed=0,
        results=results,
        missing={},
        left_out={},
        declined={},
        seconds=time.perf_counter() - begin,
        stopped=_unanswered(unanswered),
    )


def _unanswered(names: list[str]) -> str:
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"these have no answer: {shown}" if names else ""


def _is_asked(file: File, given: Mapping[str, Tensor]) -> bool:
    """Whether a program answers this file at all: it need not offer every stage."""
    return any(vector.name in given for vector in file.cases)


def _example(files: list[File]) -> str:
    return next((vector.name for file in files for vector in file.cases), "attend-float32-0")


def _read_answers(answers: Path) -> dict[str, Tensor]:
    if not is_there(answers):
        raise VectorsError(
            f"there is no {answers}; name a safetensors file of answers, or a folder of such files"
        )
    paths = sorted(answers.glob("*.safetensors")) if is_folder(answers) else [answers]
    given: dict[str, Tensor] = {}
    for path in paths:
        for name, tensor in read_tensors(path).items():
            if name in given:
                raise VectorsError(f"{path} answers {shown(name)} a second time")
            given[name] = tensor
    return given


def _require_known(given: Mapping[str, Tensor], files: list[File], answers: Path) -> None:
    names = [vector.name for file in files for vector in file.cases]
    for name in given:
        if name not in names:
            hint = did_you_mean(name, names) or f"they are named like {_example(files)}"
            raise VectorsError(f"{answers} answers {shown(name)}, which is no case of the vectors; {hint}")


def _judge_file(folder: Path, file: File, given: Mapping[str, Tensor], who: str) -> CheckResult:
    """Judge the answers to one file as the specification check does; name what they behave like."""
    stage = _stage_of(file)
    cases = [entry for entry in _cases(folder, file) if entry[0] in given]
    answered = {name: case for name, case, _ in cases}
    by_inputs = {inputs: given[name] for name, _, inputs in cases}
    if len(by_inputs) < len(answered):
        raise VectorsError(f"{folder / file.file} has the same inputs twice; write the vectors anew")
    candidate = recorded(who, stage.name, by_inputs)
    check, listed = stage.checks[0], list(answered.values())
    result = run_check(
        check,
        candidate,
        stage,
        listed,
        variant=file.variant,
        dtype=file.dtype,
        shrinking=False,
        enough=len(listed),
    )
    names = {case: name for name, case in answered.items()}
    for failure in result.failures:
        failure.recorded_as = names[failure.case]
        failure.diagnosis = diagnose(candidate, check, failure, others=listed, recorded=True)
    return result


def _stage_of(file: File) -> Any:
    if file.stage not in STAGES:
        meant = instead(file.stage, STAGES)
        raise VectorsError(
            f"the index lists the stage {shown(file.stage)}, which this version does not have; {meant}"
        )
    return STAGES[file.stage]


def _cases(folder: Path, file: File) -> Iterator[tuple[str, Any, str]]:
    """Yield name, case and fingerprint of the inputs; refuse inputs that are not those of this version."""
    data = read_tensors(folder / file.file)
    for vector in file.cases:
        try:
            case = parse_case(vector.case)
        except CaseError as error:
            raise VectorsError(f"the index has a case that cannot be read: {error}") from None
        if (case.stage, case.variant, case.dtype) != (file.stage, file.variant, file.dtype):
            is_of, listed_as = (
                " ".join(filter(None, (one.stage, one.variant, one.dtype))) for one in (case, file)
            )
            raise VectorsError(f"the index has a case of {is_of} in a file of {listed_as}; write it anew")
        arguments = tensors(case)
        if not same_inputs(vector.name, arguments, data):
            raise VectorsError(
                f"the inputs of {vector.name} are not those of {vector.case!r} in this version of csa-spec and "
                "torch; write the vectors anew, and answer them again"
            )
        yield vector.name, case, fingerprint(arguments)
