"""The stage ``select``: which entries each query attends to, given their scores.

``select(scores [B,S,T], positions [B,S], compress_ratio, top_k) -> indices [B,S,<=k]``, -1 = none

A list is right iff its indices are in range and visible, without duplicates, exactly min(top_k, visible) of them, -1
elsewhere, and no visible entry that was left out scores higher than one that was taken. Any choice among equal
scores is right. A NaN has no rank (our convention): it may stand anywhere, the list must be right all the same.
"""

from __future__ import annotations

from csa_spec.engine.numbers import equals_the_specification
from csa_spec.engine.stage import LIMITS, ROWS, SIDE_EFFECTS, Check, Stage, Words
from csa_spec.stages.select.case import Invisible, ScoreValues, SelectCase
from csa_spec.stages.select.picture import select_picture
from csa_spec.stages.select.script import SelectScript
from csa_spec.stages.select.trial import SelectTrial

REQUIRED = (
    *(str(one) for kind in (ScoreValues, Invisible) for one in kind),
    "several rows",
    "several queries",
    "no entries",
    "top_k of 0",
    "top_k over the number of entries",
    "a query that sees nothing",
    "truncated top-k",
    "everything visible selected",
    "entries after the query",
    "tie across k",
    "more than 65536 entries",
)

SELECT = Stage(
    name="select",
    arguments=("scores", "positions", "compress_ratio", "top_k"),
    case=SelectCase,
    trial=SelectTrial,
    checks=(
        Check("specification", "every selection is valid", equals_the_specification, law=False),
        ROWS,
        *SIDE_EFFECTS,
        LIMITS,
    ),
    words=Words(title=lambda variant: "`select`, the top-k selection", output="selection of"),
    required=lambda variant, capabilities: REQUIRED,
    picture=select_picture,
    script=SelectScript(),
)
