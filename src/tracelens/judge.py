"""Turns the bad values that sinks reported into findings, and does what ``nonfinite=`` asks."""

from __future__ import annotations

import sys
import warnings
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from tracelens.errors import NonFiniteError, NonFiniteWarning
from tracelens.frames import user_frame

if TYPE_CHECKING:
    from tracelens.session import Session

_KEPT_STEPS_BEFORE = 1
"""Steps kept before a bad one in flight mode: a bad update shows one step after it was made."""

_KEPT_MASKED_STEPS = 3
"""Steps kept in flight mode in which a bad value appeared that no sink saw: they name where."""


_MAX_ANSWERS = 256
"""Distinct causes of bad answers that are told: a server may run for ever."""

reported_here: ContextVar[list[dict[str, Any]] | None] = ContextVar("reported_here", default=None)
"""Where sinks go instead of the judge: a guard puts together what one call of a model reported."""


class Judge:
    """Collects the sinks of one session and explains each distinct failure once.

    Attributes:
        findings: the findings so far, in order, each as ``tracelens why --json`` prints it.
        standing: a prompt is open: what a person tries there is nobody's failure.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._pending: list[dict[str, Any]] = []
        self._seen: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._announced = 0
        self._masked_steps = 0
        self.standing = False
        self.findings: list[dict[str, Any]] = []

    @property
    def pending(self) -> bool:
        """Whether a sink waits for its explanation."""
        return bool(self._pending)

    def add(self, sink: dict[str, Any]) -> None:
        """Remember a sink that a backend reported."""
        collected = reported_here.get()
        if collected is not None:
            collected.append(sink)
        elif not self.standing:
            self._pending.append(sink)

    def explain(self) -> list[dict[str, Any]]:
        """Explain the waiting sinks; return the new findings, already written to the trace.

        Sinks of one step are explained from one copy of the ring. A failure that was reported
        before (same sink, same first cause) is only counted.
        """
        if not self._pending:
            return []
        sinks, self._pending = self._pending, []
        session = self._session
        found: list[dict[str, Any]] = []
        try:
            found = self._explained(sinks)
        except Exception as error:
            session.note("hook_failed", f"explaining a sink failed: {error!r}", severity="error")
        for finding in found:
            session.writer.event("finding", **finding)
        steps = [int(sink.get("step", session.current_step)) for sink in sinks]
        session.writer.keep(max(0, min(steps) - _KEPT_STEPS_BEFORE), max(steps))
        self.findings.extend(found)
        return found

    def explain_answer(self, sink: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Explain one sink now, apart from those that wait.

        Returns:
            Its finding, and the first finding with that cause, whose ``count`` was raised: the
            same one if it is new. Then it is in the trace, with its ops.
        """
        from tracelens.analysis import cause
        from tracelens.analysis.live import RingOps

        session = self._session
        source = RingOps(session.writer.committed(), session.writer.strings, rank=session.rank)
        finding = cause.explain(source, sink, context=session.context())
        known = self._seen.get(_key(sink, finding))
        if known is not None:
            known["count"] += 1
            return finding, known
        finding["count"] = 1
        if len(self.findings) < _MAX_ANSWERS:
            self._seen[_key(sink, finding)] = finding
            self.findings.append(finding)
            self._announced = len(self.findings)  # the guard says it
            session.writer.event("sink", **sink)
            session.writer.event("finding", **finding)
            step = int(sink["step"])
            first = (finding.get("first_cause") or {}).get("step")
            if isinstance(first, int) and 0 <= first < step:
                session.writer.keep(first, first)
            session.writer.keep(max(0, step - _KEPT_STEPS_BEFORE), step)
        return finding, finding

    def keep_masked(self, step: int) -> None:
        """Keep the ops of a step that made bad values, so that ``why`` can tell where they are.

        Only the first such steps are kept: a program that masks values does so in every step.
        """
        if self.findings or self._masked_steps >= _KEPT_MASKED_STEPS:
            return
        self._masked_steps += 1
        self._session.writer.keep(step, step)

    def _explained(self, sinks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        from tracelens.analysis import cause
        from tracelens.analysis.context import Context
        from tracelens.analysis.live import RingOps
        from tracelens.analysis.verdict import scaler_handled

        session = self._session
        source = RingOps(session.writer.committed(), session.writer.strings, rank=session.rank)
        context = session.context()
        known = Context.of(context)
        new: list[dict[str, Any]] = []
        for sink in sinks:
            finding = cause.explain(source, sink, context=context)
            if scaler_handled(finding, known):
                continue
            key = _key(sink, finding)
            earlier = self._seen.get(key)
            if earlier is not None:
                earlier["count"] += 1
                continue
            finding["count"] = 1
            self._seen[key] = finding
            new.append(finding)
        return new

    def act(self) -> None:
        """Warn, raise or break for the findings not yet announced.

        Raises:
            NonFiniteError: ``nonfinite="raise"`` and there is a new error.
        """
        new = [f for f in self.findings[self._announced :] if f.get("severity") == "error"]
        mode = self._session.config.nonfinite
        if self.standing or (new and mode == "break" and user_frame() is None):
            # An engine's thread has no line of the user's to stand at: the next one that has does.
            return
        self._announced = len(self.findings)
        if not new or mode == "record":
            return
        if mode == "warn":
            for finding in new:
                warnings.warn(one_line(finding), NonFiniteWarning, stacklevel=_user_depth())
        elif mode == "raise":
            raise NonFiniteError(text(new[0]), new[0])
        else:
            from tracelens.debugger import stop

            stop(self._session, new[0], text(new[0]))


def text(finding: dict[str, Any]) -> str:
    """Return the text report of a finding."""
    from tracelens.analysis.report import render

    return render(finding)


def one_line(finding: dict[str, Any]) -> str:
    """Return the one-sentence message of a finding."""
    from tracelens.analysis.report import one_sentence

    return one_sentence(finding)


def _user_depth() -> int:
    """Return the ``stacklevel`` that makes the caller's warning point at the user's line."""
    frame = sys._getframe(1)
    target = user_frame()
    depth = 1
    while frame is not None and frame is not target:
        frame = frame.f_back  # type: ignore[assignment]
        depth += 1
    return depth


def _key(sink: dict[str, Any], finding: dict[str, Any]) -> tuple[Any, ...]:
    cause = finding.get("first_cause") or {}
    source = cause.get("source") or {}
    return (
        sink.get("sink"),
        sink.get("name"),
        finding.get("rule"),
        cause.get("op"),
        cause.get("phase"),
        source.get("file"),
        source.get("line"),
    )
