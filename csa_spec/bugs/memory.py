"""Stages that are right where tensors are packed and alone in memory, and wrong on views."""
# ruff: noqa: D102 - Cache says what its methods do

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from csa_spec.bugs.calls import (
    AttendCall,
    CompressorCall,
    IndexScoresCall,
    SelectCall,
    attend_bug,
    compressor_bug,
    index_scores_bug,
    select_bug,
)
from csa_spec.bugs.layer_side_effects import LayerCall, whole_layer
from csa_spec.bugs.stream import Cache, wrong_stream

FLASH_ATTENTION = "https://github.com/Dao-AILab/flash-attention/pull/2670"
TRANSFORMER_ENGINE = "https://github.com/NVIDIA/TransformerEngine/issues/1195"
FLAG_GEMS = "https://github.com/flagos-ai/FlagGems/issues/5896"
TORCH = "https://github.com/pytorch/pytorch/pull/187506"
MEGATRON = "https://github.com/NVIDIA/Megatron-LM/issues/251"
TOKENSPEED = "https://github.com/lightseekorg/tokenspeed/pull/683"
VLLM = "https://github.com/vllm-project/vllm/pull/45466"


def whole_memory(tensor: Tensor) -> Tensor:
    """Return all memory that a tensor is a view of, as numbers of its dtype."""
    return tensor.detach().new_empty(0).set_(tensor.untyped_storage())


def read_at(tensor: Tensor, strides: tuple[int, ...], first: int) -> Tensor:
    """Read a tensor from its memory by other strides; past the end it goes on at the beginning."""
    places = torch.tensor(first)
    for size, stride in zip(tensor.shape, strides, strict=True):
        places = places[..., None] + stride * torch.arange(size)
    memory = whole_memory(tensor)
    return memory[places % max(1, len(memory))] if tensor.numel() else tensor


def packed(tensor: Tensor) -> Tensor:
    """Read a tensor as if it were contiguous."""
    strides = [math.prod(tensor.shape[dimension + 1 :]) for dimension in range(tensor.dim())]
    return read_at(tensor, tuple(strides), int(tensor.storage_offset()))


def write_behind(tensor: Tensor) -> None:
    """Write a zero behind the last element of a tensor, if there is memory that is not the tensor's own."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    behind = tensor.storage_offset() + sum((size - 1) * stride for size, stride in sizes) + 1
    if tensor.numel():
        whole_memory(tensor)[behind : behind + 1] = 0


# ATTEND

attend_bug(
    "reads_q_and_kv_as_packed",
    "Queries and keys are read with the strides of contiguous tensors, whatever their strides are.",
    FLASH_ATTENTION,
    TRANSFORMER_ENGINE,
    q=lambda call: packed(call.q),
    kv=lambda call: packed(call.kv),
)
attend_bug(
    "reads_keys_alone_as_packed",
    "Only the strides of the queries are passed to the kernel, which takes the keys for contiguous.",
    FLAG_GEMS,
    kv=lambda call: packed(call.kv),
)
attend_bug(
    "takes_channels_for_adjacent",
    "All strides but the last are passed to the kernel, which takes the last for 1.",
    TORCH,
    kv=lambda call: read_at(call.kv, (*call.kv.stride()[:-1], 1), int(call.kv.storage_offset())),
)
attend_bug(
    "reads_from_the_beginning_of_the_memory",
    "The kernel gets the address of the memory, not of the first element, so that offsets are ignored.",
    kv=lambda call: read_at(call.kv, call.kv.stride(), 0),
)
attend_bug(
    "reads_from_the_aligned_address_below",
    "Queries are loaded 16 bytes at a time, from the multiple of 16 below the address of the first.",
    TOKENSPEED,
    VLLM,
    q=lambda call: read_at(call.q, call.q.stride(), _aligned(call.q)),
)


def _aligned(tensor: Tensor) -> int:
    step = 16 // tensor.element_size()
    return tensor.storage_offset() // step * step


@attend_bug.function(MEGATRON)
def flattens_its_inputs_by_a_view(call: AttendCall) -> Tensor:
    """Inputs are flattened with `view`, which only contiguous tensors have."""
    return call.right(q=call.q.view(-1).view(call.q.shape), kv=call.kv.view(-1).view(call.kv.shape))


@attend_bug.function()
def checks_the_layout_of_its_queries_only(call: AttendCall) -> Tensor:
    """The fast kernel, which needs contiguous tensors, is chosen by a look at the queries alone."""
    return call.right(indices=packed(call.indices)) if call.q.is_contiguous() else call.right()


@attend_bug.function()
def gives_its_scratch_the_strides_of_the_queries(call: AttendCall) -> Tensor:
    """Outputs are collected in a buffer with the strides of the queries, where expanded rows are one."""
    out = call.right()
    return out[-1:].expand_as(out).clone() if call.q.stride(0) == 0 else out


@attend_bug.function()
def exports_what_requires_grad(call: AttendCall) -> Tensor:
    """Queries are passed on by DLPack without detach, which fails where they require grad."""
    return call.right(q=torch.utils.dlpack.from_dlpack(call.q))


@attend_bug.function()
def clears_the_lane_behind_the_keys(call: AttendCall) -> Tensor:
    """The last, unfinished tile of keys is filled up with zeros in place, in memory behind the keys."""
    out = call.right()
    write_behind(call.kv)
    return out


# SELECT, INDEX_SCORES, COMPRESSOR

select_bug(
    "reads_scores_as_packed",
    "Rows of scores are taken to be as far apart as they are wide.",
    scores=lambda call: packed(call.scores),
)


@select_bug.function()
def marks_the_end_of_the_scores(call: SelectCall) -> Tensor:
    """A sentinel is written behind the last score, so that a loop needs no bound."""
    picks = call.right()
    write_behind(call.scores)
    return picks


index_scores_bug(
    "reads_index_keys_as_packed",
    "Index keys are read as a matrix without gaps, though they are part of a wider record.",
    index_k=lambda call: packed(call.index_k),
)


@index_scores_bug.function()
def joins_rows_and_queries_by_a_view(call: IndexScoresCall) -> Tensor:
    """Rows and queries are made one dimension with `view`, which fails where they are not adjacent."""
    joined = call.index_q.view(-1, *call.index_q.shape[2:])
    return call.right(index_q=joined.view(call.index_q.shape))


@compressor_bug.function()
def reads_weights_in_the_order_of_their_memory(call: CompressorCall) -> Tensor:
    """A weight that is the transpose of another one is read in the order in which it is stored."""
    return call.right(weights=replace(call.weights, wkv=packed(call.weights.wkv)))


compressor_bug(
    "compresses_hidden_states_as_packed",
    "Tokens are taken to be as far apart as they are wide.",
    hidden=lambda call: packed(call.hidden),
)

# LAYERS

whole_layer(
    "reads_hidden_states_as_packed",
    "Hidden states are read with the strides of a contiguous tensor, whatever their strides are.",
    hidden=lambda call: packed(call.hidden),
)


@whole_layer.function()
def views_tokens_as_a_matrix(call: LayerCall) -> Tensor:
    """Rows and tokens are made one dimension with `view`, which fails where they are not adjacent."""
    return call.right(hidden=call.hidden.view(-1, call.hidden.shape[-1]).view(call.hidden.shape))


@whole_layer.function()
def pads_hidden_states_in_place(call: LayerCall) -> Tensor:
    """Hidden states are filled up to a whole tile in place, in memory behind them."""
    out = call.right()
    write_behind(call.hidden)
    return out


# STREAMS


@wrong_stream()
class CopiesTokensAsPacked(Cache):
    """The tokens of a call are copied to the cache as one block of memory."""

    def extend(self, hidden: Tensor) -> Tensor:
        return super().extend(packed(hidden))


@wrong_stream()
class PadsTheTokensOfACallInPlace(Cache):
    """The tokens of a call are filled up to a whole tile in place, in memory behind them."""

    def extend(self, hidden: Tensor) -> Tensor:
        out = super().extend(hidden)
        write_behind(hidden)
        return out
