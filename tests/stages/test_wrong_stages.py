"""Every mistake in a single stage is rejected in every dtype, with the failure that names it, on a small case."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest
from engine.drawing import draw, stage_corners

import csa_spec
from csa_spec.candidates.recognise import as_candidate
from csa_spec.engine.failures import Failure
from csa_spec.engine.running import CheckResult
from csa_spec.profiles import PROFILES
from csa_spec.stages import STAGES
from csa_spec.strategies import stage_cases
from csa_spec.target import Target
from stages.wrong import WRONG, Wrong

IN_FLOAT32 = [name for name, wrong in WRONG.items() if "float32" in wrong.dtypes]
IN_16_BITS = [
    (name, dtype)
    for name, wrong in WRONG.items()
    for dtype in ("bfloat16", "float16")
    if dtype in wrong.dtypes
]
ROUNDED = [(name, "bfloat16") for name, wrong in WRONG.items() if wrong.dtypes == ("float32", "float16")]


FIRST = {wrong.stage: name for name, wrong in reversed(WRONG.items())}
"""One function of every stage: held to the whole suite as users run it, laws made small and bugs named"""
HELD_TO_LAWS = {(wrong.stage, wrong.kinds): name for name, wrong in reversed(WRONG.items())}
"""One function of every stage and kind of failure: those that are held to the laws too"""


def specification(name: str) -> CheckResult:
    """Hold a wrong function to the smoke profile; return what the equality with the specification found."""
    wrong = WRONG[name]
    if name in FIRST.values():
        return specification_of_the_whole_suite(wrong)
    equality, *laws = STAGES[wrong.stage].checks
    candidate = as_candidate(wrong.function, name, wrong.stage)
    target = Target(candidate, STAGES[wrong.stage], "", "float32", "cpu", PROFILES["smoke"], 0)
    if name in HELD_TO_LAWS.values():
        for law in laws:
            target.run(law, shrinking=False)  # whatever it finds, it must come to an end
    return target.run(equality, naming=False)


def specification_of_the_whole_suite(wrong: Wrong) -> CheckResult:
    """Hold a function to every check; return what the equality with the specification found."""
    arguments: dict[str, Any] = {wrong.stage: wrong.function}
    report = csa_spec.check(**arguments, profile="smoke")
    assert str(report.verdict) == "not conformant"
    (found,) = (result for result in report.results if result.check == "specification")
    assert found.stage == wrong.stage
    return found


@cache
def small_cases(stage: str, dtype: str) -> list[Any]:
    """Return about what the smoke profile tries."""
    return [*stage_corners(stage, dtype), *draw(stage_cases(stage, dtype), 60)]


def kinds_found(name: str, dtype: str) -> list[str]:
    """Return the kinds of failure on corner cases and a few draws, until all that must be found are."""
    wrong, found = WRONG[name], []
    for case in small_cases(wrong.stage, dtype):
        try:
            csa_spec.check_case(as_candidate(wrong.function, name, wrong.stage), case)
        except Failure as failure:
            found.append(failure.kind)
            if set(wrong.kinds) <= set(found):
                break
    return found


def test_there_are_many_wrong_functions_of_every_stage() -> None:
    """A suite that rejects little shows little."""
    counts = Counter(wrong.stage for wrong in WRONG.values())
    assert counts["attend"] >= 14
    assert counts["select"] >= 9
    assert counts["index_scores"] >= 5
    assert counts["compressor"] >= 7
    assert sum(counts.values()) >= 32


@pytest.mark.parametrize("name", IN_FLOAT32)
def test_a_wrong_function_gets_the_failure_that_names_its_mistake(name: str) -> None:
    """All kinds that must be there, and none that says something else; each on a small case, which fails again."""
    wrong, failures = WRONG[name], specification(name).failures
    kinds = {failure.kind for failure in failures}
    assert set(wrong.kinds) <= kinds
    assert kinds <= {*wrong.kinds, *wrong.also}
    for failure in failures:
        if failure.kind in wrong.kinds:
            the_case_is_small_and_fails_again(failure, name)


def the_case_is_small_and_fails_again(failure: Failure, name: str) -> None:
    """A person can follow it by hand, and the line of text is all that is needed."""
    wrong = WRONG[name]
    # The rotary width comes on top: it was no size of a case when the bounds were set.
    assert sum(n for letter, n in failure.case.sizes.items() if letter != "R") <= wrong.size
    with pytest.raises(type(failure)) as again:
        csa_spec.check_case(as_candidate(wrong.function, name, wrong.stage), str(failure.case))
    assert str(again.value) == str(failure)


@pytest.mark.parametrize(("name", "dtype"), IN_16_BITS)
def test_budgets_of_16_bits_are_tight_enough_to_show_every_mistake(name: str, dtype: str) -> None:
    """Corner cases and a few draws find it, and name it."""
    wrong = WRONG[name]
    found = set(kinds_found(name, dtype))
    assert set(wrong.kinds) & found
    assert found <= {*wrong.kinds, *wrong.also}


@pytest.mark.parametrize(("name", "dtype"), ROUNDED)
def test_rounding_to_the_dtype_of_the_inputs_is_no_mistake(name: str, dtype: str) -> None:
    """What is wrong in wider dtypes is what every kernel does in this one."""
    assert kinds_found(name, dtype) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_16_bits_cannot_tell_is_within_their_budgets(dtype: str) -> None:
    """4096 equal high bits are equal."""
    wrong: Wrong = WRONG["keeps_at_most_4096_candidates"]
    large = [case for case in stage_corners("select", dtype) if case.entries > 4096]
    assert large
    for case in large:
        csa_spec.check_case(as_candidate(wrong.function, "buffer", "select"), case)


def test_the_rules_of_a_stage_are_those_of_its_first_check() -> None:
    """What the tests above read is the equality with the specification, in every stage."""
    assert {stage.checks[0].name for stage in STAGES.values()} == {"specification"}
