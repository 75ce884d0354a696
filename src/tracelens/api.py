"""The public functions: ``trace``, ``step``, ``tap``, ``watch``, ``check``, ``load``."""

from __future__ import annotations

import atexit
import functools
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from tracelens import session as sessions
from tracelens.config import Config, enabled, trace_path
from tracelens.errors import ConfigError, NonFiniteError, SessionError
from tracelens.schedules import Schedule
from tracelens.session import Session

if TYPE_CHECKING:
    from tracelens.loaded import Trace

Function = TypeVar("Function", bound=Callable[..., Any])
Value = TypeVar("Value")


class Tracer:
    """What ``tl.trace(...)`` returns: a context manager that is a decorator too."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._session: Session | _Inert | None = None

    def __call__(self, function: Function) -> Function:
        """Decorate a function: one call is one step."""
        if not enabled():
            return function
        return cast(Function, _decorated(function, self._config))

    def __enter__(self) -> Session:
        if self._session is not None:
            raise SessionError("this session was used before; make a new one with tl.trace(...)")
        self._session = Session(self._config) if enabled() else _Inert()
        return cast(Session, self._session.__enter__())

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._session is not None:
            self._session.__exit__(kind, error, trace)


@overload
def trace(target: Function, /) -> Function: ...


@overload
def trace(
    target: str | os.PathLike[str] | None = None,
    /,
    *,
    capture: str = "guard",
    nonfinite: str = "record",
    schedule: Schedule | None = None,
    engine: str | None = None,
    tensors: str | Sequence[str] = ("*",),
    tensor_budget_bytes: int = 1 << 30,
    profile: bool = False,
    sample: bool = False,
    quiet: bool = False,
) -> Tracer: ...


def trace(
    target: Any = None,
    /,
    *,
    capture: str = "guard",
    nonfinite: str = "record",
    schedule: Schedule | None = None,
    engine: str | None = None,
    tensors: str | Sequence[str] = ("*",),
    tensor_budget_bytes: int = 1 << 30,
    profile: bool = False,
    sample: bool = False,
    quiet: bool = False,
) -> Any:
    """Record a program: a bare decorator, a decorator with arguments, or a context manager.

    Decorated functions share one session of the process, opened at the first call and closed
    when the program ends; inside a ``with tl.trace(...)`` block they are steps of that session.
    With ``TRACELENS=0`` in the environment the decorator returns the function itself.

    Args:
        target: the function to decorate, or the trace's path (must not exist yet). Without a
            path the trace is named after the script and the time, in ``$TRACELENS_DIR`` or here.
        capture: ``"guard"`` (checks everything, keeps only what led to a finding), ``"ops"``
            (every op with its statistics) or ``"tensors"`` (chosen values too).
        nonfinite: on a NaN or Inf ``"record"`` it, ``"warn"``, ``"raise"`` or ``"break"`` into
            the debugger.
        schedule: which steps are recorded op by op, from `tl.schedule`.
        engine: ``"native"``, ``"python"`` or ``"sentinel"`` (looks at loss and gradients only,
            once a step); the default takes the best that works here.
        tensors: name pattern, or several, whose values ``capture="tensors"`` keeps.
        tensor_budget_bytes: at most this much tensor data is stored.
        profile: keep ops, kernels, copies and memory, from the framework's own profiler.
        sample: keep what the host's Python was doing, 100 times a second, by py-spy.
        quiet: say nothing on stderr at the end.

    Raises:
        ConfigError: an argument or environment variable has a value that is not allowed.

    Examples:
        >>> import tracelens as tl
        >>> @tl.trace(nonfinite="raise")
        ... def train_step(batch):
        ...     return sum(batch)
    """
    if isinstance(target, (staticmethod, classmethod)):
        raise ConfigError("put @tl.trace below @staticmethod or @classmethod, next to the function")
    if callable(target) and not isinstance(target, str | os.PathLike):
        return _decorated(target, Config()) if enabled() else target
    return Tracer(
        Config(
            path=trace_path(target),
            capture=capture,
            nonfinite=nonfinite,
            schedule=schedule,
            engine=engine,
            tensors=(tensors,) if isinstance(tensors, str) else tuple(tensors),
            tensor_budget_bytes=tensor_budget_bytes,
            profile=profile,
            sample=sample,
            quiet=quiet,
        )
    )


def step(**scalars: Any) -> None:
    """Mark the end of a training step of the open session; without one, do nothing.

    Args:
        **scalars: numbers or one-element tensors to keep beside the step.

    Raises:
        NonFiniteError: ``nonfinite="raise"`` and the step was bad.

    Examples:
        >>> import tracelens as tl
        >>> tl.step(loss=0.25)
    """
    session = sessions.current()
    if session is not None:
        session.step(**scalars)


def tap(value: Value, name: str) -> Value:
    """Name a tensor, so that reports and the trace show it under that name; return it.

    Examples:
        >>> import tracelens as tl
        >>> tl.tap([1.0, 2.0], "logits")
        [1.0, 2.0]
    """
    session = sessions.current()
    if session is not None:
        session.tap(value, _name("tap", name))
    return value


def watch(module: Value, name: str = "", *, fingerprint_every: int = 0) -> Value:
    """Name the layers and parameters of a model in reports; return the model.

    Args:
        module: a framework's module or model.
        name: a prefix for the names, for programs with several models.
        fingerprint_every: keep a checksum and the norm of each parameter and gradient at the end
            of every so many steps, by which ranks are compared (``tracelens ranks``); 0 for never.

    Raises:
        ConfigError: ``fingerprint_every`` is no count of steps.
    """
    if not isinstance(fingerprint_every, int) or fingerprint_every < 0:
        raise ConfigError(
            f"tl.watch: fingerprint_every= must be a count, not {fingerprint_every!r}"
        )
    session = sessions.current()
    if session is not None:
        session.watch(module, name, fingerprint_every)
    return module


def check(value: Value, name: str = "value") -> Value:
    """Raise if a value holds a NaN or an Inf; return it otherwise.

    Works with and without a session; with one the error tells the first cause. With
    ``TRACELENS=0`` nothing is checked.

    Args:
        value: a tensor, array or number.
        name: what to call it.

    Raises:
        NonFiniteError: the value is not finite.

    Examples:
        >>> import tracelens as tl
        >>> tl.check(0.5, "loss")
        0.5
        >>> tl.check(float("nan"), "loss")
        Traceback (most recent call last):
        tracelens.errors.NonFiniteError: loss is not finite: nan
    """
    if not enabled():
        return value
    session = sessions.current()
    if session is not None:
        session.check(value, _name("check", name))
    if not _is_finite(value):
        text = repr(value) if isinstance(value, int | float) else "it holds NaN or Inf"
        raise NonFiniteError(f"{name} is not finite: {text}")
    return value


def breakpoint() -> None:
    """Stop here in the debugger, with the tensor commands on what has been recorded so far.

    It is pdb++ where that is installed, else pdb: `help` lists its commands, and ``lt``, ``pt``,
    ``oi``, ``why`` … are those of ``docs/commands.md``. With ``TRACELENS=0`` it does nothing.

    Raises:
        BdbQuit: the user quit.
    """
    if enabled():
        from tracelens.debugger import stop_at

        stop_at(sys._getframe(1))


def load(path: str | os.PathLike[str]) -> Trace:
    """Open a recorded trace.

    Raises:
        TraceError: it is missing, foreign, of a newer format, or torn beyond reading.
    """
    from tracelens.loaded import load as load_trace

    return load_trace(path)


def _decorated(function: Callable[..., Any], config: Config) -> Callable[..., Any]:
    from tracelens.decorate import decorate

    if not callable(function):
        raise ConfigError(f"tl.trace decorates functions, not {type(function).__name__}")
    return decorate(function, functools.partial(_shared_session, config))


_implicit: Session | None = None
_implicit_config: Config | None = None
_gave_up = False


def _shared_session(config: Config) -> Session | None:
    """Return the open session; open the process's own one at the first decorated call."""
    global _implicit, _implicit_config, _gave_up
    session = sessions.current()
    if session is not None and session.background and config != Config():
        session = None  # the program's own settings come first: a session of its own
    if session is not None:
        if session is _implicit and config not in (_implicit_config, Config()):
            _warn_once(
                f"tl.trace: the session that records to {session.path} keeps the settings of "
                f"the function that opened it"
            )
        return session
    if _gave_up:
        return None
    session = Session(config)
    try:
        session.open()
    except SessionError as error:
        _gave_up = True
        warnings.warn(f"tracelens records nothing: {error}", RuntimeWarning, stacklevel=3)
        return None
    _implicit, _implicit_config = session, config
    atexit.register(_close_implicit, session)
    return session


def _close_implicit(session: Session) -> None:
    try:
        session.close()
    except NonFiniteError as error:
        print(f"tracelens: {error}", file=sys.stderr)  # noqa: T201
    session.announce()


@functools.lru_cache(maxsize=32)
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def _name(function: str, name: object) -> str:
    if not isinstance(name, str) or not name:
        raise ConfigError(f"tl.{function}: the name must be a non-empty string, not {name!r}")
    return name


def _is_finite(value: Any) -> bool:
    """Judge a number, an array or a tensor by its own methods, without importing a framework."""
    if isinstance(value, int | float):
        return math.isfinite(value)
    isfinite = getattr(value, "isfinite", None)
    if callable(isfinite):
        return bool(isfinite().all())
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
        return bool(numpy.isfinite(value).all())
    to_numpy = getattr(value, "numpy", None)
    if callable(to_numpy):
        return _is_finite(to_numpy())
    return True


class _Inert:
    """The session of ``TRACELENS=0``: has the same methods and does nothing."""

    path = None
    findings: tuple[()] = ()
    current_step = 0

    def __enter__(self) -> _Inert:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def step(self, **scalars: Any) -> None:
        """Do nothing."""

    def close(self, error: BaseException | None = None) -> None:
        """Do nothing."""
