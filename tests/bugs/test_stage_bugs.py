"""Every wrong stage, gradient and cache of the catalogue is found; those that nothing can tell from right ones are not.

Cases are those of the default profile. What is found is not made small here, which keeps this quick.
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

import csa_spec
from csa_spec.bugs import Bug, bugs
from csa_spec.bugs.stream import Cache, wrong_stream
from csa_spec.candidates.recognise import as_candidate
from csa_spec.engine.running import CheckResult, run_check
from csa_spec.engine.stage import Check
from csa_spec.profiles import PROFILES
from csa_spec.stages import STAGES
from csa_spec.target import Target

OURS = {one.name: one for one in bugs() if one.stage != "layer"}
EQUIVALENT = [name for name, one in OURS.items() if one.equivalent]
GRADIENTS = [name for name, one in OURS.items() if one.candidate.capabilities_of(one.stage).gradients]
WRONG = [name for name in OURS if name not in EQUIVALENT and name not in GRADIENTS]


@cache
def target_of(stage: str, variant: str, name: str, sizes: bool = True) -> Target:
    """Return a run of the default profile, or of its small sizes alone, for what one bug declares."""
    profile = replace(PROFILES["default"], sizes=sizes)
    return Target(OURS[name].candidate, STAGES[stage], variant, "float32", "cpu", profile, 0)


@cache
def cases(stage: str, variant: str, check: str, name: str, sizes: bool) -> list[Any]:
    """Return what the default profile tries."""
    return target_of(stage, variant, name, sizes).cases(check_of(stage, check))


def check_of(stage: str, name: str) -> Check:
    """Return a check of a stage by its name."""
    (found,) = (check for check in STAGES[stage].checks if check.name == name)
    return found


def held(one: Bug, check: str, sizes: bool = True) -> CheckResult:
    """Hold a bug to a check until it fails, in the layer kind in which it shows most plainly."""
    variant, stage = str(one.kinds[0]) if one.kinds else "", STAGES[one.stage]
    # Cases do not depend on who is asked, but for the declared gradients: those of the first are taken for all.
    first = next(
        o.name
        for o in OURS.values()
        if o.stage == one.stage and (check != "gradients" or o.name in GRADIENTS)
    )
    tried = cases(one.stage, variant, check, first, sizes)
    return run_check(
        check_of(one.stage, check), one.candidate, stage, tried, variant=variant, enough=1, shrinking=False
    )


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_stage_is_found(name: str) -> None:
    """By the equality with the specification, or by a law."""
    one = OURS[name]
    laws = [check.name for check in STAGES[one.stage].checks if check.name not in ("gradients", "limits")]
    # Most need no large case, so that those come last.
    assert any(held(one, check, sizes).failures for sizes in (False, True) for check in laws)


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_wrong_gradient_is_found(name: str) -> None:
    """By the check of gradients; its forward pass is right."""
    assert held(OURS[name], "gradients").failures


@pytest.mark.parametrize("name", EQUIVALENT)
def test_what_is_equivalent_is_not_found(name: str) -> None:
    """Otherwise the argument why would be wrong."""
    result = held(OURS[name], "specification")
    assert result.failures == []
    assert result.cases >= 60


@pytest.mark.parametrize("name", OURS)
def test_a_bug_can_be_handed_to_another_process_and_plugged_in_by_its_name(name: str) -> None:
    """Whatever made its function."""
    one = OURS[name]
    assert pickle.loads(pickle.dumps(one.function)) is one.function
    assert one.cause.endswith(".")
    assert one.candidate.offers == (one.stage,)


def test_a_stream_becomes_a_bug_by_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its class gives the name, the docstring the cause."""
    registered: list[Bug] = []
    monkeypatch.setattr("csa_spec.bugs.bug.REGISTERED", registered)

    @wrong_stream("https://github.com/a/b/pull/1")
    class LosesEverything(Cache):
        """Nothing is kept."""

        def finish(self, slot: Any, start: int) -> None:
            """Drop it."""
            slot.keys = []

    (one,) = registered
    assert str(one) == "loses everything (b #1)"
    assert one.cause == "Nothing is kept."
    assert one.stage == "cache"
    report = csa_spec.check(
        as_candidate(one.function, one.name, one.stage), profile="smoke", layer="sliding"
    )
    assert str(report.verdict) == "not conformant"
