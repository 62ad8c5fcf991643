"""The candidate: what a user plugs in, what it can do, and what it may expose."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

from torch import Tensor

from csa_spec.engine.case import DEVICES, DTYPES, Case, Feature
from csa_spec.engine.stream import drive
from csa_spec.plug.arrays import library_problem
from csa_spec.plug.call import Answer, Caller, LocalCaller, Request
from csa_spec.spec import Geometry, LayerKind, LayerWeights

LAYER = "layer"
CACHE = "cache"
STAGES = ("compressor", "index_scores", "select", "attend", LAYER, CACHE)
"""What a candidate may offer, in the order of the data. ``docs/stages.md`` has their signatures."""
ARGUMENTS = {
    "compressor": ("hidden", "weights", "geometry"),
    "index_scores": ("index_q", "index_k", "head_weights"),
    "select": ("scores", "positions", "compress_ratio", "top_k"),
    "attend": ("q", "kv", "indices", "sinks", "scale"),
    LAYER: ("hidden", "weights", "geometry", "positions", "documents"),
    CACHE: ("weights", "geometry", "batch"),
}
"""What each stage is called with, by position."""


class CandidateError(Exception):
    """A candidate that cannot be used as given; the message is one clear sentence."""


@dataclass(frozen=True, slots=True)
class LayerOutput:
    """What a layer returns if it also shows how it got there. Everything but ``out`` is optional.

    What is exposed is used to name the first stage that differs, and to judge ambiguous queries strictly.
    Entry and key indices are those of rows that hold one document from their first column on.
    """

    out: Tensor
    """``[B, S, hidden]``"""
    entries: Tensor | None = None
    """``[B, T, head_dim]``, normed and rotated"""
    index_scores: Tensor | None = None
    """``[B, S, T]``; scores of invisible entries are ignored"""
    selection: Tensor | None = None
    """``[B, S, n]``, entry indices, -1 = none"""
    probabilities: Tensor | None = None
    """``[B, heads, S, S + T]``: tokens, then entries; the sink is not a column"""


class LayerStage(Protocol):
    """A whole attention layer, batched."""

    def __call__(
        self,
        hidden: Tensor,
        weights: LayerWeights,
        geometry: Geometry,
        positions: Tensor,
        documents: Tensor,
        /,
    ) -> Tensor | LayerOutput:
        """Return the layer's output for a batch.

        Parameters
        ----------
        hidden
            ``[B, S, hidden]``, after the layer's input norm.
        weights, geometry
            The layer; weights have the dtype and device of ``hidden``.
        positions
            ``[B, S]`` int64, absolute and 0-based; 0 at padding.
        documents
            ``[B, S]`` int64, the document in its row that each token belongs to, -1 at padding.
        """


_NOTHING: Mapping[tuple[str, str], str] = MappingProxyType({})
_NO_SIZES: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a candidate supports, and which liberties it takes. What it does not declare away is tested strictly.

    What is declared away is not tried; reports count it as not applicable.
    """

    # What it supports.
    kinds: Set[LayerKind] = frozenset(LayerKind)
    dtypes: Set[str] = frozenset(DTYPES)
    devices: Set[str] = frozenset(DEVICES)
    compress_ratios: Set[int] | None = None
    """None: any"""
    head_dims: Set[int] | None = None
    """D of attend and compressor. None: any"""
    max_top_k: int | None = None
    """None: any"""
    limits: Mapping[str, int] = field(default_factory=lambda: _NO_SIZES)
    """Largest sizes of a stage by their letters, e.g. ``{"S": 1}`` for decoding only"""
    least: Mapping[str, int] = field(default_factory=lambda: _NO_SIZES)
    """Smallest sizes of a stage, e.g. ``{"n": 1}`` where an empty index list is refused"""
    multiples: Mapping[str, int] = field(default_factory=lambda: _NO_SIZES)
    """What sizes of a stage must be multiples of, e.g. ``{"n": 64}``"""
    lacks: Mapping[tuple[LayerKind, Feature], str] | Mapping[tuple[str, str], str] = field(
        default_factory=lambda: _NOTHING
    )
    """What else is not supported, with the reason or the URL that says so. Keys are a layer kind and a
    :class:`Feature` of rows, or a stage and one of the names that its cases give to their data, e.g.
    ``("attend", "empty")``"""
    arrays: str = "torch"
    """The library whose arrays it takes and returns: ``torch``, ``numpy``, or a module with ``from_dlpack``"""
    gradients: bool = False
    """Autograd runs through it: then its gradients are held against the specification's"""
    invalid_indices: bool = False
    """attend takes any index outside of the keys for none, not only -1"""
    static_shapes: bool = False
    """It compiles for every new shape: sizes are drawn from a few powers of four"""

    # Liberties.
    internal_dtype: str | None = None
    """Widest dtype of the candidate's own arithmetic, where that is narrower than the case's dtype"""
    tie_tolerance: float = 0.0
    """select takes scores for equal that differ by this much of the larger magnitude, e.g. 2**-7 if it rounds to
    bfloat16 first, which moves each by up to 2**-8"""
    lowest_index_first: bool = False
    """A promise: among equal scores select takes the lowest entries. Without it any choice is right"""
    deterministic: bool = True
    """Two runs on the same input give the same bits"""
    batch_invariant: bool = True
    """A row gives the same bits alone as in a batch"""

    def lacking(self, case: Case) -> frozenset[Feature]:
        """Return the features of the case's rows that its layer kind does not support."""
        return frozenset(f for f in case.features if (case.geometry.kind, f) in self.lacks)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An implementation under test: a whole layer, some of its stages, or both."""

    name: str
    layers: Mapping[str, LayerStage] = field(default_factory=dict)
    """The layer by mode: ways to run that must all give the same answer. Most candidates that offer a layer have one
    mode, ``""``, and every one has that."""
    capabilities: Capabilities = field(default_factory=Capabilities)
    environment: Mapping[str, str] = field(default_factory=dict)
    """Versions worth a line in a report"""
    stages: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """The other stages by name"""
    caller: Caller = field(default_factory=LocalCaller, compare=False)
    """Makes the calls: in this process, or in a worker's"""

    @property
    def offers(self) -> tuple[str, ...]:
        """The stages that it has, in the order of the data."""
        return tuple(name for name in STAGES if (self.layers if name == LAYER else name in self.stages))

    def capabilities_of(self, stage: str) -> Capabilities:
        """Return what a stage supports: its own ``capabilities`` where it has some, else those of the candidate."""
        function = self.layers.get("") if stage == LAYER else self.stages.get(stage)
        own = getattr(function, "capabilities", None)
        return own if isinstance(own, Capabilities) else self.capabilities

    def ask(self, request: Request) -> Answer:
        """Call a stage; raises whatever it raises."""
        stage = request.stage
        function = self.layers[request.mode] if stage == LAYER else self.stages[stage]
        called: Callable[..., Any] = partial(drive, function) if stage == CACHE else function  # type: ignore[arg-type]
        return self.caller(called, request, self.capabilities_of(stage).arrays)


def as_candidate(thing: Any, name: str, stage: str | None = None) -> Candidate:
    """Make a candidate of a candidate, a function, or an object or module that has stages as attributes.

    Parameters
    ----------
    thing
        What to look at. An object may also have ``capabilities`` (a :class:`Capabilities`), and so may each stage.
    name
        What to call it.
    stage
        What a bare function is. None: what its attribute ``stage`` says, the stage that it is named after, or a layer.

    Raises
    ------
    CandidateError
        If it offers no stage, or cannot be called as its stage is.
    """
    if isinstance(thing, Candidate):
        if not thing.offers:
            raise CandidateError(
                f"{name} ({thing.name}) offers no stage: its layers are empty, and so are its stages"
            )
        _check_capabilities(thing.capabilities, name)
        return thing
    if isinstance(thing, type):
        raise CandidateError(f"{name} is a class; give an instance of it, or a function")
    found = {one: function for one in STAGES if callable(function := getattr(thing, one, None))}
    if not found and callable(thing):
        own_names = (getattr(thing, "stage", ""), getattr(thing, "__name__", ""))
        found = {stage or next((name for name in own_names if name in STAGES), LAYER): thing}
    if not found:
        raise CandidateError(
            f"{name} offers no stage: it is neither callable nor has a callable attribute "
            f"{', '.join(repr(one) for one in STAGES[:-1])} or {STAGES[-1]!r} (it is of type {type(thing).__name__})"
        )
    capabilities = getattr(thing, "capabilities", None)
    if capabilities is None:
        capabilities = Capabilities()
    for owner, declared in ((name, capabilities), *((f"{name}.{one}", getattr(found[one], "capabilities", None))
                                                    for one in found)):  # fmt: skip
        if declared is not None and not isinstance(declared, Capabilities):
            raise CandidateError(
                f"{owner}.capabilities must be csa_spec.Capabilities, not {type(declared).__name__}"
            )
        if declared is not None:
            _check_capabilities(declared, owner)
    for one, function in found.items():
        _check_signature(function, one, name if function is thing else f"{name}.{one}")
    layers = {"": found.pop(LAYER)} if LAYER in found else {}
    return Candidate(name, layers, capabilities, stages=found)


def _check_signature(function: Callable[..., Any], stage: str, name: str) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a builtin, say
        return
    names = ARGUMENTS[stage]
    try:
        signature.bind(*names)
    except TypeError as error:
        raise CandidateError(
            f"{name} cannot be called with the {len(names)} arguments of {stage} ({', '.join(names)}): {error}"
        ) from None


def _check_capabilities(capabilities: Capabilities, name: str) -> None:
    if not capabilities.kinds:
        raise CandidateError(f"{name} offers no stage: its capabilities name no layer kind")
    ratios = capabilities.compress_ratios
    if ratios is not None and (not ratios or min(ratios) < 1):
        raise CandidateError(f"{name} supports no compression ratio: {sorted(ratios)}")
    for what, known in (("dtypes", DTYPES), ("devices", DEVICES), ("kinds", tuple(LayerKind))):
        declared = getattr(capabilities, what)
        unknown = [declared] if isinstance(declared, str) else sorted(set(declared) - set(known))
        if unknown:
            raise CandidateError(
                f"{name}: capabilities.{what} must be a set out of {', '.join(known)}, not {unknown[0]!r}"
            )
    problem = library_problem(capabilities.arrays)
    if problem:
        raise CandidateError(f"{name}: capabilities.arrays: {problem}")
    for what, sizes, least in (
        ("limits", capabilities.limits, 0), ("least", capabilities.least, 0), ("multiples", capabilities.multiples, 1),
    ):  # fmt: skip
        wrong = {size: number for size, number in sizes.items() if number < least}
        if wrong:
            raise CandidateError(f"{name}: capabilities.{what} must be at least {least}, not {wrong}")
    if capabilities.gradients and capabilities.arrays != "torch":
        raise CandidateError(f"{name}: gradients need torch's arrays, not {capabilities.arrays}'s")


def one_line(error: BaseException) -> str:
    """Return what an exception says, on one line."""
    return " ".join(str(error).split())


def import_candidate(path: str, stage: str | None = None) -> Candidate:
    """Import ``package.module:object`` and make a candidate of it; a bare function is ``stage``, or a layer.

    Raises
    ------
    CandidateError
        If the module cannot be imported, lacks the object, or the object offers no stage.
    """
    module_name, _, attribute = path.partition(":")
    if not attribute or not all(part.isidentifier() for part in module_name.split(".")):
        raise CandidateError(f"{path!r} is not of the form package.module:object")
    try:
        thing = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (
            module_name == error.name or module_name.startswith(error.name + ".")
        ):
            hint = (
                f"; write {module_name[:-3]}:{attribute}, without .py" if module_name.endswith(".py") else ""
            )
            raise CandidateError(f"there is no module {error.name!r} on the Python path{hint}") from None
        raise CandidateError(f"importing {module_name} failed: {error}") from error
    except (Exception, SystemExit) as error:
        raise CandidateError(
            f"importing {module_name} failed: {type(error).__name__}: {one_line(error)}"
        ) from error
    try:
        for part in attribute.split("."):
            thing = getattr(thing, part)
        found = as_candidate(thing, path, stage)
    except CandidateError:
        raise
    except AttributeError:
        raise CandidateError(f"module {module_name} has no attribute {attribute!r}") from None
    except (Exception, SystemExit) as error:
        raise CandidateError(
            f"{path} cannot be looked at: {type(error).__name__}: {one_line(error)}"
        ) from error
    return replace(found, name=path)
