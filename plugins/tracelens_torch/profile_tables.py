"""Events of Kineto as rows of ``ops``, ``spans`` and ``kernels``.

What is looked up where:

- An op inside another on its thread has that one as parent.
- A backward function (``at::RecordScope`` 1) belongs to the forward op with its sequence number
  and thread; of several nested ones that share the number, to the one that began last, as in
  Kineto's own forward-backward arrows. Ops inside it belong to it too.
- A kernel belongs to the op that Kineto links it to, else to the innermost op around the call with
  its correlation id.
- Lines and modules are those of the recorded op that is the same call (``profile_match``), else of
  the forward op, else of the nearest op around or inside that has one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracelens.convert._columns import positions
from tracelens.convert.profile_names import Names
from tracelens.convert.profile_nesting import nearest, nesting_order, parents
from tracelens.convert.profile_rows import PHASES, Steps
from tracelens.events import OpFlag
from tracelens.storage.columns import Coded, Masked
from tracelens_torch.profile_events import DEVICE_KINDS, Events, Kind

Ints = NDArray[np.int64]
Columns = dict[str, Any]

_OTHER, _DATA, _FORWARD, _BACKWARD, _OPTIMIZER = range(len(PHASES))
_BACKWARD_SCOPE = 1
_SPAN_KINDS = {
    Kind.RUNTIME: "runtime",
    Kind.ANNOTATION: "annotation",
    Kind.DEVICE_ANNOTATION: "device_annotation",
    Kind.PYTHON: "python",
    Kind.OVERHEAD: "overhead",
    Kind.SYNC: "sync",
    Kind.OTHER: "other",
}
_KERNEL_KINDS = {Kind.KERNEL: "kernel", Kind.MEMCPY: "memcpy", Kind.MEMSET: "memset"}


class Host:
    """What ran on the host, nested by thread. Rows are those of ``events``; NULL is -1.

    Args:
        events: of one stretch.

    Attributes:
        rows: rows of the host's events, in order of their start, an outer one first.
        ops: rows of the ops among them, in that order.
        around: of each event, the row of the innermost event around it.
        names: what the names of events say.
        op_around: of each event, the row of the innermost op around it.
        phase: of each event, number into ``PHASES``; of ops only.
        forward: of each event, the row of the forward op that it differentiates.
    """

    def __init__(self, events: Events) -> None:
        self._events = events
        n = len(events)
        kind = events.kind
        on_host = ~np.isin(kind, (*DEVICE_KINDS, Kind.DEVICE_ANNOTATION, Kind.SYNC, Kind.SKIPPED))
        rows = np.flatnonzero(on_host)
        thread = np.unique(events.tid[rows], return_inverse=True)[1].reshape(-1)
        order = nesting_order(thread, events.start_ns[rows], events.end_ns[rows], rows)
        nested = rows[order]
        inner = parents(thread[order], events.start_ns[nested], events.end_ns[nested])
        around = np.full(n, -1, dtype=np.int64)
        around[nested] = np.where(inner >= 0, nested[inner], -1)
        rows = nested[np.argsort(events.start_ns[nested], kind="stable")]
        self.around = around
        self.names = Names.of(events.names)
        is_op = kind == Kind.OP
        self.rows = rows
        self.ops = rows[is_op[rows]]
        self.op_around = nearest(around, is_op)
        self.forward = self._forward()
        self.phase = self._phase()

    def within(self, wanted: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Tell of each event whether it is, or lies inside of, a wanted one."""
        return wanted | (nearest(self.around, wanted) >= 0)

    def noted(self, name: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Tell of each event whether it is an annotation of a certain name.

        Args:
            name: of each name whether it is meant, shape (names,).
        """
        is_note = self._events.kind == Kind.ANNOTATION
        return is_note & name[self._events.name] if len(name) else is_note

    def _forward(self) -> Ints:
        events = self._events
        forward = np.full(len(events), -1, dtype=np.int64)
        has = (events.kind == Kind.OP) & (events.seq >= 0)
        backward = np.flatnonzero(has & (events.fwd_thread > 0))
        source = self.ops[(has & (events.fwd_thread <= 0))[self.ops]]
        if not len(backward) or not len(source):
            return forward
        # The last one written stays: of several with one number, the one that began last.
        number = events.seq * (1 << 20) + np.where(
            events.fwd_thread > 0, events.fwd_thread, events.thread
        )
        keys, place = np.unique(number[source][::-1], return_index=True)
        at = np.searchsorted(keys, number[backward]).clip(0, len(keys) - 1)
        found = keys[at] == number[backward]
        forward[backward[found]] = source[::-1][place[at[found]]]
        # Ops inside a backward function differentiate what it does.
        inside = nearest(self.around, forward >= 0)
        without = (forward < 0) & (inside >= 0) & (events.kind == Kind.OP)
        forward[without] = forward[inside[without]]
        return forward

    def _phase(self) -> NDArray[np.int32]:
        events = self._events
        phase = np.where(events.kind == Kind.OP, _FORWARD, _OTHER).astype(np.int32)
        is_op = events.kind == Kind.OP
        engine = self.names.backward[events.name] if len(events) else is_op
        phase[self.within(is_op & ((events.scope == _BACKWARD_SCOPE) | engine))] = _BACKWARD
        phase[self.within(self.noted(self.names.optimizer))] = _OPTIMIZER
        phase[self.within(self.noted(self.names.loader))] = _DATA
        return phase


def ops_table(
    events: Events,
    host: Host,
    op_id: Ints,
    step: Ints,
    sites: Sequence[dict[str, Any]],
    site: Ints,
    device: str | None = None,
) -> Columns:
    """Return the columns of ``ops``, the ops of ``host.ops`` in that order.

    Args:
        events: of one stretch, times since the trace's epoch.
        host: their nesting.
        op_id: the id of each event that is an op, shape (events,).
        step: the step of each event, shape (events,).
        sites: where ops were issued, as interned.
        site: number into ``sites`` of each event, -1 for not known, shape (events,).
        device: of all ops, where they only ran on one.
    """
    rows = host.ops
    outer, forward = host.op_around[rows], host.forward[rows]
    composite = np.zeros(len(events), dtype=bool)
    composite[outer[outer >= 0]] = True
    flags = int(OpFlag.PROFILED) + int(OpFlag.COMPOSITE) * composite[rows]
    columns: Columns = {
        "op_id": op_id[rows],
        "step": step[rows],
        "ord": positions(step[rows]),
        "parent_id": _picked(op_id, outer),
        "fwd_op_id": _picked(op_id, forward),
        "name": coded(events.name[rows], events.names),
        "phase": Coded(host.phase[rows], PHASES),
        "tid": events.tid[rows].clip(0, (1 << 31) - 1),
        "start_ns": events.start_ns[rows],
        "duration_ns": events.end_ns[rows] - events.start_ns[rows],
        "in_shapes": coded(events.shapes[rows], events.texts),
        "in_dtypes": coded(events.dtypes[rows], events.texts),
        "in_values": coded(events.values[rows], events.texts),
        "flags": flags,
    }
    if device is not None:
        columns["device"] = device
    for name in ("module", "file", "function", "code"):
        columns[name] = of_site(sites, site[rows], name)
    line = np.array([int(each.get("line") or 0) for each in sites] or [0], dtype=np.int64)
    lines = np.where(site[rows] >= 0, line[site[rows]], 0)
    columns["line"] = Masked(lines, lines <= 0)
    return columns


def span_rows(events: Events) -> Ints:
    """Return the rows of the events that are spans, in order of their start, an outer one first."""
    rows = np.flatnonzero(np.isin(events.kind, tuple(_SPAN_KINDS)))
    return rows[np.lexsort((rows, -events.end_ns[rows], events.start_ns[rows]))]


def spans_table(events: Events, host: Host, op_id: Ints, span_id: Ints, step: Ints) -> Columns:
    """Return the columns of ``spans``.

    Args:
        events: of one stretch, times since the trace's epoch.
        host: their nesting.
        op_id: the id of the op that each event is or lies in, -1 for none, shape (events,).
        span_id: the id of each event that is a span, else -1, shape (events,).
        step: the step of each event, shape (events,).
    """
    rows = span_rows(events)
    kinds = list(_SPAN_KINDS.values())
    kind = np.zeros(len(events), dtype=np.int64)
    for number, value in enumerate(_SPAN_KINDS):
        kind[events.kind == value] = number
    for name, marks in (("data", host.names.loader), ("step", host.names.step >= 0)):
        kinds.append(name)
        kind[host.noted(marks)] = len(kinds) - 1
    around = nearest(host.around, span_id >= 0)[rows]
    corr = np.where(events.kind == Kind.RUNTIME, events.corr, 0)[rows]
    return {
        "span_id": span_id[rows],
        "step": step[rows],
        "kind": Coded(kind[rows], kinds),
        "name": coded(events.name[rows], events.names),
        "tid": events.tid[rows],
        "start_ns": events.start_ns[rows],
        "duration_ns": events.end_ns[rows] - events.start_ns[rows],
        "parent_id": _picked(span_id, around),
        "op_id": _picked(op_id, host.op_around[rows]),
        "corr_id": Masked(corr, corr == 0),
        "args": coded(events.meta[rows], events.texts),
    }


def kernels_table(
    events: Events, host: Host, op_id: Ints, span_id: Ints, steps: Steps, first_id: int
) -> Columns:
    """Return the columns of ``kernels``.

    Args:
        events: of one stretch, times since the trace's epoch.
        host: their nesting.
        op_id: the id of each event that is an op or lies in a recorded one, shape (events,).
        span_id: the id of each event that is a span, shape (events,).
        steps: of the stretch.
        first_id: id of the first.
    """
    rows = np.flatnonzero(np.isin(events.kind, DEVICE_KINDS))
    rows = rows[np.argsort(events.start_ns[rows], kind="stable")]
    launch = _rows_of(events.corr, np.flatnonzero(events.kind == Kind.RUNTIME), events.corr[rows])
    linked = _rows_of(events.corr, np.flatnonzero(events.kind == Kind.OP), events.linked[rows])
    around = np.where(launch >= 0, host.op_around[launch], -1)
    # Kineto's link can name an op whose launch lies in one inside of it.
    op = np.where(around >= 0, around, linked)
    issued = np.where(launch >= 0, launch, op)
    when = np.where(issued >= 0, events.start_ns[issued], events.start_ns[rows])
    names = list(_KERNEL_KINDS.values())
    kind = np.zeros(len(rows), dtype=np.int64)
    for number, value in enumerate(_KERNEL_KINDS):
        kind[events.kind[rows] == value] = number
    if len(rows):
        comm = host.names.comm[events.name[rows]]
        kind[(events.kind[rows] == Kind.KERNEL) & comm] = len(names)
    corr = events.corr[rows]
    return {
        "kern_id": first_id + np.arange(len(rows)),
        "step": steps.of(when),
        "op_id": _picked(op_id, op),
        "corr_id": Masked(corr, corr == 0),
        "kind": Coded(kind, [*names, "comm"]),
        "name": coded(events.name[rows], events.names),
        "device": events.device[rows].clip(0, (1 << 31) - 1),
        "stream": events.tid[rows].clip(-(1 << 31), (1 << 31) - 1),
        "start_ns": events.start_ns[rows],
        "duration_ns": events.end_ns[rows] - events.start_ns[rows],
        "span_id": _picked(span_id, launch),
        **_facts(events, rows),
    }


def of_site(sites: Sequence[dict[str, Any]], site: Ints, key: str) -> Coded:
    """Return a column of what sites say.

    Args:
        sites: as interned.
        site: number into ``sites``, -1 for NULL, shape (rows,).
        key: ``"file"``, ``"module"`` …
    """
    texts: dict[str, int] = {}
    numbers = [
        texts.setdefault(str(each[key]), len(texts)) if each.get(key) else -1 for each in sites
    ]
    return Coded(np.array([*numbers, -1], dtype=np.int64)[site], list(texts))


def coded(number: Ints, texts: Sequence[str]) -> Coded:
    """Return a column of texts with only those that it has."""
    used, place = np.unique(number, return_inverse=True)
    if len(used) and used[0] < 0:
        return Coded(place - 1, [texts[at] for at in used[1:].tolist()])
    return Coded(place, [texts[at] for at in used.tolist()])


def _picked(ids: Ints, rows: Ints) -> Masked:
    """Return the ids of rows; NULL where there is no row, or it has no id."""
    if not len(ids):
        return Masked(np.zeros(len(rows), np.int64), np.ones(len(rows), bool))
    found = np.where(rows >= 0, ids[rows], -1)
    return Masked(found.clip(0), found < 0)


def _rows_of(corr: Ints, rows: Ints, wanted: Ints) -> Ints:
    """Return which of ``rows`` has each wanted correlation id, -1 for none."""
    found = np.full(len(wanted), -1, dtype=np.int64)
    if not len(rows):
        return found
    rows = rows[np.argsort(corr[rows], kind="stable")]
    at = np.searchsorted(corr[rows], wanted).clip(0, len(rows) - 1)
    same = (corr[rows[at]] == wanted) & (wanted != 0)
    found[same] = rows[at[same]]
    return found


def _facts(events: Events, rows: Ints) -> Columns:
    """Return what Kineto's metadata tells of kernels and copies."""
    told = [_loaded(events.texts[at]) if at >= 0 else {} for at in events.meta[rows].tolist()]
    if not any(told):
        return {}
    size = np.array([_whole(each.get("bytes")) for each in told], dtype=np.int64)
    ranks = np.array([_whole(each.get("Group size")) for each in told], dtype=np.int64)
    occupancy = [each.get("est. achieved occupancy %") for each in told]
    known = np.array([isinstance(each, int | float) for each in occupancy], dtype=bool)
    return {
        "size_bytes": Masked(size.clip(0), size < 0),
        "grid": _texts(told, "grid"),
        "block": _texts(told, "block"),
        "comm_group": _texts(told, "Process Group Name"),
        "collective": _texts(told, "Collective name"),
        "comm_ranks": Masked(ranks.clip(0), ranks < 0),
        "comm_dtype": _texts(told, "dtype"),
        "occupancy": Masked(
            np.array([v if k else 0 for v, k in zip(occupancy, known, strict=True)], np.float32),
            ~known,
        ),
        "args": coded(events.meta[rows], events.texts),
    }


def _texts(told: Sequence[dict[str, Any]], key: str) -> Coded:
    texts: dict[str, int] = {}
    numbers = []
    for each in told:
        value = each.get(key)
        if value is None or value == "":
            numbers.append(-1)
        else:
            text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            numbers.append(texts.setdefault(text, len(texts)))
    return Coded(np.array(numbers, dtype=np.int64), list(texts))


def _loaded(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 1 << 62 else -1
