"""One recording's life: open the writer, start the backends, count steps, judge, close.

A step is marked in one of three ways, the strongest seen wins: ``session.step()``, a call of a
decorated function, an optimizer step that a backend saw. A step that has ended stays open for
its scalars until the next one begins, so ``session.step(loss=loss)`` after a decorated call
names the same step and not a second one.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracelens import discovery
from tracelens.config import DIRECTORY, Config
from tracelens.errors import NonFiniteError, SessionError
from tracelens.judge import Judge, one_line, text

if TYPE_CHECKING:
    from tracelens.backend import Backend
    from tracelens.storage.writer import ShardWriter

_current: Session | None = None
_SUFFIX = ".tltrace"
_REMEMBERED_EVENTS = 64


class Mark(IntEnum):
    """What ends a step, weakest first."""

    NONE = 0
    AUTO = 1
    CALL = 2
    EXPLICIT = 3


def current() -> Session | None:
    """Return the session that records in this process, if there is one."""
    return _current


class Session:
    """The live recording that writes one shard of a trace.

    Use `tl.trace` to make one. At most one session records at a time in a process.

    Attributes:
        config: its settings, environment included.
        path: the trace directory.
        writer: where backends write records.
        current_step: the number of the running (or last ended) step, from 0.
        rank: this process's rank, from ``RANK``; 0 alone.
        opened_by: what the user wrote to open it, for messages.
    """

    writer: ShardWriter

    def __init__(self, config: Config) -> None:
        self.config = config.with_environment()
        self.path = self.config.path or default_path()
        self.rank = _environment_rank()
        self.current_step = 0
        self._judge = Judge(self)
        self._backends: list[Backend] = []
        self._failed: dict[str, str] = {}
        self._watcher: discovery.ImportWatcher | None = None
        self._lock = threading.RLock()
        self._state = "new"
        self._mark = Mark.NONE
        self._depth = 0
        self._running = False
        self._uncommitted: dict[str, Any] | None = None
        self._recent: dict[str, deque[dict[str, Any]]] = {
            kind: deque(maxlen=_REMEMBERED_EVENTS) for kind in ("step", "data", "note")
        }
        self._pid = os.getpid()
        self.opened_by = "tl.trace"

    # Life

    def open(self) -> Session:
        """Begin to record.

        Raises:
            SessionError: another session is open, or the trace cannot be written there.
        """
        global _current
        if self._state != "new":
            raise SessionError("this session was used before; make a new one with tl.trace(...)")
        if _current is not None:
            raise SessionError(
                f"a session opened by {_current.opened_by} already records to {_current.path}; "
                f"sessions do not nest: end it first, or leave this one out"
            )
        from tracelens.storage.writer import ShardWriter

        self._check_path()
        try:
            self.writer = ShardWriter(
                self.path,
                rank=self.rank,
                mode="flight" if self.config.capture == "guard" else "stream",
            )
        except OSError as error:
            raise SessionError(
                f"cannot write a trace to {self.path}: {error.strerror or error}; choose another "
                f"path or set {DIRECTORY}"
            ) from None
        _current = self
        self._state = "open"
        self._start_backends()
        self._begin()
        return self

    def close(self, error: BaseException | None = None) -> None:
        """End the recording; calling it again does nothing.

        Args:
            error: the exception that ends the program or block, noted in the trace.

        Raises:
            NonFiniteError: ``nonfinite="raise"``, no ``error``, and the last step was bad.
        """
        global _current
        if self._state != "open" or self._pid != os.getpid():
            return
        with self._lock:
            pending: NonFiniteError | None = None
            if error is not None:
                self._note_exception(error)
            try:
                partial = self._mark is not Mark.NONE
                if self._running:
                    self._end(partial=partial)
                self._commit()
                if error is None:
                    self._judge.act()
            except NonFiniteError as raised:
                pending = raised
            self._state = "closed"
            if self._watcher is not None:
                self._watcher.remove()
            for backend in reversed(self._backends):
                self._guarded(backend, backend.stop)
            _current = None
            self.writer.close()
        if pending is not None:
            raise pending

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
        if self._watcher is not None:
            self._watcher.remove()
        for backend in self._backends:
            try:
                backend.stop()
            except Exception:
                continue

    # Steps

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
            values = self._scalars(scalars)
            auto_begun = self._mark is Mark.AUTO and self._uncommitted is not None
            self._mark = Mark.EXPLICIT
            if auto_begun:
                # The optimizer's step ended this step a moment ago and began the next one.
                self._merge(values)
                self._commit()
            else:
                self._end(values)
                self._commit()
                if not self._depth:
                    self._begin_next()
            self._judge.act()

    def auto_step(self) -> None:
        """A backend saw an optimizer step: the end of a step, unless the user marks steps."""
        if self._state != "open" or self._mark > Mark.AUTO or self._depth:
            return
        with self._lock:
            self._mark = Mark.AUTO
            self._commit()
            self._end()
            self._begin_next()
            self._judge.act()

    def begin_call(self) -> None:
        """A decorated function is called: a step begins, unless one encloses the call."""
        if self._state != "open":
            return
        with self._lock:
            self._depth += 1
            if self._depth > 1 or self._mark is Mark.EXPLICIT:
                return
            self._mark = Mark.CALL
            if not self._running:
                self._commit()
                self._begin_next()

    def end_call(self, error: BaseException | None = None) -> None:
        """A decorated function returned or raised: its step ends.

        Raises:
            NonFiniteError: ``nonfinite="raise"``, no ``error``, and the step was bad.
        """
        if self._state != "open":
            return
        with self._lock:
            self._depth = max(0, self._depth - 1)
            if error is not None:
                self._note_exception(error)
            if self._depth or self._mark is Mark.EXPLICIT:
                return
            self._end()
            if error is None:
                self._judge.act()

    # Named values and decorated functions

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return what a decorated call should run, so that backends can replay a bad step."""
        for backend in self._backends:
            function = self._guarded(backend, backend.wrap_step, function) or function
        return function

    def tap(self, value: Any, name: str) -> None:
        """Record a value under a name."""
        self._offer("tap", value, name)

    def watch(self, module: Any, name: str = "") -> None:
        """Name the parts of a model."""
        self._offer("watch", module, name)

    def check(self, value: Any, name: str) -> None:
        """Raise `NonFiniteError` with the first cause if a framework's value is not finite."""
        if self._state != "open":
            return
        known = len(self._judge.findings)
        self._offer("check", value, name)
        self._judge.explain()
        for finding in self._judge.findings[known:]:
            if (finding.get("sink") or {}).get("sink") == "check":
                raise NonFiniteError(text(finding), finding)

    def _offer(self, method: str, value: Any, name: str) -> bool:
        """Give a value to the backend whose framework it belongs to."""
        if self._state != "open":
            return False
        return any(
            self._guarded(backend, getattr(backend, method), value, name)
            for backend in self._backends
        )

    # For backends

    def report_sink(self, **fields: Any) -> None:
        """Store a bad value that reached a sink; it is explained at the end of the step.

        Args:
            **fields: the keys of a ``sink`` event (see ``docs/design.md``).
        """
        fields.setdefault("step", self.current_step)
        fields.setdefault("t_ns", self.writer.now_ns())
        self.writer.event("sink", **fields)
        self._judge.add(fields)

    def explain_pending(self, *, act: bool = True) -> list[dict[str, Any]]:
        """Explain the reported sinks now and do what ``nonfinite=`` asks.

        Args:
            act: warn, raise or break; pass False where an exception cannot reach the user.

        Raises:
            NonFiniteError: ``act`` and ``nonfinite="raise"`` and a sink is a failure.
        """
        found = self._judge.explain()
        if act:
            self._judge.act()
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

    def event(self, t: str, **fields: Any) -> None:
        """Write an event into the trace and remember it for explanations.

        Args:
            t: ``"step"``, ``"data"`` or ``"note"``.
            **fields: its keys (see ``docs/design.md``).
        """
        self._recent[t].append({"t": t, **fields})
        self.writer.event(t, **fields)

    @property
    def backends(self) -> tuple[Backend, ...]:
        """The backends that observe now."""
        return tuple(self._backends)

    # For the user

    @property
    def findings(self) -> list[dict[str, Any]]:
        """What was found so far, each as ``tracelens why --json`` prints it."""
        return list(self._judge.findings)

    def context(self) -> dict[str, Any]:
        """What the analysis may want to know beside the ops: recent events by kind."""
        return {
            "data": list(self._recent["data"]),
            "steps": list(self._recent["step"]),
            "notes": list(self._recent["note"]),
        }

    def announce(self, *, always: bool = False) -> None:
        """Say on stderr what was found and how to see it; nothing if nothing was.

        Args:
            always: say where the trace is even if nothing was found.
        """
        if self.config.quiet:
            return
        errors = [f for f in self._judge.findings if f.get("severity") == "error"]
        lines = [f"tracelens: {one_line(finding)}" for finding in errors[:1]]
        if errors:
            lines.append(f"tracelens: for the first cause: tracelens why {self.path}")
        elif always:
            lines.append(f"tracelens: nothing non-finite found; trace in {self.path}")
        if lines:
            sys.stderr.write("\n".join(lines) + "\n")

    # Inside

    def _begin(self) -> None:
        self._running = True
        self._started_ns = self.writer.now_ns()
        self._first_op_id = self.writer.reserve_op_id()
        active = self.config.is_active(self.current_step)
        for backend in self._backends:
            self._guarded(backend, backend.begin_step, self.current_step, active=active)

    def _begin_next(self) -> None:
        self.current_step += 1
        self._begin()

    def _end(self, scalars: dict[str, Any] | None = None, *, partial: bool = False) -> None:
        """End the running step; it stays open for scalars until `_commit`.

        A step that already ended is judged again, for what happened after it.
        """
        values: dict[str, Any] = {}
        for backend in self._backends:
            values.update(self._guarded(backend, backend.end_step, self.current_step) or {})
        self._judge.explain()
        if self._running:
            n_ops = self.writer.reserve_op_id() - self._first_op_id - 1
            hits = int(values.pop("hits", 0))
            self._running = False
            if partial and n_ops <= 0:
                return
            self._uncommitted = {
                "step": self.current_step,
                "start_ns": self._started_ns,
                "duration_ns": self.writer.now_ns() - self._started_ns,
                "n_ops": n_ops,
                "hits": hits,
                "scalars": values,
            }
        self._merge(scalars or {})

    def _merge(self, scalars: dict[str, Any]) -> None:
        if self._uncommitted is not None:
            self._uncommitted["scalars"].update(scalars)

    def _commit(self) -> None:
        if self._uncommitted is not None:
            event, self._uncommitted = self._uncommitted, None
            event["scalars"] = {
                name: number
                for name, value in event["scalars"].items()
                if (number := _number(value)) is not None
            }
            self.event("step", **event)

    def _scalars(self, scalars: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in scalars.items() if value is not None}

    def _start_backends(self) -> None:
        later: list[str] = []
        for framework in discovery.entry_points():
            if discovery.is_imported(framework):
                self._start_backend(framework)
            else:
                later.append(framework)
        self._watcher = discovery.ImportWatcher(later, self._framework_imported)
        self._watcher.install()

    def _framework_imported(self, framework: str) -> None:
        if self._state == "open":
            backend = self._start_backend(framework)
            if backend is not None and self._running:
                active = self.config.is_active(self.current_step)
                self._guarded(backend, backend.begin_step, self.current_step, active=active)

    def _start_backend(self, framework: str) -> Backend | None:
        try:
            backend = discovery.load(framework)
            backend.start(self)
        except Exception as error:
            self.note(
                "hook_failed",
                f"the {framework} backend did not start: {type(error).__name__}: {error}",
                severity="error",
            )
            return None
        self._backends.append(backend)
        return backend

    def _guarded(self, backend: Backend, call: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """Call a backend; its failure is noted once and never stops the program."""
        try:
            return call(*args, **kw)
        except NonFiniteError:
            raise
        except Exception as error:
            message = f"{backend.name}: {call.__name__} failed: {type(error).__name__}: {error}"
            if self._failed.get(call.__name__) != message:
                self._failed[call.__name__] = message
                self.note("hook_failed", message, severity="error")
            return None

    def _note_exception(self, error: BaseException) -> None:
        if isinstance(error, NonFiniteError | GeneratorExit):
            return
        if getattr(error, "_tracelens_noted", None) is self:
            return
        text = str(error).splitlines()
        message = type(error).__name__ + (f": {text[0][:500]}" if text else "")
        self.note("exception", message, severity="error")

    def _check_path(self) -> None:
        if self.path.exists() and _world_size() <= 1:
            raise SessionError(
                f"{self.path} already exists; choose another path or remove it first"
            )


def default_path(name: str | None = None) -> Path:
    """Return a path that does not exist yet, named after the program and the time.

    Args:
        name: the program's name; the running script's by default.
    """
    directory = Path(os.environ.get(DIRECTORY) or ".")
    script = name or Path(getattr(sys.modules["__main__"], "__file__", None) or "session").stem
    stem = f"{script}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = directory / (stem + _SUFFIX)
    number = 2
    while path.exists():
        path = directory / f"{stem}-{number}{_SUFFIX}"
        number += 1
    return path


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except Exception:
        return None


def _environment_rank() -> int:
    text = os.environ.get("RANK", "0")
    return int(text) if text.isdigit() else 0


def _world_size() -> int:
    text = os.environ.get("WORLD_SIZE", "1")
    return int(text) if text.isdigit() else 1


def _in_child() -> None:
    if _current is not None:
        _current.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
