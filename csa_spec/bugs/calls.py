"""What the stages are called with, as one object, and how their bugs are registered.

The commonest bug is the right stage on wrong arguments. It takes one call::

    attend_bug(
        "reads_index_minus_one_as_row_0",
        "Index -1 is clamped to 0 and not masked.",
        "https://github.com/...",
        indices=lambda call: call.indices.clamp(min=0),
    )

Any other is a function of the call. Its name is the bug's, the first paragraph of its docstring the cause::

    @attend_bug.function("https://github.com/...")
    def returns_heads_first(call: AttendCall) -> Tensor:
        \"\"\"The output is [B, H, S, D], the layout of most attention functions.\"\"\"
        return call.right().transpose(1, 2)

Seen from outside, both take the arguments of their stage, by position.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from csa_spec.bugs.bug import register
from csa_spec.candidates import batched, gather
from csa_spec.candidates.batched import key_or_none, softmax_with_sink, wide
from csa_spec.plug.capabilities import Capabilities
from csa_spec.spec import SPEC, CompressorWeights, Geometry, LayerKind, Spec, compress
from csa_spec.stages import STAGES

TILE = 16
"""Indices that a kernel reads at once"""


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one call of a stage."""

    stage: ClassVar[str]
    by_name: ClassVar[tuple[str, ...]] = ()
    """The last of them, which are passed by name"""
    implementation: ClassVar[Callable[..., Any]]
    """A right one"""

    def right(self, **changed: Any) -> Tensor:
        """Return the right answer, to some changed arguments where they are given."""
        call = replace(self, **changed)
        out: Tensor = type(self).implementation(*(getattr(call, field.name) for field in fields(call)))
        return out


C = TypeVar("C", bound=Call)
Answer = Callable[[C], Tensor | None]
"""Returns the wrong output; None where it returns nothing at all"""


class StageBugs(Generic[C]):
    """Registers the bugs of one stage."""

    def __init__(
        self, call: type[C], kinds: tuple[LayerKind, ...] = (), declares: Capabilities | None = None
    ) -> None:
        self.call, self.kinds, self.declares = call, kinds, declares

    def __call__(
        self,
        name: str,
        cause: str,
        *urls: str,
        answer: Answer[C] | None = None,
        broken: Mapping[str, Callable[..., Any]] = MappingProxyType({}),
        equivalent: str = "",
        declares: Capabilities | None = None,
        **changed: Callable[[C], Any],
    ) -> Callable[..., Any]:
        """Register the right stage on changed arguments, or ``answer``, and return it.

        Parameters
        ----------
        name, cause, urls, broken, equivalent
            As in :class:`csa_spec.bugs.bug.Bug`.
        answer
            The wrong output.
        declares
            What the wrong stage declares.
        changed
            Arguments by name, and what takes their place.
        """

        def on_changed_arguments(call: C) -> Tensor:
            return call.right(**{argument: change(call) for argument, change in changed.items()})

        return register(
            self.positional(answer or on_changed_arguments),
            self.call.stage,
            *urls,
            name=name,
            cause=cause,
            kinds=self.kinds,
            broken=broken,
            changed=tuple(changed),
            equivalent=equivalent,
            declares=declares or self.declares,
        )

    def function(
        self,
        *urls: str,
        kinds: tuple[LayerKind, ...] = (),
        equivalent: str = "",
        declares: Capabilities | None = None,
    ) -> Callable[[Answer[C]], Callable[..., Any]]:
        """Register the decorated function of a call; it gets the signature of its stage."""

        def decorate(answer: Answer[C]) -> Callable[..., Any]:
            return register(
                self.positional(answer),
                self.call.stage,
                *urls,
                name=answer.__name__,
                cause=inspect.getdoc(answer) or "",
                kinds=kinds or self.kinds,
                equivalent=equivalent,
                declares=declares or self.declares,
            )

        return decorate

    def positional(self, answer: Answer[C]) -> Callable[..., Any]:
        """Return a function of a call as one of the stage's arguments."""

        def wrong(*arguments: Any, **named: Any) -> Tensor | None:
            return answer(self.call(*arguments, **named))

        names, by_name = STAGES[self.call.stage].arguments, self.call.by_name
        wrong.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                *(inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in names),
                *(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in by_name),
            ]
        )
        return wrong


# ATTEND


@dataclass(frozen=True, slots=True)
class AttendCall(Call):
    """Attention over index lists, as in :func:`csa_spec.candidates.gather.attend`."""

    q: Tensor
    kv: Tensor
    indices: Tensor
    sinks: Tensor
    scale: float
    stage = "attend"
    implementation: ClassVar[Callable[..., Tensor]] = staticmethod(gather.attend)

    @property
    def places(self) -> Tensor:
        """Places ``[n]`` in a list."""
        return torch.arange(self.indices.shape[-1])

    @property
    def count(self) -> Tensor:
        """How many valid indices ``[B, S, 1]`` a list has."""
        return (self.indices >= 0).sum(-1, keepdim=True)

    @property
    def no_sinks(self) -> Tensor:
        """Sinks that count for nothing."""
        return torch.full_like(self.sinks, -math.inf)

    def gathered(self) -> tuple[Tensor, Tensor]:
        """Return every query's own keys ``[B, S, n, D]``, zeros for none, and which of them there are."""
        length = self.kv.shape[1]
        rows = key_or_none(self.indices, length)
        batch = torch.arange(len(self.kv))[:, None, None]
        return pad(self.kv, (0, 0, 0, 1))[batch, rows], rows < length

    def membership(self) -> Tensor:
        """Return which rows ``[B, S, N]`` of ``kv`` a query names."""
        return (self.indices[..., None] == torch.arange(self.kv.shape[1])).any(2)

    def logits(self, keys: Tensor, named: Tensor, none: float = -math.inf) -> Tensor:
        """Return the logits ``[B, S, H, n]`` of every query's own keys."""
        products = torch.einsum("bshd,bsnd->bshn", self.q.to(wide(self.q)), keys.to(wide(self.q)))
        return (self.scale * products).masked_fill(~named[:, :, None], none)

    def terms(self, logits: Tensor) -> Tensor:
        """Return logits with the sink as the last of them, ``[B, S, H, n + 1]``."""
        return torch.cat((logits, self.sinks.to(logits)[:, None].expand(*logits.shape[:3], 1)), -1)

    def mix(self, probabilities: Tensor, keys: Tensor) -> Tensor:
        """Return the output for probabilities ``[B, S, H, n]`` of every query's own keys."""
        return torch.einsum("bshn,bsnd->bshd", probabilities, keys.to(probabilities)).to(self.q.dtype)

    def attend_to(
        self, keys: Tensor, named: Tensor, *, values: Tensor | None = None, none: float = -math.inf
    ) -> Tensor:
        """Attend from every query to its own keys; ``named [B, S, n]`` says which of them there are."""
        probabilities = softmax_with_sink(self.logits(keys, named, none), self.sinks)
        return self.mix(probabilities, keys if values is None else values)


attend_bug = StageBugs(AttendCall)


# SELECT


@dataclass(frozen=True, slots=True)
class SelectCall(Call):
    """Selection of the best visible entries, as in :func:`csa_spec.candidates.batched.select`."""

    scores: Tensor
    positions: Tensor
    compress_ratio: int
    top_k: int
    stage = "select"
    implementation = staticmethod(batched.select)

    @property
    def width(self) -> int:
        """How many entries there are."""
        return self.scores.shape[-1]

    @property
    def entries(self) -> Tensor:
        """The entries ``[T]``."""
        return torch.arange(self.width)

    @property
    def visible(self) -> Tensor:
        """How many entries ``[B, S, 1]`` each query sees."""
        return ((self.positions + 1) // self.compress_ratio)[..., None]

    @property
    def hidden(self) -> Tensor:
        """Which entries ``[B, S, T]`` each query must not see."""
        return self.entries >= self.visible

    def ranked(self, hidden: Tensor) -> Tensor:
        """Return finite scores in float64, -inf for entries that are hidden."""
        return self.scores.double().nan_to_num(-1e300, 1e300, -1e300).masked_fill(hidden, -math.inf)

    def best(self, hidden: Tensor, top_k: int | None = None) -> Tensor:
        """Select the best entries of those that are not hidden, -1 for none."""
        best, picks = self.ranked(hidden).topk(
            min(self.top_k if top_k is None else top_k, self.width), dim=-1
        )
        return torch.where(best == -math.inf, -1, picks)

    def listed(self, picks: Tensor) -> Tensor:
        """Return the first ``top_k`` of ranked entries, -1 for those that are hidden."""
        first = picks[..., : self.top_k]
        return torch.where(first >= self.visible, -1, first)

    def descending(self, scores: Tensor) -> Tensor:
        """Select by the order of scores that were changed, the lowest of equal entries first."""
        return self.listed(scores.sort(dim=-1, descending=True, stable=True).indices)

    def values_of(self, picks: Tensor) -> Tensor:
        """Return the scores of picks; those of -1 mean nothing."""
        return self.scores.gather(-1, picks.clamp(min=0)) if picks.numel() else self.scores[..., :0]

    def without(self, dropped: Callable[[Tensor], Tensor]) -> Tensor:
        """Select, and replace picks by -1 whose scores are to be dropped."""
        picks = self.right()
        return torch.where(dropped(self.values_of(picks)), -1, picks)


select_bug = StageBugs(SelectCall)


# INDEX SCORES


@dataclass(frozen=True, slots=True)
class IndexScoresCall(Call):
    """Index scores, as in :func:`csa_spec.candidates.batched.index_scores`."""

    index_q: Tensor
    index_k: Tensor
    head_weights: Tensor
    stage = "index_scores"
    implementation: ClassVar[Callable[..., Tensor]] = staticmethod(batched.index_scores)

    @property
    def products(self) -> Tensor:
        """Products ``[B, S, HI, T]`` of queries and keys, in float32 or wider."""
        dtype = wide(self.index_q)
        return torch.einsum("bshd,btd->bsht", self.index_q.to(dtype), self.index_k.to(dtype))

    @property
    def entries(self) -> Tensor:
        """The entries ``[T]``."""
        return torch.arange(self.index_k.shape[1])


index_scores_bug = StageBugs(IndexScoresCall)


# COMPRESSOR


@dataclass(frozen=True, slots=True)
class CompressorCall(Call):
    """A compressor, as in :func:`csa_spec.candidates.batched.compressor`."""

    hidden: Tensor
    weights: CompressorWeights
    geometry: Geometry
    stage = "compressor"
    implementation = staticmethod(batched.compressor)

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.hidden.shape[1]

    def follow(self, spec: Spec = SPEC, **changed: Any) -> Tensor:
        """Follow some rules in float64, entry by entry, and round once."""
        call = replace(self, **changed)
        w = call.weights
        exact = CompressorWeights(*(x.double() for x in (w.wkv, w.wgate, w.ape, w.norm)))
        frequencies = spec.layer_frequencies(call.geometry)
        rows = [compress(row.double(), 0, exact, call.geometry, frequencies, spec) for row in call.hidden]
        return torch.stack(rows).to(call.hidden.dtype)


compressor_bug = StageBugs(CompressorCall)


def hadamard(x: Tensor) -> Tensor:
    """Turn the last dimension by one step of a Hadamard transform, an orthogonal matrix."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half : 2 * half]
    return torch.cat(((a + b) / math.sqrt(2), (a - b) / math.sqrt(2), x[..., 2 * half :]), -1)
