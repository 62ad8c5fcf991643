"""What happens for a device other than the CPU, as far as that shows without one: CUDA is stood in for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stages.right import attend_loops
from torch import Tensor

import csa_spec
from csa_spec.engine.failures import CandidateRaised
from csa_spec.engine.stage import Setting
from csa_spec.plug.call import LocalCaller, Request
from csa_spec.plug.candidate import Candidate
from csa_spec.plug.capabilities import Capabilities
from csa_spec.profiles import PROFILES
from csa_spec.stages import STAGES
from csa_spec.stages.attend.case import AttendCase, make_attend_inputs
from csa_spec.stages.attend.trial import AttendTrial


def production_cases(stage: str) -> list[Any]:
    """Return the cases of a stage that have the sizes of the released models."""
    return list(STAGES[stage].draws.production("", Setting("bfloat16")))


CASE = AttendCase(rows=2, queries=2, keys=3, picks=2, device="cuda")


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let moves to CUDA leave tensors where they are, and record them."""
    seen: list[Any] = []
    move = Tensor.to

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args and args[0] == "cuda":
            seen.append(tuple(self.shape))
            return self
        return move(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "to", to)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: seen.append("synchronised"))
    return seen


def test_tensors_are_made_on_the_cpu_and_each_is_moved_once(moves: list[Any]) -> None:
    """Then the candidate runs, and its errors are waited for before the call counts as done."""
    arguments = make_attend_inputs(CASE)
    assert moves == []
    answer = LocalCaller()(attend_loops, Request("attend", arguments, device="cuda"))
    shapes = [tuple(value.shape) for value in arguments.values() if isinstance(value, Tensor)]
    assert moves == [*shapes, "synchronised"]
    assert answer.returned.shape == arguments["q"].shape


def test_an_error_that_shows_when_the_device_is_synchronised_belongs_to_its_case(
    moves: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels run asynchronously: without waiting, it would be reported for the next case."""

    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    trial = AttendTrial(Candidate("asynchronous", stages={"attend": attend_loops}), CASE)
    with pytest.raises(CandidateRaised, match="illegal memory access") as raised:
        _ = trial.answer
    assert raised.value.case == CASE


def test_a_whole_run_on_a_device_passes_a_right_candidate(
    moves: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every case has the device in its line."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    report = csa_spec.check(attend=attend_loops, profile="smoke", device="cuda")
    assert str(report.verdict) == "conformant"
    assert report.device == "cuda"
    assert len(moves) > 500


def test_a_candidate_for_a_device_that_is_not_there_is_refused() -> None:
    """In one sentence, before anything runs."""
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(csa_spec.UsageError, match="torch finds no CUDA device here"):
        csa_spec.check(attend=attend_loops, device="cuda")


def test_the_gpu_profile_has_the_sizes_of_the_released_models() -> None:
    """64 heads of 512 channels, 512 picks beside the window, blocks of 4 and 128; every stage has some."""
    assert PROFILES["gpu"].production
    assert not any(profile.production for name, profile in PROFILES.items() if name != "gpu")
    attend = [case.sizes for case in production_cases("attend")]
    assert all((one["H"], one["D"]) == (64, 512) and one["n"] == 512 + 128 for one in attend)
    assert all(
        (one["m"], one["k"]) == (4, 512) for one in (case.sizes for case in production_cases("select"))
    )
    assert {case.sizes["m"] for case in production_cases("compressor")} == {4, 128}
    assert production_cases("index_scores")[0].sizes["HI"] == 64


def test_static_shapes_come_in_few_buckets() -> None:
    """A candidate that compiles for each shape sees few of them."""
    capabilities = Capabilities(static_shapes=True)
    shapes = set()
    for keys in range(20):
        for picks in range(20):
            case, lacking = AttendCase(keys=keys, picks=picks).fit(capabilities)
            assert lacking == []
            shapes.add(tuple(case.sizes.values()))
    assert len(shapes) == 25  # 0, 1, 4, 16 and 64 of each
