"""The stage ``attend``: the attention core on its own, as sparse attention kernels have it.

``attend(q [B,S,H,D], kv [B,N,D], indices [B,S,n], sinks [H], scale) -> [B,S,H,D]``

An index names a row of ``kv``, which is key and value at once; -1 names none. Indices are int64 and come in
any order, -1 anywhere. Sinks are logits, not scaled; ``scale`` multiplies q . k. The output has the dtype of
q; a query without any key has an output of exactly zero. Source: the official ``sparse_attn``, paper eq. 27.

What a candidate declares changes the form: indices in int32, ``topk_length [B,S]`` for the places of a list
that count, ``kv`` in pages with a ``block_table``. The specification only sees the plain form.
"""

from __future__ import annotations

import torch

from csa_spec.engine.failures import Failure, OrderMatters
from csa_spec.engine.gradients import gradients_match
from csa_spec.engine.numbers import equals_the_specification
from csa_spec.engine.shrink_flat import FLAT_PASSES
from csa_spec.engine.stage import LIMITS, ROWS, SIDE_EFFECTS, Check, Stage, Words, gradients_check
from csa_spec.engine.tally import Tally
from csa_spec.plug.capabilities import Capabilities
from csa_spec.scripting.stage_script import StageScript
from csa_spec.stages.attend.case import LENGTHS, AttendCase, IndexLists
from csa_spec.stages.attend.picture import attend_picture
from csa_spec.stages.attend.trial import KINDS, AttendTrial, required_forms
from csa_spec.stages.pages import simpler_pages


def order_does_not_matter(trial: AttendTrial) -> Tally | None:
    """Reversing the index list, and adding -1 at both of its ends, changes nothing beyond rounding."""
    if trial.case.picks == 0:
        return None
    try:
        trial.judge(trial.answer)
    except Failure:
        return None  # the business of the equality with the specification
    lacks = trial.capabilities.lacks
    longer = trial.case.picks + 2
    ends = ("attend", IndexLists.LEADING) in lacks or not trial.allows("n", longer)
    reordered = trial.arguments["indices"].flip(-1)
    if ("attend", IndexLists.SHUFFLED) in lacks or ("attend", IndexLists.HOLES) in lacks:
        return None
    if not ends and not trial.capabilities.static_shapes:
        nothing = torch.full_like(reordered[..., :1], -1)
        reordered = torch.cat((nothing, reordered, nothing), dim=-1)
    arguments = {**trial.arguments, "indices": reordered.contiguous()}
    arguments.pop(LENGTHS, None)  # all places count: what was behind a length is -1
    try:
        return trial.judge(trial.ask(arguments))
    except Failure as failure:
        raise OrderMatters(
            trial.case,
            inner=failure.detail,
            place=failure.place,
            expected=failure.expected,
            got=failure.got,
            over_budget=failure.over_budget,
            context=failure.context,
        ) from None


def _required(variant: str, capabilities: Capabilities) -> list[str]:
    names = [name for name in AttendCase.names() if name != IndexLists.OUTSIDE]
    outside = [str(IndexLists.OUTSIDE)] * capabilities.invalid_indices
    return [*names, *KINDS, *outside, *required_forms(capabilities)]


ATTEND = Stage(
    name="attend",
    arguments=("q", "kv", "indices", "sinks", "scale"),
    case=AttendCase,
    trial=AttendTrial,
    checks=(
        Check("specification", "output matches the specification", equals_the_specification, law=False),
        ROWS,
        Check("order", "the order of the index list does not matter", order_does_not_matter),
        *SIDE_EFFECTS,
        gradients_check(gradients_match),
        LIMITS,
    ),
    words=Words(title=lambda variant: "`attend`, the attention core"),
    required=_required,
    passes=(simpler_pages, *FLAT_PASSES),
    picture=attend_picture,
    script=StageScript(),
)
