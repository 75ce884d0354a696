"""Apache Spark over the same Parquet segments, for runs that one machine cannot read soon enough.

Spark is imported, and its JVM started, when an engine is made. It reads the sealed segments that
the shards' manifests list, with the schema of `tracelens.storage.tables`, and checks the pages'
checksums as it reads. On a cluster every executor has to see the trace under the same path.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import tempfile
import threading
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracelens.engines.spark_sql import check, short
from tracelens.errors import ConfigError, TraceError
from tracelens.storage import views
from tracelens.storage.catalog import Catalog, open_catalog
from tracelens.storage.sql import QueryRefused, QueryResult
from tracelens.storage.tables import RUN_TABLES, SHARD_TABLES, TABLES

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from tracelens.storage.reader import TraceReader
    from tracelens.storage.sql import Row

SPARK_TYPES = {
    "int32": "INT",
    "int64": "BIGINT",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "bool": "BOOLEAN",
    "string": "STRING",
    "dictionary": "STRING",
    "list<int64>": "ARRAY<BIGINT>",
}
"""Column types of ``storage.tables`` -> Spark's names of them."""

_SETTINGS = {
    "spark.app.name": "tracelens",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "ERROR",
    "spark.sql.runSQLOnFiles": "false",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.parquet.enableVectorizedReader": "true",
    "spark.hadoop.parquet.page.verify-checksum.enabled": "true",
    "spark.driver.maxResultSize": "1g",
    # Below this, files are looked at from here; a job of its own takes longer.
    "spark.sql.sources.parallelPartitionDiscovery.threshold": "5000",
}
_QUIET = "rootLogger.level = off\n"
_LOCAL_SETTINGS = {
    # A laptop's worth of rows is soonest grouped by few tasks, and nobody outside need reach them.
    "spark.sql.shuffle.partitions": "8",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
}


class SparkEngine:
    """Queries a trace through Spark.

    Args:
        path: the trace.
        master: Spark's master URL (``local[2]``, ``spark://host:7077``, ``yarn``).

    Raises:
        ConfigError: PySpark or Java is missing, or the master is of a kind that cannot be used.
        TraceError: there is no trace.
    """

    name = "spark"

    def __init__(self, path: str | os.PathLike[str], *, master: str) -> None:
        from tracelens.storage.reader import open_trace

        self.reader: TraceReader = open_trace(path)
        self._catalog = open_catalog(path)
        self.problems = _left_out(self._catalog)
        self._warehouse = tempfile.mkdtemp(prefix="tracelens-spark-")
        self._shared = False
        logging.getLogger("SQLQueryContextLogger").disabled = True  # its errors are ours to tell
        self._spark = self._session(master)
        self._known: set[str] = set()

    def rows(self, sql: str) -> list[Row]:
        """Run one of our own queries and return its rows."""
        try:
            self._make_views(sql)
            return [tuple(row) for row in self._spark.sql(sql).collect()]
        except Exception as error:
            raise TraceError(f"the trace could not be read by Spark: {short(error)}") from None

    def select(self, text: str, *, limit: int, timeout_s: float) -> QueryResult:
        """Run a person's SELECT, at most so many rows and seconds."""
        started = time.perf_counter_ns()
        check(self._spark, text)
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._spark.sparkContext.cancelAllJobs()

        timer = threading.Timer(timeout_s, stop)
        timer.start()
        try:
            self._make_views(text)
            frame = self._spark.sql(text)
            types = tuple(kind for _, kind in frame.dtypes)
            found = [tuple(row) for row in frame.limit(limit + 1).collect()]
        except Exception as error:
            if late.is_set():
                message = f"stopped after {timeout_s:g} s: narrow the query or raise the timeout"
                raise QueryRefused(message) from None
            raise QueryRefused(short(error)) from None
        finally:
            timer.cancel()
        return QueryResult(
            columns=tuple(frame.columns),
            types=types,
            rows=found[:limit],
            truncated=len(found) > limit,
            duration_ns=time.perf_counter_ns() - started,
        )

    def close(self) -> None:
        """Stop Spark, unless the program had started it, and close the trace; idempotent."""
        self.reader.close()
        if not self._shared:
            with contextlib.suppress(Exception):
                self._spark.stop()
        shutil.rmtree(self._warehouse, ignore_errors=True)

    def _make_views(self, sql: str) -> None:
        """Make the tables and views that a query may name: listing files takes Spark a while."""
        for word in {word.lower() for word in re.findall(r"\w+", sql)} - self._known:
            if word in views.DERIVED_VIEWS:
                body = views.DERIVED_VIEWS[word]
                self._make_views(body)
                self._spark.sql(body).createOrReplaceTempView(word)
            elif word in SHARD_TABLES:
                self._frame(word).createOrReplaceTempView(word)
            elif word in RUN_TABLES:
                self._run_frame(word).createOrReplaceTempView(word)
            self._known.add(word)

    def _session(self, master: str) -> SparkSession:
        if master.startswith("sc://"):
            raise ConfigError(
                f"{master}: Spark Connect cannot be asked what a query would read; "
                "use a master such as local[2], spark://host:7077 or yarn"
            )
        try:
            from pyspark.sql import SparkSession
        except ImportError:
            raise ConfigError(
                "the spark engine needs PySpark: pip install 'tracelens-toolkit[spark]'"
            ) from None
        active = SparkSession.getActiveSession()
        if active is not None:
            # A program's own session keeps its settings; views of ours are in a session beside it.
            self._shared = True
            session = active.newSession()
            session.conf.set("spark.sql.runSQLOnFiles", "false")
            return session
        if not (shutil.which("java") or os.environ.get("JAVA_HOME")):
            raise ConfigError("Spark needs Java 17 or later: install it, or set JAVA_HOME")
        builder = SparkSession.builder.master(master)
        local = _LOCAL_SETTINGS if master.startswith("local") else {}
        log = Path(self._warehouse) / "log4j2.properties"
        log.write_text(_QUIET)
        settings = {
            **_SETTINGS,
            **local,
            "spark.sql.warehouse.dir": self._warehouse,
            "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={log}",
        }
        if local:
            os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        for key, value in settings.items():
            builder = builder.config(key, value)
        try:
            session = builder.getOrCreate()
        except Exception as error:
            raise ConfigError(f"Spark did not start on {master}: {short(error)}") from None
        session.sparkContext.setLogLevel("OFF")
        return session

    def _frame(self, table: str) -> DataFrame:
        columns = TABLES[table]
        schema = ", ".join(f"`{c.name}` {SPARK_TYPES[c.type]}" for c in columns)
        schema += ", shard STRING"
        files = [
            str(file.path)
            for shard in self._catalog.shards
            for file in shard.segments.get(table, ())
        ]
        if not files:
            nulls = ", ".join(f"CAST(NULL AS {SPARK_TYPES[c.type]}) AS `{c.name}`" for c in columns)
            return self._spark.sql(f"SELECT CAST(NULL AS STRING) AS shard, {nulls} WHERE false")
        base = self._catalog.run_dir / table
        frame = (
            self._spark.read.schema(schema)
            # Names of directories are no patterns, whatever characters they hold.
            .option("__globPaths__", "false")
            .option("basePath", _local(base))
            .parquet(*(_local(Path(file)) for file in files))
        )
        return frame.select("shard", *(c.name for c in columns))

    def _run_frame(self, table: str) -> DataFrame:
        import pyarrow as pa

        rows: list[dict[str, Any]] = []
        for shard in self._catalog.shards:
            state = asdict(shard.state)
            segments = state.pop("segments")
            rows += [state] if table == "shards" else [{"shard": shard.name, **s} for s in segments]
        fields = [(c.name, pa.int64() if "int" in c.type else pa.string()) for c in TABLES[table]]
        found = pa.Table.from_pylist(rows, schema=pa.schema(fields))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pandas that is installed, which is not used
            frame = self._spark.createDataFrame(found)
        types = (f"CAST(`{c.name}` AS {SPARK_TYPES[c.type]}) AS `{c.name}`" for c in TABLES[table])
        return frame.selectExpr(*types)


def _local(path: Path) -> str:
    return f"file://{path}"


def _left_out(catalog: Catalog) -> list[str]:
    """Tell of shards that have rows outside of segments, which Spark does not see."""
    open_shards = [s.name for s in catalog.shards if s.ring or s.events]
    if not open_shards:
        return []
    shown = ", ".join(open_shards[:4]) + (" ..." if open_shards[4:] else "")
    return [
        f"Spark reads sealed segments only: what {shown} has not sealed yet is left out "
        "(after a crash, `tracelens repair` seals it)"
    ]
