"""The object behind ``tl.load``: a recorded run as a few sequences.

Examples:
    >>> import tempfile
    >>> from tracelens.storage.writer import ShardWriter
    >>> directory = tempfile.TemporaryDirectory()
    >>> path = directory.name + "/run.tltrace"
    >>> writer = ShardWriter(path, mode="stream", ring_bytes=1 << 16)
    >>> _ = writer.event("step", step=0, start_ns=0, duration_ns=5_000, scalars={"loss": 0.5})
    >>> writer.close()
    >>> with load(path) as trace:
    ...     print(len(trace.steps), trace.steps[0]["scalars"], len(trace.ops))
    1 {'loss': 0.5} 0
    >>> trace = load(path)
    >>> trace.table("steps").to_arrow(["step", "loss"]).to_pylist()
    [{'step': 0, 'loss': 0.5}]
    >>> trace.ops.to_pandas(["op_id", "name"], where="nan_count > 0").shape
    (0, 2)
    >>> trace.close()
    >>> directory.cleanup()
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

from tracelens.storage.reader import open_trace

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from tracelens.columnar import Table
    from tracelens.events import Op
    from tracelens.storage.health import Health
    from tracelens.storage.reader import TraceReader
    from tracelens.storage.sql import Row

_PAGE = 1024


def load(path: str | os.PathLike[str]) -> Trace:
    """Open a trace for reading; nothing but its manifests is read yet.

    Args:
        path: the trace directory (``run.tltrace``).

    Raises:
        TraceError: no trace is there, it is torn or of a newer format.
    """
    return Trace(open_trace(path))


class Trace:
    """A recorded run.

    Attributes:
        reader: the full reading interface (``storage.reader.TraceReader``).
    """

    def __init__(self, reader: TraceReader) -> None:
        self.reader = reader

    @property
    def steps(self) -> Sequence[dict[str, Any]]:
        """Steps in order: ``step start_ns duration_ns n_ops hits scalars rank``."""
        return self.reader.steps()

    @property
    def ops(self) -> Ops:
        """Ops of the lowest rank, in order; see ``of`` for one step or another rank."""
        ranks = self.reader.ranks()
        return Ops(self.reader, ranks[0] if ranks else 0)

    @property
    def findings(self) -> Sequence[dict[str, Any]]:
        """What a person should look at, in order; as ``tracelens why --json`` shows it."""
        return self.reader.findings()

    @property
    def sinks(self) -> Sequence[dict[str, Any]]:
        """Where non-finite values reached a loss, gradient, parameter or checked value."""
        return self.reader.sinks()

    def tensor(self, name: str, step: int | None = None, rank: int = 0) -> NDArray[Any]:
        """Return a stored tensor, mapped from disk.

        Args:
            name: the name it was tapped under (``"logits"``).
            step: its step; the last one stored if ``None``.
            rank: the process that stored it.

        Raises:
            TraceError: it was not stored, or its file is damaged.
        """
        return self.reader.tensor(name, step, rank)

    def table(self, name: str) -> Table:
        """Return a table of the trace, of all ranks, to be read with ``to_pandas`` and the like.

        Args:
            name: ``"steps"``, ``"ops"``, ``"stats"``, ``"kernels"``, ``"events"`` … as in
                ``docs/format.md``.

        Raises:
            ConfigError: there is no such table.
        """
        from tracelens.columnar import Table

        return Table(self.reader, name)

    def sql(self, text: str) -> list[Row]:
        """Run one SELECT on the trace's tables; see ``docs/format.md`` for their columns.

        Raises:
            QueryRefused: it is not one SELECT, or it failed.
        """
        return self.reader.sql(text)

    def health(self) -> Health:
        """Tell what is wrong with the trace: lost records, damaged files, dead writers."""
        return self.reader.health()

    def close(self) -> None:
        """Give back memory and files; idempotent."""
        self.reader.close()

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _repr_html_(self) -> str:
        """What a notebook shows: verdict, loss, findings, what else is there."""
        from tracelens.notebook import trace_html

        return trace_html(self.reader)

    def __repr__(self) -> str:
        ranks = len(self.reader.ranks())
        return f"<Trace {str(self.reader.path)!r}: {ranks} rank{'s' if ranks != 1 else ''}>"


class Ops(Sequence["Op"]):
    """The ops of one rank as a sequence that keeps at most a page in memory.

    Indexing finds the op by position, so ``ops[0]`` is the first op recorded; ``by_id`` finds one
    by its op id.
    """

    def __init__(self, reader: TraceReader, rank: int, step: int | None = None) -> None:
        self._reader = reader
        self._rank = rank
        self._step = step
        self._length: int | None = None

    def of(self, *, step: int | None = None, rank: int | None = None) -> Ops:
        """Return the ops of one step, or of another rank."""
        return Ops(self._reader, self._rank if rank is None else rank, step)

    def by_id(self, op_id: int) -> Op | None:
        """Return the op with an id, ``None`` if it was not recorded."""
        return self._reader.op(op_id, self._rank)

    def to_arrow(
        self,
        columns: Sequence[str] | None = None,
        *,
        steps: tuple[int | None, int | None] | None = None,
        where: str | None = None,
    ) -> pa.Table:
        """Return the ops as an Arrow table; see ``columnar.Table.to_arrow``."""
        return self._table().to_arrow(columns, steps=steps, where=where)

    def to_pandas(
        self,
        columns: Sequence[str] | None = None,
        *,
        steps: tuple[int | None, int | None] | None = None,
        where: str | None = None,
    ) -> Any:
        """Return the ops as a pandas frame; see ``columnar.Table.to_arrow``."""
        return self._table().to_pandas(columns, steps=steps, where=where)

    def to_polars(
        self,
        columns: Sequence[str] | None = None,
        *,
        steps: tuple[int | None, int | None] | None = None,
        where: str | None = None,
    ) -> Any:
        """Return the ops as a polars frame; see ``columnar.Table.to_arrow``."""
        return self._table().to_polars(columns, steps=steps, where=where)

    def _table(self) -> Table:
        from tracelens.columnar import Table

        return Table(self._reader, "ops", rank=self._rank, step=self._step)

    def __len__(self) -> int:
        if self._length is None:
            self._length = self._reader.count_ops(self._rank, self._step)
        return self._length

    def __iter__(self) -> Iterator[Op]:
        return self._reader.iter_ops(self._step, self._step, rank=self._rank)

    @overload
    def __getitem__(self, index: int) -> Op: ...
    @overload
    def __getitem__(self, index: slice) -> list[Op]: ...
    def __getitem__(self, index: int | slice) -> Op | list[Op]:
        if isinstance(index, slice):
            start, stop, stride = index.indices(len(self))
            if stride > 0:
                return self._range(start, stop)[::stride] if stop > start else []
            return self._range(stop + 1, start + 1)[::-1][::-stride] if start > stop else []
        position = index + len(self) if index < 0 else index
        found = self._range(position, position + 1) if 0 <= position < len(self) else []
        if not found:
            raise IndexError(f"op {index} of {len(self)}")
        return found[0]

    def _range(self, start: int, stop: int) -> list[Op]:
        return self._reader.ops_at(start, stop, rank=self._rank, step=self._step)

    def __repr__(self) -> str:
        step = "" if self._step is None else f", step {self._step}"
        return f"<Ops of rank {self._rank}{step}: {len(self)}>"
