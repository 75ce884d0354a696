"""A person's SQL: reads the trace, and nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trace_builder import training_run
from tracelens.errors import EXIT_USAGE
from tracelens.query import run_query
from tracelens.storage.reader import TraceReader, open_trace
from tracelens.storage.sql import QueryRefused, one_line, quote_path


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[TraceReader]:
    training_run(tmp_path / "run.tltrace").close()
    with open_trace(tmp_path / "run.tltrace") as opened:
        yield opened


def test_rows_come_with_their_columns_and_types(reader: TraceReader) -> None:
    result = run_query(reader, "SELECT name, count(*) AS n FROM ops GROUP BY name ORDER BY name")
    assert result.columns == ("name", "n")
    assert result.types == ("VARCHAR", "BIGINT")
    assert result.rows[0] == ("ExpBackward0", 3)
    assert not result.truncated


def test_more_rows_than_the_limit_are_cut_and_told(reader: TraceReader) -> None:
    result = run_query(reader, "SELECT op_id FROM ops ORDER BY op_id", limit=5)
    assert [row[0] for row in result.rows] == [0, 1, 2, 3, 4]
    assert result.truncated
    assert not run_query(reader, "SELECT 1", limit=1).truncated


def test_with_and_from_first_are_selects(reader: TraceReader) -> None:
    assert run_query(reader, "WITH a AS (SELECT 1 AS x) SELECT x FROM a;").rows == [(1,)]
    assert len(run_query(reader, "FROM ops LIMIT 2 -- a comment").rows) == 2
    assert run_query(reader, "SELECT 'a;b'").rows == [("a;b",)]
    assert run_query(reader, "SHOW TABLES").rows


ATTACKS = [
    "COPY ops TO '{run}/stolen.csv'",
    "COPY (SELECT 1) TO '/tmp/tracelens-stolen.csv'",
    "EXPORT DATABASE '{run}/dump'",
    "ATTACH '{run}/x.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET memory_limit = '100GB'",
    "RESET memory_limit",
    "PRAGMA database_list",
    "CALL pragma_version()",
    "CREATE TABLE t (i INTEGER)",
    "CREATE VIEW v AS SELECT 1",
    "CREATE MACRO m() AS 1",
    "DROP VIEW ops",
    "INSERT INTO shards VALUES (1)",
    "WITH a AS (SELECT 1) INSERT INTO shards SELECT * FROM a",
    "DELETE FROM shards",
    "UPDATE shards SET rank = 7",
    "ALTER TABLE shards RENAME TO x",
    "VACUUM",
    "CHECKPOINT",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "EXPLAIN ANALYZE SELECT 1",
    "BEGIN",
    "USE main",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP VIEW ops",
    "",
    "  -- nothing",
    "selec 1",
    "\x00",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/etc/passwd')",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM read_text('{run}/manifest.json')",
    "SELECT * FROM read_text('{run}/../secret')",
    "SELECT * FROM read_parquet('{run}/ops/*/../../../secret.parquet')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM read_csv('http://127.0.0.1:9/x')",
    "SELECT * FROM read_json('https://127.0.0.1:9/x')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM parquet_metadata('/tmp/other.parquet')",
    "SELECT * FROM read_duckdb('/tmp/x.db')",
    "SELECT * FROM query('COPY ops TO ''/tmp/x.csv''')",
    "SELECT * FROM python_map_function((SELECT 1))",
    "SELECT * FROM enable_logging()",
    "SELECT * FROM enable_profiling()",
    "SELECT write_log('x')",
    "SELECT * FROM checkpoint()",
    "SELECT getenv('HOME')",
    "SELECT * FROM hidden_frame",
    "SELECT * FROM reader",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_but_reading_the_trace_is_possible(
    reader: TraceReader, attack: str, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    hidden_frame = {"x": [1]}
    before = sorted(reader.path.rglob("*"))
    with pytest.raises(QueryRefused) as caught:
        run_query(reader, attack.replace("{run}", str(reader.path)))
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert len(message) <= 300
    assert caught.value.exit_code == EXIT_USAGE
    assert sorted(reader.path.rglob("*")) == before
    assert run_query(reader, "SELECT count(*) FROM ops").rows == [(24,)]
    assert hidden_frame


def test_a_link_inside_the_trace_leads_nowhere(reader: TraceReader, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (reader.path / "ops" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(QueryRefused):
        run_query(reader, f"SELECT * FROM read_text('{reader.path}/ops/link')")


def test_an_unknown_column_is_named_with_a_hint(reader: TraceReader) -> None:
    with pytest.raises(QueryRefused, match="duratoin"):
        run_query(reader, "SELECT duratoin FROM ops")


def test_a_query_that_never_ends_is_stopped(reader: TraceReader) -> None:
    started = time.monotonic()
    endless = "SELECT count(*) FROM range(100000000000) a, range(1000) b"
    with pytest.raises(QueryRefused, match=r"stopped after 0\.2 s"):
        run_query(reader, endless, timeout_s=0.2)
    assert time.monotonic() - started < 60
    assert run_query(reader, "SELECT 1").rows == [(1,)]


def test_a_query_that_wants_all_memory_is_refused(tmp_path: Path) -> None:
    training_run(tmp_path / "small.tltrace").close()
    with open_trace(tmp_path / "small.tltrace", memory_limit_bytes=64 << 20) as opened:
        with pytest.raises(QueryRefused, match=r"[Mm]emory"):
            run_query(opened, "SELECT list(range) FROM range(1000000000)", timeout_s=60)
        assert run_query(opened, "SELECT 1").rows == [(1,)]


def test_no_watcher_thread_is_left_behind(reader: TraceReader) -> None:
    run_query(reader, "SELECT 1")
    assert not [t for t in threading.enumerate() if t.name == "tracelens-query"]


def test_messages_are_one_line() -> None:
    assert one_line("Binder Error: no x\n\nLINE 1: SELECT x\n        ^") == "Binder Error: no x"
    assert one_line("") == "the query failed"
    assert len(one_line("x" * 1000)) == 300


def test_a_path_with_quotes_and_wildcards_is_that_path(tmp_path: Path) -> None:
    strange = tmp_path / "it's [a] *trace?"
    training_run(strange / "run.tltrace").close()
    with open_trace(strange / "run.tltrace") as opened:
        assert run_query(opened, "SELECT count(*) FROM ops").rows == [(24,)]
    assert quote_path(Path("/a'b")) == "'/a''b'"
