"""What a recording was asked to do: arguments, then the environment, checked once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tracelens.errors import ConfigError
from tracelens.schedules import Schedule

CAPTURES = ("guard", "ops", "tensors")
NONFINITES = ("record", "warn", "raise", "break")
ENGINES = ("native", "python", "sentinel")

SWITCH = "TRACELENS"
OVERRIDES = {
    "capture": "TRACELENS_CAPTURE",
    "nonfinite": "TRACELENS_NONFINITE",
    "engine": "TRACELENS_ENGINE",
}
SWITCHES = {"profile": "TRACELENS_PROFILE", "sample": "TRACELENS_SAMPLE"}
DIRECTORY = "TRACELENS_DIR"

_CHOICES = {"capture": CAPTURES, "nonfinite": NONFINITES, "engine": ENGINES}
_OFF = {"0", "off", "false", "no"}
_ON = {"1", "on", "true", "yes"}


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one session.

    Attributes:
        path: the trace directory; ``None`` picks a name in ``$TRACELENS_DIR`` or here.
        capture: ``"guard"``, ``"ops"`` or ``"tensors"``.
        nonfinite: ``"record"``, ``"warn"``, ``"raise"`` or ``"break"``.
        schedule: which steps are recorded op by op; ``None`` means all.
        engine: ``"native"``, ``"python"``, ``"sentinel"``, or ``None`` for the best that works
            here.
        tensors: glob patterns of tap and module names whose values ``capture="tensors"`` keeps.
        tensor_budget_bytes: at most this much tensor data is stored.
        profile: keep ops, kernels, copies and memory, from the framework's own profiler.
        sample: keep what the host's Python was doing, 100 times a second, by py-spy.
        quiet: say nothing on stderr when the session ends.
        frameworks: which backends may start; ``None`` for all that are installed.
        thorough: check also what ops make that can only pass on what they were given, so that
            it is known of every value whether it was bad.
    """

    path: Path | None = None
    capture: str = "guard"
    nonfinite: str = "record"
    schedule: Schedule | None = None
    engine: str | None = None
    tensors: tuple[str, ...] = ("*",)
    tensor_budget_bytes: int = 1 << 30
    profile: bool = False
    quiet: bool = False
    frameworks: tuple[str, ...] | None = None
    thorough: bool = False
    sample: bool = False

    def __post_init__(self) -> None:
        for name in _CHOICES:
            value = getattr(self, name)
            if not (value is None and name == "engine"):
                _checked(name, value, f"{name}=")
        if self.schedule is not None and not isinstance(self.schedule, Schedule):
            raise ConfigError(
                f"schedule= must be made by tl.schedule(...), not {type(self.schedule).__name__}"
            )
        if not all(isinstance(pattern, str) for pattern in self.tensors):
            raise ConfigError(f"tensors= must be a list of name patterns, not {self.tensors!r}")
        if self.tensor_budget_bytes < 0:
            raise ConfigError(f"tensor_budget_bytes= is negative: {self.tensor_budget_bytes}")

    def is_active(self, step: int) -> bool:
        """Whether a step is recorded op by op."""
        return self.schedule is None or self.schedule.is_active(step)

    def with_environment(self, environ: Mapping[str, str] | None = None) -> Config:
        """Return these settings with what the environment overrides.

        Raises:
            ConfigError: a variable has a value that is not allowed.

        Examples:
            >>> Config().with_environment({"TRACELENS_NONFINITE": "raise"}).nonfinite
            'raise'
        """
        environ = os.environ if environ is None else environ
        changes: dict[str, Any] = {
            name: _checked(name, environ[variable], f"environment variable {variable}=")
            for name, variable in OVERRIDES.items()
            if environ.get(variable)
        }
        for name, variable in SWITCHES.items():
            if environ.get(variable):
                changes[name] = _switched(environ[variable], variable)
        return replace(self, **changes) if changes else self


def enabled(environ: Mapping[str, str] | None = None) -> bool:
    """Whether TraceLens may do anything at all: ``TRACELENS=0`` makes everything inert.

    Examples:
        >>> enabled({"TRACELENS": "0"}), enabled({})
        (False, True)
    """
    environ = os.environ if environ is None else environ
    return environ.get(SWITCH, "").strip().lower() not in _OFF


def trace_path(value: object) -> Path | None:
    """Return the path argument of ``tl.trace`` as a path.

    Raises:
        ConfigError: it is not a path.
    """
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ConfigError(f"tl.trace: the path must be a non-empty string or Path, not {value!r}")
    return Path(os.fsdecode(value))


def _switched(value: str, variable: str) -> bool:
    word = value.strip().lower()
    if word not in _ON | _OFF:
        raise ConfigError(f"environment variable {variable}={value!r} is neither 1 nor 0")
    return word in _ON


def _checked(name: str, value: object, where: str) -> str:
    if isinstance(value, str) and value in _CHOICES[name]:
        return value
    raise ConfigError(f"{where}{value!r} is not one of {', '.join(_CHOICES[name])}")
