"""The arguments of Kineto's events that are imported, by kind of event."""

from __future__ import annotations

import msgspec
from msgspec import Raw, field

_NONE = Raw(b"")


class OpArgs(msgspec.Struct, gc=False):
    """Of an op."""

    external: int = field(name="External id", default=0)
    sequence: int = field(name="Sequence number", default=-1)
    forward_thread: int = field(name="Fwd thread id", default=0)
    shapes: Raw = field(name="Input Dims", default=_NONE)
    old_shapes: Raw = field(name="Input dims", default=_NONE)
    types: Raw = field(name="Input type", default=_NONE)
    values: Raw = field(name="Concrete Inputs", default=_NONE)
    stack: str = field(name="Call stack", default="")
    modules: str = field(name="Module Hierarchy", default="")
    collective: str = field(name="Collective name", default="")
    dtype: str = ""
    group: str = field(name="Process Group Name", default="")
    group_size: int = field(name="Group size", default=0)
    sent: int = field(name="In msg nelems", default=-1)
    received: int = field(name="Out msg nelems", default=-1)


class LaunchArgs(msgspec.Struct, gc=False):
    """Of a call of the runtime or driver."""

    correlation: int = 0
    external: int = field(name="External id", default=0)
    old_external: int = field(name="external id", default=0)


class DeviceArgs(msgspec.Struct, gc=False):
    """Of work of a device."""

    device: int = -1
    stream: int = -1
    correlation: int = 0
    external: int = field(name="External id", default=0)
    old_external: int = field(name="external id", default=0)
    bytes: int = -1
    size: int = -1
    grid: Raw = _NONE
    block: Raw = _NONE
    registers: float | None = field(name="registers per thread", default=None)
    shared: float | None = field(name="shared memory", default=None)
    blocks: float | None = field(name="blocks per SM", default=None)
    warps: float | None = field(name="warps per SM", default=None)
    occupancy: float | None = field(name="est. achieved occupancy %", default=None)
    theoretical: float | None = field(name="theoretical occupancy %", default=None)
    kind: str = ""
    graph: int | None = field(name="graph id", default=None)
    graph_node: int | None = field(name="graph node id", default=None)
    collective: str = field(name="Collective name", default="")
    dtype: str = ""
    group: str = field(name="Process Group Name", default="")
    group_size: int = field(name="Group size", default=0)
    sent: int = field(name="In msg nelems", default=-1)
    received: int = field(name="Out msg nelems", default=-1)


class MemoryArgs(msgspec.Struct, gc=False):
    """Of an allocation."""

    device_type: int = field(name="Device Type", default=0)
    device: int = field(name="Device Id", default=-1)
    bytes: int = field(name="Bytes", default=0)
    address: int = field(name="Addr", default=0)
    allocated: int = field(name="Total Allocated", default=-1)
    reserved: int = field(name="Total Reserved", default=-1)


DEVICE_TYPES = {
    0: "cpu", 1: "cuda", 6: "hip", 9: "xla", 12: "xpu", 13: "mps", 15: "hpu", 18: "ipu",
    19: "mtia", 20: "privateuse1",
}  # fmt: skip
"""c10::DeviceType -> PyTorch's name of it."""

ELEMENT_BYTES = {
    "float": 4, "float32": 4, "int": 4, "half": 2, "float16": 2, "bfloat16": 2, "double": 8,
    "float64": 8, "long": 8, "int64": 8, "int32": 4, "short": 2, "int16": 2, "char": 1, "byte": 1,
    "int8": 1, "uint8": 1, "bool": 1, "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1,
    "float8_e5m2fnuz": 1, "complexfloat": 8, "complexdouble": 16, "long int": 8,
    "unsigned char": 1, "signed char": 1, "c10::half": 2, "c10::bfloat16": 2,
}  # fmt: skip
"""Element type of a collective, in small letters -> its bytes."""
