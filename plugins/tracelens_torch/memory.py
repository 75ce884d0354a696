"""Allocations as rows of ``memory``: what was held when the stretch began, then every change.

Owners that are not certain (``memory_owners``) are told by when a block lived:

- ``activation``: made by a forward op and still there when the next backward pass begins.
- ``temporary``: freed within the stretch and nothing else.
- NULL: still there at the end, and nobody known holds it.

A CPU allocator tells nothing of blocks that were made before the profiler began. Those that are
known then (parameters, gradients, optimizer state) are the first rows. One of them counts as freed
when its address is given out again; gradients that the first update does not find any more are
taken for freed before the stretch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracelens.storage.columns import Coded, Masked
from tracelens.storage.tables import MEMORY_OWNERS
from tracelens_torch import profile_tables
from tracelens_torch.memory_owners import ACTIVATION, GRADIENT, TEMPORARY, Held, Mark, Owners
from tracelens_torch.profile_events import Allocations, Events
from tracelens_torch.profile_tables import Host, Steps

Ints = NDArray[np.int64]

_FORWARD = profile_tables.PHASES.index("forward")
_BACKWARD = profile_tables.PHASES.index("backward")
_UNKNOWN = -1


@dataclass(slots=True)
class _Row:
    """A change of what is allocated."""

    t_ns: int
    device: str
    size_bytes: int
    address: int
    event: int
    owner: int
    forward: bool = False
    total: int = -1
    reserved: int = -1
    pair: _Row | None = None


def memory_table(
    events: Events,
    host: Host,
    op_id: Ints,
    steps: Steps,
    owners: Owners,
    sites: Sequence[dict[str, Any]],
    site: Ints,
    began_ns: int,
) -> dict[str, Any] | None:
    """Return the columns of ``memory``; ``None`` if nothing was allocated.

    Args:
        events: of one stretch, times since the trace's epoch.
        host: their nesting.
        op_id: the id of the op that each event is or lies in, -1 for none, shape (events,).
        steps: of the stretch.
        owners: what is known of who held which addresses.
        sites: where ops were issued.
        site: number into ``sites`` of each event, -1 for not known, shape (events,).
        began_ns: when the stretch began.
    """
    if not len(events.allocations.t_ns):
        return None
    rows = _rows(events, host, owners, began_ns)
    event = np.array([row.event for row in rows], dtype=np.int64)
    op = np.where(event >= 0, np.where(events.kind[event] == 0, event, host.op_around[event]), -1)
    ids = np.where(op >= 0, op_id[op], -1)
    sited = np.where(op >= 0, site[op], -1)
    owner = np.array([row.owner for row in rows], dtype=np.int64)
    t_ns = np.array([row.t_ns for row in rows], dtype=np.int64)
    size = np.array([row.size_bytes for row in rows], dtype=np.int64)
    devices: dict[str, int] = {}
    device = np.array([devices.setdefault(row.device, len(devices)) for row in rows])
    reserved = np.array([row.reserved for row in rows], dtype=np.int64)
    line = np.array([int(each.get("line") or 0) for each in sites] or [0], dtype=np.int64)
    lines = np.where(sited >= 0, line[sited], 0)
    return {
        "step": steps.of(t_ns),
        "t_ns": t_ns,
        "device": Coded(device, list(devices)),
        "size_bytes": size,
        "address": np.array([row.address for row in rows], dtype=np.int64),
        "allocated_bytes": _allocated(rows, device, size),
        "reserved_bytes": Masked(reserved.clip(0), reserved <= 0),
        "op_id": Masked(ids.clip(0), ids < 0),
        "owner": Coded(owner, MEMORY_OWNERS),
        "file": profile_tables.of_site(sites, sited, "file"),
        "line": Masked(lines, lines <= 0),
    }


def _allocated(rows: Sequence[_Row], device: Ints, size: Ints) -> Ints:
    """Return what is allocated after each row: as the device's allocator says, else the sum."""
    total = np.array([row.total for row in rows], dtype=np.int64)
    for number in np.unique(device).tolist():
        own = np.flatnonzero(device == number)
        told = own[total[own] >= 0]
        if len(told):  # before the first change it was the same all the time
            silent = own[total[own] < 0]
            total[silent] = total[told[0]] - size[told[0]]
        else:
            total[own] = np.cumsum(size[own])
    return total


def _rows(events: Events, host: Host, owners: Owners, began_ns: int) -> list[_Row]:
    """Walk through the stretch: blocks come and go, marks tell owners, backward passes begin."""
    marks = owners.marks
    rows = [_of_block(block, began_ns) for block in _still_there(owners.held, marks)]
    live = {(row.device, row.address): row for row in rows}
    changes = _changes(events.allocations, events, host)
    turns = [(mark.t_ns, 1, mark) for mark in marks]
    turns += [(t_ns, 1, None) for t_ns in _backward_begins(events, host)]
    turns.sort(key=lambda turn: turn[0])
    at = 0
    for change in changes:
        while at < len(turns) and turns[at][0] <= change.t_ns:
            _learn(turns[at][2], live)
            at += 1
        key = change.device, change.address
        before = live.pop(key, None)
        if change.size_bytes > 0:
            if before is not None:  # its own end was never told
                rows.append(_freed(before, change.t_ns))
            live[key] = change
        elif before is not None:
            change.pair = before
            if before.owner == _UNKNOWN:
                before.owner = TEMPORARY
        rows.append(change)
    for turn in turns[at:]:
        _learn(turn[2], live)
    for row in rows:
        if row.pair is not None:
            row.owner = row.pair.owner
    # What is there at the end and was not allocated meanwhile was there from the beginning.
    late = [block for block in owners.held_at_end if (block.device, block.address) not in live]
    return [*(_of_block(block, began_ns) for block in late), *rows]


def _of_block(block: Held, began_ns: int) -> _Row:
    return _Row(began_ns, block.device, block.size_bytes, block.address, -1, block.owner)


def _still_there(held: Sequence[Held], marks: Sequence[Mark]) -> list[Held]:
    """Leave out gradients that were gone before the first update looked for them."""
    first = next((set(mark.addresses) for mark in marks if mark.owner == GRADIENT), None)
    if first is None:
        return list(held)
    return [block for block in held if block.owner != GRADIENT or block.address in first]


def _changes(allocations: Allocations, events: Events, host: Host) -> list[_Row]:
    event = allocations.event
    forward = np.where(event >= 0, host.phase[event] == _FORWARD, False)
    columns = (
        allocations.t_ns, allocations.address, allocations.size_bytes, allocations.total_bytes,
        allocations.reserved_bytes, allocations.device, event, forward,
    )  # fmt: skip
    found = []
    for t_ns, address, size, total, reserved, number, row, is_forward in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        device = allocations.devices[number]
        # The CPU's own total counts from when it was first profiled: it is summed up instead.
        known = total if device != "cpu" else -1
        made = _Row(t_ns, device, size, address, row, _UNKNOWN, is_forward, known, reserved)
        found.append(made)
    return found


def _backward_begins(events: Events, host: Host) -> list[int]:
    """Return when each backward pass began: the first backward op after a forward one."""
    phase = host.phase[host.ops]
    either = (phase == _FORWARD) | (phase == _BACKWARD)
    phase, start = phase[either], events.start_ns[host.ops][either]
    begins = np.flatnonzero((phase[1:] == _BACKWARD) & (phase[:-1] == _FORWARD)) + 1
    first = [0] if len(phase) and phase[0] == _BACKWARD else []
    return [int(t_ns) for t_ns in start[[*first, *begins.tolist()]]]


def _learn(mark: Mark | None, live: dict[tuple[str, int], _Row]) -> None:
    """Take in who owns what is live; a mark of ``None`` is the begin of a backward pass."""
    if mark is None:
        for row in live.values():
            if row.forward and row.owner == _UNKNOWN:
                row.owner = ACTIVATION
        return
    devices = {device for device, _ in live}
    for address in mark.addresses:
        for device in devices:
            row = live.get((device, address))
            if row is not None and row.owner in (_UNKNOWN, ACTIVATION):
                row.owner = mark.owner


def _freed(row: _Row, t_ns: int) -> _Row:
    return _Row(t_ns, row.device, -row.size_bytes, row.address, -1, row.owner, pair=row)
