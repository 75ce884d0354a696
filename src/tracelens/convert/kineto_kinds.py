"""What the categories of Kineto's events mean, from 2020's names to today's."""

from __future__ import annotations

from enum import IntEnum


class Kind(IntEnum):
    """What an event is, by how it is imported; the order is that of nesting at equal times."""

    PYTHON = 0
    ANNOTATION = 1
    OP = 2
    RUNTIME = 3
    OVERHEAD = 4
    OTHER = 5
    KERNEL = 6
    MEMCPY = 7
    MEMSET = 8
    DEVICE_ANNOTATION = 9
    SYNC = 10
    DEVICE_OTHER = 11
    SKIPPED = 12


HOST_KINDS = (Kind.PYTHON, Kind.ANNOTATION, Kind.OP, Kind.RUNTIME, Kind.OVERHEAD, Kind.OTHER)
DEVICE_KINDS = (Kind.KERNEL, Kind.MEMCPY, Kind.MEMSET)

_KINDS = {
    "cpu_op": Kind.OP,
    "operator": Kind.OP,
    "hpu_op": Kind.OP,
    "user_annotation": Kind.ANNOTATION,
    "python_function": Kind.PYTHON,
    "nn_module": Kind.PYTHON,
    "cuda_runtime": Kind.RUNTIME,
    "cuda_driver": Kind.RUNTIME,
    "runtime": Kind.RUNTIME,
    "driver": Kind.RUNTIME,
    "overhead": Kind.OVERHEAD,
    "kernel": Kind.KERNEL,
    "mtia_ccp_events": Kind.KERNEL,
    "mtia_workloadd": Kind.KERNEL,
    "concurrent_kernel": Kind.KERNEL,
    "gpu_memcpy": Kind.MEMCPY,
    "memcpy": Kind.MEMCPY,
    "gpu_memset": Kind.MEMSET,
    "memset": Kind.MEMSET,
    "gpu_user_annotation": Kind.DEVICE_ANNOTATION,
    "cuda_sync": Kind.SYNC,
    "cuda_event": Kind.SYNC,
    "cuda_profiler_range": Kind.DEVICE_OTHER,
    # The window of the profile itself, on a thread that is none.
    "trace": Kind.SKIPPED,
}

FORWARD_BACKWARD = ("fwdbwd", "forward_backward")
LAUNCHES = ("ac2g", "async", "async_cpu_to_gpu", "async_gpu")
"""Categories of the arrows from a forward op to its backward op, and from a call to its kernel."""

MEMORY = "[memory]"


def kind_of(category: str | None, args: bytes) -> Kind:
    """Return what a complete event is.

    Args:
        category: ``cat`` of the event.
        args: its arguments, for categories that are not known: a device's have a stream.
    """
    name = (category or "").lower()
    known = _KINDS.get(name)
    if known is not None:
        return known
    if name.endswith(("_runtime", "_driver")):
        return Kind.RUNTIME
    if name and b'"stream"' in args and b'"device"' in args and b'"correlation"' in args:
        return Kind.KERNEL
    return Kind.OTHER
