"""Looks at the answers of a served model and explains those that are not finite."""

from __future__ import annotations

import atexit
import dataclasses
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tracelens import session as sessions
from tracelens.config import Config
from tracelens.errors import NonFiniteError, SessionError
from tracelens.judge import reported_here
from tracelens.serving_requests import current_request
from tracelens.session import Session
from tracelens.tracepaths import default_path

Finding = dict[str, Any]

_MAX_DEPTH = 4
_MAX_LEAVES = 64
_FREE = 8
"""So many explanations may follow each other at once."""

_SHARE = 20
"""Beyond those, explaining takes at most one part in so many of the time."""


def leaves(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the arrays, tensors and floats of a (nested) answer with their names.

    Args:
        value: what a model returned.
        name: where it stands in the whole answer.
        depth: how deep.

    Examples:
        >>> list(leaves({"scores": [0.5, 1.0], "label": "cat"}))
        [('scores.0', 0.5), ('scores.1', 1.0)]
    """
    if isinstance(value, float) or (hasattr(value, "dtype") and hasattr(value, "shape")):
        yield name, value
    elif depth < _MAX_DEPTH:
        items: Any = ()
        if isinstance(value, Mapping):
            items = value.items()
        elif isinstance(value, list | tuple):
            items = enumerate(value[:_MAX_LEAVES])
        elif hasattr(value, "__dataclass_fields__"):
            items = vars(value).items()
        for key, item in items:
            yield from leaves(item, f"{name}.{key}" if name else str(key), depth + 1)


_RENEWED_S = 60.0


class Answers:
    """Judges the answers of every guard of the process.

    A guard records into the open session. Where there is none it opens one of its own, at guard
    level, in which each request has a step number and no step is written: such a session neither
    grows nor slows down however long a server runs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own: Session | None = None
        self._gave_up = False
        self._tokens = float(_FREE)
        self._refilled = 0.0
        self._cost_s = 0.01
        self._last: Finding | None = None
        self._renewed = time.monotonic()
        self._running = 0

    def session(self, path: str | os.PathLike[str] | None) -> Session | None:
        """Return the session to record into; None if nothing can be recorded.

        Args:
            path: where to, if it has to be opened.
        """
        current = sessions.current()
        if current is not None or self._gave_up:
            return current
        with self._lock:
            current = sessions.current()
            if current is None:
                current = self._opened(path)
        return current

    def begin(self, session: Session) -> None:
        """A request begins in a session: if it is a guard's own, it has a number there."""
        if session is self._own:
            session.next_request()
        with self._lock:
            self._running += 1

    def done(self) -> None:
        """The model of a request that `begin` was called for has answered, or failed."""
        with self._lock:
            self._running -= 1

    def find(self, session: Session | None, name: str, answer: Any) -> list[dict[str, Any]]:
        """Return the sinks of an answer: one for each part that holds a NaN or an Inf.

        Args:
            session: what records.
            name: the model's name.
            answer: what it returned.
        """
        found = []
        step = session.current_step if session is not None else 0
        for number, (part, value) in enumerate(leaves(answer)):
            if number >= _MAX_LEAVES:
                break
            fields = _look(session, value)
            if fields:
                place = f"{name}.{part}" if part else name
                found.append({**fields, "sink": "answer", "name": place, "step": step})
        return found

    def explain(self, session: Session | None, sinks: list[dict[str, Any]]) -> tuple[Finding, bool]:
        """Explain a bad answer by its first bad part; return its finding, and whether it is new.

        Args:
            session: what records.
            sinks: what `find` returned.
        """
        sink = {**sinks[0], "request": current_request()}
        if session is None or not self._may_explain():
            return self._unexplained(session, sink), False
        started = time.monotonic()
        due = started - self._renewed > _RENEWED_S and not self._running
        if due and session is self._own:
            # Backends look into so many failures and no more: a server runs longer than a training.
            self._renewed = started
            session.observers.renew()
        try:
            finding, first = session.explain_answer(sink)
        except Exception as error:
            session.note("hook_failed", f"explaining an answer failed: {error!r}", "error")
            return self._unexplained(None, sink), False
        self._cost_s = time.monotonic() - started
        self._last = first
        if first is not finding:
            self._again(session, first, sink)
        return finding, first is finding

    def _again(self, session: Session, finding: Finding, sink: Finding) -> None:
        """A cause was found again: told at 10, 100, 1000 … times."""
        finding["last_request"] = sink["request"]
        if _is_round(_times(finding)):
            session.note("repeated", _repeated(finding), "warning")

    def _unexplained(self, session: Session | None, sink: Finding) -> Finding:
        """Return the finding of an answer that comes too soon after others to be looked into."""
        where = f" in request {sink['request']}" if sink["request"] else ""
        message = f"the answer of {sink['name']} is not finite{where}"
        last = self._last
        if last is not None and session is not None:
            last["unexplained"] = last.get("unexplained", 0) + 1  # most likely it is as they were
            self._again(session, last, sink)
            message += f"; explained last: {last['message']}"
        from tracelens.analysis.cause import sink_json
        from tracelens.analysis.context import Context

        return {
            "rule": "not-explained",
            "severity": "error",
            "verdict": "non-finite",
            "message": message,
            "step": None,
            "source": None,
            "first_cause": None,
            "sink": sink_json(sink, Context()),
        }

    def _may_explain(self) -> bool:
        """Bound what explanations cost when every answer is bad."""
        with self._lock:
            now = time.monotonic()
            more = (now - self._refilled) / (_SHARE * max(self._cost_s, 1e-3))
            self._tokens, self._refilled = min(float(_FREE), self._tokens + more), now
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True

    def _opened(self, path: str | os.PathLike[str] | None) -> Session | None:
        session = Session(Config(path=_free_path(path), quiet=True), opened_by="tl.guard")
        # What is done with a bad answer is each guard's own matter.
        session.config = dataclasses.replace(session.config, nonfinite="record")
        try:
            session.open()
            # It was opened by nobody's wish: from now on any other session may take its place.
            session.background = True
        except SessionError as error:
            self._gave_up = True
            message = f"tl.guard checks answers but cannot name causes: {error}"
            warnings.warn(message, RuntimeWarning, stacklevel=4)
            return None
        if self._own is None:
            atexit.register(self.close)
        self._own = session
        return session

    def close(self) -> None:
        """End the guards' own session, with the counts of what was found."""
        session, self._own = self._own, None
        if session is None or session is not sessions.current():
            return
        for finding in session.findings:
            if _times(finding) > 1:
                session.note("repeated", _repeated(finding), "warning")
        session.clock.drop_running()
        session.close()
        if any(finding.get("severity") == "error" for finding in session.findings):
            sys.stderr.write(f"tracelens: an answer was not finite: tracelens why {session.path}\n")


@contextmanager
def collecting() -> Iterator[list[dict[str, Any]]]:
    """Collect the sinks that backends report here meanwhile, instead of judging them."""
    found: list[dict[str, Any]] = []
    token = reported_here.set(found)
    try:
        yield found
    finally:
        reported_here.reset(token)


def _look(session: Session | None, value: Any) -> dict[str, Any]:
    """Return the fields of a value's sink if it holds a NaN or an Inf, else nothing."""
    if isinstance(value, float):
        return {} if math.isfinite(value) else _of_array(value)
    if session is not None:
        fields = session.observers.look(value)
        if fields is not None:
            return fields
    array = value if "numpy" in sys.modules and hasattr(value, "__array_interface__") else None
    if array is None and hasattr(value, "isfinite"):
        return {} if bool(value.isfinite().all()) else {"value_id": -1, "op_id": -1}
    return _of_array(array) if array is not None else {}


def _of_array(array: Any) -> dict[str, Any]:
    import numpy as np

    from tracelens import stats

    array = np.asarray(array)
    if array.dtype.kind not in "fc" or bool(np.isfinite(array).all()):
        return {}
    fields: dict[str, Any] = {
        "value_id": -1,
        "op_id": -1,
        "dtype": array.dtype.name,
        "shape": list(array.shape),
    }
    measured = stats.measure(array)
    names = ("numel", "nan", "posinf", "neginf", "vmin", "vmax")
    fields["stats"] = {name: getattr(measured, name) for name in names}
    fields["first_bad"] = [int(place) for place in stats.first_bad(array)]
    return fields


def _free_path(path: str | os.PathLike[str] | None) -> Any:
    """Return the path, or one beside it: servers are restarted, and have several processes."""
    from pathlib import Path

    wanted = Path(path) if path is not None else default_path(f"guard-{os.getpid()}")
    found, number = wanted, 2
    while found.exists():
        found = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
        number += 1
    return found


def _times(finding: Finding) -> int:
    return int(finding.get("count", 1)) + int(finding.get("unexplained", 0))


def _repeated(finding: Finding) -> str:
    last = finding.get("last_request")
    where = f", last in request {last}" if last else ""
    unsure = finding.get("unexplained", 0)
    doubt = f" ({unsure} of them came too fast to be looked into)" if unsure else ""
    times = _times(finding)
    return f"{times} answers were not finite for one cause{doubt}{where}: {finding['message']}"


def _is_round(count: int) -> bool:
    return count >= 10 and 10 ** (len(str(count)) - 1) == count


def raise_for(finding: Finding) -> None:
    """Raise the error of a finding.

    Raises:
        NonFiniteError: always.
    """
    from tracelens.judge import text

    raise NonFiniteError(text(finding), finding)


answers = Answers()
