"""One stretch of profiling: what ran from its first step to its last, handed over at its end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from tracelens.clocks import unix_offset_ns
from tracelens_torch import memory, profile_events, profile_tables
from tracelens_torch.profile_events import DEVICE_KINDS
from tracelens_torch.profile_match import Recorded, match, recorded
from tracelens_torch.profile_tables import Host, Ints, Steps

if TYPE_CHECKING:
    from tracelens.session import Session
    from tracelens_torch.memory_owners import Owners
    from tracelens_torch.profile_events import Events

_SLACK_NS = 1_000_000


class Stretch:
    """Collects the marks of steps, and turns Kineto's result into rows.

    Args:
        session: the recording.
        owners: knows which memory belongs to what.

    Attributes:
        steps: how many steps began.
        ops: op ids given out since the first step ended.
    """

    def __init__(self, session: Session, owners: Owners) -> None:
        self._session = session
        self._owners = owners
        self._began_s = time.monotonic()
        self._began_ns = session.writer.now_ns()
        self._offset_ns = unix_offset_ns()
        self._numbers: list[int] = []
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._first_id: int | None = None
        self.ops = 0

    @property
    def steps(self) -> int:
        """How many steps began."""
        return len(self._numbers)

    @property
    def age_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began_s

    def begin_step(self, step: int) -> None:
        """A step begins."""
        if len(self._ends) < len(self._starts):  # it was given another number
            self._ends.append(self._session.writer.now_ns())
        self._numbers.append(step)
        self._starts.append(self._session.writer.now_ns())

    def end_step(self) -> None:
        """The step has ended."""
        writer = self._session.writer
        if len(self._ends) < len(self._starts):
            self._ends.append(writer.now_ns())
        op_id = writer.reserve_op_id()
        self._first_id = op_id if self._first_id is None else self._first_id
        self.ops = op_id - self._first_id

    def finish(self, result: Any) -> None:
        """Write what Kineto saw.

        Args:
            result: ``torch._C._autograd._ProfilerResult``.
        """
        writer = self._session.writer
        self._owners.end()
        offset_ns = (self._offset_ns + unix_offset_ns()) // 2
        events = profile_events.read(result)
        shift = -(offset_ns + writer.epoch_monotonic_ns)
        for times in (events.start_ns, events.end_ns, events.allocations.t_ns):
            times += shift
        tables = self._tables(events)
        if tables and not writer.spool(tables):
            self._session.note("profile", "a profile is lost: no room on the disk", "warning")

    def _tables(self, events: Events) -> dict[str, dict[str, Any]]:
        if not len(events):
            return {}
        writer = self._session.writer
        # A range that is open when the profiler stops has no end.
        events.end_ns = np.maximum(events.end_ns, events.start_ns)
        steps = self._marks()
        host = profile_tables.Host(events)
        step = steps.of(events.start_ns)
        rows = host.ops
        ours = recorded(writer, self._began_ns - _SLACK_NS)
        same = np.full(len(events), -1, dtype=np.int64)
        same[rows] = match(
            ours, events.tid[rows], events.name[rows], events.names, events.start_ns[rows],
            events.end_ns[rows],
        )  # fmt: skip
        sites, site = _sites(writer, ours, same, events, host)
        tables: dict[str, dict[str, Any]] = {}
        if self._session.config.capture == "guard":
            op_id = np.full(len(events), -1, dtype=np.int64)
            op_id[rows] = [writer.reserve_op_id() for _ in range(len(rows))]
            if len(rows):
                device = None if np.any(events.device >= 0) else "cpu"
                tables["ops"] = profile_tables.ops_table(
                    events, host, op_id, step, sites, site, device
                )
        else:
            # The op that was recorded and the one that was profiled are one op.
            own = np.where(same >= 0, ours.op_id[same], -1) if len(ours.op_id) else same
            outer = profile_tables.nearest(host.around, own >= 0)
            op_id = np.where(own >= 0, own, np.where(outer >= 0, own[outer], -1))
        spans = profile_tables.span_rows(events)
        span_id = np.full(len(events), -1, dtype=np.int64)
        span_id[spans] = writer.reserve_rows("spans", len(spans)) + np.arange(len(spans))
        tables["spans"] = profile_tables.spans_table(events, host, op_id, span_id, step)
        n_kernels = int(np.isin(events.kind, DEVICE_KINDS).sum())
        tables["kernels"] = profile_tables.kernels_table(
            events, host, op_id, span_id, steps, writer.reserve_rows("kernels", n_kernels)
        )
        tables["memory"] = memory.memory_table(
            events, host, op_id, steps, self._owners, sites, site, self._began_ns
        )
        return {name: columns for name, columns in tables.items() if _rows_in(columns)}

    def _marks(self) -> Steps:
        ends = [*self._ends, *[self._session.writer.now_ns()] * (self.steps - len(self._ends))]
        return Steps(*(np.array(each, np.int64) for each in (self._numbers, self._starts, ends)))


def _sites(
    writer: Any, ours: Recorded, same: Ints, events: Events, host: Host
) -> tuple[list[dict[str, Any]], Ints]:
    """Return where ops were issued, and the number of that of each event, -1 for not known.

    Args:
        writer: the recording's ``ShardWriter``.
        ours: the recorded ops.
        same: row of the recorded op that each event is, -1 for none, shape (events,).
        events: of the stretch.
        host: their nesting.
    """
    numbers, place = np.unique(ours.site, return_inverse=True)
    sites = [writer.strings(number) or {} for number in numbers.tolist()]
    site = np.full(len(events), -1, dtype=np.int64)
    own = same >= 0
    site[own] = place[same[own]]
    _of_updates(ours, place, events, host, site)
    around, forward = host.op_around.tolist(), host.forward
    known, values = own.tolist(), site.tolist()
    for row in reversed(host.ops.tolist()):
        outer = around[row]
        if values[row] >= 0 and outer >= 0 and not known[outer]:
            values[outer] = values[row]  # of several inside, the first one is written last
    site = np.array(values, dtype=np.int64)
    outer = profile_tables.nearest(host.op_around, site >= 0)
    bare = (site < 0) & (outer >= 0)
    site[bare] = site[outer[bare]]
    bare = (site < 0) & (forward >= 0)
    site[bare] = site[forward[bare]]
    return sites, site


def _of_updates(ours: Recorded, place: Ints, events: Events, host: Host, site: Ints) -> None:
    """Give the ops of an optimizer's step, which are not observed one by one, the step's line."""
    is_update = np.array([name.endswith(".step") for name in ours.names], dtype=bool)
    if not is_update.any():
        return
    updates = np.flatnonzero(is_update[ours.name])
    updates = updates[np.argsort(ours.middle_ns[updates], kind="stable")]
    inside = (host.phase == profile_tables.PHASES.index("optimizer")) & (site < 0)
    rows = np.flatnonzero(inside)
    at = np.searchsorted(ours.middle_ns[updates], events.start_ns[rows])
    found = at < len(updates)
    site[rows[found]] = place[updates[at[found]]]


def _rows_in(columns: dict[str, Any] | None) -> int:
    first = next(iter(columns.values())) if columns else []
    return len(getattr(first, "values", first))
