"""Every wrong layer of the catalogue is found, every equivalent one is not, and each says what it is."""
# ruff: noqa: D103

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import islice

import pytest

from csa_spec.bugs import Bug, bugs
from csa_spec.checking import Target, resolve_profile
from csa_spec.harness.candidate import LAYER
from csa_spec.harness.case import Case
from csa_spec.harness.engine import failure_of
from csa_spec.harness.failures import Failure
from csa_spec.spec import LayerKind
from csa_spec.stages import LAYER_STAGE

LAYERS = [one for one in bugs() if one.stage == LAYER]
WRONG = [pytest.param(one, id=one.name) for one in LAYERS if not one.equivalent]
EQUIVALENT = [pytest.param(one, id=one.name) for one in LAYERS if one.equivalent]


@cache
def tried(kind: LayerKind, check: str, gradients: bool) -> list[Case]:
    """Return what the default profile tries, small cases first: most bugs show there, at a tenth of the cost."""
    (found,) = (one for one in LAYER_STAGE.checks if one.name == check)
    able = next(one for one in LAYERS if one.candidate.capabilities.gradients is gradients)
    target = Target(able.candidate, LAYER_STAGE, kind, "float32", "cpu", resolve_profile("default"), 0)
    return sorted(target.cases(found), key=lambda case: len(case.rows) * case.columns)


def failures(bug: Bug) -> Iterator[Failure]:
    gradients = bug.candidate.capabilities.gradients
    for check in LAYER_STAGE.checks:
        for kind in bug.kinds:
            for case in tried(kind, check.name, gradients):
                failure = failure_of(check, bug.candidate, LAYER_STAGE, case)
                if failure is not None:
                    yield failure


@pytest.mark.parametrize("bug", WRONG)
def test_a_wrong_layer_is_found(bug: Bug) -> None:
    assert next(failures(bug), None) is not None


@pytest.mark.parametrize("bug", EQUIVALENT)
def test_a_layer_that_is_wrong_in_words_only_is_not_found(bug: Bug) -> None:
    for kind in bug.kinds:
        cases = tried(kind, "specification", False)
        for case in islice(cases, 0, None, 8):  # from small to large
            assert failure_of(LAYER_STAGE.checks[0], bug.candidate, LAYER_STAGE, case) is None


def test_names_are_unique_and_are_those_of_the_functions() -> None:
    names = [one.name for one in bugs()]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z][a-z0-9_]+", name) for name in names)


@pytest.mark.parametrize("bug", [pytest.param(one, id=one.name) for one in LAYERS])
def test_a_cause_is_one_sentence(bug: Bug) -> None:
    assert re.fullmatch(r"[A-Z`0-9c].*\.", bug.cause)
    assert not re.search(r"\.\s+[A-Z]", bug.cause)
    assert bug.kinds


def test_urls_are_those_of_issues_and_pull_requests() -> None:
    urls = [url for one in bugs() for url in one.urls]
    assert all(re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+/(issues|pull)/[1-9]\d*", url) for url in urls)
    assert all(len(one.urls) == len(set(one.urls)) for one in bugs())


def test_many_bugs_are_real() -> None:
    assert sum(not one.seeded for one in bugs()) >= 60
    assert sum(not one.seeded for one in LAYERS) >= 55
