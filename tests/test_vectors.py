"""Vectors are written for other languages, and the answers of a program in one are judged."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from safetensors.torch import load_file, save_file
from torch import Tensor

import csa_spec
from csa_spec.bugs import find_bug
from csa_spec.cli import main
from csa_spec.engine.results import Verdict
from csa_spec.plug.candidate import Candidate
from csa_spec.selftest.text import marked_table
from csa_spec.stages import STAGES, parse_case
from csa_spec.vectors.catalogue import READY, READY_BYTES, telling
from csa_spec.vectors.files import VectorsError, read_index
from csa_spec.vectors.judging import judge
from csa_spec.vectors.writing import plainest, write_vectors
from tools.telling import CHOSEN, table

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "vectors.md").read_text(encoding="utf-8")
SUBJECTS = [(stage, variant) for stage in STAGES.values() for variant in stage.variants]


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of a few drawn cases of every stage."""
    folder = tmp_path_factory.mktemp("vectors")
    write_vectors(folder, cases=12, seed=1)
    return folder


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the catalogue's cases of two kernels."""
    folder = tmp_path_factory.mktemp("kernels")
    write_vectors(folder, stage="select,attend")
    return folder


def index_of(folder: Path) -> Any:
    """Return the index."""
    return json.loads((folder / "index.json").read_text(encoding="utf-8"))


def right(folder: Path, name: str) -> dict[str, Tensor]:
    """Return the answers that a file of vectors has itself, in the dtype that answers have."""
    (file,) = (file for file in index_of(folder)["files"] if file["file"] == f"{name}.safetensors")
    tensors, wanted = load_file(folder / file["file"]), getattr(torch, file["dtype"])
    outs = {vector["name"]: tensors[f"{vector['name']}.out"] for vector in file["cases"]}
    return {case: out if out.dtype == torch.int64 else out.to(wanted) for case, out in outs.items()}


def answered(folder: Path, name: str, answer: Callable[..., Any]) -> dict[str, Tensor]:
    """Return what a function answers to the inputs of a file."""
    (file,) = (file for file in index_of(folder)["files"] if file["file"] == f"{name}.safetensors")
    answers = {}
    for vector in file["cases"]:
        out = answer(*csa_spec.tensors(vector["case"]).values())
        answers[vector["name"]] = out.contiguous()
    return answers


@pytest.mark.parametrize(("stage", "variant"), SUBJECTS, ids=lambda value: getattr(value, "name", value))
def test_the_answers_that_are_written_are_right(
    stage: Any, variant: str, vectors: Path, tmp_path: Path
) -> None:
    """Of every stage; one that is changed is not."""
    name = stage.subject(variant).replace(" ", "-") + "-float32"
    answers = right(vectors, name)
    assert len(answers) >= 8
    save_file(answers, tmp_path / "a.safetensors")
    report = judge(vectors, tmp_path / "a.safetensors")
    assert report.verdict is Verdict.CONFORMANT
    assert sum(result.cases for result in report.results) == len(answers)
    changed = max(answers, key=lambda name: answers[name].numel())
    compared = load_file(vectors / f"{name}.safetensors")[f"{changed}.compared"]
    answers[changed][compared.nonzero()[0].tolist()[0]] += 1000
    save_file(answers, tmp_path / "a.safetensors")
    assert judge(vectors, tmp_path / "a.safetensors").verdict is Verdict.NOT_CONFORMANT


def test_a_file_has_the_inputs_and_numbers_of_each_case(vectors: Path) -> None:
    """Whoever reads the tensors needs no index."""
    for file in index_of(vectors)["files"]:
        tensors = load_file(vectors / file["file"])
        for vector in file["cases"]:
            for argument, value in csa_spec.tensors(vector["case"]).items():
                if isinstance(value, Tensor):
                    written = tensors[f"{vector['name']}.in.{argument}"]
                    assert torch.equal(written.nan_to_num(), value.nan_to_num())
                elif isinstance(value, (int, float)):
                    assert tensors[f"{vector['name']}.in.{argument}"].item() == value
                    assert vector["scalars"][argument] == value
            assert {f"{vector['name']}.out", f"{vector['name']}.compared"} <= set(tensors)


def test_a_simple_comparison_agrees_where_nothing_ties(vectors: Path) -> None:
    """The page says how to compare in one's own language."""
    for name in ("attend-float32", "compressor-float32", "index_scores-float32"):
        tensors = load_file(vectors / f"{name}.safetensors")
        for case, out in right(vectors, name).items():
            exact, tolerance = tensors[f"{case}.out"], tensors[f"{case}.tolerance"]
            assert bool(((out.double() - exact).abs() <= tolerance).all())


def test_the_index_follows_its_schema(vectors: Path, kernels: Path) -> None:
    """And one that does not is refused by it."""
    schema = json.loads((REPOSITORY / "docs" / "schema" / "vectors.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    for folder in (vectors, kernels):
        validator.validate(index_of(folder))
    broken = index_of(vectors)
    del broken["files"][0]["cases"][0]["case"]
    assert not validator.is_valid(broken)
    assert not validator.is_valid({**index_of(vectors), "version": 2})


def test_a_missing_answer_is_inconclusive_and_named(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All the others may be right."""
    answers = right(vectors, "attend-float32")
    del answers["attend-float32-3"]
    save_file(answers, tmp_path / "a.safetensors")
    assert main(["judge", str(vectors), str(tmp_path / "a.safetensors")]) == 2
    assert "not finished: these have no answer: attend-float32-3" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize("bug", ["drops_the_sink", "uses_exp2_without_log2_e", "sees_the_unfinished_block"])
def test_a_known_bug_is_named(bug: str, kernels: Path, tmp_path: Path) -> None:
    """By the answers that were written, and no others."""
    known = find_bug(bug)
    save_file(answered(kernels, f"{known.stage}-float32", known.function), tmp_path / "a.safetensors")
    report = judge(kernels, tmp_path / "a.safetensors", "theirs")
    assert report.verdict is Verdict.NOT_CONFORMANT
    named = [
        likeness.name
        for result in report.results
        for failure in result.failures
        if failure.diagnosis
        for likeness in failure.diagnosis.behaves_like
    ]
    assert bug in named


@pytest.mark.parametrize(("stage", "variant"), SUBJECTS, ids=lambda value: getattr(value, "name", value))
def test_the_cases_of_the_catalogue_tell_the_bugs_that_they_are_said_to(stage: Any, variant: str) -> None:
    """Each of them is plain, and each bug is wrong on it."""
    cases = telling(stage.subject(variant))
    assert cases
    told = {bug for bugs in cases.values() for bug in bugs}
    assert len(told) > len(cases)
    for line, bugs in cases.items():
        case = parse_case(line)
        assert plainest(case) == case
        for bug in bugs:
            trial = stage.trial(find_bug(bug).candidate, case)
            with pytest.raises(csa_spec.Failure):
                trial.judge(trial.answer)


def test_right_implementations_pass_the_catalogue(kernels: Path, tmp_path: Path) -> None:
    """Those that ship."""
    from csa_spec.candidates import find_candidate

    for candidate in (find_candidate("gather"), find_candidate("flattened"), find_candidate("dense")):
        assert isinstance(candidate, Candidate)
        for stage in set(candidate.offers) & {"select", "attend"}:
            answers = answered(kernels, f"{stage}-float32", candidate.functions(stage)[""])
            save_file(answers, tmp_path / "a.safetensors")
            assert judge(kernels, tmp_path / "a.safetensors").verdict is Verdict.CONFORMANT


def failing(folder: Path, answers: Path) -> str:
    """Return why answers cannot be judged."""
    with pytest.raises(VectorsError) as raised:
        judge(folder, answers)
    return str(raised.value)


def test_what_cannot_be_judged_is_one_sentence(vectors: Path, tmp_path: Path) -> None:
    """Missing, broken, unknown or changed."""
    answers = right(vectors, "attend-float32")
    save_file(answers, tmp_path / "a.safetensors")
    assert "is not a folder" in failing(tmp_path / "no", tmp_path / "a.safetensors")
    assert "there is no" in failing(vectors, tmp_path / "no")
    assert "not a readable safetensors file" in failing(vectors, vectors / "index.json")
    save_file({"attend-float32-99": torch.zeros(1)}, tmp_path / "b.safetensors")
    assert "did you mean attend-float32-" in failing(vectors, tmp_path / "b.safetensors")
    save_file({}, tmp_path / "c.safetensors")
    assert "has no answers" in failing(vectors, tmp_path / "c.safetensors")
    twice = tmp_path / "twice"
    twice.mkdir()
    for name in ("a", "b"):
        save_file(answers, twice / f"{name}.safetensors")
    assert "a second time" in failing(vectors, twice)


def test_a_pipe_is_no_file_of_answers(vectors: Path, tmp_path: Path) -> None:
    """To open it would wait for ever."""
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert failing(vectors, tmp_path / "pipe.safetensors").endswith("pipe.safetensors is not a file")
    assert failing(vectors, tmp_path).endswith("pipe.safetensors is not a file")


def test_fields_that_a_later_version_adds_are_ignored(vectors: Path, tmp_path: Path) -> None:
    """As the schema of the index promises."""
    copy = tmp_path / "copy"
    shutil.copytree(vectors, copy)
    index = index_of(vectors)
    for place in (index, index["files"][0], index["files"][0]["cases"][0]):
        place["added"] = "later"
    (copy / "index.json").write_text(json.dumps(index), encoding="utf-8")
    assert read_index(copy) == read_index(vectors)


def test_changed_vectors_are_refused(vectors: Path, tmp_path: Path) -> None:
    """Who answers other inputs is judged by them, or not at all."""
    copy = tmp_path / "copy"
    shutil.copytree(vectors, copy)
    tensors = load_file(copy / "attend-float32.safetensors")
    tensors["attend-float32-2.in.q"] += 1
    save_file(tensors, copy / "attend-float32.safetensors")
    save_file(right(vectors, "attend-float32"), tmp_path / "a.safetensors")
    assert "the inputs of attend-float32-2 are not" in failing(copy, tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.update(version=9), "is of version 9"),
        (lambda data: data.update(format="x"), "is no index of vectors"),
        (lambda data: data["files"][0].pop("cases"), "is broken"),
        (lambda data: data["files"][0].update(file="../x.safetensors"), "is broken"),
        (lambda data: data["files"][0].update(stage="norm"), "which this version does not have"),
        (lambda data: data["files"][0]["cases"][0].update(case="banana"), "cannot be read"),
    ],
)
def test_an_index_that_cannot_be_used_is_one_sentence(
    change: Callable[[Any], Any], says: str, vectors: Path, tmp_path: Path
) -> None:
    """Whatever is wrong with it."""
    copy = tmp_path / "copy"
    shutil.copytree(vectors, copy)
    data = index_of(vectors)
    first = data["files"][0]
    name = first["file"].removesuffix(".safetensors")
    save_file(right(vectors, name), tmp_path / "a.safetensors")
    change(data)
    (copy / "index.json").write_text(json.dumps(data), encoding="utf-8")
    assert says in failing(copy, tmp_path / "a.safetensors")


def test_what_was_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each file, and reports are written beside the text."""
    folder = tmp_path / "v"
    assert main(["vectors", "--write", str(folder), "--stage", "select", "--cases", "3"]) == 0
    assert re.search(r"select-float32\.safetensors +3 cases, \d+ kB", capsys.readouterr().out)
    save_file(right(folder, "select-float32"), tmp_path / "a.safetensors")
    report = tmp_path / "report.json"
    assert main(["judge", str(folder), str(tmp_path / "a.safetensors"), "--json", str(report)]) == 0
    assert json.loads(report.read_text(encoding="utf-8"))["verdict"] == "conformant"


def test_the_ready_vectors_are_those_that_this_version_writes(tmp_path: Path) -> None:
    """Small, and as the page says: the same inputs to the bit, answers to their last digits."""
    written = write_vectors(tmp_path, stage=",".join(CHOSEN), most_bytes=READY_BYTES)
    assert index_of(tmp_path) == index_of(READY)
    for one in written:
        fresh, ready = load_file(tmp_path / one.file.file), load_file(READY / one.file.file)
        assert fresh.keys() == ready.keys()
        for name, tensor in fresh.items():
            # Processors add in orders of their own, which shows in the last digits of answers, never in inputs.
            loose = 1e-6 * (
                tensor if name.endswith(".tolerance") else fresh.get(f"{name[:-4]}.tolerance", 0)
            )
            difference = (tensor.nan_to_num().double() - ready[name].nan_to_num().double()).abs()
            assert bool((difference <= (0 if ".in." in name else loose)).all()), name
    assert sum(path.stat().st_size for path in READY.iterdir()) < 2_000_000
    assert marked_table(table()) in PAGE
