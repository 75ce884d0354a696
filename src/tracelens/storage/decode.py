"""The records of one op to an ``events.Op``.

An op is one OP record, then INPUTS records for inputs past the fourth and STAT records for
measured tensors; all carry its ``op_id``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
"""A one-dimensional array of dtype ``format.RECORD``."""

Strings = Callable[[int], Any]
"""Looks up an interned value; ``None`` if the id is unknown."""

RECORD_INPUTS = 4
"""Input value ids that one record holds."""

_Tensor = tuple[str, tuple[int, ...] | None, str]
_Site = tuple[str, str, Source | None]

_NAMES = RECORD.names or ()
_UNKNOWN: _Tensor = ("", None, "")
_NO_SITE: _Site = ("?", "", None)
_NO_LAYOUT: tuple[list[_Tensor], list[_Tensor]] = ([], [])
_PHASES = {phase.value: phase for phase in Phase}


class Decoder:
    """Builds ops; remembers the interned values it has decoded.

    Args:
        strings: looks up interned values.
        rank: put into the ops.
    """

    def __init__(self, strings: Strings, rank: int = 0) -> None:
        self._strings = strings
        self._rank = rank
        self._sites: dict[int, _Site] = {0: _NO_SITE}
        self._layouts: dict[int, tuple[list[_Tensor], list[_Tensor]]] = {0: _NO_LAYOUT}
        self._tensors: dict[int, _Tensor] = {0: _UNKNOWN}

    def op(self, records: Records) -> Op | None:
        """Build an op from all records that carry its id, in the order they were written.

        Returns:
            ``None`` if there is no OP record among them.
        """
        return self.op_of_rows(records.tolist())

    def op_of_rows(self, rows: Sequence[tuple[Any, ...]]) -> Op | None:
        """As ``op``, from the records as tuples (``records.tolist()``)."""
        parts = [dict(zip(_NAMES, row, strict=True)) for row in rows]
        main = next((part for part in parts if part["kind"] == RecordKind.OP), None)
        if main is None:
            return None
        in_ids = _numbers(main["in_ids"])
        measured: dict[tuple[int, int], TensorRecord] = {}
        for part in parts:
            if part["kind"] == RecordKind.INPUTS:
                in_ids += _numbers(part["in_ids"])
            elif part["kind"] == RecordKind.STAT:
                measured[part["n_in"], part["n_out"]] = self._measured(part)
        ins, outs = self._layout(main["layout_id"])
        inputs = []
        for slot in range(main["n_in"]):
            # A ring that was overwritten between an op and its INPUTS records leaves ids unknown.
            value_id = in_ids[slot] if slot < len(in_ids) else NO_ID
            place = ins[slot] if slot < len(ins) else _UNKNOWN
            inputs.append(_merge(measured.get((Role.INPUT, slot)), value_id, place, None))
        outputs = []
        stats = stats_of(main) if main["stat_level"] else None
        for slot in range(main["n_out"]):
            shared = slot == 0 or main["flags"] & OpFlag.VIEW
            value_id = main["value_id"] if shared else output_id(main["op_id"], slot)
            place = outs[slot] if slot < len(outs) else _UNKNOWN
            known = measured.get((Role.OUTPUT, slot))
            outputs.append(_merge(known, value_id, place, None if slot else stats))
        name, module, source = self._site(main["site_id"])
        return Op(
            op_id=main["op_id"],
            name=name,
            phase=_PHASES.get(main["phase"], Phase.OTHER),
            step=main["step"],
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            flags=OpFlag(main["flags"]),
            module=module,
            source=source,
            parent_id=main["parent_id"],
            fwd_op_id=main["fwd_op_id"],
            start_ns=main["start_ns"],
            duration_ns=None if main["duration_ns"] < 0 else main["duration_ns"],
            tid=main["tid"],
            rank=self._rank,
        )

    def _site(self, number: int) -> _Site:
        known = self._sites.get(number)
        if known is None:
            value = self._strings(number)
            if not isinstance(value, dict):
                return _NO_SITE
            name, module = str(value.get("op", "?")), str(value.get("module") or "")
            known = self._sites[number] = name, module, _source(value)
        return known

    def _layout(self, number: int) -> tuple[list[_Tensor], list[_Tensor]]:
        known = self._layouts.get(number)
        if known is None:
            value = self._strings(number)
            if not isinstance(value, dict):
                return _NO_LAYOUT
            known = self._layouts[number] = _entries(value.get("in")), _entries(value.get("out"))
        return known

    def _measured(self, part: Mapping[str, Any]) -> TensorRecord:
        number = part["layout_id"]
        place = self._tensors.get(number)
        if place is None:
            value = self._strings(number)
            place = tensor_entry(value)
            if value is not None:
                self._tensors[number] = place
        flags = part["flags"]
        return TensorRecord(
            part["value_id"],
            *place,
            stats=stats_of(part) if part["stat_level"] else None,
            first_bad=tuple(index for index in _numbers(part["in_ids"]) if index >= 0),
            parameter=bool(flags & TensorFlag.PARAMETER),
            overwritten=bool(flags & TensorFlag.OVERWRITTEN),
        )


def output_id(op_id: int, slot: int) -> int:
    """Return the id of the value that an op wrote into one output (slots past 15 share 15)."""
    return (op_id << SLOT_BITS) + min(slot, MAX_SLOT)


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


def tensor_entry(entry: Any) -> _Tensor:
    """Return ``(dtype, shape, device)`` of a layout entry; unknown parts are empty or None."""
    if not isinstance(entry, list) or len(entry) < 2 or not isinstance(entry[1], list | None):
        return _UNKNOWN
    sizes = entry[1]
    shape = None if sizes is None else tuple(int(n) for n in sizes if isinstance(n, int))
    return str(entry[0]), shape, str(entry[2]) if len(entry) > 2 else ""


def _entries(value: Any) -> list[_Tensor]:
    return [tensor_entry(entry) for entry in value] if isinstance(value, list) else []


def _numbers(values: Any) -> list[int]:
    """Return a sub-array field of a record as Python integers."""
    return [int(value) for value in values]


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


def _merge(
    measured: TensorRecord | None, value_id: int, place: _Tensor, own_stats: Stats | None
) -> TensorRecord:
    """Join what the STAT record, the op's layout and the op's own record know of one tensor."""
    dtype, shape, device = place
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
