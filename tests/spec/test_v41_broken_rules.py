"""Breaking any single rule of the specification of stacks is noticed by the figures, the second oracle or both."""
# ruff: noqa: D103

from __future__ import annotations

from dataclasses import fields, replace
from enum import StrEnum
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from oracles import TOLERANCE
from stack_rules import RULES, SAME
from stacks import VECTORS, Array, DrawnStack, Scores, draw_stack, make_stack

from csa_spec.spec import Yarn
from csa_spec.spec.v41 import STACK_SPEC, StackSpec
from csa_spec.vectors.figures import check_vectors


class Verdict(StrEnum):
    """What a judge says about a variant of the specification."""

    AGREES = "agrees"
    DISAGREES = "disagrees"
    CRASHES = "crashes"
    """It reads what is not there"""


CANDIDATES: dict[str, Any] = {
    "kv_source_layers": [0], "index_source_layers": [0, 1, 2, 4], "candidate_source_layer": 1, "candidate_blocks": 2,
    "candidate_block_size": 2, "top_k": 3, "window": 2,
}  # fmt: skip
TWO_OWNERS: dict[str, Any] = {
    "compress_ratios": [2, 2, 1, 1], "kv_source_layers": [0, 2], "index_source_layers": [0, 2], "top_k": 2,
    "window": 2, "yarn": Yarn(4.0, 16),
}  # fmt: skip

BOTH = (Verdict.DISAGREES, Verdict.DISAGREES)
ORACLE = (Verdict.AGREES, Verdict.DISAGREES)
NOTICED: dict[str, tuple[Verdict, Verdict]] = {
    # They name entries that there are not.
    "incomplete last group dropped with one more": (Verdict.CRASHES, Verdict.CRASHES),
    "own unfinished group visible": (Verdict.CRASHES, Verdict.DISAGREES),
    # The figures have neither ties nor a top_k of 0.
    "the last of ties": ORACLE,
    "all ties at the threshold": ORACLE,
    "a top_k of 0 is unset": ORACLE,
}
"""What the official figures and the second oracle say, where it is not that they both disagree."""


@pytest.mark.parametrize("name", RULES)
def test_a_broken_rule_is_noticed(name: str) -> None:
    spec = replace(STACK_SPEC, **RULES[name])
    said = figures_say(spec), second_oracle_says(spec)
    assert any(verdict is not Verdict.AGREES for verdict in said)
    assert said == NOTICED.get(name, BOTH)


@pytest.mark.parametrize("name", SAME)
def test_the_right_rules_in_whatever_words_pass_the_same_procedure(name: str) -> None:
    spec = replace(STACK_SPEC, **SAME[name])
    assert (figures_say(spec), second_oracle_says(spec)) == (Verdict.AGREES, Verdict.AGREES)


def test_every_rule_is_broken_at_least_once() -> None:
    broken = {rule for rules in RULES.values() for rule in rules}
    assert broken == {field.name for field in fields(StackSpec)}


def figures_say(spec: StackSpec) -> Verdict:
    try:
        agrees = all(result.agrees for result in check_vectors(VECTORS, stack_spec=spec))
    except (IndexError, KeyError, AssertionError):
        return Verdict.CRASHES
    return Verdict.AGREES if agrees else Verdict.DISAGREES


def second_oracle_says(spec: StackSpec) -> Verdict:
    verdict = Verdict.AGREES
    for stack, expected, decoded in _chosen_and_drawn():
        try:
            out = stack.run(spec).out
            if decoded:
                out = torch.cat((out, stack.decode(3, spec=spec)[:, None]), dim=1)
        except (IndexError, KeyError, AssertionError):
            verdict = Verdict.CRASHES
            continue
        if not np.abs(out.numpy() - expected).max() <= TOLERANCE * max(1.0, np.abs(expected).max()):
            return Verdict.DISAGREES
    return verdict


@cache
def _chosen_and_drawn() -> list[tuple[DrawnStack, Array, bool]]:
    """Stacks, the second oracle's outputs, and whether the specification is to decode them, too.

    What a token gets does not depend on how many are handed in at once.
    """
    found = []
    for seed in range(2):
        for scores in Scores:
            for ratio in (1, 2):
                stack = make_stack(
                    "19", seed=seed, scores=scores, **CANDIDATES | {"compress_ratios": [ratio] * 5}
                )
                found.append((stack, stack.second(), False))
    for stack in (make_stack("11", seed=seed, **TWO_OWNERS) for seed in range(2)):
        out = stack.second()
        found.append((stack, np.concatenate((out, out), axis=1), True))
    found += [(stack, stack.second(), False) for stack in map(draw_stack, range(40))]
    return found
