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
from pathlib import Path
from typing import TYPE_CHECKING

from tracelens.engines.spark_sql import check, short
from tracelens.engines.spark_views import SparkViews
from tracelens.errors import ConfigError, TraceError
from tracelens.storage.catalog import Catalog, open_catalog
from tracelens.storage.sql import QueryRefused, QueryResult

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from tracelens.storage.reader import TraceReader
    from tracelens.storage.sql import Row

_AGAIN_S = 0.2
_MASTER = re.compile(r"local(\[.*\]|-cluster\[.*\])?$|spark://.|k8s://.|yarn$")
_SETTINGS = {
    "spark.app.name": "tracelens",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "ERROR",
    "spark.sql.runSQLOnFiles": "false",
    # "${env:NAME}" in a query would be replaced by what this process's environment holds.
    "spark.sql.variable.substitute": "false",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.parquet.enableVectorizedReader": "true",
    "spark.hadoop.parquet.page.verify-checksum.enabled": "true",
    "spark.driver.maxResultSize": "1g",
    # Below this, files are looked at from here; a job of its own takes longer.
    "spark.sql.sources.parallelPartitionDiscovery.threshold": "5000",
}
# Without an appender Spark takes the configuration for none, and puts its own in its place.
_QUIET = """
appender.none.type = Null
appender.none.name = none
rootLogger.level = off
rootLogger.appenderRef.none.ref = none
"""
_LOCAL_SETTINGS = {
    # A laptop's worth of rows is soonest grouped by few tasks, and nobody outside need reach them.
    "spark.sql.shuffle.partitions": "4",
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
        try:
            self._spark = self._session(master)
        except BaseException:
            shutil.rmtree(self._warehouse, ignore_errors=True)
            raise
        self._views = SparkViews(self._spark, self._catalog)

    def rows(self, sql: str) -> list[Row]:
        """Run one of our own queries and return its rows."""
        try:
            self._views.make(sql)
            return [tuple(row) for row in self._spark.sql(sql).collect()]
        except Exception as error:
            raise TraceError(f"the trace could not be read by Spark: {short(error)}") from None

    def select(self, text: str, *, limit: int, timeout_s: float) -> QueryResult:
        """Run a person's SELECT, at most so many rows and seconds."""
        started = time.perf_counter_ns()
        check(self._spark, text)
        late, done = threading.Event(), threading.Event()
        context, group = self._spark.sparkContext, f"tracelens-{time.monotonic_ns()}"

        def watch() -> None:
            pause = timeout_s
            # A query that is still being planned has no job to cancel yet, so once is not enough.
            while not done.wait(pause):
                pause = _AGAIN_S
                late.set()
                context.cancelJobGroup(group)

        context.setJobGroup(group, "a query on a trace", interruptOnCancel=True)
        watchdog = threading.Thread(target=watch, name="tracelens-query", daemon=True)
        watchdog.start()
        try:
            self._views.make(text)
            frame = self._spark.sql(text)
            types = tuple(kind for _, kind in frame.dtypes)
            found = [tuple(row) for row in frame.limit(limit + 1).collect()]
        except Exception as error:
            if late.is_set():
                message = f"stopped after {timeout_s:g} s: narrow the query or raise the timeout"
                raise QueryRefused(message) from None
            raise QueryRefused(short(error)) from None
        finally:
            done.set()
            watchdog.join()
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

    def _session(self, master: str) -> SparkSession:
        if master.startswith("sc://"):
            raise ConfigError(
                f"{master}: Spark Connect cannot be asked what a query would read; "
                "use a master such as local[2], spark://host:7077 or yarn"
            )
        if not _MASTER.match(master):
            # Java would tell with a traceback, before anything here can catch it.
            raise ConfigError(
                f"{master!r} is no Spark master: use one such as local[2], spark://host:7077, yarn "
                "or k8s://https://host:443"
            )
        try:
            from pyspark.sql import SparkSession
        except ImportError:
            raise ConfigError(
                "the spark engine needs PySpark: pip install 'tracelens-toolkit[spark]'"
            ) from None
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"pyspark\..*")
        active = SparkSession.getActiveSession()
        if active is not None:
            # A program's own session keeps its settings; views of ours are in a session beside it.
            self._shared = True
            session = active.newSession()
            for key in ("spark.sql.runSQLOnFiles", "spark.sql.variable.substitute"):
                session.conf.set(key, "false")
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
            # Spark gives up on a master by stopping itself, and then complains of that.
            silent = "stopped SparkContext" in str(error)
            reason = "no master answers there" if silent else short(error)
            raise ConfigError(f"Spark did not start on {master}: {reason}") from None
        session.sparkContext.setLogLevel("OFF")
        return session


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
