"""One recording's life: open the writer, start the backends, count steps, judge, close."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracelens.config import DIRECTORY, Config
from tracelens.errors import NonFiniteError, SessionError
from tracelens.events import STRUCTURAL
from tracelens.judge import Judge, text
from tracelens.lastwords import last_words
from tracelens.observers import Observers
from tracelens.processes import place
from tracelens.steps import Steps
from tracelens.tracepaths import default_path

if TYPE_CHECKING:
    from tracelens.backend import Backend
    from tracelens.storage.writer import ShardWriter

_REMEMBERED_EVENTS = 64

_current: Session | None = None

last_place: tuple[Path, int] | None = None
"""Path and rank of the last recording that was opened, for a debugger that comes after it."""


def current() -> Session | None:
    """Return the session that records in this process, if there is one."""
    return _current


class Session:
    """The live recording that writes one shard of a trace.

    Use `tl.trace` to make one. At most one session records at a time in a process.

    Attributes:
        config: its settings, environment included.
        path: the trace directory.
        rank: this process's rank (``processes.place``); 0 alone.
        world_size: how many processes the run has.
        writer: where backends write records.
        observers: the backends.
        judge: what became of the sinks.
        opened_by: what the user wrote to open it, for messages.
        background: a tool opened it, not the program: it makes way for a session of the
            program's, takes nothing from the environment, and at guard level nothing is sealed:
            the tool copies what it wants and removes the files.
        displaced_by: the session that a background session made way for.
    """

    writer: ShardWriter

    def __init__(
        self, config: Config, *, opened_by: str = "tl.trace", background: bool = False
    ) -> None:
        self.config = config if background else config.with_environment()
        self.background = background
        self.displaced_by: Session | None = None
        self.path = self.config.path or default_path()
        here = place()
        self.rank, self.world_size = here.rank, here.world_size
        self.opened_by = opened_by
        self.observers = Observers(self)
        self.judge = Judge(self)
        self._steps = Steps(self)
        self._lock = threading.RLock()
        self._state = "new"
        self._pid = os.getpid()
        self._noted = 0
        self._recent: dict[str, deque[dict[str, Any]]] = {
            kind: deque(maxlen=_REMEMBERED_EVENTS) for kind in ("step", "data", "note")
        }

    # Life

    def open(self) -> Session:
        """Begin to record.

        Raises:
            SessionError: another session is open, or the trace cannot be written there.
        """
        global _current, last_place
        if self._state != "new":
            raise SessionError("this session was used before; make a new one with tl.trace(...)")
        if _current is not None and _current.background and not self.background:
            _current._make_way(self)
        if _current is not None:
            raise SessionError(
                f"a session opened by {_current.opened_by} already records to {_current.path}; "
                f"sessions do not nest: end it first, or leave this one out"
            )
        self.writer = self._open_writer()
        _current = self
        last_place = (self.path.absolute(), self.rank)
        self._state = "open"
        self.observers.start()
        self._steps.begin()
        return self

    def close(self, error: BaseException | None = None) -> None:
        """End the recording; calling it again does nothing.

        Args:
            error: the exception that ends the program or block, noted in the trace.

        Raises:
            NonFiniteError: ``nonfinite="raise"``, no ``error``, and the last step was bad.
        """
        global _current
        if self._state != "open":
            return
        bad: NonFiniteError | None = None
        with self._lock:
            try:
                if error is not None:
                    self._note_exception(error)
                self._steps.finish()
                self.observers.stop()
                self.judge.explain()
                if error is None:
                    self.judge.act()
            except NonFiniteError as raised:
                bad = raised
            finally:
                self._state = "closed"
                _current = None
                self.writer.close()
        if bad is not None:
            raise bad

    def __enter__(self) -> Session:
        return self.open()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close(error)
        if error is None:
            self.announce()

    def after_fork(self) -> None:
        """In a forked child: leave the parent's trace alone and record nothing."""
        global _current
        _current = None
        self._state = "forked"
        self.observers.abandon()

    def _make_way(self, other: Session) -> None:
        self.displaced_by = other
        self.close()

    # Windows of a background session

    def begin_window(self) -> int:
        """Begin afresh, as if the session had just been opened; return the first step's number.

        Step numbers, op ids and interned values go on; findings, events and what backends
        remember of what they told do not.
        """
        with self._lock:
            self._steps.finish()
            self.judge = Judge(self)
            for recent in self._recent.values():
                recent.clear()
            self._noted = 0
            self.observers.renew()
            self._steps = Steps(self, self._steps.current + 1)
            self._steps.begin()
            return self._steps.current

    def end_window(self) -> int:
        """End the steps and explain what was reported; return how many ops had a bad output."""
        with self._lock:
            self._steps.finish()
            self.judge.explain()
            return self._steps.hits

    # Steps

    @property
    def current_step(self) -> int:
        """The number of the running (or last ended) step, from 0."""
        return self._steps.current

    @property
    def in_step(self) -> bool:
        """Whether a step has begun and not ended."""
        return self._state == "open" and self._steps.running

    def step(self, **scalars: Any) -> None:
        """Mark the end of a training step, with scalars to keep beside it.

        Args:
            **scalars: numbers or one-element tensors, such as ``loss=loss``.

        Raises:
            NonFiniteError: ``nonfinite="raise"`` and the step was bad.
        """
        if self._state != "open":
            return
        with self._lock:
            self._steps.mark(scalars)
            self.judge.act()

    def next_request(self) -> None:
        """Serving: what follows has a number of its own, and no step is written for it."""
        with self._lock:
            self._steps.next_unwritten()

    def explain_answer(self, sink: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Explain a bad answer now; return its finding, and the first one with that cause.

        Args:
            sink: fields of a ``sink`` event.
        """
        with self._lock:
            sink.setdefault("step", self.current_step)
            sink.setdefault("t_ns", self.writer.now_ns())
            return self.judge.explain_answer(sink)

    @property
    def clock(self) -> Steps:
        """The step clock, for callbacks of libraries that drive the training (`training`)."""
        return self._steps

    def auto_step(self, source: str = "") -> None:
        """A backend saw an optimizer step: the end of a step, unless the user marks steps.

        Args:
            source: the backend's framework.

        Raises:
            NonFiniteError: ``nonfinite="raise"`` and the step was bad.
        """
        if self._state != "open":
            return
        with self._lock:
            self._steps.auto(source)
            self.judge.act()

    def framework_imported(self) -> None:
        """A framework was imported: the seconds that took are no part of the first step."""
        with self._lock:
            self._steps.restart_clock()

    def begin_call(self) -> None:
        """A decorated function is called: a step begins, unless one encloses the call."""
        if self._state == "open":
            with self._lock:
                self._steps.enter_call()

    def end_call(self, error: BaseException | None = None) -> None:
        """A decorated function returned or raised: its step ends.

        Raises:
            NonFiniteError: ``nonfinite="raise"``, no ``error``, and the step was bad.
        """
        if self._state != "open":
            return
        with self._lock:
            if error is not None:
                self._note_exception(error)
            if self._steps.leave_call() and error is None:
                self.judge.act()

    # Named values and decorated functions

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return what a decorated call should run, so that backends can replay a bad step."""
        return self.observers.wrap_step(function)

    def tap(self, value: Any, name: str) -> None:
        """Record a value under a name."""
        if self._state == "open":
            self.observers.offer("tap", value, name)

    def watch(self, module: Any, name: str = "", fingerprint_every: int = 0) -> None:
        """Name the parts of a model, and compare its parameters between ranks."""
        if self._state == "open":
            self.observers.offer("watch", module, name)
            if fingerprint_every:
                self.observers.fingerprint(module, name, fingerprint_every)

    def check(self, value: Any, name: str) -> None:
        """Look at a value now.

        Raises:
            NonFiniteError: it is not finite; the error tells the first cause.
        """
        if self._state != "open":
            return
        with self._lock:
            known = len(self.judge.findings)
            self.observers.offer("check", value, name)
            self.judge.explain()
            for finding in self.judge.findings[known:]:
                if (finding.get("sink") or {}).get("sink") == "check":
                    raise NonFiniteError(text(finding), finding)

    # For backends

    @property
    def backends(self) -> tuple[Backend, ...]:
        """The backends that observe now."""
        return tuple(self.observers.running)

    def report_sink(self, **fields: Any) -> None:
        """Store a bad value that reached a sink; it is explained at the end of the step.

        Args:
            **fields: the keys of a ``sink`` event (see ``docs/design.md``).
        """
        fields.setdefault("step", self.current_step)
        fields.setdefault("t_ns", self.writer.now_ns())
        if self._steps.aside:
            fields.setdefault("during", self._steps.aside)
        self.writer.event("sink", **fields)
        self.judge.add(fields)

    def explain_pending(self, *, act: bool = True) -> list[dict[str, Any]]:
        """Explain the reported sinks now and do what ``nonfinite=`` asks.

        Args:
            act: warn, raise or break; pass False where an exception cannot reach the user.

        Raises:
            NonFiniteError: ``act`` and ``nonfinite="raise"`` and a sink is a failure.
        """
        with self._lock:
            found = self.judge.explain()
            if act:
                self.judge.act()
        return found

    def note(
        self, kind: str, message: str, severity: str = "info", step: int | None = None
    ) -> None:
        """Write a note into the trace."""
        self.event(
            "note",
            kind=kind,
            severity=severity,
            message=message,
            step=self.current_step if step is None else step,
        )

    def event(self, t: str, /, **fields: Any) -> None:
        """Write an event into the trace and remember it for explanations.

        Args:
            t: ``"step"``, ``"data"`` or ``"note"``.
            **fields: its keys (see ``docs/design.md``).
        """
        if t != "step":
            self._steps.flush()
        self._recent[t].append({"t": t, **fields})
        self.writer.event(t, **fields)

    def report_finding(self, rule: str, message: str, **fields: Any) -> None:
        """Store a finding about the program's structure, not about values (a retrace, a placement).

        It is listed by ``summary`` and `tl.load`; it never warns, raises or changes a verdict.

        Args:
            rule: its short name (``"retrace"``).
            message: one sentence.
            **fields: further keys of a ``finding`` event (``severity``, ``advice``, ``source``,
                ``step``); severity is ``"info"`` by default.
        """
        self._steps.flush()
        told = {"severity": "info", "step": self.current_step, "rank": self.rank, **fields}
        self.writer.event("finding", rule=rule, verdict=STRUCTURAL, message=message, **told)

    def context(self) -> dict[str, Any]:
        """What the analysis may want to know beside the ops: recent events by kind."""
        self._steps.flush()
        return {
            "data": list(self._recent["data"]),
            "steps": list(self._recent["step"]),
            "notes": list(self._recent["note"]),
        }

    # For the user

    @property
    def findings(self) -> list[dict[str, Any]]:
        """What was found so far, each as it stands in the trace."""
        return list(self.judge.findings)

    def announce(self, *, always: bool = False) -> None:
        """Say on stderr what was found and how to see it; nothing if nothing was.

        What a warning or an exception told already is not told again.

        Args:
            always: say where the trace is even if there is nothing to tell.
        """
        if self.config.quiet:
            return
        lines = last_words(
            self.judge.findings,
            [note for note in self._recent["note"] if note.get("kind") == "hook_failed"],
            self.path,
            is_news=self.config.nonfinite == "record",
            always=always,
        )
        if lines:
            sys.stderr.write("".join(f"tracelens: {line}\n" for line in lines))

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from tracelens.notebook import session_html

        return session_html(self, self._state)

    # Inside

    def _open_writer(self) -> ShardWriter:
        from tracelens.storage.writer import ShardWriter

        if self.path.exists() and self.world_size <= 1:
            raise SessionError(f"{self.path} already exists; choose another path or remove it")
        mode = "flight" if self.config.capture == "guard" else "stream"
        try:
            return ShardWriter(
                self.path,
                rank=self.rank,
                mode=mode,
                framework="",
                world_size=self.world_size,
                sealed_by="nobody" if self.background and mode == "flight" else "helper",
            )
        except OSError as error:
            raise SessionError(
                f"cannot write a trace to {self.path}: {error.strerror or error}; choose another "
                f"path or set {DIRECTORY}"
            ) from None

    def _note_exception(self, error: BaseException) -> None:
        """Note an exception of the program, once on its way through nested calls."""
        # Its id, not itself: an exception keeps every frame of its traceback alive.
        if id(error) == self._noted or isinstance(error, NonFiniteError | GeneratorExit):
            return
        self._noted = id(error)
        lines = str(error).splitlines()
        message = type(error).__name__ + (f": {lines[0][:500]}" if lines else "")
        self.note("exception", message, severity="error")
        self.observers.step_failed(error)


def _in_child() -> None:
    if _current is not None:
        _current.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
