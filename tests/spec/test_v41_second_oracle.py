"""The specification of stacks and an independent second oracle compute the same on drawn stacks, step by step.

Where scores of two entries or blocks are nearly equal, two right evaluations may part. The second oracle is then
told what the specification chose, and how often that happens is counted.
"""
# ruff: noqa: D103

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
import second_oracle_v41
import torch
from oracles import TOLERANCE, error
from safetensors.numpy import load_file
from stacks import VECTORS, Array, DrawnStack, draw_stack, make_stack

from csa_spec.spec.v41 import LayerRole, LayerTrace, StackDocumentTrace, StackTrace
from csa_spec.vectors.figures import TOLERANCE as OF_FIGURES

NEAR = 1e-9
"""Gaps between scores below this share of the largest are near ties; rounding moves scores far less."""

INDEX: list[dict[str, Any]] = json.loads((VECTORS / "index.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("entry", INDEX, ids=lambda entry: entry["file"])
def test_the_second_oracle_reproduces_every_official_figure(entry: dict[str, Any]) -> None:
    tensors = load_file(VECTORS / entry["file"])
    g = entry["geometry"]
    g = g | {"top_k": g["topk"], "rope_theta": g["theta"], "compress_rope_theta": g["compress_theta"]}
    layers = len(g["compress_ratios"])
    weights: list[dict[str, Array]] = [
        {
            name.removeprefix(f"weights.layer{layer}."): array.astype(np.float64)
            for name, array in tensors.items()
            if name.startswith(f"weights.layer{layer}.")
        }
        for layer in range(layers)
    ]
    compared = 0
    for case in entry["cases"]:
        recorded = [
            {
                name.partition(f"layer{layer}.")[2]: array
                for name, array in tensors.items()
                if name.startswith(f"case{case['case']}.layer{layer}.")
            }
            for layer in range(layers)
        ]
        for row in range(case["B"]):
            hidden = np.stack([figures["x"][row] for figures in recorded])
            for result, figures in zip(second_oracle_v41.stack(hidden, weights, g), recorded, strict=True):
                compared += _compare_figures(result, figures, row)
    assert compared >= 5 * layers * len(entry["cases"])


def _compare_figures(result: second_oracle_v41.LayerResult, figures: dict[str, Array], row: int) -> int:
    names = {
        "y": "out", "y_prefill_then_decode": "out", "window_kv": "window_kv", "latent": "latent",
        "entries": "entries", "index_keys": "index_keys", "index_q": "index_q", "scores": "scores",
        "block_scores": "block_scores", "core.q": "q", "core.o": "core_out",
    }  # fmt: skip
    compared = 0
    for name, attribute in names.items():
        if name in figures:
            ours, theirs = getattr(result, attribute), figures[name][row]
            assert ours.shape == theirs.shape, name
            finite = np.isfinite(theirs)
            assert (ours[~finite] == theirs[~finite]).all(), name
            assert np.abs(ours[finite] - theirs[finite]).max(initial=0.0) <= OF_FIGURES, name
            compared += 1
    if "candidates" in figures:
        assert (result.candidates == figures["candidates"][row].astype(bool)).all()
    if "picks" in figures:
        assert result.picks is not None
        for mask, picks in zip(result.picks, figures["picks"][row], strict=True):
            assert np.flatnonzero(mask).tolist() == [s for s in picks if s >= 0]
    return compared


def test_drawn_stacks_agree_at_every_step() -> None:
    counted: Counter[str] = Counter()
    for seed in range(500):
        _compare(draw_stack(seed), counted)
    # Agreement means something only where stacks have what could go wrong.
    least = {
        "queries that choose": 2000, "restricted queries that lose a pick": 80, "exact ties of entries": 200,
        "exact ties of blocks": 50, "owner and index source differ": 70, "owners of two ratios": 60,
        "incomplete groups": 100, "negative scores picked": 300,
        "fewer visible than top_k": 1000, "token in window and entry": 500,
    }  # fmt: skip
    short = {name: counted[name] for name, number in least.items() if counted[name] < number}
    assert short == {}
    assert counted["near ties"] == 0


def test_long_documents_agree_too() -> None:
    # From 64 items on, the specification works on many at once.
    counted: Counter[str] = Counter()
    for ratio in (1, 2):
        stack = make_stack(
            "150",
            seed=ratio,
            compress_ratios=[ratio] * 3,
            kv_source_layers=[0],
            index_source_layers=[0, 1],
            candidate_source_layer=0,
            candidate_blocks=5,
            candidate_block_size=4,
            top_k=8,
            window=70,
        )
        _compare(stack, counted)
    assert counted["restricted queries that lose a pick"] >= 50


def _compare(stack: DrawnStack, counted: Counter[str]) -> None:
    trace = stack.run()
    told = False
    for document in trace.documents:
        told |= _compare_document(stack, document, counted)
    _count_layers(stack, trace, counted)
    if not told:
        assert error(trace.out, stack.second(), _scale(trace.out)) <= TOLERANCE


def _compare_document(stack: DrawnStack, trace: StackDocumentTrace, counted: Counter[str]) -> bool:
    """Return whether the second oracle had to be told a choice."""
    place = trace.document
    picks: dict[int, list[list[int]]] = {}
    candidates = None
    for layer, of_layer in enumerate(trace.layers):
        if _too_close(of_layer, stack, counted):
            picks[layer] = [query.selection for query in of_layer.queries]
            if layer == stack.geometry.candidate_source_layer:
                candidates = [query.blocks.candidates for query in of_layer.queries if query.blocks]
    results = second_oracle_v41.stack(
        stack.hidden[:, place.row, place.columns].numpy(),
        stack.arrays(),
        dataclasses.asdict(stack.geometry),
        place.start,
        picks,
        candidates,
    )
    for of_layer, result in zip(trace.layers, results, strict=True):
        _compare_layer(of_layer, result)
    return bool(picks)


def _compare_layer(trace: LayerTrace, result: second_oracle_v41.LayerResult) -> None:
    context, queries = trace.context, trace.queries
    assert error(context.window_keys, result.window_kv) <= TOLERANCE
    assert error(torch.stack([query.q for query in queries]), result.q) <= TOLERANCE
    if context.role is LayerRole.OWNER:
        for ours, theirs in (
            (context.latents, result.latent), (context.entries, result.entries),
            (context.index_keys, result.index_keys),
        ):  # fmt: skip
            assert theirs is not None
            assert error(ours, theirs) <= TOLERANCE
    for query in queries:
        if result.scores is not None:
            theirs = result.scores[query.t]
            assert query.visible == np.flatnonzero(theirs > -np.inf).tolist()
            scale = max(1e-30, float(np.abs(theirs[query.visible]).max(initial=0.0)))
            assert error(query.scores, theirs[query.visible], scale) <= 1e-9
        if result.picks is not None:
            assert query.selection == np.flatnonzero(result.picks[query.t]).tolist()
        if query.blocks is not None:
            assert result.candidates is not None
            assert query.blocks.candidates == np.flatnonzero(result.candidates[query.t]).tolist()
    core = torch.stack([query.core for query in queries])
    assert error(core, result.core_out) <= TOLERANCE
    assert error(trace.out, result.out, _scale(trace.out)) <= TOLERANCE


def _scale(out: torch.Tensor) -> float:
    # Outputs are of the order of 1, but small whole numbers may cancel to nothing.
    return max(1.0, float(out.abs().max()))


def _too_close(trace: LayerTrace, stack: DrawnStack, counted: Counter[str]) -> bool:
    """Count what a layer's queries did; True if one of them chose between scores that rounding may swap."""
    near = False
    source = trace.sources.candidates is not None
    for query in trace.queries:
        if trace.context.role is not LayerRole.SLIDING:
            counted["fewer visible than top_k"] += 0 < len(query.visible) < stack.geometry.top_k
            ratio = stack.geometry.compress_ratios[trace.context.layer]
            both = {s * ratio for s in query.selection} & set(query.window)
            counted["token in window and entry"] += bool(both)
        if not len(query.scores):
            continue
        score_of = dict(zip(query.visible, query.scores.tolist(), strict=True))
        largest = max(map(abs, score_of.values()))
        counted["queries that choose"] += query.margin is not None
        counted["exact ties of entries"] += query.margin == 0.0
        counted["negative scores picked"] += any(score_of[s] < 0 for s in query.selection)
        if source:
            free = sorted(score_of, key=lambda s: (-score_of[s], s))[: stack.geometry.top_k]
            counted["restricted queries that lose a pick"] += set(free) != set(query.selection)
        near |= query.margin is not None and 0 < query.margin < NEAR * largest
        if query.blocks is not None:
            ranked = sorted(query.blocks.scores, reverse=True)
            kept = len(query.blocks.kept)
            if kept < len(ranked):
                gap = ranked[kept - 1] - ranked[kept]
                counted["exact ties of blocks"] += gap == 0.0
                near |= 0 < gap < NEAR * largest
    # Of whole numbers, equal scores may differ by a rounding in one order of summation and not in another.
    counted["near ties"] += near
    return near


def _count_layers(stack: DrawnStack, trace: StackTrace, counted: Counter[str]) -> None:
    g, first = stack.geometry, trace.documents[0]
    for layer in first.layers:
        sources, role = layer.sources, layer.context.role
        counted["owner and index source differ"] += (
            role is LayerRole.REUSE and sources.entries != sources.picks
        )
    counted["owners of two ratios"] += len({g.compress_ratios[owner] for owner in g.kv_source_layers}) > 1
    counted["incomplete groups"] += any(
        first.document.length % ratio for ratio in g.compress_ratios if ratio
    )
