"""The stage ``select``: which entries each query attends to, given their scores.

``select(scores [B,S,T], positions [B,S], compress_ratio, top_k) -> indices [B,S,<=k]``, -1 = none

Positions are int64 and count from 0; entry s is visible to the query at position p iff s < floor((p + 1) /
compress_ratio), the rule of :mod:`csa_spec.spec.selection`, which names its sources. A list is right iff

* its indices are entries that the query may see, none of them twice,
* there are exactly min(top_k, visible) of them, and -1 elsewhere,
* no visible entry that was left out scores higher than one that was taken.

Any choice among equal scores is right. A NaN has no rank (our convention): it may be taken or left out.
"""

from __future__ import annotations

from csa_spec.engine.numbers import equals_the_specification
from csa_spec.engine.stage import LIMITS, ROWS, SIDE_EFFECTS, Check, Stage, Words
from csa_spec.stages.select.case import SelectCase
from csa_spec.stages.select.picture import select_picture
from csa_spec.stages.select.script import SelectScript
from csa_spec.stages.select.trial import KINDS, SelectTrial

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
    required=lambda variant, capabilities: [*SelectCase.names(), *KINDS],
    picture=select_picture,
    script=SelectScript(),
)
