"""Parquet rows to ``events.Op``: one row of ``ops``, and that op's rows of ``stats``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from tracelens.events import (
    NO_ID,
    Op,
    OpFlag,
    Phase,
    Source,
    Stats,
    TensorFlag,
    TensorRecord,
)

_PHASES = {phase.label: phase for phase in Phase}
# An op of a record has at most 255 tensors a side; a larger slot is damage.
_MAX_TENSORS = 256
_FLAG_BITS = sum(flag.value for flag in OpFlag)

OP_COLUMNS = (
    "op_id", "rank", "step", "parent_id", "fwd_op_id", "name", "module", "phase", "file", "line",
    "function", "code", "tid", "device", "start_ns", "duration_ns", "in_ids", "out_ids", "shapes",
    "dtypes", "in_shapes", "in_dtypes", "numel", "nan_count", "inf_count", "neginf_count",
    "zero_count", "vmin", "vmax", "mean", "std", "l2", "flags",
)  # fmt: skip
"""Columns of ``ops`` that an ``Op`` is built from."""

STAT_COLUMNS = (
    "op_id", "rank", "role", "slot", "value_id", "dtype", "shape", "device", "numel", "nan_count",
    "inf_count", "neginf_count", "zero_count", "vmin", "vmax", "mean", "std", "l2", "first_bad",
    "flags",
)  # fmt: skip
"""Columns of ``stats`` that a ``TensorRecord`` is built from."""


def op_from_row(row: Mapping[str, Any], stats: Iterable[Mapping[str, Any]] = ()) -> Op:
    """Build an op.

    Args:
        row: the ``OP_COLUMNS`` of one row of ``ops``.
        stats: the ``STAT_COLUMNS`` of the rows of ``stats`` with the same op id and rank.
    """
    measured: dict[tuple[str, int], TensorRecord] = {}
    for stat in stats:
        slot = stat["slot"]
        if slot is not None and 0 <= slot < _MAX_TENSORS:
            measured[str(stat["role"]), slot] = _measured(stat)
    file = row["file"]
    return Op(
        op_id=_known(row["op_id"]),
        name=row["name"] or "?",
        phase=_PHASES.get(row["phase"], Phase.OTHER),
        step=_known(row["step"]),
        inputs=_tensors(
            row["in_ids"], row["in_shapes"], row["in_dtypes"], measured, "in", None, ""
        ),
        outputs=_tensors(
            row["out_ids"], row["shapes"], row["dtypes"], measured, "out", _stats(row, 0),
            row["device"] or "",
        ),
        flags=OpFlag((row["flags"] or 0) & _FLAG_BITS),
        module=row["module"] or "",
        source=None
        if file is None
        else Source(file, row["line"] or 0, row["function"] or "", row["code"] or ""),
        parent_id=_known(row["parent_id"]),
        fwd_op_id=_known(row["fwd_op_id"]),
        start_ns=row["start_ns"] or 0,
        duration_ns=row["duration_ns"],
        tid=row["tid"] or 0,
        rank=row["rank"] or 0,
    )  # fmt: skip


def _known(number: int | None) -> int:
    return NO_ID if number is None else number


def _tensors(
    ids: Sequence[int] | None,
    shapes: str | None,
    dtypes: str | None,
    measured: Mapping[tuple[str, int], TensorRecord],
    role: str,
    first_stats: Stats | None,
    device: str,
) -> tuple[TensorRecord, ...]:
    shape_list = _shapes(shapes) if shapes else ()
    dtype_list = _names(dtypes) if dtypes else ()
    count = len(ids or ())
    if measured:
        count = max([count, *(slot + 1 for side, slot in measured if side == role)])
    tensors = []
    for slot in range(count):
        value_id = _known(ids[slot]) if ids is not None and slot < len(ids) else NO_ID
        shape = shape_list[slot] if slot < len(shape_list) else None
        dtype = dtype_list[slot] if slot < len(dtype_list) else ""
        known = measured.get((role, slot))
        stats = first_stats if slot == 0 else None
        if known is None:
            where = device if slot == 0 else ""
            tensors.append(TensorRecord(value_id, dtype, shape, where, stats))
        else:
            tensors.append(
                TensorRecord(
                    value_id=value_id if value_id != NO_ID else known.value_id,
                    dtype=known.dtype or dtype,
                    shape=known.shape if known.shape is not None else shape,
                    device=known.device or (device if slot == 0 else ""),
                    stats=known.stats or stats,
                    first_bad=known.first_bad,
                    parameter=known.parameter,
                    overwritten=known.overwritten,
                )
            )
    return tuple(tensors)


def _measured(stat: Mapping[str, Any]) -> TensorRecord:
    flags = stat["flags"] or 0
    shape = _shapes(f"[{stat['shape']}]") if stat["shape"] else (None,)
    return TensorRecord(
        value_id=_known(stat["value_id"]),
        dtype=stat["dtype"] or "",
        shape=shape[0] if shape else None,
        device=stat["device"] or "",
        stats=_stats(stat, flags),
        first_bad=tuple(index for index in stat["first_bad"] or () if _known(index) >= 0),
        parameter=bool(flags & TensorFlag.PARAMETER),
        overwritten=bool(flags & TensorFlag.OVERWRITTEN),
    )


def _stats(row: Mapping[str, Any], tensor_flags: int) -> Stats | None:
    if row["numel"] is None:
        return None
    infinite = row["inf_count"] or 0
    negative = row["neginf_count"] or 0
    return Stats(
        numel=row["numel"],
        nan=row["nan_count"] or 0,
        posinf=infinite - negative,
        neginf=negative,
        zero=row["zero_count"],
        vmin=row["vmin"],
        vmax=row["vmax"],
        mean=row["mean"],
        std=row["std"],
        l2=row["l2"],
        sampled=bool(tensor_flags & TensorFlag.SAMPLED),
    )


@lru_cache(maxsize=4096)
def _shapes(text: str) -> tuple[tuple[int, ...] | None, ...]:
    """Parse ``"[[8, 2048], null]"``; damaged text is no shape at all."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    if not isinstance(entries, list):
        return ()
    return tuple(
        tuple(size for size in entry if isinstance(size, int)) if isinstance(entry, list) else None
        for entry in entries
    )


@lru_cache(maxsize=4096)
def _names(text: str) -> tuple[str, ...]:
    """Parse ``'["float32", null]'``; damaged text is no names at all."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    if not isinstance(entries, list):
        return ()
    return tuple(entry if isinstance(entry, str) else "" for entry in entries)
