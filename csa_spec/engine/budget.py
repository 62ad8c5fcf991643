r"""Budgets: how far a right implementation in low precision may be from the specification.

Derivation ---------- Each quantity that an implementation computes gets a value (float64) and the variance
of its rounding error: to first order, with independent rounding errors (Higham and Mary, "A new approach to
probabilistic rounding error analysis", 2019). Here u is the unit roundoff of the case's dtype, or of the
candidate's coarser own, and a = min(u, 2^-24) that of accumulators. w is that of what a kernel keeps and never
stores: logits, exponentials, running sums. It is a too, unless the candidate declares that its own arithmetic
is coarser (``internal_dtype``). f is what may be flushed to zero.

* A stored result y adds u^2 y^2 + f^2; one that is kept w^2 y^2 + f^2.
* A sum of n terms of magnitudes |t| adds g(n) a^2 (sum |t|)^2 with g(n) = max(1, n / 9): added one after the
  other, partial sums are rounded n times, and their squares are a third of the last one's in the mean.
* A product x . y over n channels has sum var(x) y^2 + sum x^2 var(y) + w^2 sum (x y)^2, is such a sum of its
  n terms, and is stored, or kept within a kernel.
* A norm, a rotation, a softmax apply their derivative to the incoming variance, and add a few roundings, of
  which some may be stored: v(s) = s u^2 + (9 - s) w^2 for three, s of them.
* An angle position * f adds (2 a angle)^2, since rotary tables are made in float32 even in bfloat16 models.

The attention core, for one query and head: o = sum_j p_j k_j over the n keys j that the query attends to.

* A logit z_j = scale * (q . k_j), a product over d channels, is scaled and has the largest logit taken off
  (the sink counts as one): var(z_j) = scale^2 var(q . k_j) + w^2 (z_j^2 + (z_j - peak)^2).
* It moves its own p_j, and all others by the denominator: p_j^2 r_j^2 (k_j - o)^2, summed over j. Here r_j =
  (exp(MARGIN sd(z_j)) - 1) / MARGIN, which is sd(z_j) where that is small; the first order would not be
  enough where it is not.
* Keys, and the rounding of p_j, which may be stored for the product with keys, and of p_j k_j:
  sum p_j^2 (var(k_j) + v(1) k_j^2).
* The sums of p k and of the denominator: g(n) a^2 ((sum p_j |k_j|)^2 + o^2), with n keys, not channels. Keys that are
  alike round alike: 2 (n / 48)^2 a^2 o^2.
* A sink that is applied afterwards, through a log-sum-exp in float32: a^2 peak^2 o^2.
* A p_j that is flushed to zero: (f / 2)^2 sum k_j^2. The result is rounded twice, and stored once:
  (u^2 + 3 w^2) o^2 + f^2.

The budget of an element is ``MARGIN`` standard deviations. Sums are taken over the magnitudes of the case
itself, element by element, so a budget is as tight for a small output beside a large one as the arithmetic
allows. ``docs/budgets.md`` has the largest errors measured of right implementations, as shares of their
budgets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from csa_spec.engine.tensors import dtype_of
from csa_spec.spec import (
    SPEC,
    CompressorWeights,
    Context,
    DocumentTrace,
    Geometry,
    LayerWeights,
    QueryTrace,
)

MARGIN = 5.0
"""Standard deviations in a budget."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """A tensor and the variance of its rounding error."""

    value: Tensor
    variance: Tensor

    @classmethod
    def exact(cls, value: Tensor) -> Rounded:
        """Return a tensor that the candidate is handed, without an error."""
        return cls(value, torch.zeros_like(value))


@dataclass(frozen=True, slots=True)
class Keys:
    """What all queries of one document of S tokens and T entries share."""

    window: Rounded
    """``[S, head_dim]``"""
    entries: Rounded
    """``[T, head_dim]``"""
    index: Rounded
    """``[T, index_head_dim]``; empty where there is no indexer"""

    @property
    def attended(self) -> Rounded:
        """``[S + T, head_dim]``: of the tokens, then the entries."""
        both = self.window, self.entries
        return Rounded(torch.cat([x.value for x in both]), torch.cat([x.variance for x in both]))


@dataclass(frozen=True, slots=True)
class Budgets:
    """Allowed absolute error per element, for one document, of whose queries Q were asked about."""

    out: Tensor
    """``[Q, hidden]``"""
    scores: Tensor
    """``[Q, T]``, of every pair of query and entry, visible or not"""
    probabilities: list[Tensor]
    """Per query ``[heads, keys]``, in the order of its trace"""
    keys: Keys
    """What they are made of"""

    @property
    def entries(self) -> Tensor:
        """``[T, head_dim]``."""
        return MARGIN * self.keys.entries.variance.sqrt()


class Arithmetic:
    """Arithmetic that stores in one precision: every result with the variance of its error.

    What a kernel keeps without storing it has the precision of float32 at least, unless ``internal`` is coarser.
    """

    def __init__(self, dtype: torch.dtype, internal: torch.dtype | None = None) -> None:
        self.dtype, info = dtype, torch.finfo(dtype)
        # In float64 the specification, which is no finer, rounds as much as the candidate.
        self.unit = info.eps / 2 * (2**0.5 if dtype == torch.float64 else 1)
        self.accumulator = min(self.unit, torch.finfo(torch.float32).eps / 2)
        own = 0.0 if internal is None else torch.finfo(internal).eps / 2
        self.inner = max(self.accumulator, own)
        # Hardware may flush to zero what is below the smallest normal number, which float16 cannot spare.
        self.underflow = info.smallest_normal * (info.eps if dtype == torch.float16 else 1)

    @classmethod
    def of(cls, dtype: torch.dtype, internal_dtype: str | None = None) -> Arithmetic:
        """Return the coarser of a case's dtype and the candidate's own."""
        internal = None if internal_dtype is None else dtype_of(internal_dtype)
        return cls(working_dtype(str(dtype).removeprefix("torch."), internal_dtype), internal)

    def roundings(self, count: float, stored: float) -> float:
        """Return the variance that ``count`` roundings of a 1 add, of which some may be stored results.

        They are taken as one rounding that is ``count`` times as large.
        """
        return stored * self.unit**2 + (count**2 - stored) * self.inner**2

    def store(self, value: Tensor, variance: Tensor, roundings: float = 1.0, stored: float = 1.0) -> Rounded:
        """Round a result to the dtype, with some roundings before."""
        own = self.roundings(roundings, stored) * value.square() + self.underflow**2
        return Rounded(value, variance + own)

    def keep(self, value: Tensor, variance: Tensor) -> Rounded:
        """Round a result as a kernel does that goes on with it."""
        return self.store(value, variance, stored=0.0)

    def summed(self, magnitude: Tensor, terms: int | Tensor) -> Tensor:
        """Return the variance of adding up ``terms`` numbers whose absolute values sum to ``magnitude``.

        One after the other there are as many roundings, of partial sums that grow linearly where all terms
        have one sign: a^2 / 3 each in the mean, sum (i / n)^2 = n / 3 together. Blocked sums do better.
        """
        growth = terms.double().div(9).clamp(min=1) if isinstance(terms, Tensor) else max(1.0, terms / 9)
        return growth * (self.accumulator * magnitude).square()

    def averaged(self, total: Tensor, magnitude: Tensor, terms: int | Tensor) -> Tensor:
        """Return the variance of adding up numbers with weights, and these weights, given the weighted mean.

        Terms that are alike round to the same side as long as the sum stays between two powers of two: by
        about n / 6 of a rounding of it, or n / 48 in the eight lanes of a vector unit.
        """
        alike = 2 * (terms / 48 * self.accumulator * total).square()
        return self.summed(magnitude, terms) + self.summed(total, terms) + alike

    def linear(self, x: Rounded, weight: Tensor) -> Rounded:
        """Multiply ``x`` ``[..., n]`` by an exact ``weight`` ``[m, n]``, and store the result."""
        return self.store(*self._products(x, Rounded.exact(weight)))

    def products(self, x: Rounded, y: Rounded) -> Rounded:
        """Multiply ``x`` ``[..., i, n]`` with ``y`` ``[..., j, n]`` over their last dimension, and go on."""
        return self.keep(*self._products(x, y))

    def _products(self, x: Rounded, y: Rounded) -> tuple[Tensor, Tensor]:
        x2, y2 = x.value.square(), y.value.square()
        variance = x.variance @ y2.mT + x2 @ y.variance.mT + self.inner**2 * (x2 @ y2.mT)
        variance = variance + self.summed(x.value.abs() @ y.value.abs().mT, x.value.shape[-1])
        return x.value @ y.value.mT, variance

    def norm(self, x: Rounded, weight: Tensor | None, eps: float) -> Rounded:
        """Root-mean-square normalisation over the last dimension."""
        n = x.value.shape[-1]
        inverse = torch.rsqrt(x.value.square().mean(-1, keepdim=True) + eps)
        factor = inverse if weight is None else inverse * weight
        common = (x.value.square() * x.variance).sum(-1, keepdim=True) * inverse**4 / n**2
        variance = factor.square() * (x.variance + x.value.square() * common)
        return self.store(x.value * factor, variance, roundings=3, stored=2)

    def rotate(self, x: Rounded, positions: Tensor, frequencies: Tensor, sign: int = 1) -> Rounded:
        """Rotate the trailing channels; ``positions`` broadcasts over all dimensions but the last."""
        width = 2 * len(frequencies)
        angle = sign * positions[..., None] * frequencies
        cos, sin = angle.cos(), angle.sin()
        a, b = x.value[..., -width::2], x.value[..., 1 - width :: 2]
        va, vb = x.variance[..., -width::2], x.variance[..., 1 - width :: 2]
        own = ((2 * self.accumulator * angle).square() + (2 * self.unit) ** 2) * (a.square() + b.square())
        value = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
        first = va * cos.square() + vb * sin.square() + own
        second = va * sin.square() + vb * cos.square() + own
        variance = torch.stack((first, second), -1).flatten(-2)
        rotated = self.store(value, variance)
        return Rounded(
            torch.cat((x.value[..., :-width], rotated.value), -1),
            torch.cat((x.variance[..., :-width], rotated.variance), -1),
        )


def document_keys(context: Context, weights: LayerWeights, geometry: Geometry, do: Arithmetic) -> Keys:
    """Return the keys of one document, and how far they may be off."""
    hidden, start, frequencies = Rounded.exact(context.hidden), context.document.start, context.frequencies
    positions = start + torch.arange(len(context.hidden), dtype=torch.float64)
    window = do.norm(do.linear(hidden, weights.wkv), weights.kv_norm, geometry.norm_eps)
    indexer = None if weights.indexer is None else weights.indexer.compressor
    return Keys(
        do.rotate(window, positions, frequencies),
        _compress(do, hidden, weights.compressor, geometry, start, frequencies),
        _compress(do, hidden, indexer, geometry, start, frequencies),
    )


def document_budgets(
    trace: DocumentTrace, weights: LayerWeights, geometry: Geometry, do: Arithmetic, keys: Keys | None = None
) -> Budgets:
    """Return the budgets of one document, given the specification's trace of it.

    ``keys`` are those of its context, where they are known.
    """
    keys = document_keys(trace.context, weights, geometry, do) if keys is None else keys
    longest = max(len(query.window) + len(query.selection) for query in trace.queries)
    widest = max(longest * geometry.head_dim, len(keys.index.value) * geometry.index_heads, 1)
    step = max(1, _AT_ONCE // widest)
    parts = [trace.queries[begin : begin + step] for begin in range(0, len(trace.queries), step)]
    attended = keys.attended
    budgets = [
        _of_queries(part, trace.context, attended, keys.index, weights, geometry, do) for part in parts
    ]
    out, scores, probabilities = zip(*budgets, strict=True)
    return Budgets(torch.cat(out), torch.cat(scores), [one for part in probabilities for one in part], keys)


_AT_ONCE = 1 << 21
"""Numbers that the keys of some queries have together, which are worked on at once"""


def _of_queries(
    queries: Sequence[QueryTrace],
    context: Context,
    keys: Rounded,
    index_keys: Rounded,
    weights: LayerWeights,
    geometry: Geometry,
    do: Arithmetic,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the budgets of outputs ``[Q, hidden]``, scores ``[Q, T]``, and probabilities per query."""
    asked, frequencies, eps = [query.t for query in queries], context.frequencies, geometry.norm_eps
    hidden = Rounded.exact(context.hidden[asked])
    positions = context.document.start + torch.tensor(asked, dtype=torch.float64)[:, None]
    latent = do.norm(do.linear(hidden, weights.wq_a), weights.q_norm, eps)
    q = _split_heads(do.linear(latent, weights.wq_b), geometry.heads)
    q = do.rotate(do.norm(q, None, eps), positions, frequencies)
    scores = _scores(do, hidden, latent, positions, index_keys, weights, geometry, frequencies)

    attended, probabilities = _attended(queries, len(context.hidden))
    named, chosen = attended >= 0, attended.clamp(min=0)
    own = Rounded(keys.value[chosen], keys.variance[chosen])
    core, spread = _attend(do, q, own, probabilities, named[:, None], weights.attn_sink, geometry.scale)
    out = _project(do, do.rotate(core, positions, frequencies, sign=-1), weights, geometry)
    few = [shares[:, :count] for shares, count in zip(spread, named.sum(-1).tolist(), strict=True)]
    return MARGIN * out.variance.sqrt(), MARGIN * scores.variance.sqrt(), few


def core_budget(
    arithmetic: Arithmetic, q: Tensor, keys: Tensor, probabilities: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """Return the budget ``[heads, d]`` of the attention core alone, for one query.

    ``q`` is ``[heads, d]``, keys (those that it attends to) ``[n, d]``, probabilities ``[heads, n]``, sinks
    ``[heads]``. They are exact: the specification gets the numbers that the candidate gets.
    """
    attended = torch.ones(1, len(keys), dtype=torch.bool)
    given = Rounded.exact(q), Rounded.exact(keys)
    out, _ = _attend(arithmetic, *given, probabilities, attended, sinks, scale)
    return MARGIN * out.variance.sqrt()


def entries_budget(
    arithmetic: Arithmetic, hidden: Tensor, weights: CompressorWeights, geometry: Geometry
) -> Tensor:
    """Return the budget ``[T, d]`` of the compressor alone, for ``[S, hidden]`` from position 0."""
    frequencies = SPEC.layer_frequencies(geometry)
    entries = _compress(arithmetic, Rounded.exact(hidden), weights, geometry, 0, frequencies)
    return MARGIN * entries.variance.sqrt()


def index_score_budget(
    arithmetic: Arithmetic, queries: Tensor, keys: Tensor, head_weights: Tensor
) -> Tensor:
    """Return the budget ``[S, T]`` of index scores alone.

    Queries are ``[S, HI, DI]``, keys ``[T, DI]``, head weights ``[S, HI]``.
    """
    products = arithmetic.products(Rounded.exact(queries), Rounded.exact(keys))
    total = _weighted_sum(arithmetic, products, Rounded.exact(head_weights), 1.0)
    return MARGIN * total.variance.sqrt()


def _split(x: Tensor, dim: int, parts: int) -> Tensor:
    """Split a dimension into ``parts`` equal ones."""
    shape = list(x.shape)
    dim %= len(shape)
    return x.reshape(*shape[:dim], parts, shape[dim] // parts, *shape[dim + 1 :])


def _split_heads(x: Rounded, heads: int) -> Rounded:
    return Rounded(_split(x.value, -1, heads), _split(x.variance, -1, heads))


def _compress(
    do: Arithmetic,
    hidden: Rounded,
    weights: CompressorWeights | None,
    geometry: Geometry,
    start: int,
    frequencies: Tensor,
) -> Rounded:
    if weights is None:
        nothing = hidden.value.new_zeros(0, geometry.head_dim)
        return Rounded(nothing, nothing)
    m, count = geometry.compress_ratio, geometry.entry_count(len(hidden.value))
    step = max(1, _AT_ONCE // (2 * m * len(weights.norm)))
    parts = []
    for first in range(0, max(1, count), step):
        lead = min(first, 1)  # the block before, which the first entry pools too
        tokens = slice((first - lead) * m, min(first + step, count) * m)
        part = Rounded(hidden.value[tokens], hidden.variance[tokens])
        entries = _compress_blocks(do, part, weights, geometry, start + tokens.start, frequencies)
        parts.append((entries.value[lead:], entries.variance[lead:]))
    return Rounded(*map(torch.cat, zip(*parts, strict=True)))


def _compress_blocks(
    do: Arithmetic,
    blocks: Rounded,
    weights: CompressorWeights,
    geometry: Geometry,
    start: int,
    frequencies: Tensor,
) -> Rounded:
    m, dim = geometry.compress_ratio, len(weights.norm)
    count = len(blocks.value) // m
    content, gate = do.linear(blocks, weights.wkv), do.linear(blocks, weights.wgate)

    def slots(x: Tensor, outside: float) -> Tensor:
        """Lay ``[count * m, C]`` out as ``[count, slots, dim]``: of the block before, then of its own."""
        x = x.reshape(count, m, x.shape[-1])
        if not geometry.overlap:
            return x
        previous = torch.cat((x.new_full((1, m, dim), outside), x[:-1, :, :dim]))[:count]
        return torch.cat((previous, x[..., dim:]), dim=1)

    bias = weights.ape.repeat(count, 1)
    logit = do.keep(gate.value + bias, gate.variance)
    p = torch.softmax(slots(logit.value, -torch.inf), dim=1)
    c, c_variance, z_variance = slots(content.value, 0), slots(content.variance, 0), slots(logit.variance, 0)
    pooled = (p * c).sum(1)
    # As in the core: a gate's error moves its own weight, and all others by the denominator.
    variance = p.square() * ((c - pooled[:, None]).square() * z_variance + c_variance)
    # Weights and weighted contents may be stored.
    variance = (variance + do.roundings(3, stored=2) * (p * c).square()).sum(1)
    variance = variance + do.summed((p * c.abs()).sum(1), p.shape[1])
    normed = do.norm(do.store(pooled, variance), weights.norm, geometry.norm_eps)
    return do.rotate(normed, start + m * torch.arange(count, dtype=torch.float64), frequencies)


def _scores(
    do: Arithmetic,
    hidden: Rounded,
    latent: Rounded,
    positions: Tensor,
    keys: Rounded,
    weights: LayerWeights,
    geometry: Geometry,
    frequencies: Tensor,
) -> Rounded:
    if weights.indexer is None:
        nothing = hidden.value.new_zeros(len(hidden.value), 0)
        return Rounded(nothing, nothing)
    queries = _split_heads(do.linear(latent, weights.indexer.wq_b), geometry.index_heads)
    products = do.products(do.rotate(queries, positions, frequencies), keys)
    head_weights = do.linear(hidden, weights.indexer.weights_proj)
    constant = geometry.index_head_dim**-0.5 * geometry.index_heads**-0.5
    scores = _weighted_sum(do, products, head_weights, constant)
    # The norm of an index key divides all its channels by one rounded number, so their errors add up.
    common = do.roundings(2, stored=0) * scores.value.square()
    return Rounded(scores.value, scores.variance + common)


def _weighted_sum(do: Arithmetic, products: Rounded, head_weights: Rounded, constant: float) -> Rounded:
    """Return constant * sum_h w_h relu(product_h): products ``[S, HI, T]``, weights ``[S, HI]``."""
    # A product that rounding may push over zero counts; one that is surely negative does not.
    reachable = products.value > -MARGIN * products.variance.sqrt()
    positive, variance = products.value.clamp(min=0), products.variance * reachable
    w, w_variance = head_weights.value[..., None], head_weights.variance[..., None]
    terms = w * positive
    # Each head's product, with its weight and without, may be stored; their sum is one of accumulators.
    own = do.roundings(3, stored=2) * terms.square()
    total = (w.square() * variance + positive.square() * w_variance + own).sum(1)
    total = total + do.summed(terms.abs().sum(1), terms.shape[1])
    return do.store(constant * terms.sum(1), constant**2 * total)


def _attended(queries: Sequence[QueryTrace], tokens: int) -> tuple[Tensor, Tensor]:
    """Return which keys each query attends to ``[Q, n]``, and how much ``[Q, heads, n]``.

    Keys are those of the tokens, then entries; -1 where a query has fewer than others.
    """
    listed = [query.window + [tokens + s for s in query.selection] for query in queries]
    most = max(map(len, listed))
    attended = torch.tensor([keys + [-1] * (most - len(keys)) for keys in listed])
    shares = [
        pad(query.probabilities, (0, most - len(keys))) for query, keys in zip(queries, listed, strict=True)
    ]
    return attended, torch.stack(shares)


def _attend(
    do: Arithmetic, q: Rounded, keys: Rounded, p: Tensor, attended: Tensor, sink: Tensor, scale: float
) -> tuple[Rounded, Tensor]:
    """Return the core's output ``[S, heads, d]`` and the budget of the probabilities ``[S, heads, n]``.

    Keys, ``[S, n, d]``, are each query's own; of those that are not attended to, nothing counts.
    """
    z = do.products(q, keys)
    z = Rounded(scale * z.value, scale**2 * z.variance)
    peak = torch.maximum(z.value.masked_fill(~attended, -torch.inf).amax(-1), sink)[..., None]
    z_variance = z.variance + do.inner**2 * (z.value.square() + (z.value - peak).square())
    # First order while the error of a logit is small, exponential where it is not: logits in the hundreds
    # are off by more than 1 where they are made of bfloat16, and exp of that is no small factor. (The clamp
    # only keeps exp finite.)
    relative = torch.expm1((MARGIN * z_variance.sqrt()).clamp(max=60.0)) / MARGIN
    weight = (p * relative).square()
    # sum weight (k - o)^2, multiplied out so that no [S, heads, keys, d] is made; rounding may leave it
    # below zero.
    k, k2 = keys.value, keys.value.square()
    o = p @ k
    variance = weight @ k2 - 2 * o * (weight @ k) + o.square() * weight.sum(-1, keepdim=True)
    rounding = do.roundings(3, stored=1)
    variance = variance.clamp(min=0) + p.square() @ (keys.variance + rounding * k2)
    # The sum of p k, and the softmax's denominator, whose error all p share.
    terms = attended.sum(-1, keepdim=True)
    variance = variance + do.averaged(o, p @ k.abs(), terms)
    # A sink that is applied afterwards goes through a log-sum-exp as large as the peak, kept in float32.
    variance = variance + (do.accumulator * peak.nan_to_num(0.0, 0.0, 0.0) * o).square()
    # A small probability may be flushed to zero (in float16 below 6e-8), and its key may be long.
    variance = variance + (do.underflow / 2) ** 2 * (attended.double() @ k2)
    common = weight.sum(-1, keepdim=True)
    spread = MARGIN * (weight + p.square() * (common + rounding)).sqrt() + do.underflow
    return do.store(o, variance, roundings=2), spread


def _project(do: Arithmetic, heads_out: Rounded, weights: LayerWeights, geometry: Geometry) -> Rounded:
    low_rank = _split(weights.wo_a, 0, geometry.o_groups)
    grouped = [_split(x.flatten(1), 1, geometry.o_groups) for x in (heads_out.value, heads_out.variance)]
    parts = [
        do.linear(Rounded(grouped[0][:, g], grouped[1][:, g]), low_rank[g]) for g in range(geometry.o_groups)
    ]
    middle = Rounded(torch.cat([x.value for x in parts], -1), torch.cat([x.variance for x in parts], -1))
    return do.linear(middle, weights.wo_b)


def working_dtype(dtype: str, internal_dtype: str | None) -> torch.dtype:
    """Return the dtype whose roundoff a budget uses: the coarser of the case's and the candidate's own."""
    dtypes = [dtype_of(name) for name in (dtype, internal_dtype) if name is not None]
    return max(dtypes, key=lambda candidate: torch.finfo(candidate).eps)
