"""Right streams pass under any schedule; every wrong one is found and named by a schedule of a few calls."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import takewhile
from typing import Any

import pytest
import torch
from torch import Tensor

import csa_spec
from csa_spec.bugs.stream import Cache
from csa_spec.candidates.recognise import as_candidate
from csa_spec.engine.failures import Failure
from csa_spec.engine.results import Report
from csa_spec.engine.running import CheckResult
from csa_spec.plug.capabilities import Capabilities
from csa_spec.profiles import PROFILES
from csa_spec.spec import Geometry, LayerKind, LayerWeights
from csa_spec.stages import STAGES, parse_case
from csa_spec.stages.cache.case import make_cache_inputs
from csa_spec.stages.cache.stream import Op
from csa_spec.stages.cache.trial import NAMED_AFTER
from csa_spec.target import Target
from stages.right import declaring
from stages.streams import WRONG, Tokens, candidate_of

KINDS = pytest.mark.parametrize("kind", [str(kind) for kind in LayerKind])


def kinds(report: Report) -> set[str]:
    """Return the kinds of failure of a whole run."""
    return {failure.kind for result in report.results for failure in result.failures}


def result_of(report: Report) -> CheckResult:
    """Return what the equality with the specification found."""
    (found,) = (result for result in report.results if result.check == "specification")
    return found


def smoke(stream: Any, kind: str = "sliding", dtype: str = "float32", **declared: Any) -> Report:
    """Run the smallest profile on a stream."""
    opens = candidate_of(stream)
    return csa_spec.check(
        declaring(opens, **declared) if declared else opens,
        stage="cache",
        layer=kind,
        profile="smoke",
        dtype=dtype,
    )


# RIGHT


@KINDS
def test_a_stream_that_keeps_state_passes_the_default_profile_and_reaches_every_length(kind: str) -> None:
    """Lengths around blocks and windows, at which a later call begins, are reached and counted."""
    target = target_of(Cache, kind, profile="default")
    result = target.run(STAGES["cache"].checks[0])
    assert result.failures == []
    assert target.missing(result) == []
    assert result.cases >= 90
    assert not result.not_applicable
    assert result.tally.worst < 0.5
    names = ["W - 1", "W", "W + 1"] + ([] if kind == "sliding" else ["m - 1", "m", "m + 1"])
    for name in [f"a call that begins at {length}" for length in names]:
        assert result.reached[name] >= 10, name
    for op in Op:
        assert op is Op.EXTEND or result.reached[f"a call after {op}"] >= 1, op


def target_of(stream: type[Any], kind: str, dtype: str = "float32", profile: str = "smoke") -> Target:
    """Return a run of one dtype and layer kind."""
    candidate = as_candidate(candidate_of(stream), stream.__name__, "cache")
    return Target(candidate, STAGES["cache"], LayerKind(kind), dtype, "cpu", PROFILES[profile], 0)


def test_manners_are_held_to_too() -> None:
    """The default profile as a user runs it."""
    report = csa_spec.check(candidate_of(Cache), stage="cache", profile="default", layer="hca")
    assert kinds(report) == set()
    assert str(report.verdict) == "conformant"
    without_sizes = [check.name for check in STAGES["cache"].checks if check.name != "limits"]
    assert [result.check for result in report.results] == without_sizes
    assert all(result.cases >= (5 if result.check == "growth" else 12) for result in report.results)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(str(kind), "bfloat16") for kind in LayerKind] + [("csa", "float16"), ("sliding", "float16")],
)
def test_a_stream_that_keeps_state_passes_in_16_bits(kind: str, dtype: str) -> None:
    """With its state in float32."""
    target = target_of(Cache, kind, dtype)
    result = target.run(STAGES["cache"].checks[0])
    assert result.failures == []
    assert target.missing(result) == []
    assert result.tally.worst < 0.5


@KINDS
def test_a_list_of_tokens_passes(kind: str) -> None:
    """It is the model of a stream; in float32 it rounds once, so it uses little of the budget."""
    result = target_of(Tokens, kind).run(STAGES["cache"].checks[0])
    assert result.failures == []
    assert result.tally.worst < 0.2


# WRONG


def first_failure(name: str) -> Failure:
    """Return what fails first of the ready-made schedules, which every profile tries first.

    A stream that shares state with another shows it after a fork, too, of which the schedules are shorter.
    """
    target, after = target_of(WRONG[name].stream, WRONG[name].layer), WRONG[name].after
    result = replace(target, profile=replace(target.profile, heavy=0)).run(
        STAGES["cache"].checks[0], enough=12 if after == "other" else 1, naming=False
    )
    (failure,) = (f for f in result.failures if after != "other" or f.kind.endswith("[after other]"))
    return failure


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_stream_is_found_by_a_few_calls_and_named_by_its_operation(name: str) -> None:
    """At most three calls, but where the table says why not; what fails is the last of them."""
    wrong = WRONG[name]
    failure = first_failure(name)
    assert failure.kind == f"StreamDiffers[after {wrong.after}]"
    case: Any = failure.case
    assert len(case.calls) <= wrong.calls
    assert case.total <= 8  # two blocks of four tokens at most
    assert failure.context[-1].endswith("<-- wrong")
    assert failure.facts["calls"] == len(case.calls)
    assert f"call {failure.facts['call'] + 1} of {len(case.calls)} (" in failure.detail
    with pytest.raises(type(failure)) as again:
        csa_spec.check_case(as_candidate(candidate_of(wrong.stream), name, "cache"), str(case))
    assert str(again.value) == str(failure)
    the_printed_program_shows_it(failure, wrong.stream)


def the_printed_program_shows_it(failure: Failure, stream: type[Any]) -> None:
    """It gives the numbers of the report; on the right stream those of the specification."""
    got, expected = execute(failure, stream), execute(failure, Cache)
    assert failure.got is not None
    assert failure.expected is not None
    assert got == pytest.approx(failure.got, rel=1e-5, abs=1e-6)
    assert expected == pytest.approx(failure.expected, rel=1e-4, abs=1e-5)
    assert got != pytest.approx(expected, rel=2e-6, abs=1e-7)  # both rounded by the same code


def execute(failure: Failure, stream: type[Any]) -> list[float]:
    """Run the program of a failure's context; return the outputs at the place where it is wrong."""
    arguments, case = make_cache_inputs(failure.case), failure.case  # type: ignore[arg-type]
    names = {name.replace(" ", "_"): value for name, value in arguments.items()} | {"open": stream}
    *lines, last = failure.context
    exec("\n".join([*lines, f"out = {last.split('  #')[0]}"]), names)
    assert failure.place is not None
    (step,) = (step for step in case.steps if step.call == failure.facts["call"])  # type: ignore[union-attr]
    begin = len(step.rows[failure.place.row]) - step.tokens
    found: list[float] = names["out"][failure.place.row, failure.place.t - begin].tolist()
    return found


def test_there_are_enough_wrong_streams_of_every_operation() -> None:
    """Twelve within three calls are asked for; every operation has some."""
    assert sum(wrong.calls <= 3 for wrong in WRONG.values()) >= 40
    assert all(
        wrong.after == "restore" for wrong in WRONG.values() if wrong.calls > 3 and wrong.layer != "csa"
    )
    assert set(Counter(wrong.after for wrong in WRONG.values())) == {
        str(op) for op in Op if op is not Op.SAVE and op not in NAMED_AFTER
    }


def test_one_mistake_may_be_seen_after_several_operations() -> None:
    """A reset that keeps the block before is seen after reset and after clear, which share it."""
    wrong = WRONG["ResetKeepsThePreviousBlock"].stream
    result = target_of(wrong, "csa").run(STAGES["cache"].checks[0])
    found = {failure.kind: failure for failure in result.failures}
    assert set(found) >= {"StreamDiffers[after reset]", "StreamDiffers[after clear]"}
    for op in ("reset", "clear"):
        assert len(parse_case(str(found[f"StreamDiffers[after {op}]"].case)).calls) == 3


# WHAT A STREAM DOES NOT OFFER


class OnlyExtends:
    """The least that a stream can be."""

    def __init__(self, *arguments: Any) -> None:
        self.inner = Tokens(*arguments)

    def extend(self, hidden: Tensor) -> Tensor:
        """Pass it on."""
        return self.inner.extend(hidden)


class RefusesRollback(Tokens):
    """As a cache does that cannot be cropped."""

    def rollback(self, n: int) -> None:
        """Refuse."""
        raise NotImplementedError("this cache\ncannot be cropped")


class RaisesOnRollback(Tokens):
    """Another exception is a failure."""

    def rollback(self, n: int) -> None:
        """Fail."""
        raise ValueError("no")


def test_operations_that_are_not_there_are_not_applicable() -> None:
    """Counted by name; a stream that only extends is held to schedules that only extend."""
    report = smoke(OnlyExtends)
    assert str(report.verdict) == "conformant"
    result = result_of(report)
    assert result.cases >= 25
    for op in ("reset", "rollback", "save", "fork", "reorder", "select", "repeat", "clear"):
        assert result.not_applicable[f"{op}, not offered"] >= 1, op


def test_what_is_refused_is_counted_with_what_the_stream_says() -> None:
    """NotImplementedError, on one line."""
    report = smoke(RefusesRollback)
    assert str(report.verdict) == "conformant"
    assert result_of(report).not_applicable["rollback, refused: this cache cannot be cropped"] >= 3


def test_another_exception_is_a_failure() -> None:
    """On one token that is rolled back, or none at all."""
    (failure,) = result_of(smoke(RaisesOnRollback)).failures
    assert failure.kind == "CandidateRaised[ValueError]"
    assert [call.op for call in failure.case.calls] == [Op.EXTEND, Op.ROLLBACK]  # type: ignore[union-attr]


def test_operations_that_are_declared_away_are_left_out_of_schedules() -> None:
    """More is tried than where the stream has to refuse."""
    declared = smoke(OnlyExtends, lacks={("cache", op): "no" for op in Op if op is not Op.EXTEND})
    assert str(declared.verdict) == "conformant"
    assert result_of(declared).cases > result_of(smoke(OnlyExtends)).cases
    assert result_of(declared).not_applicable["rollback"] >= 3


# WHAT A CALL RETURNS


class SqueezesOneToken(Tokens):
    """Decoding returns ``[B, hidden]``."""

    def extend(self, hidden: Tensor) -> Tensor:
        """Drop the dimension of one token."""
        out = super().extend(hidden)
        return out[:, 0] if out.shape[1] == 1 else out


class DropsTheBatch(Tokens):
    """One row comes back as ``[n, hidden]``."""

    def extend(self, hidden: Tensor) -> Tensor:
        """Drop the dimension of one row."""
        out = super().extend(hidden)
        return out[0] if len(out) == 1 else out


class AnswersEverything(Tokens):
    """Every call returns the outputs of all tokens."""

    def extend(self, hidden: Tensor) -> Any:
        """In a tuple."""
        return super().extend(hidden), None


@pytest.mark.parametrize(
    ("stream", "kind", "got"),
    [
        (SqueezesOneToken, "WrongShape", "[1, 2]"),
        (DropsTheBatch, "WrongShape", "[1, 2]"),
        (AnswersEverything, "NotATensor", "a tuple of 2 (return the output alone)"),
    ],
)
def test_the_wrong_shape_of_one_call_is_a_wrong_shape(stream: type[Any], kind: str, got: str) -> None:
    """Also where it is that of the outputs of all calls."""
    (failure,) = result_of(smoke(stream)).failures
    assert failure.kind == kind
    assert failure.detail == f"expected [1, 1, 2] from extend, got {got}"
    assert str(failure.case) == "cache sliding values=units"


def test_a_stream_may_be_numpys() -> None:
    """Tokens come in, and answers go out, as its arrays."""
    pytest.importorskip("numpy")

    class InNumpy(Tokens):
        """Turns arrays into tensors and back."""

        def __init__(self, weights: Any, geometry: Geometry, batch: int) -> None:
            named = {name: torch.from_numpy(array) for name, array in named_arrays(weights).items()}
            super().__init__(LayerWeights.from_named(named), geometry, batch)

        def extend(self, hidden: Any) -> Any:
            """Pass them on."""
            return super().extend(torch.from_numpy(hidden)).numpy()

        def extend_rows(self, hidden: Any, lengths: list[int]) -> Any:
            """Pass them on."""
            return super().extend_rows(torch.from_numpy(hidden), lengths).numpy()

    report = smoke(InNumpy, "hca", arrays="numpy")
    assert str(report.verdict) == "conformant"


def named_arrays(part: Any, prefix: str = "") -> dict[str, Any]:
    """Return arrays of any library by their official names."""
    found: dict[str, Any] = {}
    for name in part.__slots__:
        value = getattr(part, name)
        if hasattr(value, "__slots__"):
            found |= named_arrays(value, f"{prefix}{name}.")
        elif value is not None:
            found[prefix + name] = value
    return found


class ReusesItsOutput(Tokens):
    """Every call writes its answers to the same memory."""

    buffer = torch.zeros(0)

    def extend(self, hidden: Tensor) -> Tensor:
        """Overwrite what the call before returned."""
        out = super().extend(hidden)
        if self.buffer.numel() < out.numel() or self.buffer.dtype != out.dtype:
            self.buffer = out.new_zeros(4 * out.numel())
        view = self.buffer[: out.numel()].view(out.shape)
        return view.copy_(out)


class ChangesItsTokens(Cache):
    """The norm before the layer, say, in place."""

    def extend(self, hidden: Tensor) -> Tensor:
        """Change what was given."""
        out = super().extend(hidden)
        hidden.mul_(2)
        return out


def test_answers_stay_and_tokens_are_left_alone() -> None:
    """The first is seen as a wrong answer of the call whose output was overwritten."""
    (overwritten, *_) = result_of(smoke(ReusesItsOutput)).failures
    assert overwritten.kind == "StreamDiffers[after extend]"
    assert len(list(takewhile(lambda line: "wrong" not in line, overwritten.context))) == 1
    assert "InputsChanged" in kinds(smoke(ChangesItsTokens))  # and torch refuses to write to expanded tokens


def test_ratios_are_those_that_are_declared() -> None:
    """Streams on a ratio of 4 alone are tried on others by the check of limits only, which they may refuse."""

    class Fours(Cache):
        """Refuses all other ratios."""

        def __init__(self, weights: LayerWeights, geometry: Geometry, batch: int) -> None:
            if geometry.compress_ratio != 4:
                raise ValueError("a ratio of 4 alone")
            super().__init__(weights, geometry, batch)

    report = smoke(Fours, "hca", compress_ratios={4})
    assert str(report.verdict) == "conformant"
    (limits,) = (result for result in report.results if result.check == "limits")
    assert [seen for seen in limits.tally.seen if "raises an error" in seen]
    assert str(smoke(Fours, "hca").verdict) == "not conformant"
    assert Capabilities(compress_ratios={4}).compress_ratios == {4}
