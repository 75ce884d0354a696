"""What a rank's devices did over the whole trace: busy, idle, compute, communication, copies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracelens.analysis.profile.answer import Answer
from tracelens.analysis.profile.columns import durations
from tracelens.analysis.profile.data import DEVICE_KINDS, ProfileData
from tracelens.analysis.profile.intervals import EMPTY, Intervals, union


@dataclass(frozen=True, slots=True)
class DeviceTotals(Answer):
    """Device time of a rank, over one device or over all of them together.

    Attributes:
        device: its index; ``None`` for the union over all devices.
        kernels: kernels and collectives, without copies.
        streams: streams that did anything.
        span_ns: from the first start to the last end of device work.
        busy_ns: length of the union of all device work, over all streams.
        idle_ns: ``span_ns - busy_ns``.
        compute_ns: length of the union of kernels that are no collectives.
        comm_ns: length of the union of collectives.
        exposed_comm_ns: that of it during which no other kernel ran. A copy does not hide it.
        copies_ns: length of the union of copies and fills.
        exposed_copies_ns: that of it during which neither kernel nor collective ran.
        kernel_sum_ns: sum of the durations of kernels and collectives.
    """

    device: int | None
    kernels: int
    streams: int
    span_ns: int
    busy_ns: int
    idle_ns: int
    compute_ns: int
    comm_ns: int
    exposed_comm_ns: int
    copies_ns: int
    exposed_copies_ns: int
    kernel_sum_ns: int

    @property
    def idle_share(self) -> float | None:
        """``idle_ns / span_ns``; ``None`` where no device did anything."""
        return self.idle_ns / self.span_ns if self.span_ns else None


def device_totals(data: ProfileData) -> list[DeviceTotals]:
    """Return the totals over all devices, followed by those of each if there are several.

    Busy and idle are as in Holistic Trace Analysis' temporal breakdown and in nvidia-smi's sense of
    utilisation (something runs, however little of the device it fills); communication and its
    exposed part are as in HTA's overlap analysis. Computed over all work of the rank, whether or
    not its launch was recorded. Nothing is returned if there is no device work.
    """
    columns = data.device
    if not len(columns):
        return []
    device = columns.ints("device")
    everything = np.ones(len(columns), dtype=np.bool_)
    found = [_totals(data, None, everything)]
    several = np.unique(device)
    if len(several) > 1:
        found += [_totals(data, int(index), device == index) for index in several]
    return found


def _totals(data: ProfileData, device: int | None, rows: np.ndarray) -> DeviceTotals:
    columns = data.device
    starts, lengths = columns.ints("start_ns"), durations(columns)
    classes, streams = data.device_class(), columns.ints("stream")
    busy = dict.fromkeys(DEVICE_KINDS, EMPTY)
    for number, kind in enumerate(DEVICE_KINDS):
        mask = rows & (classes == number)
        if mask.any():
            busy[kind] = union(starts[mask], (starts + lengths)[mask])
    compute, comm = busy["kernel"], busy["comm"]
    copies = busy["memcpy"] | busy["memset"]
    kernels = compute | comm
    whole = kernels | copies
    launched = rows & (classes <= DEVICE_KINDS.index("comm"))
    span_ns = _span(starts[rows], (starts + lengths)[rows])
    pairs = columns.ints("device")[rows] * (1 << 32) + streams[rows]
    return DeviceTotals(
        device=device,
        kernels=int(launched.sum()),
        streams=len(np.unique(pairs)),
        span_ns=span_ns,
        busy_ns=whole.total,
        idle_ns=span_ns - whole.total,
        compute_ns=compute.total,
        comm_ns=comm.total,
        exposed_comm_ns=_exposed(comm, compute),
        copies_ns=copies.total,
        exposed_copies_ns=_exposed(copies, kernels),
        kernel_sum_ns=int(lengths[launched].sum()),
    )


def _exposed(work: Intervals, hidden_by: Intervals) -> int:
    return (work | hidden_by).total - hidden_by.total


def _span(starts: np.ndarray, ends: np.ndarray) -> int:
    return int(ends.max() - starts.min()) if len(starts) else 0
