"""A training that a library drives: what the callbacks for Keras, Lightning and others share."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar, cast

from tracelens import session as sessions
from tracelens.config import Config, enabled, trace_path
from tracelens.errors import NonFiniteError
from tracelens.session import Session

Hook = TypeVar("Hook", bound=Callable[..., Any])


def hook(method: Hook) -> Hook:
    """Keep a method's failure from the training: it becomes a note in the trace.

    `NonFiniteError` passes: it is what ``nonfinite="raise"`` asks for.
    """

    @functools.wraps(method)
    def careful(self: Training, *args: Any, **kwargs: Any) -> Any:
        if self.session is None or self.session is not sessions.current():
            return None
        try:
            return method(self, *args, **kwargs)
        except NonFiniteError:
            raise
        except Exception as error:
            self.failed(error)
            return None

    return cast(Hook, careful)


class Training:
    """One callback's recordings, each from the beginning to the end of a training.

    In a session that is open already nothing is opened or closed: that one records, and the
    callback marks its steps. With ``TRACELENS=0`` nothing happens.

    Args:
        path: the trace directory. Further trainings with the same callback go beside it, with
            ``-2``, ``-3`` … in their names.
        beside: where the path is taken already, the first training goes beside it too.
        **settings: those of `tracelens.trace`.

    Raises:
        ConfigError: a setting has a value that is not allowed.

    Attributes:
        session: what records now; ``None`` before and after.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, beside: bool = False, **settings: Any
    ) -> None:
        known = [field.name for field in dataclasses.fields(Config) if field.name != "path"]
        unknown = next((name for name in settings if name not in known), None)
        if unknown is not None:
            raise TypeError(f"TraceCallback has no setting {unknown!r}, but {', '.join(known)}")
        tensors = settings.get("tensors")
        if isinstance(tensors, str):
            settings = {**settings, "tensors": (tensors,)}
        self._config = Config(path=trace_path(path), **settings)
        self._runs = 0
        self._beside = beside
        self._own = False
        self._failures: set[str] = set()
        self._finite_at: dict[str, int] = {}
        self.session: Session | None = None

    def begin(self, *, rank: int | None = None) -> bool:
        """Begin to record; False if nothing is to be recorded or it has begun before.

        Args:
            rank: the process's rank where the library knows it, else ``$RANK``.

        Raises:
            SessionError: the trace cannot be written there.
        """
        if self.session is not None and self.session is sessions.current():
            return False
        self.session = sessions.current()
        self._own = self.session is None
        if not self._own or not enabled():
            return self.session is not None
        session = Session(self._numbered(), opened_by="TraceCallback")
        if rank is not None:
            session.rank = rank
        self._runs += 1
        self._finite_at.clear()
        self.session = session.open()
        # Where a library does not tell of an exception that ends the training, this is the end.
        atexit.register(self._close)
        return True

    @hook
    def start_at(self, step: int, *, marked: bool = True) -> None:
        """The running step has this number.

        Args:
            step: how many steps earlier runs of this training made (from a checkpoint).
            marked: the callback marks every step from now on; the framework's plugin marks none.
        """
        self._open().clock.start_at(step, marked=marked)

    @hook
    def step(self, scalars: Mapping[str, Any]) -> None:
        """A step ended.

        Args:
            scalars: numbers or one-element tensors to keep beside it.

        Raises:
            NonFiniteError: ``nonfinite="raise"`` and the step was bad.
        """
        # An aside that a library did not end ends here at the latest.
        self._open().clock.end_aside()
        self._open().step(**scalars)

    @hook
    def late(self, scalars: Mapping[str, Any]) -> None:
        """Numbers that belong to the step that ended last (validation metrics, log entries)."""
        session = self._open()
        session.clock.add_late(dict(scalars))
        for name, value in scalars.items():
            if "loss" not in name.lower() or not isinstance(value, float):
                continue
            if math.isfinite(value):
                self._finite_at[name] = session.current_step
            else:
                self._bad_loss(session, name, value)

    @hook
    def begin_aside(self, what: str) -> None:
        """What follows is no part of a training step (``"validation"``)."""
        self._open().clock.begin_aside(what)

    @hook
    def end_aside(self) -> None:
        """Training goes on.

        Raises:
            NonFiniteError: ``nonfinite="raise"`` and something was bad meanwhile.
        """
        session = self._open()
        session.clock.end_aside()
        session.explain_pending()

    @hook
    def watch(self, model: Any) -> None:
        """Name the layers of a model in reports."""
        self._open().watch(model)

    def numbers(self, values: Mapping[str, Any]) -> dict[str, float]:
        """Return those values that are numbers already, without the program's notice.

        Values on an accelerator are left out: reading one makes the program wait for it.
        """
        found: dict[str, float] = {}
        with self.session.observers.muted() if self.session is not None else nullcontext():
            for name, value in values.items():
                number = _number(value)
                if number is not None:
                    found[str(name)] = number
        return found

    def end(self, error: BaseException | None = None) -> None:
        """The training ended.

        Args:
            error: the exception that ended it.

        Raises:
            NonFiniteError: ``nonfinite="raise"``, no ``error``, and the last step was bad.
        """
        session, self.session = self.session, None
        if session is None or not self._own:
            return
        atexit.unregister(self._close)
        session.clock.end_aside()
        if error is None:
            session.clock.drop_running()
        session.close(error)
        if error is None:
            session.announce()

    def failed(self, error: Exception) -> None:
        """Note that a hook failed, once for each way."""
        line = (str(error).splitlines() or [""])[0][:300]
        message = f"TraceCallback failed: {type(error).__name__}: {line}"
        if message not in self._failures and self.session is not None:
            self._failures.add(message)
            self.session.note("hook_failed", message, severity="error")

    def _open(self) -> Session:
        assert self.session is not None  # `hook` has looked
        return self.session

    def _bad_loss(self, session: Session, name: str, value: float) -> None:
        """Report a loss that a library computed outside of its framework (in NumPy).

        What was found since the loss was last finite made it bad too: that is no news.
        """
        since = self._finite_at.get(name, 0)
        known = session.judge.pending or any(
            finding.get("severity") == "error" and (finding.get("step") or 0) >= since
            for finding in session.findings
        )
        if not known:
            counts = {
                "nan": int(value != value),
                "posinf": int(value > 0),
                "neginf": int(value < 0),
            }
            stats = {"numel": 1, **counts, "vmin": None, "vmax": None}
            session.report_sink(sink="loss", name=name, op_id=-1, value_id=-1, stats=stats)

    def _numbered(self) -> Config:
        path = self._config.path
        if path is None:
            return self._config
        while True:
            name = f"{path.stem}-{self._runs + 1}{path.suffix}" if self._runs else path.name
            place = Path(path).with_name(name)
            if not self._beside or not place.exists():
                return dataclasses.replace(self._config, path=place)
            self._runs += 1

    def _close(self) -> None:
        try:
            self.end()
        except NonFiniteError as error:
            sys.stderr.write(f"tracelens: {error}\n")


def _number(value: Any) -> float | None:
    if isinstance(value, int | float):
        return None if isinstance(value, bool) else float(value)
    kind = getattr(getattr(value, "device", None), "type", "cpu")
    size = getattr(value, "numel", None) or getattr(value, "size", 1)
    if kind != "cpu" or not hasattr(value, "__float__"):
        return None
    return float(value) if (size() if callable(size) else size) == 1 else None


def end_with(owner: type, method: str, trainings: Callable[[Any], Iterable[Training]]) -> None:
    """Let recordings end with an exception that leaves a method; it passes unchanged.

    For libraries that do not tell their callbacks of it.

    Args:
        owner: the class of the method; calling this again for it does nothing.
        method: the method that runs a whole training.
        trainings: finds the recordings of an instance.
    """
    original = getattr(owner, method)
    if hasattr(original, "_tracelens_original"):
        return

    @functools.wraps(original)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, *args, **kwargs)
        except BaseException as error:
            for training in trainings(self):
                training.end(error)
            raise

    run._tracelens_original = original  # type: ignore[attr-defined]
    setattr(owner, method, run)
