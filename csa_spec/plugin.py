"""The pytest plugin: ``pytest --pyargs csa_spec.conformance --csa-candidate NAME``.

Options, or settings of the same name in pytest's configuration file, choose what is checked. The test of
``csa_spec.conformance`` is parametrised with it: one test per candidate, stage or layer kind, dtype and check,
so that they run under pytest-xdist. Torch is imported only if a candidate is given.

A ``conftest.py`` may give names of its own to candidates, with the hook ``pytest_csa_candidates``.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from csa_spec.pytest_checks import CheckTest, check_tests, parameter

_SUMMARY = "csa_spec"
_PARAMETERS = pytest.StashKey[list[Any]]()
_NO_CANDIDATE = (
    "csa-spec: say what to check with --csa-candidate NAME (e.g. transformers, or package.module:object)"
)


@dataclass(frozen=True, slots=True)
class Option:
    """An option ``--csa-NAME``, and the setting ``csa_NAME`` of pytest's configuration file."""

    name: str
    metavar: str
    default: Any
    help: str
    """May list what there is: ``{stages}``"""
    type: Callable[[str], Any] = str

    @property
    def key(self) -> str:
        """The name of the setting."""
        return f"csa_{self.name.replace('-', '_')}"


CANDIDATE = "one of {candidates}; a name from conftest.py or of an entry point; or package.module:object"
OPTIONS = (
    Option("candidate", "NAME", (), f"{CANDIDATE}. May be given several times"),
    Option("stage", "NAME", "all", "{stages}, or all that the candidate offers (default: all)"),
    Option("layer", "KIND", "all", "{layers} or all (default: all)"),
    Option("profile", "NAME", "default", "{profiles}: how many cases are tried (default: default)"),
    Option("dtype", "NAME[,NAME]", "float32", "{dtypes}: one or several (default: float32)"),
    Option("device", "NAME", "cpu", "{devices} (default: cpu)"),
    Option("seed", "N", 0, "seed of the drawn cases (default: 0)", int),
    Option("known", "FILE", None, "a TOML file of the candidates' known issues"),
    Option("isolate", "", False, "run candidates in a process of their own"),
    Option("time-limit", "S", 30.0, "seconds for one call with --csa-isolate (default: 30)", float),
)
_BY_NAME = {option.name: option for option in OPTIONS}


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
    """Add the options, and a setting for each: what is given nowhere is None, and then at its default."""
    listed = _choices(pluginmanager)
    group = parser.getgroup("csa-spec", "conformance of DeepSeek-V4's attention")
    for option in OPTIONS:
        many, switch = option.default == (), option.default is False
        text = option.help.format_map(listed)
        how: dict[str, Any] = {"type": option.type, "metavar": option.metavar}
        how = {**how, "action": "append"} if many else {"action": "store_true"} if switch else how
        group.addoption(f"--csa-{option.name}", default=None, help=text, **how)
        kind: Any = "linelist" if many else "bool" if switch else "string"
        parser.addini(option.key, text, type=kind, default=None)


def _choices(pluginmanager: pytest.PytestPluginManager) -> Mapping[str, str]:
    """Return what options can be, only for ``--help``, since to know it costs an import of torch."""
    config = pluginmanager.get_plugin("pytestconfig")
    if config is None or not {"-h", "--help"} & set(config.invocation_params.args):
        return defaultdict(str)
    from csa_spec.resolving import choices

    return choices()


def setting(config: pytest.Config, name: str) -> Any:
    """Return an option's value: that of the command line, else of the configuration file, else the default.

    Raises
    ------
    pytest.UsageError
        If the configuration file has something that cannot be the option's value.
    """
    option = _BY_NAME[name]
    given = config.getoption(option.key)
    if given is not None:
        return given
    value = config.getini(option.key)
    if value is None:
        return option.default
    if not isinstance(value, str):
        if isinstance(option.default, str):
            raise pytest.UsageError(
                f"csa-spec: {option.key} must be text, not {value!r}; write it in quotes"
            )
        return value
    if option.name == "known":  # the file that says so lies there, wherever pytest is run
        return config.rootpath / value
    try:
        return option.type(value)
    except ValueError:
        raise pytest.UsageError(f"csa-spec: {option.key} must be a number, not {value[:40]!r}") from None


def pytest_report_header(config: pytest.Config) -> str | None:
    """Show every option that is in force, so that a typo shows."""
    candidates = setting(config, "candidate")
    if not candidates:
        return None
    names = ("stage", "layer", "profile", "dtype", "device", "seed")
    options = ", ".join(f"{name} {setting(config, name)}" for name in names)
    return f"csa-spec: candidates {', '.join(candidates)}; {options}"


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse what cannot be used before anything is collected, or handed to workers.

    A candidate of the configuration file is for every session of the project, most of which have other tests:
    it is looked at once it is needed.
    """
    if session.config.getoption("csa_candidate"):
        _parameters(session.config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that asks for ``csa_check`` every check of every target."""
    if "csa_check" in metafunc.fixturenames:
        try:
            # Without a candidate it is refused below: an error raised here would come with a traceback.
            parameters = _parameters(metafunc.config) or [None]
        except pytest.UsageError as error:
            raise pytest.Collector.CollectError(f"{error}") from None
        metafunc.parametrize("csa_check", parameters, indirect=True)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let ``-k layer`` choose layers, whose tests are named after their kinds only."""
    for test in _tests_of(item):
        item.extra_keyword_matches.add(test.stage.name)


def _tests_of(item: pytest.Item) -> list[CheckTest]:
    """Return the checks among the parameters of a test, its own or that of the decorator."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return [value for value in parameters.values() if isinstance(value, CheckTest)]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Say what to give where nothing was given."""
    idle = not hasattr(config, "workerinput") and not setting(config, "candidate")
    if idle and any("csa_check" in getattr(item, "fixturenames", ()) for item in items):
        raise pytest.UsageError(_NO_CANDIDATE)


def _parameters(config: pytest.Config) -> list[Any]:
    """Return a parameter for every check of every candidate."""
    if _PARAMETERS not in config.stash:
        from csa_spec.plug.candidate import CandidateError
        from csa_spec.resolving import UsageError

        # The folder that pytest is run in, where a candidate given as module:object usually lies.
        here = str(config.invocation_params.dir)
        if here not in sys.path:
            sys.path.insert(0, here)
        try:
            names = setting(config, "candidate")
            config.stash[_PARAMETERS] = [entry for name in names for entry in _parameters_of(config, name)]
        except (UsageError, CandidateError) as error:
            raise pytest.UsageError(f"csa-spec: {error}") from None
    return config.stash[_PARAMETERS]


def _parameters_of(config: pytest.Config, name: str) -> Iterator[Any]:
    """Yield a parameter for every check of a candidate; those that do not apply are marked as skipped."""
    from csa_spec.resolving import listed, resolve_kinds, resolve_profile, resolve_stages
    from csa_spec.target import make_targets

    profile = resolve_profile(setting(config, "profile"))
    stage, layer = setting(config, "stage"), setting(config, "layer")
    dtypes = listed(setting(config, "dtype"))
    candidate = _candidate(config, name)
    resolve_stages(stage, candidate)
    resolve_kinds(layer)
    targets, declined = make_targets(
        candidate, stage, layer, dtypes, setting(config, "device"), profile, setting(config, "seed")
    )
    for test in check_tests(targets, declined, dtypes[0]):
        yield parameter(test, f"{name}-{test.where}-{test.name}")


def _candidate(config: pytest.Config, name: str) -> Any:
    """Return the candidate of a name: one of a conftest's, or any that the command knows."""
    from csa_spec.resolving import isolated, resolve_candidate, resolve_single, with_known_file

    stage, known = setting(config, "stage"), setting(config, "known")
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
    if known is not None:
        candidate = with_known_file(candidate, known)
    if setting(config, "isolate"):
        candidate = isolated(candidate, source, stage, setting(config, "time-limit"))
    return candidate


@pytest.fixture
def csa_check(request: pytest.FixtureRequest) -> Callable[[], None]:
    """Return a function that fails the test where the candidate fails the check."""
    test: CheckTest | None = request.param
    return _refuse if test is None else test


def _refuse() -> None:
    pytest.fail(_NO_CANDIDATE, pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Leave rows for the summary with the test; those of a test that is run again replace the old ones."""
    try:
        return (yield)
    finally:
        tests = _tests_of(item)
        if tests:  # record_property would warn under --junitxml
            others = [entry for entry in item.user_properties if entry[0] != _SUMMARY]
            rows = [(_SUMMARY, test.covered) for test in tests if test.covered]
            item.user_properties[:] = [*others, *rows]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what was covered, also when everything passed."""
    by_test = {
        report.nodeid: json.loads(value)
        for outcome, reports in terminalreporter.stats.items()
        for report in reports
        if getattr(report, "when", None) == "call" and outcome != "rerun"  # of another try of the same test
        for key, value in report.user_properties
        if key == _SUMMARY
    }
    if not by_test:
        return
    rows = sorted(by_test.values(), key=lambda row: row["where"])
    terminalreporter.section("csa-spec: what was covered")
    width = max(len(row["where"]) for row in rows)
    for row in rows:
        line = f"{row['where']:<{width}}  {row['cases']:>5} cases {row['queries']:>7} queries"
        line += f"  {row['ambiguous']} ambiguous" if row["ambiguous"] else ""
        line += f"  largest error {row['worst']} of the tolerance" if row["worst"] else ""
        skipped = ", ".join(f"{count} with {name}" for name, count in row["skipped"])
        line += f"  cases skipped: {skipped} (declared unsupported)" if skipped else ""
        terminalreporter.write_line(line)
    for line in dict.fromkeys(line for row in rows for line in row["known_issues"]):
        terminalreporter.write_line(line)
