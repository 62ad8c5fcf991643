"""Replay: what became of the failure of a bundle; a damaged bundle is a sentence."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bundle.variants import VARIANTS, WITHOUT_SCRIPT
from csa_spec import check_case
from csa_spec.bundle import write_bundle
from csa_spec.cli import main
from csa_spec.engine.failures import CandidateHung, CandidateRaised, Diagnosis, Failure, Likeness
from csa_spec.replay import State, exit_code, replay, summarise_replay
from csa_spec.report.json import failure_json
from csa_spec.resolving import resolve_candidate
from csa_spec.stages import parse_case

CASE = "attend D=2 N=2 n=2 values=gaussian sinks=drawn-sinks"


def attend(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Return something else."""
    return 2 * q


def zeros(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Return nothing but zeros."""
    return torch.zeros_like(q)


def select(scores: Tensor, positions: Tensor, compress_ratio: int, top_k: int) -> Tensor:
    """Select nothing."""
    return torch.full((*scores.shape[:2], 0), -1)


def write(folder: Path) -> Path:
    """Write the bundle of ``attend``."""
    candidate = resolve_candidate(attend, "attend")
    with pytest.raises(Failure) as caught:
        check_case(candidate, CASE)
    return write_bundle(caught.value, candidate, "specification", folder, {"csa-spec": "0"})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One bundle."""
    return write(tmp_path_factory.mktemp("replay"))


def test_states(bundle: Path) -> None:
    """Still failing, fixed, changed kind."""
    (same,) = replay([bundle], trust=True)
    assert (same.state, same.remark) == (State.FAILING, "")
    assert str(same).startswith(f"{bundle}: still failing: output does not depend on what it must depend on")
    (fixed,) = replay([bundle], "gather")
    assert (fixed.state, fixed.sentence) == (State.FIXED, "")
    (changed,) = replay([bundle], zeros)
    assert changed.state is State.CHANGED
    assert changed.sentence.startswith("it was SeesTooLittle, now it is ReturnsZeros: ")
    assert [exit_code(one) for one in ([same], [changed], [fixed], [fixed, same], [])] == [1, 1, 0, 1, 2]
    assert summarise_replay([fixed, same]).endswith("2 bundles: 1 still failing, 1 fixed")


def test_a_candidate_that_cannot_be_used(bundle: Path) -> None:
    """Is a sentence, and decides nothing."""
    for candidate, words in (
        ("no_such_module:attend", "there is no module"),
        ("bundle.test_replay:nothing", "no attribute"),
        ("nobody", "unknown candidate"),
        (select, "attend"),
    ):
        (one,) = replay([bundle], candidate)
        assert one.state is State.UNDECIDED
        assert words in str(one), candidate
        assert str(bundle) in str(one)
        assert exit_code([one]) == 2


def test_a_folder_of_bundles(tmp_path: Path, bundle: Path) -> None:
    """Stands for the bundles in it; what else lies there, half a bundle too, is left out."""
    for name in ("one", "two", ".bundle-half"):
        shutil.copytree(bundle, tmp_path / name)
    (tmp_path / "notes").mkdir()
    assert [one.folder.name for one in replay([tmp_path], "gather")] == ["one", "two"]
    (empty,) = replay([tmp_path / "notes"])
    assert "this is not a bundle" in str(empty)


def _without(data: dict[str, Any], name: str) -> str:
    return json.dumps({key: value for key, value in data.items() if key != name})


DAMAGE = {
    "truncated": (lambda data: json.dumps(data)[:-40], "is not valid JSON: "),
    "empty": (lambda data: "", "is not valid JSON: "),
    "garbage": (lambda data: b"\x00\xff\xfe\x80" * 99, "is not UTF-8 text"),
    "deep": (lambda data: "[" * 200_000, "it is nested too deeply"),
    "a list": (lambda data: "[1]", "must be a JSON object"),
    "another file": (lambda data: json.dumps({"a": 1}), "does not belong to a bundle"),
    "newer": (lambda data: json.dumps(data | {"csa_spec_bundle": 3}), "version 3, and this csa-spec reads up to 2"),
    "no version": (lambda data: json.dumps(data | {"csa_spec_bundle": "x"}), "must be a positive integer, not 'x'"),
    "no case": (lambda data: _without(data, "case_line"), "lacks 'case_line'"),
    "no kind": (lambda data: _without(data, "kind"), "lacks 'kind'"),
    "a number": (lambda data: json.dumps(data | {"candidate": 3}), "'candidate' of case.json must be text, not int"),
    "unknown check": (lambda data: json.dumps(data | {"check": "future"}), "unknown check 'future' of attend"),
    "unknown stage": (lambda data: json.dumps(data | {"case_line": "softmax S=2"}), "its case cannot be read"),
    "unknown word": (lambda data: json.dumps(data | {"case_line": "attend S=two"}), "its case cannot be read"),
    "too large a case": (
        lambda data: json.dumps(data | {"case_line": "attend D=2 N=99999999999999"}), "the case would take",
    ),
    "no schedule": (lambda data: json.dumps(data | {"case_line": "cache csa calls=fork:1"}), "its case cannot be read"),
    "a law of another stage": (
        lambda data: json.dumps(data | {"case_line": "cache csa calls=1", "check": "weights"}),
        "unknown check 'weights' of cache",
    ),
    "cuda": (lambda data: json.dumps(data | {"case_line": f"{CASE} device=cuda"}), "CUDA"),
    "a number of 6,000 digits": (lambda data: '{"csa_spec_bundle": ' + 6000 * "9" + "}", "thousands of digits"),
    "a version of 400 digits": (
        lambda data: json.dumps(data | {"csa_spec_bundle": 10**400}), "more characters), and this csa-spec",
    ),
    "a case of 6,000 digits": (
        lambda data: json.dumps(data | {"case_line": f"attend N={6000 * '9'}"}), "6,000 digits; write one of",
    ),
    "huge": (lambda data: b" " * (17 << 20), "more than 16 MB"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_bundle_is_a_sentence(tmp_path: Path, bundle: Path, name: str) -> None:
    """Others go on."""
    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("CUDA is there")
    damage, words = DAMAGE[name]
    broken = tmp_path / "broken"
    shutil.copytree(bundle, broken)
    text = damage(json.loads((bundle / "case.json").read_text()))
    (broken / "case.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    one, other = replay([broken, bundle], "gather")
    assert (one.state, other.state) == (State.UNDECIDED, State.FIXED)
    assert words in str(one)
    assert str(one).startswith(f"{broken}: ")
    assert "\n" not in str(one)
    assert len(str(one)) < 600
    assert exit_code([one, other]) == 2


def test_folders_that_are_none(tmp_path: Path) -> None:
    """A missing folder, a file, a folder in the place of the file."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "odd" / "case.json").mkdir(parents=True)
    for name in ("missing", "file", "odd", "with\0zero"):
        (one,) = replay([tmp_path / name])
        assert one.state is State.UNDECIDED, name


def test_a_bundle_of_version_1_is_replayed(tmp_path: Path, bundle: Path) -> None:
    """It counted otherwise how often a known bug agrees, which replaying does not need."""
    old = tmp_path / "old"
    shutil.copytree(bundle, old)
    data = json.loads((old / "case.json").read_text())
    like = {"name": "a", "title": "b", "cause": "c", "urls": [], "agreeing": 1, "tried": 2}
    data |= {"csa_spec_bundle": 1, "diagnosis": {"summary": "d", "behaves_like": [like]}}
    (old / "case.json").write_text(json.dumps(data))
    (same,) = replay([old], trust=True)
    assert (same.state, same.remark) == (State.FAILING, "")
    (fixed,) = replay([old], "gather")
    assert fixed.state is State.FIXED


def test_a_diagnosis_has_one_shape(tmp_path: Path) -> None:
    """In a bundle as in the report for programs."""
    like = Likeness("a", "b", "c", (), ("https://d",), 1, 2)
    failure = Failure(parse_case(CASE), message="is wrong")
    failure.diagnosis = Diagnosis((like,), "e")
    folder = write_bundle(failure, resolve_candidate(attend, "attend"), "specification", tmp_path, {})
    data = json.loads((folder / "case.json").read_text())
    assert data["diagnosis"] == failure_json(failure)["diagnosis"]
    (shown,) = data["diagnosis"]["behaves_like"]
    assert (shown["agreeing_cases"], shown["tried_cases"]) == (1, 2)


def test_nothing_of_a_bundle_is_executed(tmp_path: Path, bundle: Path) -> None:
    """Neither the script nor the tensors are looked at."""
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    (copy / "repro.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (copy / "tensors.safetensors").write_bytes(b"garbage")
    (one,) = replay([copy], trust=True)
    assert one.state is State.FAILING
    assert not (tmp_path / "ran").exists()


def test_other_tensors_are_remarked(tmp_path: Path, bundle: Path) -> None:
    """Where this torch draws other numbers than that of the bundle."""
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    data = json.loads((copy / "case.json").read_text())
    (copy / "case.json").write_text(json.dumps(data | {"inputs_sha256": "0" * 64}))
    (one,) = replay([copy], trust=True)
    assert "draws other numbers than the bundle" in str(one)


def test_an_interrupted_write_leaves_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the one that was there."""

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path)
    assert list(tmp_path.iterdir()) == []
    first = write(tmp_path)
    before = {one.name: one.read_bytes() for one in first.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr("csa_spec.bundle.write._picture", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path)
    assert {one.name: one.read_bytes() for one in first.iterdir()} == before
    assert write(tmp_path) == first
    assert [one.name for one in tmp_path.iterdir()] == [first.name]
    assert {one.name: one.read_bytes() for one in first.iterdir()} == before


def test_an_exception_a_law_and_a_stream_are_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kind has the type of the exception in it; a law is replayed as that law, a stream call by call."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("raises", "order", "rollback"):
        variant = (VARIANTS | WITHOUT_SCRIPT)[name]
        for state in ("wrong", "right"):
            (tmp_path / f"{state}_{name}.py").write_text(variant.module(wrong=state == "wrong"))
        candidate = resolve_candidate(f"wrong_{name}:{variant.stage}", variant.stage)
        with pytest.raises(Failure) as caught:
            check_case(candidate, variant.case, variant.check)
        assert isinstance(caught.value, CandidateRaised) == (name == "raises")
        folder = write_bundle(caught.value, candidate, variant.check, tmp_path / "bundles", {})
        (one,) = replay([folder], trust=True)
        assert one.state is State.FAILING
        (other,) = replay([folder], f"right_{name}:{variant.stage}")
        assert other.state is State.FIXED
        for state in ("wrong", "right"):
            sys.modules.pop(f"{state}_{name}")


def sleeps(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Never return."""
    time.sleep(3600)
    return q


def test_what_hung_is_tried_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the replay ends."""
    monkeypatch.setattr("csa_spec.replay.TIME_LIMIT", 1.0)
    failure = CandidateHung(parse_case(CASE), message="the call did not end within 1 s")
    folder = write_bundle(failure, resolve_candidate(sleeps, "attend"), "specification", tmp_path, {})
    (one,) = replay([folder], trust=True)
    assert one.state is State.FAILING
    (other,) = replay([folder], "gather")
    assert other.state is State.FIXED


PAYLOAD = """
from pathlib import Path
Path(__file__).with_name("ran").write_text("")
def select(scores, positions, compress_ratio, top_k): ...
"""


@pytest.fixture
def trap(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with a module beside it, which says so when it is imported; the command is run there."""
    folder = tmp_path / "trap"
    shutil.copytree(bundle, folder)
    for name in ("payload", "jinja2", "triton"):
        (folder / f"{name}.py").write_text(PAYLOAD)
    inside = folder / "payload-1.dist-info"
    inside.mkdir()
    (inside / "METADATA").write_text("Metadata-Version: 2.1\nName: payload\nVersion: 1\n")
    (inside / "entry_points.txt").write_text("[csa_spec.candidates]\nof-the-bundle = payload:select\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    return folder


def _name(folder: Path, candidate: str) -> None:
    data = json.loads((folder / "case.json").read_text())
    (folder / "case.json").write_text(json.dumps(data | {"candidate": candidate}))


@pytest.mark.parametrize("candidate", ["payload:select", "payload.select", "payload", "of-the-bundle"])
def test_a_bundle_does_not_choose_what_is_imported(
    trap: Path, candidate: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a module by name, nor a package to look into, nor an entry point that lies beside it."""
    _name(trap, candidate)
    assert main(["replay", str(trap)]) == 2
    assert (
        f"the bundle names '{candidate}'; what a bundle names is imported only if you ask"
        in capsys.readouterr().out
    )
    assert not (trap / "ran").exists()


def test_who_trusts_a_bundle_or_names_a_module_gets_it(trap: Path) -> None:
    """And so does who names another candidate, without what lies in the folder."""
    _name(trap, "payload:select")
    assert main(["replay", str(trap), "--candidate", "gather"]) == 0
    assert not (trap / "ran").exists()
    assert main(["replay", str(trap), "--trust"]) == 2  # it has no attend
    assert (trap / "ran").exists()


def test_a_loop_of_links_is_a_sentence(tmp_path: Path) -> None:
    """As a folder, and as the file of a bundle."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "case.json").symlink_to("case.json")
    for name in ("loop", "bundle"):
        (one,) = replay([tmp_path / name], "gather")
        assert one.state is State.UNDECIDED
        assert "\n" not in str(one)


def test_names_of_folders_do_not_reach_the_terminal_as_they_are(tmp_path: Path, bundle: Path) -> None:
    """A folder may be called anything."""
    folder = tmp_path / "\x1b[2Jred\u202e"
    shutil.copytree(bundle, folder)
    (one,) = replay([folder])
    assert str(one).startswith(f"{tmp_path}/red: the bundle names")
