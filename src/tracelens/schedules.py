"""Which steps are recorded op by op, in the words of ``torch.profiler.schedule``."""

from __future__ import annotations

from dataclasses import dataclass

from tracelens.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Schedule:
    """A cycle of ``wait + warmup + active`` steps; only the active ones are recorded.

    Every step is checked for non-finite values, whatever the schedule says.

    Attributes:
        wait: steps at the start of a cycle that are only checked.
        warmup: steps after them that are only checked too; kept for symmetry with
            ``torch.profiler``, whose warm-up absorbs the profiler's own start-up cost.
        active: steps that are recorded.
        repeat: cycles to run; 0 means until the session ends.
        skip_first: steps before the first cycle.
    """

    wait: int = 0
    warmup: int = 0
    active: int = 1
    repeat: int = 0
    skip_first: int = 0

    def __post_init__(self) -> None:
        for name in ("wait", "warmup", "active", "repeat", "skip_first"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigError(f"schedule: {name} must be an integer >= 0, not {value!r}")
        if self.active == 0:
            raise ConfigError("schedule: active must be at least 1, or nothing would be recorded")

    def is_active(self, step: int) -> bool:
        """Whether a step is recorded op by op.

        Examples:
            >>> two_of_four = Schedule(wait=1, warmup=1, active=2, repeat=1)
            >>> [two_of_four.is_active(step) for step in range(6)]
            [False, False, True, True, False, False]
        """
        cycle = self.wait + self.warmup + self.active
        number, position = divmod(step - self.skip_first, cycle)
        if number < 0 or (self.repeat and number >= self.repeat):
            return False
        return position >= self.wait + self.warmup


def schedule(
    *, wait: int = 0, warmup: int = 0, active: int = 1, repeat: int = 0, skip_first: int = 0
) -> Schedule:
    """Return a schedule for ``tl.trace(schedule=...)``; see `Schedule` for the arguments.

    Raises:
        ConfigError: a count is negative, not an integer, or ``active`` is 0.

    Examples:
        >>> import tracelens as tl
        >>> tl.schedule(wait=1, warmup=1, active=3).is_active(2)
        True
    """
    return Schedule(wait, warmup, active, repeat, skip_first)


def steps_between(first: int, last: int) -> Schedule:
    """Return the schedule that records steps ``first <= step < last`` (``run --steps A:B``).

    Examples:
        >>> [steps_between(2, 4).is_active(step) for step in range(5)]
        [False, False, True, True, False]
    """
    if last <= first:
        raise ConfigError(f"steps: the range {first}:{last} holds no step; write FIRST:END")
    return Schedule(active=last - first, repeat=1, skip_first=first)
