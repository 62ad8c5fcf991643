"""The pytest plugin: ``pytest --pyargs csa_spec.conformance --csa-candidate NAME``.

Options choose what is checked. The test of ``csa_spec.conformance`` is parametrised with it: one test per
candidate, stage or layer kind, dtype and check, so that they run under pytest-xdist. Torch is imported only
if a candidate is given.

A ``conftest.py`` may give names of its own to candidates, with the hook ``pytest_csa_candidates``.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from csa_spec.engine.running import CheckResult
    from csa_spec.engine.stage import Check
    from csa_spec.stages import AnyStage
    from csa_spec.target import Target

_SUMMARY = "csa_spec"
_CHECKS = pytest.StashKey[list[Any]]()
_NO_CANDIDATE = (
    "csa-spec: say what to check with --csa-candidate NAME (e.g. transformers, or package.module:object)"
)


@dataclass(frozen=True, slots=True)
class _Parameter:
    """What one test checks."""

    stage: AnyStage
    check: Check[Any]
    target: Target | None
    """None: it is skipped"""


class CandidateHooks:
    """Hooks that a ``conftest.py`` or a plugin may define."""

    @pytest.hookspec
    def pytest_csa_candidates(self, config: pytest.Config) -> dict[str, Any]:  # type: ignore[empty-body]
        """Return candidates by the names that ``--csa-candidate`` takes.

        A value is what ``csa_spec.check`` takes as a candidate, or a dict of functions by stage.
        """


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the hook."""
    pluginmanager.add_hookspecs(CandidateHooks)


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the options."""
    listed = _choices(pluginmanager)
    group = parser.getgroup("csa-spec", "conformance of DeepSeek-V4's attention")
    group.addoption(
        "--csa-candidate",
        action="append",
        metavar="NAME",
        help=f"one of {listed['candidates']}; a name from conftest.py or of an entry point; or "
        "package.module:object. May be given several times",
    )
    for option, metavar, default, text in (
        ("--csa-stage", "NAME", "all", f"{listed['stages']}, or all that the candidate offers"),
        ("--csa-layer", "KIND", "all", f"{listed['layers']} or all"),
        ("--csa-profile", "NAME", "default", f"{listed['profiles']}: how many cases are tried"),
        ("--csa-dtype", "NAME[,NAME]", "float32", f"{listed['dtypes']}: one or several"),
        ("--csa-device", "NAME", "cpu", listed["devices"]),
    ):
        group.addoption(option, default=default, metavar=metavar, help=f"{text} (default: {default})")
    group.addoption(
        "--csa-seed", default=0, type=int, metavar="N", help="seed of the drawn cases (default: 0)"
    )
    group.addoption("--csa-isolate", action="store_true", help="run candidates in a process of their own")
    group.addoption(
        "--csa-time-limit",
        default=30.0,
        type=float,
        metavar="S",
        help="seconds for one call with --csa-isolate (default: 30)",
    )


def _choices(pluginmanager: pytest.PytestPluginManager) -> Mapping[str, str]:
    """Return what options can be, only for ``--help``, since to know it costs an import of torch."""
    config = pluginmanager.get_plugin("pytestconfig")
    if config is None or not {"-h", "--help"} & set(config.invocation_params.args):
        return defaultdict(str)
    from csa_spec.resolving import choices

    return choices()


def pytest_report_header(config: pytest.Config) -> str | None:
    """Show every option that is in force, so that a typo shows."""
    candidates = config.getoption("csa_candidate")
    if not candidates:
        return None
    names = ("stage", "layer", "profile", "dtype", "device", "seed")
    options = ", ".join(f"{name} {config.getoption(f'csa_{name}')}" for name in names)
    return f"csa-spec: candidates {', '.join(candidates)}; {options}"


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse what cannot be used before anything is collected, or handed to workers."""
    if session.config.getoption("csa_candidate"):
        session.config.stash[_CHECKS] = _parameters(session.config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that asks for ``csa_check`` every check of every target."""
    if "csa_check" in metafunc.fixturenames:
        # Without a candidate it is refused below: an error raised here would come with a traceback.
        parameters = metafunc.config.stash.get(_CHECKS, [None])
        metafunc.parametrize("csa_check", parameters, indirect=True)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let ``-k layer`` choose layers, whose tests are named after their kinds only."""
    parameter = getattr(getattr(item, "callspec", None), "params", {}).get("csa_check")
    if isinstance(parameter, _Parameter):
        item.extra_keyword_matches.add(parameter.stage.name)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Say what to give where nothing was given."""
    idle = not config.getoption("csa_candidate") and not hasattr(config, "workerinput")
    if idle and any("csa_check" in getattr(item, "fixturenames", ()) for item in items):
        raise pytest.UsageError(_NO_CANDIDATE)


def _parameters(config: pytest.Config) -> list[Any]:
    """Return a parameter for every check of every candidate."""
    from csa_spec.plug.candidate import CandidateError
    from csa_spec.resolving import UsageError

    # The folder that pytest is run in, where a candidate given as module:object usually lies.
    here = str(config.invocation_params.dir)
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        names = config.getoption("csa_candidate")
        return [parameter for name in names for parameter in _parameters_of(config, name)]
    except (UsageError, CandidateError) as error:
        raise pytest.UsageError(f"csa-spec: {error}") from None


def _parameters_of(config: pytest.Config, name: str) -> Iterator[Any]:
    """Yield a parameter for every check of a candidate; those that do not apply are marked as skipped."""
    from csa_spec.resolving import resolve_kinds, resolve_profile, resolve_stages
    from csa_spec.stages import STAGES
    from csa_spec.target import make_targets

    option = config.getoption
    profile, stage, layer = resolve_profile(option("csa_profile")), option("csa_stage"), option("csa_layer")
    dtypes = tuple(option("csa_dtype").split(","))
    candidate = _candidate(config, name)
    resolve_stages(stage, candidate)
    resolve_kinds(layer)
    targets, declined = make_targets(
        candidate, stage, layer, dtypes, option("csa_device"), profile, option("csa_seed")
    )
    for target in targets:
        for check in target.stage.checks:
            parameter = _Parameter(target.stage, check, target)
            reason = f"check {check.name!r} does not apply: the candidate declares nothing that it is about"
            marks = () if target.offers(check) else pytest.mark.skip(reason=reason)
            yield pytest.param(
                parameter, id=f"{name}-{target.subject}-{target.dtype}-{check.name}", marks=marks
            )
    for (of, subject), reason in declined.items():
        for check in STAGES[of].checks:
            parameter = _Parameter(STAGES[of], check, None)
            yield pytest.param(
                parameter, id=f"{name}-{subject}-{check.name}", marks=pytest.mark.skip(reason=reason)
            )


def _candidate(config: pytest.Config, name: str) -> Any:
    """Return the candidate of a name: one of a conftest's, or any that the command knows."""
    from csa_spec.resolving import isolated, resolve_candidate, resolve_single

    stage = config.getoption("csa_stage")
    from_conftest: dict[str, Any] = {}
    for named in config.hook.pytest_csa_candidates(config=config):
        from_conftest |= named
    source = from_conftest.get(name, name)
    if isinstance(source, dict):
        candidate, source = resolve_single(source), None
    else:
        candidate = resolve_candidate(source, stage)
    if name in from_conftest:
        candidate = replace(candidate, name=name)
    if config.getoption("csa_isolate"):
        candidate = isolated(candidate, source, stage, config.getoption("csa_time_limit"))
    return candidate


@pytest.fixture
def csa_check(request: pytest.FixtureRequest) -> Callable[[], None]:
    """Return a function that fails the test where the candidate fails the check."""

    def run() -> None:
        __tracebackhide__ = True
        if request.param is None:
            pytest.fail(_NO_CANDIDATE, pytrace=False)
        target, check = request.param.target, request.param.check
        result = _run(request.config, target, check)
        _note_coverage(request.node, target, result)
        _judge(target, check, result)

    return run


_SO_FAR = pytest.StashKey[dict[tuple[str, str, str], Any]]()
"""By candidate, subject and dtype: causes for which the first check fails, as far as this process knows"""


def _run(config: pytest.Config, target: Target, check: Check[Any]) -> CheckResult:
    """Run a check, which is not judged where the first check fails for the same cause.

    That one may be a test of another process, so it is asked here, once, without making anything small.
    """
    from csa_spec.engine.allowance import Allowance
    from csa_spec.engine.running import SoFar

    first = target.stage.checks[0]
    known = config.stash.setdefault(_SO_FAR, {})
    place = target.candidate.name, target.subject, target.dtype

    class Elsewhere(SoFar):
        def reported(self, cause: tuple[object, ...]) -> bool:
            if place not in known:
                known[place] = SoFar()
                target.run(first, shrinking=False, so_far=known[place])
            self.causes |= known[place].causes
            return cause in self.causes

    allowance = Allowance(target.profile.patience)
    if check is first:
        so_far = known[place] = SoFar(allowance)
    else:
        so_far = Elsewhere(allowance, set(known[place].causes if place in known else ()))
    return target.run(check, so_far=so_far)


def _note_coverage(test: pytest.Item, target: Target, result: CheckResult) -> None:
    """Leave a row for the summary with the test."""
    covered = [result.cases, result.tally.queries, result.tally.ambiguous, round(result.tally.worst, 2)]
    where = f"{target.candidate.name} {target.subject} {target.dtype}: {result.sentence}"
    row = json.dumps([where, *covered, sorted(result.not_applicable.items())])
    test.user_properties.append((_SUMMARY, row))  # record_property would warn under --junitxml


def _judge(target: Target, check: Check[Any], result: CheckResult) -> None:
    """Fail or skip the test, unless something was checked and all was right."""
    __tracebackhide__ = True
    from csa_spec.report.text import describe

    if result.failures:
        texts = [describe(failure, target.candidate.name, check.name) for failure in result.failures]
        heading = check.sentence if result.found else result.failures[0].title
        pytest.fail(f"FAILED: {heading}\n" + "\n\n".join(texts), pytrace=False)
    missing = target.missing(result) if check is target.stage.checks[0] else []
    if missing:
        names = ", ".join(missing)
        pytest.fail(f"inconclusive: no case of these kinds was reached: {names}", pytrace=False)
    if result.state == "not judged":
        first = target.stage.checks[0].sentence
        pytest.skip(f"not judged: the candidate fails here as it does in the check {first!r}")
    if not result.cases:
        pytest.skip(f"check {check.name!r} does not apply to any case that was tried")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what was covered, also when everything passed."""
    rows = [
        json.loads(value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for key, value in report.user_properties
        if key == _SUMMARY
    ]
    if not rows:
        return
    terminalreporter.section("csa-spec: what was covered")
    width = max(len(row[0]) for row in rows)
    for where, cases, queries, ambiguous, worst, not_applicable in sorted(rows):
        line = f"{where:<{width}}  {cases:>5} cases {queries:>7} queries"
        line += f"  {ambiguous} ambiguous" if ambiguous else ""
        line += f"  largest error {worst} of the tolerance" if worst else ""
        skipped = ", ".join(f"{count} with {name}" for name, count in not_applicable)
        line += f"  cases skipped: {skipped} (declared unsupported)" if skipped else ""
        terminalreporter.write_line(line)
