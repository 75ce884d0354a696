"""Kineto's results as columns, read in this process: no JSON file, no event objects kept.

`read` takes what ``_disable_profiler`` returns. The compiled reader (``native_profile``) walks the
events in C++; where it cannot be built, the same columns are made from Python's own accessors,
which take some 3 µs an event.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Kind(IntEnum):
    """What an event is; the numbers are those of ``native_profile/events.cpp``."""

    OP = 0
    ANNOTATION = 1
    DEVICE_ANNOTATION = 2
    MEMCPY = 3
    MEMSET = 4
    KERNEL = 5
    RUNTIME = 6
    PYTHON = 7
    OVERHEAD = 8
    SYNC = 9
    OTHER = 10
    SKIPPED = 11


_KINDS = {
    "cpu_op": Kind.OP,
    "user_annotation": Kind.ANNOTATION,
    "gpu_user_annotation": Kind.DEVICE_ANNOTATION,
    "gpu_memcpy": Kind.MEMCPY,
    "gpu_memset": Kind.MEMSET,
    "kernel": Kind.KERNEL,
    "cuda_runtime": Kind.RUNTIME,
    "cuda_driver": Kind.RUNTIME,
    "xpu_runtime": Kind.RUNTIME,
    "xpu_driver": Kind.RUNTIME,
    "mtia_runtime": Kind.RUNTIME,
    "privateuse1_runtime": Kind.RUNTIME,
    "privateuse1_driver": Kind.RUNTIME,
    "python_function": Kind.PYTHON,
    "overhead": Kind.OVERHEAD,
    "cuda_sync": Kind.SYNC,
    "cpu_instant_event": Kind.SKIPPED,
    "external_correlation": Kind.SKIPPED,
    "cuda_event": Kind.SKIPPED,
}
DEVICE_KINDS = (Kind.MEMCPY, Kind.MEMSET, Kind.KERNEL)


@dataclass(slots=True)
class Allocations:
    """What allocators gave out and took back, in order of time; every array has shape (rows,).

    Attributes:
        t_ns: Unix time.
        address: of the block.
        size_bytes: below 0 where it was freed.
        total_bytes: allocated on the device afterwards, as the allocator counts.
        reserved_bytes: reserved on the device afterwards.
        device: number into ``devices``.
        devices: names (``"cpu"``, ``"cuda:0"``).
        event: row of the innermost event around it, -1 for none.
    """

    t_ns: Ints
    address: Ints
    size_bytes: Ints
    total_bytes: Ints
    reserved_bytes: Ints
    device: Ints
    devices: list[str]
    event: Ints


@dataclass(slots=True)
class Events:
    """The events of one stretch; every array has shape (events,), NULL is -1.

    Attributes:
        kind: see ``Kind``.
        name: number into ``names``.
        start_ns: Unix time.
        end_ns: Unix time.
        tid: thread id of the system; of device work, its stream.
        device: index of the device; -1 on the host.
        corr: of an op its own number, else CUPTI's, by which a kernel finds its launch; 0 for none.
        linked: number (``corr``) of the op that launched it, 0 for none.
        seq: autograd's sequence number.
        scope: ``at::RecordScope``; 1 is a backward function.
        thread: the number that RecordFunction gives the thread.
        fwd_thread: of a backward function, ``thread`` of its forward op, else 0.
        shapes: number into ``texts``: JSON of the sizes of the inputs.
        dtypes: number into ``texts``: JSON of their types.
        values: number into ``texts``: JSON of scalar arguments.
        meta: number into ``texts``: JSON of what else is known.
        names: distinct names.
        texts: distinct texts.
        allocations: what allocators did.
    """

    kind: NDArray[np.uint8]
    name: Ints
    start_ns: Ints
    end_ns: Ints
    tid: Ints
    device: Ints
    corr: Ints
    linked: Ints
    seq: Ints
    scope: Ints
    thread: Ints
    fwd_thread: Ints
    shapes: Ints
    dtypes: Ints
    values: Ints
    meta: Ints
    names: list[str]
    texts: list[str]
    allocations: Allocations

    def __len__(self) -> int:
        return len(self.kind)


@dataclass(slots=True)
class _Numbers:
    """Numbers distinct texts."""

    texts: list[str] = field(default_factory=list)
    _known: dict[Any, int] = field(default_factory=dict)

    def of(self, key: Any, text: Callable[[], str]) -> int:
        number = self._known.get(key)
        if number is None:
            number = self._known[key] = len(self.texts)
            self.texts.append(text())
        return number


def read(result: Any) -> Events:
    """Return the events of a finished profile.

    Args:
        result: ``torch._C._autograd._ProfilerResult``.
    """
    from tracelens_torch import native_profile

    native = native_profile.load()
    if native is None:
        return read_in_python(result)
    try:
        columns = native.read(result)
    except TypeError:  # it was compiled against another pybind11 than torch's own
        return read_in_python(result)
    allocations = Allocations(**columns.pop("allocations"))
    return Events(**columns, allocations=allocations)


def read_in_python(result: Any) -> Events:
    """Return the same through the accessors of Python."""
    with _no_collection():
        events = result.events()
        kinds = np.array(
            [_KINDS.get(event.activity_type(), Kind.OTHER) for event in events], dtype=np.uint8
        )
        names, texts = _Numbers(), _Numbers()
        n = len(events)
        columns: dict[str, Any] = {
            "kind": kinds,
            "name": np.array([names.of(t, lambda t=t: t) for t in (e.name() for e in events)]),
            "start_ns": _ints(n, (e.start_ns() for e in events)),
            "tid": _ints(n, (e.device_resource_id() for e in events)),
            "device": _ints(n, (e.device_index() for e in events)),
            "corr": _ints(n, (e.correlation_id() for e in events)),
            "linked": _ints(n, (e.linked_correlation_id() for e in events)),
            "seq": _ints(n, (e.sequence_nr() for e in events)),
            "scope": _ints(n, (e.scope() for e in events)),
            "thread": _ints(n, (e.start_thread_id() for e in events)),
            "fwd_thread": _ints(n, (e.fwd_thread_id() for e in events)),
        }
        columns["end_ns"] = columns["start_ns"] + _ints(n, (e.duration_ns() for e in events))
        columns["device"][~np.isin(kinds, (*DEVICE_KINDS, Kind.DEVICE_ANNOTATION, Kind.SYNC))] = -1
        for name in ("shapes", "dtypes", "values", "meta"):
            columns[name] = np.full(n, -1, dtype=np.int64)
        for row in np.flatnonzero(kinds == Kind.OP).tolist():
            _describe_op(events[row], row, columns, texts)
        for row in np.flatnonzero(np.isin(kinds, (*DEVICE_KINDS, Kind.RUNTIME))).tolist():
            meta = events[row].metadata_json()
            if meta:
                columns["meta"][row] = texts.of(meta, lambda meta=meta: _object(meta))
        allocations = _allocations(result.experimental_event_tree(), columns)
    columns["name"] = columns["name"].astype(np.int64)
    return Events(**columns, names=names.texts, texts=texts.texts, allocations=allocations)


def _describe_op(event: Any, row: int, columns: dict[str, Any], texts: _Numbers) -> None:
    if not event.shapes():
        return
    for name, text in (
        ("shapes", str(event.structured_input_shapes())),
        ("dtypes", _quoted(event.dtypes())),
        ("values", _quoted([_scalar(value) for value in event.concrete_inputs()])),
    ):
        columns[name][row] = texts.of(text, lambda text=text: text)


def _allocations(roots: list[Any], columns: dict[str, Any]) -> Allocations:
    of_corr = {
        corr: row
        for row, (corr, kind) in enumerate(
            zip(columns["corr"].tolist(), columns["kind"].tolist(), strict=True)
        )
        if kind in (Kind.OP, Kind.ANNOTATION)
    }
    found: list[tuple[int, int, int, int, int, int, int]] = []
    devices = _Numbers()
    wanted = torch._C._profiler._EventType.Allocation
    stack = [(root, -1) for root in reversed(roots)]
    while stack:
        node, around = stack.pop()
        if node.tag == wanted:
            what = node.extra_fields
            device = devices.of(what.device, lambda what=what: str(what.device))
            found.append(
                (
                    node.start_time_ns, what.ptr or 0, what.alloc_size, what.total_allocated,
                    what.total_reserved, device, around,
                )
            )  # fmt: skip
            continue
        children = node.children
        if children:
            inner = of_corr.get(node.correlation_id, around)
            stack.extend((child, inner) for child in reversed(children))
    rows = np.array(sorted(found, key=lambda row: row[0]), dtype=np.int64).reshape(-1, 7).T
    return Allocations(*rows[:6], devices=devices.texts, event=rows[6])


def _ints(n: int, values: Iterator[int]) -> Ints:
    return np.fromiter(values, dtype=np.int64, count=n)


def _scalar(value: Any) -> str:
    """Return a scalar argument as Kineto writes it into its files."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_scalar, value)) + "]"
    if isinstance(value, float):
        return f"{int(value)}." if value.is_integer() and abs(value) < 2**53 else f"{value:.17g}"
    return str(value) if isinstance(value, int | str) else ""


def _quoted(texts: list[str]) -> str:
    return "[" + ", ".join(f'"{text}"' for text in texts) + "]"


def _object(meta: str) -> str:
    return meta if meta.startswith("{") else "{" + meta + "}"


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection meanwhile: a hundred thousand short-lived objects would set it off."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
