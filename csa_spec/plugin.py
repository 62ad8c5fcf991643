"""The pytest plugin: ``pytest --pyargs csa_spec.conformance --csa-candidate NAME``.

Options choose what is checked; the tests of ``csa_spec.conformance`` are parametrised with it, one test per
candidate, stage or layer kind, dtype and check, so that they run under pytest-xdist. Nothing heavy is imported unless
a candidate is asked for.

A ``conftest.py`` may give names of its own to candidates, with the hook ``pytest_csa_candidates``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import pytest

_SUMMARY = "csa_spec"
_TARGETS = pytest.StashKey[list[Any]]()
_NOT_OFFERED = "the candidates offer no such stage"


class CandidateHooks:
    """Hooks that a ``conftest.py`` or a plugin may define."""

    @pytest.hookspec
    def pytest_csa_candidates(self, config: pytest.Config) -> dict[str, Any]:  # type: ignore[empty-body]
        """Return candidates by the names that ``--csa-candidate`` takes.

        A value is what ``csa_spec.check`` takes (a function is a layer), or a mapping of stages to functions.
        """


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the hook."""
    pluginmanager.add_hookspecs(CandidateHooks)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("csa-spec", "DeepSeek-V4 attention conformance")
    group.addoption(
        "--csa-candidate",
        action="append",
        metavar="NAME",
        help="a shipped name (transformers, gather, ...), a name from conftest.py or an entry point, or "
        "package.module:object; may be given several times",
    )
    group.addoption(
        "--csa-stage",
        default="all",
        metavar="NAME",
        help="compressor, index_scores, select, attend, layer, or all that it offers (default)",
    )
    group.addoption("--csa-layer", default="all", metavar="KIND", help="csa, hca, sliding or all (default)")
    group.addoption(
        "--csa-profile", default="default", metavar="NAME", help="smoke, default, gpu or thorough"
    )
    group.addoption(
        "--csa-dtype", default="float32", metavar="NAME[,NAME]", help="dtypes, float32 by default"
    )
    group.addoption("--csa-device", default="cpu", metavar="NAME", help="cpu (default) or cuda")
    group.addoption("--csa-seed", default=0, type=int, metavar="N", help="seed of the drawn cases")
    group.addoption("--csa-isolate", action="store_true", help="run candidates in a process of their own")
    group.addoption(
        "--csa-time-limit",
        default=30.0,
        type=float,
        metavar="S",
        help="seconds for one call with --csa-isolate",
    )


def pytest_report_header(config: pytest.Config) -> str | None:
    """Show every option that is in force, so that a typo shows."""
    candidates = config.getoption("csa_candidate")
    if not candidates:
        return None
    names = ("stage", "layer", "profile", "dtype", "device", "seed")
    options = ", ".join(f"{name} {config.getoption(f'csa_{name}')}" for name in names)
    return f"csa-spec: candidates {', '.join(candidates)}; {options}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test that asks for ``csa_target`` the targets of its module's ``STAGE``."""
    if "csa_target" not in metafunc.fixturenames:
        return
    if not metafunc.config.getoption("csa_candidate"):
        metafunc.parametrize(
            "csa_target", [None]
        )  # refused below: an error raised here comes with a traceback
        return
    stage = getattr(metafunc.module, "STAGE", "layer")
    targets = [param for name, param in metafunc.config.stash[_TARGETS] if name == stage]
    metafunc.parametrize("csa_target", targets or [pytest.param(None, id=_NOT_OFFERED)])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Say what to give where nothing was given; leave out tests of stages that no candidate offers."""
    idle = [item for item in items if f"[{_NOT_OFFERED}]" in item.name]
    if idle:
        config.hook.pytest_deselected(items=idle)
        items[:] = [item for item in items if item not in idle]
    if hasattr(config, "workerinput"):
        return
    if not config.getoption("csa_candidate") and any(
        "csa_target" in getattr(i, "fixturenames", ()) for i in items
    ):
        raise pytest.UsageError(
            "csa-spec: say what to check with --csa-candidate NAME (transformers, or pkg.mod:object)"
        )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse what cannot be used before anything is collected, or handed to workers."""
    if session.config.getoption("csa_candidate"):
        session.config.stash[_TARGETS] = _targets(session.config)


def _targets(config: pytest.Config) -> list[Any]:
    """Return pairs of a stage's name and a parameter."""
    from csa_spec.plug.candidate import CandidateError
    from csa_spec.resolving import UsageError, resolve_kinds, resolve_profile, resolve_stages
    from csa_spec.target import make_targets

    option = config.getoption
    # The folder that pytest is run in, where a candidate given as module:object usually lies.
    here = str(config.invocation_params.dir)
    if here not in sys.path:
        sys.path.insert(0, here)
    targets = []
    try:
        profile, stage, layer = (
            resolve_profile(option("csa_profile")),
            option("csa_stage"),
            option("csa_layer"),
        )
        for name in option("csa_candidate"):
            candidate = _candidate(config, name)
            resolve_stages(stage, candidate)
            resolve_kinds(layer)
            made, declined = make_targets(
                candidate, stage, layer, tuple(option("csa_dtype").split(",")), option("csa_device"), profile,
                option("csa_seed"),
            )  # fmt: skip
            for target in made:
                param = pytest.param(target, id=f"{name}-{target.subject}-{target.dtype}")
                targets.append((target.stage.name, param))
            for (of, subject), reason in declined.items():
                skipped = pytest.param(None, id=f"{name}-{subject}", marks=[pytest.mark.skip(reason=reason)])
                targets.append((of, skipped))
    except (UsageError, CandidateError) as error:
        raise pytest.UsageError(f"csa-spec: {error}") from None
    return targets


def _candidate(config: pytest.Config, name: str) -> Any:
    """Return the candidate of a name: one of a conftest's, or any that the command knows."""
    from csa_spec.resolving import isolated, resolve_candidate, resolve_single

    stage = config.getoption("csa_stage")
    own: dict[str, Any] = {}
    for named in config.hook.pytest_csa_candidates(config=config):
        own |= named
    source = own.get(name, name)
    if isinstance(source, dict):
        found, source = resolve_single(source), None
    else:
        found = resolve_candidate(source, stage)
    if name in own:
        found = replace(found, name=name)
    if config.getoption("csa_isolate"):
        found = isolated(found, source, stage, config.getoption("csa_time_limit"))
    return found


@pytest.fixture
def csa_hold(csa_target: Any, request: pytest.FixtureRequest) -> Any:
    """Return a function that holds the target to one check, by name, and fails the test if it does not hold."""

    def hold(name: str) -> None:
        __tracebackhide__ = True
        if csa_target is None:
            pytest.fail("csa-spec: say what to check with --csa-candidate NAME", pytrace=False)
        from csa_spec.report.text import describe

        (check,) = (one for one in csa_target.stage.checks if one.name == name)
        if not csa_target.offers(check):
            pytest.skip(f"the candidate declares nothing that {check.name} could hold it to")
        result = csa_target.run(check)
        covered = [result.cases, result.tally.queries, result.tally.ambiguous, round(result.tally.worst, 2)]
        where = f"{csa_target.candidate.name} {csa_target.subject} {csa_target.dtype}: {check.sentence}"
        row = json.dumps([where, *covered, sorted(result.not_applicable.items())])
        request.node.user_properties.append((_SUMMARY, row))  # record_property would warn under --junitxml
        if result.failures:
            texts = [describe(failure, csa_target.candidate.name, name) for failure in result.failures]
            pytest.fail(f"{check.sentence}, but not here:\n" + "\n\n".join(texts), pytrace=False)
        missing = csa_target.missing(result) if check is csa_target.stage.checks[0] else []
        if missing:
            pytest.fail(
                f"inconclusive: no case of these kinds was reached: {', '.join(missing)}", pytrace=False
            )
        if not result.cases:
            pytest.skip("no drawn case gave this check anything to do")

    return hold


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
        line += f"  error/budget up to {worst}" if worst else ""
        line += (
            f"  not applicable: {', '.join(f'{n} {name}' for name, n in not_applicable)}"
            if not_applicable
            else ""
        )
        terminalreporter.write_line(line)
