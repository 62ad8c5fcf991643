"""The stage ``compressor``: one entry for every complete block of tokens.

``compressor(hidden [B,S,E], weights, geometry) -> entries [B,T,D]``, T = S // compress_ratio

``weights`` is a :class:`csa_spec.CompressorWeights`. Rows are whole documents from position 0, and an entry
is rotated to the position of its block's first token. ``geometry.overlap`` says whether blocks overlap (CSA)
or not (HCA). The indexer's compressor is the same function with its own weights. Source: the official
``Compressor``.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from csa_spec.engine.failures import PrefixDiffers
from csa_spec.engine.gradients import gradients_match
from csa_spec.engine.numbers import equals_the_specification
from csa_spec.engine.stage import LIMITS, ROWS, SIDE_EFFECTS, Check, Stage, Words, gradients_check
from csa_spec.engine.tally import Tally
from csa_spec.engine.tensors import dtype_of
from csa_spec.stages.compressor.case import CompressorCase, TokenValues
from csa_spec.stages.compressor.picture import compressor_picture
from csa_spec.stages.compressor.script import CompressorScript
from csa_spec.stages.compressor.trial import KINDS, CompressorTrial


def a_prefix_gives_the_same_entries(trial: CompressorTrial) -> Tally | None:
    """Entries of a prefix are those of the whole; so later tokens never change them."""
    case = trial.case
    keep = case.seed % case.tokens
    whole = trial.relevant(trial.answer).double()
    if keep == 0 or whole.isnan().any():
        return None
    hidden = trial.arguments["hidden"][:, :keep].contiguous()
    shorter = replace(case, blocks=keep // case.compress_ratio, tail=keep % case.compress_ratio)
    if not shorter.fits(trial.capabilities):
        return None
    smaller = type(trial)(trial.candidate, shorter)
    entries = smaller.relevant(smaller.ask({**trial.arguments, "hidden": hidden})).double()
    first = whole[:, : entries.shape[1]]
    slack = 16 * torch.finfo(dtype_of(case.dtype)).eps * first.abs()
    allowed = 2 * trial.expected[1][:, : entries.shape[1]] + slack
    wrong = ((entries - first).abs() > allowed).flatten(2).any(-1).nonzero().tolist()
    if wrong:
        b, s = wrong[0]
        raise PrefixDiffers(
            case,
            place=trial.place(b, s),
            column=keep,
            expected=first[b, s].tolist(),
            got=entries[b, s].tolist(),
        )
    return Tally(queries=entries.shape[0] * entries.shape[1])


def _gradients_match(trial: CompressorTrial) -> Tally | None:
    """Gates near -20000 are left out: in 16 bits a single rounding of theirs decides a softmax."""
    return None if trial.case.values is TokenValues.FAR_GATES else gradients_match(trial)


COMPRESSOR = Stage(
    name="compressor",
    arguments=("hidden", "weights", "geometry"),
    case=CompressorCase,
    trial=CompressorTrial,
    checks=(
        Check("specification", "entries match the specification", equals_the_specification, law=False),
        ROWS,
        Check("prefix", "a prefix gives the same entries as the whole", a_prefix_gives_the_same_entries),
        *SIDE_EFFECTS,
        gradients_check(_gradients_match),
        LIMITS,
    ),
    words=Words(title=lambda variant: "`compressor`", output="value of"),
    required=lambda variant, capabilities: [*CompressorCase.names(), *KINDS],
    picture=compressor_picture,
    script=CompressorScript(),
)
