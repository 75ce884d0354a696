"""Ring records into Arrow tables: vectorised, no Python loop over records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tracelens.events import MAX_SLOT, SLOT_BITS, OpFlag, Phase, RecordKind, Role
from tracelens.storage.format import RECORD
from tracelens.storage.jsonlines import dumps
from tracelens.storage.ring import Records
from tracelens.storage.strings import Strings
from tracelens.storage.tables import arrow_schema

_Columns = dict[str, NDArray[Any]]
_BLOCK = 2048

RECORD_INPUTS = 4
"""Input value ids that one record holds."""

_LOOKBACK = 1024
"""Records at the end of a batch in which an unfinished op is looked for."""

_STEPS_REMEMBERED = 1024

_PHASES = [phase.label for phase in Phase]
_ROLES = [("out", "in")[role] for role in Role]


class _Codes:
    """One dictionary column: interned id -> index into the distinct strings; -1 = NULL."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self.texts: list[str] = []
        self.of_id = np.full(64, -1, dtype=np.int32)

    def put(self, number: int, text: str | None) -> None:
        if number >= len(self.of_id):
            grown = np.full(max(number + 1, 2 * len(self.of_id)), -1, dtype=np.int32)
            grown[: len(self.of_id)] = self.of_id
            self.of_id = grown
        if text is not None:
            code = self._index.get(text)
            if code is None:
                code = self._index[text] = len(self.texts)
                self.texts.append(text)
            self.of_id[number] = code

    def column(self, ids: _Ids, missing: str | None = None) -> pa.Array:
        """Return the dictionary column of interned ids, with only the strings it uses."""
        known = ids.used[ids.used < len(self.of_id)]
        table = np.full(ids.limit, -1, dtype=np.int32)
        table[known] = self.of_id[known]
        used, codes = np.unique(table[ids.used], return_inverse=True)
        values = [self.texts[code] for code in used.tolist() if code >= 0]
        has_missing = len(used) > 0 and used[0] < 0
        if has_missing and missing is not None:
            values.insert(0, missing)
        table[ids.used] = codes - (1 if has_missing and missing is None else 0)
        indices = table[ids.values]
        mask = indices < 0 if has_missing and missing is None else None
        return pa.DictionaryArray.from_arrays(
            pa.array(indices, mask=mask), pa.array(values, type=pa.string())
        )


class _Ids:
    """A column of interned ids, and which of them occur; impossible ids count as 0 (none)."""

    def __init__(self, values: NDArray[np.int32], limit: int) -> None:
        self.limit = limit
        if len(values) and (int(values.min()) < 0 or int(values.max()) >= limit):
            values = np.where((values >= 0) & (values < limit), values, 0)
        self.values = values
        seen = np.zeros(limit, dtype=bool)
        seen[values] = True
        self.used = np.flatnonzero(seen)


def _constant_column(codes: NDArray[np.uint8], texts: Sequence[str]) -> pa.Array:
    """Return the dictionary column of small codes into a fixed list of strings."""
    return pa.DictionaryArray.from_arrays(
        pa.array(codes.astype(np.int32)), pa.array(texts, type=pa.string())
    )


class Encoder:
    """Turns one shard's ring records into rows of ``ops`` and ``stats``."""

    def __init__(self, rank: int, strings: Callable[[], Strings]) -> None:
        """Prepare for one shard.

        Args:
            rank: the shard's rank.
            strings: returns all values interned so far.
        """
        self._rank = rank
        self._strings = strings
        self._seen = 0
        self._limit = 1
        site = ("name", "module", "file", "function", "code")
        layout = ("device", "shapes", "dtypes", "in_shapes", "in_dtypes")
        tensor = ("dtype", "shape", "tensor_device")
        self._codes = {name: _Codes() for name in (*site, *layout, *tensor)}
        self._line = np.zeros(64, dtype=np.int32)
        self._src = np.zeros(64, dtype=np.int32)
        self._sources: dict[tuple[Any, ...], int] = {}
        self._first_op_of_step: dict[int, int] = {}

    def tables(self, records: Records) -> dict[str, pa.Table]:
        """Return the non-empty tables of ``records`` (any order), sorted by ``op_id``."""
        self._learn()
        columns = _columns(records)
        ops = _select(columns, RecordKind.OP)
        stats = _select(columns, RecordKind.STAT)
        result = {}
        if ops is not None:
            result["ops"] = self._ops(ops, _select(columns, RecordKind.INPUTS))
        if stats is not None:
            result["stats"] = self._stats(stats)
        return result

    def sources(self, start: int = 0) -> pa.Table:
        """Return the sources table from the ``start``-th distinct source on."""
        self._learn()
        rows = [
            {
                "src_id": number,
                "rank": self._rank,
                "file": key[0],
                "line": key[1],
                "function": key[2],
                "code": key[3],
            }
            for key, number in list(self._sources.items())[start:]
        ]
        return pa.Table.from_pylist(rows, schema=arrow_schema("sources"))

    def _learn(self) -> None:
        """Take in values interned since the last call."""
        strings = self._strings()
        if len(strings) == self._seen:
            return
        new = list(strings.items())[self._seen :]
        self._limit = max(self._limit, 1 + max(number for number, _ in new))
        if self._limit > len(self._line):
            room = np.zeros(2 * self._limit - len(self._line), dtype=np.int32)
            self._line = np.concatenate([self._line, room])
            self._src = np.concatenate([self._src, room])
        for number, (kind, value) in new:
            if kind == "site":
                self._learn_site(number, value)
            elif kind == "layout":
                for name, text in _layout_texts(value).items():
                    self._codes[name].put(number, text)
            else:
                self._learn_tensor(number, value)
        self._seen = len(strings)

    def _learn_site(self, number: int, site: dict[str, Any]) -> None:
        self._codes["name"].put(number, _text(site.get("op")))
        for name in ("module", "file", "function", "code"):
            self._codes[name].put(number, _text(site.get(name)) or None)
        line, file = site.get("line"), _text(site.get("file"))
        if file and isinstance(line, int) and 0 < line < 1 << 31:
            key = (file, line, _text(site.get("function")), _text(site.get("code")))
            self._line[number] = line
            self._src[number] = self._sources.setdefault(key, len(self._sources) + 1)

    def _learn_tensor(self, number: int, value: list[Any]) -> None:
        dtype, shape, device = (*value, None, None, None)[:3]
        self._codes["dtype"].put(number, _text(dtype))
        self._codes["shape"].put(number, None if shape is None else dumps(shape))
        self._codes["tensor_device"].put(number, _text(device))

    def _ops(self, c: _Columns, inputs: _Columns | None) -> pa.Table:
        n, limit = len(c["op_id"]), self._limit
        site, layout = _Ids(c["site_id"], limit), _Ids(c["layout_id"], limit)
        line, src = self._line[site.values], self._src[site.values]
        codes = self._codes
        columns = {
            "op_id": pa.array(c["op_id"]),
            "rank": pa.array(np.full(n, self._rank, dtype=np.int32)),
            "step": pa.array(c["step"]),
            "ord": pa.array(self._ord(c)),
            "parent_id": _nullable(c["parent_id"], c["parent_id"] >= 0),
            "fwd_op_id": _nullable(c["fwd_op_id"], c["fwd_op_id"] >= 0),
            "kind": _constant_column(np.zeros(n, dtype=np.uint8), ["op"]),
            "name": codes["name"].column(site, missing="?"),
            "module": codes["module"].column(site),
            "phase": _constant_column(np.where(c["phase"] < len(_PHASES), c["phase"], 0), _PHASES),
            "src_id": _nullable(src, src > 0),
            "file": codes["file"].column(site),
            "line": _nullable(line, line > 0),
            "function": codes["function"].column(site),
            "code": codes["code"].column(site),
            "tid": pa.array(c["tid"]),
            "device": codes["device"].column(layout),
            "start_ns": pa.array(c["start_ns"]),
            "duration_ns": _nullable(c["duration_ns"], c["duration_ns"] >= 0),
            "in_ids": _input_ids(c, inputs),
            "out_ids": _output_ids(c),
            **{
                name: codes[name].column(layout)
                for name in ("shapes", "dtypes", "in_shapes", "in_dtypes")
            },
            **_stat_columns(c),
            "flags": pa.array(c["flags"].astype(np.int32)),
        }
        return _table("ops", columns)

    def _ord(self, c: _Columns) -> NDArray[np.int32]:
        """Position in the step: distance of the op id from the step's first one."""
        steps, ids = c["step"], c["op_id"]
        changes = np.flatnonzero(steps[1:] != steps[:-1]) + 1
        starts = np.concatenate([[0], changes])
        lowest = np.minimum.reduceat(ids, starts)
        first = self._first_op_of_step
        for step, low in zip(steps[starts].tolist(), lowest.tolist(), strict=True):
            first.setdefault(step, low)
        bases = np.array([first[step] for step in steps[starts].tolist()], dtype=np.int64)
        while len(first) > _STEPS_REMEMBERED:
            del first[next(iter(first))]
        lengths = np.diff(np.concatenate([starts, [len(ids)]]))
        return (ids - np.repeat(bases, lengths)).astype(np.int32)

    def _stats(self, c: _Columns) -> pa.Table:
        tensor = _Ids(c["layout_id"], self._limit)
        bad = c["in_ids"]
        columns = {
            "op_id": pa.array(c["op_id"]),
            "rank": pa.array(np.full(len(bad), self._rank, dtype=np.int32)),
            "step": pa.array(c["step"]),
            "role": _constant_column(np.where(c["n_in"] < len(_ROLES), c["n_in"], 0), _ROLES),
            "slot": pa.array(c["n_out"].astype(np.int32)),
            "value_id": pa.array(c["value_id"]),
            "dtype": self._codes["dtype"].column(tensor),
            "shape": self._codes["shape"].column(tensor),
            "device": self._codes["tensor_device"].column(tensor),
            **_stat_columns(c),
            "first_bad": _list((bad >= 0).sum(axis=1), bad[bad >= 0]),
            "flags": pa.array(c["flags"].astype(np.int32)),
        }
        return _table("stats", columns)


def complete_length(records: Records) -> int:
    """Return how many leading records form whole ops.

    An op with more than four inputs is followed by INPUTS records, other threads' records in
    between. A seal must not part them, so the records from the first unfinished op on wait
    for the next seal.

    Args:
        records: committed records in position order.
    """
    tail = records[-_LOOKBACK:]
    extra = tail[tail["kind"] == RecordKind.INPUTS]["op_id"]
    ops = tail["kind"] == RecordKind.OP
    wide = np.flatnonzero(ops & (tail["n_in"] > RECORD_INPUTS))
    have = dict(zip(*(x.tolist() for x in np.unique(extra, return_counts=True)), strict=True))
    first = len(tail)
    for index in wide.tolist():
        need = -(-(int(tail["n_in"][index]) - RECORD_INPUTS) // RECORD_INPUTS)
        if have.get(int(tail["op_id"][index]), 0) < need:
            first = index
            break
    orphans = np.flatnonzero(
        (tail["kind"] != RecordKind.OP) & ~np.isin(tail["op_id"], tail["op_id"][ops])
    )
    if len(orphans) and len(tail) == len(records):
        first = min(first, int(orphans[0]))
    elif len(orphans):
        late = orphans[orphans >= len(tail) - _LOOKBACK // 2]
        first = min(first, int(late[0])) if len(late) else first
    return len(records) - len(tail) + first


def _columns(records: Records) -> _Columns:
    """Return the records' fields as contiguous arrays.

    A field of one record lies 176 bytes from the next one's; taking the fields block by block
    reads memory once instead of once a field.
    """
    names = records.dtype.names or ()
    n = len(records)
    columns = {name: np.empty((n, *RECORD[name].shape), RECORD[name].base) for name in names}
    for start in range(0, n, _BLOCK):
        block = records[start : start + _BLOCK]
        for name, column in columns.items():
            column[start : start + _BLOCK] = block[name]
    return columns


def _select(columns: _Columns, kind: RecordKind) -> _Columns | None:
    """Return the records of one kind sorted by op id; ``None`` if there are none."""
    wanted = columns["kind"] == kind
    if wanted.all():
        chosen = columns if len(wanted) else None
    elif not wanted.any():
        chosen = None
    else:
        rows = np.flatnonzero(wanted)
        chosen = {name: column[rows] for name, column in columns.items()}
    if chosen is None:
        return None
    ids = chosen["op_id"]
    if bool((ids[1:] >= ids[:-1]).all()):
        return chosen
    order = np.argsort(ids, kind="stable")
    return {name: column[order] for name, column in chosen.items()}


def _table(name: str, columns: dict[str, pa.Array]) -> pa.Table:
    schema = arrow_schema(name)
    rows = len(next(iter(columns.values())))
    # A column that only a profiler can fill is not among them.
    arrays = [columns[f.name] if f.name in columns else pa.nulls(rows, f.type) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _nullable(values: NDArray[Any], valid: NDArray[np.bool_]) -> pa.Array:
    return pa.array(values, mask=None if valid.all() else ~valid)


def _stat_columns(c: _Columns) -> dict[str, pa.Array]:
    """Statistics; the value columns are NULL where not finite (nothing finite to measure)."""
    counted, full = c["stat_level"] >= 1, c["stat_level"] >= 2
    # As when a record is decoded: of no finite element there is no smallest.
    full &= c["nan"] + c["posinf"] + c["neginf"] < c["numel"]
    columns = {
        "numel": _nullable(c["numel"], counted),
        "nan_count": _nullable(c["nan"], counted),
        "inf_count": _nullable(c["posinf"] + c["neginf"], counted),
        "neginf_count": _nullable(c["neginf"], counted),
        "zero_count": _nullable(c["zero"], counted & (c["zero"] >= 0)),
    }
    for name in ("vmin", "vmax", "mean", "std", "l2"):
        columns[name] = _nullable(c[name], full & np.isfinite(c[name]))
    return columns


def _list(lengths: NDArray[Any], values: NDArray[np.int64]) -> pa.Array:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    field = pa.field("element", pa.int64(), nullable=False)
    return pa.ListArray.from_arrays(offsets, pa.array(values), type=pa.list_(field))


def _input_ids(c: _Columns, inputs: _Columns | None) -> pa.Array:
    """Join each op's four inline inputs with its INPUTS records; a lost one reads as -1."""
    n_in, op_id, inline = c["n_in"].astype(np.int64), c["op_id"], c["in_ids"]
    if inputs is None and (not len(n_in) or int(n_in.max()) <= RECORD_INPUTS):
        return _list(n_in, inline[np.arange(RECORD_INPUTS) < n_in[:, None]])
    starts = np.zeros(len(n_in) + 1, dtype=np.int64)
    np.cumsum(n_in, out=starts[1:])
    values = np.full(int(starts[-1]), -1, dtype=np.int64)
    for slot in range(RECORD_INPUTS):
        rows = np.flatnonzero(n_in > slot)
        values[starts[rows] + slot] = inline[rows, slot]
    if inputs is not None:
        row = np.minimum(np.searchsorted(op_id, inputs["op_id"]), len(op_id) - 1)
        found = op_id[row] == inputs["op_id"]
        row, ids, owner = row[found], inputs["in_ids"][found], inputs["op_id"][found]
        _, first, counts = np.unique(owner, return_index=True, return_counts=True)
        nth = np.arange(len(owner)) - np.repeat(first, counts)
        for slot in range(RECORD_INPUTS):
            at = RECORD_INPUTS * (nth + 1) + slot
            fits = at < n_in[row]
            values[starts[row[fits]] + at[fits]] = ids[fits, slot]
    return _list(n_in, values)


def _output_ids(c: _Columns) -> pa.Array:
    """Value ids of the outputs: ``op_id * 16 + slot``; a view keeps its base's value id."""
    n_out = c["n_out"].astype(np.int64)
    if bool((n_out == 1).all()):
        return _list(n_out, c["value_id"])
    row = np.repeat(np.arange(len(n_out)), n_out)
    starts = np.cumsum(n_out) - n_out
    slot = np.arange(len(row)) - starts[row]
    own = (c["op_id"][row] << SLOT_BITS) + np.minimum(slot, MAX_SLOT)
    shared = (slot == 0) | ((c["flags"][row] & int(OpFlag.VIEW)) != 0)
    return _list(n_out, np.where(shared, c["value_id"][row], own))


def _layout_texts(layout: dict[str, Any]) -> dict[str, str | None]:
    """Return the text columns of a layout ``{"in": [[dtype, sizes, device], ...], "out": ...}``."""
    outputs, inputs = _tensors(layout.get("out")), _tensors(layout.get("in"))
    device = next((_text(t[2]) for t in outputs if t), None)
    return {
        "device": device,
        "shapes": dumps([t and t[1] for t in outputs]),
        "dtypes": dumps([t and t[0] for t in outputs]),
        "in_shapes": dumps([t and t[1] for t in inputs]),
        "in_dtypes": dumps([t and t[0] for t in inputs]),
    }


def _tensors(value: Any) -> list[list[Any] | None]:
    """Return ``[dtype, sizes, device]`` or ``None`` a tensor, whatever a damaged file holds."""
    items: Iterable[Any] = value if isinstance(value, list) else ()
    return [t if isinstance(t, list) and len(t) == 3 else None for t in items]


def _text(value: Any) -> str | None:
    """Return a string that UTF-8 can hold, or ``None``."""
    if value is None:
        return None
    return str(value).encode("utf-8", "replace").decode()
