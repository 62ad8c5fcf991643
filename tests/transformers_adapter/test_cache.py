"""The stage ``cache`` of the transformers adapter: streams on the real cache, as measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import transformers

from csa_spec.candidates import find_candidate
from csa_spec.candidates.transformers_cache import CacheStream, RecordingStream, is_refusal
from csa_spec.engine.failures import Failure
from csa_spec.engine.running import run_check
from csa_spec.engine.stage import SIDE_EFFECTS
from csa_spec.plug.call import NotOffered
from csa_spec.plug.candidate import Candidate
from csa_spec.spec import Geometry, LayerKind
from csa_spec.stages.cache.case import CacheCase, make_cache_inputs
from csa_spec.stages.cache.stage import CACHE
from csa_spec.stages.cache.trial import CacheTrial
from csa_spec.stages.layer.case import Sinks, Values

MEASURED = "5.23.0"
measured = pytest.mark.skipif(
    transformers.__version__ != MEASURED,
    reason=f"says what transformers {MEASURED} does, not {transformers.__version__}",
)

KINDS = list(LayerKind)
SPECIFICATION = CACHE.checks[0]


def case_of(kind: LayerKind, calls: str, batch: int = 1, m: int = 2, window: int = 3) -> CacheCase:
    """Return a schedule on a small layer whose every part shows."""
    geometry = Geometry(
        kind=kind, compress_ratio=1 if kind is LayerKind.SLIDING else m, window=window, hidden=6, heads=2, head_dim=6,
        rope_dim=4, q_lora_rank=4, index_head_dim=6, o_groups=2, o_lora_rank=3,
    )  # fmt: skip
    if kind is LayerKind.CSA:
        geometry = replace(geometry, top_k=2, index_heads=4)
    schedule = CacheCase.parse(f"cache {kind} B={batch} calls={calls}").calls
    return CacheCase.of(geometry, batch=batch, calls=schedule, values=Values.GAUSSIAN, sinks=Sinks.DRAWN)


def try_case(case: CacheCase, candidate: Candidate | None = None) -> str:
    """Run a schedule; return the kind of failure, what was refused, or ``ok``."""
    try:
        SPECIFICATION.run(CacheTrial(candidate or find_candidate("transformers"), case))
    except NotOffered as refusal:
        return f"refused: {refusal}"
    except Failure as failure:
        return failure.kind
    return "ok"


def stream_of(case: CacheCase) -> CacheStream:
    """Open a stream by hand."""
    arguments = make_cache_inputs(case)
    stream = find_candidate("transformers").functions("cache")[""](
        *(arguments[n] for n in ("weights", "geometry", "batch"))
    )
    assert isinstance(stream, CacheStream)
    return stream


@pytest.mark.parametrize(
    "calls", ["7", *(f"{n},{7 - n}" for n in range(1, 7)), "1,1,1,1,1,1,1", "4,2,2,2", "1,5,3,1"]
)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_chunks_and_decode_are_right(kind: LayerKind, calls: str) -> None:
    """Prefill in one or two calls, token by token, in blocks."""
    for m, window in ((2, 3), (3, 2), (4, 9)):
        assert try_case(case_of(kind, calls, m=m, window=window)) == "ok"
    assert try_case(case_of(kind, calls, batch=2)) == "ok"


@measured
@pytest.mark.parametrize(
    ("calls", "batch"),
    [
        ("5,reset,1,1,1", 1),
        ("7,reset,7", 2),
        ("3,reorder:1.0,1,1", 2),
        ("4,reorder:1.1,3", 2),
        ("3,fork,2,2", 1),
        ("5,fork,1,1", 2),
        ("3,save,2,restore,3", 1),
    ],
)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_reset_reorder_and_copies_are_right(kind: LayerKind, calls: str, batch: int) -> None:
    """In the middle of a block, too."""
    assert try_case(case_of(kind, calls, batch)) == "ok"


@measured
@pytest.mark.parametrize(
    ("calls", "batch"), [("4,select:1,3", 2), ("3,repeat:2,1,2", 1), ("2,rollback:1,2", 1)]
)
def test_sliding_layers_support_more(calls: str, batch: int) -> None:
    """Their cache is the library's own."""
    assert try_case(case_of(LayerKind.SLIDING, calls, batch)) == "ok"


@measured
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_refused_counts_as_refused(kind: LayerKind) -> None:
    """``crop`` once the window is full; ``clear``, which no cache of the library has."""
    cases = [
        case_of(kind, "7,rollback:1,2"),
        case_of(kind, "3,rollback:1,2"),
        case_of(kind, "4,clear:0,2", batch=2),
    ]
    candidate = find_candidate("transformers")
    everything = replace(candidate, capabilities=replace(candidate.capabilities, lacks={}))
    result = run_check(SPECIFICATION, everything, CACHE, cases, variant=kind)
    assert (result.cases, result.failures) == (0, [])
    counts = {name.partition(":")[0]: count for name, count in result.not_applicable.items()}
    assert counts == {"rollback, refused": 2, "clear, not offered": 1}
    assert any("does not track past states" in name for name in result.not_applicable)


RAISES, DIFFERS = "CandidateRaised[RuntimeError]", "StreamDiffers"
WRONG = {
    "cache csa calls=1,1 k=0": RAISES,
    "cache hca calls=1,1 seed=2": f"{DIFFERS}[after extend]",
    "cache sliding calls=1,1 seed=2": f"{DIFFERS}[after extend]",
    "cache csa calls=1,rollback:1,1 W=2": f"{DIFFERS}[after rollback]",
    "cache hca calls=1,rollback:1,1 W=2": f"{DIFFERS}[after rollback]",
    "cache csa B=2 calls=1,select:1,1 k=0 W=2": RAISES,
    "cache hca B=2 calls=1,select:1,1 W=2": RAISES,
    "cache csa B=2 calls=1,select:1.0,1 W=2 seed=1": f"{DIFFERS}[after select]",
    "cache hca B=2 calls=1,select:1.0,1 W=2 seed=1": f"{DIFFERS}[after select]",
    "cache csa calls=1,repeat:2,1 k=0 W=2": RAISES,
    "cache hca calls=1,repeat:2,1 W=2": RAISES,
}
"""Case: kind of failure. A window of 1, ``crop`` within it, ``batch_select_indices``, ``batch_repeat_...``."""


@measured
@pytest.mark.parametrize("line", WRONG)
def test_what_is_wrong_fails(line: str) -> None:
    """Silently, or in the next call: neither is a refusal."""
    assert try_case(CacheCase.parse(line)) == WRONG[line]


@measured
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_recording_the_past_makes_crop_right_for_sliding_layers_only(kind: LayerKind) -> None:
    """The others keep their entries and the tokens of the unfinished block."""
    candidate = find_candidate("transformers")
    adapter = candidate.functions("cache")[""].__self__  # type: ignore[attr-defined]
    recording = replace(candidate, stages={"cache": lambda weights, geometry, batch: adapter.open_as(
        RecordingStream, weights, geometry)})  # fmt: skip
    expected = "ok" if kind is LayerKind.SLIDING else f"{DIFFERS}[after rollback]"
    assert try_case(case_of(kind, "4,rollback:2,1"), recording) == expected
    assert try_case(case_of(kind, "4,1,3"), recording) == "ok"


@pytest.mark.parametrize("check", SIDE_EFFECTS, ids=lambda check: check.name)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_streams_have_good_manners(kind: LayerKind, check: object) -> None:
    """They repeat, change nothing of the process or their inputs, and own their outputs."""
    assert check.run(CacheTrial(find_candidate("transformers"), case_of(kind, "3,1,2", 2))).queries  # type: ignore[attr-defined]


def outputs(case: CacheCase) -> Iterator[torch.Tensor]:
    """Yield a fresh stream's answers call by call."""
    stream = stream_of(case)
    for name, tokens in make_cache_inputs(case).items():
        if name.startswith("tokens"):
            yield stream.extend(tokens)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_streams_do_not_share_anything(kind: LayerKind) -> None:
    """Two of one geometry, with other weights, taking turns, give what each gives alone; so do turns."""
    first = case_of(kind, "3,2,1,1")
    second = replace(first, seed=1)
    alone = [list(outputs(first)), list(outputs(second))]
    again = list(outputs(first))
    turns = list(zip(outputs(first), outputs(second), strict=True))
    for number in range(4):
        assert torch.equal(alone[0][number], again[number])
        assert torch.equal(alone[0][number], turns[number][0])
        assert torch.equal(alone[1][number], turns[number][1])
    assert not torch.equal(alone[0][0], alone[1][0])


def test_hooks_are_gone_after_a_call_that_fails() -> None:
    """And the stream of another caller goes on."""
    case = case_of(LayerKind.CSA, "2,1")
    before = list(outputs(case))
    with pytest.raises(RuntimeError):
        stream_of(case).extend(torch.zeros(1, 2, 5))
    assert all(torch.equal(a, b) for a, b in zip(before, outputs(case), strict=True))
    adapter = find_candidate("transformers").functions("cache")[""].__self__  # type: ignore[attr-defined]
    geometry = case.geometry
    for module in adapter._model(geometry, torch.float32, torch.device("cpu")).modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


class _Cache:
    """A cache of some other release."""

    layers = ()
    is_croppable = False

    def reset(self) -> None:
        raise ValueError("no reset here")

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        torch.zeros(2).index_select(0, beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        raise KeyError("compressor")


def test_what_a_release_lacks_or_refuses_is_refused_and_what_breaks_is_not() -> None:
    """A refusal is an error that the library raises itself, with a sentence."""
    stream = CacheStream(lambda *_, **__: {}, _Cache())
    for refused, text in (
        (lambda: stream.reset(), "no reset here"),
        (lambda: stream.select([0]), "_Cache has no batch_select_indices"),
        (lambda: stream.rollback(1), "not croppable"),
    ):
        with pytest.raises(NotImplementedError, match=text):
            refused()
    with pytest.raises(IndexError):
        stream.reorder([5])
    with pytest.raises(KeyError):
        stream.repeat(2)
    with pytest.raises(NotImplementedError, match="no activate_past_recording"):
        RecordingStream(lambda *_, **__: {}, _Cache())


def test_errors_inside_of_torch_are_no_refusals() -> None:
    """Both are RuntimeErrors."""
    with pytest.raises(RuntimeError) as broken:
        torch.zeros(2) + torch.zeros(3)
    assert not is_refusal(broken.value)
    with pytest.raises(RuntimeError) as refused:
        raise RuntimeError("call something else first")
    assert is_refusal(refused.value)
