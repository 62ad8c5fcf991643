"""Every wrong layer of the catalogue is found, every equivalent one is not, and each says what it is."""
# ruff: noqa: D103

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import islice

import pytest

from csa_spec.bugs import Bug, bugs
from csa_spec.engine.failures import Failure
from csa_spec.engine.running import failure_of
from csa_spec.resolving import resolve_profile
from csa_spec.spec import LayerKind
from csa_spec.stages.layer.case import LayerCase
from csa_spec.stages.layer.stage import LAYER
from csa_spec.target import Target

LAYERS = [one for one in bugs() if one.stage == "layer"]
WRONG = [pytest.param(one, id=one.name) for one in LAYERS if not one.equivalent]
EQUIVALENT = [pytest.param(one, id=one.name) for one in LAYERS if one.equivalent]


LAWS = {
    "rounds_differently_in_every_second_call": "repeat",
    "breaks_ties_differently_at_every_call": "repeat",
    "rounds_differently_in_a_batch": "rows",
    "centres_hidden_in_place": "inputs",
    "scales_the_sink_in_place": "inputs",
    "replaces_minus_infinity_in_place": "inputs",
    "pads_hidden_states_in_place": "inputs",
    "draws_random_numbers": "state",
    "keeps_every_output": "growth",
    "reuses_its_buffer": "memory",
    "remembers_answers_by_shape": "own-inputs",
    "detaches_hidden": "gradients",
    "gives_the_sink_no_gradient": "gradients",
    "rotates_in_place_the_output_that_the_backward_pass_needs": "gradients",
}
"""The law that finds a bug that the equality with the specification cannot see."""
LARGE = (
    "cuts_windows_at_chunks_of_300_tokens",
    "sees_at_most_200_entries",
    "reads_whole_pages_of_the_window_behind_24_tokens",
)
"""Bugs that show in large cases only, which are tried first there"""
CHECKS = {check.name: check for check in LAYER.checks}
SPECIFICATION = "specification"


@cache
def tried(kind: LayerKind, check: str) -> list[LayerCase]:
    """Return what the default profile tries, small cases first: most bugs show there, at a tenth of the cost."""
    anything = next(one.candidate for one in LAYERS if one.candidate.capabilities.gradients)
    target = Target(anything, LAYER, str(kind), "float32", "cpu", resolve_profile("default"), 0)
    return sorted(target.cases(CHECKS[check]), key=lambda case: len(case.rows) * case.columns)


def failures(bug: Bug, check: str) -> Iterator[Failure]:
    for kind in bug.kinds:
        cases = tried(kind, check)
        for case in reversed(cases) if bug.name in LARGE else cases:
            failure = failure_of(CHECKS[check], bug.candidate, LAYER, case)
            if failure is not None:
                yield failure


@pytest.mark.parametrize("bug", WRONG)
def test_a_wrong_layer_is_found(bug: Bug) -> None:
    assert next(failures(bug, LAWS.get(bug.name, SPECIFICATION)), None) is not None


@pytest.mark.parametrize("bug", EQUIVALENT)
def test_a_layer_that_is_wrong_in_words_only_is_not_found(bug: Bug) -> None:
    for kind in bug.kinds:
        for case in islice(tried(kind, SPECIFICATION), 0, None, 8):  # from small to large
            assert failure_of(CHECKS[SPECIFICATION], bug.candidate, LAYER, case) is None


def test_names_are_unique_and_are_those_of_the_functions() -> None:
    names = [one.name for one in bugs()]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z][a-z0-9_]+", name) for name in names)


@pytest.mark.parametrize("bug", [pytest.param(one, id=one.name) for one in LAYERS])
def test_a_cause_is_one_sentence(bug: Bug) -> None:
    assert re.fullmatch(r"([A-Z`]|cos ).*\.", bug.cause)
    assert not re.search(r"\.\s+[A-Z]", bug.cause)
    assert bug.kinds


def test_urls_are_those_of_issues_and_pull_requests() -> None:
    urls = [url for one in bugs() for url in one.urls]
    assert all(
        re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+/(issues|pull)/[1-9]\d*", url) for url in urls
    )
    assert all(len(one.urls) == len(set(one.urls)) for one in bugs())


def test_many_bugs_are_real() -> None:
    assert sum(not one.seeded for one in bugs()) >= 60
    assert sum(not one.seeded for one in LAYERS) >= 55
