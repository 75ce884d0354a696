"""TraceLens: a debugger, sanitizer and profiler for tensors.

Public names are imported on first use, so that ``import tracelens`` costs almost nothing and
imports neither numpy nor any framework.

Examples:
    >>> import tracelens as tl
    >>> @tl.trace
    ... def train_step(batch):
    ...     return sum(batch)
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # as in `typing`, whose import would cost more than all the rest
if TYPE_CHECKING:
    from tracelens.api import breakpoint, check, load, step, tap, trace, watch
    from tracelens.errors import (
        ConfigError,
        NonFiniteError,
        NonFiniteWarning,
        SessionError,
        TraceError,
        TraceLensError,
    )
    from tracelens.schedules import Schedule, schedule
    from tracelens.serving import guard
    from tracelens.session import Session

_HOME = {
    "ConfigError": "errors",
    "NonFiniteError": "errors",
    "NonFiniteWarning": "errors",
    "Schedule": "schedules",
    "Session": "session",
    "SessionError": "errors",
    "TraceError": "errors",
    "TraceLensError": "errors",
    "breakpoint": "api",
    "check": "api",
    "guard": "serving",
    "load": "api",
    "load_ipython_extension": "notebook",
    "schedule": "schedules",
    "step": "api",
    "tap": "api",
    "trace": "api",
    "watch": "api",
}

__all__ = [
    "ConfigError",
    "NonFiniteError",
    "NonFiniteWarning",
    "Schedule",
    "Session",
    "SessionError",
    "TraceError",
    "TraceLensError",
    "breakpoint",
    "check",
    "guard",
    "load",
    "schedule",
    "step",
    "tap",
    "trace",
    "watch",
]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if name == "serving":  # `tl.serving.request(...)` without an import of its own
        return __import__("tracelens.serving", fromlist=[name])
    if home is None:
        raise AttributeError(f"module 'tracelens' has no attribute {name!r}")
    value = getattr(__import__(f"tracelens.{home}", fromlist=[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
