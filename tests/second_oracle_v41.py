"""Second oracle for stacks of DeepSeek-V4.1 attention layers, beside :mod:`second_oracle` for layers of V4.

Written from the rules alone, not from ``csa_spec.spec``, with which it shares no code. It is dense: all tokens of
a document at once, boolean masks over (query, entry) pairs, and four slots that layers overwrite in their order,
as in the official code: entries, index keys, picks, candidates. Rotation, norm and YaRN are V4's second oracle's.

Letters: L layers, S tokens, E hidden size, H heads, D head size, T complete groups of r tokens, z entries a block.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from second_oracle import Array, rope_frequencies
from second_oracle import _rms as rms
from second_oracle import _rotate as rotate

Mask: TypeAlias = npt.NDArray[np.bool_]
Weights: TypeAlias = Mapping[str, Array]


@dataclass(frozen=True)
class LayerResult:
    """What one layer computed on one document; None where it has no such thing."""

    out: Array  # [S, E]
    q: Array  # [S, H, D]
    window_kv: Array  # [S, D]
    latent: Array | None  # [T, D], owners
    entries: Array | None  # [T, D], of the owner that it reads
    index_keys: Array | None  # [T, DI], owners
    index_q: Array | None  # [S, HI, DI], index sources
    scores: Array | None  # [S, T], index sources; -inf where invisible
    block_scores: Array | None  # [S, blocks], the candidate source; inf pinned, -inf nothing visible
    candidates: Mask | None  # [S, T], the candidate source
    picks: Mask | None  # [S, T]
    core_out: Array  # [S, H, D], before the inverse rotation


def highest(scores: Array, count: int) -> Mask:
    """Mark the ``count`` highest scores of each row, the lowest index first among equals, but none of -inf."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    marked = np.zeros(scores.shape, dtype=np.bool_)
    np.put_along_axis(marked, order, True, axis=1)
    return marked & (scores > -np.inf)


def compressed(x: Array, w: Weights, r: int, eps: float) -> Array:
    """Return the latents of an owner, [T, D], pooled and normed."""
    groups = len(x) // r
    content = (x @ w["compressor.wkv"].T)[: groups * r].reshape(groups, r, len(w["compressor.norm"]))
    if r == 1:
        pooled = content[:, 0]
    else:
        gate = (x @ w["compressor.wgate"].T)[: groups * r].reshape(groups, r, len(w["compressor.norm"]))
        share = np.exp(gate - gate.max(axis=1, keepdims=True, initial=-np.inf))
        pooled = (share * content).sum(axis=1) / share.sum(axis=1)
    return rms(pooled, eps) * w["compressor.norm"]


def blocks_of(scores: Array, seen: npt.NDArray[np.integer[Any]], z: int, blocks: int) -> tuple[Array, Mask]:
    """Return the score of each block, [S, NB], and the entries that are candidates, [S, T].

    ``seen`` [S] is how many entries each query sees. Invisible entries have the score -inf already.
    """
    tokens, entries = scores.shape
    number = -(-entries // z)
    padded = np.full((tokens, number * z), -np.inf)
    padded[:, :entries] = scores
    best = padded.reshape(tokens, number, z).max(axis=2, initial=-np.inf)
    for t in range(tokens):
        if seen[t] > 0:
            best[t, (int(seen[t]) - 1) // z] = np.inf
    kept = highest(best, blocks)
    return best, np.repeat(kept, z, axis=1)[:, :entries]


def stack(
    hidden: Array,
    weights: Sequence[Weights],
    geometry: Mapping[str, Any],
    start: int = 0,
    told: Mapping[int, Sequence[Sequence[int]]] | None = None,
    told_candidates: Sequence[Sequence[int]] | None = None,
) -> list[LayerResult]:
    """Compute a stack on one document, [L, S, E], layer by layer.

    ``told`` are picks of an index source in place of its own, by layer, and ``told_candidates`` those of the
    candidate source: for queries whose scores are too close to call.
    """
    eps, heads, width = geometry["norm_eps"], int(geometry["heads"]), int(geometry["head_dim"])
    index_heads, index_width = int(geometry["index_heads"]), int(geometry["index_head_dim"])
    tokens = hidden.shape[1]
    place = np.arange(tokens)
    slot_entries = slot_keys = slot_picks = slot_candidates = None
    results = []
    for number, (x, w) in enumerate(zip(np.asarray(hidden, dtype=np.float64), weights, strict=True)):
        r = int(geometry["compress_ratios"][number])
        if r == 0:
            table = rope_frequencies(geometry["rope_dim"], geometry["rope_theta"], None)
        else:
            table = rope_frequencies(geometry["rope_dim"], geometry["compress_rope_theta"], geometry["yarn"])
        turns = np.exp(1j * (start + place)[:, None] * table)
        latent_q = rms(x @ w["wq_a"].T, eps) * w["q_norm"]
        q = rotate((latent_q @ w["wq_b"].T).reshape(tokens, heads, width), turns[:, None])
        window_kv = rotate(rms(x @ w["wkv"].T, eps) * w["kv_norm"], turns)
        latent = keys = index_q = scores = block_scores = candidates = None
        picks = np.zeros((tokens, 0), dtype=np.bool_)
        entries = np.zeros((0, width))
        if r > 0:
            if number in geometry["kv_source_layers"]:
                latent = compressed(x, w, r, eps)
                group_turns = np.exp(1j * (start + r * np.arange(len(latent)))[:, None] * table)
                slot_entries = rotate(latent, group_turns)
                keys = rms(latent @ w["indexer.wk"].T, eps) * w["indexer.k_norm"]
                slot_keys = keys = rotate(keys, group_turns)
            assert slot_entries is not None
            entries = slot_entries
            if number in geometry["index_source_layers"]:
                assert slot_keys is not None
                seen = (place + 1) // r
                index_q = (latent_q @ w["indexer.wq_b"].T).reshape(tokens, index_heads, index_width)
                index_q = rotate(index_q, turns[:, None])
                head_weights = x @ w["indexer.weights_proj"].T * index_width**-0.5 * index_heads**-0.5
                scores = np.einsum("th,ths->ts", head_weights, np.maximum(index_q @ slot_keys.T, 0.0))
                # An entry is visible from its group's last token on.
                last = (np.arange(len(entries)) + 1) * r - 1
                scores = np.where(last[None] <= place[:, None], scores, -np.inf)
                source = int(geometry["candidate_source_layer"])
                free = scores
                if 0 <= source < number:
                    assert slot_candidates is not None
                    free = np.where(slot_candidates, scores, -np.inf)
                slot_picks = highest(free, int(geometry["top_k"]))
                if number == source:
                    z, most = int(geometry["candidate_block_size"]), int(geometry["candidate_blocks"])
                    block_scores, candidates = blocks_of(scores, seen, z, most)
                    if told_candidates is not None:
                        candidates = _marked(told_candidates, len(entries))
                    slot_candidates = candidates
                if told is not None and number in told:
                    slot_picks = _marked(told[number], len(entries))
            assert slot_picks is not None
            picks = slot_picks

        # One softmax over window tokens and picked entries, with the sink in its denominator.
        back = place[:, None] - place[None]
        mask = np.concatenate([(back >= 0) & (back < int(geometry["window"])), picks], axis=1)
        values = np.concatenate([window_kv, entries])
        logits = np.where(mask[:, None], q @ values.T / math.sqrt(width), -np.inf)
        total = np.logaddexp(np.logaddexp.reduce(logits, axis=-1), w["attn_sink"])
        core_out = np.exp(logits - total[..., None]) @ values
        groups, rank = int(geometry["o_groups"]), int(geometry["o_lora_rank"])
        grouped = rotate(core_out, turns.conj()[:, None]).reshape(tokens, groups, -1)
        low = np.einsum("tgc,grc->tgr", grouped, w["wo_a"].reshape(groups, rank, -1))
        out = low.reshape(tokens, -1) @ w["wo_b"].T
        results.append(
            LayerResult(
                out, q, window_kv, latent, entries if r else None, keys, index_q, scores, block_scores, candidates,
                picks if r else None, core_out,
            )
        )  # fmt: skip
    return results


def stack_batch(
    hidden: Array,
    weights: Sequence[Weights],
    geometry: Mapping[str, Any],
    positions: npt.NDArray[np.integer[Any]],
    documents: npt.NDArray[np.integer[Any]],
) -> Array:
    """Compute a stack on packed or padded rows, [L, B, S, E], each document alone; padding gives zeros."""
    out = np.zeros(hidden.shape)
    for row, ids in enumerate(documents.tolist()):
        for document, run in itertools.groupby(range(len(ids)), key=ids.__getitem__):
            if document != -1:
                span = list(run)
                results = stack(hidden[:, row, span], weights, geometry, int(positions[row, span[0]]))
                out[:, row, span] = [result.out for result in results]
    return out


def _marked(rows: Sequence[Sequence[int]], columns: int) -> Mask:
    marked = np.zeros((len(rows), columns), dtype=np.bool_)
    for mask, numbers in zip(marked, rows, strict=True):
        mask[list(numbers)] = True
    return marked
