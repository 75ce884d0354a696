"""One background recording for a whole run of pytest, judged test by test.

A session of its own for each test would cost a helper process and a third of a second. Here the
flight recorder runs on; each test is a window of it, and only what a failing test needs is copied
into a trace.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pytest_tracelens import examples, traces, wording
from pytest_tracelens.policy import Policy
from tracelens import session as sessions
from tracelens.analysis.survivors import first_op_id
from tracelens.config import Config, enabled
from tracelens.errors import SessionError, TraceLensError
from tracelens.findings import places_of
from tracelens.session import Session
from tracelens.storage.excerpt import with_steps_from

Json = dict[str, Any]

FIRST = "tracelens.first_nonfinite"
COUNT = "tracelens.nonfinite_ops"
TRACE = "tracelens.trace"
UNJUDGED = "tracelens.not_judged"


@dataclass
class Verdict:
    """What was found in one test.

    Attributes:
        sentence: the first finding.
        report: the text of its section.
        findings: all findings that count, the first cause first, steps counted from the test's.
        trace: where the trace is, empty if there is none.
    """

    sentence: str
    report: str
    findings: list[Json]
    trace: str


@dataclass
class Window:
    """The stretch of the recording that belongs to one test.

    Attributes:
        policy: how it is judged.
        session: what records it; ``None`` if nothing does.
        place: where it begins in the recording.
        setup_until: id of the op at which the fixtures were ready, -1 not yet.
        setup_findings: what was found by then, where the test has windows of its own.
        verdict: what was found.
        why_not: why it cannot be judged, empty if it can.
        ended: it has been judged.
    """

    policy: Policy
    session: Session | None = None
    place: traces.Place = field(default_factory=traces.Place)
    setup_until: int = -1
    setup_findings: list[Json] = field(default_factory=list)
    verdict: Verdict | None = None
    why_not: str = ""
    ended: bool = False


class Watch:
    """The recording, and the window of the test that runs.

    Args:
        config: pytest's.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._root = config.rootpath
        self._directory = _directory(config)
        backend = config.getoption("tracelens_backend") or config.getini("tracelens_backend")
        self._frameworks = None if backend == "auto" else (str(backend),)
        self._stops = bool(config.getoption("usepdb", False))
        self._session: Session | None = None
        self._scratch: Path | None = None
        self._sections: dict[tuple[str, str], str] = {}
        self._told = ""
        self._node_id = ""
        self.window: Window | None = None

    # A test's life

    def begin(self, item: pytest.Item, policy: Policy) -> None:
        """Begin the window of a test."""
        self._node_id, self._told = item.nodeid, ""
        self._sections.clear()
        window = self.window = Window(policy)
        if not enabled():
            window.why_not = "TRACELENS=0 switches it off"
            return
        try:
            window.session = self._kept_trace(item) if policy.trace else self._flight(policy)
        except (OSError, TraceLensError) as error:
            window.why_not = str(error)
            return
        except Exception as error:
            window.why_not = f"watching it failed: {error!r}"
            return
        window.place = traces.Place.now(window.session)

    def setup_ended(self) -> None:
        """The fixtures of the test are ready."""
        window = self.window
        if window is not None and window.session is not None:
            window.setup_until = window.session.writer.reserve_op_id()

    @contextlib.contextmanager
    def examples(self, item: pytest.Item) -> Iterator[None]:
        """Judge each example of a hypothesis test by itself, so that it shrinks to one report."""
        window = self.window
        if window is None or window.session is None or not examples.has_examples(item):
            yield
            return
        window.setup_findings = self._found(window)
        with examples.wrapped(item, self._begin_example, self._example_failure):
            yield

    def end(self, item: pytest.Item, error: BaseException | None) -> Callable[[], None] | None:
        """Judge the test; return what fails it, if it has to fail for what was found.

        Args:
            item: the test.
            error: the failure of its own; it stays what the test fails with.
        """
        window = self.window
        if window is None:
            return None
        verdict = window.verdict
        try:
            if not window.ended:
                verdict = self._judged(window, item, error)
            if window.policy.trace and window.session is not None:
                window.session.close()
        except Exception as failure:
            window.why_not = f"judging it failed: {failure!r}"
        window.ended = True
        window.verdict = verdict
        if window.why_not:
            item.user_properties.append((UNJUDGED, window.why_not))
        if verdict is None:
            return None
        item.user_properties.append((FIRST, verdict.sentence))
        item.user_properties.append((COUNT, str(len(verdict.findings))))
        if verdict.trace:
            item.user_properties.append((TRACE, verdict.trace))
        phase = "call" if window.setup_until >= 0 else "setup"
        # What hypothesis says of the example is a note, which a failure without traceback hides.
        told = getattr(error, "__notes__", []) if isinstance(error, pytest.fail.Exception) else []
        notes = itertools.takewhile(lambda note: not note.startswith("Explanation"), told)
        self._sections[item.nodeid, phase] = "\n".join([verdict.report, *notes])
        self._told = verdict.sentence
        if error is not None or not window.policy.fails:
            return None
        return lambda: self._fail(verdict)

    def sections(self, item: pytest.Item, phase: str) -> list[tuple[str, str]]:
        """Return the sections to add to the report of one phase of a test."""
        text = self._sections.pop((item.nodeid, phase), "")
        return [("tracelens", text)] if text else []

    def rest(self) -> None:
        """Stop observing until the next test that is watched."""
        if self._session is not None:
            if sessions.current() is self._session:
                self._session.close()
            self._session = None
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    close = rest

    # What fixtures and the debugger ask

    @property
    def findings(self) -> list[Json]:
        """What was found in the running test so far."""
        window = self.window
        if window is None or window.session is None or window.ended:
            return list(window.verdict.findings) if window and window.verdict else []
        window.session.explain_pending(act=False)
        return self._counted(window, window.setup_findings + self._found(window))

    def write_so_far(self) -> Path:
        """Write what the running test has recorded so far as a trace; return where it is.

        Raises:
            SessionError: nothing records it.
        """
        window = self.window
        if window is None or window.session is None or self._displaced(window.session):
            raise SessionError("this test is not recorded: nothing watches it")
        path = self._scratch_directory() / "so-far.tltrace"
        window.session.context()  # what is held back is written by it
        traces.write(window.session, window.place, path, [])
        return path

    def tell_debugger(self, config: pytest.Config) -> None:
        """Say what was found, before a prompt opens."""
        told = self._told or next((wording.sentence(f, self._root) for f in self.findings), "")
        reporter = config.pluginmanager.getplugin("terminalreporter")
        if told and reporter is not None:
            reporter.write_line(f"tracelens: {told}")

    # Inside

    def _flight(self, policy: Policy) -> Session:
        """Return the background session, at the beginning of a window."""
        nonfinite = "raise" if self._stops and policy.fails else "record"
        if self._session is None or sessions.current() is not self._session:
            self._refuse_second()
            self.rest()
            path = self._scratch_directory() / "flight.tltrace"
            self._session = self._opened(path, nonfinite, "guard")
        session = self._session
        session.config = replace(session.config, nonfinite=nonfinite)
        session.begin_window()
        return session

    def _kept_trace(self, item: pytest.Item) -> Session:
        """Return a session that records every op of one test into its trace."""
        self.rest()
        self._refuse_second()
        path = traces.path_of(item.nodeid, self._directory)
        traces.make_room(path)
        nonfinite = (
            "raise" if self._stops and self.window and self.window.policy.fails else "record"
        )
        session = self._opened(path, nonfinite, "ops")
        item.user_properties.append((TRACE, traces.shown(path)))
        return session

    def _opened(self, path: Path, nonfinite: str, capture: str) -> Session:
        config = Config(
            path=path,
            capture=capture,
            nonfinite=nonfinite,
            frameworks=self._frameworks,
            thorough=True,
            quiet=True,
        )
        return Session(config, opened_by="pytest", background=True).open()

    def _refuse_second(self) -> None:
        other = sessions.current()
        if other is not None and other is not self._session:
            raise SessionError(f"a session opened by {other.opened_by} records to {other.path}")

    def _scratch_directory(self) -> Path:
        """Return a directory that goes with the recording."""
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="pytest-tracelens-"))
        return self._scratch

    def _displaced(self, session: Session) -> bool:
        return sessions.current() is not session

    def _judged(
        self, window: Window, item: pytest.Item, error: BaseException | None
    ) -> Verdict | None:
        """Judge what has happened since the window began."""
        session = window.session
        if session is None:
            return None
        if self._displaced(session):
            other = session.displaced_by
            own = f"it records itself to {other.path}" if other is not None else "a fork"
            window.why_not = window.why_not or own
            return None
        hits = session.end_window()
        found = window.setup_findings + self._found(window, hits)
        if error is None:
            # The program was told by an exception, and caught it.
            found = [f for f in found if (f.get("sink") or {}).get("sink") != "check"]
        counted = self._counted(window, found)
        return self._verdict(window, item, counted) if counted else None

    def _found(self, window: Window, hits: int = 1) -> list[Json]:
        """Return the findings of a window: what reached a sink, then what was left."""
        session = window.session
        if session is None or self._displaced(session):
            return []
        return [*session.judge.findings, *(traces.left(session, window.place) if hits else ())]

    def _counted(self, window: Window, found: list[Json]) -> list[Json]:
        counted = [each for each in found if window.policy.counts(each, self._root)]
        counted.sort(key=first_op_id)
        news: dict[tuple[Any, ...], Json] = {}
        for each in counted:
            first = each.get("first_cause") or {}
            frame = first.get("source") or {}
            key = (first.get("op"), first.get("phase"), frame.get("file"), frame.get("line"))
            news.setdefault(key, each)
        return [with_steps_from(window.place.step, each) for each in news.values()]

    def _verdict(self, window: Window, item: pytest.Item, counted: list[Json]) -> Verdict:
        shown = counted[0]
        first = shown.get("first_cause") or {}
        when = f"test step {first.get('step') or 0}"
        if first_op_id(shown) < window.setup_until:
            when = "fixture setup"
        remarks = [f"and {len(counted) - 1} further findings"] if len(counted) > 1 else []
        path = traces.path_of(item.nodeid, self._directory)
        trace = traces.shown(path)
        session = window.session
        assert session is not None
        if not window.policy.trace:
            try:
                traces.write(session, window.place, path, counted)
            except (OSError, TraceLensError) as error:
                remarks.append(f"its trace could not be written: {error}")
                trace = ""
        at = next((op_id for op_id in places_of(shown) if op_id >= 0), None)
        command = f"tracelens view {trace}{'' if at is None else f' --at {at}'}" if trace else ""
        return Verdict(
            wording.sentence(shown, self._root, when=when),
            wording.report(shown, command, remarks),
            counted,
            trace,
        )

    def _begin_example(self) -> None:
        window = self.window
        if window is not None and window.session and not self._displaced(window.session):
            window.ended = False
            window.session.begin_window()
            window.place = traces.Place.now(window.session)
            window.setup_until = window.session.writer.reserve_op_id()

    def _example_failure(self, item: pytest.Item) -> Callable[[], None] | None:
        """Judge an example that went through; return what fails it."""
        window = self.window
        if window is None or window.ended:
            return None
        found = self._judged(window, item, None)
        window.ended = True
        window.verdict = found or (None if window.policy.fails else window.verdict)
        return (lambda: self._fail(found)) if found and window.policy.fails else None

    def _fail(self, verdict: Verdict) -> None:
        __tracebackhide__ = True
        if self._stops:
            self._told = f"{verdict.sentence}; the line has run, so its variables are gone"
            traces.raise_at(verdict.findings[0], verdict.sentence)
        pytest.fail(verdict.sentence, pytrace=False)


def _directory(config: pytest.Config) -> Path:
    told = config.getoption("tracelens_dir")
    if told:
        return config.invocation_params.dir / str(told)
    return config.rootpath / str(config.getini("tracelens_dir"))
