"""Checks as pytest tests: what :func:`csa_spec.parametrize` and the plugin's conformance tests share.

Nothing here needs the plugin: with ``-p no:csa_spec`` the tests run all the same, and only the summary is
missing. Torch is imported when the first candidate is looked at.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from csa_spec.engine.running import CheckResult, SoFar
    from csa_spec.engine.stage import Check
    from csa_spec.stages import AnyStage
    from csa_spec.target import Target

F = TypeVar("F", bound=Callable[..., Any])
Failed: Any = pytest.fail.Exception


class CheckFailed(Failed):  # type: ignore[misc]
    """The candidate fails the check; an inconclusive check is another failure, which nobody expects."""


@dataclass(slots=True)
class _Subject:
    """What the tests of one target share in one process."""

    target: Target
    so_far: SoFar | None = None
    """What the first check found, as soon as somebody needs it"""

    def run(self, check: Check[Any]) -> CheckResult:
        """Run a check, which is not judged where the first check fails for the same cause.

        That one may be a test of another process, so it is asked here, once, without making anything small.
        """
        from csa_spec.engine.allowance import Allowance
        from csa_spec.engine.running import SoFar

        subject, target = self, self.target
        first = target.stage.checks[0]

        class Elsewhere(SoFar):
            def reported(self, cause: tuple[object, ...]) -> bool:
                if subject.so_far is None:
                    subject.so_far = SoFar()
                    target.run(first, shrinking=False, so_far=subject.so_far)
                self.causes |= subject.so_far.causes
                return cause in self.causes

        allowance = Allowance(target.profile.patience)
        if check is first:
            so_far = self.so_far = SoFar(allowance)
        else:
            so_far = Elsewhere(allowance, set(self.so_far.causes if self.so_far else ()))
        return target.run(check, so_far=so_far)


@dataclass(eq=False)
class CheckTest:
    """One check of one subject. Calling it fails the test where the candidate fails the check."""

    name: str
    """Of the check"""
    where: str
    """Stage or layer kind, and the dtype"""
    stage: AnyStage
    check: Check[Any]
    subject: _Subject | None
    """None: it is skipped"""
    skipped: str = ""
    """Why, where the check does not apply"""
    tries_known_issues: bool = False
    covered: str = field(default="", repr=False)
    """A row for the summary, once the check was run"""

    def __call__(self) -> None:
        """Run the check.

        Raises
        ------
        CheckFailed
            If the candidate fails it: pytest shows the explanation without a traceback.
        """
        __tracebackhide__ = True
        if self.subject is None:
            pytest.skip(self.skipped)
        result = self.subject.run(self.check)
        self.covered = _row(self.subject.target, result, self.tries_known_issues)
        _judge(self.subject.target, self.check, result)


def check_tests(
    targets: list[Target], declined: Mapping[tuple[str, str], str], first_dtype: str
) -> Iterator[CheckTest]:
    """Yield a test for every check of some targets, and for those that are declined, with the reason.

    Known issues are tried with the first check of a subject in the first dtype, as ``csa-spec check`` does.
    """
    from csa_spec.stages import STAGES

    for target in targets:
        subject, where = _Subject(target), f"{target.subject}-{target.dtype}"
        for check in target.stage.checks:
            reason = f"check {check.name!r} does not apply: the candidate declares nothing that it is about"
            skipped = "" if target.offers(check) else reason
            tries = check is target.stage.checks[0] and target.dtype == first_dtype
            yield CheckTest(check.name, where, target.stage, check, subject, skipped, tries)
    for (of, where), reason in declined.items():
        for check in STAGES[of].checks:
            yield CheckTest(check.name, where, STAGES[of], check, None, reason)


def parameter(test: CheckTest, name: str, *marks: pytest.MarkDecorator) -> Any:
    """Return what ``pytest.mark.parametrize`` takes for a test."""
    skipped = (pytest.mark.skip(reason=test.skipped),) if test.skipped else ()
    return pytest.param(test, id=name, marks=(*marks, *skipped))


def parametrize(
    candidate: Any = None,
    *,
    stage: str = "all",
    layer: str = "all",
    dtype: str = "float32",
    device: str = "cpu",
    profile: str = "default",
    seed: int = 0,
    known: str | PathLike[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    **stages: Any,
) -> Callable[[F], F]:
    """Make a pytest test for each check of a candidate out of one test function.

    >>> @csa_spec.parametrize(attend=my_kernel, dtype="bfloat16", profile="smoke")  # doctest: +SKIP
    ... def test_my_kernel(check):
    ...     check()

    The first argument of the function, whatever its name, is the check: a callable that fails the test where
    the candidate fails it. It has ``name`` (of the check) and ``where`` (stage or layer kind, and dtype).
    Other arguments are fixtures as always. The ids are ``attend-specification``, or with several dtypes
    ``attend-bfloat16-specification``.

    Parameters
    ----------
    candidate, stage, layer, dtype, device, profile, seed, known, stages
        As for :func:`csa_spec.check`.
    expected_failures
        Reasons by the name of a check, or by the id of one test: these tests are marked as ``xfail``, strictly,
        so that one that passes fails.

    Raises
    ------
    pytest.Collector.CollectError
        If the candidate cannot be used as asked for: one sentence, which pytest shows for the file.
    """
    from csa_spec.plug.candidate import CandidateError
    from csa_spec.resolving import UsageError

    try:
        tests = _tests(candidate, stages, stage, layer, dtype, device, profile, seed, known)
        parameters = list(_parameters(tests, expected_failures or {}))
    except (UsageError, CandidateError) as error:
        raise pytest.Collector.CollectError(f"csa-spec: {error}") from None

    def decorate(function: F) -> F:
        decorated: F = pytest.mark.parametrize(_first_argument(function), parameters)(function)
        return decorated

    return decorate


def _tests(
    candidate: Any,
    stages: dict[str, Any],
    stage: str,
    layer: str,
    dtype: str,
    device: str,
    profile: str,
    seed: int,
    known: Any,
) -> dict[str, CheckTest]:
    """Return the tests by their ids."""
    from csa_spec.checking import prepared
    from csa_spec.resolving import (
        listed,
        require_seed,
        require_stages,
        require_texts,
        resolve_profile,
    )

    require_texts(stage=stage, layer=layer, profile=profile, dtype=dtype, device=device)
    require_seed(seed)
    require_stages(stages, parametrize)
    dtypes, amounts = listed(dtype), resolve_profile(profile)
    _, targets, declined = prepared(
        candidate, stages, stage, layer, known, None, dtypes, device, amounts, seed
    )
    single = f"-{dtypes[0]}" if len(dtypes) == 1 else ""
    tests = check_tests(targets, declined, dtypes[0])
    return {f"{test.where.removesuffix(single)}-{test.name}": test for test in tests}


def _parameters(tests: Mapping[str, CheckTest], expected: Mapping[str, str]) -> Iterator[Any]:
    """Yield what pytest takes; tests that are expected to fail are marked."""
    _require_known(expected, tests)
    for name, test in tests.items():
        reason = expected.get(name, expected.get(test.name))
        marks = []
        if reason is not None:
            marks = [pytest.mark.xfail(reason=reason, raises=CheckFailed, strict=True)]
        yield parameter(test, name, *marks)


def _require_known(expected: Any, tests: Mapping[str, CheckTest]) -> None:
    from csa_spec.plug.names import did_you_mean, unknown
    from csa_spec.plug.plain import shown
    from csa_spec.resolving import UsageError

    if not isinstance(expected, Mapping):
        given = shown(expected)
        raise UsageError(f"expected_failures must be reasons by the name of a check, not {given}")
    checks = dict.fromkeys(test.name for test in tests.values())
    for name, reason in expected.items():
        if name not in checks and name not in tests:
            known = tests if did_you_mean(name, tests) and not did_you_mean(name, checks) else checks
            raise UsageError(f"expected_failures: {unknown('check', name, known)}")
        if not isinstance(reason, str) or not reason:
            raise UsageError(f"expected_failures: the reason for {name!r} must be text, not {reason!r}")


def _first_argument(function: Callable[..., Any]) -> str:
    """Return the name of the argument that gets the check; that of a method is the one after ``self``."""
    if not isinstance(function, type):
        names = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
        if names:
            return names[0]
    name = getattr(function, "__name__", function)
    raise pytest.Collector.CollectError(
        f"csa-spec: parametrize needs a test function with an argument for the check, and {name} has none; "
        f"write def test_name(check): check()"
    )


def _row(target: Target, result: CheckResult, tries_known_issues: bool) -> str:
    """Return what was covered, for the summary, as JSON: rows of workers travel as text."""
    from csa_spec.report.content import known_issue_line

    issues = target.known_issues() if tries_known_issues else []
    tally = result.tally
    return json.dumps(
        {
            "where": f"{target.candidate.name} {target.subject} {target.dtype}: {result.sentence}",
            "cases": result.cases,
            "queries": tally.queries,
            "ambiguous": tally.ambiguous,
            "worst": round(tally.worst, 2),
            "skipped": sorted(result.not_applicable.items()),
            "known_issues": [f"{target.candidate.name}: {known_issue_line(issue)}" for issue in issues],
        }
    )


def _judge(target: Target, check: Check[Any], result: CheckResult) -> None:
    """Fail or skip the test, unless something was checked and all was right."""
    __tracebackhide__ = True
    from csa_spec.report.text import describe

    if result.failures:
        texts = [describe(failure, target.candidate.name, check.name) for failure in result.failures]
        heading = check.sentence if result.found else result.failures[0].title
        raise CheckFailed(f"FAILED: {heading}\n" + "\n\n".join(texts), pytrace=False)
    missing = target.missing(result) if check is target.stage.checks[0] else []
    if missing:
        names = ", ".join(missing)
        pytest.fail(f"inconclusive: no case of these kinds was reached: {names}", pytrace=False)
    if result.state == "not judged":
        first = target.stage.checks[0].sentence
        pytest.skip(f"not judged: the candidate fails here as it does in the check {first!r}")
    if not result.cases:
        pytest.skip(f"check {check.name!r} does not apply to any case that was tried")
