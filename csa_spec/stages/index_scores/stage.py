"""The stage ``index_scores``: how much each query wants each entry.

``index_scores(index_q [B,S,HI,DI], index_k [B,T,DI], head_weights [B,S,HI]) -> scores [B,S,T]``

score[t, s] = sum over heads of w[t, h] * relu(q[t, h] . k[s]). Queries and keys are rotated already, and the
head weights contain all constant factors. Every pair of query and entry is scored; ``select`` decides what
is visible. Scores are float32 or have the dtype of the queries. Source: the official ``Indexer.forward``,
paper eq. 16.

To a candidate that declares ``paged``, ``index_k`` comes in pages with a ``block_table``; it returns a score for
every place of the pages of a row.
"""

from __future__ import annotations

from csa_spec.engine.gradients import gradients_match
from csa_spec.engine.numbers import equals_the_specification
from csa_spec.engine.shrink_flat import FLAT_PASSES
from csa_spec.engine.stage import LIMITS, ROWS, SIDE_EFFECTS, Check, Stage, Words, gradients_check
from csa_spec.scripting.stage_script import StageScript, Task
from csa_spec.stages.index_scores.case import IndexScoresCase
from csa_spec.stages.index_scores.picture import index_scores_picture
from csa_spec.stages.index_scores.trial import KINDS, IndexScoresTrial
from csa_spec.stages.pages import required_pages, simpler_pages


class IndexScoresScript(StageScript):
    """How scripts call it."""

    def compared(self, task: Task) -> list[str]:
        """Leave out the scores of places behind the last entry of a row."""
        entries = task.trial.case.entries
        behind = task.trial.form(task.trial.arguments).shape[-1] != entries
        return [f"got = got[..., :{entries}]  # the rest of the last page holds no entry"] * behind


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
    required=lambda variant, declared: [*IndexScoresCase.names(), *KINDS, *required_pages(declared)],
    passes=(simpler_pages, *FLAT_PASSES),
    picture=index_scores_picture,
    script=IndexScoresScript(),
)
