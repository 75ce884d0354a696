"""Tables of a trace as frames: Arrow, pandas, polars. Nothing is read before it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tracelens.errors import ConfigError
from tracelens.storage.tables import RUN_TABLES, TABLES, arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa

    from tracelens.storage.reader import TraceReader

_ORDER = ("rank", "event_id", "kern_id", "span_id", "t_ns", "op_id", "step", "src_id")


class Table:
    """One table of a trace; ``docs/format.md`` lists tables and columns.

    Args:
        reader: an open trace.
        name: the table (``"ops"``, ``"steps"``, ``"kernels"`` …).
        rank: rows of this rank only; of all if ``None``.
        step: rows of this step only; of all if ``None``.

    Raises:
        ConfigError: there is no such table.

    Attributes:
        name: the table.
        columns: its columns, in order.
    """

    def __init__(
        self, reader: TraceReader, name: str, *, rank: int | None = None, step: int | None = None
    ) -> None:
        if name not in TABLES:
            raise ConfigError(f"no table {name!r}: choose from {', '.join(TABLES)}")
        self.name = name
        self.columns = tuple(column.name for column in TABLES[name])
        self._reader = reader
        self._rank = rank
        self._step = step

    def __len__(self) -> int:
        return int(self._reader.sql(f'SELECT count(*) FROM "{self.name}"{self._clause()}')[0][0])

    def to_arrow(
        self,
        columns: Sequence[str] | None = None,
        *,
        steps: tuple[int | None, int | None] | None = None,
        where: str | None = None,
    ) -> pa.Table:
        """Return the rows as an Arrow table; columns of few distinct strings are dictionaries.

        Args:
            columns: which; all by default. Of a large trace, name those that you need.
            steps: first step and the one after the last, ``None`` where open.
            where: an SQL condition (``"nan_count > 0"``).

        Raises:
            ConfigError: there is no such column, or the table has no steps.
            QueryRefused: ``where`` is no condition.
        """
        if isinstance(columns, str):
            raise ConfigError(f"columns is a list of names: write [{columns!r}]")
        names = list(self.columns if columns is None else columns)
        for name in names:
            if name not in self.columns:
                known = ", ".join(self.columns)
                raise ConfigError(f"the table {self.name} has no column {name!r}: it has {known}")
        if steps is not None and not _is_range(steps):
            raise ConfigError(
                f"steps={steps!r}: write (first, one after the last), or None for open"
            )
        if steps is None and self._step is not None:
            steps = (self._step, self._step + 1)
        if steps is not None and "step" not in self.columns:
            raise ConfigError(f"the table {self.name} has no steps")
        if where is None and self.name not in RUN_TABLES:
            return self._reader.columns(self.name, names, rank=self._rank, steps=steps)
        chosen = ", ".join(f'"{name}"' for name in names)
        order = ", ".join(name for name in _ORDER if name in self.columns)
        by = f" ORDER BY {order}" if order else ""
        text = f'SELECT {chosen} FROM "{self.name}"{self._clause(steps, where)}{by}'
        return self._reader.arrow(text).cast(_schema(self.name, names))

    def to_pandas(
        self,
        columns: Sequence[str] | None = None,
        *,
        steps: tuple[int | None, int | None] | None = None,
        where: str | None = None,
    ) -> Any:
        """Return the rows as a pandas frame; see ``to_arrow``.

        Raises:
            ConfigError: pandas is missing, or as ``to_arrow``.
        """
        need("pandas")
        return self.to_arrow(columns, steps=steps, where=where).to_pandas()

    def to_polars(
        self,
        columns: Sequence[str] | None = None,
        *,
        steps: tuple[int | None, int | None] | None = None,
        where: str | None = None,
    ) -> Any:
        """Return the rows as a polars frame; see ``to_arrow``.

        Raises:
            ConfigError: polars is missing, or as ``to_arrow``.
        """
        need("polars")
        return import_module("polars").from_arrow(self.to_arrow(columns, steps=steps, where=where))

    def _clause(
        self, steps: tuple[int | None, int | None] | None = None, where: str | None = None
    ) -> str:
        if steps is None and self._step is not None:
            steps = (self._step, self._step + 1)
        first, end = steps or (None, None)
        conditions = [
            f"rank = {int(self._rank)}" if self._rank is not None else "",
            f"step >= {int(first)}" if first is not None else "",
            f"step < {int(end)}" if end is not None else "",
            f"({where}\n)" if where is not None else "",
        ]
        told = " AND ".join(filter(None, conditions))
        return f" WHERE {told}" if told else ""

    def __repr__(self) -> str:
        return f"<Table {self.name!r}: {len(self)} rows, {len(self.columns)} columns>"


def _is_range(steps: object) -> bool:
    ends = steps if isinstance(steps, tuple | list) else ()
    return len(ends) == 2 and all(end is None or hasattr(end, "__index__") for end in ends)


def need(library: str) -> None:
    """Check that a library is installed.

    Raises:
        ConfigError: it is not; tells how to install it.
    """
    if find_spec(library) is None:
        raise ConfigError(f"this needs {library}: pip install {library}")


def _schema(table: str, names: Sequence[str]) -> pa.Schema:
    import pyarrow as pa

    whole = arrow_schema(table)
    return pa.schema([whole.field(name) for name in names])
