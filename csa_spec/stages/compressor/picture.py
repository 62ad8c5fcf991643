"""Draws a failure of ``compressor``: which tokens each entry pools."""

from __future__ import annotations

from collections.abc import Sequence

from csa_spec.drawing.grid import NOTHING, Look, looking
from csa_spec.drawing.items import Relation, item_of
from csa_spec.engine.failures import Failure
from csa_spec.spec import SPEC
from csa_spec.spec.compressor import Half
from csa_spec.stages.compressor.case import CompressorCase

OWN = Look("pools it as a token of its own block", "#54aeff", "#0550ae")
BEFORE = Look("pools it as a token of the block before", "#b6e3ff", "#54aeff")
APART = looking(NOTHING, "does not pool it")


def compressor_picture(failure: Failure, numbers: Sequence[str]) -> str | None:
    """Draw which tokens each entry pools, and the errors of the entries."""
    case = failure.case
    assert isinstance(case, CompressorCase)
    overlap, m = case.geometry.overlap, case.compress_ratio
    count = case.geometry.entry_count(case.tokens)
    if failure.place is None or not count:
        return None
    halves = [{token.token: token.half for token in SPEC.pooled_tokens(s, m, overlap)} for s in range(count)]

    def look(s: int, token: int) -> Look:
        half = halves[s].get(token)
        return APART if half is None else OWN if half is Half.CURRENT else BEFORE

    relation = Relation(
        failure=failure,
        items=("Entries", count),
        others=("Tokens", case.tokens),
        near=item_of(failure) * m,
        look=look,
        looks=[OWN, *[BEFORE] * overlap, APART],
        item_name=lambda s: f"e{s}",
        errors="the entry",
    )
    return relation.draw(numbers)
