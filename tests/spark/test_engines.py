"""DuckDB and Spark give equal rows, and a person's query reads nothing but the trace."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("pyspark")
if not shutil.which("java"):
    pytest.skip("Spark needs Java", allow_module_level=True)

from tracelens.analysis.ranks import analyse
from tracelens.cli import main
from tracelens.engines import Engine, open_engine, queries
from tracelens.engines.spark_views import register
from tracelens.errors import ConfigError
from tracelens.storage import views
from tracelens.storage.bulk import BulkShard, Coded
from tracelens.storage.sql import QueryRefused
from tracelens.storage.writer import ShardWriter

RANKS, OPS = 64, 600
MAKER = Path(__file__).parents[2] / "benchmarks" / "make_ranks.py"


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 ranks; also kernels, spans and values that only one engine might trip over."""
    spec = importlib.util.spec_from_file_location("make_ranks", MAKER)
    assert spec is not None and spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    path = tmp_path_factory.mktemp("spark [1]") / "run*{a,b}.tltrace"
    for rank in range(RANKS):
        maker.write_rank(path, rank, RANKS, OPS, OPS // 6)
    for rank in range(2):
        profiled(path, rank)
    return path


def profiled(path: Path, rank: int) -> None:
    """Add an attempt with collectives on a device, on the host and in TensorFlow's ops."""
    with BulkShard(path, rank, attempt=1) as shard:
        comm = {"step": [0, 0, 1], "start_ns": [100, 300, 900], "duration_ns": [90 - 20 * rank] * 3}
        shard.write("kernels", {
            "kern_id": range(3), "kind": "comm", "device": 0, "stream": 7, **comm,
            "name": Coded([0, 1, 0], ["ncclDevKernel_AllReduce_Sum", "nccl:_all_gather_base"]),
            "collective": Coded([-1, 0, -1], ["_allgather_base"]), "size_bytes": 64,
        })  # fmt: skip
        shard.write("spans", {
            "span_id": range(3), "kind": "annotation", "tid": 1, **comm,
            "name": Coded([0, 1, 2], ["gloo:all_reduce", "gloo:barrier", "## load ##"]),
        })  # fmt: skip
        shard.write("samples", {
            "t_ns": [1, 2], "thread": "main", "count": 1, "duration_ns": 10_000_000,
            "stack": Coded([0, 1], ["main (a.py:1)\nload (a.py:7)", "main (a.py:1)"]),
        })  # fmt: skip
        shard.write("ops", {
            "op_id": range(3), "ord": range(3), **comm, "l2": [0.5, float("nan"), 1e-30],
            "name": Coded([0, 1, 2], ["CollectiveReduceV2", "CollectiveGatherV2", "Mul"]),
            "in_ids": [[1, 2], [], [-1]], "file": Coded([0, -1, 0], ["a b.py"]), "line": 3,
        })  # fmt: skip


@pytest.fixture(scope="module")
def duck(trace: Path) -> Iterator[Engine]:
    with open_engine(trace) as engine:
        yield engine


@pytest.fixture(scope="module")
def spark(trace: Path) -> Iterator[Engine]:
    with open_engine(trace, "spark") as engine:
        yield engine


def same(left: Engine, right: Engine, sql: str) -> int:
    """Compare a query's rows, in any order where it gives none; return how many there are."""
    rows = sorted(map(repr, left.rows(sql)))
    assert rows == sorted(map(repr, right.rows(sql)))
    return len(rows)


def test_every_table_and_view_holds_the_same_on_both_engines(duck: Engine, spark: Engine) -> None:
    counts = {}
    for name in views.names():
        where = "" if name == "segments" else " WHERE rank < 2"
        sql = f"SELECT * FROM {name}{where}"
        if duck.rows(sql):  # a job of Spark's for each empty table would take long to say nothing
            counts[name] = same(duck, spark, sql)
    assert counts["ops"] == counts["ops_aligned"] == 2 * OPS + 6
    assert counts["shards"] == 4 and counts["kernels"] == 6 and len(counts) >= 12


def _once(name: str) -> bool:
    """Whether a query is to be run: one of a collective's source is enough where it is the same."""
    _, _, source = name.partition("/")
    return source in ("", "collectives") or name.startswith("clocks")


@pytest.mark.parametrize("name", sorted(filter(_once, queries.portable())))
def test_every_analysis_gives_equal_rows(name: str, duck: Engine, spark: Engine) -> None:
    sql = queries.portable()[name]
    rows = same(duck, spark, sql)
    empty = ("mismatched", "collective_counts")
    assert rows or name.startswith(empty), "a comparison of nothing proves nothing"


def test_what_the_run_was_made_with_is_found(duck: Engine) -> None:
    report = analyse(duck)
    rules = {finding["rule"]: finding for finding in report.findings}
    assert rules["straggler"]["rank"] == 2
    assert rules["first_nonfinite_rank"]["rank"] == 1
    assert rules["diverged_rank"]["ranks"] == [3]


def test_the_verbs_run_on_spark(
    spark: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in range(2):
        profiled(tmp_path / "run", rank)
    run = str(tmp_path / "run")
    sql = "SELECT rank, count(*) AS n FROM ops GROUP BY rank ORDER BY rank"
    assert main(["query", run, sql, "--engine", "spark", "--csv"]) == 0
    assert capsys.readouterr().out == "rank,n\n0,3\n1,3\n"
    for verb in ("summary", "ranks"):
        assert main([verb, run, "--engine", "spark", "--json"]) == 0
        on_spark = json.loads(capsys.readouterr().out)
        assert main([verb, run, "--json"]) == 0
        assert on_spark == json.loads(capsys.readouterr().out)
    assert main(["query", run, sql, "--master", "local"]) == 2
    assert "use it with --engine spark" in capsys.readouterr().err


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM parquet.`/etc/passwd`",
        "SELECT * FROM ops WHERE op_id IN (SELECT x FROM csv.`/etc/passwd`)",
        "WITH a AS (SELECT * FROM text.`/etc/passwd`) SELECT * FROM a",
        "SELECT (SELECT max(value) FROM text.`/etc/passwd`)",
        "SELECT * FROM default.ops",
        "SELECT * FROM IDENTIFIER('parquet.`/etc/passwd`')",
        "SELECT reflect('java.lang.System', 'exit', 1)",
        "SELECT 1 WHERE EXISTS (SELECT java_method('java.lang.System', 'exit', 1))",
        "SELECT TRANSFORM(name) USING 'cat' FROM ops",
        "SELECT * FROM read_files('/etc/passwd')",
        "SELECT input_file_name() FROM ops",
        "DROP VIEW ops",
        "INSERT INTO ops VALUES (1)",
        "CREATE TEMPORARY VIEW v AS SELECT 1",
        "SET spark.sql.runSQLOnFiles = true",
        "ADD JAR '/tmp/x.jar'",
        "EXECUTE IMMEDIATE 'DROP VIEW ops'",
        "SHOW TABLES",
        "SELECT 1; SELECT 2",
        "SELECT nonsense FROM ops",
        "SELEKT 1",
        " ",
    ],
)
def test_a_query_reads_the_trace_or_is_refused_in_one_line(spark: Engine, sql: str) -> None:
    with pytest.raises(QueryRefused) as refused:
        spark.select(sql, limit=5, timeout_s=30)
    assert "\n" not in str(refused.value) and len(str(refused.value)) <= 300


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM ops",
        "WITH a AS (SELECT rank FROM ops), b AS (SELECT * FROM a) SELECT count(*) FROM b",
        "SELECT name FROM ops WHERE op_id IN (SELECT max(op_id) FROM ops) ORDER BY name, rank",
        "SELECT rank, max(n) FROM (SELECT rank, count(*) AS n FROM ops GROUP BY ALL) AS x "
        "GROUP BY rank HAVING max(n) > 1 ORDER BY rank",
        "SELECT rank FROM ops UNION SELECT rank FROM steps ORDER BY rank",
        "SELECT o.rank FROM ops AS o LEFT JOIN steps AS s USING (rank, step) ORDER BY ALL",
        "SELECT row_number() OVER (PARTITION BY rank ORDER BY step) AS n FROM steps ORDER BY n",
        "VALUES (1), (2)",
    ],
)
def test_what_people_ask_is_answered_alike(duck: Engine, spark: Engine, sql: str) -> None:
    ours = duck.select(sql, limit=50, timeout_s=30)
    theirs = spark.select(sql, limit=50, timeout_s=30)
    assert ours.rows == theirs.rows
    assert ours.truncated == theirs.truncated


@pytest.mark.parametrize("name", ["env:PATH", "system:user.home", "spark.driver.host"])
def test_a_query_reads_no_environment_and_no_settings(spark: Engine, name: str) -> None:
    asked = f"${{{name}}}"
    assert spark.select(f"SELECT '{asked}'", limit=1, timeout_s=30).rows == [(asked,)]


def test_a_query_that_takes_too_long_is_stopped(spark: Engine) -> None:
    slow = "SELECT count(*) FROM range(9000000000) AS a JOIN range(9000000000) AS b ON a.id < b.id"
    with pytest.raises(QueryRefused, match="stopped after"):
        spark.select(slow, limit=1, timeout_s=0.5)


def test_what_is_not_sealed_yet_is_left_out_and_told(spark: Engine, tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "live", mode="stream", ring_bytes=1 << 16)
    try:
        writer.event("step", step=0, start_ns=0, duration_ns=5, n_ops=0, hits=0, scalars={})
        with open_engine(tmp_path / "live", "spark") as engine:
            assert engine.rows("SELECT count(*) FROM steps") == [(0,)]
            assert "r00000-0 has not sealed yet" in engine.problems[0]
    finally:
        writer.close()
    with open_engine(tmp_path / "live", "spark") as engine:
        assert engine.rows("SELECT count(*) FROM steps") == [(1,)]
        assert engine.problems == []


def test_a_session_of_ones_own_is_given_the_views(spark: Engine, tmp_path: Path) -> None:
    from pyspark.sql import SparkSession

    profiled(tmp_path / "run", 0)
    session = SparkSession.builder.getOrCreate()
    assert "ops_aligned" in register(session, tmp_path / "run")
    assert session.sql("SELECT count(*) FROM ops_aligned").collect()[0][0] == 3


def test_masters_that_cannot_be_checked_are_refused(trace: Path) -> None:
    with pytest.raises(ConfigError, match="Spark Connect"), open_engine(
        trace, "spark", master="sc://host:15002"
    ):  # fmt: skip
        pass


@pytest.mark.parametrize("master", ["bogus", "localhost:7077", "http://head:8080"])
def test_what_is_no_master_is_told_in_one_line(trace: Path, master: str) -> None:
    with pytest.raises(ConfigError, match="no Spark master"), open_engine(
        trace, "spark", master=master
    ):  # fmt: skip
        pass
