"""The lines of ``.events`` as rows of ``events``, ``steps`` and the tables of ``APART``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from tracelens.storage.arrays import table_of
from tracelens.storage.jsonlines import dumps
from tracelens.storage.tables import TABLES, arrow_schema

_NAME_KEYS = {"sink": "name", "finding": "rule", "note": "kind", "data": "loader"}
APART = {"tensor": "tensors", "collective": "collectives", "fingerprint": "fingerprints"}
"""Kinds of lines that are rows of a table of their own, and no news to a reader of events."""

_INT64 = range(-(1 << 63), 1 << 63)
_INT32 = range(-(1 << 31), 1 << 31)


class EventRows:
    """Collects events; ``tables`` hands out what was collected."""

    def __init__(self, rank: int, first_id: int = 0) -> None:
        """Begin at event id ``first_id``."""
        self._rank = rank
        self.next_id = first_id
        self.lost = 0
        self._rows: dict[str, list[dict[str, Any]]] = {
            name: [] for name in ("events", "steps", *APART.values())
        }

    def add(self, line: Any) -> None:
        """Take one line; what is no event counts as lost."""
        if not isinstance(line, dict) or not isinstance(line.get("t"), str):
            self.lost += 1
            return
        kind = line["t"]
        if kind == "step":
            self._rows["steps"].append(self._step(line))
        elif kind in APART:
            self._rows[APART[kind]].append(self._row(APART[kind], line))
        else:
            self._rows["events"].append(self._event(kind, line))
        self.next_id += 1

    def add_all(self, lines: Iterable[Any]) -> None:
        """Take many lines."""
        for line in lines:
            self.add(line)

    def tables(self) -> dict[str, pa.Table]:
        """Return the non-empty tables collected since the last call."""
        result = {
            name: table_of(rows, arrow_schema(name)) for name, rows in self._rows.items() if rows
        }
        for rows in self._rows.values():
            rows.clear()
        return result

    def _step(self, line: dict[str, Any]) -> dict[str, Any]:
        scalars = line.get("scalars")
        scalars = scalars if isinstance(scalars, dict) else {}
        return {
            "rank": self._rank,
            "step": _int(line.get("step"), -1),
            "start_ns": _int(line.get("start_ns")),
            "duration_ns": _int(line.get("duration_ns")),
            "loss": _float(scalars.get("loss")),
            "n_ops": _int(line.get("n_ops")),
            "hits": _int(line.get("hits")),
            "scalars": dumps(scalars),
            "payload": dumps(line),
        }

    def _event(self, kind: str, line: dict[str, Any]) -> dict[str, Any]:
        name = line.get(_NAME_KEYS.get(kind, "name"))
        return {
            "event_id": self.next_id,
            "rank": self._rank,
            "step": _int(line.get("step")),
            "op_id": _int(line.get("op_id")),
            "t_ns": _int(line.get("t_ns")),
            "kind": _str(kind),
            "name": None if name is None else _str(str(name)),
            "severity": _str(line.get("severity")),
            "message": _str(line.get("message")),
            "payload": dumps(line),
        }

    def _row(self, table: str, line: dict[str, Any]) -> dict[str, Any]:
        row: dict[str, Any] = {"rank": self._rank}
        for column in TABLES[table]:
            value = line.get(column.name)
            if column.name == "rank":
                continue
            if column.type in ("int64", "int32"):
                known = _INT32 if column.type == "int32" else _INT64
                row[column.name] = _int(value, None if column.nullable else -1, known)
            elif column.type == "float64":
                row[column.name] = _float(value)
            else:
                row[column.name] = _str(value) if column.nullable else _str(str(value or ""))
        return row


def _int(value: Any, default: int | None = None, known: range = _INT64) -> int | None:
    return value if type(value) is int and value in known else default


def _float(value: Any) -> float | None:
    """Return a number; ``"NaN"`` and ``"Infinity"`` are how JSON lines hold non-finite ones."""
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def _str(value: Any) -> str | None:
    """Return a string that UTF-8 can hold (JSON can escape lone surrogates), or ``None``."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else None
