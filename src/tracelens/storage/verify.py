"""Checking every byte of a trace that a checksum or a rule covers. Reads, never repairs."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tracelens.errors import TraceError
from tracelens.storage.catalog import Catalog, ShardFiles, inside, open_catalog
from tracelens.storage.checksum import file_crc32
from tracelens.storage.health import Problem
from tracelens.storage.live import LineFollower, LiveShard
from tracelens.storage.manifest import BLOBS_DIR
from tracelens.storage.parquet_files import DamagedSegmentError, iter_batches
from tracelens.storage.segment_files import SegmentFile
from tracelens.storage.strings import StringReader
from tracelens.storage.tables import RUN_TABLES, SHARD_TABLES

Progress = Callable[[int, int, str], None]
"""Called as ``progress(done, total, what)`` before each file and once at the end."""

MAX_HEADER_BYTES = 16 << 20
"""A larger safetensors header is hostile or damaged."""


def verify(run_dir: str | os.PathLike[str], progress: Progress | None = None) -> list[Problem]:
    """Check a whole trace.

    Every Parquet page is decoded and its checksum compared, and so are each segment's own
    checksum and row count, the manifests, the interned strings, the event lines, the rings of
    shards that are not closed, and the headers of the stored tensors.

    Args:
        run_dir: the trace.
        progress: called before each file.

    Returns:
        Everything that is wrong, most general first; an empty list for a sound trace.

    Raises:
        TraceError: there is no trace, or its manifest cannot be read.
    """
    catalog = open_catalog(run_dir)
    problems = list(catalog.problems)
    tasks = list(_tasks(catalog))
    for done, (what, check) in enumerate(tasks):
        if progress is not None:
            progress(done, len(tasks), what)
        problems.extend(check())
    if progress is not None:
        progress(len(tasks), len(tasks), "done")
    return problems


def _tasks(catalog: Catalog) -> Iterator[tuple[str, Callable[[], list[Problem]]]]:
    listed: set[Path] = set()
    for shard in catalog.shards:
        yield f"{shard.name} live files", lambda shard=shard: _check_live(shard)  # type: ignore[misc]
        for files in shard.segments.values():
            for file in files:
                listed.add(file.path)
                yield file.path.name, lambda file=file: _check_segment(file)  # type: ignore[misc]
    yield "unlisted files", lambda: _unlisted(catalog, listed)
    for table in RUN_TABLES:
        yield f"{table}.parquet", lambda table=table: _check_run_table(catalog, table)  # type: ignore[misc]
    for path in sorted((catalog.run_dir / BLOBS_DIR).glob("*/*")):
        yield path.name, lambda path=path: _check_blob(catalog, path)  # type: ignore[misc]


def _check_segment(file: SegmentFile) -> list[Problem]:
    name = f"{file.table}/shard={file.shard}/{file.path.name}"
    try:
        if file.crc32 is not None and file_crc32(file.path) != file.crc32:
            raise DamagedSegmentError("its checksum does not match: bits have changed")
        for _ in iter_batches(file):
            pass
    except (DamagedSegmentError, OSError) as error:
        return [Problem("quarantined", file.shard, f"{name}: {error}", file.rows)]
    return []


def _check_live(shard: ShardFiles) -> list[Problem]:
    problems = []
    if shard.ring is not None or shard.kept is not None:
        live = LiveShard(shard)
        if live.problem is not None:
            problems.append(live.problem)
        if live.holes:
            problems.append(
                Problem("holes", shard.name, f"{live.holes} reserved records were never written",
                        live.holes)
            )  # fmt: skip
        unknown = _unknown_ids(live)
        if unknown:
            problems.append(
                Problem("unknown_strings", shard.name,
                        f"{unknown} interned values are named by records and not stored", unknown)
            )  # fmt: skip
    damaged = _damaged_lines(shard)
    if damaged:
        message = f"{damaged} lines of its strings or events are damaged"
        problems.append(Problem("damaged_lines", shard.name, message, damaged))
    return problems


def _unknown_ids(live: LiveShard) -> int:
    named = {*live.records["site_id"].tolist(), *live.records["layout_id"].tolist()}
    return sum(1 for number in named if number > 0 and number not in live.strings)


def _damaged_lines(shard: ShardFiles) -> int:
    damaged = 0
    try:
        if shard.strings is not None:
            strings = StringReader(shard.strings)
            strings.refresh()
            damaged += strings.damaged_lines
        if shard.events is not None:
            lines = LineFollower(shard.events)
            for _ in lines.read():
                pass
            damaged += lines.damaged_lines
            lines.close()
    except OSError:
        damaged += 1
    return damaged


def _unlisted(catalog: Catalog, listed: set[Path]) -> list[Problem]:
    """Segments that no manifest names: a writer died between the two, or someone added them."""
    told = {problem.message.partition(":")[0] for problem in catalog.problems}
    problems = []
    for table in SHARD_TABLES:
        for path in sorted((catalog.run_dir / table).glob("shard=*/*.parquet")):
            name = f"{table}/{path.parent.name}/{path.name}"
            if path.name.startswith(".tmp-") or name in told or path.resolve() in listed:
                continue
            shard = path.parent.name.removeprefix("shard=")
            problems.append(Problem("unlisted", shard[:80], f"{name}: in no manifest; not read"))
    return problems


def _check_run_table(catalog: Catalog, table: str) -> list[Problem]:
    relative = f"shards/{table}.parquet"
    path = inside(catalog.run_dir, relative)
    if path is None:
        if os.path.lexists(catalog.run_dir / relative):
            return [Problem("quarantined", "", f"{relative}: not a plain file of the trace")]
        return []
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
            for _ in parquet.iter_batches():
                pass
    except (pa.ArrowException, OSError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        return [Problem("quarantined", "", f"{relative}: {text}; the shards' JSON says the same")]
    return []


def _check_blob(catalog: Catalog, path: Path) -> list[Problem]:
    name = f"{BLOBS_DIR}/{path.parent.name}/{path.name}"
    sound = inside(catalog.run_dir, name)
    if path.name.startswith(".tmp-"):
        return []
    if sound is None:
        return [
            Problem("damaged_tensors", path.parent.name, f"{name}: not a plain file of the trace")
        ]
    try:
        read_safetensors_header(sound)
    except TraceError as error:
        return [Problem("damaged_tensors", path.parent.name, str(error))]
    return []


def read_safetensors_header(path: Path) -> dict[str, Any]:
    """Read and check the header of a safetensors file.

    Returns:
        Tensor key -> ``{"dtype", "shape", "data_offsets"}``, offsets counted from the header's end.

    Raises:
        TraceError: the header is damaged, or a tensor lies outside the file or over another.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > MAX_HEADER_BYTES or 8 + length > size:
            raise TraceError(f"{path}: truncated, or its header claims {length} bytes")
        text = file.read(length)
    try:
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError("the header is not an object")
        header.pop("__metadata__", None)
        _check_extents(header, size - 8 - length)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TraceError(f"{path}: damaged safetensors header: {error}") from None
    return header


_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
    "C128": 128,
}  # fmt: skip


def _check_extents(header: dict[str, Any], data_bytes: int) -> None:
    extents = []
    for key, entry in header.items():
        start, stop = entry["data_offsets"]
        if not all(type(value) is int for value in (start, stop, *entry["shape"])):
            raise ValueError(f"{key[:80]!r}: sizes are not integers")
        if not 0 <= start <= stop <= data_bytes or any(size < 0 for size in entry["shape"]):
            raise ValueError(f"{key[:80]!r} lies outside the file")
        bits = _BITS.get(entry["dtype"])
        if bits is not None and math.prod(entry["shape"]) * bits != (stop - start) * 8:
            raise ValueError(f"{key[:80]!r}: its shape does not fit its bytes")
        extents.append((start, stop, key))
    extents.sort()
    for (_, stop, key), (start, _, other) in itertools.pairwise(extents):
        if start < stop:
            raise ValueError(f"{key[:80]!r} and {other[:80]!r} overlap")
