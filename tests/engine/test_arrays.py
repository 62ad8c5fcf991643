"""Tensors on their way to candidates of other array libraries, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import csa_spec
from csa_spec import Capabilities, CompressorWeights, Failure
from csa_spec.plug.arrays import (
    Foreign,
    from_library,
    library_problem,
    map_tensors,
    named_tensors,
    received,
    same_bits,
    share_memory,
    to_library,
)
from csa_spec.plug.capabilities import DTYPES
from csa_spec.resolving import resolve_candidate, resolve_profile
from csa_spec.stages.layer.case import LayerCase
from csa_spec.stages.layer.inputs import make_inputs
from csa_spec.target import make_targets

FLOATS = [getattr(torch, name) for name in DTYPES]
ATTEND = "attend B=2 S=2 H=2 D=4 N=5 n=4 indices=holes values=gaussian"


# Names, and changes by name.


def layer_arguments() -> dict[str, Any]:
    """Return the arguments of a layer whose weights are nested three deep."""
    case = LayerCase.parse("csa m=2 rows=4")
    inputs = make_inputs(case)
    return {"hidden": inputs.hidden, "weights": inputs.weights, "geometry": case.geometry, "scale": 2.0}


def test_nested_weights_are_named_by_their_path() -> None:
    """As the official names, behind the name of the argument; what is no tensor is left out."""
    arguments = layer_arguments()
    found = named_tensors(arguments)
    assert set(found) == {"hidden", *(f"weights.{name}" for name in arguments["weights"].named())}
    assert found["weights.indexer.compressor.ape"] is arguments["weights"].indexer.compressor.ape


def test_every_tensor_is_changed_in_its_place() -> None:
    """With its name; what is no tensor is the same object, and what was given stays as it was."""
    arguments = layer_arguments()
    before = {name: tensor.clone() for name, tensor in named_tensors(arguments).items()}
    seen = []
    changed = map_tensors(lambda name, tensor: seen.append(name) or tensor + 1, arguments)  # type: ignore[func-returns-value]
    assert sorted(seen) == sorted(before)
    assert list(changed) == list(arguments)
    assert type(changed["weights"]) is type(arguments["weights"])
    for name, tensor in named_tensors(changed).items():
        assert torch.equal(tensor, before[name] + 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(arguments).items())
    assert changed["geometry"] is arguments["geometry"]
    assert changed["scale"] == 2.0


def test_weights_may_hold_other_things_than_tensors() -> None:
    """A weight that is not there stays None; arrays of other libraries may take the place of tensors."""
    weights = replace(layer_arguments()["weights"], indexer=None)
    arrays = map_tensors(lambda _, tensor: to_library(tensor, "numpy"), {"weights": weights})["weights"]
    assert arrays.indexer is None
    assert isinstance(arrays.compressor, CompressorWeights)
    assert all(
        isinstance(getattr(arrays.compressor, one.name), np.ndarray) for one in fields(CompressorWeights)
    )


# There and back.


def there_and_back(tensor: torch.Tensor, arrays: str) -> None:
    """Hold a tensor against what comes back."""
    array = to_library(tensor, arrays)
    back = from_library(array)
    assert isinstance(back, torch.Tensor)
    assert same_bits(back, tensor)
    assert (
        share_memory(back, tensor) or not tensor.numel()
    )  # the harness makes the copies, and watches the memory


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), ()])
@pytest.mark.parametrize("dtype", [*(one for one in FLOATS if one != torch.bfloat16), torch.int64], ids=str)
def test_numpy_gets_every_dtype_that_it_has(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Without a copy."""
    there_and_back(torch.full(shape, 3).to(dtype), "numpy")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int32], ids=str)
def test_jax_gets_bfloat16_too(dtype: torch.dtype) -> None:
    """Without a copy, NaN included."""
    pytest.importorskip("jax")
    tensor = torch.tensor([[1.5, -2.0, 0.0], [3.0, 4.0, 5.0]]).to(dtype)
    if dtype.is_floating_point:
        tensor[0, 2] = torch.nan
    there_and_back(tensor, "jax.numpy")


def test_torch_gets_the_tensor_itself() -> None:
    """There and back."""
    tensor = torch.ones(2)
    assert to_library(tensor, "torch") is tensor
    assert from_library(tensor) is tensor


@pytest.mark.parametrize("thing", [None, 1.5, [1.0, 2.0], "text", (torch.ones(2), None)], ids=str)
def test_what_is_no_array_comes_back_in_words(thing: object) -> None:
    """So that the failure can name its type, in whatever process it was made."""
    back = received(thing, torch.ones(1))
    assert isinstance(back, Foreign)
    assert ("None" if thing is None else type(thing).__name__) in back.what


def read_only(array: np.ndarray) -> np.ndarray:
    """Return a view that cannot be written to."""
    view = array.view()
    view.flags.writeable = False
    return view


@pytest.mark.filterwarnings("error")
def test_a_read_only_array_comes_back_without_a_warning() -> None:
    """In the same memory, so that sharing it is still seen."""
    array = np.arange(6.0).reshape(2, 3)
    back = from_library(read_only(array))
    assert torch.equal(back, torch.arange(6.0, dtype=torch.float64).view(2, 3))
    assert share_memory(back, torch.from_numpy(array))


def test_views_of_every_kind_come_back() -> None:
    """Transposed, strided, and reversed, which torch cannot take as it is."""
    array = np.arange(6.0).reshape(2, 3)
    for view in (array.T, array[:, ::2], array[::-1], read_only(array)[:, ::-1]):
        assert from_library(view).tolist() == view.tolist()


def test_a_number_of_numpy_is_an_array_without_dimensions() -> None:
    """It is one that numpy returns where a sum leaves nothing else."""
    assert from_library(np.float32(1.5)).shape == ()


class OnlyArray:
    """An array of a library that knows numpy's protocol only."""

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        """Return it as numpy's."""
        return np.arange(3.0)


def test_a_library_without_dlpack_can_return_its_arrays() -> None:
    """As long as numpy can read them."""
    assert from_library(OnlyArray()).tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("arrays", ["torch", "numpy", "numpy.ma"])
def test_a_library_is_known_or_what_is_wrong_with_it(arrays: str) -> None:
    """``numpy.ma`` has no ``from_dlpack``."""
    problem = library_problem(arrays)
    assert (problem == "") == (arrays != "numpy.ma")
    assert problem == "" or "has no from_dlpack; choose torch" in problem


@pytest.mark.parametrize(
    "arrays", ["no_such_library", "numpy.no_such_part", "", "..", "csa_spec.nothing.at_all"]
)
def test_a_module_that_is_not_there_is_named(arrays: str) -> None:
    """In one sentence."""
    assert f"the module {arrays!r} cannot be imported" in library_problem(arrays)


# Candidates that take and return numpy's arrays.


def right(q: Any, kv: Any, indices: Any, sinks: Any, scale: float) -> Any:
    """Attend, in float64."""
    q, kv, sinks = (array.astype(np.float64) for array in (q, kv, sinks))
    out = np.zeros(q.shape)
    for b, t in np.ndindex(q.shape[:2]):
        keys = kv[b, indices[b, t][indices[b, t] >= 0]]
        if len(keys):
            weights = np.exp(scale * q[b, t] @ keys.T)
            out[b, t] = weights / (weights.sum(-1, keepdims=True) + np.exp(sinks[:, None])) @ keys
    return out.astype(np.float32)


def candidate(after: Callable[..., Any], **capabilities: Any) -> Any:
    """Return a candidate whose ``attend`` hands its right answer, and its arguments, to ``after``."""

    def attend(*arguments: Any) -> Any:
        assert all(isinstance(array, np.ndarray) for array in arguments[:4])
        return after(right(*arguments), *arguments)

    return SimpleNamespace(attend=attend, capabilities=Capabilities(arrays="numpy", **capabilities))


def found(after: Callable[..., Any], check: str = "specification") -> Failure | None:
    """Return the failure of such a candidate on one case."""
    try:
        csa_spec.check_case(candidate(after), ATTEND, check)
    except Failure as failure:
        return failure
    return None


CHECKS = ("specification", "inputs", "memory", "own-inputs", "repeat", "rows", "order", "state")
RIGHT: dict[str, Callable[..., Any]] = {
    "array": lambda out, *_: out,
    "read-only": lambda out, *_: read_only(out),
    "broadcast": lambda out, *_: np.broadcast_to(out, out.shape),
    "transposed": lambda out, *_: np.ascontiguousarray(out.transpose(3, 1, 2, 0)).transpose(3, 1, 2, 0),
    "reversed": lambda out, *_: out[..., ::-1].copy()[..., ::-1],
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("form", RIGHT)
def test_a_right_answer_passes_in_every_form_that_numpy_gives_it(form: str, check: str) -> None:
    """Also where torch cannot take it as it is."""
    assert found(RIGHT[form], check) is None


def in_queries(out: np.ndarray, q: np.ndarray, *_: object) -> np.ndarray:
    """Write the answer over the queries."""
    q[...] = out
    return q


def reused(view: Callable[[np.ndarray], np.ndarray] = np.asarray) -> Callable[..., np.ndarray]:
    """Return a function that hands out a view of the same memory each time."""
    kept: dict[tuple[int, ...], np.ndarray] = {}

    def answer(out: np.ndarray, *_: object) -> np.ndarray:
        memory = kept.setdefault(out.shape, np.empty_like(out))
        memory[...] = out
        return view(memory)

    return answer


def changes_keys(out: np.ndarray, q: np.ndarray, kv: np.ndarray, *_: object) -> np.ndarray:
    """Leave other keys behind."""
    kv += 1
    return out


def sorts_indices(
    out: np.ndarray, q: np.ndarray, kv: np.ndarray, indices: np.ndarray, *_: object
) -> np.ndarray:
    """Leave the indices sorted."""
    indices.sort()
    return out


WRONG: dict[str, tuple[Callable[..., Any], str, str, str]] = {
    "returns-input": (in_queries, "memory", "SharesMemory", "memory of q"),
    "returns-view": (lambda out, *a: in_queries(out, *a)[...], "memory", "SharesMemory", "memory of q"),
    "returns-read-only-view": (
        lambda out, *a: read_only(in_queries(out, *a)),
        "memory",
        "SharesMemory",
        "memory of q",
    ),
    "writes-input": (in_queries, "inputs", "InputsChanged", "q"),
    "changes-keys": (changes_keys, "inputs", "InputsChanged", "kv"),
    "sorts-indices": (sorts_indices, "inputs", "InputsChanged", "indices"),
    "reuses-memory": (reused(), "memory", "OverwritesOutput", "changes when the candidate is called again"),
    "reuses-read-only": (
        reused(read_only),
        "memory",
        "OverwritesOutput",
        "changes when the candidate is called again",
    ),
    "number": (
        lambda out, *_: out.sum(),
        "specification",
        "WrongShape",
        "expected [2, 2, 2, 4] [B, S, H, D], got []",
    ),
    "list": (lambda out, *_: out.tolist(), "specification", "NotATensor", "got a list of 2"),
    "tuple": (lambda out, *_: (out, None), "specification", "NotATensor", "got a tuple of 2"),
    "nothing": (lambda *_: None, "specification", "NotATensor", "got None (return the output)"),
    "flat": (lambda out, *_: out.reshape(2, 2, 8), "specification", "WrongShape", "got [2, 2, 8]"),
    "float64": (lambda out, *_: out.astype(np.float64), "specification", "WrongDtype", "float64"),
    "text": (lambda out, *_: out.astype(str), "specification", "NotATensor", "a NumPy array of <U32"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_of_a_numpy_candidate_is_named_as_one_of_torch_is(name: str) -> None:
    """Memory, inputs and form are watched through the arrays."""
    after, check, kind, says = WRONG[name]
    failure = found(after, check)
    assert failure is not None
    assert type(failure).__name__ == kind
    assert says in failure.detail


def test_bfloat16_is_not_applicable_to_numpy() -> None:
    """Beside float32 it is declined with the reason; alone it is refused."""
    both = SimpleNamespace(
        attend=candidate(lambda out, *_: out).attend, select=lambda scores, positions, m, k: torch.zeros(0)
    )
    both.attend.capabilities = Capabilities(arrays="numpy")
    smoke = resolve_profile("smoke")
    _, declined = make_targets(resolve_candidate(both), "all", "all", ("bfloat16",), "cpu", smoke, 0)
    (reason,) = declined.values()
    assert reason.endswith("takes numpy's arrays, and numpy has no bfloat16")
    with pytest.raises(csa_spec.UsageError, match="numpy has no bfloat16"):
        csa_spec.check(candidate(lambda out, *_: out), dtype="bfloat16", profile="smoke")
