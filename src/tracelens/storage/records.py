"""Ring records to ``events.Op``: how the parts of one op are put together again.

An op is one OP record, then INPUTS records for inputs past the fourth and STAT records for
measured tensors; all carry its ``op_id``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracelens.events import (
    MAX_SLOT,
    NO_ID,
    SLOT_BITS,
    Op,
    OpFlag,
    Phase,
    RecordKind,
    Role,
    Source,
    Stats,
    TensorFlag,
    TensorRecord,
)
from tracelens.storage.format import RECORD

Records = NDArray[np.void]
Strings = Callable[[int], Any]
"""Looks up an interned value; ``None`` if the id is unknown."""

RECORD_INPUTS = 4
"""Input value ids that one record holds."""


class RecordIndex:
    """Finds ops among ring records.

    Args:
        records: committed records of one shard, in any order.
        strings: the shard's interned values.
        rank: the shard's rank.
    """

    def __init__(self, records: Records, strings: Strings, rank: int = 0) -> None:
        self._records = records
        self._strings = strings
        self._rank = rank
        ids = records["op_id"].astype(np.int64)
        self._order = np.argsort(ids, kind="stable")
        self._sorted_ids = ids[self._order]
        self._op_rows = self._order[records["kind"][self._order] == RecordKind.OP]
        self.op_ids: NDArray[np.int64] = ids[self._op_rows]
        """Ids of the ops present, ascending."""

    def __len__(self) -> int:
        return len(self.op_ids)

    def op(self, op_id: int) -> Op | None:
        """Return the op, ``None`` if its record is not here."""
        low = int(self._sorted_ids.searchsorted(op_id))
        high = int(self._sorted_ids.searchsorted(op_id, side="right"))
        rows = np.sort(self._order[low:high])
        return op_from_records(self._records[rows], self._strings, self._rank)

    def page(
        self, after_op_id: int, limit: int, first_step: int | None, last_step: int | None
    ) -> list[Op]:
        """Return up to ``limit`` ops above ``after_op_id``, ascending, of a range of steps."""
        keep = self.op_ids > after_op_id
        steps = self._of_ops("step")
        if first_step is not None:
            keep &= steps >= first_step
        if last_step is not None:
            keep &= steps <= last_step
        ops = (self.op(int(op_id)) for op_id in self.op_ids[keep][:limit])
        return [op for op in ops if op is not None]

    def ids(self, step: int | None = None) -> NDArray[np.int64]:
        """Return the ids of all ops, or of one step's, ascending."""
        return self.op_ids if step is None else self.op_ids[self._of_ops("step") == step]

    def count(self, step: int | None) -> int:
        """Return how many ops there are, in one step if given."""
        return len(self.ids(step))

    def id_at(self, position: int, step: int | None) -> int:
        """Return the id of the op at a position in the order of ids."""
        return at(self.ids(step), position)

    def hits(self, step: int | None = None) -> list[int]:
        """Return ids of ops whose output was non-finite, ascending."""
        keep = (self._of_ops("flags") & int(OpFlag.HIT)) != 0
        if step is not None:
            keep &= self._of_ops("step") == step
        return [int(op_id) for op_id in self.op_ids[keep]]

    def consumers(self, value_id: int, limit: int = 64) -> list[int]:
        """Return ids of ops that read the value, ascending, at most ``limit``."""
        kind = self._records["kind"]
        rows = (kind == RecordKind.OP) | (kind == RecordKind.INPUTS)
        found = rows & (self._records["in_ids"] == value_id).any(axis=1)
        return [int(op_id) for op_id in np.unique(self._records["op_id"][found])[:limit]]

    def children(self, parent: Op, limit: int) -> list[int]:
        """Return ids of ops called by a composite op, ascending."""
        found = self.op_ids[self._of_ops("parent_id") == parent.op_id]
        return [int(op_id) for op_id in found[:limit]]

    def _of_ops(self, field: str) -> NDArray[np.int64]:
        column: NDArray[np.int64] = self._records[field][self._op_rows].astype(np.int64)
        return column


def at(ids: NDArray[np.int64], position: int) -> int:
    """Return the id at a position, the last one past the end, -1 if there is none."""
    return int(ids[min(position, len(ids) - 1)]) if len(ids) else NO_ID


def op_from_records(records: Records, strings: Strings, rank: int = 0) -> Op | None:
    """Build an op from all records that carry its id, in the order they were written.

    Args:
        records: dtype ``format.RECORD``, all with one ``op_id``.
        strings: looks up interned values.
        rank: put into the result.

    Returns:
        ``None`` if there is no OP record among them.
    """
    if records.dtype != RECORD:
        raise TypeError(f"expected ring records, got {records.dtype}")
    rows = records.tolist()
    names = RECORD.names or ()
    parts = [dict(zip(names, row, strict=True)) for row in rows]
    main = next((part for part in parts if part["kind"] == RecordKind.OP), None)
    if main is None:
        return None
    in_ids = [int(value) for value in main["in_ids"]]
    for part in parts:
        if part["kind"] == RecordKind.INPUTS:
            in_ids.extend(int(value) for value in part["in_ids"])
    n_in, n_out = int(main["n_in"]), int(main["n_out"])
    # A ring that was overwritten between an op and its INPUTS records leaves ids unknown.
    in_ids = (in_ids + [NO_ID] * n_in)[:n_in]
    out_ids = [output_id(int(main["op_id"]), slot) for slot in range(n_out)]
    if main["flags"] & OpFlag.VIEW:
        out_ids = [int(main["value_id"])] * n_out
    elif out_ids:
        out_ids[0] = int(main["value_id"])
    measured: dict[tuple[int, int], TensorRecord] = {}
    for part in parts:
        if part["kind"] == RecordKind.STAT:
            measured[int(part["n_in"]), int(part["n_out"])] = _tensor(part, strings)
    layout = as_mapping(strings(main["layout_id"])) if main["layout_id"] else {}
    own_stats = stats_of(main) if main["stat_level"] else None
    inputs = tuple(
        _merge(measured.get((Role.INPUT, slot)), in_ids[slot], _entry(layout, "in", slot), None)
        for slot in range(n_in)
    )
    outputs = tuple(
        _merge(
            measured.get((Role.OUTPUT, slot)),
            out_ids[slot],
            _entry(layout, "out", slot),
            own_stats if slot == 0 else None,
        )
        for slot in range(n_out)
    )
    site = as_mapping(strings(main["site_id"])) if main["site_id"] else {}
    return Op(
        op_id=int(main["op_id"]),
        name=str(site.get("op", "?")),
        phase=phase_of(main["phase"]),
        step=int(main["step"]),
        inputs=inputs,
        outputs=outputs,
        flags=OpFlag(int(main["flags"])),
        module=str(site.get("module") or ""),
        source=_source(site),
        parent_id=int(main["parent_id"]),
        fwd_op_id=int(main["fwd_op_id"]),
        start_ns=int(main["start_ns"]),
        duration_ns=None if main["duration_ns"] < 0 else int(main["duration_ns"]),
        tid=int(main["tid"]),
        rank=rank,
    )


def output_id(op_id: int, slot: int) -> int:
    """Return the id of the value that an op wrote into one output (slots past 15 share 15)."""
    return (op_id << SLOT_BITS) + min(slot, MAX_SLOT)


def phase_of(code: int) -> Phase:
    """Return the phase of a record; one that this version does not know is ``OTHER``."""
    try:
        return Phase(code)
    except ValueError:
        return Phase.OTHER


def stats_of(part: Mapping[str, Any]) -> Stats:
    """Build the statistics of a record whose ``stat_level`` is 1 (counts) or 2 (all).

    A STAT record has extremes at either level; a tensor without a finite element has none.
    """
    is_stat = part["kind"] == RecordKind.STAT
    nan, posinf, neginf = (max(0, int(part[name])) for name in ("nan", "posinf", "neginf"))
    some_finite = nan + posinf + neginf < part["numel"]
    full = part["stat_level"] >= 2
    ranged = some_finite and (full or is_stat)
    moments = some_finite and full
    return Stats(
        int(part["numel"]),
        nan,
        posinf,
        neginf,
        zero=int(part["zero"]) if part["zero"] >= 0 else None,
        vmin=_finite(part["vmin"]) if ranged else None,
        vmax=_finite(part["vmax"]) if ranged else None,
        mean=_finite(part["mean"]) if moments else None,
        std=_finite(part["std"]) if moments else None,
        l2=_finite(part["l2"]) if moments else None,
        sampled=is_stat and bool(part["flags"] & TensorFlag.SAMPLED),
    )


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Return ``value`` if it is a JSON object, else an empty one (damaged strings)."""
    return value if isinstance(value, dict) else {}


def tensor_entry(entry: Any) -> tuple[str, tuple[int, ...] | None, str]:
    """Return ``(dtype, shape, device)`` of a layout entry; unknown parts are empty or None."""
    if not isinstance(entry, list) or len(entry) < 2 or not isinstance(entry[1], list):
        return "", None, ""
    shape = tuple(int(size) for size in entry[1] if isinstance(size, int))
    return str(entry[0]), shape, str(entry[2]) if len(entry) > 2 else ""


def _entry(layout: Mapping[str, Any], side: str, slot: int) -> Any:
    entries = layout.get(side)
    return entries[slot] if isinstance(entries, list) and slot < len(entries) else None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _source(site: Mapping[str, Any]) -> Source | None:
    if not site.get("file"):
        return None
    line = site.get("line")
    return Source(
        file=str(site["file"]),
        line=line if isinstance(line, int) else 0,
        function=str(site.get("function") or ""),
        code=str(site.get("code") or ""),
    )


def _tensor(part: Mapping[str, Any], strings: Strings) -> TensorRecord:
    flags = int(part["flags"])
    dtype, shape, device = tensor_entry(strings(part["layout_id"]) if part["layout_id"] else None)
    return TensorRecord(
        value_id=int(part["value_id"]),
        dtype=dtype,
        shape=shape,
        device=device,
        stats=stats_of(part) if part["stat_level"] else None,
        first_bad=tuple(int(index) for index in part["in_ids"] if index >= 0),
        parameter=bool(flags & TensorFlag.PARAMETER),
        overwritten=bool(flags & TensorFlag.OVERWRITTEN),
    )


def _merge(
    measured: TensorRecord | None, value_id: int, entry: Any, own_stats: Stats | None
) -> TensorRecord:
    """Join what the STAT record, the op's layout and the op's own record know of one tensor."""
    dtype, shape, device = tensor_entry(entry)
    if measured is None:
        return TensorRecord(value_id, dtype, shape, device, own_stats)
    return TensorRecord(
        value_id=value_id if value_id != NO_ID else measured.value_id,
        dtype=measured.dtype or dtype,
        shape=measured.shape if measured.shape is not None else shape,
        device=measured.device or device,
        stats=measured.stats or own_stats,
        first_bad=measured.first_bad,
        parameter=measured.parameter,
        overwritten=measured.overwritten,
    )
