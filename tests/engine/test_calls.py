"""A call leaves the process, its inputs and its output as it should, and what it does otherwise is named."""

from __future__ import annotations

import concurrent.futures
import importlib
import os
import random
import subprocess
import threading
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import csa_spec
from csa_spec import Capabilities
from csa_spec.bugs import find_bug
from csa_spec.candidates.gather import attend as right
from csa_spec.candidates.recognise import as_candidate
from csa_spec.engine.failures import CandidateRaised, Failure
from csa_spec.engine.running import failure_of
from csa_spec.plug.arrays import overlaps_itself
from csa_spec.plug.call import LocalCaller, Request
from csa_spec.plug.candidate import Candidate
from csa_spec.plug.generators import DRAWN, SEEDED
from csa_spec.plug.growth import growth
from csa_spec.plug.process_state import ITEMS, Watch
from csa_spec.plug.raised import hint_at_library
from csa_spec.stages import parse_case
from csa_spec.stages.attend.case import AttendCase
from csa_spec.stages.attend.stage import ATTEND
from csa_spec.stages.cache.stage import CACHE

CASE = AttendCase(rows=2, queries=2, keys=3, picks=2)
EMPTY = AttendCase(queries=2, keys=0, picks=0)
CHECKS = [check for check in ATTEND.checks if check.name not in ("gradients", "limits")]


def failures(candidate: Candidate, case: AttendCase = CASE) -> dict[str, Failure]:
    """Return what every check says about one case."""
    found = {check.name: failure_of(check, candidate, ATTEND, case) for check in CHECKS}
    return {name: failure for name, failure in found.items() if failure is not None}


def attending(function: Callable[..., Any], **declared: Any) -> Candidate:
    """Return a candidate that has only this function."""
    return as_candidate(
        SimpleNamespace(attend=function, capabilities=Capabilities(**declared)), "it", "attend"
    )


def before(act: Callable[[], object]) -> Candidate:
    """Return a candidate that does something, and then is right."""

    def attend(*inputs: Any) -> Tensor:
        act()
        return right(*inputs)

    return attending(attend)


# WHAT A CALL LEAVES BEHIND

BUGS = {
    "sets_the_number_of_threads": ("state", "number of threads: it was 3, after the call it is 1"),
    "turns_gradients_off_for_good": ("state", "grad mode: it was on, after the call it is off"),
    "seeds_the_generator_of_python": ("state", "Python's random generator is seeded"),
    "initialises_a_module_in_the_call": ("state", "torch's random generator has moved on"),
    "sets_an_environment_variable": ("state", "CUDA_LAUNCH_BLOCKING was not set, after the call it is '1'"),
    "silences_all_warnings": ("state", "warning filters: the call adds 'ignore' for Warning"),
    "sets_the_default_device": ("state", "default device: it was cpu, after the call it is meta"),
    "leaves_inference_mode_on": ("state", "inference mode: it was off, after the call it is on"),
    "replaces_a_function_of_torch": ("state", "functions of torch: the call replaces torch.softmax"),
    "lets_the_log_tell_everything": ("state", "logging: the level: it was"),
    "raises_the_recursion_limit": ("state", "after the call it is 12345"),
    "flushes_denormal_numbers": ("state", "flush-denormal mode: it was off, after the call it is on"),
    "zeroes_keys_in_the_background": ("inputs", "kv"),  # after the call has returned, or just before
    "knows_keys_by_their_tensor": ("own-inputs", "with other numbers in the same tensors"),
    "returns_a_negated_view": ("memory", "does not hold its numbers"),
    "returns_what_requires_grad": ("memory", "under torch.no_grad()"),
    "starts_a_thread_in_every_call": ("growth", "threads: each of 8 calls"),
}
"""Bugs of the catalogue: the check that finds them, and what it says."""


@pytest.mark.parametrize("name", BUGS)
def test_only_the_right_check_finds_a_side_effect_and_everything_is_put_back(name: str) -> None:
    """What it was, and what it is after the call."""
    state = {what: item.read() for what, item in ITEMS.items()}
    drawn = torch.get_rng_state(), random.getstate()
    found = failures(find_bug(name).candidate)
    check, sentence = BUGS[name]
    assert [*found] == [check]
    assert sentence in found[check].detail
    assert {what for what, item in ITEMS.items() if item.read() != state[what]} == set()
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert random.getstate() == drawn[1]


@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("open files", lambda: os.open(os.devnull, os.O_RDONLY)),
        ("child processes", lambda: subprocess.Popen(["sleep", "5"])),
    ],
)
def test_files_and_processes_that_every_call_leaves_are_counted(what: str, make: Callable[[], Any]) -> None:
    """Once is no failure: every call must leave more."""
    left = []
    try:
        assert growth(lambda: left.append(make()))[0] == what
        once: list[Any] = []
        assert growth(lambda: once or once.append(make()) or left.extend(once)) == ("", "")
    finally:
        for one in left:
            os.close(one) if isinstance(one, int) else one.kill()
        [one.wait() for one in left if not isinstance(one, int)]


def test_an_output_of_one_number_that_is_expanded_is_found() -> None:
    """Where all is zero, it can be right."""
    found = failures(find_bug("repeats_one_zero_where_there_are_no_keys").candidate, EMPTY)
    assert {name: failure.kind for name, failure in found.items()} == {"memory": "OverlapsItself"}


@pytest.mark.parametrize(
    ("tensor", "overlaps"),
    [
        (torch.zeros(2, 3).mT, False),
        (torch.zeros(4, 6)[::2, ::3], False),
        (torch.zeros(9).as_strided((3, 2), (2, 3)), False),
        (torch.zeros(1, 3).expand(1, 3), False),
        (torch.zeros(0, 3).expand(2, 0, 3), False),
        (torch.zeros(1).expand(2), True),
        (torch.zeros(5).unfold(0, 3, 1), True),
    ],
)
def test_a_tensor_overlaps_itself_where_two_elements_have_one_place(tensor: Tensor, overlaps: bool) -> None:
    """Whatever its strides are."""
    assert overlaps_itself(tensor) == overlaps


def test_tokens_that_a_stream_reads_later_are_found() -> None:
    """They are overwritten after each call; a stream that keeps a copy does not mind."""
    case = parse_case("cache sliding calls=2,2 W=4 values=gaussian")
    inputs = CACHE.check("inputs")
    bad = find_bug("keeps_the_last_tokens_by_reference").candidate
    failure = failure_of(inputs, bad, CACHE, case)
    assert failure is not None
    assert failure.kind == "ReadsInputsLater"
    good = find_bug("rounds_differently_in_every_second_stream").candidate
    assert failure_of(CACHE.check("own-inputs"), bad, CACHE, case) is None
    assert failure_of(CACHE.check("growth"), good, CACHE, case) is None


# RANDOM GENERATORS


@pytest.mark.parametrize(
    "seed", [torch.manual_seed, random.seed, np.random.seed], ids=["torch", "python", "numpy"]
)
def test_seeding_is_found_in_a_process_that_is_in_that_very_state(seed: Callable[[int], object]) -> None:
    """And the states of the process are put back."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        seed(0)
        expected = torch.rand(1), random.random(), np.random.rand()
        seed(0)
        found = failures(before(lambda: seed(0)))
        assert [failure.kind.partition("[")[0] for failure in found.values()] == ["SeedsGenerator"]
        again = torch.rand(1), random.random(), np.random.rand()
        assert (
            again[("torch", "python", "numpy").index(_library(seed))]
            == (expected[("torch", "python", "numpy").index(_library(seed))])
        )
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def _library(seed: Callable[[int], object]) -> str:
    return {torch.manual_seed: "torch", random.seed: "python"}.get(seed, "numpy")


@pytest.mark.parametrize(
    ("act", "what", "how"),
    [
        (lambda: torch.rand(3000), "torch", DRAWN),
        (lambda: torch.manual_seed(5), "torch", SEEDED),
        (lambda: [random.random() for _ in range(3000)], "Python", DRAWN),
        (lambda: random.seed(5), "Python", SEEDED),
        (lambda: np.random.rand(3000), "numpy", DRAWN),
        (lambda: np.random.seed(5), "numpy", SEEDED),
    ],
)
def test_drawing_is_told_from_seeding(act: Callable[[], object], what: str, how: str) -> None:
    """The one moves a generator on, the other makes all that follows the same each time."""
    watch = Watch()
    act()
    assert watch.settle() == {f"{what}'s random generator": how}
    assert Watch().settle() == {}


def test_numpys_cached_normal_number_survives_a_call() -> None:
    """It is no part of the bits that are swapped."""
    np.random.seed(1)
    np.random.randn()
    state = np.random.get_state()
    expected = np.random.randn(3)
    np.random.set_state(state)
    Watch().settle()
    assert np.array_equal(np.random.randn(3), expected)


def _makes_a_module(*inputs: Any) -> Tensor:
    torch.nn.Linear(2, 2)
    return right(*inputs)


def _adds_noise(*inputs: Any) -> Tensor:
    return right(*inputs) * (1 + 1e-6 * torch.rand(()))


def test_drawing_can_be_declared_but_not_an_output_that_depends_on_it() -> None:
    """Seeding cannot."""
    assert not failures(attending(_makes_a_module, draws_random=True))
    assert "repeat" in failures(attending(_adds_noise, draws_random=True))
    seeds = attending(find_bug("seeds_the_generator_of_python").function, draws_random=True)
    assert [*failures(seeds)] == ["state"]


# WHAT IS RIGHT

_pool = concurrent.futures.ThreadPoolExecutor(1)
_kept: list[Tensor] = []


def _module_without_drawing() -> None:
    torch.nn.utils.skip_init(torch.nn.Linear, 2, 2)
    with torch.random.fork_rng(devices=[]):
        torch.nn.Linear(2, 2)


def _sets_and_restores() -> None:
    threads, path = torch.get_num_threads(), os.getcwd()
    try:
        torch.set_num_threads(1)
        os.chdir(os.sep)
        with warnings.catch_warnings(), torch.inference_mode(), torch.device("meta"):
            warnings.simplefilter("ignore")
            torch.zeros(1)
    finally:
        torch.set_num_threads(threads)
        os.chdir(path)


@lru_cache(maxsize=128)
def _table(key: object) -> Tensor:
    return torch.zeros(4)


def _keeps_eight() -> None:
    _kept.append(torch.zeros(8))
    del _kept[:-8]


RIGHT: dict[str, Callable[[], object]] = {
    "makes modules without drawing": _module_without_drawing,
    "sets and restores": _sets_and_restores,
    "keeps a pool of threads": lambda: _pool.submit(torch.zeros, 1).result(),
    "starts a thread that ends": lambda: threading.Timer(0.01, lambda: None).start(),
    "fills a cache of 128": lambda: _table(object()),
    "keeps the last eight": _keeps_eight,
    "makes cycles": lambda: (cycle := [torch.zeros(100)]).append(cycle),  # type: ignore[arg-type]
    "draws from a generator of its own": lambda: torch.rand(1, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_a_right_candidate_may_do_is_no_failure(name: str) -> None:
    """It leaves nothing that grows, and the process as it was."""
    assert not failures(before(RIGHT[name]))


def test_what_a_library_sets_when_it_is_imported_is_not_held_against_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The import is not repeated, so it stays; a candidate that sets the same in each call is found."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("lazy_library", "lazy_helper"):
        code = "import os\nos.environ['LAZY'] = '1'\n" if name == "lazy_library" else ""
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setenv("LAZY", "0")
    assert not failures(before(lambda: importlib.import_module("lazy_library")))
    assert os.environ["LAZY"] == "1"
    monkeypatch.setenv("LAZY", "0")

    def sets_and_imports() -> None:
        os.environ["LAZY"] = "2"
        importlib.import_module("lazy_helper")

    assert [*failures(before(sets_and_imports))] == ["state"]


def test_a_call_with_nothing_to_hide_is_watched_for_less_than_it_takes() -> None:
    """Measured 0.13 ms; the bound is for busy machines."""
    import timeit

    assert min(timeit.repeat(lambda: Watch().settle(), number=5, repeat=40)) / 5 < 0.002


# EXCEPTIONS


class _Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no message")

    __repr__ = __str__


class _Liar(Exception):
    @property
    def __class__(self) -> type:  # type: ignore[override]
        raise ValueError("no class")


class _Unpicklable(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.function = lambda: message


def _chained() -> None:
    try:
        {}["key"]  # type: ignore[call-overload]
    except KeyError as error:
        raise ValueError("no such kernel") from error


def _raise(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def _without_end() -> None:
    _without_end()


RAISED: dict[str, tuple[Callable[[], object], str, str]] = {
    "plain": (_raise(ValueError("out of luck")), "ValueError", "ValueError: out of luck (at test_calls.py:"),
    "mute": (_raise(_Mute()), "_Mute", "<_Mute, whose text cannot be had: RuntimeError>"),
    "liar": (_raise(_Liar("hello")), "_Liar", "hello"),
    "long": (_raise(ValueError("x" * 1_000_000)), "ValueError", "(999,600 more characters)"),
    "surrogate": (_raise(ValueError("\ud800")), "ValueError", "\ufffd"),
    "group": (_raise(ExceptionGroup("two", [ValueError("a"), KeyError("b")])), "ExceptionGroup", "two"),
    "chained": (_chained, "ValueError", "no such kernel"),
    "recursion": (_without_end, "RecursionError", "at test_calls.py:"),
    "unpicklable": (_raise(_Unpicklable("no")), "_Unpicklable", "no"),
}


def _raises(name: str) -> CandidateRaised:
    failure = failure_of(ATTEND.checks[0], before(RAISED[name][0]), ATTEND, CASE)
    assert isinstance(failure, CandidateRaised)
    return failure


@pytest.mark.parametrize("name", RAISED)
def test_an_exception_is_one_clean_failure_that_shows_where(name: str) -> None:
    """Its text can be written, is short, and leads to the candidate's own line."""
    failure = _raises(name)
    _, kind, sentence = RAISED[name]
    assert failure.kind == f"CandidateRaised[{kind}]"
    assert sentence in failure.detail
    assert len(failure.detail) < 2200
    failure.detail.encode()
    assert failure.facts["where"].startswith("test_calls.py:")
    assert failure.context[0].startswith(f'File "{__file__}"')
    assert not any("plug/call.py" in line for line in failure.context)


def test_what_an_exception_came_of_is_told_with_it() -> None:
    """The causes of a chain, the members of a group."""
    assert "caused by KeyError: 'key', at test_calls.py" in _raises("chained").context[-1]
    assert [line for line in _raises("group").context if line.startswith("with ")] == [
        "with ValueError: a",
        "with KeyError: 'b'",
    ]


def test_an_error_in_torch_is_placed_in_the_candidates_own_line() -> None:
    """Frames of libraries lie further in."""
    failure = failure_of(
        ATTEND.checks[0],
        before(lambda: torch.nn.functional.softmax("text", -1)),  # type: ignore[arg-type]
        ATTEND,
        CASE,
    )
    assert failure is not None
    assert failure.facts["where"].endswith("in <lambda>")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"broken_syntax": "import torch\ndef f(:\n"},
            "SyntaxError.* at broken_syntax.py:2\n.*line 2\n    def f",
        ),
        (
            {"deep_a": "import deep_b", "deep_b": "\nimport deep_c", "deep_c": "import not_there"},
            r"(?s)ModuleNotFoundError: No module named 'not_there', at deep_c.py:1.*deep_a.*deep_b.*deep_c",
        ),
    ],
    ids=["syntax", "deep"],
)
def test_an_import_that_fails_shows_where(
    files: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file and the line, through all modules."""
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    with pytest.raises(csa_spec.CandidateError, match=message):
        csa_spec.check(f"{next(iter(files))}:f")


# WHAT COMES BACK IN PLACE OF A TENSOR


class _Subclass(Tensor):
    pass


async def _coroutine(*inputs: Any) -> Tensor:
    return right(*inputs)


def _generator(*inputs: Any) -> Any:
    yield right(*inputs)


def _of(change: Callable[[Tensor], Any]) -> Callable[..., Any]:
    return lambda *inputs: change(right(*inputs))


FORMS: dict[str, tuple[Callable[..., Any], str]] = {
    "async": (_coroutine, "a coroutine (give a function that is not async"),
    "generator": (_generator, "a generator (return the output, do not yield it)"),
    "future": (lambda *inputs: _pool.submit(right, *inputs), "a Future (wait for it"),
    "list": (_of(lambda out: [out]), "a list of 1 (return the output alone)"),
    "dict": (_of(lambda out: {"out": out}), "a dict of 1 (return the output alone)"),
    "none": (_of(lambda out: None), "None (return the output)"),
    "class": (_of(type), "the class Tensor (return an instance)"),
    "numpy": (
        _of(lambda out: out.numpy()),
        'a NumPy array (declare arrays="numpy", or return a torch tensor)',
    ),
    "sparse": (_of(lambda out: out.to_sparse()), "a sparse tensor (sparse_coo) (return out.to_dense())"),
    "jagged": (
        _of(lambda out: torch.nested.nested_tensor(list(out), layout=torch.jagged)),
        "a NestedTensor, a subclass of tensors",
    ),
    "meta": (_of(lambda out: out.to("meta")), "a tensor on meta, where tensors hold no numbers"),
    "complex": (_of(lambda out: out.to(torch.complex64)), "expected float32, got complex64"),
    "eight bits": (_of(lambda out: out.to(torch.float8_e4m3fn)), "expected float32, got float8_e4m3fn"),
    "subclass": (_of(lambda out: out.as_subclass(_Subclass)), "a _Subclass, a subclass of tensors"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FORMS)
def test_what_is_no_plain_tensor_is_named_with_what_to_do(name: str) -> None:
    """In one sentence, and by every check: never an internal error."""
    function, sentence = FORMS[name]
    found = failures(attending(function))
    assert {failure.kind for failure in found.values()} in ({"NotATensor"}, {"WrongDtype"})
    assert sentence in found["specification"].detail


@pytest.mark.parametrize(
    "message",
    [
        "softmax(): argument 'input' (position 1) must be Tensor, not numpy.ndarray",
        "softmax() received an invalid combination of arguments - got (numpy.ndarray, int), but expected one of:",
    ],
)
def test_each_release_of_torch_says_in_its_way_that_it_got_an_array(message: str) -> None:
    """The second is that of 2.6; other exceptions have another cause."""
    assert "arrays of numpy, as declared" in hint_at_library(TypeError(message), "numpy")
    assert hint_at_library(TypeError("an axis is missing"), "numpy") == ""


def test_a_torch_function_that_is_declared_as_numpys_is_told_so() -> None:
    """Whether it fails on what it is handed, or returns a tensor all the same."""
    fails = failures(attending(lambda q, *_: torch.softmax(q, -1), arrays="numpy"))["specification"]
    assert "it was handed arrays of numpy, as declared" in fails.detail
    returns = failures(attending(lambda q, *_: torch.tensor(q), arrays="numpy"))["specification"]
    assert (
        "got a torch tensor (return a NumPy array, or leave arrays out of what is declared)"
        in returns.detail
    )


def test_a_function_for_numpy_without_a_declaration_is_told_so() -> None:
    """By what its module imports, or by what it asks of a tensor."""
    failure = failures(attending(lambda q, *_: q.astype(np.float32)))["specification"]
    assert 'declare arrays="numpy" if it takes those' in failure.detail


def test_an_answer_is_the_same_however_the_call_is_made() -> None:
    """Unusual values of the process, inputs in used memory or overwritten afterwards."""
    caller, arguments = LocalCaller(), dict(ATTEND.trial(Candidate("nobody"), CASE).arguments)
    plain = caller(right, Request("attend", arguments)).returned
    for option in ("unusual", "overwrite", "reuse"):
        answer = caller(right, Request("attend", arguments, **{option: True}))
        assert torch.equal(answer.returned, plain)
        assert not answer.changed_inputs
