"""Ring records into Arrow tables: vectorised, no Python loop over records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tracelens.events import MAX_SLOT, SLOT_BITS, OpFlag, Phase, RecordKind, Role
from tracelens.storage.jsonlines import dumps
from tracelens.storage.ring import Records
from tracelens.storage.strings import Strings
from tracelens.storage.tables import arrow_schema

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

    def column(self, ids: NDArray[np.int64], missing: str | None = None) -> pa.Array:
        """Return the dictionary column of interned ids, with only the strings it uses."""
        table = self.of_id
        known = (ids >= 0) & (ids < len(table))
        codes = table[ids] if known.all() else np.where(known, table[np.where(known, ids, 0)], -1)
        return dictionary_column(codes, self.texts, missing)


def dictionary_column(
    codes: NDArray[np.int32], texts: Sequence[str], missing: str | None = None
) -> pa.Array:
    """Return a dictionary array of ``texts[codes]``; code -1 is NULL, or ``missing``.

    Every row group of a Parquet file repeats its dictionary, so unused strings are left out.
    """
    used = np.flatnonzero(np.bincount(codes + 1, minlength=1))
    has_missing = len(used) > 0 and used[0] == 0
    remap = np.zeros(len(texts) + 1, dtype=np.int32)
    remap[used] = np.arange(len(used), dtype=np.int32)
    values = [texts[code - 1] for code in used if code]
    indices = remap[codes + 1]
    mask = None
    if has_missing:
        if missing is not None:
            values.insert(0, missing)
        else:
            mask = indices == 0
            indices = np.where(mask, 0, indices - 1).astype(np.int32)
    return pa.DictionaryArray.from_arrays(
        pa.array(indices, type=pa.int32(), mask=mask), pa.array(values, type=pa.string())
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
        kind = records["kind"]
        ops = records[kind == RecordKind.OP]
        stats = records[kind == RecordKind.STAT]
        result = {}
        if len(ops):
            result["ops"] = self._ops(_by_op(ops), _by_op(records[kind == RecordKind.INPUTS]))
        if len(stats):
            result["stats"] = self._stats(_by_op(stats))
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
        for number, (kind, value) in list(strings.items())[self._seen :]:
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
        if number >= len(self._line):
            room = np.zeros(max(number + 1, len(self._line)), dtype=np.int32)
            self._line = np.concatenate([self._line, room])
            self._src = np.concatenate([self._src, room])
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

    def _ops(self, r: Records, inputs: Records) -> pa.Table:
        site, layout = r["site_id"].astype(np.int64), r["layout_id"].astype(np.int64)
        known = (site > 0) & (site < len(self._line))
        line = self._line[np.where(known, site, 0)]
        src = self._src[np.where(known, site, 0)]
        phase = np.where(r["phase"] < len(_PHASES), r["phase"], 0).astype(np.int32)
        one = np.zeros(len(r), dtype=np.int32)
        codes = self._codes
        columns = {
            "op_id": pa.array(r["op_id"]),
            "rank": pa.array(np.full(len(r), self._rank, dtype=np.int32)),
            "step": pa.array(r["step"]),
            "ord": pa.array(self._ord(r)),
            "parent_id": _nullable(r["parent_id"], r["parent_id"] >= 0),
            "fwd_op_id": _nullable(r["fwd_op_id"], r["fwd_op_id"] >= 0),
            "kind": dictionary_column(one, ["op"]),
            "name": codes["name"].column(site, missing="?"),
            "module": codes["module"].column(site),
            "phase": dictionary_column(phase, _PHASES),
            "src_id": _nullable(src, src > 0),
            "file": codes["file"].column(site),
            "line": _nullable(line, line > 0),
            "function": codes["function"].column(site),
            "code": codes["code"].column(site),
            "tid": pa.array(r["tid"]),
            "device": codes["device"].column(layout),
            "start_ns": pa.array(r["start_ns"]),
            "duration_ns": _nullable(r["duration_ns"], r["duration_ns"] >= 0),
            "in_ids": _input_ids(r, inputs),
            "out_ids": _output_ids(r),
            **{
                name: codes[name].column(layout)
                for name in ("shapes", "dtypes", "in_shapes", "in_dtypes")
            },
            **_stat_columns(r),
            "flags": pa.array(r["flags"].astype(np.int32)),
        }
        return _table("ops", columns)

    def _ord(self, r: Records) -> NDArray[np.int32]:
        """Position in the step: distance of the op id from the step's first one."""
        order = np.zeros(len(r), dtype=np.int32)
        for step in distinct(r["step"]):
            rows = r["step"] == step
            ids = r["op_id"][rows]
            first = self._first_op_of_step.setdefault(step, int(ids.min()))
            order[rows] = ids - first
        while len(self._first_op_of_step) > _STEPS_REMEMBERED:
            del self._first_op_of_step[next(iter(self._first_op_of_step))]
        return order

    def _stats(self, r: Records) -> pa.Table:
        tensor = r["layout_id"].astype(np.int64)
        role = np.where(r["n_in"] < len(_ROLES), r["n_in"], 0).astype(np.int32)
        bad = r["in_ids"]
        columns = {
            "op_id": pa.array(r["op_id"]),
            "rank": pa.array(np.full(len(r), self._rank, dtype=np.int32)),
            "step": pa.array(r["step"]),
            "role": dictionary_column(role, _ROLES),
            "slot": pa.array(r["n_out"].astype(np.int32)),
            "value_id": pa.array(r["value_id"]),
            "dtype": self._codes["dtype"].column(tensor),
            "shape": self._codes["shape"].column(tensor),
            "device": self._codes["tensor_device"].column(tensor),
            **_stat_columns(r),
            "first_bad": _list((bad >= 0).sum(axis=1), bad[bad >= 0]),
            "flags": pa.array(r["flags"].astype(np.int32)),
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


def distinct(values: NDArray[np.int64]) -> list[int]:
    """Return the distinct values of a column that changes rarely, sorted."""
    if not len(values):
        return []
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    return np.unique(np.concatenate([values[:1], values[changes]])).tolist()  # type: ignore[no-any-return]


def _by_op(records: Records) -> Records:
    ids = records["op_id"]
    if len(ids) < 2 or bool((ids[1:] >= ids[:-1]).all()):
        return records
    return records[np.argsort(ids, kind="stable")]


def _table(name: str, columns: dict[str, pa.Array]) -> pa.Table:
    schema = arrow_schema(name)
    return pa.Table.from_arrays([columns[field.name] for field in schema], schema=schema)


def _nullable(values: NDArray[Any], valid: NDArray[np.bool_]) -> pa.Array:
    return pa.array(values, mask=None if valid.all() else ~valid)


def _stat_columns(r: Records) -> dict[str, pa.Array]:
    """Statistics; the value columns are NULL where not finite (nothing finite to measure)."""
    counted, full = r["stat_level"] >= 1, r["stat_level"] >= 2
    columns = {
        "numel": _nullable(r["numel"], counted),
        "nan_count": _nullable(r["nan"], counted),
        "inf_count": _nullable(r["posinf"] + r["neginf"], counted),
        "neginf_count": _nullable(r["neginf"], counted),
        "zero_count": _nullable(r["zero"], counted & (r["zero"] >= 0)),
    }
    for name in ("vmin", "vmax", "mean", "std", "l2"):
        columns[name] = _nullable(r[name], full & np.isfinite(r[name]))
    return columns


def _list(lengths: NDArray[Any], values: NDArray[np.int64]) -> pa.Array:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    field = pa.field("element", pa.int64(), nullable=False)
    return pa.ListArray.from_arrays(offsets, pa.array(values), type=pa.list_(field))


def _input_ids(r: Records, inputs: Records) -> pa.Array:
    """Join each op's four inline inputs with its INPUTS records; a lost one reads as -1."""
    n_in = r["n_in"].astype(np.int64)
    starts = np.zeros(len(r) + 1, dtype=np.int64)
    np.cumsum(n_in, out=starts[1:])
    values = np.full(int(starts[-1]), -1, dtype=np.int64)
    inline = r["in_ids"]
    for slot in range(RECORD_INPUTS):
        rows = np.flatnonzero(n_in > slot)
        values[starts[rows] + slot] = inline[rows, slot]
    if len(inputs):
        row = np.searchsorted(r["op_id"], inputs["op_id"])
        row = np.minimum(row, len(r) - 1)
        found = r["op_id"][row] == inputs["op_id"]
        row, ids, owner = row[found], inputs["in_ids"][found], inputs["op_id"][found]
        if len(row):
            _, first, counts = np.unique(owner, return_index=True, return_counts=True)
            nth = np.arange(len(owner)) - np.repeat(first, counts)
            for slot in range(RECORD_INPUTS):
                at = RECORD_INPUTS * (nth + 1) + slot
                fits = at < n_in[row]
                values[starts[row[fits]] + at[fits]] = ids[fits, slot]
    return _list(n_in, values)


def _output_ids(r: Records) -> pa.Array:
    """Value ids of the outputs: ``op_id * 16 + slot``; a view keeps its base's value id."""
    n_out = r["n_out"].astype(np.int64)
    single = bool((n_out == 1).all())
    if single:
        return _list(n_out, np.ascontiguousarray(r["value_id"]))
    row = np.repeat(np.arange(len(r)), n_out)
    starts = np.cumsum(n_out) - n_out
    slot = np.arange(len(row)) - starts[row]
    own = (r["op_id"][row] << SLOT_BITS) + np.minimum(slot, MAX_SLOT)
    shared = (slot == 0) | ((r["flags"][row] & int(OpFlag.VIEW)) != 0)
    return _list(n_out, np.where(shared, r["value_id"][row], own))


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
