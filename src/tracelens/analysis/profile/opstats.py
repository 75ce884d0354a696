"""Host and device time of every op, of its own and with what it called."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracelens.analysis.profile.columns import durations
from tracelens.analysis.profile.data import ProfileData
from tracelens.analysis.profile.intervals import Ints


@dataclass(frozen=True)
class OpTimes:
    """Times of each op, int64 of shape (ops,), ns.

    Attributes:
        host: wall time on its thread.
        self_host: ``host`` without that of the ops it called.
        device: device time of the work launched in it or in what it called.
        self_device: device time of the work launched in it directly.
        kernels: pieces of device work launched in it directly.
    """

    host: Ints
    self_host: Ints
    device: Ints
    self_device: Ints
    kernels: Ints


def op_times(data: ProfileData) -> OpTimes:
    """Return the times of each op, as torch.profiler defines them.

    Self time is an op's time less that of its direct children on its thread; an op's device time
    is the sum of the durations of what it launched (overlap on streams counts twice).
    """
    n = len(data.ops)
    host, parent = durations(data.ops), data.op_parent
    self_host = host.copy()
    inner = parent >= 0
    np.subtract.at(self_host, parent[inner], host[inner])
    rows = data.kernel_op
    linked = rows >= 0
    self_device = np.zeros(n, dtype=np.int64)
    np.add.at(self_device, rows[linked], durations(data.kernels)[linked])
    kernels = np.bincount(rows[linked], minlength=n).astype(np.int64)
    return OpTimes(host, self_host, up_the_tree(parent, self_device), self_device, kernels)


def levels(parent: Ints) -> list[Ints]:
    """Return the rows of a forest by depth, the roots first.

    Args:
        parent: row of each row's parent, -1 for roots. A row that is its own ancestor, which only
            a damaged trace has, belongs to no level.
    """
    depth = np.where(parent < 0, 0, -1)
    found = [np.flatnonzero(depth == 0)]
    left = np.flatnonzero(depth < 0)
    while len(left):
        above = depth[parent[left]] >= 0
        if not above.any():
            break
        now = left[above]
        depth[now] = len(found)
        found.append(now)
        left = left[~above]
    return found


def up_the_tree(parent: Ints, values: Ints) -> Ints:
    """Return each row's value with those of all its descendants."""
    total: Ints = values.copy()
    for rows in reversed(levels(parent)[1:]):
        np.add.at(total, parent[rows], total[rows])
    return total
