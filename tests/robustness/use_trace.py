"""Uses everything that reads a trace; only the project's own errors may come out."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tracelens.analysis.ranks import analyse
from tracelens.analysis.verdict import verdict
from tracelens.command import Context
from tracelens.commands import TABLE, run_line
from tracelens.convert import csv, npz, perfetto
from tracelens.cursor import Cursor
from tracelens.engines.duckdb_engine import DuckDBEngine
from tracelens.errors import TraceLensError
from tracelens.loaded import Trace
from tracelens.overview import overview
from tracelens.storage.reader import TraceReader, open_trace
from tracelens.storage.tail import Tail
from tracelens.storage.verify import verify


def use(path: Path) -> None:
    """Ask for everything; a ``TraceLensError`` of one line is the only error that may come."""
    attempt(lambda: verify(path))
    attempt(lambda: follow(path))
    reader = attempt(lambda: open_trace(path))
    if reader is None:
        return
    with reader, tempfile.TemporaryDirectory() as folder:
        for question in questions(reader, Path(folder)):
            attempt(question)


def attempt(question: Callable[[], Any]) -> Any:
    try:
        return question()
    except TraceLensError as error:
        assert "\n" not in str(error), error
        assert len(str(error)) < 2000, error
        return None


def follow(path: Path) -> None:
    tail = Tail(path)
    for _ in range(3):
        tail.poll()
    tail.close()


def questions(reader: TraceReader, out: Path) -> list[Callable[[], Any]]:
    rank = reader.ranks()[0] if reader.ranks() else 0
    trace = Trace(reader)
    return [
        reader.health,
        reader.shards,
        lambda: [reader.op(op_id, rank) for op_id in (0, 3, 19, 1 << 40, -1, 1 << 70)],
        lambda: reader.ops(rank=rank),
        lambda: reader.ops(rank=rank, step=2),
        lambda: reader.ops_at(2, 5, rank=rank),
        lambda: sum(1 for _ in reader.iter_ops(rank=rank)),
        lambda: reader.hits(rank=rank),
        lambda: reader.parents(3, rank),
        lambda: reader.children(2, rank),
        lambda: reader.producers(5, rank),
        lambda: reader.consumers(48, rank=rank),
        reader.first_bad,
        reader.steps,
        reader.events,
        reader.tensors,
        lambda: [reader.tensor_of(row) for row in reader.tensors()],
        lambda: reader.sql("SELECT count(*) FROM ops"),
        lambda: reader.sql("SELECT * FROM op_full"),
        lambda: reader.sql("SELECT * FROM timeline"),
        lambda: reader.sql("SELECT * FROM segments"),
        lambda: reader.sql("SELECT * FROM events, steps, tensors, sources, shards"),
        lambda: reader.group(["name", "step"]),
        lambda: reader.top(5),
        lambda: [len(trace.ops), repr(trace), repr(trace.ops), trace.findings],
        lambda: csv.export(reader, out / "a.csv"),
        lambda: npz.export(reader, out / "a.npz"),
        lambda: perfetto.export(reader, out / "a.json"),
        lambda: verdict(reader, reader.events()),
        lambda: overview(reader),
        lambda: analyse(DuckDBEngine(reader)).as_json(),
        lambda: step_through(reader, rank, out),
        reader.health,
    ]


def step_through(reader: TraceReader, rank: int, out: Path) -> None:
    """Run every command of the table, with and without arguments; none may raise."""
    context = Context(Cursor(reader, rank))
    for arguments in ("", "1", "@bad or @finding", f"out0 {out / 'a.npy'} -f"):
        run_line(context, "goto 3")
        for spec in TABLE:
            for line in run_line(context, f"{spec.name} {arguments}").lines:
                assert line.isprintable(), line


def growth_mb(before_kb: int) -> int:
    """Return by how much the process's peak has grown, in MiB."""
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) >> 10
