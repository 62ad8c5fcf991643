"""The stage ``index_scores``: how much each query wants each entry.

``index_scores(index_q [B,S,HI,DI], index_k [B,T,DI], head_weights [B,S,HI]) -> scores [B,S,T]``

score[t, s] = sum over heads of w[t, h] * relu(q[t, h] . k[s]). Queries and keys are rotated already, constant factors
are part of the head weights. Every pair of query and entry is scored; visibility is the business of ``select``.
"""

from __future__ import annotations

from csa_spec.engine.gradients import gradients_match
from csa_spec.engine.numbers import equals_the_specification
from csa_spec.engine.stage import LIMITS, ROWS, SIDE_EFFECTS, Check, Stage, Words, gradients_check
from csa_spec.scripting.stage_script import StageScript
from csa_spec.stages.index_scores.case import IndexScoresCase, ProductValues
from csa_spec.stages.index_scores.picture import index_scores_picture
from csa_spec.stages.index_scores.trial import IndexScoresTrial

REQUIRED = (
    *(str(one) for one in ProductValues),
    "several rows",
    "several queries",
    "several index heads",
    "no entries",
    "several entries",
    "negative head weight",
    "negative product",
)

INDEX_SCORES = Stage(
    name="index_scores",
    arguments=("index_q", "index_k", "head_weights"),
    case=IndexScoresCase,
    trial=IndexScoresTrial,
    checks=(
        Check("specification", "scores match the specification", equals_the_specification, law=False),
        ROWS,
        *SIDE_EFFECTS,
        gradients_check(gradients_match),
        LIMITS,
    ),
    words=Words(title=lambda variant: "`index_scores`, the scores of the indexer", output="scores of"),
    required=lambda variant, capabilities: REQUIRED,
    picture=index_scores_picture,
    script=StageScript(),
)
