"""Bundles of answers that cannot be compared: an exception, no tensor, another shape, another dtype."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bundle.test_scripts import failure_of, run
from csa_spec import check_case
from csa_spec.bundle import write_bundle
from csa_spec.engine.failures import Failure, WrongShape
from csa_spec.resolving import resolve_candidate
from csa_spec.stages import STAGES, parse_case

MODULE = """
import torch


def broken(out):
    return FORM


def compressor(hidden, weights, geometry):
    entries = geometry.entry_count(hidden.shape[1])
    return broken(hidden.new_zeros(len(hidden), entries, geometry.head_dim))


def index_scores(index_q, index_k, head_weights):
    return broken(index_q.new_zeros(*index_q.shape[:2], index_k.shape[1]))


def select(scores, positions, compress_ratio, top_k):
    return broken(torch.full((*scores.shape[:2], top_k), -1))


def attend(q, kv, indices, sinks, scale):
    return broken(q)


def layer(hidden, weights, geometry, positions, documents):
    return broken(hidden)


def cache(weights, geometry, batch):
    return Stream()


class Stream:
    def extend(self, hidden):
        return broken(hidden)
"""
NUMPY = """
from csa_spec import Capabilities


def attend(q, kv, indices, sinks, scale):
    return broken(q)


attend.capabilities = Capabilities(arrays="numpy")
"""
CASES = {
    "compressor": "compressor blocks=2 m=2 E=2 values=gaussian overlap=csa",
    "index_scores": "index_scores S=2 T=2 HI=2 DI=2 values=gaussian",
    "select": "select S=3 T=2 m=2 k=1 values=gaussian",
    "attend": "attend S=2 D=2 N=2 n=2 values=gaussian",
    "layer": "csa m=2 rows=3 values=gaussian",
    "cache": "cache sliding calls=2,1 W=2 values=gaussian",
}
FORMS = {
    "raises": ("out.nothing", "CandidateRaised[AttributeError]"),
    "none": ("None", "NotATensor"),
    "list": ("[out, out]", "NotATensor"),
    "transposed": ("out.transpose(0, 1)", "WrongShape"),
    "double": ("out.double()", "WrongDtype"),
}


def test_every_stage_has_a_case() -> None:
    """The tests below are about all of them."""
    assert set(CASES) == set(STAGES)


@pytest.mark.parametrize("form", FORMS)
def test_every_stage_and_check_has_a_bundle_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Whichever check meets it; a script ends as its text says."""
    monkeypatch.syspath_prepend(str(tmp_path))
    expression, kind = FORMS[form]
    (tmp_path / f"broken_{form}.py").write_text(MODULE.replace("FORM", expression))
    scripts = {}
    for stage, case in CASES.items():
        candidate = resolve_candidate(f"broken_{form}:{stage}", stage)
        failure = failure_of(candidate.name, case, "specification")
        assert failure.kind == kind, stage
        for check in STAGES[stage].checks:
            folder = write_bundle(failure, candidate, check.name, tmp_path / "bundles", {})
            assert (folder / "README.md").exists()
            if (folder / "repro.py").exists():
                scripts[f"{stage} {check.name}"] = folder / "repro.py"
    assert {name.split()[0] for name in scripts if name.endswith(" specification")} == set(CASES)
    expected = "AttributeError" if form == "raises" else "AssertionError"
    ends = run(scripts, tmp_path)
    assert {name: end for name, (end, _) in ends.items()} == dict.fromkeys(scripts, expected), ends
    sys.modules.pop(f"broken_{form}")


def test_no_array_where_arrays_are_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script says what came back before it converts it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_numpy.py").write_text(MODULE.replace("FORM", "None") + NUMPY)
    candidate = resolve_candidate("broken_numpy:attend", "attend")
    failure = failure_of(candidate.name, CASES["attend"], "specification")
    folder = write_bundle(failure, candidate, "specification", tmp_path / "bundles", {})
    assert run({"numpy": folder / "repro.py"}, tmp_path)["numpy"] == ("AssertionError", "got NoneType")
    sys.modules.pop("broken_numpy")


@pytest.mark.parametrize("name", ["expected", "q", "print", "torch", "picks"])
def test_a_function_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Also one that the script needs for something else."""
    monkeypatch.syspath_prepend(str(tmp_path))
    module = f"named_{name}"
    (tmp_path / f"{module}.py").write_text(f"def {name}(q, kv, indices, sinks, scale):\n    return 2 * q\n")
    candidate = resolve_candidate(f"{module}:{name}", "attend")
    with pytest.raises(Failure) as caught:
        check_case(candidate, CASES["attend"])
    folder = write_bundle(caught.value, candidate, "specification", tmp_path / "bundles", {})
    assert run({name: folder / "repro.py"}, tmp_path)[name][0] == "AssertionError"
    sys.modules.pop(module)


def test_a_file_that_cannot_be_made_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a warning, so that a run over many failures goes on."""

    def fails(*arguments: object) -> None:
        raise ZeroDivisionError("no")

    monkeypatch.setattr("csa_spec.bundle.write.make_script", fails)
    monkeypatch.setattr("csa_spec.report.picture.picture", fails)
    failure = WrongShape(parse_case(CASES["attend"]), wanted="[1]", received="[2]")
    with pytest.warns(UserWarning, match="please report this: ZeroDivisionError: no") as warned:
        folder = write_bundle(failure, resolve_candidate("gather"), "specification", tmp_path, {})
    assert [str(one.message).split()[1] for one in warned] == ["repro.py", "picture.svg"]
    assert {path.name for path in folder.iterdir()} == {"README.md", "case.json"}
