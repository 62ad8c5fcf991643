"""The stage ``cache``: a layer whose tokens come in several calls.

``open(weights, geometry, batch) -> stream`` and ``stream.extend(hidden [B,n,E]) -> out [B,n,E]``, any number
of times, with any n. Weights, geometry, hidden states and outputs are those of the stage ``layer``; rows
begin empty, at position 0. A stream may also have ``rollback(n)`` (n tokens), ``reset()``,
``reorder(rows)``, ``select(rows)``, ``repeat(times)``, ``clear(rows)``, ``fork() -> stream``, ``save() ->
state``, ``restore(state)``, ``extend_rows(hidden [B,n,E], lengths) -> out [B,n,E]`` and
``rollback_rows(counts)``; :class:`csa_spec.stages.cache.stream.Op` says what they mean. ``lengths`` and
``counts`` have a number for each row, 0 too; where a row has fewer than n tokens, the rest is padding.

The answer after any schedule is the specification's on the tokens that are then in each row, and nothing
else. An operation that a stream does not have, or that raises ``NotImplementedError``, counts as refused.
"""

from __future__ import annotations

from csa_spec.engine.numbers import equals_the_specification
from csa_spec.engine.stage import LIMITS, SIDE_EFFECTS, Check, Stage, Words
from csa_spec.spec import LayerKind
from csa_spec.stages.cache.case import CacheCase
from csa_spec.stages.cache.script import CacheScript
from csa_spec.stages.cache.shrinking import PASSES
from csa_spec.stages.cache.trial import LATE, LONG_FIRST, LONG_LATER, CacheTrial
from csa_spec.stages.layer.picture import layer_picture
from csa_spec.stages.layer.stage import TITLES


def required(kind: str) -> list[str]:
    """Return the kinds of case that a run must reach."""
    blocks = () if kind == LayerKind.SLIDING else ("m - 1", "m", "m + 1")
    return [
        *(f"a call that begins at {length}" for length in (*blocks, "W - 1", "W", "W + 1")),
        *("decoding a token", "a block of 2 to m + 2 tokens", "a later call longer than the window"),
        *(LONG_FIRST, LONG_LATER, LATE, "several rows"),
    ]


CACHE = Stage(
    name="cache",
    arguments=("weights", "geometry", "batch"),
    case=CacheCase,
    trial=CacheTrial,
    checks=(
        Check(
            "specification",
            "every call matches the specification on the tokens that its rows hold",
            equals_the_specification,
            law=False,
        ),
        *SIDE_EFFECTS,
        LIMITS,
    ),
    words=Words(title=lambda kind: f"a sequence of calls on the {TITLES[LayerKind(kind)]} layer"),
    required=lambda kind, capabilities: required(kind),
    variants=tuple(LayerKind),
    effort="heavy",
    passes=PASSES,
    picture=layer_picture,
    script=CacheScript(),
)
