"""The hot ring record and its header: the one definition that every writer and reader shares.

The C++ observer mirrors ``RECORD`` in ``plugins/tracelens_torch/native/record.h``; a test
compares the two field by field. ``docs/format.md`` explains the whole trace directory.
"""

from __future__ import annotations

import struct

import numpy as np

RING_MAGIC = b"TLRING1\0"
RING_VERSION = 1
RING_HEADER_BYTES = 4096

# One record: what a record means is its ``kind`` (events.RecordKind). ``seq`` is written last:
# a record is committed once ``seq == position + 1``, where position counts records of the ring
# from 0 and ``position % capacity`` is the slot.
RECORD = np.dtype(
    [
        ("kind", "u1"),  # events.RecordKind
        ("phase", "u1"),  # events.Phase
        ("flags", "<u2"),  # events.OpFlag (OP) or events.TensorFlag (STAT)
        ("tid", "<i4"),  # operating-system thread id
        ("site_id", "<i4"),  # interned "site" (op name, module, source); 0 = none
        ("layout_id", "<i4"),  # OP: interned "layout" (all tensors); STAT: "tensor"; 0 = none
        ("op_id", "<i8"),  # reserved when the op starts, so a child's is above its parent's
        ("step", "<i8"),
        ("parent_id", "<i8"),  # enclosing composite op, -1 none
        ("fwd_op_id", "<i8"),  # forward op of a backward op, -1 none
        ("start_ns", "<i8"),  # since the manifest's epoch
        ("duration_ns", "<i8"),  # -1 not measured
        ("in_ids", "<i8", (4,)),  # value ids, -1 none; STAT: first bad flat indices, -1 none
        ("n_in", "u1"),  # tensors in; STAT: Role
        ("n_out", "u1"),  # tensors out; STAT: slot
        ("stat_level", "u1"),  # 0 none, 1 non-finite counts, 2 all statistics
        ("reserved", "u1"),
        ("vmin", "<f4"),
        ("vmax", "<f4"),
        ("mean", "<f4"),
        ("std", "<f4"),
        ("l2", "<f4"),
        ("numel", "<i8"),
        ("nan", "<i8"),
        ("posinf", "<i8"),
        ("neginf", "<i8"),
        ("zero", "<i8"),  # -1 not counted
        ("value_id", "<i8"),  # STAT: the tensor's value id; OP: value id of output 0
        ("seq", "<i8"),
    ]
)
RECORD_BYTES = RECORD.itemsize  # 176

RECORD_STRUCT = struct.Struct("<BBHiii6q4q4B5f7q")
assert RECORD_STRUCT.size == RECORD_BYTES

# Ring header: magic, version, record bytes, capacity (a power of two), records sealed into
# Parquet, head hint (next position; advisory), length of the JSON that follows.
HEADER_STRUCT = struct.Struct("<8sIIQQQI")
HEADER_SEALED_OFFSET = 8 + 4 + 4 + 8
HEADER_HEAD_OFFSET = HEADER_SEALED_OFFSET + 8
