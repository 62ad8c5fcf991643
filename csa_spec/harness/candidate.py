"""The candidate: what a user plugs in, what it can do, and what it may expose."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from csa_spec.harness.case import DEVICES, DTYPES, Case, Feature
from csa_spec.spec import Geometry, LayerKind, LayerWeights


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


_NOTHING: Mapping[tuple[LayerKind, Feature], str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a candidate supports. What it does not declare away is tested."""

    kinds: Set[LayerKind] = frozenset(LayerKind)
    dtypes: Set[str] = frozenset(DTYPES)
    devices: Set[str] = frozenset(DEVICES)
    compress_ratios: Set[int] | None = None
    """None: any"""
    lacks: Mapping[tuple[LayerKind, Feature], str] = field(default_factory=lambda: _NOTHING)
    """Features of rows that a layer kind does not support, with the reason or the URL that says so"""
    internal_dtype: str | None = None
    """Widest dtype of the candidate's own arithmetic, where that is narrower than the case's dtype"""
    deterministic: bool = True
    """Two runs on the same input give the same bits"""

    def lacking(self, case: Case) -> frozenset[Feature]:
        """Return the features of the case's rows that its layer kind does not support."""
        return frozenset(f for f in case.features if (case.geometry.kind, f) in self.lacks)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An implementation under test."""

    name: str
    layers: Mapping[str, LayerStage]
    """The layer by mode: ways to run that must all give the same answer. Most candidates have one, ``""``, and every
    candidate has that one."""
    capabilities: Capabilities = field(default_factory=Capabilities)
    environment: Mapping[str, str] = field(default_factory=dict)
    """Versions worth a line in a report"""

    def run(
        self, case: Case, hidden: Tensor, weights: LayerWeights, positions: Tensor, documents: Tensor
    ) -> LayerOutput:
        """Run the layer once, in the case's mode, without recording gradients."""
        with torch.no_grad():
            returned = self.layers[case.mode](hidden, weights, case.geometry, positions, documents)
        return returned if isinstance(returned, LayerOutput) else LayerOutput(returned)


def as_candidate(thing: Any, name: str) -> Candidate:
    """Make a candidate of a candidate, a layer function, or an object or module with a ``layer``.

    The object may also have ``capabilities`` (a :class:`Capabilities`).

    Raises
    ------
    CandidateError
        If it offers no stage.
    """
    if isinstance(thing, Candidate):
        if not thing.layers:
            raise CandidateError(f"{name} ({thing.name}) offers no stage: its layers are empty")
        _check_capabilities(thing.capabilities, name)
        return thing
    if isinstance(thing, type):
        raise CandidateError(f"{name} is a class; give an instance of it, or a function")
    layer = getattr(thing, "layer", None)
    if layer is None and callable(thing):
        layer = thing
    if not callable(layer):
        raise CandidateError(
            f"{name} offers no stage: it is neither callable nor has a callable attribute 'layer' "
            f"(it is of type {type(thing).__name__})"
        )
    capabilities = getattr(thing, "capabilities", None)
    if capabilities is None:
        capabilities = Capabilities()
    if not isinstance(capabilities, Capabilities):
        raise CandidateError(f"{name}.capabilities must be csa_spec.Capabilities, not {type(capabilities).__name__}")
    _check_capabilities(capabilities, name)
    return Candidate(name, {"": layer}, capabilities)


def _check_capabilities(capabilities: Capabilities, name: str) -> None:
    if not capabilities.kinds:
        raise CandidateError(f"{name} offers no stage: its capabilities name no layer kind")
    ratios = capabilities.compress_ratios
    if ratios is not None and (not ratios or min(ratios) < 1):
        raise CandidateError(f"{name} supports no compression ratio: {sorted(ratios)}")


def one_line(error: BaseException) -> str:
    """Return what an exception says, on one line."""
    return " ".join(str(error).split())


def import_candidate(path: str) -> Candidate:
    """Import ``package.module:object`` and make a candidate of it.

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
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise CandidateError(f"there is no module {error.name!r} on the Python path") from None
        raise CandidateError(f"importing {module_name} failed: {error}") from error
    except (Exception, SystemExit) as error:
        raise CandidateError(f"importing {module_name} failed: {type(error).__name__}: {one_line(error)}") from error
    try:
        for part in attribute.split("."):
            thing = getattr(thing, part)
        found = as_candidate(thing, path)
    except CandidateError:
        raise
    except AttributeError:
        raise CandidateError(f"module {module_name} has no attribute {attribute!r}") from None
    except (Exception, SystemExit) as error:
        raise CandidateError(f"{path} cannot be looked at: {type(error).__name__}: {one_line(error)}") from error
    return replace(found, name=path)
