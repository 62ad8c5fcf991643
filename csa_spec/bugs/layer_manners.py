"""Layers that break a law or have bad manners: answers of another form, that change, or that change other things."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from csa_spec.bugs.bug import COMPRESSED, CSA, Asked, bug, following, layer_bug
from csa_spec.plug.capabilities import Capabilities
from csa_spec.spec import SPEC, Geometry, LayerKind, LayerWeights
from csa_spec.spec.attention import attend

SLIDING_FIRST = (LayerKind.SLIDING, LayerKind.HCA, LayerKind.CSA)

_right = following(SPEC)


def _answer(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    out = _right(hidden, weights, geometry, positions, documents)
    assert isinstance(out, Tensor)
    return out


# FORM


@bug("layer", kinds=COMPRESSED)
def raises_on_a_tail(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """Lengths that are no multiple of the ratio are refused, but that is not declared."""
    if hidden.shape[1] % geometry.compress_ratio:
        raise ValueError(f"{hidden.shape[1]} tokens are no multiple of {geometry.compress_ratio}")
    return _answer(hidden, weights, geometry, positions, documents)


@bug("layer", kinds=SLIDING_FIRST)
def returns_nothing(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> None:
    """The output is written somewhere and not returned."""
    _answer(hidden, weights, geometry, positions, documents)


@bug("layer", kinds=SLIDING_FIRST)
def joins_rows(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """Tokens of all rows are returned one after another, as token-major kernels have them."""
    return _answer(hidden, weights, geometry, positions, documents).flatten(0, 1)


@bug("layer", kinds=SLIDING_FIRST)
def returns_float64(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """The output is not converted back to the dtype of the hidden states."""
    return _answer(hidden, weights, geometry, positions, documents).double()


@bug("layer", kinds=SLIDING_FIRST)
def infinite_at_first(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """The output overflows at the first column every time, which is wrong but breaks no law."""
    out = _answer(hidden, weights, geometry, positions, documents)
    out[:, 0] = math.inf
    return out


# LAWS: wrong in a way that needs no specification to see.


@bug("layer", kinds=SLIDING_FIRST)
def adds_the_batch_mean(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """A mean is taken over the batch, so that rows leak into each other."""
    out = _answer(hidden, weights, geometry, positions, documents)
    return out + out.mean(0, keepdim=True)


@bug("layer", kinds=SLIDING_FIRST)
def counts_rows(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """The index of a row in the batch gets into its output."""
    out = _answer(hidden, weights, geometry, positions, documents)
    return out * torch.arange(1, len(out) + 1, dtype=out.dtype)[:, None, None]


normalises_by_length = layer_bug(
    "normalises_by_length",
    "The softmax scale grows with the length of the sequence, so that it depends on tokens still to come.",
    kinds=SLIDING_FIRST,
    rules=lambda document, geometry: replace(
        SPEC, softmax_scale=lambda g: g.scale * math.log(1 + document.length)
    ),
)

_calls = itertools.count()


@bug("layer", kinds=SLIDING_FIRST)
def changes_by_a_hair(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """Numbers are added up by atomic operations, in another order at every call; far within the budget."""
    out = _answer(hidden, weights, geometry, positions, documents)
    return out * (1 + torch.finfo(out.dtype).eps) if next(_calls) % 2 else out


def _ties_by_turns(asked: Asked) -> Tensor:
    last = next(_calls) % 2

    def choose(visible: Sequence[int], scores: Sequence[float], top_k: int) -> list[int]:
        order = sorted(
            zip(scores, visible, strict=True), key=lambda pair: (-pair[0], -pair[1] if last else pair[1])
        )
        return [entry for _, entry in order[:top_k]]

    return asked.trace(replace(SPEC, select=choose)).out


layer_bug(
    "breaks_ties_differently_at_every_call",
    "Equal scores come in the order in which threads finish, so that two runs select different entries.",
    "https://github.com/flashinfer-ai/flashinfer/issues/2584",
    "https://github.com/flashinfer-ai/flashinfer/pull/3095",
    kinds=CSA,
    answer=_ties_by_turns,
)


@bug("layer", "https://github.com/vllm-project/vllm-ascend/issues/9496", kinds=SLIDING_FIRST)
def rounds_with_the_batch(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """Numbers are added up in another order where there are more rows; far within the budget."""
    out = _answer(hidden, weights, geometry, positions, documents)
    return out * (1 + torch.finfo(out.dtype).eps) if len(out) > 1 else out


# MANNERS


@bug("layer", kinds=SLIDING_FIRST)
def centres_hidden_in_place(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """The caller's hidden states are used as scratch memory, after all is done."""
    out = _answer(hidden, weights, geometry, positions, documents)
    hidden.sub_(1)
    return out


@bug("layer", kinds=SLIDING_FIRST)
def scales_the_sink_in_place(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """A weight is prepared in place at every call, so that only the first is right."""
    out = _answer(hidden, weights, geometry, positions, documents)
    weights.attn_sink.add_(1)
    return out


@bug("layer", kinds=SLIDING_FIRST)
def replaces_minus_infinity_in_place(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """Sinks are made finite in place for a kernel that wants them so; the softmax stays the same."""
    weights.attn_sink.clamp_(min=torch.finfo(hidden.dtype).min)
    return _answer(hidden, weights, geometry, positions, documents)


@bug("layer", kinds=SLIDING_FIRST)
def draws_random_numbers(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """A dropout of probability 0 draws from the global generator."""
    torch.rand(1)
    return _answer(hidden, weights, geometry, positions, documents)


_buffers: dict[tuple[int, ...], Tensor] = {}


@bug("layer", kinds=SLIDING_FIRST)
def reuses_its_buffer(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """Every output of a shape is written to the same memory."""
    out = _answer(hidden, weights, geometry, positions, documents)
    return _buffers.setdefault(tuple(out.shape), torch.empty_like(out)).copy_(out)


_answers: dict[tuple[object, ...], Tensor] = {}


@bug("layer", kinds=SLIDING_FIRST)
def remembers_shapes(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """Answers are kept by the shape of the question, not by its numbers."""
    key = (geometry, tuple(hidden.shape), *positions.flatten().tolist(), *documents.flatten().tolist())
    if key not in _answers:
        _answers[key] = _answer(hidden, weights, geometry, positions, documents)
    return _answers[key].clone()


# GRADIENTS


@bug("layer", kinds=SLIDING_FIRST)
def detaches_hidden(
    hidden: Tensor, weights: LayerWeights, geometry: Geometry, positions: Tensor, documents: Tensor
) -> Tensor:
    """The path of autograd to the hidden states is cut, though gradients are declared."""
    return _answer(hidden.detach(), weights, geometry, positions, documents)


detaches_hidden.capabilities = Capabilities(gradients=True)  # type: ignore[attr-defined]

gives_the_sink_no_gradient = layer_bug(
    "gives_the_sink_no_gradient",
    "The fused backward pass returns no gradient for the sink.",
    kinds=SLIDING_FIRST,
    rules=lambda document, geometry: replace(
        SPEC, attend=lambda q, keys, sink, scale: attend(q, keys, sink.detach(), scale)
    ),
)
gives_the_sink_no_gradient.capabilities = Capabilities(gradients=True)  # type: ignore[attr-defined]


class _LosesItsOutput(torch.autograd.Function):
    """A softmax times its values whose backward pass reads an output that was rotated in place meanwhile."""

    @staticmethod
    def forward(
        context: torch.autograd.function.FunctionCtx, logits: Tensor, sink: Tensor, keys: Tensor
    ) -> Tensor:
        """Attend as it should be."""
        probabilities = torch.cat((logits, sink[:, None]), 1).softmax(1)[:, :-1]
        context.save_for_backward(probabilities, sink, keys)
        return probabilities @ keys

    @staticmethod
    def backward(
        context: torch.autograd.function.FunctionCtx, *grads: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take the sum of output times gradient from an output whose channels are no longer the same."""
        probabilities, _, keys = context.saved_tensors  # type: ignore[attr-defined]
        (grad,) = grads
        destroyed = (probabilities @ keys).roll(1, -1)
        delta = (destroyed * grad).sum(-1, keepdim=True)
        rest = 1 - probabilities.sum(1)
        return probabilities * (grad @ keys.T - delta), -rest * delta[:, 0], probabilities.T @ grad


def _attend_losing(q: Tensor, keys: Tensor, sink: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out: Tensor = _LosesItsOutput.apply(scale * (q @ keys.T), sink, keys)  # type: ignore[no-untyped-call]
    return out, attend(q, keys, sink, scale)[1].detach()


loses_its_output = layer_bug(
    "rotates_back_in_place_what_the_backward_pass_needs",
    "The inverse rotation overwrites the output that the backward pass of the softmax has kept.",
    "https://github.com/NVIDIA/Megatron-LM/issues/4468",
    kinds=SLIDING_FIRST,
    rules=lambda document, geometry: replace(SPEC, attend=_attend_losing),
)
loses_its_output.capabilities = Capabilities(gradients=True)  # type: ignore[attr-defined]
