"""Wrong gradients: the forward pass is right."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from csa_spec.bugs.bug import GRADIENTS
from csa_spec.bugs.calls import AttendCall, CompressorCall, attend_bug, compressor_bug, hadamard


def instead(forward: Tensor, backward: Tensor) -> Tensor:
    """Return the numbers of the first with the gradients of the second."""
    return forward.detach() + (backward - backward.detach())


# ATTEND


@attend_bug.function(declares=GRADIENTS)
def detaches_values(call: AttendCall) -> Tensor:
    """Keys get a gradient through the logits only, and none as values."""
    keys, named = call.gathered()
    return call.attend_to(keys, named, values=keys.detach())


@attend_bug.function(declares=GRADIENTS)
def detaches_keys(call: AttendCall) -> Tensor:
    """Keys get a gradient as values only, and none through the logits."""
    keys, named = call.gathered()
    return call.attend_to(keys.detach(), named, values=keys)


attend_bug(
    "detaches_the_sink",
    "The sink is treated as a constant.",
    declares=GRADIENTS,
    sinks=lambda call: call.sinks.detach(),
)
attend_bug(
    "recomputes_without_the_sink",
    "The backward pass recomputes the probabilities and forgets the sink.",
    declares=GRADIENTS,
    answer=lambda call: instead(call.right(), call.right(sinks=call.no_sinks)),
)


def _scattering_minus_one_to(row: int, call: AttendCall) -> Tensor:
    out = call.right()
    if not call.kv.shape[1]:
        return out
    stray = call.kv[:, row].nan_to_num(0, 0, 0)[:, None] * (call.indices == -1).any(-1, keepdim=True)
    return out + (stray - stray.detach())[:, :, None]


attend_bug(
    "scatters_gradients_of_minus_one_to_the_first_row",
    "The gradient of an index of -1 is added to row 0.",
    declares=GRADIENTS,
    answer=lambda call: _scattering_minus_one_to(0, call),
)
attend_bug(
    "scatters_gradients_of_minus_one_to_the_last_row",
    "The gradient of an index of -1 is added to the last row.",
    declares=GRADIENTS,
    answer=lambda call: _scattering_minus_one_to(-1, call),
)
attend_bug(
    "misses_the_scale",
    "The gradient of the queries lacks the factor `scale`.",
    declares=GRADIENTS,
    q=lambda call: instead(call.q, call.q / call.scale),
)
attend_bug(
    "doubles_the_gradient_of_the_sink",
    "Two programs each add the gradient of the sink.",
    declares=GRADIENTS,
    sinks=lambda call: torch.where(call.sinks.isinf(), call.sinks, instead(call.sinks, 2 * call.sinks)),
)


@attend_bug.function(declares=GRADIENTS)
def keeps_the_key_gradient_of_the_last_head_only(call: AttendCall) -> Tensor:
    """What one head adds to the gradient of the keys is overwritten by the next head."""
    last = call.q.shape[2] - 1
    heads = [
        call.right(
            q=call.q[:, :, h : h + 1],
            kv=call.kv if h == last else call.kv.detach(),
            sinks=call.sinks[h : h + 1],
        )
        for h in range(call.q.shape[2])
    ]
    return torch.cat(heads, dim=2)


@attend_bug.function("https://github.com/NVIDIA/Megatron-LM/issues/4468", declares=GRADIENTS)
def overwrites_the_output_that_the_backward_pass_needs(call: AttendCall) -> Tensor:
    """The output is rotated in place, and the backward pass of the softmax reads the rotated one."""
    out = call.right()
    keys, named = call.gathered()
    terms = call.terms(call.logits(keys, named))
    peak = terms.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(terms.dtype).min)
    exponentials = (terms - peak).exp()
    total = exponentials.sum(-1, keepdim=True)
    summed = torch.einsum("bshn,bsnd->bshd", exponentials[..., :-1], keys.to(terms.dtype))
    # d(summed / total) = (d summed - out d total) / total, with the wrong out
    saved = hadamard(out.detach().to(terms.dtype))
    return instead(out, ((summed - saved * total) / total.detach().clamp(min=1)).to(out.dtype))


@attend_bug.function(declares=GRADIENTS)
def divides_zero_by_zero_behind_a_where(call: AttendCall) -> Tensor:
    """A `where` gives zeros to a query without keys, but the gradient of the softmax behind it is NaN."""
    keys, named = call.gathered()
    logits = call.logits(keys, named)
    has_keys = call.indices.shape[-1] > 0
    share = (logits.logsumexp(-1) - call.sinks.to(logits.dtype)).sigmoid() if has_keys else logits.sum(-1)
    probabilities = logits.softmax(-1) * share[..., None]
    return call.mix(torch.where(named.any(-1)[:, :, None, None], probabilities, 0), keys)


@attend_bug.function(declares=GRADIENTS)
def divides_zero_by_zero_without_keys_and_sink(call: AttendCall) -> Tensor:
    """A `where` hides the NaN of a query without keys and sink, but not that of its gradient."""
    keys, named = call.gathered()
    weights = call.terms(call.logits(keys, named)).softmax(-1)[..., :-1]
    return call.mix(torch.where(named.any(-1)[:, :, None, None], weights, 0), keys)


# COMPRESSOR

compressor_bug(
    "detaches_the_gate",
    "Pooling weights are treated as constants.",
    declares=GRADIENTS,
    answer=lambda call: call.follow(
        weights=replace(call.weights, wgate=call.weights.wgate.detach(), ape=call.weights.ape.detach())
    ),
)
compressor_bug(
    "detaches_the_bias",
    "The position bias is a buffer, which gets no gradient.",
    declares=GRADIENTS,
    answer=lambda call: call.follow(weights=replace(call.weights, ape=call.weights.ape.detach())),
)
compressor_bug(
    "doubles_the_gradient_of_tokens",
    "Each block adds its part of the gradient of the hidden states twice.",
    declares=GRADIENTS,
    answer=lambda call: call.follow(hidden=instead(call.hidden, 2 * call.hidden)),
)


@compressor_bug.function(declares=GRADIENTS)
def gives_the_tail_a_gradient(call: CompressorCall) -> Tensor:
    """The last token gets a gradient even where it completes no block."""
    last = call.hidden[:, -1:].sum(-1, keepdim=True)
    return call.follow() + (last - last.detach())


@compressor_bug.function(declares=GRADIENTS)
def detaches_the_previous_block(call: CompressorCall) -> Tensor:
    """The previous block is read from a buffer of states, which carries no gradient."""
    entries, m = call.follow(), call.geometry.compress_ratio
    if not call.geometry.overlap or not entries.shape[1]:
        return entries
    hidden = [
        torch.cat((call.hidden[:, : s * m].detach(), call.hidden[:, s * m :]), 1)
        for s in range(entries.shape[1])
    ]
    return torch.stack([call.follow(hidden=cut)[:, s] for s, cut in enumerate(hidden)], 1)
