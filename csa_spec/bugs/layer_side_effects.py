"""Layers whose output has the wrong form or breaks a law, with side effects or wrong gradients."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from csa_spec.bugs.bug import COMPRESSED, CSA, GRADIENTS, DocumentCall, following, layer_bug
from csa_spec.bugs.calls import Call, StageBugs
from csa_spec.bugs.rules import last_of_a_tie
from csa_spec.spec import SPEC, Geometry, LayerKind, LayerWeights
from csa_spec.spec.attention import attend

SLIDING_FIRST = (LayerKind.SLIDING, LayerKind.HCA, LayerKind.CSA)


@dataclass(frozen=True, slots=True)
class LayerCall(Call):
    """A call of a layer, as in :class:`csa_spec.plug.candidate.LayerStage`."""

    hidden: Tensor
    weights: LayerWeights
    geometry: Geometry
    positions: Tensor
    documents: Tensor
    stage = "layer"
    implementation = staticmethod(following(SPEC))


whole_layer = StageBugs(LayerCall, SLIDING_FIRST)

# FORM


@whole_layer.function(kinds=COMPRESSED)
def raises_on_a_tail(call: LayerCall) -> Tensor:
    """Lengths that are no multiple of the ratio raise an error, but this is not declared."""
    tokens, ratio = call.hidden.shape[1], call.geometry.compress_ratio
    if tokens % ratio:
        raise ValueError(f"{tokens} tokens are no multiple of {ratio}")
    return call.right()


@whole_layer.function()
def returns_nothing(call: LayerCall) -> None:
    """The output is written somewhere and not returned."""
    call.right()


joins_rows = whole_layer(
    "joins_rows",
    "The output is [B * S, hidden], the token-major layout of many kernels.",
    answer=lambda call: call.right().flatten(0, 1),
)
returns_float64 = whole_layer(
    "returns_float64",
    "The output is not converted back to the dtype of the hidden states.",
    answer=lambda call: call.right().double(),
)


@whole_layer.function()
def infinite_at_first(call: LayerCall) -> Tensor:
    """The output overflows at the first column every time, which is wrong but breaks no law."""
    out = call.right()
    out[:, 0] = math.inf
    return out


# LAWS: wrong in a way that needs no specification to see.


@whole_layer.function()
def adds_the_batch_mean(call: LayerCall) -> Tensor:
    """The mean over the batch is added, so that rows leak into each other."""
    out = call.right()
    return out + out.mean(0, keepdim=True)


@whole_layer.function()
def multiplies_rows_by_their_number(call: LayerCall) -> Tensor:
    """The number of a row in the batch gets into its output."""
    out = call.right()
    return out * torch.arange(1, len(out) + 1, dtype=out.dtype)[:, None, None]


scales_logits_by_the_length_of_the_sequence = layer_bug(
    "scales_logits_by_the_length_of_the_sequence",
    "The softmax scale grows with the length of the sequence, so that it depends on tokens still to come.",
    kinds=SLIDING_FIRST,
    answer=lambda call: call.follow(softmax_scale=lambda g: g.scale * math.log(1 + call.document.length)),
)

_calls = itertools.count()


def _one_unit_off(out: Tensor) -> Tensor:
    """Return an output that is rounded differently, far within the tolerance."""
    return out * (1 + torch.finfo(out.dtype).eps)


@whole_layer.function()
def rounds_differently_in_every_second_call(call: LayerCall) -> Tensor:
    """Atomic operations sum in another order in every call; the difference is far within the tolerance."""
    return _one_unit_off(call.right()) if next(_calls) % 2 else call.right()


@layer_bug.function(
    "https://github.com/flashinfer-ai/flashinfer/issues/2584",
    "https://github.com/flashinfer-ai/flashinfer/pull/3095",
    kinds=CSA,
)
def breaks_ties_differently_at_every_call(call: DocumentCall) -> Tensor:
    """Equal scores come in the order in which threads finish, so that two runs select different entries."""
    return call.follow(select=last_of_a_tie if next(_calls) % 2 else SPEC.select)


@whole_layer.function("https://github.com/vllm-project/vllm-ascend/issues/9496")
def rounds_differently_in_a_batch(call: LayerCall) -> Tensor:
    """The order of summation depends on the number of rows; the difference is far within the tolerance."""
    return _one_unit_off(call.right()) if len(call.hidden) > 1 else call.right()


# SIDE EFFECTS


@whole_layer.function()
def centres_hidden_in_place(call: LayerCall) -> Tensor:
    """The caller's hidden states are changed in place, after all is computed."""
    out = call.right()
    call.hidden.sub_(1)
    return out


@whole_layer.function()
def scales_the_sink_in_place(call: LayerCall) -> Tensor:
    """A weight is prepared in place at every call, so that only the first call is right."""
    out = call.right()
    call.weights.attn_sink.add_(1)
    return out


@whole_layer.function()
def replaces_minus_infinity_in_place(call: LayerCall) -> Tensor:
    """Sinks are made finite in place for a kernel that needs finite ones; the softmax stays the same."""
    call.weights.attn_sink.clamp_(min=torch.finfo(call.hidden.dtype).min)
    return call.right()


@whole_layer.function()
def draws_random_numbers(call: LayerCall) -> Tensor:
    """A dropout of probability 0 draws from the global random generator."""
    torch.rand(1)
    return call.right()


_buffers: dict[tuple[int, ...], Tensor] = {}


@whole_layer.function()
def reuses_its_buffer(call: LayerCall) -> Tensor:
    """All outputs of one shape are written to the same memory."""
    out = call.right()
    return _buffers.setdefault(tuple(out.shape), torch.empty_like(out)).copy_(out)


_outputs: list[Tensor] = []


@whole_layer.function()
def keeps_every_output(call: LayerCall) -> Tensor:
    """Outputs are appended to a list for debugging, so that memory grows with every call."""
    _outputs.append(call.right())
    return _outputs[-1].clone()


_answers: dict[tuple[object, ...], Tensor] = {}


@whole_layer.function()
def remembers_answers_by_shape(call: LayerCall) -> Tensor:
    """Answers are remembered by the shape of the hidden states, not by their numbers."""
    numbers = (*call.positions.flatten().tolist(), *call.documents.flatten().tolist())
    key = (call.geometry, tuple(call.hidden.shape), *numbers)
    if key not in _answers:
        _answers[key] = call.right()
    return _answers[key].clone()


# GRADIENTS

detaches_hidden = whole_layer(
    "detaches_hidden",
    "The hidden states get no gradient, although gradients are declared.",
    declares=GRADIENTS,
    hidden=lambda call: call.hidden.detach(),
)
layer_bug(
    "gives_the_sink_no_gradient",
    "The fused backward pass returns no gradient for the sink.",
    kinds=SLIDING_FIRST,
    declares=GRADIENTS,
    answer=lambda call: call.follow(
        attend=lambda q, keys, sink, scale: attend(q, keys, sink.detach(), scale)
    ),
)


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


layer_bug(
    "rotates_in_place_the_output_that_the_backward_pass_needs",
    "The inverse rotation overwrites the output that the backward pass of the softmax has kept.",
    "https://github.com/NVIDIA/Megatron-LM/issues/4468",
    kinds=SLIDING_FIRST,
    declares=GRADIENTS,
    answer=lambda call: call.follow(attend=_attend_losing),
)
