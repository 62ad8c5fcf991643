"""Second oracle for the attention layer of DeepSeek-V4 (CSA, HCA and sliding-window-only).

Written independently of ``csa_spec.spec``: it shares no code with it, and only the tests use it.  Everything
is a dense float64 formula over one whole document: projections of all tokens at once, RoPE as multiplication
by complex numbers, one boolean key mask ``[S, S + T]`` and one masked softmax with a sink.

Sources: "official" is DeepSeek's ``inference/model.py``, "paper" the DeepSeek-V4 technical report.  The
official quantise-dequantise steps are left out, and so is the indexer's Hadamard rotation: it is orthonormal
and applied to both queries and keys, so it cancels in their products.

Letters: S tokens, E hidden size, H heads, D head size, T complete blocks of m = compress_ratio tokens.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Turns: TypeAlias = npt.NDArray[np.complex128]


@dataclass(frozen=True)
class Result:
    """What the layer computed on one document, with the steps on the way."""

    out: Array  # [S, E]
    q: Array  # [S, H, D], normed and rotated
    window_kv: Array  # [S, D], keys (= values) of the tokens, normed and rotated
    entries: Array  # [T, D], compressed keys (= values), normed and rotated
    index_scores: Array | None  # [S, T], all pairs, visible or not; csa only
    selection: list[list[int]]  # the entries that each query attends to, ascending
    probabilities: Array  # [S, H, S + T], 0 for keys not attended; the sink's share is not a column
    core_out: Array  # [S, H, D], before the inverse rotation


def rope_frequencies(rope_dim: int, theta: float, yarn: Mapping[str, float] | None) -> Array:
    """Return the angle per position of each rotated pair, [rope_dim // 2] (official table ``freqs_cis``).

    ``yarn`` has factor, original_max_position, beta_fast and beta_slow; None gives plain RoPE.  YaRN only
    blends the frequencies: no factor goes on cos, sin or the softmax scale.
    """
    pair = np.arange(rope_dim // 2, dtype=np.float64)
    plain: Array = theta ** (-2.0 * pair / rope_dim)
    if yarn is None:
        return plain

    # The (fractional) pair that turns beta times within the original context.
    turn = yarn["original_max_position"] / (2 * math.pi)
    fast, slow = (rope_dim / 2 * math.log(turn / yarn[b], theta) for b in ("beta_fast", "beta_slow"))
    low, high = float(max(math.floor(fast), 0)), float(min(math.ceil(slow), rope_dim - 1))
    if low == high:
        high += 0.001
    ramp = np.clip((pair - low) / (high - low), 0.0, 1.0)
    return plain * (1.0 - ramp) + plain / yarn["factor"] * ramp


def visible_entries(t: int, compress_ratio: int) -> list[int]:
    """Return the blocks all of whose tokens are at most t, t counted from the document's first token.

    Official ``class Indexer`` and ``get_compress_topk_idxs``: s < floor((t + 1) / m), 0-based.  The paper's
    s < floor(t / m) (eq. 15 and 16) is the same only for t counted from 1; the code decides.
    """
    m = compress_ratio
    return [s for s in range(t + 1) if all(j <= t for j in range(s * m, (s + 1) * m))]


def window_tokens(t: int, window: int) -> list[int]:
    """Return the tokens that query t sees directly: ``window`` of them, itself included.

    Official ``get_window_topk_idxs``.
    """
    return [j for j in range(t + 1) if t - j < window]


def _rms(x: Array, eps: float) -> Array:
    """Divide by the root mean square over the last axis (official ``RMSNorm`` without its weight)."""
    mean: Array = np.mean(x * x, axis=-1, keepdims=True)
    return x / np.sqrt(mean + eps)


def _turns(positions: Array, geometry: Mapping[str, Any]) -> Turns:
    """Return the unit complex numbers [P, rope_dim // 2] that rotate the pairs at each position.

    Official ``class Attention``: one table per layer, for queries, window KV, entries, indexer and the
    inverse rotation alike; sliding-only layers take the base theta and no YaRN.
    """
    if geometry["kind"] == "sliding":
        freqs = rope_frequencies(geometry["rope_dim"], geometry["rope_theta"], None)
    else:
        freqs = rope_frequencies(geometry["rope_dim"], geometry["compress_rope_theta"], geometry["yarn"])
    turns: Turns = np.exp(1j * positions[:, None] * freqs)
    return turns


def _rotate(x: Array, turns: Turns) -> Array:
    """Rotate the trailing channels of x, as interleaved (real, imaginary) pairs; the rest is untouched."""
    width = 2 * turns.shape[-1]
    head, tail = x[..., : x.shape[-1] - width], x[..., x.shape[-1] - width :]
    turned = (tail[..., 0::2] + 1j * tail[..., 1::2]) * turns
    return np.concatenate([head, np.stack([turned.real, turned.imag], axis=-1).reshape(tail.shape)], axis=-1)


def _compress(
    x: Array, weights: Mapping[str, Array], prefix: str, geometry: Mapping[str, Any], start: int
) -> Array:
    """Return the compressed entries of a document, [T, width], normed and rotated.

    Official ``class Compressor``, paper eq. 9-12.  Each channel has its own softmax over the tokens.  The row
    of ``ape`` is the token's index in its own block.  In csa (overlapping) an entry pools the previous block
    through the first half of the columns and its own block through the second half (the paper's b and a);
    block 0 has no previous block.  A tail shorter than a block gives no entry.  Entry s is rotated at the
    position of the first token of its own block.
    """
    m = int(geometry["compress_ratio"])
    blocks = len(x) // m
    values = x @ weights[prefix + "wkv"].T
    logits = x @ weights[prefix + "wgate"].T + weights[prefix + "ape"][np.arange(len(x)) % m]
    width = len(weights[prefix + "norm"])
    roles = [(0, slice(None))]  # how many blocks back the tokens lie, and their columns
    if geometry["kind"] == "csa":
        roles = [(1, slice(0, width)), (0, slice(width, 2 * width))]
    slot_values, slot_logits = [], []
    for back, columns in roles:
        token = (np.arange(blocks)[:, None] - back) * m + np.arange(m)
        exists = (token >= 0)[:, :, None]
        slot_values.append(np.where(exists, values[token, columns], 0.0))
        slot_logits.append(np.where(exists, logits[token, columns], -np.inf))
    pooled_values, pooled_logits = np.concatenate(slot_values, axis=1), np.concatenate(slot_logits, axis=1)
    share = np.exp(pooled_logits - pooled_logits.max(axis=1, keepdims=True))
    pooled = (share * pooled_values).sum(axis=1) / share.sum(axis=1)
    entries = _rms(pooled, geometry["norm_eps"]) * weights[prefix + "norm"]
    return _rotate(entries, _turns(start + m * np.arange(blocks, dtype=np.float64), geometry))


def _index_scores(
    x: Array, latent: Array, weights: Mapping[str, Array], geometry: Mapping[str, Any], start: int
) -> Array:
    """Return the lightning indexer's score of every (query, entry) pair, [S, T].

    Official ``class Indexer``, paper eq. 13-16: a compressor of its own gives one key per block; index
    queries come from the normed q latent, without a norm per head; head weights from the layer's input.
    """
    heads, width = int(geometry["index_heads"]), int(geometry["index_head_dim"])
    turns = _turns(start + np.arange(len(x), dtype=np.float64), geometry)
    queries = _rotate((latent @ weights["indexer.wq_b"].T).reshape(len(x), heads, width), turns[:, None])
    keys = _compress(x, weights, "indexer.compressor.", geometry, start)
    head_weights = x @ weights["indexer.weights_proj"].T / math.sqrt(width * heads)
    scores: Array = np.einsum("th,ths->ts", head_weights, np.maximum(queries @ keys.T, 0.0))
    return scores


def layer(
    hidden: Array,
    weights: Mapping[str, Array],
    geometry: Mapping[str, Any],
    start: int = 0,
    selection: Sequence[Sequence[int]] | None = None,
) -> Result:
    """Compute the attention layer on one document (official ``class Attention``).

    Parameters
    ----------
    hidden : Array
        [S, E], S >= 1.
    weights : Mapping[str, Array]
        By their official names, without prefix and without ``.weight``.
    geometry : Mapping[str, Any]
        Sizes and constants of the layer.
    start : int
        Position of the first token.  Blocks and visibility count from that token all the same.
    selection : Sequence[Sequence[int]] | None
        csa only: visible entries for each query, in place of the indexer's top-k.

    Returns
    -------
    Result
        The output and the steps on the way.

    """
    kind, eps = geometry["kind"], geometry["norm_eps"]
    if kind not in ("csa", "hca", "sliding"):
        raise ValueError(f"unknown kind {kind!r}")
    if selection is not None and kind != "csa":
        raise ValueError("only csa layers select entries")
    x = np.asarray(hidden, dtype=np.float64)
    w = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
    tokens, heads, width = len(x), int(geometry["heads"]), int(geometry["head_dim"])
    turns = _turns(start + np.arange(tokens, dtype=np.float64), geometry)

    # Queries (an unweighted norm per head) and the one key = value head of the window.
    latent = _rms(x @ w["wq_a"].T, eps) * w["q_norm"]
    q = _rotate(_rms((latent @ w["wq_b"].T).reshape(tokens, heads, width), eps), turns[:, None])
    window_kv = _rotate(_rms(x @ w["wkv"].T, eps) * w["kv_norm"], turns)

    # Entries and the choice among them: csa takes the top-k of the visible, hca all of them.
    entries, scores = np.zeros((0, width)), None
    visible: list[list[int]] = [[] for _ in range(tokens)]
    if kind != "sliding":
        entries = _compress(x, w, "compressor.", geometry, start)
        visible = [visible_entries(t, int(geometry["compress_ratio"])) for t in range(tokens)]
    chosen = visible
    if kind == "csa":
        scores = _index_scores(x, latent, w, geometry, start)
        if selection is None:
            # Official Indexer: no threshold.  It leaves ties open; the stable sort takes the lowest index.
            ranked = [sorted(seen, key=lambda s: -row[s]) for row, seen in zip(scores, visible, strict=True)]
            chosen = [sorted(order[: int(geometry["top_k"])]) for order in ranked]
        else:
            chosen = [sorted({int(s) for s in picks}) for picks in selection]
            if len(chosen) != tokens or any(set(chosen[t]) - set(visible[t]) for t in range(tokens)):
                raise ValueError("a selection names visible entries, one list for each query")

    # Window and entries side by side; a token of the window may be in an attended entry as well.
    mask = np.zeros((tokens, tokens + len(entries)), dtype=np.bool_)
    for t in range(tokens):
        mask[t, window_tokens(t, int(geometry["window"]))] = True
        mask[t, [tokens + s for s in chosen[t]]] = True

    # Paper eq. 27: the sink is one more logit per head, unscaled and without a value.  logaddexp shifts by
    # the larger argument, sink included, so that no sink overflows.
    keys = np.concatenate([window_kv, entries])
    logits = np.where(mask[:, None], q @ keys.T / math.sqrt(width), -np.inf)
    total = np.logaddexp(np.logaddexp.reduce(logits, axis=-1), w["attn_sink"])
    probabilities: Array = np.exp(logits - total[..., None])
    core_out = probabilities @ keys

    # Inverse rotation at the query's position, then the grouped projection (neighbouring heads form a group).
    groups, rank = int(geometry["o_groups"]), int(geometry["o_lora_rank"])
    grouped = _rotate(core_out, turns.conj()[:, None]).reshape(tokens, groups, -1)
    latent_out = np.einsum("tgc,grc->tgr", grouped, w["wo_a"].reshape(groups, rank, -1))
    out = latent_out.reshape(tokens, groups * rank) @ w["wo_b"].T
    return Result(out, q, window_kv, entries, scores, chosen, probabilities, core_out)


def batch(
    hidden: Array,
    weights: Mapping[str, Array],
    geometry: Mapping[str, Any],
    positions: npt.NDArray[np.integer[Any]],
    documents: npt.NDArray[np.integer[Any]],
) -> Array:
    """Compute the layer on packed rows, [B, S, E], each document alone (paper 3.4.3); padding gives zeros.

    ``documents`` [B, S] is the id of each token's document, -1 for padding; a maximal run of one id in a row
    is a document.  It starts at the position, in ``positions`` [B, S], of its first token.
    """
    out = np.zeros(np.shape(hidden), dtype=np.float64)
    for row, ids in enumerate(np.asarray(documents).tolist()):
        for document, run in itertools.groupby(range(len(ids)), key=ids.__getitem__):
            if document != -1:
                span = list(run)
                start = int(positions[row, span[0]])
                out[row, span] = layer(hidden[row, span], weights, geometry, start).out
    return out
