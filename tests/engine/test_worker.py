"""A call in a process of its own ends in an answer, an exception or a fault, and never ends the run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from csa_spec import Candidate, CandidateError, LayerOutput
from csa_spec.plug.arrays import same_bits
from csa_spec.plug.call import Answer, Fault, LocalCaller, Request
from csa_spec.plug.wire import RemoteError, packed, unpacked
from csa_spec.plug.worker import WorkerCaller
from engine import misbehaving

LIMIT = 1.0


def ask(caller: Any, stage: str, x: Tensor | None = None, **options: Any) -> Answer:
    """Call a stage of the misbehaving candidate."""
    function: Callable[..., Any] = getattr(misbehaving, stage)
    answer: Answer = caller(
        function, Request(stage, {"x": torch.ones(2) if x is None else x}, **options), "torch"
    )
    return answer


def process_of(caller: WorkerCaller) -> int:
    """Return the worker's process."""
    return int(ask(caller, "process").returned)


def lives(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ends(process: int) -> bool:
    """Whether a process ends soon."""
    end = time.monotonic() + 10
    while lives(process) and time.monotonic() < end:
        time.sleep(0.02)
    return not lives(process)


def children() -> set[int]:
    """Return our own children, zombies among them."""
    return {
        int(one)
        for task in Path("/proc/self/task").iterdir()
        for one in (task / "children").read_text().split()
    }


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerCaller]:
    """One nursery for many tests; each must leave it usable, which is the point."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHILD", str(tmp_path_factory.mktemp("child") / "pid"))
        one = WorkerCaller(misbehaving.load, LIMIT)
        yield one
        one.close()


def test_answers_are_those_of_a_call_in_this_process() -> None:
    """What was returned, what was changed, what is shared, and the gradients."""
    caller = WorkerCaller(misbehaving.load)  # torch imports much when it is first asked for a gradient
    x = torch.randn(3, 2)
    for options in ({}, {"cotangent": torch.ones(3, 2)}, {"fill": True}):
        here, there = ask(LocalCaller(), "double", x, **options), ask(caller, "double", x, **options)
        assert same_bits(here.returned, there.returned)
        assert here.gradients.keys() == there.gradients.keys()
        for one, other in zip(here.gradients.values(), there.gradients.values(), strict=True):
            assert one is not None
            assert other is not None
            assert same_bits(one, other)
    here, there = ask(LocalCaller(), "in_place", x), ask(caller, "in_place", x)
    assert there.changed_inputs == here.changed_inputs == ("x",)
    assert there.changed_state == here.changed_state
    assert there.changed_state == {"default dtype": "it was float32, after the call it is float64"}
    assert there.shared_with == here.shared_with == ("x",)
    caller.close()


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool]
)
def test_tensors_arrive_as_they_were_sent(dtype: torch.dtype) -> None:
    """Bits, dtype, shape and strides; no elements, one, and many."""
    whole = torch.randn(3, 4, 5).mul(9).to(dtype)
    for tensor in (whole, whole.mT, whole[:, 1:], whole[:0], whole[0, 0, 0], whole[:1].expand(7, 4, 5)):
        arrived = unpacked(memoryview(packed([tensor]))[8:])[0]
        assert same_bits(arrived, tensor)
        assert arrived.numel() == 0 or arrived.stride() == tensor.stride()


def test_a_layer_may_return_a_dataclass() -> None:
    """Its class is imported on both sides."""
    sent = Answer(LayerOutput(torch.ones(2), selection=torch.arange(3)))
    arrived = unpacked(memoryview(packed(sent))[8:])
    assert same_bits(arrived.returned.selection, torch.arange(3))
    assert arrived.returned.entries is None


def test_calls_share_a_worker_as_long_as_it_lives(caller: WorkerCaller) -> None:
    """Starting one is what takes time."""
    assert process_of(caller) == process_of(caller) != os.getpid()


@pytest.mark.parametrize(
    ("stage", "hung", "message"),
    [
        ("segfault", False, r"ended by SIGSEGV, in string_at \(.*\) < segfault \(misbehaving.py:\d+\)$"),
        ("exit_3", False, r"exited with status 3, in exit_3 \(misbehaving.py:\d+\)$"),
        (
            "kill",
            False,
            "ended by SIGKILL .*out-of-memory killer.*; the last it wrote to stderr: I need more memory$",
        ),
        ("close_everything", False, "exited with status"),
        ("hang", True, r"no answer within 1 s, in hang \(misbehaving.py:\d+\)$"),
        ("hang_without_the_interpreter", True, "no answer within 1 s, in hang_without_the_interpreter"),
    ],
)
def test_a_fault_is_named_and_the_next_call_gets_a_new_process(
    caller: WorkerCaller, stage: str, hung: bool, message: str
) -> None:
    """The signal, the status or the limit, and where the candidate was."""
    before = process_of(caller)
    with pytest.raises(Fault, match=message) as caught:
        ask(caller, stage)
    assert caught.value.hung == hung
    assert ends(before)
    assert same_bits(ask(caller, "double").returned, torch.full((2,), 2.0))
    assert process_of(caller) != before


def test_processes_that_a_hanging_call_started_end_with_it(caller: WorkerCaller) -> None:
    """They would go on burning the machine."""
    with pytest.raises(Fault):
        ask(caller, "hang")
    assert ends(int(Path(os.environ["CHILD"]).read_text()))


@pytest.mark.parametrize(
    ("stage", "name", "message"),
    [
        ("call_exit", "SystemExit", "enough"),
        ("interrupt", "KeyboardInterrupt", "not from the keyboard"),
        ("refuse", "Refusal", "no kernel"),
        ("end_of_file", "EOFError", "no more"),
        ("raise_nameless", "Nameless", "<Nameless, whose text cannot be had: ValueError>"),
    ],
)
def test_exceptions_keep_the_name_of_their_class(
    caller: WorkerCaller, stage: str, name: str, message: str
) -> None:
    """Also those that pickle refuses, and those that would end a process; the worker lives on."""
    before = process_of(caller)
    with pytest.raises(RemoteError) as caught:
        ask(caller, stage)
    assert type(caught.value).__name__ == name
    assert str(caught.value) == message
    assert re.match(r"misbehaving.py:\d+ in " + stage, caught.value.raised.where)
    assert process_of(caller) == before


def test_an_exception_of_one_name_has_one_class(caller: WorkerCaller) -> None:
    """Reports tell kinds of failure apart by it."""
    found = []
    for _ in range(2):
        with pytest.raises(RemoteError) as caught:
            ask(caller, "refuse")
        found.append(type(caught.value))
    assert found[0] is found[1]


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("generator", "a generator (return the output, do not yield it)"),
        ("one_way", "an OneWay"),
    ],
)
def test_what_cannot_be_sent_is_an_answer_of_the_wrong_type(
    caller: WorkerCaller, stage: str, said: str
) -> None:
    """As in this process: it is neither a crash nor an exception of the candidate."""
    before = process_of(caller)
    assert str(ask(caller, stage).returned) == said
    assert process_of(caller) == before


def test_a_broken_device_is_left_behind_with_its_process(caller: WorkerCaller) -> None:
    """Without that every later call would fail, and shrinking would end at the smallest case there is."""
    before = process_of(caller)
    with pytest.raises(RemoteError, match="CUDA error"):
        ask(caller, "break_device", torch.tensor([13.0]))
    assert same_bits(ask(caller, "break_device", torch.tensor([12.0])).returned, torch.tensor([24.0]))
    assert process_of(caller) != before


def test_the_standard_streams_are_the_candidates_to_spoil(
    caller: WorkerCaller, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing of it reaches a report, and the calls have sockets of their own."""
    for _ in range(2):
        assert same_bits(ask(caller, "garbage").returned, torch.full((2,), 2.0))
    assert capfd.readouterr() == ("", "")


def test_a_candidate_that_forks_answers_once(caller: WorkerCaller) -> None:
    """A second answer would be taken for that to the next call."""
    ask(caller, "fork_and_forget", torch.ones(3))
    assert ask(caller, "double").returned.shape == (2,)


def test_a_process_that_dies_between_calls_is_a_fault_of_the_next(caller: WorkerCaller) -> None:
    """Whoever killed it, the run goes on."""
    os.kill(process_of(caller), signal.SIGTERM)
    with pytest.raises(Fault, match="ended by SIGTERM"):
        ask(caller, "double")
    assert process_of(caller)


def test_an_ordinary_call_costs_about_a_millisecond(caller: WorkerCaller) -> None:
    """Measured 0.5 ms on an idle core; the bound is for busy ones."""
    x, times = torch.randn(2, 4, 8), []
    for _ in range(50):
        begin = time.perf_counter()
        ask(caller, "double", x)
        times.append(time.perf_counter() - begin)
    assert sorted(times)[25] < 0.01


def test_nothing_is_left_after_closing() -> None:
    """No process and no zombie; a later call starts anew."""
    before = children()
    caller = WorkerCaller(misbehaving.load, LIMIT)
    worker = process_of(caller)
    assert len(children() - before) == 1
    caller.close()
    caller.close()
    assert children() == before
    assert ends(worker)


def test_a_caller_that_is_forgotten_leaves_nothing() -> None:
    """Nor does a run that ends by an exception."""
    before = children()
    worker = process_of(WorkerCaller(misbehaving.load, LIMIT))
    assert children() == before
    assert ends(worker)


def test_an_interrupt_ends_the_worker_and_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ctrl-C while a call hangs."""
    monkeypatch.setenv("CHILD", str(tmp_path / "pid"))
    before = children()
    caller = WorkerCaller(misbehaving.load, 60)
    worker = process_of(caller)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        ask(caller, "hang")
    assert children() == before
    assert ends(worker)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (misbehaving.load_not, "there is no such thing"),
        (misbehaving.load_wrongly, "loading it failed: ValueError: out of luck"),
        (misbehaving.load_dying, "loading it: exited with status 4"),
    ],
)
def test_a_candidate_that_cannot_be_loaded_is_not_judged(
    loader: Callable[[], Candidate], message: str
) -> None:
    """One sentence, before anything is held against it; and no process is left."""
    before = children()
    with pytest.raises(CandidateError, match=message):
        ask(WorkerCaller(loader, LIMIT), "double")
    assert children() == before


def test_a_candidate_that_cannot_be_loaded_again_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Then it is a fault of each further case, and what was found is reported."""
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    caller = WorkerCaller(misbehaving.load_once, LIMIT)
    with pytest.raises(Fault, match="status 3"):
        ask(caller, "exit_3")
    for _ in range(2):
        with pytest.raises(Fault, match=r"cannot be loaded any more.*it is locked"):
            ask(caller, "double")
    caller.close()


SCRIPT = """
print("main runs", flush=True)
import os, torch
from engine import misbehaving
from csa_spec.plug.call import Request
from csa_spec.plug.worker import WorkerCaller
caller = WorkerCaller(misbehaving.load, 100)
ask = lambda stage: caller(None, Request(stage, {"x": torch.ones(2)}), "torch")
print(int(ask("process").returned), flush=True)
"""


def test_a_script_on_stdin_is_not_run_twice_and_takes_its_processes_along(tmp_path: Path) -> None:
    """It has no file that another process could run; and SIGKILL leaves no time for tidying up."""
    process = subprocess.Popen(
        [sys.executable, "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "CHILD": str(tmp_path / "pid"),
        },
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(SCRIPT + 'ask("hang")\n')
        process.stdin.close()
        assert process.stdout.readline() == "main runs\n"
        worker = int(process.stdout.readline())
        assert lives(worker)
        process.kill()
        assert process.stdout.read() == ""
    assert ends(worker)
