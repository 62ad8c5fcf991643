"""Decoding is the prefill's rule: how a stack's tokens are divided into calls changes nothing."""
# ruff: noqa: D103

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles import TOLERANCE, error
from stack_rules import RULES
from stacks import DrawnStack, make_stack

from csa_spec.spec import Document, Yarn
from csa_spec.spec.v41 import STACK_SPEC, StackDocumentTrace, attend_stack_document, stack_weights

STACK: dict[str, Any] = {
    "compress_ratios": [0, 3, 3, 2, 2, 1, 1, 1],
    "kv_source_layers": [1, 3, 5],
    "index_source_layers": [1, 3, 5, 6, 7],
    "candidate_source_layer": 5,
    "candidate_blocks": 2,
    "candidate_block_size": 2,
    "top_k": 3,
    "window": 3,
    "yarn": Yarn(4.0, 16),
}
CHUNKS = {
    "token by token": (),
    "a prefill inside a group": (4,),
    "chunks that begin inside groups": (1, 4, 5),
    "a prefill of whole groups": (6,),
    "all at once": (13,),
}


def made(start: int = 0) -> DrawnStack:
    return make_stack(f"13@{start}", **STACK)


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_any_division_into_calls_gives_what_one_call_gives(chunks: tuple[int, ...], start: int) -> None:
    stack = made(start)
    assert error(stack.decode(*chunks), stack.run().out[:, 0]) <= TOLERANCE


def extend(stack: DrawnStack, past: StackDocumentTrace | None, begin: int, end: int) -> StackDocumentTrace:
    weights = stack_weights(stack.geometry, stack.named)
    document = Document(0, 0, 13, 0)
    return attend_stack_document(stack.hidden[:, 0, begin:end], document, weights, stack.geometry, past=past)


@pytest.mark.parametrize("kept", [1, 4, 6, 7])
def test_tokens_are_taken_back_by_going_on_from_an_earlier_trace(kept: int) -> None:
    stack = made()
    past = extend(stack, None, 0, kept)
    other = replace(stack, hidden=-stack.hidden)
    rejected = extend(other, past, kept, kept + 2)
    assert len(rejected.layers[1].context.hidden) == kept + 2
    again = extend(stack, past, kept, 13)
    assert error(again.out, stack.run().out[:, 0, kept:]) <= TOLERANCE


def test_what_was_published_is_never_changed_by_later_tokens() -> None:
    stack = made()
    early, late = extend(stack, None, 0, 8), extend(stack, None, 0, 13)
    compared = 0
    for before, after in zip(early.layers, late.layers, strict=True):
        for name in ("entries", "index_keys"):
            ours, theirs = getattr(before.published, name), getattr(after.published, name)
            if ours is not None:
                compared += 1
                assert error(ours, theirs[: len(ours)]) <= TOLERANCE
        if before.published.picks is not None:
            assert after.published.picks is not None
            assert before.published.picks == {t: after.published.picks[t] for t in range(8)}
    assert compared == 6


def test_one_token_is_answered_from_the_calls_before_it() -> None:
    stack = made()
    past = extend(stack, None, 0, 7)
    step = extend(stack, past, 7, 8)
    assert step.out.shape == (8, 1, 7)
    for before, layer in zip(past.layers, step.layers, strict=True):
        assert torch.equal(layer.context.window_keys[:7], before.context.window_keys)
        assert [query.t for query in layer.queries] == [7]
        assert layer.context.document.length == 8


def test_the_defect_of_the_official_decode_needs_another_layer_that_publishes_later() -> None:
    wrong = replace(STACK_SPEC, **RULES["keys of whoever published last"])
    owners: dict[str, Any] = {"kv_source_layers": [1, 3], "index_source_layers": [1, 3], "top_k": 2}
    stack = make_stack("13", compress_ratios=[0, 2, 2, 1, 1], **owners)
    assert error(stack.run(wrong).out, stack.run().out) <= TOLERANCE
    differ = (stack.decode(4, spec=wrong) - stack.decode(4)).abs().amax(dim=(1, 2)) > 1e-3
    assert differ.tolist() == [False, True, True, False, False]
    alone = make_stack("13", compress_ratios=[2, 2], kv_source_layers=[0], index_source_layers=[0], top_k=2)
    assert error(alone.decode(4, spec=wrong), alone.decode(4)) <= TOLERANCE
