"""The two JSON files that say what a trace holds: the run's manifest and each shard's state."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tracelens.errors import TraceError
from tracelens.storage.jsonlines import dumps
from tracelens.storage.tables import TABLES, manifest_tables
from tracelens.storage.version import FORMAT_VERSION, MIN_READER

MANIFEST = "manifest.json"
SHARDS_DIR = "_shards"
LIVE_DIR = "_live"
BLOBS_DIR = "_blobs"
MAX_JSON_BYTES = 16 << 20

SHARD_NAME = re.compile(r"r\d{5}-\d{1,9}(-d\d{1,9})?")
SEGMENT_FILE = re.compile(r"([a-z_]+)/shard=(r\d{5}-\d{1,9}(?:-d\d{1,9})?)/[A-Za-z0-9_-]+\.parquet")

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is true of the whole run; written once, when its first shard opens.

    Attributes:
        epoch_unix_ns: Unix time, in ns, of time 0 of the trace.
        tables: table definitions (``tables.manifest_tables``).
        launch: what the ranks of one launch share (``processes.launch``), so that no rank of
            another run joins.
    """

    run_id: str
    epoch_unix_ns: int
    created_by: str
    world_size: int = 1
    version: str = FORMAT_VERSION
    min_reader: str = MIN_READER
    tables: dict[str, Any] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    launch: str = ""


@dataclass(frozen=True, slots=True)
class Segment:
    """One Parquet file and its zone map; ``None`` where the table lacks the column.

    Attributes:
        crc32: ``zlib.crc32`` of the whole file, which a reader checks before it believes the file.
    """

    table: str
    file: str
    rows: int
    size_bytes: int
    op_lo: int | None = None
    op_hi: int | None = None
    step_lo: int | None = None
    step_hi: int | None = None
    t_lo: int | None = None
    t_hi: int | None = None
    nan_rows: int | None = None
    crc32: int | None = None


@dataclass(slots=True)
class ShardState:
    """What one writing process has put into the trace so far.

    Attributes:
        state: ``live``, ``closed``, ``killed``, ``disk_full`` or ``failed``.
        sealed: ring positions below this are in segments (stream mode).
        records: ring records sealed.
        dropped: records lost because the ring or the disk was full, or a thread was killed.
        events_sealed_bytes: bytes of ``.events`` that are in segments.
        n_events: event lines in segments.
        ring: the ring's path, relative to the trace or absolute on node-local disk.
        spools_sealed: spools (``storage.spool``) of smaller numbers are in segments.
    """

    shard: str
    rank: int
    attempt: int
    host: str
    pid: int
    framework: str
    mode: str
    state: str = "live"
    sealed: int = 0
    records: int = 0
    dropped: int = 0
    events_sealed_bytes: int = 0
    n_events: int = 0
    clock_offset_ns: int = 0
    heartbeat_ns: int = 0
    ring: str = ""
    spools_sealed: int = 0
    segments: list[Segment] = field(default_factory=list)


def new_run_id() -> str:
    """Return a ULID: 48 bits of milliseconds and 80 random bits in Crockford's base 32."""
    number = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


def new_manifest(
    epoch_unix_ns: int, world_size: int, created_by: str, launch: str = ""
) -> Manifest:
    """Return a manifest for a run that begins now."""
    return Manifest(
        run_id=new_run_id(),
        epoch_unix_ns=epoch_unix_ns,
        created_by=created_by,
        world_size=world_size,
        tables=manifest_tables(since="1.0"),
        launch=launch,
    )


def write_manifest(run_dir: Path, manifest: Manifest) -> bool:
    """Write the manifest unless another rank has; return whether this call wrote it.

    Raises:
        OSError: the directory cannot be written.
    """
    temporary = run_dir / f".tmp-{MANIFEST}-{os.getpid()}"
    temporary.write_text(dumps({"format": "tracelens", **asdict(manifest)}) + "\n")
    try:
        os.link(temporary, run_dir / MANIFEST)
        return True
    except FileExistsError:
        return False
    except OSError:
        # Some file systems have no hard links; the rename can at worst replace an equal race.
        if (run_dir / MANIFEST).exists():
            return False
        temporary.replace(run_dir / MANIFEST)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def read_manifest(run_dir: str | os.PathLike[str]) -> Manifest:
    """Read and check a run's manifest.

    Raises:
        TraceError: it is missing, damaged, not TraceLens's, or of a newer format.
    """
    path = Path(run_dir) / MANIFEST
    if not path.parent.is_dir():
        what = "is a file, not a trace directory" if path.parent.exists() else "no such trace"
        raise TraceError(f"{path.parent}: {what}")
    data = read_json(path)
    if data.get("format") != "tracelens":
        raise TraceError(f"{path}: not a TraceLens trace (no format: tracelens)")
    _check_version(path, data)
    values = {f.name: data[f.name] for f in fields(Manifest) if f.name in data}
    values["features"] = tuple(values.get("features") or ())
    try:
        manifest = Manifest(**values)
    except TypeError as error:
        raise TraceError(f"{path}: damaged manifest: a required key is missing") from error
    if not isinstance(manifest.epoch_unix_ns, int) or not isinstance(manifest.run_id, str):
        raise TraceError(f"{path}: damaged manifest: epoch_unix_ns or run_id has a wrong type")
    return manifest


def write_shard(run_dir: Path, state: ShardState) -> None:
    """Replace a shard's JSON by its new state, whole or not at all.

    Raises:
        OSError: the disk is full or the directory cannot be written.
    """
    directory = run_dir / SHARDS_DIR
    temporary = directory / f".tmp-{state.shard}.json"
    try:
        temporary.write_text(dumps(_plain(state)) + "\n")
        temporary.replace(directory / f"{state.shard}.json")
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _plain(state: ShardState) -> dict[str, Any]:
    """Return the state as JSON-ready values; ``asdict`` would copy every segment's deeply."""
    values = {f.name: getattr(state, f.name) for f in fields(ShardState)}
    names = [f.name for f in fields(Segment)]
    values["segments"] = [{n: getattr(item, n) for n in names} for item in state.segments]
    return values


def read_shard(path: str | os.PathLike[str]) -> ShardState:
    """Read and check one shard's JSON; segments whose path leaves the trace are refused.

    Raises:
        TraceError: it is missing or damaged.
    """
    path = Path(path)
    data = read_json(path)
    known = {f.name: data[f.name] for f in fields(ShardState) if f.name in data}
    try:
        segments = [_segment(item) for item in known.pop("segments", ())]
        state = ShardState(**known, segments=segments)
        for f in fields(ShardState):
            expected = {"int": int, "str": str}.get(str(f.type))
            if expected and type(getattr(state, f.name)) is not expected:
                raise ValueError(f"{f.name} has a wrong type")
        if not SHARD_NAME.fullmatch(state.shard) or state.shard != path.stem:
            raise ValueError(f"shard name {state.shard[:80]!r} does not match the file")
    except (TypeError, ValueError, KeyError) as error:
        raise TraceError(f"{path}: damaged shard file: {error}") from error
    return state


def shard_files(run_dir: str | os.PathLike[str]) -> list[Path]:
    """Return the paths of a run's shard JSON files, by name."""
    return sorted(
        path
        for path in (Path(run_dir) / SHARDS_DIR).glob("*.json")
        if SHARD_NAME.fullmatch(path.stem)
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a small JSON object.

    Raises:
        TraceError: the file is missing, larger than 16 MiB, or not a JSON object.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_JSON_BYTES + 1)
    except FileNotFoundError:
        raise TraceError(f"{path.parent}: not a trace: {path.name} is missing") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from error
    if len(text) > MAX_JSON_BYTES:
        raise TraceError(f"{path}: larger than {MAX_JSON_BYTES >> 20} MiB: refused")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise TraceError(f"{path}: not valid JSON; try `tracelens repair`") from None
    if not isinstance(data, dict):
        raise TraceError(f"{path}: not a JSON object")
    return data


def _segment(item: Any) -> Segment:
    known = {f.name: item[f.name] for f in fields(Segment) if f.name in item}
    segment = Segment(**known)
    match = SEGMENT_FILE.fullmatch(segment.file)
    if not match or match[1] != segment.table or segment.table not in TABLES:
        raise ValueError(f"segment path {segment.file[:80]!r} is not one of this format")
    return segment


def _check_version(path: Path, data: dict[str, Any]) -> None:
    """Refuse a trace of a newer major version, or one that asks for a newer reader."""
    ours = _parse_version(FORMAT_VERSION)
    theirs, needed = (_parse_version(data.get(key)) for key in ("version", "min_reader"))
    if ours is None or theirs is None or needed is None:
        raise TraceError(f"{path}: damaged manifest: no format version")
    if theirs[0] > ours[0] or needed > ours:
        raise TraceError(
            f"{path.parent}: trace format {theirs[0]}.{theirs[1]} is newer than this TraceLens "
            f"reads ({FORMAT_VERSION}): upgrade TraceLens"
        )


def _parse_version(text: object) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d{1,6})\.(\d{1,6})", text) if isinstance(text, str) else None
    return (int(match[1]), int(match[2])) if match else None
