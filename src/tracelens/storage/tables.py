"""Every Parquet table of a trace: columns, types, meaning, in one place.

The definition is plain data, so that naming a column costs no import of pyarrow;
``arrow_schema`` builds the Arrow schema when a table is written or read.
Types are limited to those that DuckDB, Spark, pandas and polars all read the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        name: the column's name; a quantity names its unit (``duration_ns``).
        type: ``int32``, ``int64``, ``float32``, ``float64``, ``bool``, ``string``,
            ``dictionary`` (a string of few distinct values) or ``list<int64>``.
        meaning: one phrase for the documentation.
        nullable: whether NULL ("not known", "not measured") may occur.
    """

    name: str
    type: str
    meaning: str
    nullable: bool = False


def _stat_columns(what: str) -> tuple[Column, ...]:
    """Statistics columns; NULL means not computed, values are over finite elements only."""
    return (
        Column("numel", "int64", f"elements of {what}; NULL = not measured", True),
        Column("nan_count", "int64", "NaN elements", True),
        Column("inf_count", "int64", "+Inf and -Inf elements", True),
        Column("neginf_count", "int64", "-Inf elements", True),
        Column("zero_count", "int64", "elements equal to 0", True),
        Column("vmin", "float32", "smallest finite element", True),
        Column("vmax", "float32", "largest finite element", True),
        Column("mean", "float32", "mean of the finite elements", True),
        Column("std", "float32", "standard deviation of the finite elements", True),
        Column("l2", "float32", "Euclidean norm of the finite elements", True),
    )


_RANK = Column("rank", "int32", "process of the run that recorded it")
_STEP = Column("step", "int64", "training step")

TABLES: dict[str, tuple[Column, ...]] = {
    "ops": (
        Column("op_id", "int64", "id, unique in the shard; a parent's is below its children's"),
        _RANK,
        _STEP,
        Column("ord", "int32", "position in the step, the join key between ranks and runs"),
        Column("parent_id", "int64", "enclosing composite op", True),
        Column("fwd_op_id", "int64", "forward op that this backward op differentiates", True),
        Column("kind", "dictionary", "'op'"),
        Column("name", "dictionary", "the framework's name of the op ('aten::mm')"),
        Column("module", "dictionary", "module path ('layers.0'); NULL outside of modules", True),
        Column("phase", "dictionary", "'data', 'forward', 'backward', 'optimizer' or 'other'"),
        Column("src_id", "int32", "row of the sources table", True),
        Column("file", "dictionary", "file of the user's frame that issued the op", True),
        Column("line", "int32", "1-based line in that file", True),
        Column("function", "dictionary", "function of that frame", True),
        Column("code", "dictionary", "text of that line when it ran", True),
        Column("tid", "int32", "operating-system thread id"),
        Column("device", "dictionary", "device of the first output ('cpu', 'cuda:0')", True),
        Column("start_ns", "int64", "start, ns since the manifest's epoch_unix_ns"),
        Column("duration_ns", "int64", "duration; NULL = not measured", True),
        Column("in_ids", "list<int64>", "value ids read; -1 = written by no recorded op"),
        Column("out_ids", "list<int64>", "value ids written (a view has its base's)"),
        Column("shapes", "dictionary", "JSON sizes of the outputs ('[[8, 2048]]')", True),
        Column("dtypes", "dictionary", "JSON dtypes of the outputs", True),
        Column("in_shapes", "dictionary", "JSON sizes of the inputs", True),
        Column("in_dtypes", "dictionary", "JSON dtypes of the inputs", True),
        *_stat_columns("output 0"),
        Column("flags", "int32", "events.OpFlag bits"),
        Column("in_values", "dictionary", "JSON scalar arguments, as a profiler tells", True),
    ),
    "stats": (
        Column("op_id", "int64", "op that read or wrote the tensor"),
        _RANK,
        _STEP,
        Column("role", "dictionary", "'in' or 'out'"),
        Column("slot", "int32", "position among the op's inputs or outputs"),
        Column("value_id", "int64", "value id; -1 = written by no recorded op"),
        Column("dtype", "dictionary", "element type ('float32')", True),
        Column("shape", "dictionary", "JSON sizes", True),
        Column("device", "dictionary", "device", True),
        *_stat_columns("the tensor"),
        Column("first_bad", "list<int64>", "flat indices of the first non-finite elements (<= 4)"),
        Column("flags", "int32", "events.TensorFlag bits"),
    ),
    "tensors": (
        Column("value_id", "int64", "value id; -1 = written by no recorded op"),
        _RANK,
        _STEP,
        Column("op_id", "int64", "op at which it was stored; NULL = none", True),
        Column("name", "dictionary", "name it was stored under ('logits')"),
        Column("dtype", "dictionary", "element type ('bfloat16')"),
        Column("shape", "dictionary", "JSON sizes"),
        Column("size_bytes", "int64", "size of the values"),
        Column("file", "dictionary", "safetensors file, relative to the trace"),
        Column("key", "string", "tensor's key in that file"),
        Column("offset", "int64", "where its bytes start in that file"),
        Column("hash", "string", "'<algorithm>:<hex>' of its bytes"),
        Column("dup_of", "string", "key of the equal tensor whose bytes these are", True),
    ),
    "events": (
        Column("event_id", "int64", "position among the shard's events"),
        _RANK,
        Column("step", "int64", "training step", True),
        Column("op_id", "int64", "op concerned", True),
        Column("t_ns", "int64", "when, ns since the manifest's epoch_unix_ns", True),
        Column("kind", "dictionary", "'sink', 'finding', 'note', 'data' or 'scalars'"),
        Column("name", "dictionary", "what of that kind (sink's name, rule, note's kind)", True),
        Column("severity", "dictionary", "'info', 'warning' or 'error'", True),
        Column("message", "string", "one sentence", True),
        Column("payload", "string", "the whole event as a JSON object"),
    ),
    "steps": (
        _RANK,
        _STEP,
        Column("start_ns", "int64", "start, ns since the manifest's epoch_unix_ns", True),
        Column("duration_ns", "int64", "duration", True),
        Column("loss", "float64", "the scalar named loss", True),
        Column("n_ops", "int64", "ops that ran", True),
        Column("hits", "int64", "ops whose output was non-finite", True),
        Column("scalars", "string", "JSON object of the step's scalars", True),
        Column("payload", "string", "the whole event as a JSON object"),
    ),
    "sources": (
        Column("src_id", "int32", "id, unique in the shard"),
        _RANK,
        Column("file", "string", "path as the program reported it"),
        Column("line", "int32", "1-based line"),
        Column("function", "string", "function", True),
        Column("code", "string", "text of the line", True),
    ),
    "kernels": (
        Column("kern_id", "int64", "id, unique in the shard"),
        _RANK,
        _STEP,
        Column("op_id", "int64", "op that launched it", True),
        Column("corr_id", "int64", "correlation id of the launch", True),
        Column("kind", "dictionary", "'kernel', 'memcpy', 'memset' or 'comm'"),
        Column("name", "dictionary", "kernel name"),
        Column("device", "int32", "device index"),
        Column("stream", "int32", "stream"),
        Column("start_ns", "int64", "start, ns since the manifest's epoch_unix_ns"),
        Column("duration_ns", "int64", "duration"),
        Column("size_bytes", "int64", "bytes moved or sent", True),
        Column("grid", "dictionary", "launch grid", True),
        Column("block", "dictionary", "launch block", True),
        Column("comm_group", "dictionary", "process group of a collective", True),
        Column("span_id", "int64", "span of the call that launched it", True),
        Column("collective", "dictionary", "'allreduce', 'allgather', ...", True),
        Column("comm_ranks", "int32", "processes in the group", True),
        Column("comm_dtype", "dictionary", "element type of a collective", True),
        Column("occupancy", "float32", "estimated occupancy, percent", True),
        Column("args", "dictionary", "JSON of what else the profiler told", True),
    ),
    "spans": (
        Column("span_id", "int64", "id, unique in the shard; a parent's is below its children's"),
        _RANK,
        _STEP,
        Column("kind", "dictionary", "what ran: see SPAN_KINDS"),
        Column("name", "dictionary", "name ('cudaLaunchKernel', 'train.py(12): step')"),
        Column("pid", "int64", "process id, or what the profiler calls one", True),
        Column("tid", "int64", "thread id, or what the profiler calls one"),
        Column("start_ns", "int64", "start, ns since the manifest's epoch_unix_ns"),
        Column("duration_ns", "int64", "duration"),
        Column("parent_id", "int64", "enclosing span of the same thread", True),
        Column("op_id", "int64", "innermost op around it", True),
        Column("corr_id", "int64", "correlation id of a launch", True),
        Column("module", "dictionary", "module path", True),
        Column("file", "dictionary", "file of a Python frame", True),
        Column("line", "int32", "1-based line in that file", True),
        Column("function", "dictionary", "function of that frame", True),
        Column("args", "dictionary", "JSON of what else the profiler told", True),
    ),
    "memory": (
        _RANK,
        _STEP,
        Column("t_ns", "int64", "when, ns since the manifest's epoch_unix_ns"),
        Column("device", "dictionary", "'cpu', 'cuda:0'"),
        Column("size_bytes", "int64", "allocated (above 0) or freed (below 0)"),
        Column("address", "int64", "address, as a signed number", True),
        Column("allocated_bytes", "int64", "allocated on the device afterwards", True),
        Column("reserved_bytes", "int64", "reserved by the allocator afterwards", True),
        Column("op_id", "int64", "op that ran", True),
        Column("owner", "dictionary", "what it is for: see MEMORY_OWNERS", True),
        Column("file", "dictionary", "file of the user's frame", True),
        Column("line", "int32", "1-based line in that file", True),
    ),
    "samples": (
        _RANK,
        Column("step", "int64", "training step; NULL = not known", True),
        Column("t_ns", "int64", "when, ns since the manifest's epoch_unix_ns", True),
        Column("thread", "dictionary", "thread's name or id"),
        Column("stack", "dictionary", "frames 'function (file:line)', outermost first, by lines"),
        Column("duration_ns", "int64", "time that the sample stands for"),
        Column("count", "int64", "samples in this row"),
    ),
    "counters": (
        _RANK,
        Column("t_ns", "int64", "when, ns since the manifest's epoch_unix_ns"),
        Column("name", "dictionary", "counter ('GPU Utilization')"),
        Column("device", "dictionary", "device", True),
        Column("value", "float64", "its value from then on"),
    ),
    "collectives": (
        Column("coll_id", "int64", "id, unique in the shard"),
        _RANK,
        _STEP,
        Column("seq", "int64", "position in its group, the same on every rank", True),
        Column("comm_group", "dictionary", "process group", True),
        Column("name", "dictionary", "'allreduce', 'barrier', ..."),
        Column("backend", "dictionary", "'gloo', 'nccl', ...", True),
        Column("dtype", "dictionary", "element type", True),
        Column("comm_ranks", "int32", "processes in the group", True),
        Column("size_bytes", "int64", "bytes that this process gave", True),
        Column("tid", "int32", "operating-system thread id"),
        Column("start_ns", "int64", "when this process was ready, ns since epoch_unix_ns"),
        Column("duration_ns", "int64", "until it was done; NULL = not known", True),
    ),
    "fingerprints": (
        _RANK,
        _STEP,
        Column("name", "dictionary", "parameter ('layers.0.weight')"),
        Column("kind", "dictionary", "'parameter' or 'gradient'"),
        Column("numel", "int64", "elements"),
        Column("checksum", "int64", "wrapping sum of its bits: equal if its values are"),
        Column("l2", "float64", "Euclidean norm; NULL = not finite", True),
    ),
    "shards": (
        Column("shard", "string", "name, '<rank>-<attempt>'"),
        _RANK,
        Column("attempt", "int32", "restart count of the rank"),
        Column("host", "string", "host name"),
        Column("pid", "int64", "process id"),
        Column("framework", "string", "framework recorded"),
        Column("mode", "string", "'flight' or 'stream'"),
        Column("clock_offset_ns", "int64", "add to its times to align them with rank 0"),
        Column("state", "string", "'closed', 'killed', 'disk_full' or 'failed'"),
        Column("records", "int64", "ring records sealed"),
        Column("dropped", "int64", "records lost: ring full, holes of killed threads, disk full"),
        Column("heartbeat_ns", "int64", "last sign of life, ns since the manifest's epoch_unix_ns"),
    ),
    "segments": (
        Column("table", "string", "table that the file belongs to"),
        Column("shard", "string", "shard that wrote it"),
        Column("file", "string", "path relative to the trace"),
        Column("rows", "int64", "rows"),
        Column("size_bytes", "int64", "file size"),
        Column("op_lo", "int64", "smallest op_id", True),
        Column("op_hi", "int64", "largest op_id", True),
        Column("step_lo", "int64", "smallest step", True),
        Column("step_hi", "int64", "largest step", True),
        Column("t_lo", "int64", "earliest start_ns", True),
        Column("t_hi", "int64", "latest start_ns", True),
        Column("nan_rows", "int64", "rows whose output 0 held a NaN or Inf", True),
        Column("crc32", "int64", "zlib.crc32 of the whole file", True),
    ),
}
"""Table name -> columns, in file order. A later minor version may only add NULLable columns."""

SPAN_KINDS = (
    "runtime",
    "python",
    "module",
    "annotation",
    "step",
    "data",
    "sync",
    "device_annotation",
    "overhead",
    "other",
)
"""What a span can be: a call of the device runtime or driver, a Python function, a module's call, a
range that the program named, a training step, the loading of a batch, a wait for a device, a named
range as the device saw it, the profiler's own cost, anything else."""

MEMORY_OWNERS = ("parameter", "gradient", "activation", "optimizer_state", "input", "temporary")
"""What an allocation can be for; NULL where it is not known."""

RUN_TABLES = ("shards", "segments")
"""Tables kept once for the run (``shards/shards.parquet``, ``shards/segments.parquet``)."""

SHARD_TABLES = tuple(name for name in TABLES if name not in RUN_TABLES)
"""Tables kept as ``<table>/shard=<shard>/*.parquet``."""


@cache
def arrow_schema(table: str) -> pa.Schema:
    """Return a table's Arrow schema; dictionary strings have int32 indices.

    Raises:
        KeyError: no table of that name exists.
    """
    import pyarrow as pa

    types = {
        "int32": pa.int32(),
        "int64": pa.int64(),
        "float32": pa.float32(),
        "float64": pa.float64(),
        "bool": pa.bool_(),
        "string": pa.string(),
        "dictionary": pa.dictionary(pa.int32(), pa.string()),
        "list<int64>": pa.list_(pa.field("element", pa.int64(), nullable=False)),
    }
    return pa.schema([pa.field(c.name, types[c.type], nullable=c.nullable) for c in TABLES[table]])


def manifest_tables(since: str) -> dict[str, dict[str, object]]:
    """Return the table definitions as the run manifest keeps them.

    Args:
        since: format version that introduced the tables.
    """
    return {
        name: {
            "since": since,
            "columns": [[c.name, c.type, c.meaning, c.nullable] for c in columns],
        }
        for name, columns in TABLES.items()
    }
