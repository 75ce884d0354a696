"""The charts of a trace by name: what ``plot --what`` and the report choose from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tracelens.errors import ConfigError
from tracelens.plots import curves, maps, rankings
from tracelens.plots.series import Chart

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader

KEYS = (
    "loss",
    "grad_norm",
    "scalars",
    "step_time",
    "gradients",
    "nonfinite",
    "ops",
    "lines",
    "kernels",
    "memory",
)
"""Every chart, in the order of the report."""

_OF_STEPS = {"loss", "grad_norm", "scalars", "step_time"}


def check_keys(words: str | None) -> tuple[str, ...]:
    """Return the charts that a comma-separated list names; all of them for ``None``.

    Raises:
        ConfigError: there is no such chart.

    Examples:
        >>> check_keys("loss, ops")
        ('loss', 'ops')
    """
    if words is None:
        return KEYS
    keys = tuple(word.strip() for word in words.split(",") if word.strip())
    for key in keys:
        if key not in KEYS:
            raise ConfigError(f"no chart {key!r}: choose from {', '.join(KEYS)}")
    if not keys:
        raise ConfigError(f"no chart is named: choose from {', '.join(KEYS)}")
    return keys


def charts_of(
    reader: TraceReader, keys: Sequence[str] = KEYS, *, rank: int | None = None
) -> list[Chart]:
    """Return charts of a trace; one that it lacks says what is missing.

    Args:
        reader: an open trace.
        keys: names from ``KEYS``, in the order wanted.
        rank: whose; by default scalars, step times and memory are those of the lowest rank, and
            all else is of all ranks together.

    Raises:
        ConfigError: the trace has no such rank.
    """
    ranks = reader.ranks()
    if rank is not None and rank not in ranks:
        raise ConfigError(f"no rank {rank} in the trace: it has {', '.join(map(str, ranks))}")
    lowest = rank if rank is not None else (ranks[0] if ranks else 0)
    of_steps = curves.of_steps(reader, lowest) if _OF_STEPS & set(keys) else {}
    scalars = curves.scalar_charts(of_steps)
    found: list[Chart] = []
    for key in keys:
        if key == "step_time":
            found.append(curves.step_time_chart(of_steps))
        elif key in _OF_STEPS:
            found += [chart for chart in scalars if chart.key == key]
        elif key == "memory":
            found.append(curves.memory_chart(reader, lowest))
        else:
            found.append(_OF_OPS[key](reader, rank))
    return found


_OF_OPS = {
    "gradients": maps.gradient_chart,
    "nonfinite": maps.nonfinite_chart,
    "ops": rankings.op_chart,
    "lines": rankings.line_chart,
    "kernels": rankings.kernel_chart,
}
