"""What a contributor would write instead: a grid of random normal inputs, compared with allclose.

It is the style of the kernels' own tests: a few shapes, one draw each, one tolerance for all elements. The
figures to compare with are the specification's, so it is better off than most of them.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from csa_spec.bugs import find_bug
from csa_spec.engine.trial import main_output
from csa_spec.plug.call import Request
from csa_spec.plug.candidate import Candidate
from csa_spec.selftest.subjects import kinds_of
from csa_spec.spec import SPEC, LayerKind, attend_batch, compress
from csa_spec.stages import STAGES
from csa_spec.stages.cache.case import CacheCase, make_cache_inputs
from csa_spec.stages.cache.stream import Call
from csa_spec.stages.layer.case import LayerCase, Row, Sinks, Values
from csa_spec.stages.layer.inputs import make_inputs

TOLERANCE = 1e-3
_RATIOS = {"csa": 4, "hca": 8, "sliding": 1}


@dataclass(frozen=True, slots=True)
class GridResult:
    """What the grid says of one bug in one layer kind or stage."""

    bug: str
    found: bool
    cases: int
    seconds: float
    """CPU time up to the first failing case, or of all"""


def try_grids(names: Sequence[str]) -> list[GridResult]:
    """Run the grid on bugs, each in its plainest layer kind."""
    return [try_grid(name, kinds_of(find_bug(name))[0]) for name in names]


def try_grid(name: str, kind: str) -> GridResult:
    """Run the grid on a bug, up to the first case that differs."""
    bug, begin, cases = find_bug(name), time.process_time(), 0
    for arguments, expected in _grid(bug.stage, kind):
        cases += 1
        if not _agrees(bug.candidate, bug.stage, arguments, expected):
            return GridResult(name, True, cases, time.process_time() - begin)
    return GridResult(name, False, cases, time.process_time() - begin)


def _agrees(candidate: Candidate, stage: str, arguments: Mapping[str, Any], expected: Tensor) -> bool:
    try:
        got = main_output(candidate.ask(Request(stage, arguments, through=STAGES[stage].trial.through)))
        assert isinstance(got, Tensor)
        if stage == "select":  # as sets
            got = got.sort(-1).values
        torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=TOLERANCE)
    except Exception:
        return False
    return True


@cache
def _grid(stage: str, kind: str) -> list[tuple[Mapping[str, Any], Tensor]]:
    torch.manual_seed(0)
    return list(_GRIDS[stage](kind))


def _layers(kind: str) -> Iterator[LayerCase]:
    top_ks = (2, 8) if kind == LayerKind.CSA else (2,)  # others have no use for it
    for rows, tokens, top_k in itertools.product((1, 2), (1, 16, 33), top_ks):
        yield LayerCase(
            kind=LayerKind(kind),
            compress_ratio=_RATIOS[kind],
            top_k=top_k,
            window=8,
            hidden=32,
            heads=4,
            head_dim=16,
            rope_dim=8,
            q_lora_rank=16,
            index_heads=4,
            index_head_dim=16,
            o_groups=2,
            o_lora_rank=8,
            rows=(Row((tokens,)),) * rows,
            values=Values.GAUSSIAN,
            sinks=Sinks.DRAWN,
        )


def _layer(kind: str) -> Iterator[tuple[Mapping[str, Any], Tensor]]:
    for case in _layers(kind):
        inputs = make_inputs(case)
        exact = inputs.double()
        trace = attend_batch(exact.hidden, exact.weights, case.geometry, exact.positions, exact.documents)
        yield inputs.arguments(case.geometry), trace.out.to(inputs.hidden.dtype)


def _cache(kind: str) -> Iterator[tuple[Mapping[str, Any], Tensor]]:
    """One prefill, then token by token."""
    for layer in _layers(kind):
        (tokens,) = layer.rows[0].lengths
        calls = tuple(Call.parse(count) for count in (str(tokens), "1", "1", "1", "1"))
        case = CacheCase(**layer.layer, batch=len(layer.rows), calls=calls)
        arguments = make_cache_inputs(case)
        hidden = torch.cat([arguments[f"tokens {number}"] for number in range(5)], dim=1)
        positions = torch.arange(hidden.shape[1]).expand(len(hidden), -1)
        exact = make_inputs(case.one_document(1)).double()
        out = attend_batch(
            hidden.double(), exact.weights, case.geometry, positions, torch.zeros_like(positions)
        ).out.to(hidden.dtype)
        parts = torch.split(out, [tokens, 1, 1, 1, 1], dim=1)
        yield arguments, torch.cat([part.flatten(0, 1) for part in parts])


def _attend(kind: str) -> Iterator[tuple[Mapping[str, Any], Tensor]]:
    for rows, queries, keys, picks in itertools.product((1, 2), (1, 62), (128,), (16, 64)):
        q, kv = torch.randn(rows, queries, 4, 16), torch.randn(rows, keys, 16)
        indices = torch.rand(rows, queries, keys).argsort(-1)[..., :picks]
        indices[:, :, picks - 3 :] = -1  # some that are not valid, at the end
        sinks, scale = torch.randn(4), 1 / math.sqrt(16)
        out = torch.zeros_like(q)
        for b, t in itertools.product(range(rows), range(queries)):
            named = indices[b, t][indices[b, t] >= 0]
            out[b, t] = SPEC.attend(q[b, t].double(), kv[b, named].double(), sinks.double(), scale)[0]
        yield {"q": q, "kv": kv, "indices": indices, "sinks": sinks, "scale": scale}, out


def _select(kind: str) -> Iterator[tuple[Mapping[str, Any], Tensor]]:
    for rows, queries, entries, top_k in itertools.product((1, 2), (1, 32), (64,), (4, 16)):
        scores = torch.randn(rows, queries, entries)
        positions = (4 * entries - queries + torch.arange(queries)).expand(rows, -1)
        picks = torch.full((rows, queries, top_k), -1)
        for b, t in itertools.product(range(rows), range(queries)):
            visible = SPEC.visible_entries(int(positions[b, t]), 4)
            picks[b, t] = torch.tensor(SPEC.select(visible, scores[b, t, : len(visible)].tolist(), top_k))
        arguments = {"scores": scores, "positions": positions, "compress_ratio": 4, "top_k": top_k}
        yield arguments, picks.sort(-1).values


def _index_scores(kind: str) -> Iterator[tuple[Mapping[str, Any], Tensor]]:
    for rows, queries, entries in itertools.product((1, 2), (1, 32), (16, 64)):
        q, k, w = (
            torch.randn(rows, queries, 4, 16),
            torch.randn(rows, entries, 16),
            torch.randn(rows, queries, 4),
        )
        expected = torch.einsum("bsh,bsht->bst", w, torch.einsum("bshd,btd->bsht", q, k).relu())
        yield {"index_q": q, "index_k": k, "head_weights": w}, expected


def _compressor(kind: str) -> Iterator[tuple[Mapping[str, Any], Tensor]]:
    for case in [*_layers(LayerKind.CSA), *_layers(LayerKind.HCA)]:
        inputs = make_inputs(case)
        weights = inputs.double().weights.compressor
        assert weights is not None
        frequencies = SPEC.layer_frequencies(case.geometry)
        rows = [compress(row.double(), 0, weights, case.geometry, frequencies) for row in inputs.hidden]
        arguments = {
            "hidden": inputs.hidden,
            "weights": inputs.weights.compressor,
            "geometry": case.geometry,
        }
        yield arguments, torch.stack(rows).to(inputs.hidden.dtype)


_GRIDS: dict[str, Callable[[str], Iterator[tuple[Mapping[str, Any], Tensor]]]] = {
    "layer": _layer,
    "cache": _cache,
    "attend": _attend,
    "select": _select,
    "index_scores": _index_scores,
    "compressor": _compressor,
}
