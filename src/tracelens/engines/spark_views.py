"""A trace's tables and views in a Spark session, read from its sealed Parquet segments.

Also for a session of your own, in a notebook or a job:

    from tracelens.engines.spark_views import register
    register(spark, "run.tltrace")
    spark.sql("SELECT rank, sum(duration_ns) FROM ops GROUP BY rank")
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracelens.storage import views
from tracelens.storage.catalog import Catalog, open_catalog
from tracelens.storage.tables import RUN_TABLES, SHARD_TABLES, TABLES

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

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


def register(spark: SparkSession, path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Make every table and view of a trace known in a Spark session; return their names.

    Args:
        spark: a classic session; every executor has to see the trace under the same path.
        path: the trace.

    Raises:
        TraceError: there is no trace.
    """
    made = SparkViews(spark, open_catalog(path))
    made.make(" ".join(views.names()))
    return views.names()


class SparkViews:
    """Makes the temporary views of one trace as queries name them.

    The schema is given, not inferred: a column that an older file lacks is NULL, one that this
    version does not know is left out. Only files that the shards' manifests list are read.

    Args:
        spark: the session.
        catalog: the trace.
    """

    def __init__(self, spark: SparkSession, catalog: Catalog) -> None:
        self._spark = spark
        self._catalog = catalog
        self._known: set[str] = set()

    def make(self, sql: str) -> None:
        """Make the tables and views that a query may name: listing files takes Spark a while."""
        for word in {word.lower() for word in re.findall(r"\w+", sql)} - self._known:
            if word in views.DERIVED_VIEWS:
                body = views.DERIVED_VIEWS[word]
                self.make(body)
                self._spark.sql(body).createOrReplaceTempView(word)
            elif word in SHARD_TABLES:
                self._table(word).createOrReplaceTempView(word)
            elif word in RUN_TABLES:
                self._run_table(word).createOrReplaceTempView(word)
            self._known.add(word)

    def _table(self, table: str) -> DataFrame:
        columns = TABLES[table]
        files = [file.path for s in self._catalog.shards for file in s.segments.get(table, ())]
        if not files:
            nulls = ", ".join(f"CAST(NULL AS {SPARK_TYPES[c.type]}) AS `{c.name}`" for c in columns)
            return self._spark.sql(f"SELECT CAST(NULL AS STRING) AS shard, {nulls} WHERE false")
        schema = ", ".join(f"`{c.name}` {SPARK_TYPES[c.type]}" for c in columns)
        frame = (
            self._spark.read.schema(f"{schema}, shard STRING")
            # Names of directories are no patterns, whatever characters they hold.
            .option("__globPaths__", "false")
            .option("basePath", _local(self._catalog.run_dir / table))
            .parquet(*map(_local, files))
        )
        return frame.select("shard", *(c.name for c in columns))

    def _run_table(self, table: str) -> DataFrame:
        """Make ``shards`` and ``segments`` from the shards' manifests, which are always current."""
        import pyarrow as pa

        rows: list[dict[str, Any]] = []
        for shard in self._catalog.shards:
            state = asdict(shard.state)
            segments = state.pop("segments")
            rows += [state] if table == "shards" else [{"shard": shard.name, **s} for s in segments]
        fields = [(c.name, pa.int64() if "int" in c.type else pa.string()) for c in TABLES[table]]
        found = pa.Table.from_pylist(rows, schema=pa.schema(fields))
        frame = self._spark.createDataFrame(found)
        types = (f"CAST(`{c.name}` AS {SPARK_TYPES[c.type]}) AS `{c.name}`" for c in TABLES[table])
        return frame.selectExpr(*types)


def _local(path: Path) -> str:
    return f"file://{path}"
