"""Ops straight from ring records: the live session's source, and a recovered ring's."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tracelens.events import (
    NO_ID,
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

_CACHED_OPS = 8192
_PHASES = {phase.value: phase for phase in Phase}

Record = Any  # one row of storage.format.RECORD


class RingOps:
    """An ``OpSource`` over committed ring records; an ``Op`` is built only when asked for.

    Args:
        records: structured array of ``storage.format.RECORD`` in position order, as
            ``ShardWriter.committed()`` returns it.
        strings: maps an interned id to its value (``ShardWriter.strings``).
        rank: the rank of the shard the records come from.

    An op whose record was overwritten is unknown (``op`` returns ``None``). Building the indexes
    is a few vectorised sorts: milliseconds for a full ring.
    """

    def __init__(
        self,
        records: npt.NDArray[np.void],
        strings: Callable[[int], Any],
        *,
        rank: int = 0,
    ) -> None:
        self._records = records
        self._strings = strings
        self.rank = rank
        kinds = records["kind"]
        self._ops, self._op_ids = _rows_by_id(records, kinds == RecordKind.OP)
        self._stats, self._stat_ids = _rows_by_id(records, kinds == RecordKind.STAT)
        self._more, self._more_ids = _rows_by_id(records, kinds == RecordKind.INPUTS)
        self._sites: dict[int, Mapping[str, Any]] = {}
        self._built: OrderedDict[int, Op] = OrderedDict()
        self._readers: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self._ops)

    @property
    def first_op_id(self) -> int:
        """The oldest op still recorded, -1 if there is none."""
        return int(self._op_ids[0]) if len(self._op_ids) else NO_ID

    def op(self, op_id: int) -> Op | None:
        """Return the op, or ``None`` if the ring does not hold it."""
        known = self._built.get(op_id)
        if known is not None:
            return known
        index = int(np.searchsorted(self._op_ids, op_id))
        if index >= len(self._op_ids) or int(self._op_ids[index]) != op_id:
            return None
        op = self._build(self._records[self._ops[index]])
        self._built[op_id] = op
        if len(self._built) > _CACHED_OPS:
            self._built.popitem(last=False)
        return op

    def hits(self, step: int | None = None) -> list[int]:
        """Return the ids of ops with a non-finite output, in order; of all steps if ``None``."""
        chosen = (self._records["flags"][self._ops] & OpFlag.HIT) != 0
        if step is not None:
            chosen &= self._records["step"][self._ops] == step
        return [int(op_id) for op_id in self._op_ids[chosen]]

    def consumers(self, value_id: int, limit: int = 64) -> list[int]:
        """Return the ids of the ops that read the value, in order, at most ``limit``."""
        if self._readers is None:
            self._readers = self._index_readers()
        values, readers = self._readers
        low = int(np.searchsorted(values, value_id, "left"))
        high = int(np.searchsorted(values, value_id, "right"))
        return sorted({int(op_id) for op_id in readers[low:high]})[:limit]

    def _index_readers(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        rows = np.concatenate([self._ops, self._more])
        values = self._records["in_ids"][rows]
        readers = np.broadcast_to(self._records["op_id"][rows][:, None], values.shape)
        known = values >= 0
        flat_values, flat_readers = values[known], readers[known]
        order = np.argsort(flat_values, kind="stable")
        return flat_values[order], flat_readers[order]

    def _build(self, row: Record) -> Op:
        op_id = int(row["op_id"])
        flags = OpFlag(int(row["flags"]))
        site = self._site(int(row["site_id"]))
        layout = self._text(int(row["layout_id"]))
        n_in, n_out = int(row["n_in"]), int(row["n_out"])
        in_ids = [int(value) for value in row["in_ids"]]
        for position in self._extra(self._more, self._more_ids, op_id):
            in_ids += [int(value) for value in self._records["in_ids"][position]]
        in_ids = (in_ids + [NO_ID] * n_in)[:n_in]
        out_ids = [(op_id << 4) | min(slot, 15) for slot in range(n_out)]
        if n_out:
            out_ids[0] = int(row["value_id"])
        inputs = [_tensor(value, layout, "in", i) for i, value in enumerate(in_ids)]
        outputs = [_tensor(value, layout, "out", i) for i, value in enumerate(out_ids)]
        if outputs and int(row["stat_level"]):
            outputs[0] = _measured(outputs[0], row, None, ())
        for position in self._extra(self._stats, self._stat_ids, op_id):
            self._add_stat(self._records[position], inputs, outputs)
        return Op(
            op_id=op_id,
            name=str(site.get("op", "unknown op")),
            phase=_PHASES.get(int(row["phase"]), Phase.OTHER),
            step=int(row["step"]),
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            flags=flags,
            module=str(site.get("module") or ""),
            source=_source(site),
            parent_id=int(row["parent_id"]),
            fwd_op_id=int(row["fwd_op_id"]),
            start_ns=int(row["start_ns"]),
            duration_ns=int(row["duration_ns"]) if int(row["duration_ns"]) >= 0 else None,
            tid=int(row["tid"]),
            rank=self.rank,
        )

    def _add_stat(
        self, row: Record, inputs: list[TensorRecord], outputs: list[TensorRecord]
    ) -> None:
        side = inputs if int(row["n_in"]) == Role.INPUT else outputs
        slot = int(row["n_out"])
        while len(side) <= slot:
            side.append(TensorRecord())
        layout = self._text(int(row["layout_id"]))
        bad = tuple(int(index) for index in row["in_ids"] if index >= 0)
        side[slot] = _measured(side[slot], row, layout, bad)

    def _extra(
        self, positions: npt.NDArray[np.int64], ids: npt.NDArray[np.int64], op_id: int
    ) -> list[int]:
        low = int(np.searchsorted(ids, op_id, "left"))
        high = int(np.searchsorted(ids, op_id, "right"))
        return [int(position) for position in positions[low:high]]

    def _site(self, site_id: int) -> Mapping[str, Any]:
        found = self._sites.get(site_id)
        if found is None:
            value = self._text(site_id)
            found = self._sites[site_id] = value if isinstance(value, Mapping) else {}
        return found

    def _text(self, string_id: int) -> Any:
        if string_id <= 0:
            return None
        try:
            return self._strings(string_id)
        except (KeyError, IndexError, ValueError):
            return None  # a killed process may have lost the text of its very last record


def _rows_by_id(
    records: npt.NDArray[np.void], chosen: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return positions of the chosen records in op id order, and their op ids."""
    positions = np.flatnonzero(chosen)
    ids = records["op_id"][positions]
    order = np.argsort(ids, kind="stable")
    return positions[order], ids[order]


def _source(site: Mapping[str, Any]) -> Source | None:
    if not site.get("file"):
        return None
    return Source(
        file=str(site["file"]),
        line=int(site.get("line") or 0),
        function=str(site.get("function") or ""),
        code=str(site.get("code") or ""),
    )


def _tensor(value_id: int, layout: Any, side: str, slot: int) -> TensorRecord:
    entry = None
    if isinstance(layout, Mapping):
        entries = layout.get(side)
        if isinstance(entries, Sequence) and slot < len(entries):
            entry = entries[slot]
    dtype, shape, device = tensor_layout(entry)
    return TensorRecord(value_id=value_id, dtype=dtype, shape=shape, device=device)


def tensor_layout(entry: Any) -> tuple[str, tuple[int, ...] | None, str]:
    """Unpack an interned ``[dtype, [sizes], device]``; absent or malformed parts are empty."""
    if not isinstance(entry, Sequence) or isinstance(entry, str) or len(entry) < 2:
        return "", None, ""
    sizes = entry[1]
    shape = tuple(int(size) for size in sizes) if isinstance(sizes, Sequence) else None
    return str(entry[0] or ""), shape, str(entry[2]) if len(entry) > 2 else ""


def _measured(
    tensor: TensorRecord, row: Record, layout: Any, first_bad: tuple[int, ...]
) -> TensorRecord:
    """Return the tensor with a record's statistics (and a STAT record's layout and flags)."""
    is_stat = int(row["kind"]) == RecordKind.STAT
    flags = TensorFlag(int(row["flags"])) if is_stat else TensorFlag(0)
    dtype, shape, device = tensor_layout(layout)
    level = int(row["stat_level"])
    numel = int(row["numel"])
    nan, posinf, neginf = (max(int(row[field]), 0) for field in ("nan", "posinf", "neginf"))
    # An op that was only checked has no extremes, and a tensor without a finite element none.
    ranged = (is_stat or level >= 2) and nan + posinf + neginf < numel
    moments = level >= 2 and ranged
    stats = Stats(
        numel,
        nan,
        posinf,
        neginf,
        zero=int(row["zero"]) if int(row["zero"]) >= 0 else None,
        vmin=_finite(row["vmin"]) if ranged else None,
        vmax=_finite(row["vmax"]) if ranged else None,
        mean=_finite(row["mean"]) if moments else None,
        std=_finite(row["std"]) if moments else None,
        l2=_finite(row["l2"]) if moments else None,
        sampled=bool(flags & TensorFlag.SAMPLED),
    )
    return TensorRecord(
        value_id=int(row["value_id"]) if is_stat else tensor.value_id,
        dtype=dtype or tensor.dtype,
        shape=shape if shape is not None else tensor.shape,
        device=device or tensor.device,
        stats=stats if level >= 1 else None,
        first_bad=first_bad or tensor.first_bad,
        parameter=bool(flags & TensorFlag.PARAMETER),
        overwritten=bool(flags & TensorFlag.OVERWRITTEN),
    )


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
