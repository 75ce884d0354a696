"""The JSON files of a trace, and the JSON lines: whole, strict, and bounded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tracelens.errors import TraceError
from tracelens.storage.jsonlines import LineWriter, read_lines
from tracelens.storage.manifest import (
    MANIFEST,
    SHARDS_DIR,
    Segment,
    ShardState,
    new_manifest,
    read_manifest,
    read_shard,
    write_manifest,
    write_shard,
)
from tracelens.storage.strings import StringReader, StringWriter
from tracelens.storage.tables import TABLES


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / SHARDS_DIR).mkdir()
    write_manifest(tmp_path, new_manifest(5, 2, "test"))
    return tmp_path


def state() -> ShardState:
    segment = Segment("ops", "ops/shard=r00000-0/ops-1-2.parquet", 3, 400, op_lo=1, op_hi=2)
    return ShardState("r00000-0", 0, 0, "host", 1, "torch", "stream", segments=[segment])


def test_the_first_manifest_stays(run: Path) -> None:
    assert not write_manifest(run, new_manifest(9, 9, "other"))
    assert read_manifest(run).epoch_unix_ns == 5
    assert [path.name for path in run.glob(".tmp*")] == []


def test_the_manifest_defines_every_column(run: Path) -> None:
    tables = read_manifest(run).tables
    assert {name: [c[0] for c in t["columns"]] for name, t in tables.items()} == {
        name: [c.name for c in columns] for name, columns in TABLES.items()
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"version":"1.0"', '"version":"2.0"', "newer"),
        ('"min_reader":"1.0"', '"min_reader":"1.5"', "newer"),
        ('"version":"1.0"', '"version":"x"', "no format version"),
        ('"format":"tracelens"', '"format":"other"', "not a TraceLens trace"),
        ('"epoch_unix_ns":5', '"epoch_unix_ns":"5"', "wrong type"),
        ('"epoch_unix_ns":5,', "", "required key"),
        ("{", "", "not valid JSON"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_one_error_line(
    run: Path, old: str, new: str, message: str
) -> None:
    path = run / MANIFEST
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(TraceError, match=message) as caught:
        read_manifest(run)
    assert "\n" not in str(caught.value)


def test_a_later_minor_version_with_unknown_keys_is_read(run: Path) -> None:
    path = run / MANIFEST
    text = path.read_text().replace('"version":"1.0"', '"version":"1.7","later":{}')
    path.write_text(text)
    assert read_manifest(run).version == "1.7"


def test_a_shard_comes_back_as_it_was_written(run: Path) -> None:
    write_shard(run, state())
    assert read_shard(run / SHARDS_DIR / "r00000-0.json") == state()


@pytest.mark.parametrize(
    "file",
    ["/etc/passwd", "ops/../../x.parquet", "ops/shard=r00000-0/../x.parquet", "stats/a.parquet",
     "stats/shard=r00000-0/ops-1-2.parquet", "nope/shard=r00000-0/a.parquet"],
)  # fmt: skip
def test_a_segment_path_that_leaves_its_table_is_refused(run: Path, file: str) -> None:
    bad = state()
    bad.segments[0] = replace(bad.segments[0], file=file)
    write_shard(run, bad)
    with pytest.raises(TraceError, match="segment path"):
        read_shard(run / SHARDS_DIR / "r00000-0.json")


@pytest.mark.parametrize(("key", "value"), [("sealed", '"x"'), ("pid", "1.5"), ("shard", '"r"')])
def test_a_shard_with_a_wrong_type_is_refused(run: Path, key: str, value: str) -> None:
    write_shard(run, state())
    path = run / SHARDS_DIR / "r00000-0.json"
    import re

    path.write_text(re.sub(rf'"{key}":[^,]+', f'"{key}":{value}', path.read_text(), count=1))
    with pytest.raises(TraceError):
        read_shard(path)


def test_lines_are_read_whole_and_from_where_one_stopped(tmp_path: Path) -> None:
    path = tmp_path / "a.events"
    lines = LineWriter(path)
    lines.append({"t": "a"})
    ((first, offset),) = read_lines(path)
    assert first == {"t": "a"}
    lines.append({"t": "b", "x": float("inf")})
    with open(path, "ab") as file:
        file.write(b"not json\n" + b'{"t":"torn')
    assert [value for value, _ in read_lines(path, offset)] == [{"t": "b", "x": "Infinity"}, None]
    lines.close()


def test_strings_survive_a_torn_end_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.strings"
    writer = StringWriter(path)
    site = writer.intern("site", {"op": "x"})
    with open(path, "ab") as file:
        file.write(b'[9,"site",5]\n[-1,"site",{}]\n[1,"site",{"op":"again"}]\n[10,"la')
    reader = StringReader(path)
    assert reader.refresh() == {site: ("site", {"op": "x"})}
    assert reader.damaged_lines == 2
    writer.close()
