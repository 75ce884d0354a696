"""A memory snapshot of PyTorch as rows of the table ``memory``.

The allocator keeps a ring of its last actions, and the snapshot says what was allocated when it
was taken. What the ring does not say was allocated, but is freed in it or still there at its end,
was allocated before: it is written first, so that the sums are right from the beginning.
A tensor counts as freed when its program freed it (``free_requested``), which is what
``torch.cuda.memory_allocated`` counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tracelens.convert._columns import Rows
from tracelens.storage.bulk import BulkShard

_RESERVE = {"segment_alloc": 1, "segment_map": 1, "segment_free": -1, "segment_unmap": -1}
_INT64 = range(-(1 << 63), 1 << 63)
_LIBRARIES = ("/site-packages/", "/dist-packages/", "/lib/python3", "/torch/")
_NAMED_OOMS = 8

Entry = Mapping[str, Any]


def earliest_ns(snapshot: Mapping[str, Any]) -> int:
    """Return the Unix time of a snapshot's first action, 0 where times are not told."""
    times = [_time_ns(each) for trace in _traces(snapshot) for each in trace]
    return min((each for each in times if each is not None), default=0)


@dataclass(slots=True)
class _Device:
    """What is known of one device."""

    name: str
    entries: list[Entry]
    blocks: dict[int, Entry] = field(default_factory=dict)
    reserved: int = 0


class SnapshotRows:
    """The rows of one snapshot.

    Args:
        snapshot: what the pickle holds.
        epoch_ns: Unix time of time 0 of the trace.
        problems: told what does not fit together.
    """

    def __init__(self, snapshot: Mapping[str, Any], epoch_ns: int, problems: list[str]) -> None:
        self._snapshot = snapshot
        self._epoch_ns = epoch_ns
        self._problems = problems
        self._rows = Rows(
            ("t_ns", "size_bytes", "address", "allocated_bytes", "reserved_bytes", "line"),
            ("device", "file"),
        )
        self._places: dict[int, tuple[str, int | None]] = {}
        self._untimed = False
        self._absurd = 0

    def write(self, shard: BulkShard) -> None:
        """Write the rows, and a note for each time that memory ran out."""
        for device in self._devices():
            self._replay(device, shard)
        if self._untimed:
            told = "this version of PyTorch recorded no times: t_ns is the number of the action"
            shard.event("note", kind="import", severity="warning", message=told)
        if self._absurd:
            self._problems.append(f"{self._absurd} allocations of absurd sizes are left out")
        if len(self._rows):
            shard.write("memory", self._rows.columns())

    def _devices(self) -> list[_Device]:
        found = {
            number: _Device(f"cuda:{number}", trace)
            for number, trace in enumerate(_traces(self._snapshot))
        }
        segments = self._snapshot.get("segments")
        for segment in segments if isinstance(segments, list) else []:
            if not isinstance(segment, dict):
                continue
            number = _int(segment.get("device"))
            device = found.setdefault(number, _Device(f"cuda:{number}", []))
            device.reserved += _int(segment.get("total_size"))
            device.blocks.update(_blocks(segment))
        return [found[number] for number in sorted(found)]

    def _replay(self, device: _Device, shard: BulkShard) -> None:
        before = self._before(device)
        times = [_time_ns(each) for each in device.entries]
        self._untimed |= any(each is None for each in times)
        first = next((each for each in times if each is not None), self._epoch_ns)
        net = sum(
            _RESERVE[each["action"]] * _int(each.get("size"))
            for each in device.entries
            if each.get("action") in _RESERVE
        )
        allocated, reserved = 0, max(0, device.reserved - net)
        for address, (size, entry) in before.items():
            allocated += size
            self._add(first, size, address, allocated, reserved, device.name, entry)
        live = {address: size for address, (size, _) in before.items()}
        ooms = 0
        for number, (entry, time) in enumerate(zip(device.entries, times, strict=True)):
            action, size = entry.get("action"), _int(entry.get("size"))
            at = self._epoch_ns + number if time is None else time
            address = _int(entry.get("addr"))
            if action == "alloc":
                live[address] = size
                allocated += size
                self._add(at, size, address, allocated, reserved, device.name, entry)
            elif action == "free_requested":
                size = live.pop(address, size)
                allocated -= size
                self._add(at, -size, address, allocated, reserved, device.name, entry)
            elif action in _RESERVE:
                reserved += _RESERVE[action] * size
                self._add(at, 0, address, allocated, reserved, device.name, entry)
            elif action == "oom":
                ooms += 1
                if ooms <= _NAMED_OOMS:
                    self._oom(shard, device, entry, at, allocated, reserved)
        self._compare(device, live)

    def _before(self, device: _Device) -> dict[int, tuple[int, Entry]]:
        """Return what was allocated before the ring's first action: address -> size, block."""
        found: dict[int, tuple[int, Entry]] = {}
        live: set[int] = set()
        for entry in device.entries:
            address = _int(entry.get("addr"))
            if entry.get("action") == "alloc":
                live.add(address)
            elif entry.get("action") == "free_requested":
                if address not in live:
                    found[address] = _int(entry.get("size")), {}
                live.discard(address)
        for address, block in device.blocks.items():
            if address not in live and address not in found:
                found[address] = _size_of(block), block
        return found

    def _compare(self, device: _Device, live: dict[int, int]) -> None:
        """Tell if the actions leave something else allocated than the snapshot says."""
        held = {address: _size_of(block) for address, block in device.blocks.items()}
        lost = [address for address in live if address not in held]
        if lost and device.blocks:
            size = sum(live[address] for address in lost)
            self._problems.append(
                f"{device.name}: {len(lost)} allocations ({size} bytes) are neither freed nor in "
                "the snapshot's segments"
            )

    def _add(
        self,
        at_ns: int,
        size: int,
        address: int,
        allocated: int,
        reserved: int,
        device: str,
        entry: Entry,
    ) -> None:
        file, line = self._place(entry.get("frames"))
        at_ns -= self._epoch_ns
        try:
            self._rows.add(at_ns, size, address, allocated, reserved, line, device, file)
        except OverflowError:
            self._absurd += 1

    def _place(self, frames: Any) -> tuple[str, int | None]:
        """Return the innermost of the user's frames; a stack that many share is looked at once."""
        if not isinstance(frames, list):
            return "", None
        known = self._places.get(id(frames))
        if known is None:
            known = self._places[id(frames)] = _user_frame(frames)
        return known

    def _oom(
        self,
        shard: BulkShard,
        device: _Device,
        entry: Entry,
        at_ns: int,
        allocated: int,
        reserved: int,
    ) -> None:
        file, line = self._place(entry.get("frames"))
        where = f" at {file}:{line}" if file else ""
        shard.event(
            "note",
            kind="oom",
            severity="error",
            t_ns=at_ns - self._epoch_ns,
            message=(
                f"{device.name} ran out of memory{where}: {_int(entry.get('size'))} bytes wanted, "
                f"{_int(entry.get('device_free'))} free, {allocated} allocated, {reserved} reserved"
            ),
            frames=json.dumps(_texts(entry.get("frames"))),
        )


def _traces(snapshot: Mapping[str, Any]) -> list[list[Entry]]:
    traces = snapshot.get("device_traces")
    if not isinstance(traces, list):
        return []
    return [
        [each for each in trace if _is_action(each)] if isinstance(trace, list) else []
        for trace in traces
    ]


def _is_action(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("action"), str)


def _blocks(segment: Entry) -> Iterator[tuple[int, Entry]]:
    """Yield a segment's allocated blocks; old versions do not tell their addresses."""
    address = _int(segment.get("address"))
    blocks = segment.get("blocks")
    for block in blocks if isinstance(blocks, list) else []:
        if isinstance(block, dict):
            address = _int(block.get("address"), address)
            if block.get("state") == "active_allocated":
                yield address, block
            address += _int(block.get("size"))


def _size_of(block: Entry) -> int:
    return _int(block.get("requested_size"), _int(block.get("size")))


def _time_ns(entry: Entry) -> int | None:
    time_us = entry.get("time_us")
    return time_us * 1000 if type(time_us) is int and 0 < time_us < 1 << 53 else None


def _user_frame(frames: list[Any]) -> tuple[str, int | None]:
    for frame in frames:
        if isinstance(frame, dict):
            file, line = frame.get("filename"), frame.get("line")
            if isinstance(file, str) and file.endswith(".py") and not _is_library(file):
                return file, line if type(line) is int and 0 <= line < 1 << 31 else None
    return "", None


def _is_library(file: str) -> bool:
    path = file.replace("\\", "/")
    return file.startswith("<") or any(part in path for part in _LIBRARIES)


def _texts(frames: Any) -> list[str]:
    return [
        f"{frame.get('name')} ({frame.get('filename')}:{frame.get('line')})"
        for frame in (frames if isinstance(frames, list) else [])
        if isinstance(frame, dict)
    ][:32]


def _int(value: Any, default: int = 0) -> int:
    return value if type(value) is int and value in _INT64 else default
