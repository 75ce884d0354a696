"""What pytest loads: options, markers, fixtures and hooks.

It imports nothing but pytest, so that it costs nothing unused: TraceLens itself is imported by the
first test that is watched.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_tracelens.fixtures import TestTrace
    from pytest_tracelens.policy import Policy
    from pytest_tracelens.watch import Watch

MODES = ("off", "marked", "record", "fail")
BACKENDS = ("auto", "torch", "tensorflow")
FIRST = "tracelens.first_nonfinite"
"""Property of a test's report: the finding in one sentence."""

_MARKERS = (
    "no_nan(inf=True, ignore=(), backward=True): fail the test if it computes a NaN (or an Inf), "
    "in its backward passes too; ignore: patterns of ops, modules or file:line",
    "allow_nan(reason=None): NaN and Inf are meant in this test",
    "trace: keep a trace of every op of this test, whatever the outcome",
)
_FIXTURES = frozenset({"tracelens", "assert_finite"})
_watch_key: pytest.StashKey[Watch] = pytest.StashKey()
_policy_key: pytest.StashKey[Policy] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options; unset they leave the word to the ini file."""
    group = parser.getgroup("tracelens", "non-finite values (tracelens)")
    group.addoption(
        "--nan",
        choices=MODES,
        help="which tests are watched for NaN and Inf: none, those marked no_nan (default), all "
        "without failing them, or all, failing those that compute one",
    )
    group.addoption(
        "--nan-inf",
        dest="nan_inf",
        action="store_true",
        default=None,
        help="an Inf is a failure as a NaN is (default)",
    )
    group.addoption(
        "--no-nan-inf",
        dest="nan_inf",
        action="store_false",
        default=None,
        help="only a NaN is a failure",
    )
    group.addoption(
        "--nan-ignore",
        metavar="PATTERN",
        action="append",
        help="leave out what an op (aten::log), module (encoder.*) or line (model.py:13) makes",
    )
    group.addoption(
        "--tracelens-dir",
        metavar="DIR",
        help="where traces of tests with findings are kept (default: .tracelens)",
    )
    group.addoption(
        "--tracelens-backend",
        choices=BACKENDS,
        help="watch this framework only (default: auto, those that are imported)",
    )
    parser.addini("tracelens_nan", "default of --nan", default="marked")
    parser.addini("tracelens_inf", "default of --nan-inf", type="bool", default=True)
    parser.addini("tracelens_ignore", "patterns as of --nan-ignore", type="linelist")
    parser.addini("tracelens_dir", "default of --tracelens-dir", default=".tracelens")
    parser.addini("tracelens_backend", "default of --tracelens-backend", default="auto")


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers; with --pdb, let the prompt stand at the user's line.

    Raises:
        UsageError: the ini file has a value that is not allowed.
    """
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)
    for name, allowed in (("tracelens_nan", MODES), ("tracelens_backend", BACKENDS)):
        if config.getini(name) not in allowed:
            raise pytest.UsageError(
                f"{name} = {config.getini(name)!r} is not one of {', '.join(allowed)}"
            )
    try:
        config.getini("tracelens_inf")
    except (ValueError, pytest.UsageError) as error:
        raise pytest.UsageError(f"tracelens_inf: {error}: write true or false") from None
    if config.getoption("usepdb", False) and _mode(config) in ("record", "fail"):
        config.option.usepdb_cls = config.option.usepdb_cls or ("tracelens.debugger", "Debugger")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop watching."""
    watch = config.stash.get(_watch_key, None)
    if watch is not None:
        watch.close()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Begin to watch a test before its fixtures are made."""
    asked = _asked_of(item)
    if asked is None:
        return (yield)
    from pytest_tracelens.policy import Policy

    refused = ""
    try:
        policy = Policy.of(item.config, **asked)
    except pytest.UsageError as error:
        refused = str(error)
    if refused:
        yield  # what other plugins prepare is torn down by them
        pytest.fail(refused, pytrace=False)
    item.stash[_policy_key] = policy
    watch = _watch_of(item.config)
    watch.begin(item, policy)
    try:
        result = yield
    except BaseException as error:
        watch.end(item, error)
        raise
    watch.setup_ended()
    return result


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Judge a test that has run; one that failed by itself keeps its own failure."""
    __tracebackhide__ = True
    if _policy_key not in item.stash:
        return (yield)
    watch = _watch_of(item.config)
    try:
        with watch.examples(item):
            result = yield
    except BaseException as error:
        watch.end(item, error)
        raise
    failure = watch.end(item, None)
    if failure is not None:
        failure()
    return result


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stop watching while tests that are not watched run."""
    watch = item.config.stash.get(_watch_key, None)
    if watch is not None and (nextitem is None or _asked_of(nextitem) is None):
        watch.rest()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the causal report to a failed test."""
    report = yield
    watch = item.config.stash.get(_watch_key, None)
    if watch is not None and call.when != "teardown":
        report.sections.extend(watch.sections(item, str(call.when)))
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """List what was found, if anything was."""
    found = [
        report
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) in ("setup", "call")
        and any(name.startswith("tracelens.") for name, _ in report.user_properties)
    ]
    if found:
        from pytest_tracelens.summary import write

        write(terminalreporter, found, quiet=config.get_verbosity() < 0)


def pytest_enter_pdb(config: pytest.Config) -> None:
    """Say what was found before the prompt opens."""
    watch = config.stash.get(_watch_key, None)
    if watch is not None:
        watch.tell_debugger(config)


@pytest.fixture
def tracelens(request: pytest.FixtureRequest) -> TestTrace:
    """The recording of this test: ``.trace``, ``.findings``, ``.step()``."""
    from pytest_tracelens.fixtures import TestTrace

    return TestTrace(request.config.stash.get(_watch_key, None))


@pytest.fixture
def assert_finite() -> Callable[..., Any]:
    """Fail if a tensor, array, number, model, or any in a container is not finite; return it."""
    from pytest_tracelens.fixtures import assert_finite

    return assert_finite


def _mode(config: pytest.Config) -> str:
    return str(config.getoption("nan") or config.getini("tracelens_nan"))


def _asked_of(item: pytest.Item) -> dict[str, Any] | None:
    """Return what a `Policy` is made of, ``None`` if the test is not to be watched."""
    mode = _mode(item.config)
    if mode == "off":
        return None
    asked = not _FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))
    marker = next((m for m in item.iter_markers() if m.name in ("no_nan", "allow_nan")), None)
    meant = marker is not None and marker.name == "allow_nan"
    kept = item.get_closest_marker("trace") is not None
    enforced = (marker is not None or mode == "fail") and not meant
    if not (enforced or asked or kept or (mode == "record" and not meant)):
        return None
    return {
        "marker": None if meant else marker, "fails": enforced, "trace": kept, "meant": meant,
    }  # fmt: skip


def _watch_of(config: pytest.Config) -> Watch:
    watch = config.stash.get(_watch_key, None)
    if watch is None:
        from pytest_tracelens.watch import Watch

        watch = config.stash[_watch_key] = Watch(config)
    return watch
