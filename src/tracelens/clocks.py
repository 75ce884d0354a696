"""Between the clocks of a profiler and of a trace."""

from __future__ import annotations

import time


def unix_offset_ns() -> int:
    """Return ``CLOCK_REALTIME - CLOCK_MONOTONIC`` now, by the closest of a few pairs of reads.

    Profilers tell Unix times, the times of a trace are monotonic since its epoch: the two drift
    apart while NTP slews the clock, so the difference is measured at both ends of a stretch.
    """
    pairs = []
    for _ in range(5):
        before = time.monotonic_ns()
        unix = time.time_ns()
        after = time.monotonic_ns()
        pairs.append((after - before, unix - (before + after) // 2))
    return min(pairs)[1]
