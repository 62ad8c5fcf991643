"""Strategies for the sizes and constants of a layer."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

from hypothesis import strategies as st

from csa_spec.spec import Geometry, LayerKind, Yarn

RATIOS = (1, 2, 3, 4, 5, 6, 7, 8, 2, 3, 4, 1, 2, 3, 4, 5, 16, 2, 3, 4, 128)
"""1 to 8 often, the small ones most; 16 and 128 sometimes."""


def compress_ratios(allowed: Collection[int] | None = None) -> st.SearchStrategy[int]:
    """Tokens per compressed entry, out of ``allowed`` where that is given."""
    if allowed is None:
        return st.sampled_from(RATIOS)
    return st.sampled_from(sorted(allowed))


def yarns() -> st.SearchStrategy[Yarn | None]:
    """No YaRN, or one whose original context is short enough to slow some pairs down but not all."""
    return st.none() | st.builds(
        Yarn,
        factor=st.sampled_from((2.0, 4.0, 16.0)),
        original_max_position=st.sampled_from((64, 16, 4096, 65536)),
        beta_fast=st.sampled_from((32.0, 4.0)),
    )


@cache
def geometries(kind: LayerKind) -> st.SearchStrategy[Geometry]:
    """Layers of one kind; sizes, odd ones too, are drawn so that every draw is legal.

    The rules (``compress_ratio``, ``top_k``, ``window``) stay at their smallest: what they should be depends
    on the lengths of the rows, so ``cases`` draws them.
    """
    csa = kind is LayerKind.CSA
    return st.builds(
        _geometry,
        kind=st.just(kind),
        hidden=st.integers(2, 16),
        pairs=st.sampled_from((1, 2, 4)),
        plain=st.sampled_from((0, 2, 4, 1, 8)),
        index_plain=st.sampled_from((0, 2, 4, 3)) if csa else st.none(),
        index_heads=st.sampled_from((1, 2, 4, 3, 8)) if csa else st.just(1),
        q_lora_rank=st.integers(1, 8),
        o_groups=st.integers(1, 3),
        heads_per_group=st.integers(1, 2),
        o_lora_rank=st.integers(1, 4),
        # One base in four is not the released one: a constant that is wired in must show.
        theta=st.sampled_from((1.0, 1.0, 1.0, 0.01)),
        yarn=yarns(),  # of the model: sliding-only layers are configured with it too and must ignore it
        norm_eps=st.sampled_from((1e-6, 1e-6, 1e-6, 1e-2)),
    )


def _geometry(
    *,
    pairs: int,
    plain: int,
    index_plain: int | None,
    o_groups: int,
    heads_per_group: int,
    theta: float,
    **rest: object,
) -> Geometry:
    return Geometry(
        heads=o_groups * heads_per_group,
        head_dim=2 * pairs + plain,
        rope_dim=2 * pairs,
        index_head_dim=2 if index_plain is None else 2 * pairs + index_plain,
        o_groups=o_groups,
        rope_theta=10_000.0 * theta,
        compress_rope_theta=160_000.0 * theta,
        **rest,  # type: ignore[arg-type]
    )
